"""rollouts.jsonl.gz: every sampled rollout of a run, what it was rewarded, whether and why kept.

The first line describes the run; every other line is one prompt of one step, with one list entry
per sampled rollout. docs/view.md defines each key; `podsrl view` shows the file as a page.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podsrl.runs.json_lines import append_lines, read_lines, rewrite_lines

if TYPE_CHECKING:
    from podsrl.core.selection import Selection

FILE_NAME = "rollouts.jsonl.gz"
FORMAT = "podsrl-rollouts-1"
DEFAULT_LIMIT_MIB = 64.0
MODES = ("auto", "true", "false")

# Rules that keep nothing but ends of the sorted rewards: a kept rollout lies above or below all
# dropped ones, and that is why it was kept. Of other rules only the name can be said.
RULES_OF_ENDS = ("max_variance", "max_reward")

logger = logging.getLogger(__name__)


def why(
    rewards_N: Sequence[float], kept_N: Sequence[bool], rule: str = "max_variance"
) -> list[str]:
    """Return why each rollout of one group was kept, or that it was not.

    | word | the rollout |
    |---|---|
    | no_reward | has no reward (NaN), kept or not |
    | dropped | has a reward and was not kept |
    | all | was kept together with every other one that has a reward |
    | lowest, highest | was kept, and lies below, above every dropped one |
    | tie | was kept while one with the same reward was dropped: the seed chose |
    | the rule's name | was kept by a rule that does not keep ends, such as random |

    Args:
        rewards_N: what the rule ranked, NaN for no reward; equal means equal to the last bit.
        kept_N: which were kept, any number of them, also none.
        rule: the rule's name; `lowest`, `highest` and `tie` are said of `RULES_OF_ENDS` only.

    Raises: ValueError when the two differ in length.

    Example:
        >>> why([0.0, 0.5, 1.0, 1.0], [True, False, True, False])
        ['lowest', 'dropped', 'tie', 'dropped']
    """
    pairs = list(zip(rewards_N, kept_N, strict=True))
    dropped = {reward for reward, kept in pairs if not kept and not math.isnan(reward)}
    bounds = (min(dropped), max(dropped)) if dropped else None
    return [_why(reward, kept, dropped, bounds, rule) for reward, kept in pairs]


def _why(
    reward: float, kept: bool, dropped: set[float], bounds: tuple[float, float] | None, rule: str
) -> str:
    if math.isnan(reward):
        return "no_reward"
    if not kept:
        return "dropped"
    if bounds is None:
        return "all"
    if rule not in RULES_OF_ENDS:
        return rule
    if reward in dropped:
        return "tie"
    if reward < bounds[0]:
        return "lowest"
    return "highest" if reward > bounds[1] else rule


class RolloutLog:
    """Writes the rollouts of a run to a gzipped file of JSON lines, one write per batch.

    The first write drops what an earlier process logged of the same and later steps, so a resumed
    run goes on where its checkpoint was. Each batch is a gzip member of its own: what is on disk
    can be read at any time, and a run that is killed loses at most its last batch.

    Args:
        path: the file, `FILE_NAME` in the run folder by custom.
        header: what the first line says of the run besides the format; see `attach_log`.
        limit_mib: compressed size at which the log stops, with one warning; None for no limit.
        every: optimizer steps from one batch to the next, for a warning where batches are missing.

    Raises: ValueError for a limit that is not above 0.
    """

    def __init__(
        self,
        path: Path,
        header: Mapping[str, Any] | None = None,
        *,
        limit_mib: float | None = DEFAULT_LIMIT_MIB,
        every: int = 1,
    ) -> None:
        if limit_mib is not None and limit_mib <= 0:
            raise ValueError(f"limit_mib is {limit_mib}: it must be above 0, or None for no limit")
        self.path, self.header = path, dict(header or {})
        self.limit_mib, self.every = limit_mib, every
        self.stopped = False
        self._last_kept = 0
        self._step: int | None = None
        self._num_prompts = 0

    def write(self, step: int, groups: Sequence[Mapping[str, Any]]) -> None:
        """Append the groups of one generation batch, which the step `step` (from 1) trains on.

        Each group is a record of `batch_records`.
        """
        if self._step is None:
            self._begin(step)
        if self.stopped:
            return
        if step != self._step:
            self._step, self._num_prompts = step, 0
        records = [
            {"step": step, "prompt": self._num_prompts + i, **group}
            for i, group in enumerate(groups)
        ]
        self._num_prompts += len(records)
        limit_bytes = None if self.limit_mib is None else self.limit_mib * 2**20
        if not append_lines(self.path, records, limit_bytes=limit_bytes):
            self._stop(step)

    def write_batch(
        self,
        step: int,
        selection: "Selection",
        rows: Sequence[Mapping[str, Any]],
        completions: Sequence[Any],
        num_tokens: Sequence[int],
        *,
        advantages: Mapping[int, float],
        rule: str,
    ) -> None:
        """`write` of what `batch_records` makes of one generation batch; the arguments are its."""
        records = batch_records(
            selection, rows, completions, num_tokens, advantages=advantages, rule=rule
        )
        self.write(step, records)

    def _begin(self, step: int) -> None:
        """Make the file, or cut it back to the steps before this one."""
        self._step = step
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rewrite_lines(self.path, self._header_and_records_before(step))
        if step - self._last_kept > self.every and not self.stopped:
            logger.warning(
                "%s holds no rollouts of steps %d to %d: it was damaged, removed or not written",
                self.path,
                self._last_kept + 1,
                step - 1,
            )

    def _header_and_records_before(self, step: int) -> Iterator[Mapping[str, Any]]:
        yield {"format": FORMAT, **self.header}
        # The first line is the old header. Where not even that is whole there is nothing to keep.
        for record in islice(read_lines(self.path), 1, None):
            if record["step"] < step:
                self.stopped = self.stopped or "stopped" in record
                self._last_kept = record["step"]
                yield record

    def _stop(self, step: int) -> None:
        self.stopped = True
        append_lines(self.path, [{"step": step, "stopped": f"at {self.limit_mib:g} MiB"}])
        logger.warning(
            "%s has reached its limit of %g MiB: rollouts from step %d on are not logged. "
            "log_rollouts: true logs without a limit.",
            self.path,
            self.limit_mib,
            step,
        )


def attach_log(
    trainer: Any, folder: Path, mode: str = "auto", *, about: Mapping[str, Any] | None = None
) -> None:
    """Let a PODSTrainer log its rollouts to `FILE_NAME` in the folder.

    Args:
        mode: "auto" with the default limit of size, "true" without one, "false" not at all.
        about: more to say of the run in the first line, such as its task.

    Raises: ValueError for another mode.

    Example: `attach_log(trainer, Path("run"))` before `trainer.train()`.
    """
    if mode not in MODES:
        raise ValueError(f"log_rollouts is {mode!r}: choose from {', '.join(MODES)}")
    args = trainer.args
    header = {
        "reward_names": trainer.reward_func_names,
        "reward_weights": trainer.reward_weights.tolist(),
        "rule": args.selection_rule,
        "num_rollouts": args.num_rollouts,
        "num_generations": args.num_generations,
        **(about or {}),
    }
    log = RolloutLog(
        folder / FILE_NAME,
        header,
        limit_mib=DEFAULT_LIMIT_MIB if mode == "auto" else None,
        every=max(1, -(-args.steps_per_generation // args.gradient_accumulation_steps))
        * args.num_iterations,
    )
    trainer.rollout_log = None if mode == "false" else log


def batch_records(
    selection: "Selection",
    rows: Sequence[Mapping[str, Any]],
    completions: Sequence[Any],
    num_tokens: Sequence[int],
    *,
    advantages: Mapping[int, float],
    rule: str,
) -> list[dict[str, Any]]:
    """Return the records of the prompts that the first process sampled, as JSON can hold them.

    Args:
        selection: rewards and kept rollouts of all P prompts of all processes.
        rows: the data set's row, with `prompt` and perhaps `answer`, of each of its prompts.
        completions: texts or message lists of the rollouts it sampled, group after group. Where
            the last group is shared with another process the rest of it has neither text nor
            length: null.
        num_tokens: their lengths.
        advantages: of the kept rollouts it trains on, by position among all sampled ones.
        rule: the name of the selection rule, for `why`.
    """
    num_rollouts = selection.rewards_PN.shape[1]
    rewards_PN = selection.rewards_PN[: len(rows)].tolist()
    parts_PFN = selection.rewards_per_func_PNF[: len(rows)].transpose(1, 2).tolist()
    kept = set(selection.kept_rows_B.tolist())
    missing = [None] * (len(rows) * num_rollouts - len(completions))
    completions, lengths = [*completions, *missing], [*num_tokens, *missing]
    records = []
    for i, (row, rewards_N) in enumerate(zip(rows, rewards_PN, strict=True)):
        places = range(i * num_rollouts, (i + 1) * num_rollouts)
        kept_N = [place in kept for place in places]
        record = {
            "question": _question(row["prompt"]),
            "rewards": [_number(reward) for reward in rewards_N],
            "parts": [[_number(reward) for reward in part_N] for part_N in parts_PFN[i]],
            "num_tokens": [lengths[place] for place in places],
            "kept": [int(is_kept) for is_kept in kept_N],
            "why": why(rewards_N, kept_N, rule),
            "advantages": [_number(advantages.get(place)) for place in places],
            "texts": [_text(completions[place]) for place in places],
        }
        if row.get("answer") is not None:
            record["answer"] = str(row["answer"])
        records.append(record)
    return records


def read_rollouts(path: Path) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """Return the header of a rollout log and an iterator over its records, in order of writing.

    A record torn by a killed run is left out.

    Raises: ValueError for a file that is no rollout log of this version.
    """
    records = read_lines(path)
    header = next(records, None)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path} is no rollout log: its first line does not say {FORMAT!r}")
    return header, records


def _question(prompt: Any) -> str | None:
    """The last user message of a chat, or the prompt itself."""
    if isinstance(prompt, str):
        return prompt
    asked = [message for message in prompt if message["role"] == "user"]
    return _text((asked or prompt)[-1:])


def _text(completion: Any) -> str | None:
    """The text of a completion or of messages, whose content is text or a list of blocks."""
    if completion is None or isinstance(completion, str):
        return completion
    contents = [message.get("content") or "" for message in completion]
    return "\n".join(
        content if isinstance(content, str) else "".join(b.get("text", "") for b in content)
        for content in contents
    )


def _number(value: float | None) -> float | None:
    """Six significant digits, about what a float32 holds; null for what is no number."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
