"""podsrl evaluate: measure a model on a task."""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podsrl.cli.mixing import (
    MIXTURES,
    check_mixture,
    evaluate_apart_and_mixed,
    mixture_of,
    print_mixture,
)
from podsrl.cli.parser import VerbParser, errors_in_one_line
from podsrl.cli.questions import add_question_flags, as_trained, given
from podsrl.cli.switching import check_models, evaluate_all, print_switch
from podsrl.models import DEFAULT_MODEL, DTYPES, load_model, load_tokenizer, resolve_model
from podsrl.tasks import TASKS, Task
from podsrl.tasks.questions import QuestionArguments, as_rewarded, named_task, prompts_of
from podsrl.tasks.turns import refuse_turns

if TYPE_CHECKING:
    from podsrl.evaluate import Evaluation

DESCRIPTION = """Measure a model on a task: accuracy, format and length, each with a 95 % interval.

Every problem is answered once greedily. With --samples K it is also answered K times at
--temperature, which adds the mean accuracy, the majority vote (maj@K) and the chance that one of
k answers is right (pass@k). With several --model and --switch T the next model is asked where fewer
than the share T of a model's samples agree: what that wins and saves, beside each model's vote.
With --mixture collab they write one answer, token by token the one whose --probe expects more."""
EXAMPLES = f"""tasks: {", ".join(TASKS)}
  reasoning_gym and jsonl take what to use after a colon: reasoning_gym:leg_counting, jsonl:my.jsonl

examples:
  podsrl evaluate                                        the packaged model on 256 sums
  podsrl evaluate --model runs/my-run/model --samples 8  a trained model, with maj@8 and pass@8
  podsrl evaluate --model a --model b --samples 8 --switch 1.0   b answers where a is unsure
  podsrl evaluate --model a --model b --mixture collab --probe a.safetensors --probe b.safetensors
  podsrl evaluate --task gsm8k --data gsm8k_folder --limit 16
  podsrl evaluate --task reasoning_gym:leg_counting --task-argument max_animals=3

Of a model that podsrl train wrote (RUN/model), questions and prompts are those of its run unless
flags say otherwise.
The output folder receives evaluation.json (the figures) and answers.jsonl (every answer)."""
LABELS = {
    "accuracy_greedy": "accuracy, greedy",
    "accuracy_sampled": "accuracy, mean of samples",
    "format_rate": "keeps the format",
    "truncated_share": "cut off by the limit",
    "mean_length": "mean length, tokens",
    "mean_calls": "mean tool calls",
}


@errors_in_one_line("evaluate")
def main(argv: list[str] | None) -> int:
    """Evaluate, print the table, write the files; 2 with one line on a mistake in the options."""
    options = build_parser().parse_args(argv)
    options.model = options.model or [DEFAULT_MODEL]
    questions, note = as_trained(options.model[0], _settings(options))
    arguments = QuestionArguments(**questions)
    task, output = check(options, arguments)
    if note:
        print(note)

    def evaluate_one(model: str, seed: int) -> "Evaluation":
        evaluation = _run(options, task, model, seed)
        evaluation.settings.update(prompts_of(arguments))
        return evaluation

    if options.switch is None and options.mixture is None:
        evaluation = evaluate_one(options.model[0], options.seed)
        evaluation.save(output)
        _print_table(evaluation, output)
        return 0
    if options.mixture is None:
        evaluations, content = evaluate_all(options, evaluate_one, output)
    else:
        mix = partial(mixture_of, options, task, _place(options), prompts_of(arguments))
        evaluations, content = evaluate_apart_and_mixed(options, evaluate_one, mix, output)
    for number, evaluation in enumerate(evaluations):
        _print_table(evaluation, output / f"model-{number + 1}")
    (print_switch if options.mixture is None else print_mixture)(content, output)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb."""
    parser = VerbParser("evaluate", description=DESCRIPTION, epilog=EXAMPLES)
    add = parser.add_argument
    models = f"hub id, folder, or {DEFAULT_MODEL} (the default); several for --switch, --mixture"
    add("--model", action="append", help=models)
    add("--split", default="test", choices=("train", "test"), help="default: %(default)s")
    add("--limit", type=int, default=256, help="problems; 0 means all (default: %(default)s)")
    add("--samples", type=int, default=0, metavar="K", help="sampled answers per problem")
    add(
        "--switch",
        type=float,
        metavar="T",
        help="ask the next --model where fewer than this share of the samples agree (1.0, say)",
    )
    add(
        "--mixture",
        choices=MIXTURES,
        help="several --model write one answer greedily: of the next tokens that they propose the "
        "one to which its model's --probe gives the best chance",
    )
    add(
        "--probe",
        action="append",
        default=[],
        metavar="HEAD",
        help="of each --model in turn, for --mixture: as podsrl probe writes it",
    )
    pulls = (
        "what a nat of KL from --reference costs in --mixture, as a chance (default: %(default)s)"
    )
    add("--alpha", type=float, default=0.0, help=pulls)
    add("--reference", metavar="MODEL", help="model of --alpha: hub id or folder")
    add("--temperature", type=float, default=1.0, help="of the samples (default: %(default)s)")
    add("--max-new-tokens", type=int, metavar="N", help="length limit (default: the task's)")
    add("--batch-size", type=int, default=64, help="answers at a time (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    add("--dtype", choices=DTYPES, help="default: bfloat16 on CUDA, else float32")
    add("--device", help="default: cuda where there is one, else cpu")
    add("--output", metavar="FOLDER", help="default: runs/evaluate-<task>-<date and time>")
    add(
        "--task-argument",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the task, such as num_test=512; may be repeated",
    )
    add_question_flags(parser, "task_arguments", "majority_gate")
    return parser


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The flags that say what is asked, --task-argument among them."""
    found = given(options)
    if options.task_argument:
        found["task_arguments"] = dict(_parse_argument(text) for text in options.task_argument)
    return found


def check(options: argparse.Namespace, questions: QuestionArguments) -> tuple[Task, Path]:
    """Return the task and the output folder, everything checked that can be without the model.

    Raises: ValueError naming the option's value and the remedy.
    """
    from podsrl.evaluate import check_options
    from podsrl.probe.head import load_prefix_heads

    if options.limit < 0:
        raise ValueError(f"--limit is {options.limit}: give 0 for all problems, or 1 and more")
    check_options(
        num_samples=options.samples,
        temperature=options.temperature,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
    )
    _device(options.device)
    check_models(options)
    check_mixture(options)
    for model in [*options.model, *([options.reference] if options.reference else [])]:
        resolve_model(model)
    task = named_task(questions, seed=options.seed)
    task = as_rewarded(task, questions, task.rows(options.split, 1))
    if options.switch is not None:
        refuse_turns(task, "--switch compares final answers", "leave it out, and give one --model")
    if options.mixture is not None:
        refuse_turns(task, "--mixture writes one text", "leave it out, and give one --model")
        load_prefix_heads(options.probe)
    return task, _output_folder(options.output, str(questions.task))


def _place(options: argparse.Namespace) -> tuple[str, str]:
    """The device and the precision of the models' weights."""
    device = _device(options.device)
    return device, options.dtype or ("bfloat16" if device.startswith("cuda") else "float32")


def _run(options: argparse.Namespace, task: Task, name: str, seed: int) -> "Evaluation":
    from rich.console import Console

    from podsrl.evaluate import evaluate
    from podsrl.progress import progress_bar

    device, dtype = _place(options)
    tokenizer = load_tokenizer(name)
    model: Any = load_model(name, dtype=dtype).to(device)
    with progress_bar(Console(), "answers") as report:
        evaluation = evaluate(
            model,
            tokenizer,
            task,
            split=options.split,
            limit=options.limit or None,
            num_samples=options.samples,
            temperature=options.temperature,
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            seed=seed,
            progress=report,
        )
    evaluation.settings.update(model=name, dtype=dtype, device=device)
    return evaluation


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(f"--device is {name!r}: write cpu, cuda or cuda:0") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device is {name!r}, but there is no CUDA device: use cpu")
    return name


def _parse_argument(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value read as JSON where it is JSON, else as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier() or name in ("data", "seed"):
        raise ValueError(f"--task-argument is {text!r}: write NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _output_folder(output: str | None, task: str) -> Path:
    if output:
        folder = Path(output)
    else:
        plain = task.replace(":", "-").replace("/", "-")
        folder = Path("runs") / f"evaluate-{plain}-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder} is a file: name a folder")
    return folder


def _print_table(evaluation: "Evaluation", output: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    settings, summary = evaluation.settings, evaluation.summary
    title = f"{settings['model']} on {settings['task']}, {settings['split']} split"
    table = Table(title=title, caption=f"{summary['num_problems']} problems")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for name, figure in summary.items():
        if isinstance(figure, dict):
            table.add_row(
                LABELS.get(name, name.replace("reward_", "reward, ")), *_cells(name, figure)
            )
    console = Console()
    console.print(table)
    if summary["num_grading_failures"]:
        console.print(f"{summary['num_grading_failures']} answers could not be graded (as wrong)")
    console.print(f"{summary['seconds']:.1f} s; written to {output}", soft_wrap=True)


def _cells(name: str, figure: dict[str, Any]) -> tuple[str, str]:
    def show(value: float) -> str:
        if name.startswith("reward_"):
            return f"{value:.3f}"
        return f"{value:.1f}" if name in ("mean_length", "mean_calls") else f"{100 * value:.1f} %"

    if figure["low"] is None:
        return show(figure["value"]), "-"
    return show(figure["value"]), f"{show(figure['low'])} to {show(figure['high'])}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
