"""MATH: competition mathematics (Hendrycks et al., arXiv 2103.03874), tested on MATH-500."""

from podsrl.tasks.base import Row, Task, make_row, make_task
from podsrl.tasks.record import Record, answer_field, text_field
from podsrl.tasks.sources import hub_records, table_rows

TRAIN_REPOSITORY = "DigitalLearningGmbH/MATH-lighteval"
TEST_REPOSITORY = "HuggingFaceH4/MATH-500"


def math(
    *,
    data: str | None = None,
    seed: int = 0,
    answer_format: str = "tags",
    max_new_tokens: int = 512,
) -> Task:
    r"""Return MATH: the 7,500 train problems, and the 500 test problems of MATH-500.

    From the hub, or from local files with `data`. The gold answer is the record's `answer`, else
    the last `\boxed{}` of its `solution`. The splits are the published ones, whatever the seed.
    """
    del seed  # the order of a published split is the trainer's business

    def to_row(record: Record) -> Row:
        problem = text_field(record, "problem", "question")
        return make_row(problem, gold_answer(record), tags=answer_format == "tags")

    def rows(split: str) -> list[Row]:
        return table_rows(split, data=data, hub=_from_hub, to_row=to_row)

    return make_task("math", rows, answer_format=answer_format, max_new_tokens=max_new_tokens)


def _from_hub(split: str) -> list[Record]:
    return hub_records(TEST_REPOSITORY if split == "test" else TRAIN_REPOSITORY, split=split)


def gold_answer(record: Record) -> str:
    """Return the record's answer, else the last box of its solution."""
    if record.get("answer") is not None:
        return answer_field(record, "answer")
    solution = text_field(record, "solution")
    try:
        return last_box(solution)
    except ValueError as error:
        raise ValueError(f"{record.place}: {error}") from error


def last_box(solution: str) -> str:
    r"""Return the contents of the last `\boxed{...}`, braces matched.

    Raises: ValueError when there is none.

    Example: `last_box("so \\boxed{\\frac{1}{2}}.") == "\\frac{1}{2}"`.
    """
    _, box, rest = solution.rpartition("\\boxed")
    if box and rest.strip() and not rest.startswith("{"):  # \boxed 5
        return rest.split()[0].rstrip("$.")
    depth = 0
    for position, letter in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if box and depth == 0:
            return rest[1:position]
    raise ValueError(f"no closed \\boxed{{}} in the solution {solution[-80:]!r}: add an answer")
