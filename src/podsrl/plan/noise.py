"""rho, the squared signal over the noise of one rollout's gradient, measured on sampled groups.

Shape letters: R rollouts of a group, G groups, D bootstrap draws, K numbers of a sketch, T tokens.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from podsrl.core.select import select
from podsrl.intervals import Z, t_quantile
from podsrl.sampling.memory import free_bytes

NUM_ROWS = 8  # rollouts of a group whose gradients are taken, at most
FEWEST_ROWS = 4
FEWEST_GROUPS = 4  # under which nothing is said about rho
MAX_GROUPS = 64
MAX_SECONDS = 90.0  # after which no further group is begun
NUM_RESAMPLED = 400
# A prime, which no width of a layer divides: else one column of a matrix would fall on few numbers.
SKETCH_SIZE = 8191


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
    tilt: float = 1.0
    """Noise of right rollouts over the mean of both kinds, 0 to 2; 1 of graded rewards."""


UNKNOWN = Noise(1.0, 0.0, math.inf, 0, 0, "")


class Sketch:
    """Gradients as 8,191 numbers each, whose inner products are those of the gradients.

    Entry i of all parameters is added to number i mod 8,191 with a random sign, the same for every
    gradient (a count sketch: Charikar, Chen, Farach-Colton 2002). <sketch(a), sketch(b)> is
    <a, b> on average over the signs, with a standard deviation of about |a| |b| / sqrt(8191), 1.1 %
    of the lengths, so that a whole group of gradients is kept in less memory than one of them.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.signs = [
            torch.randint(2, (p.numel(),), generator=generator, dtype=torch.int8)
            .mul_(2)
            .sub_(1)
            .to(p.device)
            for p in parameters
        ]

    def __call__(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Return the sketch of one gradient, float64 (K,) on the CPU; None counts as 0."""
        total_K = torch.zeros(SKETCH_SIZE, dtype=torch.float64)
        for signs, gradient in zip(self.signs, gradients, strict=True):
            if gradient is not None:
                signed = gradient.flatten().float() * signs
                padded = nn.functional.pad(signed, (0, -len(signed) % SKETCH_SIZE))
                total_K += padded.view(-1, SKETCH_SIZE).sum(0).cpu()
        return total_K


def measure_noise(
    model: PreTrainedModel,
    groups: Sequence[Group],
    *,
    temperature: float,
    per_token: bool,
    num_prompts: int = 1,
    max_groups: int = MAX_GROUPS,
    max_seconds: float = MAX_SECONDS,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Noise:
    """Return rho from the gradients of single rollouts, group by group.

    Of a group the 8 rollouts of largest variance are taken, or all where it has fewer; those in
    which an outcome comes once are left out, as nothing tells its noise. `slope_of` and `rho_of`
    say what is made of the gradients.

    Args:
        model: in evaluation mode or not; its gradients and flags are changed.
        groups: in the order in which they are taken.
        temperature: by which logits are divided, as in sampling.
        per_token: whether a rollout counts as the mean over its tokens (loss_type grpo) or as the
            sum (every other).
        num_prompts: of an optimizer step.
        max_groups, max_seconds: taken at most; the group that is begun is finished.
        report: hears after each group how many gradients were taken, of how many. Ctrl-C ends it
            with what has been taken.

    Returns:
        `UNKNOWN` (0 to inf) from fewer than 4 groups, or without parameters to take gradients in.
    """
    parameters, where = _parameters(model)
    chosen = [rows for rows in map(_rows, groups) if rows is not None][:max_groups]
    if len(chosen) < FEWEST_GROUPS or not parameters:
        return UNKNOWN
    sketch, total = Sketch(parameters), sum(len(rows) for _, rows in chosen)
    slopes: list[tuple[Tensor, Tensor, Tensor]] = []
    start, num_rows, stopped = time.perf_counter(), 0, False
    try:
        for group, rows in chosen:
            if time.perf_counter() - start > max_seconds and len(slopes) >= FEWEST_GROUPS:
                break
            gradients_RK = torch.stack(
                [
                    sketch(_gradient(model, parameters, group, row, temperature, per_token))
                    for row in rows
                ]
            )
            slopes.append(slope_of(gradients_RK, group.rewards_R[rows].double()))
            num_rows += len(rows)
            report(num_rows, total)
    except KeyboardInterrupt:
        stopped = True
    if len(slopes) < FEWEST_GROUPS:
        return replace(UNKNOWN, stopped=stopped)
    slopes_GK, errors_G, noises_G2 = map(torch.stack, zip(*slopes, strict=True))
    value, low, high = rho_of(slopes_GK, errors_G, noises_G2.mean(1), num_prompts)
    tilt = tilt_of(noises_G2)
    return Noise(value, low, high, len(slopes), num_rows, where, stopped, tilt)


def slope_of(gradients_RK: Tensor, rewards_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the slope of gradients over rewards, (K,), its squared error, and the noise (2,).

    The slope is that of least squares, D = sum w g with w = (r - mean) / S, S = sum (r - mean)^2:
    of 0/1 rewards the mean gradient of right rollouts less that of wrong ones. Its squared error
    E|D - d|^2 is sum w^2 |e|^2 / (1 - l), with e what the fitted line leaves of a gradient and
    l = 1/R + (r - mean)^2 / S (MacKinnon and White 1985, HC2). For 0/1 rewards it is without bias
    whatever the two covariances are, trace(C1)/k1 + trace(C0)/k0 by their sample variances; for
    graded ones if a gradient is linear in its reward and its noise the same at every reward. The
    noise of one rollout is trace(C0) and trace(C1), of graded rewards twice the error times S.

    Infinite or NaN where a reward stands alone against equal ones, so that l = 1.

    Example: rewards 0, 0, 1, 1 with gradients 0, 2, 3, 7 (one number each): D = 5 - 1 = 4, noise 2
    and 8, the squared error 2/2 + 8/2 = 5.
    """
    away_R = rewards_R - rewards_R.mean()
    spread = away_R.square().sum()
    weights_R = away_R / spread
    slope_K = weights_R @ gradients_RK
    left_RK = gradients_RK - gradients_RK.mean(0) - away_R.unsqueeze(1) * slope_K
    leverage_R = 1 / len(rewards_R) + away_R.square() / spread
    squares_R = left_RK.square().sum(1) / (1 - leverage_R)
    error = (weights_R.square() * squares_R).sum()
    if len(rewards_R.unique()) > 2:
        return slope_K, error, (error * spread).repeat(2)
    return slope_K, error, torch.stack([squares_R[away_R < 0].mean(), squares_R[away_R > 0].mean()])


def tilt_of(noises_G2: Tensor) -> float:
    """Return the noise of right rollouts over the mean of both kinds, 0 to 2; 1 without noise.

    Example: wrong 3 and 5, right 1 and 3 in two groups: 2 of a mean of 3, 0.667.
    """
    wrong, right = noises_G2.mean(0).tolist()
    return 2 * right / (wrong + right) if wrong + right > 0 else 1.0


def rho_of(
    slopes_GK: Tensor, errors_G: Tensor, noises_G: Tensor, num_prompts: int
) -> tuple[float, float, float]:
    """Return rho of a step and its 95 % interval from the groups' slopes, as of `slope_of`.

    |D|^2 less the squared error is the squared signal |d|^2 of a prompt, the products <D, D'> of
    two prompts what prompts have in common, and noises_G is sigma^2, all three without bias. A
    step averages P prompts, so that its squared signal over its noise is that of one prompt and
    (P - 1) times what two have in common: rho = (|d|^2 + (P - 1) <d, d'>) / sigma^2, each a mean
    over groups. The interval is a bootstrap over groups, stretched around the value by what few
    groups make it too narrow: t sqrt(G / (G - 1)) / 1.96 with t of G - 1 degrees. None of the three
    is below 0.

    Example: slopes (1, 0) and (1, 0), errors 0.5, noises 1: signal 0.5 each, products 1.
    P = 1: 0.5. P = 3: 0.5 + 2 = 2.5.
    """
    num_groups = len(slopes_GK)
    products_GG = slopes_GK @ slopes_GK.T
    signals_G = products_GG.diagonal() - errors_G
    others_GG = products_GG - products_GG.diagonal().diag()
    generator = torch.Generator().manual_seed(0)
    drawn_DG = torch.randint(num_groups, (NUM_RESAMPLED, num_groups), generator=generator)
    counts_DG = torch.zeros(NUM_RESAMPLED, num_groups, dtype=torch.float64)
    counts_DG.scatter_add_(1, drawn_DG, torch.ones_like(counts_DG))
    # The first draw is the groups themselves; of those drawn twice the product with itself is none.
    counts_DG = torch.cat([torch.ones(1, num_groups, dtype=torch.float64), counts_DG])
    num_pairs_D = (num_groups**2 - counts_DG.square().sum(1)).clamp(min=1.0)
    common_D = ((counts_DG @ others_GG) * counts_DG).sum(1) / num_pairs_D
    signal_D = counts_DG @ signals_G / num_groups + (num_prompts - 1) * common_D
    ratios_D = signal_D / (counts_DG @ noises_G / num_groups)
    value = float(ratios_D[0])
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    stretch = t_quantile(num_groups - 1) / Z * math.sqrt(num_groups / (num_groups - 1))
    low, high = (value + stretch * (ratios_D[1:].quantile(ends) - value)).tolist()
    return max(0.0, value), max(0.0, low), max(0.0, high)


def _rows(group: Group) -> tuple[Group, list[int]] | None:
    """The rollouts of largest variance, if no reward among them stands alone against equal ones."""
    if len(group.rewards_R) < FEWEST_ROWS:
        return None
    rows = select(group.rewards_R, min(NUM_ROWS, len(group.rewards_R)))
    rewards_R = group.rewards_R[rows]
    _, counts = rewards_R.unique(return_counts=True)
    if len(counts) < 2 or (len(counts) == 2 and int(counts.min()) < 2):
        return None
    return group, rows.tolist()


def _gradient(
    model: PreTrainedModel,
    parameters: list[nn.Parameter],
    group: Group,
    row: int,
    temperature: float,
    per_token: bool,
) -> list[Tensor | None]:
    for parameter in parameters:
        parameter.grad = None
    log_probs_T = _log_probs(model, group.prompt_ids, group.completion_ids[row], temperature)
    (log_probs_T.mean() if per_token else log_probs_T.sum()).backward()
    return [parameter.grad for parameter in parameters]


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
