"""95 % intervals over problems, for shares and means; and the pass@k estimator."""

import math
from collections.abc import Sequence
from typing import TypedDict

Z = 1.959963984540054  # standard normal quantile at 0.975


class Interval(TypedDict):
    """A figure with its 95 % interval; None for a bound that one problem cannot give."""

    value: float
    low: float | None
    high: float | None
    num_problems: int


def share_interval(values: Sequence[float], *, num_repeats: int = 1) -> Interval:
    """Return the mean of per-problem values between 0 and 1 with Wilson's interval.

    (Wilson 1927.) With p the mean over n problems:
    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). Values that are means of
    `num_repeats` samples scatter less than single 0/1 answers; for them n becomes the effective
    number n p(1-p) / s^2 with s^2 their variance over problems (Korn and Graubard 1998), at most
    n * num_repeats. Stays inside 0 to 1 and has a width even where all problems agree.

    Raises: ValueError without values.

    Example: 8 right of 10: p = 0.8, interval 0.490 to 0.943; 0 of 16: 0 to 0.194.
    """
    _check(values)
    num = len(values)
    mean = sum(values) / num
    effective = float(num)
    if num_repeats > 1 and 0 < mean < 1 and num > 1:
        variance = sum((value - mean) ** 2 for value in values) / (num - 1)
        most = num * num_repeats
        effective = min(most, num * mean * (1 - mean) / variance) if variance > 0 else most
    centre = mean + Z**2 / (2 * effective)
    spread = Z * math.sqrt(mean * (1 - mean) / effective + (Z / (2 * effective)) ** 2)
    scale = 1 + Z**2 / effective
    low, high = max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
    return Interval(value=mean, low=min(low, mean), high=max(high, mean), num_problems=num)


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of per-problem values with Student's t interval.

    mean -+ t s / sqrt(n), t the 0.975 quantile at n - 1 degrees of freedom. One value gives no
    interval: its bounds are None.

    Raises: ValueError without values.

    Example: 1, 2, 3, 4, 5: mean 3, s = 1.581, t = 2.776, interval 1.04 to 4.96.
    """
    _check(values)
    num = len(values)
    mean = sum(values) / num
    if num == 1:
        return Interval(value=mean, low=None, high=None, num_problems=1)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (num - 1))
    half = t_quantile(num - 1) * deviation / math.sqrt(num)
    return Interval(value=mean, low=mean - half, high=mean + half, num_problems=num)


def t_quantile(degrees: int) -> float:
    """Return the 0.975 quantile of Student's t: exact to 0.1 % from 3 degrees on.

    Degrees 1 and 2 have closed forms; above, the expansion in 1/degrees around the normal
    quantile (Abramowitz and Stegun 26.7.5).

    Example: 1 -> 12.706, 2 -> 4.303, 4 -> 2.776, 30 -> 2.042.
    """
    if degrees == 1:
        return math.tan(math.pi * 0.475)
    if degrees == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z = Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Return the chance that at least one of k of the samples is right.

    1 - C(n-c, k) / C(n, k), without bias for k fresh samples (Chen et al., arXiv 2107.03374).

    Raises: ValueError unless 1 <= k <= num_samples and 0 <= num_right <= num_samples.

    Example: 4 samples, 1 right, k = 2: 1 - 3/6 = 0.5.
    """
    if not 1 <= k <= num_samples or not 0 <= num_right <= num_samples:
        raise ValueError(
            f"k={k} and num_right={num_right} must lie within num_samples={num_samples}: draw more"
        )
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def _check(values: Sequence[float]) -> None:
    if not values:
        raise ValueError("no values: an interval needs at least 1 problem")
