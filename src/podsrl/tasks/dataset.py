"""A user's own questions from anywhere: files, folders, the hub, and mixtures of them."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from podsrl.tasks.base import Row, Task, make_task
from podsrl.tasks.columns import asked, record_row, with_columns
from podsrl.tasks.mixture import NoSplitError, Source, read_mixture, read_sources
from podsrl.tasks.record import Record
from podsrl.tasks.sources import TEST_SHARE, hashed_split, without_held_out
from podsrl.tasks.template import warn_of_answer


def dataset(
    *,
    data: str | None = None,
    seed: int = 0,
    dataset_name: str | None = None,
    dataset_config: str | None = None,
    dataset_train_split: str = "train",
    dataset_test_split: str = "test",
    datasets: Sequence[Any] | None = None,
    test_datasets: Sequence[Any] | None = None,
    test_split_size: float | None = None,
    prompt_template: str | None = None,
    answer_column: str = "answer",
    needs_answers: bool = True,
    answer_format: str = "tags",
    max_new_tokens: int = 512,
) -> Task:
    """Return a task of the user's own data, under the names that TRL's command has for it.

    To train on is `dataset_name`, a file, a folder or an id of the hub, or the mixture `datasets`
    (`mixture.read_mixture`). Held out are `test_datasets`; or the split `dataset_test_split` of
    `dataset_name`; or, with `test_split_size` and where there is no such split because it is a file
    or a mixture, that share of what there is to train on, by default a tenth, chosen by a hash of
    the question: so the same ones whatever the order, the seed and the other records are.

    Records are as those of `jsonl`, and so is `needs_answers`. None of the train rows asks what a
    held-out row asks.

    Raises: ValueError where the settings contradict each other, before anything is read.

    Example: `load_task("dataset", dataset_name="openai/gsm8k", dataset_config="main")`.
    """
    del seed  # neither the mixture nor what is held out follows it
    if data is not None:
        raise ValueError(f"data is {data}, but task dataset has dataset_name and datasets for it")
    warn_of_answer(prompt_template, answer_column)
    _check(dataset_name, datasets, test_datasets, test_split_size)
    train, test = _sources(
        dataset_name, dataset_config, datasets, test_datasets, by_share=test_split_size is not None
    )
    splits = {"train": dataset_train_split, "test": dataset_test_split}
    read = functools.cache(
        lambda split: read_mixture(train if split == "train" else test or (), split=splits[split])
    )
    share = test_split_size or TEST_SHARE

    def records(split: str) -> list[Record]:
        if test is not None:
            return read(split)
        return [
            record
            for record in read("train")
            if hashed_split(asked(record, prompt_template), share) == split
        ]

    def rows(split: str) -> list[Row]:
        if split == "train" and not train:
            raise ValueError(
                "test_datasets are held out: name what to train on with dataset_name or datasets"
            )
        found = [
            record_row(
                record,
                tags=answer_format == "tags",
                prompt_template=prompt_template,
                answer_column=answer_column,
                needs_answer=needs_answers,
            )
            for record in records(split)
        ]
        if not found:
            raise ValueError(f"{name} has no {split} records: add records, or name {split} files")
        return found

    def load_split(split: str) -> list[Row]:
        if split == "test":
            return with_columns(_or_remedy(rows))
        try:
            held_out = rows("test")
        except NoSplitError:  # told when its questions are asked for
            held_out = []
        return with_columns(without_held_out(rows("train"), held_out, name))

    name = f"dataset:{_named(train or test or ())}"
    return make_task(name, load_split, answer_format=answer_format, max_new_tokens=max_new_tokens)


def _check(
    dataset_name: str | None,
    datasets: Sequence[Any] | None,
    test_datasets: Sequence[Any] | None,
    test_split_size: float | None,
) -> None:
    """Raise `ValueError` for settings that contradict each other, or name no data."""
    if dataset_name is not None and datasets is not None:
        raise ValueError(
            f"dataset_name is {dataset_name!r} and datasets is {datasets!r}: leave one of them out"
        )
    if dataset_name is None and datasets is None and test_datasets is None:
        raise ValueError("task dataset has no data: name it with dataset_name or datasets")
    if test_datasets is not None and test_split_size is not None:
        raise ValueError(
            f"test_split_size is {test_split_size} and test_datasets is {test_datasets!r}: leave "
            "one of them out"
        )
    if test_split_size is not None and not 0 < test_split_size < 1:
        raise ValueError(f"test_split_size is {test_split_size}: it is a share between 0 and 1")


def _or_remedy(rows: Any) -> list[Row]:
    try:
        return rows("test")
    except NoSplitError as error:
        raise ValueError(
            f"{error} Name one of them as dataset_test_split, hold a share of the train split out "
            "with test_split_size, name test_datasets, or set evaluate_limit to 0"
        ) from error


def _sources(
    dataset_name: str | None,
    dataset_config: str | None,
    datasets: Sequence[Any] | None,
    test_datasets: Sequence[Any] | None,
    *,
    by_share: bool,
) -> tuple[list[Source], list[Source] | None]:
    """Those to train on and those held out; None for a share of the former."""
    held_out = None if test_datasets is None else read_sources("test_datasets", test_datasets)
    if datasets is not None:
        return read_sources("datasets", datasets), held_out
    if dataset_name is None:  # to evaluate on alone
        return [], held_out
    named = {"path": dataset_name, "name": dataset_config}
    train = read_sources("dataset_name", [{k: v for k, v in named.items() if v is not None}])
    if held_out is None and not by_share and not train[0].is_file:
        held_out = train
    return train, held_out


def _named(sources: Sequence[Source]) -> str:
    """What the data is called in results: a file by its name, a hub data set by its id."""
    names = [
        Path(source.path).name if Path(source.path).exists() else str(source) for source in sources
    ]
    text = "+".join(names)
    return text if len(text) <= 80 else f"{names[0]}+{len(names) - 1} more"
