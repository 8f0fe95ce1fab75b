"""Every task: rows of the right shape, splits that never meet, clear refusals."""

import json
import warnings
from pathlib import Path

import pytest

from podsrl.tasks import TASKS, load_task
from podsrl.tasks.math import last_box
from podsrl.tasks.sources import local_records, question

DATA = Path(__file__).parents[3] / "shared" / "data"

# When tests are collected no plugin of another test has added its own.
built_in = frozenset(TASKS)


def questions(task, split):
    return [question(row) for row in task.rows(split)]


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_arithmetic_answers_are_the_value_of_the_expression():
    for row in load_task("arithmetic", num_train=200).rows("train"):
        expression = row["prompt"][-1]["content"]
        left, sign, right = next(
            expression.split()[i - 1 : i + 2]
            for i, word in enumerate(expression.split())
            if word in "+-"
        )
        left, right = (int("".join(c for c in term if c.isdigit())) for term in (left, right))
        assert int(row["answer"]) == (left + right if sign == "+" else left - right)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_arithmetic_train_and_test_never_overlap(seed):
    task = load_task("arithmetic", seed=seed, num_train=3000)
    train, test = questions(task, "train"), questions(task, "test")
    assert len(train) == 3000 and len(test) == 256
    assert len(set(test)) == 256
    assert not set(train) & set(test)


def test_arithmetic_seed_changes_train_and_not_test():
    first, second = (load_task("arithmetic", seed=seed, num_train=100) for seed in (0, 1))
    assert questions(first, "test") == questions(second, "test")
    assert questions(first, "train") != questions(second, "train")
    again = load_task("arithmetic", seed=1, num_train=100)
    assert questions(second, "train") == questions(again, "train")


def test_arithmetic_mixes_one_and_two_digit_terms():
    # Half of the draws are one-digit; distinct test questions make it about 42 %.
    one_digit = sum(
        len(row["answer"].lstrip("-")) == 1 for row in load_task("arithmetic").rows("test")
    )
    assert 0.2 * 256 < one_digit < 0.6 * 256


def test_arithmetic_rewards_the_last_number_alone():
    task = load_task("arithmetic")
    assert list(task.reward_funcs) == ["correctness"] == list(task.reward_weights)
    assert not task.has_format and task.max_new_tokens == 24
    reward = task.reward_funcs["correctness"]
    chat = [
        [{"role": "assistant", "content": "15 - 43 = -28"}],
        [{"role": "assistant", "content": "43"}],
    ]
    assert reward(completions=chat, answer=["-28", "-28"]) == [1.0, 0.0]
    assert reward(completions=["The answer is 4.", "none"], answer=["4", "4"]) == [1.0, 0.0]


def test_a_space_too_small_for_the_test_split_is_refused():
    with pytest.raises(ValueError, match="num_test=201"):
        load_task("arithmetic", max_digits=1, num_test=201).rows("test")


def test_reasoning_gym_scores_with_its_own_verifier():
    task = load_task("reasoning_gym:leg_counting", num_train=30, num_test=10)
    assert not set(questions(task, "train")) & set(questions(task, "test"))
    for split in ("train", "test"):
        row = task.rows(split, 3)[-1]
        right, wrong = f"<answer>{row['answer']}</answer>", "<answer>-1</answer>"
        assert task.is_correct(right, row) is True
        assert task.is_correct(wrong, row) is False
        assert task.is_correct(row["answer"], row) is False  # not in the closed tags
    columns = {key: [row[key]] for key in row if key not in ("prompt", "answer")}
    reward = task.reward_funcs["correctness"]
    assert reward(completions=[right], answer=[row["answer"]], **columns) == [1.0]


def test_reasoning_gym_arguments_reach_the_generator():
    rows = load_task("reasoning_gym:chain_sum", num_test=5, min_digits=6, max_digits=6).rows("test")
    assert all(any(len(word) == 6 and word.isdigit() for word in question(r).split()) for r in rows)


GSM8K = [{"question": f"What is {i} thousand?", "answer": f"so\n#### {i},000"} for i in range(1, 5)]


def test_gsm8k_from_a_folder(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", GSM8K[:3])
    write_jsonl(tmp_path / "test.jsonl", GSM8K[3:])
    task = load_task("gsm8k", data=str(tmp_path))
    (row,) = task.rows("test")
    assert row["answer"] == "4000"
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert task.has_format
    assert task.reward_weights == {"correctness": 1.0, "format": 0.1, "tag_count": 0.1}
    right = "<think>\nas said\n</think>\n<answer>\n$4,000.\n</answer>"
    values = [f(completions=[right], answer=["4000"]) for f in task.reward_funcs.values()]
    assert values == [[1.0], [1.0], [1.0]]


def test_train_questions_that_are_test_questions_are_left_out_and_counted(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", GSM8K)
    write_jsonl(tmp_path / "test.jsonl", GSM8K[:1])
    task = load_task("gsm8k", data=str(tmp_path))
    with pytest.warns(UserWarning, match="1 train questions"):
        assert len(task.rows("train")) == 3


def test_math_takes_the_answer_or_the_last_box(tmp_path):
    record = {"problem": "Half?", "solution": "\\boxed{2}? No: $\\boxed{\\frac{1}{2}}$."}
    write_jsonl(tmp_path / "test.jsonl", [record, {"problem": "Two?", "answer": "2"}])
    rows = load_task("math", data=str(tmp_path)).rows("test")
    assert [row["answer"] for row in rows] == ["\\frac{1}{2}", "2"]
    assert last_box("is \\boxed 5$.") == "5"
    with pytest.raises(ValueError, match="no closed"):
        last_box("the answer is 5")


def test_amc23_has_no_train_split(tmp_path):
    data = write_jsonl(tmp_path / "test.jsonl", [{"question": "27?", "answer": 27.0}])
    task = load_task("amc23", data=str(data))
    assert task.rows("test")[0]["answer"] == "27.0"
    with pytest.raises(ValueError, match="train on math"):
        task.rows("train")


def test_jsonl_one_file_is_divided_by_question(tmp_path):
    records = [{"question": f"Question {i % 300}?", "answer": i % 300} for i in range(400)]
    task = load_task(f"jsonl:{write_jsonl(tmp_path / 'mine.jsonl', records)}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, test = questions(task, "train"), questions(task, "test")
    assert len(train) + len(test) == 400
    assert not set(train) & set(test)
    assert 0.05 < len(set(test)) / 300 < 0.15
    backwards = write_jsonl(tmp_path / "backwards.jsonl", records[::-1])
    assert set(questions(load_task(f"jsonl:{backwards}"), "test")) == set(test)


def test_jsonl_messages_are_used_as_they_are_and_a_lone_train_file_is_train(tmp_path):
    messages = [{"role": "user", "content": "Say 5."}]
    path = write_jsonl(tmp_path / "train.jsonl", [{"prompt": messages, "answer": "5"}])
    task = load_task(f"jsonl:{path}", answer_format="number")
    assert task.rows("train") == [{"prompt": messages, "answer": "5"}]
    with pytest.raises(ValueError, match="test was asked for"):
        task.rows("test")


def test_parquet_is_read(tmp_path):
    from datasets import Dataset

    Dataset.from_list(GSM8K).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    assert local_records(str(tmp_path), "test") == GSM8K


def test_broken_files_are_named_with_the_line(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n{"question": \n')
    with pytest.raises(ValueError, match=r"test.jsonl, line 2: not JSON"):
        local_records(str(path), "test")
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="line 1: a record must be a JSON object"):
        local_records(str(path), "test")
    path.write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"'text'.*none of answer"):
        load_task("gsm8k", data=str(path)).rows("test")


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("sums", {}, "choose from arithmetic"),
        ("gsm8k:main", {}, "write gsm8k"),
        ("jsonl", {}, "jsonl:<path>"),
        ("jsonl:/no/such/file", {}, "names no file"),
        ("reasoning_gym", {}, "reasoning_gym:<data set>"),
        ("reasoning_gym:leg_count", {}, "for example leg_counting"),
        ("reasoning_gym:leg_counting", {"legs": 3}, "refuses"),
        ("arithmetic", {"digits": 3}, "it has num_train, num_test"),
        ("arithmetic", {"data": "x"}, "leave data out"),
        ("arithmetic", {"num_test": 0}, "num_test is 0"),
        ("gsm8k", {"answer_format": "xml"}, "choose from tags, number"),
    ],
)
def test_refusals_name_the_remedy(spec, options, message):
    with pytest.raises(ValueError, match=message):
        load_task(spec, **options)


def test_missing_data_is_refused_when_rows_are_asked_for(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_task("gsm8k", data=str(tmp_path / "none")).rows("test")
    with pytest.raises(ValueError, match="holds no test"):
        load_task("gsm8k", data=str(tmp_path)).rows("test")
    with pytest.raises(ValueError, match="split is 'dev'"):
        load_task("arithmetic").rows("dev")
    with pytest.raises(ValueError, match="limit is 0"):
        load_task("arithmetic").rows("test", 0)


def test_without_the_hub_the_remedy_is_named(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("offline")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    for spec in ("gsm8k", "math", "amc23"):
        with pytest.raises(ValueError, match="--data FOLDER"):
            load_task(spec).rows("test")


def test_the_hub_is_asked_for_the_published_splits(monkeypatch):
    asked = []

    def load_dataset(repository, config, *, split):
        asked.append((repository, config, split))
        return [{"problem": f"{split}?", "solution": "\\boxed{1}"}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert [row["answer"] for row in load_task("math").rows("train")] == ["1"]
    assert asked == [
        ("DigitalLearningGmbH/MATH-lighteval", None, "train"),
        ("HuggingFaceH4/MATH-500", None, "test"),
    ]


@pytest.mark.skipif(not (DATA / "gsm8k").is_dir(), reason=f"needs the real data in {DATA}")
def test_the_real_gsm8k():
    task = load_task("gsm8k", data=str(DATA / "gsm8k"))
    train, test = task.rows("train"), task.rows("test")
    assert (len(train), len(test)) == (7473, 1319)
    assert not {question(r) for r in train} & {question(r) for r in test}
    assert all(row["answer"].lstrip("-").replace(".", "", 1).isdigit() for row in train + test)
    assert test[0]["answer"] == "18"


def test_every_task_is_in_the_table():
    assert built_in == {
        "arithmetic",
        "gsm8k",
        "math",
        "amc23",
        "guess",
        "reasoning_gym",
        "jsonl",
        "dataset",
    }
