"""Data files as people have them: read rightly, or refused in one line with file, line, remedy."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny import make_tokenizer
from podsrl.tasks import load_task
from podsrl.tasks.prompts import fit_prompts, prompt_lengths
from podsrl.tasks.record import Record
from podsrl.tasks.sources import question

GOOD = '{"question": "1+1?", "answer": "2"}'


def rows_of(tmp_path: Path, content: str | bytes, *, task: str = "jsonl") -> list[dict[str, Any]]:
    """The test rows of a file with this content."""
    path = tmp_path / "test.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    if task == "jsonl":
        return load_task(f"jsonl:{path}").rows("test")
    return load_task(task, data=str(path)).rows("test")


def record(**fields: Any) -> str:
    return json.dumps({"question": "1+1?", "answer": "2", **fields})


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\u2028\u2028"])
def test_line_separators_inside_a_text_end_no_line(tmp_path: Path, separator: str) -> None:
    line = json.dumps({"question": f"a{separator}b", "answer": "7"}, ensure_ascii=False)
    (row,) = rows_of(tmp_path, line + "\n")
    assert row["prompt"][-1]["content"] == f"a{separator}b"


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + GOOD,
        GOOD + "\r\n",
        f"\n\n  \n{GOOD}\n\t\n\n",
        GOOD,  # no line feed at the end
        record(answer=2),
        record(answer="2", extra=[1, {"a": None}]),
        record(question=None, prompt="1+1?"),
    ],
)
@pytest.mark.filterwarnings("ignore:column .extra. is left out")
def test_what_is_valid_is_read(tmp_path: Path, content: str) -> None:
    (row,) = rows_of(tmp_path, content)
    assert (question(row), row["answer"]) == ("1+1?", "2")


def test_a_decimal_number_is_its_text(tmp_path: Path) -> None:
    assert rows_of(tmp_path, record(answer=27.5))[0]["answer"] == "27.5"


def test_a_line_of_many_megabytes_is_read(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, record(question="x" * 5_000_000))
    assert len(row["prompt"][-1]["content"]) == 5_000_000


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (record(answer=["7"]), r"answer is \['7'\], a list: write text or a number"),
        (record(answer={"value": 7}), "a dict: write text or a number"),
        (record(answer=None), "none of answer with a value: add one"),
        (record(answer=True), "answer is True, a bool: write text or a number"),
        (record(answer=float("nan")), "answer is nan, which no text equals"),
        (record(answer=float("inf")), "answer is inf, which no text equals"),
        (record(answer=""), "answer is '': write some text or a number, or take the record out"),
        (record(answer="  "), "answer is '  ': write some"),
        (record(question=""), "question is '': write some text"),
        (record(question=5), "question is 5, an? int: write text"),
        (record(question=["a"]), "a list: write text"),
        (record(question="\ud800"), r"question holds \\ud800, half of a surrogate pair"),
        (record(answer="\udfff"), r"answer holds \\udfff, half of a surrogate pair"),
        (record(prompt=[]), "prompt is an empty list: add a message"),
        (record(prompt=["hello"]), "prompt, message 1 is 'hello': write role and content"),
        (record(prompt=[{"role": "user"}]), "message 1 is .*: write role and content"),
        (record(prompt=[{"role": "user", "content": None}]), "content is None, a NoneType"),
        (record(prompt=[{"role": 1, "content": "a"}]), "message 1, role is 1, an? int"),
        ('{"answer": "2"}', "none of prompt, question with a value: add one"),
        ('{"question": "1+1?"}', "none of answer with a value: add one"),
        ("{}", "none of answer"),
        ("[1]", "a record must be a JSON object on one line, not a list"),
        ("7", "not an? int"),
        ("null", "not a NoneType"),
        ('{"question": ', "not JSON"),
        (GOOD + GOOD, "not JSON"),
        ("[" * 100_000, "nested too deeply: write text"),
        (f'{{"question": "a", "answer": {"9" * 5000}}}', r"not JSON \(Exceeds the limit"),
        ("question,answer", "not JSON"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path: Path, bad: str, words: str) -> None:
    with pytest.raises(ValueError, match=rf"test\.jsonl, line 3: (.|\n)*{words}") as error:
        rows_of(tmp_path, f"{GOOD}\n\n{bad}\n{GOOD}\n")
    message = str(error.value)
    assert "\n" not in message and len(message) < 500


def test_bytes_that_are_not_utf_8_are_named_by_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 2: byte 0xe9 is not UTF-8: save the file as UTF-8"):
        rows_of(tmp_path, GOOD.encode() + b'\n{"question": "caf\xe9", "answer": "2"}')
    with pytest.raises(ValueError, match="line 1: byte 0xff is not UTF-8"):
        rows_of(tmp_path, GOOD.encode("utf-16"))


@pytest.mark.parametrize("content", ["", "\n\n \n", "\ufeff"])
def test_files_without_records_are_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ValueError, match=r"test.jsonl has no test records: add records"):
        rows_of(tmp_path, content)
    with pytest.raises(ValueError, match=r"test.jsonl: no test records: add some"):
        load_task("gsm8k", data=str(tmp_path)).rows("test")


def test_the_last_line_cut_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2: not JSON"):
        rows_of(tmp_path, f"{GOOD}\n{GOOD[:-4]}")


def test_paths_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no path here"):
        load_task("gsm8k", data="x" * 5000).rows("test")
    with pytest.raises(ValueError, match="is no path here"):
        load_task("jsonl:~no_such_user_here/file.jsonl")
    (tmp_path / "test.jsonl").mkdir()
    with pytest.raises(ValueError, match="is a folder with the name of a file: rename it"):
        load_task("gsm8k", data=str(tmp_path)).rows("test")
    (tmp_path / "data.xls").write_text("a")
    with pytest.raises(ValueError, match=r"is neither .jsonl, .csv nor .parquet: convert it"):
        load_task(f"jsonl:{tmp_path / 'data.xls'}").rows("test")


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    for content in (b"", b"PAR1", b"not parquet at all", b"PAR1" + bytes(100) + b"PAR1"):
        (tmp_path / "test.parquet").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"test.parquet cannot be read as parquet \(.*write it anew"
        ):
            load_task("gsm8k", data=str(tmp_path)).rows("test")


def test_rows_of_parquet_are_named(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(
        [{"question": "a", "answer": "1"}, {"question": "b", "answer": None}]
    ).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"test.parquet, row 2: .*none of answer"):
        load_task(f"jsonl:{tmp_path}").rows("test")


def test_no_training_question_left_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(GOOD)
    with pytest.raises(ValueError, match=r"all 1 train questions of .* are test questions"):
        load_task(f"jsonl:{tmp_path}").rows("train")


def test_a_question_may_stand_twice(tmp_path: Path) -> None:
    assert len(rows_of(tmp_path, f"{GOOD}\n{GOOD}\n")) == 2


@pytest.mark.parametrize(
    ("task", "bad", "words"),
    [
        ("gsm8k", {"question": "a", "answer": ["#### 7"]}, "answer is .* a list"),
        ("gsm8k", {"question": "a", "answer": "so ####"}, "answer after #### is ''"),
        ("math", {"problem": "a", "solution": ["7"]}, "solution is .* a list"),
        ("math", {"problem": "a", "solution": "\\boxed"}, "no closed"),
        ("math", {"problem": "a", "solution": "seven"}, "no closed"),
        ("math", {"problem": 7, "answer": "7"}, "problem is 7, a int"),
        ("amc23", {"question": "a", "answer": [27]}, "answer is .* a list"),
    ],
)
def test_the_published_tasks_refuse_alike(
    tmp_path: Path, task: str, bad: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=rf"test.jsonl, line 1: .*{words}"):
        rows_of(tmp_path, json.dumps(bad), task=task)


def test_records_know_their_place() -> None:
    assert Record({"answer": "7"}, "sums.jsonl, line 3").place == "sums.jsonl, line 3"


def prompts(*lengths: int) -> list[dict[str, Any]]:
    """Rows whose prompts have these lengths in tokens: the template adds `u `, `.` and `a `."""
    contents = ["x" * (length - 5) for length in lengths]
    return [{"prompt": [{"role": "user", "content": c}], "answer": "7"} for c in contents]


def test_prompts_too_long_are_dropped_and_counted() -> None:
    tokenizer, rows = make_tokenizer(), prompts(10, 192, 193, 300)
    assert prompt_lengths(rows, tokenizer) == [10, 192, 193, 300]
    # A context of 256 less 64 for the answer leaves 192.
    sizes = {"context": 256, "max_new_tokens": 64}
    assert fit_prompts(rows, tokenizer, **sizes, policy="drop") == (rows[:2], 2)
    assert fit_prompts(rows[:2], tokenizer, **sizes, policy="refuse") == (rows[:2], 0)
    assert fit_prompts([], tokenizer, **sizes, policy="refuse") == ([], 0)


@pytest.mark.parametrize(
    ("lengths", "policy", "words"),
    [
        ((10, 193), "refuse", "1 of 2 prompts do not fit: the longest has 193 tokens, which with "
         "answers of 64 exceeds the model's context of 256; the first is question 2, 'x{38,40}': "
         "set the length limit of answers to 63 or less, leave them out"),
        ((300, 10), "refuse", "question 1, .*: leave them out .long_prompts drop., or"),
        ((300, 300), "drop", "2 of 2 prompts do not fit: .*: shorten them, or take a model"),
        ((10,), "cut", "long_prompts is 'cut': choose from refuse, drop"),
    ],
)  # fmt: skip
def test_prompts_too_long_are_refused(lengths: tuple[int, ...], policy: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit_prompts(
            prompts(*lengths), make_tokenizer(), context=256, max_new_tokens=64, policy=policy
        )
