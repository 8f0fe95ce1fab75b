"""rho, the squared signal over the noise of one rollout's gradient, measured on sampled groups.

Shape letters: R rollouts of a group, T tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from podsrl.core.select import select
from podsrl.sampling.memory import free_bytes

NUM_ROWS = 4  # rollouts of a group whose gradients are taken, two in each half
FEWEST_GROUPS = 4  # under which nothing is said about rho
# The rho that fits training was 2 to 3 times the one measured: optimizers average over steps.
FACTOR = 3.0
NUM_RESAMPLED = 400
# FACTOR is 1.1 in logarithm each way, beside which the error of 16 groups is small.
MAX_GROUPS = 16


@dataclass(frozen=True)
class Group:
    """The rollouts of one prompt: token ids, and the rewards (R,)."""

    prompt_ids: list[int]
    completion_ids: list[list[int]]
    rewards_R: Tensor


@dataclass(frozen=True)
class Noise:
    """rho per squared unit of reward, from how many groups, and in which parameters."""

    value: float
    low: float
    high: float
    num_groups: int
    num_rows: int
    where: str
    stopped: bool = False


UNKNOWN = Noise(1.0, 0.0, math.inf, 0, 0, "")


def measure_noise(
    model: PreTrainedModel,
    groups: Sequence[Group],
    *,
    temperature: float,
    per_token: bool,
    max_groups: int = MAX_GROUPS,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Noise:
    """Return rho from the gradients of two halves of each group.

    Of a group the 4 rollouts of largest variance are taken and sorted by reward, and every second
    one makes a half: of 0/1 rewards each gets one right and one wrong. The slope of the gradient
    over the reward, D = sum (r - mean) g / sum (r - mean)^2, of a half is d and noise of variance
    sigma^2 / sum (r - mean)^2, independent of the other half's. So <D_a, D_b> is |d|^2 and
    |D_a - D_b|^2 is sigma^2 times the sum of both 1 / sum (r - mean)^2, without bias; their means
    over groups are divided. The interval is a 95 % bootstrap over groups, a factor of 3 wider each
    way: docs/theory.md says why.

    Args:
        model: in evaluation mode or not; its gradients and flags are changed.
        groups: those in which a half has equal rewards are left out.
        temperature: by which logits are divided, as in sampling.
        per_token: whether a rollout counts as the mean over its tokens (loss_type grpo) or as the
            sum (every other).
        max_groups: taken at most.
        report: hears after each group how many gradients were taken, of how many. Ctrl-C ends it
            with what has been taken.

    Returns:
        `UNKNOWN` (0 to inf) from fewer than 4 groups, or without parameters to take gradients in.
    """
    parameters, where = _parameters(model)
    halves = [half for half in map(_halves, groups) if half is not None][:max_groups]
    if len(halves) < FEWEST_GROUPS or not parameters:
        return UNKNOWN
    products, squares, stopped = [], [], False
    try:
        for group, first, second in halves:
            one, other = (
                _slope(model, parameters, group, rows, temperature, per_token=per_token)
                for rows in (first, second)
            )
            inverses = _inverse_spread(group, first) + _inverse_spread(group, second)
            products.append(sum(float((x * y).sum()) for x, y in zip(one, other, strict=True)))
            apart = sum(float((x - y).square().sum()) for x, y in zip(one, other, strict=True))
            squares.append(apart / inverses)
            report(NUM_ROWS * len(squares), NUM_ROWS * len(halves))
    except KeyboardInterrupt:
        stopped = True
        products = products[: len(squares)]
    if len(squares) < FEWEST_GROUPS:
        return replace(UNKNOWN, stopped=stopped)
    value, low, high = ratio_interval(torch.tensor(products), torch.tensor(squares))
    num_rows = NUM_ROWS * len(squares)
    return Noise(value, low / FACTOR, high * FACTOR, len(squares), num_rows, where, stopped)


def ratio_interval(signal_P: Tensor, noise_P: Tensor) -> tuple[float, float, float]:
    """Mean signal over mean noise, not below 0, and its 95 % bootstrap interval over groups.

    Example: signals 1 and 3, noises 2 and 2: 1, between 0.5 and 1.5.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(signal_P), (NUM_RESAMPLED, len(signal_P)), generator=generator)
    ratios = (signal_P[drawn].double().mean(1) / noise_P[drawn].double().mean(1)).clamp(min=0.0)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return max(0.0, float(signal_P.double().mean() / noise_P.double().mean())), low, high


def _halves(group: Group) -> tuple[Group, list[int], list[int]] | None:
    if len(group.rewards_R) < NUM_ROWS:
        return None
    kept_M = select(group.rewards_R, NUM_ROWS)
    ordered = kept_M[group.rewards_R[kept_M].argsort(stable=True)].tolist()
    halves = ordered[::2], ordered[1::2]
    if any(group.rewards_R[rows].unique().numel() < 2 for rows in halves):
        return None
    return group, *halves


def _inverse_spread(group: Group, rows: list[int]) -> float:
    rewards = group.rewards_R[rows].double()
    return 1 / float((rewards - rewards.mean()).square().sum())


def _slope(
    model: PreTrainedModel,
    parameters: list[nn.Parameter],
    group: Group,
    rows: list[int],
    temperature: float,
    *,
    per_token: bool,
) -> list[Tensor]:
    """The slope of the rows' gradients over their rewards; row by row, so that memory is one's."""
    rewards = group.rewards_R[rows].double()
    weights = (rewards - rewards.mean()) * _inverse_spread(group, rows)
    for parameter in parameters:
        parameter.grad = None
    for row, weight in zip(rows, weights.tolist(), strict=True):
        log_probs_T = _log_probs(model, group.prompt_ids, group.completion_ids[row], temperature)
        (weight * (log_probs_T.mean() if per_token else log_probs_T.sum())).backward()
    return [p.grad.float().clone() for p in parameters if p.grad is not None]


def _log_probs(
    model: PreTrainedModel, prompt_ids: list[int], completion_ids: list[int], temperature: float
) -> Tensor:
    """Log probabilities of the completion's tokens, (T,)."""
    device = model.device
    ids = torch.tensor([prompt_ids + completion_ids], device=device)
    logits = model(ids, use_cache=False).logits[0, len(prompt_ids) - 1 : -1].float() / temperature
    chosen = torch.tensor(completion_ids, device=device).unsqueeze(1)
    return logits.log_softmax(-1).gather(1, chosen).squeeze(1)


def _parameters(model: PreTrainedModel) -> tuple[list[nn.Parameter], str]:
    """All parameters where three copies of them fit into the memory, else the last block's."""
    every = [p for p in model.parameters() if p.is_floating_point()]
    size = sum(p.numel() * max(4, p.element_size()) for p in every)
    quantized = any(not p.is_floating_point() for p in model.parameters())
    if not quantized and 3 * size < free_bytes(model.device):
        chosen, where = every, "all parameters"
    else:
        chosen = [p for p in _last_block(model).parameters() if p.is_floating_point()]
        where = "the last block"
    model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen, where


def _last_block(model: PreTrainedModel) -> nn.Module:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)[-1] if lists else nn.Module()
