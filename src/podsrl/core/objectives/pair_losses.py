"""Losses of pairs, one number per pair, from how much more the policy prefers the chosen rollout.

Every loss is a function of the margin: the log-ratio log(pi_theta / pi_ref), summed over tokens, of
the chosen rollout minus that of the rejected one. Sources and what differs from them are in each
docstring; docs/methods.md says which of them we have read and which we know second-hand.

Shape letters: B flat rows, T completion tokens, K candidate pairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from podsrl.core.objectives.bridging import differing_places
from podsrl.core.objectives.pairing import Pairs


def dpo_losses(margin_K: Tensor, *, beta: float) -> Tensor:
    """Return -log sigmoid(beta * margin) of each pair, (K,).

    Direct preference optimization (arXiv 2305.18290; second-hand). log 2 at a margin of 0.

    Example: beta 0.1, margin 10: log(1 + 1/e) = 0.3133.
    """
    return -F.logsigmoid(beta * margin_K)


def tdpo1_losses(margin_K: Tensor, kl_margin_K: Tensor, *, beta: float) -> Tensor:
    """Return -log sigmoid(beta * margin - beta * (KL(rejected) - KL(chosen))) of each pair, (K,).

    TDPO1 (arXiv 2404.11999; second-hand, from its code). KL is the forward divergence from the
    reference, summed over the tokens of a rollout (`sequential_kl`); `kl_margin_K` is that of the
    chosen minus the rejected.

    Example: beta 1, margin 0, KL 1 of the chosen and 0 of the rejected: log(1 + 1/e) = 0.3133.
    """
    return -F.logsigmoid(beta * (margin_K + kl_margin_K))


def tdpo2_losses(
    margin_K: Tensor, kl_B: Tensor, pairs: Pairs, *, beta: float, alpha: float
) -> Tensor:
    """Return -log sigmoid(beta * margin - alpha * beta * (KL(rejected) - sg KL(chosen))), (K,).

    TDPO2 (arXiv 2404.11999; second-hand, from its code): as `tdpo1_losses`, weighted by alpha,
    without a gradient through the divergence of the chosen rollout. alpha = 0 is DPO; alpha = 1 has
    the value of TDPO1.

    Example: beta 1, alpha 1/2, margin 0, KL 2 and 0: log(1 + 1/e) = 0.3133.
    """
    kl_margin_K = kl_B.detach()[pairs.chosen_K] - kl_B[pairs.rejected_K]
    return -F.logsigmoid(beta * (margin_K + alpha * kl_margin_K))


def confidences(
    reward_margin_K: Tensor, *, alpha: float, head_margin_K: Tensor | None = None
) -> Tensor:
    """Return C = max(sigmoid(alpha * reward margin + head margin), 1/2) of each pair, (K,).

    How far it is believed that the chosen rollout is the better one. alpha: log-odds of that which
    a unit of reward is worth; 0: rewards say which is chosen and nothing more. head_margin_K: the
    same by a head on hidden states (`podsrl.probe`), chosen minus rejected; None: no head, which is
    a head that gives both the same.

    Example: alpha 7.5, reward margin 0.2, head margin -0.5: C = sigmoid(1) = 0.7311.
    """
    odds_K = alpha * reward_margin_K
    if head_margin_K is not None:
        odds_K = odds_K + head_margin_K
    return torch.sigmoid(odds_K).clamp(min=0.5)


def rbrm_losses(margin_K: Tensor, confidence_K: Tensor, *, beta: float) -> Tensor:
    """Return -C log sigmoid(beta * margin) - (1 - C) log sigmoid(-beta * margin), (K,).

    Pairs weighted by confidence C from `confidences` (arXiv 2503.10093; second-hand, from its
    code).
    C = 1 is DPO; C = 1/2 is symmetric with its minimum at margin 0; in between the margin that
    costs least is logit(C) / beta, without a head alpha * reward margin / beta. The paper takes C
    from scores of a reward model, averaged over a batch; here each pair has its own.

    Example: beta 1, margin 0: log 2 for any C.
    """
    scaled_K = beta * margin_K
    return -confidence_K * F.logsigmoid(scaled_K) - (1 - confidence_K) * F.logsigmoid(-scaled_K)


def bmc_margins(
    log_probs_BT: Tensor,
    log_ratios_BT: Tensor,
    pairs: Pairs,
    differs: tuple[Tensor, Tensor],
    *,
    delta: float,
) -> Tensor:
    """Return the margins with tokens weighted by how unsure the policy is of them, (K,).

    The modelling phase of BMC (arXiv 2408.07471; second-hand, from its code): tokens in which the
    two rollouts differ weigh 1 + min(1 / pi_theta(token), delta), without gradient; the others
    weigh 1. The same weights multiply the policy's and the reference's log-probabilities (the
    published code takes the reference's from its own probabilities). delta = 0 gives plain margins,
    as do equal rollouts; 1 / pi is at least 1, so delta <= 1 weighs all differing tokens by 1 +
    delta.

    Args:
        log_probs_BT: (B, T) log pi_theta of the tokens.
        log_ratios_BT: (B, T) log(pi_theta / pi_ref), 0 at padding.
        pairs: the pairs of rows.
        differs: from `differing_tokens`.
        delta: largest weight added.

    Example: delta 2, one differing token of probability 1/4: it weighs 1 + min(4, 2) = 3.
    """
    unsure_BT = (-log_probs_BT.detach()).exp().clamp(max=delta)
    totals = []
    for rows_K, differs_KT in zip((pairs.chosen_K, pairs.rejected_K), differs, strict=True):
        weights_KT = 1 + unsure_BT[rows_K].where(differs_KT, 0.0)
        totals.append((weights_KT * log_ratios_BT[rows_K]).sum(1))
    return totals[0] - totals[1]


def differing_tokens(ids_BT: Tensor, mask_BT: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return for chosen and rejected rows where the two differ, two boolean (K, T).

    difflib's matching blocks over token ids; runs on the host, and reads ids and pairs back from
    the device once. Two independent samples have little in common, so most tokens differ unless
    the rollouts are short or alike, or bridged (`bridge_starts`).

    Example: ids (5, 6, 7) and (5, 8, 7): the second token of each.
    """
    keep_BT = mask_BT.bool()
    rows = list(zip(ids_BT.tolist(), keep_BT.tolist(), strict=True))
    places = [[place for place, kept in enumerate(keep) if kept] for _, keep in rows]
    tokens = [[ids[place] for place in row] for (ids, _), row in zip(rows, places, strict=True)]
    differs = torch.zeros(2, len(pairs.real_K), ids_BT.shape[1], dtype=torch.bool)
    candidates = zip(pairs.chosen_K.tolist(), pairs.rejected_K.tolist(), strict=True)
    for pair, (rows_of_pair, real) in enumerate(
        zip(candidates, pairs.real_K.tolist(), strict=True)
    ):
        if not real:
            continue
        others = differing_places(*(tokens[row] for row in rows_of_pair))
        for side, row in enumerate(rows_of_pair):
            differs[side, pair, [places[row][i] for i in others[side]]] = True
    chosen_KT, rejected_KT = differs.to(ids_BT.device)
    return chosen_KT, rejected_KT
