"""What follows from the numbers, in plain sentences, and what does not."""

import re
from typing import Any

from podsrl.report.axis import duration, headline, ratio_key, time_unit
from podsrl.report.curves import STEPS, Unit

RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def sentences(summary: dict[str, Any], unit: Unit) -> list[str]:
    """Return the findings, one text per arm, then what died in which arm.

    A ratio whose interval includes 1, and a difference whose interval includes 0, are called none.
    """
    found: list[str] = []
    base = summary["baseline"]
    for arm, against in summary["against_baseline"].items():
        parts = _difference_sentences(arm, base, against["differences"], unit)
        parts += _at_equal_time(arm, base, against)
        parts += _format_gain(arm, base, against["differences"])
        if against["speed_up"]:
            parts.insert(0, _speed_up_sentence(arm, base, against["speed_up"], unit))
        found += [" ".join(parts)] if parts else []
    return found + asides(summary)


def asides(summary: dict[str, Any]) -> list[str]:
    """Return what no comparison with the baseline says: what died, and courses without one."""
    found = []
    for arm, numbers in summary["arms"].items():
        found += _collapse_sentence(arm, numbers)
    if summary["baseline"] is None or len(summary["arms"]) == 1:
        found += [*_courses(summary), _nothing_compared(summary)]
    return found


def _courses(summary: dict[str, Any]) -> list[str]:
    """From where to where each arm's accuracy went."""
    courses = {
        name: arm["curves"]["accuracy"]["mean"]
        for name, arm in summary["arms"].items()
        if "accuracy" in arm["curves"]
    }
    return [
        f"{name}'s accuracy went from {100 * course[0]:.1f} to {100 * course[-1]:.1f} %."
        for name, course in courses.items()
        if len(course) > 1
    ]


def _nothing_compared(summary: dict[str, Any]) -> str:
    if len(summary["arms"]) == 1:
        return "There is one arm, so nothing is compared."
    return (
        "No arm is the baseline, so nothing is compared: it is an arm with n = m, or the one "
        "named with --baseline."
    )


def verdict(speed_ups: dict[str, Any], unit: Unit) -> str:
    """Return "faster", "slower" or "cannot be told" for the time to the level of the report.

    Where steps are known and not their seconds, "fewer steps" and "more steps".
    """
    if not speed_ups:
        return "no accuracy"
    _, found = headline(speed_ups)
    key = ratio_key(found)
    low, high = found[f"{key}_low"], found[f"{key}_high"]
    faster, slower = "faster", "slower"
    if unit == STEPS and key == "ratio":
        faster, slower = "fewer steps", "more steps"
    if low is None:
        return "one run, cannot be told"
    if low == "at once" or low > 1:
        return faster
    return slower if high != "at once" and high < 1 else "cannot be told"


def times(ratio: float | str) -> str:
    """A ratio of times; 0 is "never"."""
    return ratio if isinstance(ratio, str) else "never" if ratio == 0 else f"{ratio:.2f}"


def in_words(value: Any) -> str:
    """A setting's value for people, without the spelling of Python.

    Example: None is "–", True "yes", {"digits": 1} "digits 1", [0, 1, 2] "0 to 2", 7e-05
    "7 × 10⁻⁵".
    """
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, dict):
        return ", ".join(f"{key} {in_words(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        ints = len(value) > 2 and all(isinstance(item, int) for item in value)
        if ints and value == list(range(value[0], value[0] + len(value))):
            return f"{value[0]} to {value[-1]}"
        return ", ".join(map(in_words, value)) or "none"
    if isinstance(value, float):
        digits, _, power = f"{value:g}".partition("e")
        return minus(digits) + (f" × 10{str(int(power)).translate(RAISED)}" if power else "")
    return str(value)


def hardware_in_words(device: str) -> str:
    """The device that a run names, with its threads in words.

    Example: "cpu, 1 threads" is "CPU, 1 thread"; a GPU's name stays as it is.
    """
    return re.sub(r"^cpu\b", "CPU", re.sub(r"\b1 threads$", "1 thread", device))


def interval(low: str, high: str) -> str:
    """The two bounds as they stand behind a figure."""
    return f"95 % interval {low} to {high}"


def _speed_up_sentence(arm: str, base: str, speed_ups: dict[str, Any], unit: Unit) -> str:
    level, found = headline(speed_ups)
    early = speed_ups["99 % of peak"]["grid"]
    part = "" if level == "peak" else f"{level.removesuffix('peak')}"
    best = f"{part}{base}'s best mean accuracy ({100 * found['level']:.2f} %)"
    if found["baseline_reached"] == 0:
        return f"{best} is that of the model before training, so there is no time to compare."
    if found["reached"] == "never":
        text = f"{arm} never reached {best} within what was measured"
        if found["frac_never"] == 1.0:
            return f"{text}, nor did it in any draw of runs."
        text += f"{_bounds(found, 'ratio')}."
    else:
        by = " by steps" if unit == STEPS else ""
        text = (
            f"{arm} reached {best} after {duration(found['reached'], unit)}, {base} after "
            f"{duration(found['baseline_reached'], unit)}: {times(found['ratio'])} times as fast"
            f"{by}{_bounds(found, 'ratio')}; by the rule of 99 % of the peak "
            f"{times(early['ratio'])} times."
        )
        if "time_ratio" in found:
            text += (
                f" With the seconds per step of each, measured alone, it was "
                f"{times(found['time_ratio'])} times as fast{_bounds(found, 'time_ratio')}."
            )
    return text + _told(speed_ups, unit)


def _bounds(found: dict[str, Any], key: str) -> str:
    low, high = found[f"{key}_low"], found[f"{key}_high"]
    return "" if low is None else f" ({interval(times(low), times(high))})"


def _told(speed_ups: dict[str, Any], unit: Unit) -> str:
    never = headline(speed_ups)[1]["frac_never"]
    share = "under 1" if never and never < 0.01 else f"{100 * (never or 0):.0f}"
    chance = f" In {share} % of the draws it never got there." if never else ""
    judged = verdict(speed_ups, unit)
    if judged.startswith("one run"):
        return " With one run in an arm no interval can be given: it may be chance."
    if judged == "cannot be told":
        return f"{chance} The interval includes 1: no difference in speed can be told."
    return chance


def _difference_sentences(
    arm: str, base: str, differences: dict[str, Any], unit: Unit
) -> list[str]:
    if "accuracy" not in differences:
        return []
    window, end = differences["accuracy"]["window"], differences["accuracy"]["end"]
    until = duration(end["until"], unit)
    return [
        f"Over the window, {arm}'s accuracy was {_points(window, base)}; at its end ({until}), "
        f"{_points(end, base)}."
    ]


def _at_equal_time(arm: str, base: str, against: dict[str, Any]) -> list[str]:
    if "at_equal_time" not in against:
        return []
    window = against["at_equal_time"]["window"]
    until = duration(window["until"], time_unit(window["until"]))
    return [f"At equal time, until {until}, {arm}'s accuracy was {_points(window, base)}."]


def _points(difference: dict[str, Any], base: str) -> str:
    value = 100 * difference["value"]
    side = "above" if value >= 0 else "below"
    text = f"{abs(value):.1f} points {side} {base}'s"
    if difference["low"] is None:
        return f"{text} (too few runs for an interval)"
    low, high = (signless_zero(100 * difference[bound]) for bound in ("low", "high"))
    none = "" if is_told(difference) else ", so no difference can be told"
    return f"{text} ({low} to {high}{none})"


def signless_zero(value: float) -> str:
    """The value with one decimal, never -0.0."""
    return minus(f"{round(value, 1) + 0.0:.1f}")


def minus(number: str) -> str:
    """The number with a true minus sign."""
    return number.replace("-", "−")


def is_told(difference: dict[str, Any]) -> bool:
    """Whether the interval leaves out 0."""
    low, high = difference["low"], difference["high"]
    return low is not None and not low <= 0 <= high


def _format_gain(arm: str, base: str, differences: dict[str, Any]) -> list[str]:
    """Say so where right answers in the format rise and right answers do not."""
    if not {"accuracy", "both_rate"} <= set(differences):
        return []
    answers, both = differences["accuracy"]["window"], differences["both_rate"]["window"]
    if not (is_told(both) and both["value"] > 0) or (is_told(answers) and answers["value"] > 0):
        return []
    return [
        f"Counting only right answers in the asked format, {arm} was {_points(both, base)}; "
        "counting right answers in any format it was not: the gain is in the format."
    ]


def _collapse_sentence(arm: str, numbers: dict[str, Any]) -> list[str]:
    found = []
    for rate, other in (("format", "answer accuracy"), ("accuracy", "the format rate")):
        runs = [run for run in numbers["collapses"] if run["died"] == rate]
        if runs:
            name = "format rate" if rate == "format" else "answer accuracy"
            if len(runs) > 3:
                best, end = (sum(run[key] for run in runs) / len(runs) for key in ("best", "end"))
                falls = f"on average {100 * best:.0f} to {100 * end:.0f} %"
            else:
                falls = ", ".join(f"{100 * r['best']:.0f} to {100 * r['end']:.0f} %" for r in runs)
            found.append(
                f"In {len(runs)} of {len(numbers['seeds'])} runs of {arm} the {name} died "
                f"({falls}) while {other} held."
            )
    return found
