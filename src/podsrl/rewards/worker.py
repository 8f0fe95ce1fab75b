"""The process that grades: one JSON job per line on standard input, one reply per line.

Run by file name, so that it imports neither torch nor the program that started it.
"""

import importlib
import importlib.util
import inspect
import json
import os
import signal
import sys
from functools import cache
from typing import Any

MEMORY_BYTES = 8 * 2**30


def grade_math(gold: str, answer: str) -> float:
    """Return 1.0 when math-verify finds the two answers equal, else 0.0.

    Both are put between dollars, since math-verify overlooks bare LaTeX; the answer is also
    tried as it stands, for a sentence with the answer in it.
    """
    from math_verify import parse, verify

    parsed_gold = parse(f"${gold}$", parsing_timeout=None)
    for text in (f"${answer}$", answer):
        parsed = parse(text, parsing_timeout=None)
        if verify(parsed_gold, parsed, timeout_seconds=None, raise_on_error=True):
            return 1.0
    return 0.0


def load_math(**_: Any) -> None:
    """Import the algebra, so that no job is charged for it."""
    import math_verify  # noqa: F401


def grade_reasoning_gym(name: str, arguments: str, index: int, answer: str | None) -> float:
    """Return the score, 0 to 1, that the reasoning-gym data set gives this answer."""
    dataset = load_reasoning_gym(name, arguments)
    return float(dataset.score_answer(answer, entry=dataset[index]))


def load_reasoning_gym(name: str, arguments: str, **_: Any) -> Any:
    """Return the data set, made once."""
    return _dataset(name, arguments)


@cache
def _dataset(name: str, arguments: str) -> Any:
    from reasoning_gym import create_dataset

    return create_dataset(name, **json.loads(arguments))


def grade_own(name: str, place: str, paths: str, from_table: bool, arguments: str) -> float:
    """Return the score that a user's own grader gives."""
    grade = load_own(name, place, paths, from_table)
    return float(grade(**taken_by(grade, json.loads(arguments))))


def load_own(name: str, place: str, paths: str, from_table: bool, **_: Any) -> Any:
    """Return a user's grader: what `place`, a file or module, calls so in `GRADERS`, or has.

    paths: where the process that asks finds modules. from_table: it is the one in `GRADERS`, and
    not the function of that name, which may be of another file than the table's.
    """
    return _own_grader(name, place, paths, from_table)


@cache
def _own_grader(name: str, place: str, paths: str, from_table: bool) -> Any:
    # Behind this process's own, so that nothing of those is hidden.
    sys.path += [path for path in paths.split(os.pathsep) if path not in sys.path]
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location("own_grader", place)
        assert spec is not None and spec.loader is not None, place
        module = sys.modules["own_grader"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    table = getattr(sys.modules.get("podsrl.rewards.graders"), "GRADERS", {})
    return table[name] if from_table and name in table else getattr(module, name)


def taken_by(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return those of the arguments that the function has parameters for; all for `**columns`."""
    parameters = inspect.signature(function).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


# Kind of job -> what it needs loaded, and the grading.
JOBS: dict[str, tuple[Any, Any]] = {
    "math": (load_math, grade_math),
    "reasoning_gym": (load_reasoning_gym, grade_reasoning_gym),
    "own": (load_own, grade_own),
}


def serve(jobs: dict[str, tuple[Any, Any]]) -> None:
    """Answer jobs until standard input ends: "ready" when loaded, then the score or the error."""
    replies, sys.stdout = sys.stdout, sys.stderr  # a grader's print must not mix with replies
    for line in sys.stdin:
        job = json.loads(line)
        load, grade = jobs[job.pop("grader")]
        limits = job.pop("processor_seconds"), job.pop("seconds")
        load(**job)
        print(json.dumps({"ready": True}), file=replies, flush=True)
        limit_time(*limits)
        try:
            reply = {"score": grade(**job)}
        except Exception as error:  # a failed grading is expected here; the caller counts it
            reply = {"error": f"{type(error).__name__}: {error}"}
        limit_time(0, 0)
        print(json.dumps(reply), file=replies, flush=True)


def limit_time(processor_seconds: float, seconds: float) -> None:
    """Have the kernel end this process after so much work, or so much time; 0 and 0 for never.

    A handler of Python's would wait for the end of a long computation in C. The second limit ends
    a worker that sleeps after its parent is gone. Windows has neither: the parent kills there.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, processor_seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def limit_memory() -> None:
    """Make runaway algebra fail with MemoryError in this process alone."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    limit_memory()
    serve(JOBS)
