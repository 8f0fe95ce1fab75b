"""What a user's own file of questions holds, as far as a first recipe needs it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podsrl.rewards.functions import completion_text
from podsrl.tasks import load_task
from podsrl.tasks.base import Row
from podsrl.tasks.sources import SUFFIXES, local_path, local_records, read_file
from podsrl.tasks.sources import question as last_message

# What data of others calls them; the first that is there is taken.
QUESTION_NAMES = ("prompt", "question", "problem", "instruction", "query", "input", "text")
ANSWER_NAMES = ("answer", "final_answer", "solution", "output", "response", "completion", "target",
                "label", "result", "expected", "reference", "ground_truth")  # fmt: skip
LONGEST_SHORT = 60  # characters: a name, a date, a formula, which an answer tag holds
CHARACTERS_PER_TOKEN = 3  # on the safe side: English has about four, digits one
# Room to think in before the answer, in tokens; a text that is all answer needs none.
THINKING = {"number": 100, "short": 200, "long": 0}


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen in a file, or in a folder of train and test files."""

    source: Path
    """What the task reads: the file, or the folder that holds it beside a test file."""
    columns: dict[str, str]
    """Name -> kind: text, number, truth, messages, list, mapping, mixed or empty."""
    question: str
    """The column that is asked."""
    answer: str
    """The column of the right answer."""
    prompt_template: str | None
    """The task's setting that asks the column, None where it does so without."""
    num_train: int
    num_test: int
    num_repeated: int
    """Training questions that stand there more than once."""
    is_chat: bool
    """Whether questions are lists of messages, which are used as they are."""
    asks_for_tags: bool
    """Whether the messages speak of <answer>."""
    answers: str
    """number, short (in tags) or long (a whole text)."""
    question_characters: int
    """Of the longest question, all its messages together."""
    answer_characters: int
    """Below which 95 of 100 answers stay."""
    example: Row
    """A training question as reward functions get it: its columns, the answer as text."""
    has_steps: bool
    """Whether answers end in #### and the final one, as GSM8K's do."""

    @property
    def marked_by(self) -> str:
        """How an answer is found in a text: as its last number, in tags, or not: it is the text."""
        if self.answers == "number":
            return "number"
        may_be_asked = self.asks_for_tags or not self.is_chat
        return "tags" if self.answers == "short" and may_be_asked else "text"

    @property
    def max_completion_length(self) -> int:
        """Tokens: 1.5 times the answers' and room to think in, as a multiple of 64.

        Example: numbers of up to 6 characters are 2 tokens: 3 and 100 are within 128.
        """
        tokens = self.answer_characters / CHARACTERS_PER_TOKEN
        return 64 * max(1, math.ceil((1.5 * tokens + THINKING[self.answers]) / 64))


def look_at(path: str, *, question: str | None = None, answer: str | None = None) -> Look:
    """Return what is in a .jsonl, .csv or .parquet file of questions, or a folder of such.

    A file called train* is taken with the test* beside it, as the folder of both.

    question, answer: the columns that are asked and that hold the right answer; otherwise the
        first that is called so, or as other data calls them (problem, solution, ...), in small
        letters or capital ones.

    Raises: ValueError naming file, line and remedy for what the task would refuse, and where no
    column is called in any of these ways.

    Example: `look_at("sums.jsonl").answers == "number"`.
    """
    source = _source(path)
    records = local_records(str(source), "train") if source.is_dir() else read_file(source)
    if not records:
        raise ValueError(f"{source} has no records: write one a line")
    names = list(dict.fromkeys(name for record in records for name in record))
    asked = _column("--question", question, QUESTION_NAMES, names, source)
    right = _column("--answer", answer, ANSWER_NAMES, names, source)
    unaided = next((name for name in ("prompt", "question") if name in names), None)
    template = None if asked == unaided else f"{{{asked}}}"
    options: dict[str, Any] = {
        "answer_column": right,
        "prompt_template": template,
        "answer_format": "number",
    }
    task = load_task(f"jsonl:{source}", **options)  # a number: without a word on tags
    train, test = task.rows("train"), task.rows("test")
    rows = [*train, *test]
    answers = [row["answer"] for row in rows]
    return Look(
        source=source,
        columns=_columns(records),
        question=asked,
        answer=right,
        prompt_template=template,
        num_train=len(train),
        num_test=len(test),
        num_repeated=len(train) - len({last_message(row) for row in train}),
        is_chat=template is None and any(isinstance(r.get("prompt"), list) for r in records),
        asks_for_tags=all("<answer>" in _said(row) for row in rows),
        answers=kind_of_answers(answers),
        question_characters=max(len(_said(row)) for row in rows),
        answer_characters=_percentile([len(answer) for answer in answers], 0.95),
        example={name: value for name, value in train[0].items() if name != "prompt"},
        has_steps=all("####" in answer for answer in answers),
    )


def kind_of_answers(answers: Sequence[str]) -> str:
    """Return number, short or long.

    Example: ["7", "1,200"] are numbers, ["Paris"] is short, a paragraph is long; one answer of
    another kind makes numbers short.
    """
    if all(_is_number(answer) for answer in answers):
        return "number"
    lengths = [len(answer) for answer in answers]
    one_line = not any("\n" in answer.strip() for answer in answers)
    return "short" if one_line and _percentile(lengths, 0.95) <= LONGEST_SHORT else "long"


def _source(path: str) -> Path:
    found = local_path(path).absolute()
    if not found.exists():
        raise ValueError(f"{path} does not exist: give a .jsonl, .csv or .parquet file")
    is_train = found.is_file() and found.name.startswith("train")
    if is_train and any(p.suffix in SUFFIXES for p in found.parent.glob("test*")):
        return found.parent
    return found


def _column(
    flag: str, given: str | None, usual: Sequence[str], names: Sequence[str], source: Path
) -> str:
    there = f"{source} has the columns {', '.join(map(str, names))}"
    if given is not None and given not in names:
        raise ValueError(f"{flag} is {given}, but {there}: name one of them")
    seen = [name for called in usual for name in names if name.lower() == called]
    found = given or next(iter(seen), None)
    if found is None:
        what = "is asked" if flag == "--question" else "is the right answer"
        raise ValueError(f"{there}: say with {flag} COLUMN which one {what}")
    return found


def _columns(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    names = dict.fromkeys(name for record in records for name in record)
    return {name: _kind([record.get(name) for record in records]) for name in names}


def _kind(values: Sequence[Any]) -> str:
    kinds = {_kind_of_one(value) for value in values if value is not None}
    return "mixed" if len(kinds) > 1 else next(iter(kinds), "empty")


def _kind_of_one(value: Any) -> str:
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, list):
        is_chat = value and all(isinstance(each, dict) and "role" in each for each in value)
        return "messages" if is_chat else "list"
    if isinstance(value, Mapping):
        return "mapping"
    return "text" if isinstance(value, str) else "number"


def _said(row: Row) -> str:
    return "\n".join(completion_text([message]) for message in row["prompt"])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text.replace(",", "")))
    except ValueError:
        return False


def _percentile(values: Sequence[int], share: float) -> int:
    """The smallest of the values that `share` of them do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]
