"""Where records come from: files, folders and data sets of the hub, alone or mixed by shares."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from podsrl.tasks.record import Record
from podsrl.tasks.sources import SUFFIXES, hub_records, local_path, read_file

OF_DATASETS = ("name", "data_dir", "data_files", "split")
# What people write, and what it is called by TRL and here.
OTHER_NAMES = {
    "weight": "fraction",
    "proportion": "fraction",
    "config": "name",
    "file": "path",
    "dataset_name": "path",
    "dataset_config": "name",
}


class NoSplitError(ValueError):
    """A data set has no split of this name."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One part of a mixture, under the names of TRL's `datasets`."""

    path: str
    """A .jsonl, .json, .csv or .parquet file, a folder, or an id of the hub."""
    name: str | None = None
    """The configuration of a folder or hub data set."""
    data_dir: str | None = None
    data_files: Any = None
    split: str | None = None
    """The split of a folder or hub data set; slices as `datasets` has them, train[:10%]."""
    columns: tuple[str, ...] | None = None
    """The columns to read; None for all."""
    fraction: float | None = None
    """Share of the mixture; the shares need not add up to 1."""

    @property
    def is_file(self) -> bool:
        """Whether it is a file, which is read whole and line by line."""
        return Path(self.path).suffix in SUFFIXES

    def __str__(self) -> str:
        return self.path if self.name is None else f"{self.path} ({self.name})"


def read_sources(setting: str, value: Any) -> list[Source]:
    """Return the parts that a setting names: a list of paths or of mappings with TRL's names.

    Raises: ValueError naming the setting, the part and the remedy, for what has no such form, for
    an unknown name, for a file with a split, for a file that is not there, and for a `fraction` of
    some parts alone.

    Example: `read_sources("datasets", ["a.jsonl", {"path": "me/sums", "split": "train[:100]"}])`.
    """
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{setting} is {value!r}: write a list of paths or mappings")
    sources = [_source(f"{setting}, part {i}", each) for i, each in enumerate(value, 1)]
    shares = [source.fraction for source in sources]
    if None in shares and set(shares) != {None}:
        without = sources[shares.index(None)]
        raise ValueError(f"{setting}: {without} has no fraction, others have: give one to each")
    return sources


def read_mixture(sources: Sequence[Source], *, split: str) -> list[Record]:
    """Return the records of all parts, one part after the other, in their own order.

    With fractions the mixture is as large as it can be with no record twice: the first records of
    each part, a share f of N in all, rounded. They do not depend on a seed.

    split: that of parts which name none.

    Raises: ValueError naming what cannot be read, and where; NoSplitError for a split that is not
    there.

    Example: parts of 100 and 300 records with the fractions 1 and 1 give 100 and 100; with 1 and 3
    all 400.
    """
    parts = [_records(source, source.split or split) for source in sources]
    if len(sources) > 1 and all(source.fraction is not None for source in sources):
        counts = share_counts(
            [len(part) for part in parts], [source.fraction or 0.0 for source in sources]
        )
        parts = [part[:count] for part, count in zip(parts, counts, strict=True)]
    return [record for part in parts for record in part]


def share_counts(sizes: Sequence[int], fractions: Sequence[float]) -> list[int]:
    """Return how many records of each part make the largest mixture with these shares.

    TRL's `get_dataset`: N = min over parts of size / share, and round(share N) of each.

    Example: sizes 100 and 300, fractions 0.5 and 0.5: 100 and 100; 0.4 and 0.6: 100 and 150.
    """
    shares = [fraction / sum(fractions) for fraction in fractions]
    total = min(size / share for size, share in zip(sizes, shares, strict=True) if share > 0)
    return [round(share * total) for share in shares]


def _source(what: str, value: Any) -> Source:
    if isinstance(value, str):
        value = {"path": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("path"), str):
        raise ValueError(f"{what} is {value!r}: write a path, or a mapping with path")
    _check_names(what, value)
    columns = value.get("columns")
    if columns is not None and not _is_texts(columns):
        raise ValueError(f"{what}: columns is {columns!r}: write a list of their names")
    fraction = value.get("fraction")
    if fraction is not None and not (
        isinstance(fraction, int | float) and 0 < fraction < float("inf")
    ):
        raise ValueError(f"{what}: fraction is {fraction!r}: write a number above 0")
    source = Source(**{**value, "columns": None if columns is None else tuple(columns)})
    if source.is_file and source.data_files is None:
        _check_file(what, source)
    return source


def _check_names(what: str, value: Mapping[str, Any]) -> None:
    known = [each.name for each in fields(Source)]
    for name in value:
        if name in known:
            continue
        close = OTHER_NAMES.get(name) or next(
            iter(difflib.get_close_matches(str(name), known, 1)), None
        )
        hint = f"did you mean {close}?" if close else f"it has {', '.join(known)}"
        raise ValueError(f"{what} has no {name}: {hint}")


def _check_file(what: str, source: Source) -> None:
    if not local_path(source.path).is_file():
        raise ValueError(f"{what}: there is no file {source.path}: correct the path")
    for name in OF_DATASETS:
        if getattr(source, name) is not None:
            raise ValueError(f"{what}: {source.path} is a file and has no {name}: leave it out")


def _is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


def _records(source: Source, split: str) -> list[Record]:
    if source.is_file and source.data_files is None:
        records = read_file(local_path(source.path))
    else:
        records = _of_datasets(source, split)
    if not records:
        raise ValueError(f"{source} has no records: add some, or leave it out")
    if source.columns is None:
        return records
    for name in source.columns:
        if name not in records[0]:
            there = ", ".join(records[0])
            raise ValueError(f"{source} has no column {name}: it has {there}")
    return [
        Record({name: record.get(name) for name in source.columns}, record.place)
        for record in records
    ]


def _of_datasets(source: Source, split: str) -> list[Record]:
    from datasets.exceptions import DatasetsError

    path = local_path(source.path)
    looks_local = source.path.startswith((".", "~", "/")) or "\\" in source.path
    if looks_local and not path.exists():
        raise ValueError(f"there is no folder {source.path}: correct the path")
    more = {"data_dir": source.data_dir, "data_files": source.data_files}
    try:
        return hub_records(
            str(path) if path.is_dir() else source.path,
            config=source.name,
            split=split,
            **{name: value for name, value in more.items() if value is not None},
        )
    except DatasetsError as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"{source} cannot be read ({cause[:200]}): correct it") from error
    except ValueError as error:  # how `datasets` refuses names of configurations and splits
        told = str(error).splitlines()[0]
        if told.startswith(("Unknown split", "Bad split")):
            raise NoSplitError(f"{source}: {told}") from error
        raise ValueError(told if str(source.path) in told else f"{source}: {told}") from error


def from_text(value: Any) -> Any:
    """Return the value of a flag: the words that are JSON mappings as mappings.

    Raises: ValueError for a word that begins as JSON and is none.

    Example: `from_text(["a.jsonl", '{"path": "b.csv"}'])[1] == {"path": "b.csv"}`.
    """
    if not isinstance(value, list):
        return value
    return [_from_text(each) if isinstance(each, str) else each for each in value]


def _from_text(word: str) -> Any:
    if not word.startswith("{"):
        return word
    try:
        return json.loads(word)
    except json.JSONDecodeError as error:
        raise ValueError(f"{word!r} is not JSON ({error.msg}): write a path or JSON") from error
