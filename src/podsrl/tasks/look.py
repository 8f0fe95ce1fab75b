"""What a user's own file of questions holds, as far as a first recipe needs it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podsrl.rewards.functions import completion_text
from podsrl.tasks import load_task
from podsrl.tasks.base import Row
from podsrl.tasks.columns import NO_COLUMNS
from podsrl.tasks.sources import SUFFIXES, local_path, local_records, question, read_file

QUESTION_NAMES = ("prompt", "question")
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


def look_at(path: str) -> Look:
    """Return what is in a .jsonl, .csv or .parquet file of questions, or a folder of such.

    A file called train* is taken with the test* beside it, as the folder of both.

    Raises: ValueError naming file, line and remedy for what the task would refuse, and for columns
    that are called otherwise than it reads them.

    Example: `look_at("sums.jsonl").answers == "number"`.
    """
    source = _source(path)
    records = local_records(str(source), "train") if source.is_dir() else read_file(source)
    if not records:
        raise ValueError(f"{source} has no records: write one a line")
    asked = _question_name(records[0].keys(), source)
    task = load_task(f"jsonl:{source}", answer_format="number")  # the questions as they stand
    train, test = task.rows("train"), task.rows("test")
    rows = [*train, *test]
    answers = [row["answer"] for row in rows]
    return Look(
        source=source,
        columns=_columns(records),
        question=asked,
        num_train=len(train),
        num_test=len(test),
        num_repeated=len(train) - len({question(row) for row in train}),
        is_chat=any(isinstance(record.get("prompt"), list) for record in records),
        asks_for_tags=all("<answer>" in _said(row) for row in rows),
        answers=kind_of_answers(answers),
        question_characters=max(len(_said(row)) for row in rows),
        answer_characters=_percentile([len(answer) for answer in answers], 0.95),
        example={name: value for name, value in train[0].items() if name != "prompt"},
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


def _question_name(names: Iterable[str], source: Path) -> str:
    names = list(names)
    for name in QUESTION_NAMES:
        if name in names and "answer" in names:
            return name
    raise ValueError(
        f"{source} has the columns {', '.join(map(str, names))}: call the one that is asked "
        "question (or prompt, where it is a list of chat messages), and the right answer answer"
    )


def _columns(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    names = dict.fromkeys(name for record in records for name in record)
    return {name: _kind([record.get(name) for record in records]) for name in names}


def columns_for_rewards(columns: Iterable[str]) -> list[str]:
    """Return which columns reach a reward function by their own names, the answer first."""
    return ["answer", *(name for name in columns if name not in NO_COLUMNS)]


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
