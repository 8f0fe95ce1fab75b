"""What keeping m of n rollouts does to signal and noise of a gradient: formulas for 0/1 rewards.

A rollout of a prompt has the gradient g of its log probability, with mean mu_1 if it is right and
mu_0 if it is wrong, and covariance of trace sigma^2 in both cases. The update of one prompt is the
mean of A g over its m kept rollouts, A = (r - mean) / std as in GRPO. With d = mu_1 - mu_0, the
gradient of logit p, and q the share of right ones among the kept,

    mean over the rollouts' texts  S d,   S = s sqrt(q (1 - q)),   s = sqrt((m - 1) / m)
    variance                       s^2 sigma^2 / m   where both kinds are kept, else nothing.

What remains is arithmetic over the number of right rollouts. rho = |d|^2 / sigma^2 is how clean one
rollout's gradient is; it belongs to model and prompt, not to the rule. Where right rollouts scatter
by sigma_1^2 and wrong ones by sigma_0^2, sigma^2 is the mean of the two, `tilt` = sigma_1^2 /
sigma^2, and the variance s^2 ((1 - q) sigma_1^2 + q sigma_0^2) / m: the rarer kind's noise counts
more. All of it is this project's, docs/theory.md derives it and compares it with what was measured.

Shape letters: Q values of p, P prompts, N sampled and M kept rollouts, K = N + 1 numbers of right
rollouts.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """What a prompt's update is made of, on average over its groups; float64, all of one shape."""

    num_rollouts: int
    num_kept: int
    signal: Tensor
    """E S, where S is 0 for a dead group: one whose kept rewards are all equal."""
    signal_squared: Tensor
    """E S^2."""
    frac_alive: Tensor
    """P(0 < k1 < m): the share of groups that are not dead."""
    alive_right: Tensor
    """E q over all groups, 0 in dead ones: half of frac_alive where both kinds are kept alike."""

    def mean(self, weights: Tensor) -> "Moments":
        """The moments over prompts: weights (..., Q) that add up to 1 give moments (...)."""
        each = (self.signal, self.signal_squared, self.frac_alive, self.alive_right)
        averages = (weights @ x for x in each)
        return Moments(self.num_rollouts, self.num_kept, *averages)


def kept_right(num_right: Tensor, num_rollouts: int, num_kept: int) -> Tensor:
    """Return k1, how many right rollouts `max_variance` keeps of a group with that many right.

    As near to half as there are rollouts of both kinds, the odd one right: clamp of ceil(m/2)
    between max(0, m - (n - K)) and min(m, K). The rule itself is `podsrl.core.rules`.

    Example: n = 6, m = 4, of K = 0, 1, ..., 6 right ones 0, 1, 2, 2, 2, 3, 4 are kept.
    """
    least = (num_kept - (num_rollouts - num_right)).clamp(min=0)
    wanted = torch.full_like(num_right, num_kept - num_kept // 2)
    return torch.minimum(torch.maximum(wanted, least), num_right.clamp(max=num_kept))


def moments(num_rollouts: int, num_kept: int, p_Q: Tensor) -> Moments:
    """Return the moments of groups whose rollouts are right with probability p, (Q,) each.

    Sums over the binomial number of right rollouts; exact for `max_variance` with n > m and for
    GRPO with n = m.

    Args:
        num_rollouts, num_kept: n and m, 1 <= m <= n.
        p_Q: success rates in [0, 1].

    Edge cases: p of 0 or 1, and m = 1, give 0 four times.

    Raises:
        ValueError: m outside 1..n, or a p outside 0..1.

    Example: n = m = 2 at p = 1/2. Half of the groups are (0, 1): S = sqrt(1/2) sqrt(1/4) = 0.354
    there, so E S = 0.177, E S^2 = 0.0625, half are alive and E q is 1/4.
    """
    if not 1 <= num_kept <= num_rollouts:
        raise ValueError(
            f"num_kept is {num_kept}, but must lie between 1 and the {num_rollouts} rollouts of a "
            "group: keep fewer or sample more"
        )
    p_Q = p_Q.double()
    if not ((p_Q >= 0) & (p_Q <= 1)).all():
        raise ValueError(f"p lies between {p_Q.min():g} and {p_Q.max():g}: give rates in 0..1")
    num_right_K = torch.arange(num_rollouts + 1, device=p_Q.device)
    share_K = kept_right(num_right_K, num_rollouts, num_kept).double() / num_kept
    signal_K = (share_K * (1 - share_K) * (num_kept - 1) / num_kept).sqrt()
    chance_QK = binomial(num_rollouts, p_Q)
    is_alive_K = (signal_K > 0).double()
    each_K4 = torch.stack([signal_K, signal_K.square(), is_alive_K, is_alive_K * share_K], dim=1)
    return Moments(num_rollouts, num_kept, *(chance_QK @ each_K4).unbind(1))


def measured_moments(rewards_PN: Tensor, kept_PN: Tensor) -> Moments:
    """Return the moments of real groups, one per prompt (P,), also for graded rewards.

    S = s sqrt(variance of the kept rewards), which for 0/1 rewards is s sqrt(q (1 - q)). For graded
    rewards it holds if a rollout's mean gradient is linear in its reward; d is then the gradient
    per unit of reward, so rho counts in that unit. There is no right and wrong: alive_right is half
    of what is alive.

    Args:
        rewards_PN: (P, N) finite rewards.
        kept_PN: bool (P, N), m in every row.

    Example: rewards (0, 0, 1, 1), all kept: S = sqrt(3/4) sqrt(1/4) = 0.433.
    """
    num_kept = int(kept_PN[0].sum())
    kept_PM = rewards_PN.double()[kept_PN].view(len(rewards_PN), num_kept)
    # A sum of equal rewards is rounded: a constant group is dead, whatever its variance comes to.
    is_alive_P = kept_PM.amax(1) > kept_PM.amin(1)
    variance_P = kept_PM.var(dim=1, correction=0) * is_alive_P * (num_kept - 1) / num_kept
    size = rewards_PN.shape[1]
    alive_P = is_alive_P.double()
    return Moments(size, num_kept, variance_P.sqrt(), variance_P, alive_P, alive_P / 2)


def binomial(num_draws: int, p_Q: Tensor) -> Tensor:
    """Return P(K = k) for k = 0..n draws that are right with probability p, float64 (Q, n + 1)."""
    k_K = torch.arange(num_draws + 1, dtype=torch.float64, device=p_Q.device)
    ways_K = math.lgamma(num_draws + 1) - torch.lgamma(k_K + 1) - torch.lgamma(num_draws - k_K + 1)
    p_Q1 = p_Q.double().unsqueeze(1)
    right_QK = torch.special.xlogy(k_K, p_Q1)
    wrong_QK = torch.special.xlog1py(num_draws - k_K, -p_Q1)
    return (ways_K + right_QK + wrong_QK).exp()


def information(of: Moments) -> Tensor:
    """Return H = m E[sqrt(q (1 - q))]^2 / P(alive): squared signal over noise, in units of rho.

    What counts where rollouts are the noise: the limit of `signal_to_noise` / rho for rho -> 0.
    One group with k1 right and k0 wrong kept has k1 k0 / (k1 + k0), the information of a two-sample
    contrast, at most m / 4. GRPO has about (n - 1) p (1 - p).

    NaN where no group is alive. Example: n = m = 2 at p = 1/2: 2 (1/4)^2 / (1/2) = 1/4.
    """
    per_rollout = (of.num_kept - 1) / of.num_kept**2
    return of.signal.square() / (of.frac_alive * per_rollout)


def signal_to_noise(of: Moments, rho: float, *, tilt: float = 1.0) -> Tensor:
    """Return h = (E S)^2 / (E S^2 + P(alive) s^2 / (m rho)), between 0 and 1.

    Prompts are noise, too: their directions d differ, and a step sees a few of them. Over many
    steps what they have in common adds up like E S, while E S^2 is how much one prompt's signal
    weighs in the variance and the second term is the noise of its rollouts. Steps of two arms
    compare as their h, `steps_ratio`.

    tilt: 0 to 2, what right rollouts scatter in units of the mean of both kinds. Then P(alive) is
    E[(1 - q) tilt + q (2 - tilt)] over live groups, which at 1 it is.

    rho -> 0 gives rho H (long answers); rho = inf gives (E S)^2 / E S^2, where only being alive
    counts (short answers). NaN where no group is alive.

    Example: n = m = 2, p = 1/2, rho = 1: 1/32 / (1/16 + 1/2 * 1/2 / 2) = 1/6.
    """
    if not rho > 0:
        raise ValueError(f"rho is {rho}, but must be above 0; `information` is the limit at 0")
    return of.signal.square() / _noise(of, rho, tilt) * (1.0 if math.isinf(rho) else rho)


def steps_ratio(ours: Moments, theirs: Moments, rho: float, *, tilt: float = 1.0) -> Tensor:
    """Return how many steps of theirs one of ours is worth: h / h, at rho = 0 the ratio of H.

    Each arm at its own best learning rate, and far from the end. Monotone in rho, so an interval of
    rho gives an interval of ratios by its ends; `tilt` as in `signal_to_noise`.

    Example: 64/16 against 16/16 at p = 0.05 and rho = 0: 3.32.
    """
    ours_over_theirs = ours.signal.square() / theirs.signal.square()
    return ours_over_theirs * _noise(theirs, rho, tilt) / _noise(ours, rho, tilt)


def _noise(of: Moments, rho: float, tilt: float) -> Tensor:
    """The denominator of h times rho, which has a limit at rho = 0; h's own at rho = inf."""
    if math.isinf(rho):
        return of.signal_squared
    scatter = tilt * of.frac_alive + 2 * (1 - tilt) * of.alive_right
    return rho * of.signal_squared + scatter * (of.num_kept - 1) / of.num_kept**2


def step_seconds(
    of: Moments, a: float, b: float, c: float, *, dead_rows_free: bool = True
) -> Tensor:
    """Return a + b n + c m P(alive) seconds; without the last factor if dead rows are trained on.

    A dead group has no gradient, so its m rows need no update. GRPO gains more by that than PODS,
    which has fewer of them: a fair comparison gives it to both.

    Example: n = m = 16 at p = 0.02, where 72 % of the groups are dead: a + 16 b + 4.4 c.
    """
    alive = of.frac_alive if dead_rows_free else torch.ones_like(of.frac_alive)
    return a + b * of.num_rollouts + c * of.num_kept * alive


def time_ratio(
    ours: Moments,
    theirs: Moments,
    rho: float,
    *,
    a: float,
    b: float,
    c: float,
    dead_rows_free: bool = True,
) -> Tensor:
    """Return how many times sooner we get as far: `steps_ratio` over the ratio of step seconds.

    Args:
        rho: 0 to inf.
        a, b, c: seconds of a step of P prompts, per step, per n and per m.

    Example: if a step is worth 3.32 of theirs and takes 1.5 times as long, 2.21.
    """
    longer = step_seconds(ours, a, b, c, dead_rows_free=dead_rows_free) / step_seconds(
        theirs, a, b, c, dead_rows_free=dead_rows_free
    )
    return steps_ratio(ours, theirs, rho) / longer


def best_share_kept(p: Tensor, cost_ratio: float) -> Tensor:
    """Return m*/n, the share to keep where rollouts are the noise: p' + sqrt(p'^2 + p'/k).

    p' = min(p, 1 - p), k = c/b > 0, a = 0, many rollouts. All p' n rollouts of the rarer kind are
    kept and y n of the other; H per second is p' y / ((p' + y) (b + c (p' + y))), largest at
    y^2 = p' (p' + b/c). At most 1: where that asks for more than there are, all are kept.

    Example: p' = 0.1, k = 1: 0.1 + sqrt(0.11) = 0.432. Half of each kind only as k -> inf.
    """
    rare = torch.minimum(p, 1 - p)
    return (rare + (rare * (rare + 1 / cost_ratio)).sqrt()).clamp(max=1.0)


def ceiling(p: Tensor, cost_ratio: float) -> Tensor:
    """Return R*, the most that any n and m can gain in time where rollouts are the noise.

    R* = (1 + k) / ((1 - p') (sqrt(k p') + sqrt(1 + k p'))^2), 1 from p' = k / (1 + 2k) on; with
    p' = min(p, 1 - p), k = c/b. Against GRPO of any group size that trains on all it samples, its
    dead rows included; `best_share_kept` reaches it. At most 1 + k (p' -> 0).

    Example: k = 1: 2 / (0.9 (0.316 + 1.049)^2) = 1.193 at p' = 0.1, and 1 from p' = 1/3 on.
    """
    rare = torch.minimum(p, 1 - p)
    root = (cost_ratio * rare).sqrt() + (1 + cost_ratio * rare).sqrt()
    gain = (1 + cost_ratio) / ((1 - rare) * root.square())
    return torch.where(rare < break_even(cost_ratio), gain, torch.ones_like(gain))


def break_even(cost_ratio: float) -> float:
    """Return p' = k / (1 + 2k), from which on no n and m gain: 1/4 at k = 1/2, 1/3 at 1."""
    return cost_ratio / (1 + 2 * cost_ratio)


def step_signal_to_noise(num_right_P: Tensor, num_wrong_P: Tensor, rho: float) -> Tensor:
    """Return squared signal over noise of one step that keeps these rollouts of its prompts.

    (sum w)^2 / (sum w^2 + sum over live prompts (k - 1) / rho) with k = k1 + k0 and
    w = sqrt((k - 1) / k) sqrt(k1 k0), the weight of a prompt in the mean of A g over all kept rows.
    With k = m everywhere it is P times `signal_to_noise` of these groups. rho = inf gives the
    effective number of prompts, (sum w)^2 / sum w^2. 0 when every group is dead.

    Example: prompts (1 right, 1 wrong) twice, rho = inf: 2. (3, 3) and (1, 1): w = 2.74 and
    0.71, so 11.9 / 8 = 1.48.
    """
    right_P, wrong_P = num_right_P.double(), num_wrong_P.double()
    kept_P = right_P + wrong_P
    is_alive_P = (right_P > 0) & (wrong_P > 0)
    weight_P = (right_P * wrong_P * (kept_P - 1).clamp(min=0) / kept_P.clamp(min=1)).sqrt()
    noise = weight_P.square().sum() + ((kept_P - 1) * is_alive_P).sum() / rho
    return (weight_P.sum().square() / noise).nan_to_num(nan=0.0)
