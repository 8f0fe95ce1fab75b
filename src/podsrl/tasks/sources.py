"""Raw records of a data set: from the hub, or from local JSON-lines, CSV and parquet files."""

import csv
import hashlib
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from podsrl.tasks.base import SPLITS, Row
from podsrl.tasks.record import Record, field

Asked = Callable[[Record], Any]
"""A record -> what it asks, by which it belongs to train or to test."""
QUESTIONS = ("prompt", "question", "problem")
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
TEST_SHARE = 0.1


def question_field(record: Record) -> Any:
    """Return the record's `prompt`, `question` or `problem`, the first that it has."""
    return field(record, *QUESTIONS)


def local_records(data: str, split: str, *, asked: Asked = question_field) -> list[Record]:
    """Return the records of a split from a folder or a file.

    Folder: the files train* or test* in it or below it (.jsonl, .csv or .parquet). File: one whose
    name starts with train or test is that split alone; any other file is divided by a hash of
    its question, a tenth to test, so that the division never depends on order or seed.

    Raises: ValueError naming the path and the remedy when files, records or the split are missing,
    and naming file and line for what is no record.
    """
    path = local_path(data)
    if path.is_dir():
        files = sorted(p for p in path.rglob(f"{split}*") if p.suffix in SUFFIXES)
        if not files:
            raise ValueError(f"{path} holds no {split}.jsonl or {split}.parquet: put one there")
        records = [record for file in files for record in read_file(file)]
        if not records:
            raise ValueError(f"{', '.join(map(str, files))}: no {split} records: add some")
        return records
    if not path.is_file():
        raise ValueError(f"data {path} does not exist: give a folder or a .jsonl or .parquet file")
    own_split = next((name for name in SPLITS if _is_file_of(name, path)), None)
    if own_split is not None and own_split != split:
        raise ValueError(
            f"{path} is the {own_split} split, and {split} was asked for: "
            f"give the folder that holds {own_split} and {split} files"
        )
    records = read_file(path)
    if own_split is None:
        records = [record for record in records if hashed_split(asked(record)) == split]
    if not records:
        raise ValueError(f"{path} has no {split} records: add records, or give two files")
    return records


def local_path(name: str) -> Path:
    """Return the path, `~` resolved, and whether or not it is there.

    Raises: ValueError for what can be no path: an unknown home, or a name too long to look up.
    """
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"data {name[:80]!r} is no path here ({error}): correct it") from error
    return path


def read_file(path: Path) -> list[Record]:
    """Return the records of a .jsonl, .csv or .parquet file in order; blank lines are no records.

    A .json may also be one array of records.

    The first row of a .csv names the columns; its values are text, null where nothing stands.

    A line ends at a line feed alone: other line separators may stand inside a JSON text. A
    byte-order mark is passed over.

    Raises: ValueError naming the file and, if it is one line's fault, the line.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is neither .jsonl, .csv nor .parquet: convert it")
    if path.is_dir():
        raise ValueError(f"{path} is a folder with the name of a file: rename it")
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path)
        text = _decoded(path.read_bytes(), path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from error
    if path.suffix == ".csv":
        return _read_csv(text, path)
    if path.suffix == ".json" and text.lstrip().startswith("["):
        return _read_array(text, path)
    lines = text.split("\n")
    return [_parse(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]


def hub_records(
    repository: str, *, split: str, config: str | None = None, **more: Any
) -> list[Record]:
    """Return a split of a hub data set through `datasets`, downloaded once into its cache.

    more: further arguments of its `load_dataset`.

    Raises: ValueError with the remedy when the hub cannot be reached.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset(repository, config, split=split, **more)
    except (OSError, ConnectionError) as error:
        raise ValueError(
            f"{repository} could not be had from the hub ({type(error).__name__}): connect, or "
            "give local files with data (--data FOLDER)"
        ) from error
    return [Record(row, f"{repository}, {split} row {i}") for i, row in enumerate(rows)]


def table_rows(
    split: str,
    *,
    data: str | None,
    hub: Callable[[str], list[Record]],
    to_row: Callable[[Record], Row],
    asked: Asked = question_field,
) -> list[Row]:
    """Return a split of a published table, from `data` or else from the hub.

    Train rows whose question is a test question are left out, with a warning that counts them.
    A lone file named train* has no test questions to compare with.

    Raises: ValueError when no train row is left, and as `local_records` and `to_row` do.
    """

    def load(name: str) -> list[Row]:
        records = hub(name) if data is None else local_records(data, name, asked=asked)
        return [to_row(record) for record in records]

    rows = load(split)
    if split == "test" or (data is not None and _is_file_of("train", Path(data))):
        return rows
    return without_held_out(rows, load("test"), data or "the hub")


def without_held_out(rows: list[Row], held_out: list[Row], name: str) -> list[Row]:
    """Return the train rows that ask none of the held-out questions; the others are counted.

    Raises: ValueError when none is left.

    Example: of three rows, one of which asks what a held-out row asks, two are left, with a
    warning.
    """
    questions = {question(row) for row in held_out}
    kept = [row for row in rows if question(row) not in questions]
    if rows and not kept:
        raise ValueError(
            f"all {len(rows)} train questions of {name} are test questions, so none is left to "
            "train on: take some out of the test split"
        )
    if len(kept) < len(rows):
        warnings.warn(
            f"{len(rows) - len(kept)} train questions are test questions and were left out",
            stacklevel=2,
        )
    return kept


def question(row: Row) -> str:
    """Return the last message of the row's prompt, spaces normalised."""
    return " ".join(str(row["prompt"][-1]["content"]).split())


def _is_file_of(split: str, path: Path) -> bool:
    return path.name.startswith(split) and not path.expanduser().is_dir()


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8: save the file "
            "as UTF-8"
        ) from error


def _read_parquet(path: Path) -> list[Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be read as parquet ({reason}): write it anew") from error
    return [Record(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]


def _read_csv(text: str, path: Path) -> list[Record]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records: list[Record] = []
    try:
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise ValueError(f"{path}, line 1: two columns have one name: rename one of them")
        first = reader.line_num + 1
        for values in reader:
            place, first = f"{path}, line {first}", reader.line_num + 1
            if values and len(values) != len(names):
                raise ValueError(
                    f"{place}: {len(values)} values for {len(names)} columns: put quotes around "
                    "text with commas"
                )
            if values:
                fields = zip(names, (value or None for value in values), strict=True)
                records.append(Record(dict(fields), place))
    except csv.Error as error:
        line = reader.line_num
        raise ValueError(f"{path}, line {line}: not CSV ({error}): correct it") from error
    return records


def _read_array(text: str, path: Path) -> list[Record]:
    values = _loaded(text, str(path), has_lines=True)
    return [_record(value, f"{path}, record {number}") for number, value in enumerate(values, 1)]


def _parse(line: str, path: Path, number: int) -> Record:
    place = f"{path}, line {number}"
    return _record(_loaded(line, place), place)


def _loaded(text: str, place: str, *, has_lines: bool = False) -> Any:
    """The value; has_lines: whether the error is to say in which line of the text it is."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{place}: nested too deeply: write text") from error
    except ValueError as error:  # also a number of over 4,300 digits, which Python does not read
        if has_lines and isinstance(error, json.JSONDecodeError):
            place = f"{place}, line {error.lineno}"
        reason = getattr(error, "msg", str(error).partition(";")[0])
        raise ValueError(f"{place}: not JSON ({reason}): correct it") from error


def _record(value: Any, place: str) -> Record:
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise ValueError(f"{place}: a record must be a JSON object on one line, not a {kind}")
    return Record(value, place)


def hashed_split(asked: Any, test_share: float = TEST_SHARE) -> str:
    """Return "test" for that share of all questions, else "train": by a hash, so for ever."""
    text = json.dumps(asked, default=str)
    digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
    return "test" if int.from_bytes(digest[:8]) < test_share * 2**64 else "train"
