"""The first recipe, reward and comparison for a user's own questions, every line explained."""

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from podsrl.models import DEFAULT_MODEL
from podsrl.tasks.look import Look

RECIPE, REWARD, COMPARISON = "recipe.yaml", "reward.py", "compare.yaml"
NUM_KEPT, NUM_ROLLOUTS = 8, 16  # m, and n = 2 m, which LOG.md argues for
NUM_PROMPTS = 4  # of a step
FEWEST_STEPS, MOST_STEPS = 20, 200
COMPARED_SECONDS, COMPARED_SEEDS = 300, 3
WIDTH, LONGEST_LINE = 44, 100  # a longer line has its comment above it
LONGEST_EXAMPLE = 200  # characters of a text in the reward file's example

Line = tuple[str, str]

# How the answer is marked in a text -> name, imports, docstring, body, and a right text.
Reward = tuple[str, str, str, str, str]
REWARDS: dict[str, Reward] = {
    "number": (
        "closeness",
        "import re",
        "1 where the last number of the text is the answer, less the further away it is.",
        """\
        numbers = re.findall(r"-?\\d+(?:\\.\\d+)?", completion[-1]["content"].replace(",", ""))
        last = float(numbers[-1]) if numbers else float("inf")
        rewards.append(1 / (1 + abs(last - float(right.replace(",", "")))))""",
        "It is {}.",
    ),
    "tags": (
        "likeness",
        "import re\nfrom difflib import SequenceMatcher",
        "1 where the answer in its tags is the right one, less the more letters differ.",
        """\
        found = re.findall(r"<answer>(.*?)</answer>", completion[-1]["content"], re.DOTALL)
        given = found[-1].strip().lower() if found else ""
        rewards.append(SequenceMatcher(None, given, right.strip().lower()).ratio())""",
        "<answer>{}</answer>",
    ),
    "text": (
        "overlap",
        "import re\nfrom collections import Counter",
        "The words that the text and the right answer have in common: 1 all, 0 none (F1).",
        """\
        texts = completion[-1]["content"], right
        said, wanted = (Counter(re.findall(r"\\w+", text.lower())) for text in texts)
        rewards.append(2 * (said & wanted).total() / max(1, said.total() + wanted.total()))""",
        "{}",
    ),
}


def starter_files(
    look: Look, *, folder: Path, model: str, reward_funcs: Sequence[str] | None = None
) -> dict[str, str]:
    """Return name -> content of a recipe, a reward file and a comparison for these questions.

    folder: where they will lie; runs are called after it. reward_funcs: the user's own, in place
    of a reward file.

    Example: `starter_files(look_at("sums.jsonl"), folder=Path("sums"), model="smollm2-135m")`.
    """
    files = {RECIPE: _recipe(look, folder, model, reward_funcs)}
    if reward_funcs is None:
        files[REWARD] = _reward(look)
    return files | {COMPARISON: _comparison(folder)}


def write_starter(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Write the files into the folder and return their paths.

    Raises: ValueError where one of them is there already, before anything is written.
    """
    for name in files:
        if (folder / name).exists():
            raise ValueError(
                f"{folder / name} is there already, and nothing is written over: name another "
                "folder with --output, or remove it"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in files]


def own_reward(look: Look) -> str:
    """Return the reference to the starting reward, as the recipe names it."""
    return f"{REWARD}:{REWARDS[look.marked_by][0]}"


def num_prompts(look: Look) -> int:
    """Return the prompts of a step: four, or as many as there are."""
    return min(NUM_PROMPTS, look.num_train)


def num_steps(look: Look) -> int:
    """Return the steps of about one pass over the questions, 20 to 200."""
    return max(FEWEST_STEPS, min(MOST_STEPS, math.ceil(look.num_train / num_prompts(look))))


def _recipe(look: Look, folder: Path, model: str, reward_funcs: Sequence[str] | None) -> str:
    steps, prompts = num_steps(look), num_prompts(look)
    parts: dict[str, list[Line]] = {
        "what is learned": [
            (f"task: {_quoted(f'jsonl:{look.source}')}", _about_data(look)),
            *_format(look),
            *_rewards(look, reward_funcs),
            (f"model: {_quoted(model)}", f"{DEFAULT_MODEL} (packaged), a folder, or a hub id"),
            (f"output_dir: {_quoted(f'runs/{folder.name}')}", "the run folder; -2 if it is taken"),
        ],
        "what is sampled and kept: start with n = 2m, and ask podsrl plan for better": [
            (
                f"num_generations: {NUM_KEPT}",
                "m, kept per prompt: time of the update grows with it",
            ),
            (f"num_rollouts: {NUM_ROLLOUTS}", "n, sampled per prompt: time of sampling grows"),
            (
                f"max_completion_length: {look.max_completion_length}",
                "tokens of an answer; a step's time grows with it, too",
            ),
            ("temperature: 1.0", "of sampling: rollouts of a prompt must differ to teach"),
        ],
        "a step": [
            (f"per_device_train_batch_size: {NUM_KEPT}", "kept rollouts at a time: memory"),
            (
                f"gradient_accumulation_steps: {prompts}",
                f"times that many: {prompts} prompts x {NUM_KEPT} kept a step",
            ),
            ("gradient_checkpointing: false", "true: less memory, a slower update"),
            ("learning_rate: 1.0e-5", "1.0e-6 for billions of parameters, 1.0e-4 with LoRA"),
            ("lr_scheduler_type: constant", "podsrl compare, which stops by the clock, needs it"),
            ("beta: 0.0", "pull to the model of the start; above 0 costs a pass more"),
            ("# use_peft: true", "LoRA: small adapters are trained, memory falls (podsrl[lora])"),
        ],
        "when it ends, what is measured": [
            (f"max_steps: {steps}", _about_steps(look, steps)),
            (
                f"evaluate_limit: {min(256, look.num_test)}",
                "held-out questions, answered before and after",
            ),
            ("seed: 0", "of all draws: the same seed, the same run"),
        ],
    }
    lines = [
        f"# {look.num_train} questions of {look.source.name} to learn from, "
        f"{look.num_test} held out.",
        "# Check it:  podsrl train RECIPE --dry_run     Which n and m:  podsrl plan RECIPE",
    ]
    for title, settings in parts.items():
        lines += ["", f"# {title}", *(_line(*setting) for setting in settings)]
    return "\n".join(lines) + "\n"


def _about_data(look: Look) -> str:
    if look.source.is_dir():
        return "train* is learned from, test* is held out"
    return "a tenth is held out, by a hash of the question, the same for every seed"


def _about_steps(look: Look, steps: int) -> str:
    passes = steps * num_prompts(look) / look.num_train
    return f"{passes:.1f} passes over the questions"


def _format(look: Look) -> list[Line]:
    lines: list[Line] = []
    if look.prompt_template is not None:
        told = "what is asked: columns of the data in braces, and words of yours"
        lines.append((f"prompt_template: {_quoted(look.prompt_template)}", told))
    if look.answer != "answer":
        lines.append((f"answer_column: {_quoted(look.answer)}", "where the right answer stands"))
    told = {
        "number": "right or wrong: the last number of the text",
        "tags": "right or wrong: the text in <answer> tags, which a system message asks for",
        "text": "no system message; right or wrong says little of whole texts",
    }[look.marked_by]
    if look.marked_by == "tags" and look.is_chat:
        told = "right or wrong: the text in <answer> tags, which your messages ask for"
    format = "tags" if look.marked_by == "tags" else "number"
    return [*lines, (f"answer_format: {format}", told)]


def _rewards(look: Look, reward_funcs: Sequence[str] | None) -> list[Line]:
    if reward_funcs is not None:
        weights: list[float] = [1.0] * len(reward_funcs)
        names = [_whole_path(name) for name in reward_funcs]
    else:
        names, weights = [own_reward(look)], [1.0]
        if look.marked_by != "text":
            names, weights = ["correctness", *names], [1.0, 0.5]
    told = "FILE.py:FUNCTION are yours; correctness is 1 where the answer is right, else 0"
    return [
        (f"reward_funcs: [{', '.join(map(_quoted, names))}]", told),
        (f"reward_weights: {weights}", "what each counts in the sum"),
    ]


def _whole_path(reference: str) -> str:
    """The reference, a file named by its whole path: the recipe lies elsewhere."""
    path, _, name = reference.rpartition(":")
    return f"{Path(path).expanduser().absolute()}:{name}" if path.endswith(".py") else reference


def _comparison(folder: Path) -> str:
    minutes = 2 * COMPARED_SEEDS * COMPARED_SECONDS // 60
    settings = [
        (f"recipe: {RECIPE}", "what both arms have in common"),
        ("arms:", ""),
        ("  grpo: {}", "n = m: samples as many as it trains on"),
        ("  pods: {}", "the recipe: keeps m of n"),
        ("baseline: grpo", "what the report compares with"),
        (f"seeds: {COMPARED_SEEDS}", "runs of each arm; more seeds, narrower intervals"),
        (f"training_seconds: {COMPARED_SECONDS}", "of each run, the same for all"),
        (f"evaluate_every_seconds: {COMPARED_SECONDS // 4}", "marks of the curve"),
        (f"output_dir: {_quoted(f'runs/{folder.name}-compare')}", "for podsrl report"),
    ]
    lines = [
        f"# Does PODS pay here? 2 arms x {COMPARED_SEEDS} seeds x {COMPARED_SECONDS} s: "
        f"{minutes} minutes of training.",
        "# podsrl compare THIS --dry_run, podsrl compare THIS, then podsrl report on output_dir.",
        *(_line(*setting) for setting in settings),
    ]
    return "\n".join(lines) + "\n"


def _reward(look: Look) -> str:
    name, imports, told, body, right = REWARDS[look.marked_by]
    row = {key: _shortened(value) for key, value in look.example.items()}
    columns = textwrap.wrap(", ".join(name for name in row if name != "answer"), 78)
    others = "".join(
        f"\n    {'' if i else 'and columns of':<18}{line}" for i, line in enumerate(columns)
    )
    return f'''"""How good an answer is: a number for each. PODS keeps those that differ most.

podsrl train calls {name} with lists by keyword, one entry per sampled answer:
    completions       the answers, each a list of messages: completion[-1]["content"] is the text
    prompts           the questions, as lists of messages
    answer            the right answers, as text{others}
It returns as many numbers, None for an answer that could not be scored.
Change it, then try it:  python {REWARD}
"""

{imports}


def {name}(completions, answer, **columns):
    """{told}"""
    rewards = []
    for completion, right in zip(completions, answer, strict=True):
{body}
    return rewards


if __name__ == "__main__":
    row = {row!r}
    texts = [{right!r}.format(row["answer"]), "I do not know."]
    completions = [[{{"role": "assistant", "content": text}}] for text in texts]
    columns = {{name: [value] * len(texts) for name, value in row.items()}}
    for reward, text in zip({name}(completions, **columns), texts, strict=True):
        print(f"{{reward:.3f}}  {{text}}")
'''


def _shortened(value: Any) -> Any:
    return value[:LONGEST_EXAMPLE] if isinstance(value, str) else value


def _quoted(text: str) -> str:
    """The text as YAML reads it, in quotes where it must be."""
    plain = all(letter.isalnum() or letter in "_./-" for letter in text)
    of_file = text.count(":") == 1 and all(c.isalnum() or c in "_./-:" for c in text)
    return text if (plain or of_file) and text[0].isalnum() else json.dumps(text)


def _line(setting: str, comment: str) -> str:
    if not comment:
        return setting
    line = f"{setting:<{WIDTH}}# {comment}"
    return line if len(setting) < WIDTH and len(line) <= LONGEST_LINE else f"# {comment}\n{setting}"
