"""rollouts.jsonl.gz: every sampled rollout of a run, what it was rewarded, whether and why kept.

The first line describes the run; every other line is one prompt of one step, with one list entry
per sampled rollout. docs/view.md defines each key; `podsrl view` shows the file as a page.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podsrl.runs.json_lines import append_lines, read_lines, rewrite_lines
from podsrl.runs.rollout_records import batch_records

if TYPE_CHECKING:
    from podsrl.core.selection import Selection

FILE_NAME = "rollouts.jsonl.gz"
FORMAT = "podsrl-rollouts-1"
DEFAULT_LIMIT_MIB = 64.0
MODES = ("auto", "true", "false")

logger = logging.getLogger(__name__)


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
        given: Sequence[list[list[int]]] | None = None,
    ) -> None:
        """`write` of what `batch_records` makes of one generation batch; the arguments are its."""
        records = batch_records(
            selection, rows, completions, num_tokens, advantages=advantages, rule=rule, given=given
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
