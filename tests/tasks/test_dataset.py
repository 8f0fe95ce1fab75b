"""Own data of files, folders and data sets, alone and mixed: what is trained on, what held out."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from podsrl.plugins import beside
from podsrl.tasks import load_task
from podsrl.tasks.base import Row
from podsrl.tasks.mixture import read_sources, share_counts
from podsrl.tasks.questions import QuestionArguments, named_task

Records = list[dict[str, Any]]


def records(first: int, count: int, **more: Any) -> Records:
    return [
        {"question": f"last digit of {i}?", "answer": str(i % 10), **more}
        for i in range(first, first + count)
    ]


def write(path: Path, rows: Records) -> Path:
    """The records as the end of the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0])] + [",".join(map(str, row.values())) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbers(rows: list[Row]) -> list[int]:
    """The numbers asked for, which name the records."""
    return [int(row["prompt"][-1]["content"].split()[-1].rstrip("?")) for row in rows]


def load(**options: Any) -> Any:
    return load_task("dataset", answer_format="number", **options)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_file_of_each_kind_with_all_its_columns_and_a_tenth_held_out(
    suffix: str, tmp_path: Path
) -> None:
    path = write(tmp_path / f"mine{suffix}", records(0, 200, level="hard"))
    task = load(dataset_name=str(path))
    train, test = task.rows("train"), task.rows("test")
    assert task.name == f"dataset:mine{suffix}"
    assert sorted(numbers(train) + numbers(test)) == list(range(200))
    assert 8 <= len(test) <= 32  # a tenth, 3 deviations of 4.2 wide
    assert all(row["level"] == "hard" and set(row) == {"prompt", "answer", "level"} for row in test)
    write(path, records(0, 200, level="hard")[::-1])  # the same ones in another order
    assert numbers(load(dataset_name=str(path)).rows("test")) == numbers(test)[::-1]
    half = load(dataset_name=str(path), test_split_size=0.5).rows("test")
    assert 79 <= len(half) <= 121 and set(numbers(test)) <= set(numbers(half))


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """A data set as the hub holds it: two configurations, with Parquet files for splits."""
    write(tmp_path / "sums" / "easy" / "train.parquet", records(0, 20, level=1))
    write(tmp_path / "sums" / "easy" / "validation.parquet", records(18, 4, level=2))
    write(tmp_path / "sums" / "hard" / "train.parquet", records(100, 20))
    write(tmp_path / "sums" / "hard" / "test.parquet", records(200, 5))
    files = [
        {"config_name": name, "data_files": [{"split": s, "path": f"{name}/{s}.*"} for s in splits]}
        for name, splits in {"easy": ("train", "validation"), "hard": ("train", "test")}.items()
    ]
    (tmp_path / "sums" / "README.md").write_text(f"---\nconfigs: {json.dumps(files)}\n---\n")
    return tmp_path / "sums"


def test_a_data_set_with_configuration_and_splits(folder: Path) -> None:
    task = load(dataset_name=str(folder), dataset_config="hard")
    assert numbers(task.rows("train")) == list(range(100, 120))
    assert numbers(task.rows("test")) == list(range(200, 205))
    task = load(
        dataset_name=str(folder),
        dataset_config="easy",
        dataset_train_split="train[:50%]",
        dataset_test_split="validation",
    )
    assert numbers(task.rows("train")) == list(range(10))
    assert [(row["level"], set(row)) for row in task.rows("test")] == [
        (2, {"prompt", "answer", "level"})
    ] * 4


def test_a_folder_of_json_lines_is_a_data_set(tmp_path: Path) -> None:
    write(tmp_path / "sums" / "train.jsonl", records(0, 4))
    write(tmp_path / "sums" / "test.jsonl", records(4, 2))
    task = load(dataset_name=str(tmp_path / "sums"))
    assert (numbers(task.rows("train")), numbers(task.rows("test"))) == ([0, 1, 2, 3], [4, 5])


def test_no_row_is_in_both(folder: Path) -> None:
    """18 and 19 are in both splits of easy: left out of training, and counted."""
    task = load(dataset_name=str(folder), dataset_config="easy", dataset_test_split="validation")
    with pytest.warns(UserWarning, match="2 train questions are test questions and were left out"):
        assert numbers(task.rows("train")) == list(range(18))
    task = load(dataset_name=str(folder), dataset_config="easy", dataset_test_split="train")
    with pytest.raises(ValueError, match="all 20 train questions of dataset:sums are test"):
        task.rows("train")


def test_a_split_that_is_not_there(folder: Path) -> None:
    """Nothing to evaluate on is told where it is asked for; training needs none."""
    task = load(dataset_name=str(folder), dataset_config="easy")
    assert len(task.rows("train")) == 20
    with pytest.raises(ValueError, match=r"^[^\n]*$") as raised:
        task.rows("test")
    for said in ('"test"', "'validation'", "dataset_test_split", "test_split_size"):
        assert said in str(raised.value)
    with pytest.raises(ValueError, match=r"BuilderConfig 'odd' not found. Available: \['easy'"):
        load(dataset_name=str(folder), dataset_config="odd").rows("train")
    with pytest.raises(ValueError, match='Unknown split "dev"'):
        load(dataset_name=str(folder), dataset_config="hard", dataset_train_split="dev").rows(
            "train"
        )


def test_several_files_and_separate_held_out_ones(folder: Path, tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.jsonl", records(0, 3, level=1)),
        write(tmp_path / "b.csv", records(3, 2)),
        write(tmp_path / "c.parquet", records(5, 2, topic="sums")),
    ]
    held_out = write(tmp_path / "held.jsonl", records(6, 2))
    source = {"path": str(folder), "name": "easy", "split": "train[:8]", "columns": ["answer"]}
    source["columns"] += ["question"]
    task = load(datasets=[*map(str, paths), source], test_datasets=[str(held_out)])
    with pytest.warns(UserWarning, match="3 train questions"):  # 6 in c, 6 and 7 in the folder
        rows = task.rows("train")
    assert numbers(rows) == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    assert numbers(task.rows("test")) == [6, 7]
    assert [(row["level"], row["topic"]) for row in rows] == (
        [(1, None)] * 3 + [(None, None)] * 2 + [(None, "sums")] + [(None, None)] * 6
    )
    assert task.name == "dataset:a.jsonl+b.csv+c.parquet+sums"


def test_a_mixture_has_the_shares_that_are_asked_for(tmp_path: Path) -> None:
    """Of 100 and 300 records, shares 1 to 1: 100 each, the first; without shares all."""
    assert share_counts([100, 300], [0.5, 0.5]) == [100, 100]
    assert share_counts([100, 300], [0.4, 0.6]) == [100, 150]
    assert share_counts([10, 10, 10], [1, 1, 2]) == [5, 5, 10]
    few = write(tmp_path / "few.jsonl", records(0, 100))
    many = write(tmp_path / "many.jsonl", records(1000, 300))
    held_out = [str(write(tmp_path / "held.jsonl", records(5000, 1)))]

    def mixed(*fractions: float | None, seed: int = 0) -> list[int]:
        parts = [
            {"path": str(path)} | ({"fraction": fraction} if fraction else {})
            for path, fraction in zip((few, many), fractions, strict=True)
        ]
        return numbers(load(datasets=parts, test_datasets=held_out, seed=seed).rows("train"))

    assert mixed(1, 1) == [*range(100), *range(1000, 1100)]
    assert mixed(0.25, 0.75) == [*range(100), *range(1000, 1300)] == mixed(None, None)
    assert mixed(1, 1, seed=5) == mixed(1, 1)
    with pytest.raises(ValueError, match=r"many\.jsonl has no fraction, others have"):
        mixed(1, None)


def test_a_mixture_without_held_out_files_holds_out_a_tenth_of_what_is_mixed(
    tmp_path: Path,
) -> None:
    paths = [str(write(tmp_path / f"{i}.jsonl", records(200 * i, 200))) for i in range(2)]
    task = load(datasets=paths)
    train, test = numbers(task.rows("train")), numbers(task.rows("test"))
    assert sorted(train + test) == list(range(400)) and 22 <= len(test) <= 58  # 3 x 6 wide
    (alone,) = [load(dataset_name=paths[1]).rows("test")]
    assert numbers(alone) == [i for i in test if i >= 200]  # as when it is alone


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "datasets is []: write a list"),
        ("a.jsonl", "write a list of paths or mappings"),
        ([3], "part 1 is 3: write a path, or a mapping with path"),
        ([{"name": "x"}], "part 1 is {'name': 'x'}: write a path, or a mapping with path"),
        ([{"path": "a", "weight": 2}], "part 1 has no weight: did you mean fraction?"),
        ([{"path": "a", "splitt": "x"}], "part 1 has no splitt: did you mean split?"),
        ([{"path": "a", "zzz": "x"}], "part 1 has no zzz: it has path, name"),
        ([{"path": "a", "fraction": 0}], "fraction is 0: write a number above 0"),
        ([{"path": "a", "columns": "x"}], "columns is 'x': write a list"),
        (["gone.jsonl"], "part 1: there is no file gone.jsonl: correct the path"),
        ([{"path": __file__.replace(".py", ".csv")}], "there is no file"),
    ],
)
def test_what_names_no_data_is_one_line(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as raised:
        read_sources("datasets", value)
    assert said in str(raised.value)


def test_a_file_has_no_split_and_a_missing_column_is_named(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.jsonl", records(0, 3)))
    with pytest.raises(ValueError, match="is a file and has no split: leave it out"):
        load(datasets=[{"path": path, "split": "train"}])
    with pytest.raises(ValueError, match="is a file and has no name"):
        load(dataset_name=path, dataset_config="easy")
    with pytest.raises(ValueError, match="has no column level: it has question, answer"):
        load(datasets=[{"path": path, "columns": ["answer", "level"]}]).rows("train")
    with pytest.raises(ValueError, match=r"there is no folder \./none"):
        load(dataset_name="./none").rows("train")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", r"record 1: a record must be a JSON object"),
        ('[{"question": "1?"\n,]', r"line 2: not JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_json_array_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        load(dataset_name=str(tmp_path / "a.json")).rows("train")


def test_a_damaged_file_of_a_data_set_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sums").mkdir()
    (tmp_path / "sums" / "train.jsonl").write_text('{"question": "1?"}\nnot json\n')
    with pytest.raises(ValueError, match=r"^[^\n]*sums cannot be read \([^\n]*\): correct it$"):
        load(dataset_name=str(tmp_path / "sums")).rows("train")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"task": "gsm8k", "dataset_name": "me/x"}, "task is gsm8k, and dataset_name is 'me/x'"),
        ({"dataset_test_split": "dev"}, "dataset_test_split is 'dev', but there is neither"),
        ({"test_split_size": 0.2}, "test_split_size is 0.2, but there is neither"),
        ({"dataset_name": "a", "datasets": ["b"]}, "leave one of them out"),
        ({"task": "dataset"}, "task dataset has no data"),
        ({"dataset_name": "a", "data": "b"}, "data is b, but task dataset has"),
        ({"dataset_name": "a", "test_split_size": 1.0}, "it is a share between 0 and 1"),
        (
            {"dataset_name": "a", "test_split_size": 0.1, "test_datasets": ["b"]},
            "leave one of them out",
        ),
        ({"datasets": ['{"path": ']}, "is not JSON"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as raised:
        named_task(QuestionArguments(**settings), seed=0)
    assert said in str(raised.value)


def test_data_names_its_task_and_flags_may_be_json(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.jsonl", records(0, 3)))
    arguments = QuestionArguments(datasets=[path, json.dumps({"path": path, "fraction": 1})])
    assert arguments.task == "dataset" and arguments.datasets == [
        path,
        {"path": path, "fraction": 1},
    ]
    assert QuestionArguments().task == "arithmetic"
    task = named_task(QuestionArguments(test_datasets=[path], answer_format="number"), seed=0)
    assert numbers(task.rows("test")) == [0, 1, 2]  # all of them, to evaluate on
    with pytest.raises(ValueError, match="name what to train on with dataset_name or datasets"):
        task.rows("train")


def test_data_beside_a_recipe_is_named_by_its_whole_path(folder: Path) -> None:
    place = folder.parent
    settings = {
        "dataset_name": "sums",
        "datasets": ["sums", {"path": "sums", "split": "x"}, "no/x"],
    }
    assert beside(settings, place) == {
        "dataset_name": str(folder),
        "datasets": [str(folder), {"path": str(folder), "split": "x"}, "no/x"],
    }


def test_a_hub_that_cannot_be_reached_is_named_with_the_data_set() -> None:
    """In a process that is told to be offline, which is how it looks without a network."""
    words = ["train", "--dataset_name", "no-such/sums", "--dataset_config", "main"]
    done = subprocess.run(
        [sys.executable, "-m", "podsrl.cli", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "no-such/sums could not be had from the hub" in line and "connect" in line
