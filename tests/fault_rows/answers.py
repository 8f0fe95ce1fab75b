"""Hostile answers: each must get a verdict, in time, and leave nothing behind."""

import resource
import time
from pathlib import Path

from fault_rows.case import Attempt, Row, Verdict, spread
from fault_rows.outcome import last_line
from fault_rows.server import call

MARK = Path("/tmp/podsrl-faults-code-was-run")
LIMIT_SECONDS = 30.0  # of processor time, of which the grader's own limit is 5
N = 20_000
# name -> gold, answer; math-verify decides where plain comparison does not.
ANSWERS: dict[str, tuple[str, str]] = {
    "4,300 digits": ("7", "9" * 4300),
    "4,301 digits": ("7", "9" * 4301),
    "a million digits": ("7", "9" * 10**6),
    "5,000 decimals": ("1/3", "0." + "3" * 5000),
    "a denominator of digits": ("7", "1/" + "9" * 5000),
    "a LaTeX fraction of digits": ("7", "\\frac{" + "9" * 5000 + "}{7}"),
    "digits per cent": ("50", "9" * 5000 + "%"),
    "digits with a unit": ("50", "9" * 5000 + " miles"),
    "5,000 thousands": ("7", "1" + ",000" * 5000),
    "spaced digits": ("7", "9 " * 5000),
    "gold and answer of digits": ("8" * 5000, "9" * 5000),
    "a gold answer of digits": ("8" * 5000, "7"),
    "a tower of powers": ("7", "9^{9^{9^{9}}}"),
    "a tower of powers, Python's": ("7", "9**9**9**9"),
    "factorials of factorials": ("7", "((100!)!)!"),
    "a large exponent": ("7", "10^{1000000000}"),
    "a number with an exponent": ("7", "1e999999999"),
    "nested boxes": ("7", "\\boxed{" * N + "7" + "}" * N),
    "nested dollars": ("8", "$" * N + "7" + "$" * N),
    "nested stars": ("7", "**" * N + "7" + "**" * N),
    "nested brackets": ("7", "(" * 4000 + "7" + ")" * 4000),
    "open braces": ("7", "{" * 9000),
    "full stops": ("7", "." * 100_000),
    "spaces": ("7", " " * 100_000 + "8"),
    "commas": ("7", "," * 9000),
    "units": ("7", "7 a" * 3000 + "!"),
    "text macros": ("7", "\\text{" * 1000 + "}" * 1000),
    "3,000 summands": ("7", "+".join(["1"] * 3000)),
    "900 factors": ("x", "(1+x)" * 900),
    "400 roots": ("7", "\\sqrt{" * 400 + "7" + "}" * 400),
    "an integral": ("7", "\\int_0^1 x^{x^{x}} \\sin(x^{99}) dx"),
    "a long sum": ("7", "\\sum_{k=1}^{10^9} k^{k}"),
    "a wide matrix": ("7", "\\begin{pmatrix}" + "1 & " * 2000 + "1\\end{pmatrix}"),
    "a chain of equations": ("7", "=".join(["x"] * 3000)),
    "a large set": ("\\{1,2\\}", "\\{" + ",".join(map(str, range(2000))) + "\\}"),
    "code": ("7", f"__import__('os').system('touch {MARK}')"),
    "half a surrogate pair": ("7", "\ud800"),
    "zero bytes": ("7", "\x007\x00"),
    "writing from right to left": ("7", "\u202e7\u202c\u200b\ufeff"),
    "7 in other digits": ("8", "\u0667"),
    "10,000 accents": ("8", "7" + "\u0301" * 10_000),
    "10,000 lines": ("8", "7\n" * 10_000),
}


def grade(attempt: Attempt) -> Verdict:
    """Grade the answer among two plain ones: those get their verdicts, it gets one or none."""
    name, (gold, answer) = spread(ANSWERS, attempt.number)
    MARK.unlink(missing_ok=True)

    def child() -> int:
        from podsrl.rewards import match_answers
        from podsrl.rewards.grader import shared_grader

        warm = match_answers(["x+1"], ["1+x"])  # imports the algebra, at nobody's charge
        before = processor_seconds()
        scores = match_answers([gold, "7", "y+x"], [answer, "7", "x+y"])
        shared_grader().close()
        spent = processor_seconds() - before
        print(f"{warm} {scores} {spent:.1f} s")
        assert warm == [1.0] and scores[1:] == [1.0, 1.0], "a plain answer lost its verdict"
        assert scores[0] in (0.0, 1.0, None), "no verdict"
        assert spent < LIMIT_SECONDS, "too long"
        return 0

    start = time.perf_counter()
    ended = call(child, attempt.folder / "printed.txt", timeout_seconds=300)
    if ended.timed_out:
        return Verdict("hung", name)
    if ended.status:
        return Verdict(last_line(ended), name)
    if MARK.exists():
        return Verdict("code was run", name)
    return Verdict(
        None, f"{name}: {ended.text.split('[')[2][:4]} {time.perf_counter() - start:.0f} s"
    )


def processor_seconds() -> float:
    """Of this process and its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


ROWS = {"answers": Row("hostile answers through the graders", len(ANSWERS), 3, grade)}
