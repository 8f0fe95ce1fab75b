"""The rejected rollout of each pair written anew from where it differs: for `bmc`.

Shape letters: B kept rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from trl import GRPOTrainer

from podsrl.core.combine import combine
from podsrl.core.objectives.bridging import bridge_starts, num_differing
from podsrl.core.selection import Selection
from podsrl.trl.batch import COMPLETION_IDS, GenerationBatch, Rollouts
from podsrl.trl.dialogue import Rewarded
from podsrl.trl.early_stop import decoded
from podsrl.trl.sample_and_score import metrics_kept
from podsrl.trl.winners import kept_pairs, pair_of_rows, with_winners

PROMPT_IDS = 0  # place of what GRPOTrainer._generate returns


class Bridging:
    """Gives each pair a winner that differs less from its loser, written by the policy itself.

    The losing rollout is kept up to places where it starts to differ from the winning one, and
    sampled on from there `bmc_bridges` times. Of what is at least as good as the winning rollout
    the one that differs from the loser in the fewest tokens takes its place, if those are fewer.

    Runs in one process: how much is sampled depends on the rollouts.
    """

    def __init__(self, host: GRPOTrainer) -> None:
        self.host = host

    def __call__(
        self, batch: GenerationBatch, rollouts: Rollouts, selection: Selection
    ) -> tuple[Rollouts, Selection]:
        """The rollouts with winners in their places, and the choice with their rewards.

        Tells `batch` which rows are a pair, and the rewards that speak for the policy.
        """
        ids, num = rollouts.generated[COMPLETION_IDS], self.host.args.bmc_bridges
        pairs, rewards_B = kept_pairs(selection), selection.rewards_PN.flatten().tolist()
        cuts = [
            (loser, start)
            for winner, loser in pairs
            for start in bridge_starts(ids[winner], ids[loser], num=num)
        ]
        written_of: dict[int, list[Rewarded]] = {loser: [] for _, loser in pairs}
        for (loser, _), dialogue in zip(cuts, self._written(cuts, rollouts), strict=True):
            written_of[loser].append(dialogue)
        found = [
            nearest(
                written_of[loser],
                ids[loser],
                least=rewards_B[winner],
                below=num_differing(ids[winner], ids[loser]),
            )
            for winner, loser in pairs
        ]
        batch.segments = {"segment_pair": pair_of_rows(pairs, selection.kept_rows_B.tolist())}
        batch.metrics |= self._metrics(len(cuts), pairs, found, rollouts)
        if batch.first_rewards_PNF is None:
            batch.first_rewards_PNF = selection.rewards_per_func_PNF
        winners = {
            winner: best for (winner, _), best in zip(pairs, found, strict=True) if best is not None
        }
        return with_winners(self.host, rollouts, selection, winners)

    def _written(self, cuts: list[tuple[int, int]], rollouts: Rollouts) -> list[Rewarded]:
        """For each losing rollout and place one that shares all before it, with its reward."""
        if not cuts:
            return []
        host, generated = self.host, rollouts.generated
        heads = [generated[COMPLETION_IDS][loser][:start] for loser, start in cuts]
        prompt_ids = [generated[PROMPT_IDS][loser] for loser, _ in cuts]
        contexts = [prompt + head for prompt, head in zip(prompt_ids, heads, strict=True)]
        rows = [dict(rollouts.inputs[loser]) for loser, _ in cuts]
        prompts = [rollouts.prompts[loser] for loser, _ in cuts]
        with metrics_kept(host):
            host.clock.begin("sampling")
            tails, _ = host._generate_single_turn(contexts, None, {}, 1)
            # The sampler knows nothing of the head: the limit is that of the whole rollout.
            ids = [
                (head + tail)[: host.max_completion_length]
                for head, tail in zip(heads, tails, strict=True)
            ]
            host.clock.begin("rewards")
            completions = decoded(host, prompts[0], ids)
            rewards_BF = GRPOTrainer._calculate_rewards(host, rows, prompts, completions, ids)
        rewards_B = combine(rewards_BF, host.reward_weights).tolist()
        return [
            Rewarded(
                row=rows[i],
                prompt=prompts[i],
                prompt_ids=prompt_ids[i],
                completion_ids=ids[i],
                tool_mask=[1] * len(ids[i]),
                messages=completions[i],
                log_probs=None,
                rewards_F=rewards_BF[i],
                reward=rewards_B[i],
            )
            for i in range(len(cuts))
        ]

    def _metrics(
        self,
        num_bridges: int,
        pairs: Sequence[tuple[int, int]],
        found: Sequence[Rewarded | None],
        rollouts: Rollouts,
    ) -> dict[str, Tensor]:
        ids = rollouts.generated[COMPLETION_IDS]
        before = [num_differing(ids[winner], ids[loser]) for winner, loser in pairs]
        after = [
            num_differing(best.completion_ids if best else ids[winner], ids[loser])
            for best, (winner, loser) in zip(found, pairs, strict=True)
        ]
        new = torch.tensor
        per_pair = {
            "frac_bridged": new([float(best is not None) for best in found]),
            "bridge_tokens_before": new(before),
            "bridge_tokens_after": new(after),
        }
        metrics = {name: values.double().mean() for name, values in per_pair.items()}
        metrics["num_bridges"] = new(num_bridges).double()
        device = self.host.accelerator.device
        return {f"objective/{name}": value.to(device) for name, value in metrics.items()}


def nearest(
    written: Sequence[Rewarded], loser: Sequence[int], *, least: float, below: int
) -> Rewarded | None:
    """Of those with a reward of `least` or more the one that differs least from the loser.

    The first of several; None where none differs in fewer than `below` tokens. A NaN is no reward.
    """
    good = [each for each in written if each.reward >= least]
    differing = [num_differing(each.completion_ids, loser) for each in good]
    if not good or min(differing) >= below:
        return None
    return good[differing.index(min(differing))]
