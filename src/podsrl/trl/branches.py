"""Which turn of a losing rollout went wrong, and a better continuation from there: for `sdpo`.

From before a turn of a rollout further ones are sampled: from its tokens up to there, with an
environment that has been brought there by a reset and the calls that the rollout made. Their mean
reward is the value of that state.

Shape letters: P prompts, N sampled rollouts, F reward functions, B kept rows, R pairs, S states.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import GRPOTrainer

from podsrl.core.combine import combine
from podsrl.core.objectives.segments import largest_fall, num_until_recovered
from podsrl.core.selection import Selection
from podsrl.trl.batch import GenerationBatch, Rollouts
from podsrl.trl.branch_pairs import Pair, best_of, by_turn, mean_reward, segments_of
from podsrl.trl.dialogue import Dialogue, Rewarded, dialogue_of
from podsrl.trl.replay import turns_from
from podsrl.trl.sample_and_score import metrics_kept
from podsrl.trl.winners import kept_pairs, own_rows, with_winners


class Branching:
    """Gives each pair of a group its own segment, and a winner that shares all turns before it.

    Pairs are those of `dpo`: a group's i-th highest kept reward with its i-th lowest. Where the
    losing rollout's value falls most over a turn after its first, the best continuation from before
    that turn takes the place of the winning rollout; over the first, the winning rollout stays. The
    segment ends where the winner's value is back at that of the shared state.

    Every process knows the pairs of all, and each samples an equal share of the continuations: how
    many there are depends on the rollouts, and processes must come to the same calls.
    """

    def __init__(self, host: GRPOTrainer) -> None:
        self.host, self.num_sampled = host, 0

    def __call__(
        self, batch: GenerationBatch, rollouts: Rollouts, selection: Selection
    ) -> tuple[Rollouts, Selection]:
        """The rollouts with winners in their places, and the choice with their rewards.

        Tells `batch` the segments, and the rewards that speak for the policy.
        """
        self.num_sampled = 0
        pairs = self._pairs(rollouts, selection)
        with self._host_as_before():
            self._value(pairs)
            self._find_winners(pairs)
        found = [pair for pair in pairs if pair.num]
        batch.segments = segments_of(found, selection.kept_rows_B.tolist())
        batch.metrics |= self._metrics(pairs, found, selection.rewards_PN)
        if batch.first_rewards_PNF is None:
            batch.first_rewards_PNF = selection.rewards_per_func_PNF
        winners = {pair.winner: pair.best for pair in found if pair.best is not None}
        return with_winners(self.host, rollouts, selection, winners)

    def _pairs(self, rollouts: Rollouts, selection: Selection) -> list[Pair]:
        rewards_PN, num_rollouts = selection.rewards_PN, selection.rewards_PN.shape[1]
        pairs, means_P = kept_pairs(selection), rewards_PN.nanmean(dim=1).tolist()
        known = self._known(rollouts, rewards_PN, [row for pair in pairs for row in pair])
        found = [
            Pair(
                winner=winner,
                loser=loser,
                winning=known[winner],
                dialogue=known[loser],
                values={0: means_P[loser // num_rollouts]},
            )
            for winner, loser in pairs
        ]
        return [pair for pair in found if pair.dialogue.num_turns > 1]

    def _known(
        self, rollouts: Rollouts, rewards_PN: Tensor, rows: Sequence[int]
    ) -> dict[int, Rewarded]:
        """The rollouts in these rows, by the row, from the processes that sampled them."""
        own, rewards_B = own_rows(self.host, rollouts), rewards_PN.flatten().tolist()
        columns = rollouts.inputs, rollouts.prompts, rollouts.generated
        here = {row: dialogue_of(*columns, own[row]) for row in rows if row in own}
        return {
            row: Rewarded(
                **vars(each), rewards_F=rollouts.rewards_per_func[row], reward=rewards_B[row]
            )
            for part in gather_object([here])
            for row, each in part.items()
        }

    def _value(self, pairs: list[Pair]) -> None:
        """The value of every state of the losing rollouts, and the turn that it falls most over."""
        for turn in range(1, max((pair.dialogue.num_turns for pair in pairs), default=0)):
            longer = [pair for pair in pairs if pair.dialogue.num_turns > turn]
            for pair, dialogues in zip(
                longer, self._continue([each.dialogue for each in longer], turn), strict=True
            ):
                pair.continued[turn], pair.values[turn] = dialogues, mean_reward(dialogues)
        if not pairs:
            return
        width = max(pair.dialogue.num_turns for pair in pairs) + 1
        values_RS = torch.full((len(pairs), width), torch.nan, dtype=torch.float64)
        for values_S, pair in zip(values_RS, pairs, strict=True):
            num = pair.dialogue.num_turns
            values_S[:num] = torch.tensor([pair.values[turn] for turn in range(num)])
            values_S[num] = pair.dialogue.reward
        for pair, first in zip(pairs, largest_fall(values_RS).tolist(), strict=True):
            pair.first = first

    def _find_winners(self, pairs: list[Pair]) -> None:
        """The best continuation from before the turn that went wrong, and how far it counts."""
        won = []
        for pair in pairs:
            if pair.first < 0:
                continue
            if pair.first > 0:
                pair.best = best_of(pair.continued[pair.first], above=pair.dialogue.reward)
            if pair.first == 0 or pair.best:
                won.append(pair)
        winners = [pair.best or pair.winning for pair in won]
        most = [
            min(pair.dialogue.num_turns, winner.num_turns) - pair.first
            for pair, winner in zip(won, winners, strict=True)
        ]
        values_RS = torch.full((len(won), max([*most, 1])), torch.nan, dtype=torch.float64)
        level_R = torch.tensor([pair.values[pair.first] for pair in won], dtype=torch.float64)
        most_R = torch.tensor(most, dtype=torch.int64)
        for num in range(1, values_RS.shape[1]):
            is_open_R = (values_RS < level_R[:, None]).sum(dim=1).eq(num - 1) & (most_R > num)
            for turn, places in by_turn(is_open_R.nonzero().flatten().tolist(), won, num):
                continued = self._continue([winners[place] for place in places], turn)
                for place, dialogues in zip(places, continued, strict=True):
                    values_RS[place, num - 1] = mean_reward(dialogues)
        for pair, num in zip(won, num_until_recovered(values_RS, level_R, most_R), strict=True):
            pair.num = int(num)

    def _continue(self, dialogues: Sequence[Dialogue], turn: int) -> list[list[Rewarded]]:
        """So many further rollouts of each dialogue from before its turn of that number."""
        if not dialogues:
            return []
        host, num = self.host, self.host.args.sdpo_branches
        self.num_sampled += num * len(dialogues)
        host.clock.begin("sampling")
        starts = [each for each in self._share(dialogues) for _ in range(num)]
        found = turns_from(host, starts, turn)
        host.clock.begin("rewards")
        rewards_BF = GRPOTrainer._calculate_rewards(  # of all processes
            host,
            [each.row for each in found],
            [each.prompt for each in found],
            [each.messages for each in found],
            [each.completion_ids for each in found],
        )
        found = gather_object(found)[: num * len(dialogues)]
        rewards_BF = rewards_BF[: len(found)]
        rewards_B = combine(rewards_BF, host.reward_weights).tolist()
        earned = zip(found, rewards_BF, rewards_B, strict=True)
        scored = [Rewarded(**vars(each), rewards_F=row, reward=one) for each, row, one in earned]
        return [scored[i : i + num] for i in range(0, len(scored), num)]

    def _share(self, dialogues: Sequence[Dialogue]) -> Sequence[Dialogue]:
        """This process's, as many as every other's: the last of all may be repeated."""
        accelerator = self.host.accelerator
        share = math.ceil(len(dialogues) / accelerator.num_processes)
        spare = share * accelerator.num_processes - len(dialogues)
        first = accelerator.process_index * share
        return [*dialogues, *[dialogues[-1]] * spare][first : first + share]

    def _metrics(
        self, pairs: list[Pair], found: list[Pair], rewards_PN: Tensor
    ) -> dict[str, Tensor]:
        nan, num = torch.nan, len(found)
        values = {
            "num_branches": self.num_sampled,
            "frac_no_segment": 1 - num / len(pairs) if pairs else nan,
            "segment_first_turn": sum(pair.first for pair in found) / num if num else nan,
            "segment_num_turns": sum(pair.num for pair in found) / num if num else nan,
        }
        new = rewards_PN.double().new_tensor
        return {f"objective/{name}": new(float(value)) for name, value in values.items()}

    @contextmanager
    def _host_as_before(self) -> Iterator[None]:
        """What TRL has made of the batch's own rows is there again; metrics are the policy's."""
        names = ("environments", "_batch_environments", "_sync_tool_dicts", "_async_tool_dicts")
        before = {name: getattr(self.host, name, None) for name in names}
        with metrics_kept(self.host):
            try:
                yield
            finally:
                for name, value in before.items():
                    setattr(self.host, name, value)
