"""podsrl init: a file of questions -> a recipe, a reward file and a comparison to begin with."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from podsrl.cli.parser import VerbParser, errors_in_one_line
from podsrl.models import DEFAULT_MODEL

if TYPE_CHECKING:
    from podsrl.tasks.look import Look

DESCRIPTION = """Look at your questions and write what a first run needs, every line explained:

  recipe.yaml     the settings of podsrl train
  reward.py       a reward function to start from, which runs on your columns
  compare.yaml    GRPO against PODS at equal training time, for podsrl compare

DATA is a .jsonl (one JSON object a line), .csv or .parquet file, or a folder of train* and test*
files.  Which column is asked (question, prompt, problem, instruction, ...) and which is the right
answer (answer, solution, output, ...) is seen by their names, or said with --question and --answer;
a prompt may be a list of chat messages.  All other columns reach the reward by their names.
Nothing is asked and no model is loaded; what was seen and chosen is printed."""
EXAMPLES = """examples:
  podsrl init sums.jsonl                                writes sums/
  podsrl init sums.csv --output mine --model Qwen/Qwen2.5-0.5B-Instruct
  podsrl init sums.csv --question task --answer result  other names of columns
  podsrl init sums.jsonl --reward-funcs my_reward.py:closeness    a reward that you have already

then:
  podsrl train sums/recipe.yaml --dry_run      all checks, before a model is loaded
  podsrl plan sums/recipe.yaml                 what a step costs here, which n and m
  podsrl train sums/recipe.yaml

Files that are there already are never written over."""
ANSWERS = {
    "number": "all numbers: the last number of a text is compared",
    "tags": "short texts: what stands in <answer> tags is compared",
    "text": "texts that are compared word by word, in no tags",
}


@errors_in_one_line("init")
def main(argv: list[str] | None) -> int:
    """Write the files and say what was seen; 2 with one line on a mistake in options or data."""
    options = build_parser().parse_args(argv)
    from podsrl.models import resolve_model
    from podsrl.plugins import load_function
    from podsrl.runs.starter import starter_files, write_starter
    from podsrl.tasks.look import look_at

    if options.model != DEFAULT_MODEL:  # which may have to be converted first
        resolve_model(options.model)
    for reference in options.reward_funcs or ():
        if ":" in reference:
            load_function(reference)
    look = look_at(options.data, question=options.question, answer=options.answer)
    folder = Path(options.output or look.source.stem)
    files = starter_files(
        look, folder=folder.absolute(), model=options.model, reward_funcs=options.reward_funcs
    )
    written = write_starter(files, folder)
    print("\n".join(_seen(look)))
    print("\n".join(_next(folder, [path.name for path in written])))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb."""
    parser = VerbParser("init", description=DESCRIPTION, epilog=EXAMPLES)
    add = parser.add_argument
    add("data", metavar="DATA", help="your questions: a file, or a folder of train* and test*")
    add("--output", metavar="FOLDER", help="where to write (default: the name of DATA, here)")
    add("--question", metavar="COLUMN", help="what is asked, if its name does not say so")
    add("--answer", metavar="COLUMN", help="the right answer, if its name does not say so")
    add("--model", default=DEFAULT_MODEL, help="hub id, folder, or %(default)s (the default)")
    add(
        "--reward-funcs",
        nargs="+",
        metavar="REWARD",
        help="FILE.py:FUNCTION of yours, or correctness, in place of reward.py",
    )
    return parser


def _seen(look: "Look") -> list[str]:
    from podsrl.runs.starter import num_prompts, num_steps

    columns = ", ".join(f"{name} ({kind})" for name, kind in look.columns.items())
    others = [name for name in look.example if name != "answer"]
    kind = "chat messages, used as they are" if look.is_chat else "one message of the user"
    lines = [
        f"{look.source}: {columns}",
        f"  questions   {look.question}: {kind}; the longest has {look.question_characters} "
        "characters",
        f"  answers     {look.answer}: {ANSWERS[look.marked_by]}",
        f"  rewards     get the answer{' and ' + ', '.join(others) if others else ''}",
        f"  length      {look.max_completion_length} tokens at most: 95 of 100 answers have up to "
        f"{look.answer_characters} characters",
        f"  held out    {look.num_test} questions for evaluation, {look.num_train} to learn from",
        f"  a run       {num_steps(look)} steps of {num_prompts(look)} questions",
    ]
    return lines + [f"  note        {note}" for note in _notes(look)]


def _notes(look: "Look") -> list[str]:
    notes = []
    if look.question == "instruction" and "input" in look.columns:
        notes.append("input is not asked: write {input} into prompt_template where all have one")
    if look.has_steps:
        notes.append(
            f"answers end in ####, as GSM8K's: task: gsm8k with data: {look.source} compares what "
            "follows it"
        )
    if look.num_repeated:
        notes.append(f"{look.num_repeated} questions to learn from stand there more than once")
    if look.is_chat and look.answers == "short" and not look.asks_for_tags:
        notes.append(
            "your messages ask for no <answer> tags: ask for them, and answers can be compared"
        )
    if look.marked_by == "text":
        notes.append("accuracy says little of whole texts: go by the reward, which is reported too")
    if look.num_test < 30:
        notes.append(
            f"{look.num_test} held-out questions give an accuracy to within "
            f"{100 * 0.98 / look.num_test**0.5:.0f} points: more data, or a test file, gives better"
        )
    return notes


def _next(folder: Path, names: list[str]) -> list[str]:
    place = shlex.quote(str(folder))
    lines = [f"written to {place}: {', '.join(names)}; next:"]
    if "reward.py" in names:
        lines.append(f"  python {place}/reward.py                try the reward, change it")
    return [
        *lines,
        f"  podsrl train {place}/recipe.yaml --dry_run",
        f"  podsrl plan {place}/recipe.yaml",
        f"  podsrl train {place}/recipe.yaml",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
