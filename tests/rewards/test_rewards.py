"""Answers found and compared, tags counted, and a grader that hangs or crashes survived."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from podsrl.rewards import (
    Grader,
    correctness_reward,
    format_reward,
    has_format,
    last_number,
    match_answers,
    tag_count_reward,
    tagged_answer,
)
from podsrl.rewards import grader as grader_module
from podsrl.rewards.answers import as_number, normalise, quick_match
from podsrl.rewards.functions import score_by_answer
from podsrl.tasks.base import make_task

GRADED = Path(__file__).parents[3] / "shared" / "data" / "graded_completions" / "completions.jsonl"
# The grader's verdicts that are plainly mistaken: a point with a Unicode pi, which it cannot read.
MISTAKEN = {("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \u03c0/2)"): True}

BAD_WORKER = """
import os, sys, time
sys.path.insert(0, {folder!r})
from worker import serve

def grade(kind):
    if kind == "hang":
        while True:
            pass
    if kind == "raise":
        raise RecursionError("too deep")
    if kind == "die":
        os._exit(9)
    if kind == "print":
        print("noise")
    if kind == "sleep":
        time.sleep(0.3)
    if kind == "sleep long":
        time.sleep(9)
    return 1.0

serve({{"bad": (lambda **_: None, grade)}})
"""


@pytest.fixture
def bad_grader(tmp_path):
    script = tmp_path / "bad_worker.py"
    script.write_text(BAD_WORKER.format(folder=str(Path(grader_module.__file__).parent)))
    grader = Grader(command=[sys.executable, str(script)], num_workers=2, timeout_seconds=1.0)
    yield grader
    grader.close()


def jobs(*kinds):
    return [{"grader": "bad", "kind": kind} for kind in kinds]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>x</think><answer> 18 </answer>", "18"),
        ("<answer>18", None),  # cut off
        ("18", None),
        ("<answer>1</answer> no: <answer>2</answer>", "2"),
        ("<answer>I say <answer>5</answer>", "5"),
        ("<answer>27</answer></think>Answer here.</answer>", "27"),
        ("<answer>a\nb</answer>", "a\nb"),
    ],
)
def test_tagged_answer(text, answer):
    assert tagged_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("15 - 43 = -28.", "-28"),
        ("15-43", "43"),
        ("15 - 43 = \u221228", "-28"),
        ("The total is 1,200,000 now", "1200000"),
        ("lists 1,2 and 3", "3"),
        ("about 3.50", "3.50"),
        ("x2 is unknown", None),
        ("**-7**", "-7"),
        ("=+4", "4"),
        ("", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


GOOD = "<think>\n6*3\n</think>\n<answer>\n18\n</answer>"


@pytest.mark.parametrize(
    ("text", "whole", "share"),
    [
        (GOOD, 1.0, 1.0),
        (f"\n{GOOD}\n", 1.0, 1.0),
        (f"Sure! {GOOD}", 0.0, 1.0),
        (f"{GOOD} That is it.", 0.0, 1.0),
        (GOOD.removesuffix("</answer>"), 0.0, 0.75),
        (GOOD + "</answer>", 0.0, 0.75),
        ("<answer>18</answer><think>6*3</think>", 0.0, 1.0),
        ("18", 0.0, 0.0),
    ],
)
def test_format_and_tag_count(text, whole, share):
    chat = [{"role": "assistant", "content": text}]
    assert format_reward([text, chat]) == [whole, whole]
    assert tag_count_reward([text, chat]) == [share, share]


def test_normalise_drops_marks_without_meaning():
    same = ["1200", "1,200", "$1,200$", "\\boxed{1200}.", "**1200**", "\\$1{,}200", "\\[1200\\]."]
    assert {normalise(text) for text in same} == {"1200"}
    assert normalise("\\text{Evelyn}") == normalise("evelyn.")
    assert normalise("45^\\circ") == normalise("$45^{\\circ}$") == "45"
    assert normalise("(3, \u03c0/2)") == "(3,\\pi/2)"
    assert normalise("12,34") == "12,34"  # no thousands


def test_as_number():
    assert as_number("50\\%") == (Fraction(50), True)
    assert as_number("-1/4") == as_number("$-0.25$") == as_number("\\dfrac{-1}{4}")
    assert as_number("27 miles") == as_number("27 \\text{ miles}") == (Fraction(27), False)
    assert as_number("3.6 km/h") == (Fraction(18, 5), False)
    for text in ("2x", "x", "1/0", "2 + 3", "(1, 2)", "", "2^3", "1e5"):
        assert as_number(text) is None


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("18", "$18.00", True),
        ("18", "19", False),
        ("0.5", "\\frac{1}{2}", True),
        ("1/3", "0.333", False),
        ("50\\%", "50", True),
        ("50%", "0.5", True),
        ("50%", "5000%", False),
        ("50%", "0.05", False),
        ("27", "27 miles", True),
        ("27", "", False),
        ("27", "$", False),
        ("x+1", "1+x", None),
    ],
)
def test_quick_match(gold, answer, verdict):
    assert quick_match(gold, answer) is verdict


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("7", "9" * 4300, False),
        ("7", "9" * 4301, False),  # Python converts no more than 4,300 digits
        ("1/3", "0." + "3" * 5000, False),
        ("7", "1/" + "9" * 5000, False),
        ("7", "\\frac{" + "9" * 5000 + "}{7}", False),
        ("7", "1" + ",000" * 5000, False),
        ("8" * 5000, "7", None),  # the gold answer is no number to us, and the algebra may see
        ("8" * 5000, "8" * 5000, True),  # the same text
        ("8" * 5000, "$" + "8" * 5000 + "$.", True),
        ("7", "x" * 10_001, False),
        ("7", "x" * 10_000, None),
        ("7", "7." + "0" * 1000, True),
        ("7", "7." + "0" * 1001, False),
    ],
)
def test_an_answer_is_capped_before_any_arithmetic(gold, answer, verdict):
    assert quick_match(gold, answer) is verdict


@pytest.mark.parametrize(
    "what", ["\\boxed{", "$", "**", "(", "{", "7 a", "\\text{", "1/", "9 ", "<"]
)
def test_no_answer_takes_long_to_compare(what):
    """Linear: 200,000 repeats take well under a second; 20,000 boxes took half a second once."""
    close = {"\\boxed{": "}", "$": "$", "**": "**", "(": ")", "{": "}", "\\text{": "}"}
    answer = what * 200_000 + "7" + close.get(what, "") * 200_000
    start = time.process_time()
    assert quick_match("7", answer) is (what == "$")  # dollars carry no meaning, however many
    assert time.process_time() - start < 2.0


def test_wrappings_up_to_sixteen_deep_are_taken_off():
    assert normalise("\\boxed{" * 16 + "7" + "}" * 16) == "7"


def test_match_answers_goes_to_algebra_where_needed():
    golds = ["x+1", "\\frac{\\sqrt{2}}{2}", "p - q", "(3, \\frac{\\pi}{2})", "x+1", "7"]
    answers = [
        "1+x", "\\(\\frac{1}{\\sqrt{2}}\\).", "p - q - 1", "The point is $(3, \\pi/2)$.", None,
        "9 - 2 = 7",
    ]  # fmt: skip
    assert match_answers(golds, answers) == [1.0, 1.0, 0.0, 1.0, 0.0, 1.0]


def test_plain_comparison_starts_no_process():
    grader = Grader(command=["/no/such/program"])
    assert match_answers(["18", "19"], ["18", None], grader=grader) == [1.0, 0.0]


def test_a_hang_a_crash_and_a_death_give_none_and_the_rest_is_graded(bad_grader):
    kinds = ("good", "hang", "raise", "die", "print", "good")
    assert bad_grader.grade(jobs(*kinds)) == [1.0, None, None, None, 1.0, 1.0]
    assert bad_grader.num_failures == 3
    assert bad_grader.grade(jobs("good")) == [1.0]
    assert bad_grader.num_failures == 3


def test_a_hang_ends_at_the_limit_of_processor_time(bad_grader):
    bad_grader.grade(jobs("good"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    assert bad_grader.grade(jobs("hang", "hang")) == [None, None]  # equal jobs: graded once
    spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert 0.9 <= spent < 2.0  # the limit is 1 s; twice it would be two jobs
    assert bad_grader.num_failures == 2


def test_a_busy_machine_grades_as_an_idle_one(bad_grader):
    """The worker stands still for 2 s, over the limit of 1 s, and has computed next to nothing."""
    bad_grader.grade(jobs("good"))
    results = []
    thread = threading.Thread(target=lambda: results.append(bad_grader.grade(jobs("sleep"))))
    workers = [worker._process for worker in bad_grader._workers if worker._process is not None]
    thread.start()
    time.sleep(0.1)
    for process in workers:
        process.send_signal(signal.SIGSTOP)
    time.sleep(2.0)
    for process in workers:
        process.send_signal(signal.SIGCONT)
    thread.join(60)
    assert results == [[1.0]]


def test_a_worker_that_says_nothing_is_given_up_by_the_clock(bad_grader, monkeypatch):
    """It sleeps for 9 s, which costs no processor time: 1 s of time is its limit here."""
    monkeypatch.setattr(grader_module, "PATIENCE", 1.0)
    bad_grader.grade(jobs("good"))
    start = time.perf_counter()
    assert bad_grader.grade(jobs("sleep long", "good")) == [None, 1.0]
    assert time.perf_counter() - start < 9.0


def test_ctrl_c_at_a_terminal_does_not_reach_the_workers(bad_grader):
    bad_grader.grade(jobs("good"))
    for worker in bad_grader._workers:
        if worker._process is not None:
            assert os.getpgid(worker._process.pid) != os.getpgid(0)


def test_grading_works_outside_the_main_thread(bad_grader):
    results = []
    thread = threading.Thread(target=lambda: results.append(bad_grader.grade(jobs("hang", "good"))))
    thread.start()
    thread.join(30)
    assert results == [[None, 1.0]]


def test_a_closed_grader_starts_again(bad_grader):
    assert bad_grader.grade(jobs("good")) == [1.0]
    bad_grader.close()
    assert bad_grader.grade(jobs("good")) == [1.0]


def test_a_worker_that_cannot_start_is_an_error_with_its_words():
    grader = Grader(command=[sys.executable, "-c", "raise SystemExit('no algebra here')"])
    with pytest.raises(RuntimeError, match="no algebra here"):
        grader.grade(jobs("good"))


def test_the_worker_imports_neither_torch_nor_podsrl():
    code = (
        "import runpy, sys\n"
        "runpy.run_path(sys.argv[1])\n"
        "print({'torch', 'podsrl'} & {*sys.modules})"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, grader_module.WORKER[-1]], capture_output=True, text=True
    )
    assert out.stdout.strip() == "set()"


def test_workers_end_with_the_program():
    code = (
        "import runpy, sys\n"
        "grader = runpy.run_path(sys.argv[1])['Grader'](num_workers=1)\n"
        "grader.grade([{'grader': 'math', 'gold': 'x', 'answer': 'y'}])\n"
        "print(grader._workers[0]._process.pid)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, grader_module.__file__],
        capture_output=True,
        text=True,
        check=True,
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int(out.stdout), 0)


def test_failed_gradings_are_logged(bad_grader):
    def score(texts, rows):
        assert [row["level"] for row in rows] == [1, 2]
        return bad_grader.grade(jobs(*texts))

    logged = {}
    reward = correctness_reward(score)
    values = reward(
        completions=["raise", "good"],
        answer=["", ""],
        level=[1, 2],
        log_metric=logged.__setitem__,
        trainer_state=object(),
    )
    assert values == [None, 1.0]
    assert logged == {"rewards/num_grading_failures": 1.0}
    assert reward.__name__ == "correctness"


def test_a_cut_off_answer_is_wrong():
    reward = correctness_reward(score_by_answer(tagged_answer))
    assert reward(["<answer>18</answer>", "<answer>18"], answer=["18", "18"]) == [1.0, 0.0]


@pytest.mark.skipif(not GRADED.is_file(), reason=f"needs the real data in {GRADED}")
def test_agreement_with_recorded_verdicts():
    rows = [json.loads(line) for line in GRADED.read_text("utf-8").splitlines()]
    closed = [(row, tagged_answer(row["completion"])) for row in rows]
    closed = [(row, answer) for row, answer in closed if answer is not None]
    scores = match_answers([row["answer"] for row, _ in closed], [answer for _, answer in closed])
    assert None not in scores and len(closed) == 151
    as_recorded = sum(
        bool(score) == row["correct"] for score, (row, _) in zip(scores, closed, strict=True)
    )
    corrected = sum(
        bool(score) == MISTAKEN.get((row["answer"], answer), row["correct"])
        for score, (row, answer) in zip(scores, closed, strict=True)
    )
    assert as_recorded / 151 > 0.97  # 147 of 151; the other 4 are MISTAKEN
    assert corrected / 151 >= 0.98
    # Without the tags' strictness on repeated tags the formats would agree on all 240.
    formats = sum(has_format(row["completion"]) == row["format_correct"] for row in rows)
    assert formats >= 236


def test_a_failed_grading_leaves_the_rollout_without_any_reward() -> None:
    """Of three answers in format the second cannot be graded: no function rewards that one."""
    text = "<think>a</think><answer>1</answer>"
    scores: list[list[float | None]] = [[1.0, None, 0.0], [0.0, 0.0, None]]

    def score(texts: Any, rows: Any) -> list[float | None]:
        return scores.pop(0)

    task = make_task("t", lambda split: [], answer_format="tags", max_new_tokens=8, score=score)
    for expected in ([1.0, None, 1.0], [1.0, 1.0, None]):
        each = [f([text] * 3, answer=["1"] * 3) for f in task.reward_funcs.values()]
        assert [value is None for value in each[0]] == [value is None for value in expected]
        assert each[1] == expected and each[2] == expected
    names = [f.__name__ for f in task.reward_funcs.values()]
    assert names == ["correctness", "format_reward", "tag_count_reward"]
