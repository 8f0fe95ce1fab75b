"""Rewards of the answers that kept rollouts would have been, had they ended earlier.

Shape letters: B kept rows of this process, T completion tokens.
"""

import torch
from accelerate.utils import gather
from torch import Tensor
from trl import GRPOTrainer

from podsrl.core.combine import combine
from podsrl.trl.batch import GenerationBatch
from podsrl.trl.early_stop import decoded
from podsrl.trl.sample_and_score import metrics_kept


class PrefixRewards:
    """Gives the reward functions each prefix of each kept rollout, its tokens before the last.

    What they log meanwhile is dropped: it is not of rollouts. The time counts as rewards.
    """

    def __init__(self, host: GRPOTrainer) -> None:
        self.host = host

    def __call__(self, batch: GenerationBatch, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Rewards (B, T) of the first t tokens for each token t, NaN where there is none.

        Every process must call it. ids_BT, mask_BT: of this process's kept rollouts.
        """
        host, rollouts = self.host, batch.rollouts
        assert rollouts is not None
        places = [(row, t) for row, t in mask_BT.nonzero().tolist()]
        found_BT = torch.full(mask_BT.shape, torch.nan, device=mask_BT.device)
        # TRL gathers rewards, so that all processes must score equally many.
        most = int(gather(torch.tensor([len(places)], device=mask_BT.device)).max())
        if not most:
            return found_BT
        filled = places + [(0, 0)] * (most - len(places))
        all_ids = ids_BT.tolist()
        ids = [all_ids[row][:t] for row, t in filled]
        rows = [batch.rows[row] for row, _ in filled]
        prompts = [rollouts.prompts[row] for row in rows]
        inputs = [dict(rollouts.inputs[row]) for row in rows]
        host.clock.begin("rewards")
        with metrics_kept(host):
            # TRL's method, not the host's own, which has the rewards of the kept rollouts ready.
            rewards = GRPOTrainer._calculate_rewards(
                host, inputs, prompts, decoded(host, prompts[0], ids), ids
            )
        host.clock.begin(None)
        first = host.accelerator.process_index * most
        own = combine(rewards[None], host.reward_weights)[0, first : first + len(places)]
        if places:
            row_L, place_L = torch.tensor(places, device=mask_BT.device).unbind(1)
            found_BT[row_L, place_L] = own.to(found_BT)
        return found_BT
