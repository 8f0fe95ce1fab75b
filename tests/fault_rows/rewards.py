"""Reward functions that misbehave from the third step on: nothing trained is lost or spoilt."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from fault_rows.case import Attempt, Row, Verdict, newest_run, spread
from fault_rows.kills import whole_checkpoint
from fault_rows.outcome import last_line, metrics_of

GOOD_STEPS = 2
Bad = Callable[[int], Any]


def raising(error: BaseException) -> Bad:
    def bad(count: int) -> Any:
        raise error

    return bad


def repeated(value: Any) -> Bad:
    return lambda count: [value] * count


def exiting(count: int) -> Any:
    sys.exit(3)


def printing(count: int) -> list[float]:
    print("noise " * 1000)
    print("\x1b[2J\x00", file=sys.stderr)
    return [float(i % 2) for i in range(count)]


def sleeping(count: int) -> list[float]:
    time.sleep(0.3)
    return [float(i % 2) for i in range(count)]


def seeding(count: int) -> list[float]:
    import torch

    torch.set_num_threads(1)
    return [float(i % 2) for i in range(count)]


def deep(count: int) -> Any:
    return deep(count)


# These may train on: the rewards are numbers, or there are none.
TRAINED: dict[str, Bad] = {
    "NaN for all": repeated(float("nan")),
    "None for all": repeated(None),
    "NaN for some": lambda n: [float("nan") if i % 3 else float(i % 2) for i in range(n)],
    "None for some": lambda n: [None if i % 3 else float(i % 2) for i in range(n)],
    "None for all but one": lambda n: [1.0] + [None] * (n - 1),
    "true and false": lambda n: [i % 2 == 0 for i in range(n)],
    "integers": lambda n: [i % 5 for i in range(n)],
    "the same for all": repeated(1.0),
    "zero for all": repeated(0.0),
    "minus zero for some": lambda n: [-0.0 if i % 2 else 0.0 for i in range(n)],
    "large numbers": lambda n: [1e30 * (i % 2) for i in range(n)],
    "tiny numbers": lambda n: [1e-40 * (i % 2) for i in range(n)],
    "negative numbers": lambda n: [-float(i % 7) for i in range(n)],
    "a tuple": lambda n: tuple(float(i % 2) for i in range(n)),
    "prints": printing,
    "slow": sleeping,
    "sets torch's threads": seeding,
}
# These must end the run, with what it had trained saved.
STOPPED: dict[str, Bad] = {
    "raises ValueError": raising(ValueError("bad reward")),
    "raises KeyError": raising(KeyError("answer")),
    "raises ZeroDivisionError": raising(ZeroDivisionError("division by zero")),
    "raises RuntimeError": raising(RuntimeError("bad reward")),
    "raises OSError": raising(OSError(28, "No space left on device")),
    "raises ConnectionError": raising(ConnectionError("the judge is down")),
    "raises TimeoutError": raising(TimeoutError("the judge is slow")),
    "raises MemoryError": raising(MemoryError()),
    "raises AssertionError": raising(AssertionError()),
    "raises StopIteration": raising(StopIteration()),
    "raises NotImplementedError": raising(NotImplementedError()),
    "raises UnicodeDecodeError": raising(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")),
    "raises without end": deep,
    "calls sys.exit": exiting,
    "infinity for some": lambda n: [float("inf") if i % 3 == 0 else 0.0 for i in range(n)],
    "minus infinity for all": repeated(float("-inf")),
    "one too few": lambda n: [1.0] * (n - 1),
    "one too many": lambda n: [1.0] * (n + 1),
    "an empty list": lambda n: [],
    "None": lambda n: None,
    "one number": lambda n: 1.0,
    "text": repeated("right"),
    "lists": repeated([1.0, 0.0]),
    "mappings": repeated({"score": 1.0}),
    "complex numbers": repeated(1j),
    "beyond float32": lambda n: [1e300 * (i % 2) for i in range(n)],
}
CASES = {**TRAINED, **STOPPED}


def reward(attempt: Attempt) -> Verdict:
    """Train with the reward and the default of no checkpoints; see what is left."""
    name, bad = spread(CASES, attempt.number)
    changes = {"save_strategy": None, "save_steps": None, "evaluate_limit": 0}
    ended = attempt.run(attempt.words(task="misbehaving", task_arguments=None, **changes),
                        lambda: use(bad, attempt))  # fmt: skip
    folder = newest_run(attempt.folder)
    steps = len(metrics_of(folder))
    what = f"{name}: status {ended.status} after {steps} steps"
    if ended.timed_out:
        return Verdict("hung", what)
    if name in TRAINED and ended.status:
        return Verdict(f"did not train on: {last_line(ended)}", what)
    if name in STOPPED and not ended.status:
        return Verdict("trained on", what)
    if ended.status and whole_checkpoint(folder) is None:
        return Verdict(f"{steps} trained steps lost: {last_line(ended)}", what)
    if ended.has_traceback and ended.status == 0:
        return Verdict(f"traceback: {last_line(ended)}", what)
    if not ended.status and not finite(str(folder / "model/model.safetensors")):
        return Verdict("weights are not finite", what)
    return Verdict(None, what)


def use(bad: Bad, attempt: Attempt) -> None:
    """Make a task, in this child, whose rewards are bad from the third batch on."""
    from podsrl import tasks
    from podsrl.tasks import Task, load_task
    from podsrl.tasks.base import make_task

    questions = attempt.bench.scratch / "questions.jsonl"
    calls = 0

    def score(texts: Sequence[str], rows: Sequence[Any]) -> Any:
        nonlocal calls
        calls += 1
        return bad(len(texts)) if calls > GOOD_STEPS else [float(len(t) % 2) for t in texts]

    def misbehaving(*, data: str | None = None, seed: int = 0) -> Task:
        good = load_task(f"jsonl:{questions}", answer_format="number")
        return make_task(
            "misbehaving", good.load_split, answer_format="number", max_new_tokens=6, score=score,
            score_bounds=None,
        )  # fmt: skip

    tasks.TASKS["misbehaving"] = misbehaving


def finite(path: str) -> bool:
    """Whether all weights in a safetensors file are finite."""
    from safetensors.torch import load_file

    return all(bool(tensor.isfinite().all()) for tensor in load_file(path).values())


ROWS = {"rewards": Row("reward functions that misbehave from step 3 on", len(CASES), 4, reward)}
