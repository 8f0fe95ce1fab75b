"""Questions that a prompt probe calls hopeless or settled, left out before anything is sampled."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from podsrl.probe.head import Head, load_head
from podsrl.progress import counted, progress_bar
from podsrl.runs.place import from_main_process
from podsrl.tasks.base import Row
from podsrl.tasks.turns import tools_of

if TYPE_CHECKING:
    from podsrl.runs.prepare import Run

DEFAULT_RANGE = (0.02, 0.98)


def prompt_head(path: str) -> Head:
    """Return the head; ValueError as `load_head`, and for one that was not fitted at the prompt."""
    head = load_head(path)
    if head.about.at != "prompt":
        raise ValueError(
            f"prompt_probe {path} was fitted at {head.about.at}, where an answer stands already: "
            "fit one with podsrl probe --at prompt"
        )
    return head


def likely_rows(run: "Run", rows: Sequence[Row]) -> Sequence[Row]:
    """Return the rows whose predicted chance of success lies in the run's range, in order.

    All of them without a `prompt_probe`. The chance follows from the question alone, and from the
    model that the head was fitted to, so that the rollouts of a question that stays are what they
    would have been. All processes keep the same. How many are left out is printed.

    Raises `ValueError` where fewer stay than one generation batch takes, and for a model that has
    changed since the head was fitted.
    """
    if run.arguments.prompt_probe is None:
        return rows
    low, high = run.arguments.prompt_probe_range or DEFAULT_RANGE
    head = prompt_head(run.arguments.prompt_probe)
    environment = run.task.environment
    tools = None if environment is None else tools_of(environment())
    with progress_bar(run.console, "questions predicted") as report:
        chances = from_main_process(lambda: predicted(head, rows, tools, report))
    likely = [row for row, p in zip(rows, chances, strict=True) if low <= p <= high]
    num_below, num_above = sum(p < low for p in chances), sum(p > high for p in chances)
    told = (
        f"{num_below} of {len(rows)} questions are left out as too hard and {num_above} as too "
        f"easy: the probe gives them less than {low:g} or more than {high:g}"
    )
    num_needed = int(run.config.generation_batch_size or 0) // run.config.num_generations
    if len(likely) < num_needed:
        raise ValueError(
            f"{told}; {len(likely)} stay, and a generation batch takes {num_needed}: widen "
            "prompt_probe_range"
        )
    run.console.print(told, soft_wrap=True, highlight=False)
    return likely


def predicted(
    head: Head,
    rows: Sequence[Row],
    tools: list[Callable[..., Any]] | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """Return the chance of success that a prompt probe gives each row's question.

    Its model is loaded, reads each prompt once, and is let go.
    """
    from podsrl.models import load_to_read, load_tokenizer
    from podsrl.sampling.tap import states_at

    model = load_to_read(head.about.model)
    head.check(model)
    tokenizer = load_tokenizer(head.about.model)
    texts = [
        tokenizer.apply_chat_template(
            row["prompt"], tools=tools, tokenize=False, add_generation_prompt=True
        )
        for row in rows
    ]
    states_PDH = states_at(
        model,
        tokenizer(texts, add_special_tokens=False)["input_ids"],
        layers=head.about.layers,
        report=counted(report, len(rows)),
    )
    chances: list[float] = head.score(head.of_layers(states_PDH)).tolist()
    return chances
