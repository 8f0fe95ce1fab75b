"""Raw records of a data set: from the hub, or from local JSON-lines and parquet files."""

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from podsrl.tasks.base import SPLITS, Row

Record = dict[str, Any]
SUFFIXES = (".jsonl", ".json", ".parquet")
TEST_SHARE = 0.1


def local_records(data: str, split: str) -> list[Record]:
    """Return the records of a split from a folder or a file.

    Folder: the files train* or test* in it or below it (.jsonl or .parquet). File: one whose
    name starts with train or test is that split alone; any other file is divided by a hash of
    its question, a tenth to test, so that the division never depends on order or seed.

    Raises: ValueError naming the path and the remedy when files or the split are missing, and
    naming file and line for broken JSON.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob(f"{split}*") if p.suffix in SUFFIXES)
        if not files:
            raise ValueError(f"{path} holds no {split}.jsonl or {split}.parquet: put one there")
        return [record for file in files for record in read_file(file)]
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
        records = [record for record in records if _hashed_split(record) == split]
    if not records:
        raise ValueError(f"{path} has no {split} records: add records, or give two files")
    return records


def read_file(path: Path) -> list[Record]:
    """Return the records of a .jsonl or .parquet file in order."""
    if path.suffix == ".parquet":
        from datasets import Dataset

        return list(Dataset.from_parquet(str(path)))
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is neither .jsonl nor .parquet: convert it")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_parse(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]


def hub_records(repository: str, *, split: str, config: str | None = None) -> list[Record]:
    """Return a split of a hub data set through `datasets`, downloaded once into its cache.

    Raises: ValueError with the remedy when the hub cannot be reached.
    """
    from datasets import load_dataset

    try:
        return list(load_dataset(repository, config, split=split))
    except (OSError, ConnectionError) as error:
        raise ValueError(
            f"{repository} could not be had from the hub ({type(error).__name__}): connect, or "
            "give local files with data (--data FOLDER)"
        ) from error


def field(record: Record, *names: str) -> Any:
    """Return the first of these fields that the record has.

    Raises: ValueError naming the fields looked for and those there.
    """
    for name in names:
        if record.get(name) is not None:
            return record[name]
    raise ValueError(f"a record has {sorted(record)}, but none of {', '.join(names)}: add one")


def table_rows(
    split: str,
    *,
    data: str | None,
    hub: Callable[[str], list[Record]],
    to_row: Callable[[Record], Row],
) -> list[Row]:
    """Return a split of a published table, from `data` or else from the hub.

    Train rows whose question is a test question are left out, with a warning that counts them.
    A lone file named train* has no test questions to compare with.
    """

    def load(name: str) -> list[Row]:
        records = hub(name) if data is None else local_records(data, name)
        return [to_row(record) for record in records]

    rows = load(split)
    if split == "test" or (data is not None and _is_file_of("train", Path(data))):
        return rows
    held_out = {question(row) for row in load("test")}
    kept = [row for row in rows if question(row) not in held_out]
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


def _parse(line: str, path: Path, number: int) -> Record:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error.msg}): correct it") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}, line {number}: a record must be a JSON object")
    return record


def _hashed_split(record: Record) -> str:
    text = json.dumps(field(record, "prompt", "question", "problem"))
    digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
    return "test" if int.from_bytes(digest[:8]) < TEST_SHARE * 2**64 else "train"
