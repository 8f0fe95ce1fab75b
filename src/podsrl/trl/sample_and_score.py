"""Rollouts of given rows, as TRL prepares, samples and scores them.

Before it samples TRL makes of each row what its rollout needs: the prompt, which an environment may
go on with, the environment itself, its tools, its images. So rows are multiplied before TRL sees
them, one per rollout, and what TRL has made is cut after the choice (batch.py).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from trl import GRPOTrainer

from podsrl.trl.batch import IMAGES, Rollouts
from podsrl.trl.early_stop import Stopping


class Prepared(Exception):
    """Leaves TRL's method where rows are prepared and nothing is sampled yet."""

    def __init__(self, prompts: list[Any]) -> None:
        super().__init__("rows are prepared")
        self.prompts = prompts


@contextmanager
def groups_of(host: GRPOTrainer, num_rows: int) -> Iterator[None]:
    """TRL takes `num_generations` rows for one prompt's: for a while, as many as these.

    Outside it is m, as in the settings; while TRL samples it is n; while it makes a batch of the
    kept it is their number, which a schedule may hold below m.
    """
    before, host.num_generations = host.num_generations, num_rows
    try:
        yield
    finally:
        host.num_generations = before


class SampleAndScore:
    """Samples and scores one rollout for each row of this process.

    generate: GRPOTrainer's `_generate`, bound to the host.
    stopping: scores while tokens are sampled; None without early_stop.
    """

    def __init__(
        self,
        host: GRPOTrainer,
        generate: Callable[[list[Any]], tuple[Any, ...]],
        stopping: Stopping | None,
    ) -> None:
        self.host, self.generate, self.stopping = host, generate, stopping

    def first_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows that TRL is to prepare, before it asks for their rollouts: all of them."""
        return rows

    def __call__(self, rows: list[dict[str, Any]], num_each: int = 0) -> Rollouts:
        """Rollouts of the rows, which TRL prepares first where it has not.

        num_each: how many rows, counted over all processes, are of one prompt; 0 for n.
        """
        host, batch = self.host, self.host.batch
        is_prepared = rows is batch.prepared_rows
        prompts = batch.prompts if is_prepared else prepared_prompts(host, rows)
        if host._is_vlm:
            check_images(prompts)
        with self.stopping.watching(rows, prompts) if self.stopping else nullcontext():
            host.clock.begin("sampling")
            with groups_of(host, num_each or host.args.num_rollouts):
                generated = self.generate(prompts)
            host.clock.begin("rewards")
            _, completion_ids, _, completions, _, extra_fields, *_ = generated
            _check_number(completion_ids, rows)
            generated = with_images(host, rows, generated)
            add_extra_fields(rows, extra_fields)
            if self.stopping:  # most are scored already
                rewards = self.stopping.rewards([len(ids) for ids in completion_ids])
            else:
                rewards = host._calculate_rewards(rows, prompts, completions, completion_ids)
            if host.objective_step and host.objective_step.head:
                host.objective_step.head.write(rows)
        logs = dict(host._pending_extra_logs)
        return Rollouts(rows, generated, logs, rewards, prompts=prompts)


def prepared_prompts(host: GRPOTrainer, rows: list[dict[str, Any]]) -> list[Any]:
    """The prompts that TRL makes of rows, which has their environments and tools ready then.

    It is TRL's own code, left by the host's `_generate` where it would sample.
    """
    host.batch.is_preparing = True
    try:
        GRPOTrainer._generate_and_score_completions(host, rows)
    except Prepared as found:
        return found.prompts
    finally:
        host.batch.is_preparing = False
    raise AssertionError("TRL has not asked for rollouts")


@contextmanager
def metrics_kept(host: GRPOTrainer) -> Iterator[None]:
    """What TRL and the rewards log meanwhile is dropped: it is not about the batch's rollouts."""
    logs = (host._metrics["train"], host._pending_metrics, host._pending_extra_logs)
    before = [{name: list(values) for name, values in log.items()} for log in logs]
    try:
        yield
    finally:
        for log, values in zip(logs, before, strict=True):
            log.clear()
            log.update(values)


def check_images(prompts: list[Any]) -> None:
    """Raise `ValueError` for prompts of which some have images and some have none.

    Processors take no such batch, and TRL's trainer fails there after it has sampled.
    """
    messages = [[message["content"] for message in prompt] for prompt in prompts]
    blocks = [[each for x in prompt if isinstance(x, list) for each in x] for prompt in messages]
    num_seeing = sum(any(each["type"] == "image" for each in prompt) for prompt in blocks)
    if 0 < num_seeing < len(prompts):
        raise ValueError(
            f"{num_seeing} of {len(prompts)} rollouts of this batch are of prompts with images and "
            "the others of prompts without, which processors do not take together: train on rows "
            "of one kind, or on one prompt a batch (per_device_train_batch_size x "
            "steps_per_generation = num_generations)."
        )


def add_extra_fields(rows: list[dict[str, Any]], extra_fields: dict[str, Any]) -> None:
    """Put what `rollout_func` says of its rollouts into their rows, where rewards read it.

    A list has a value for each row, and may be shorter; anything else is said of all.

    Example: {"turns": [2, 5], "version": 3} gives the first row turns 2 and version 3.
    """
    for name, values in extra_fields.items():
        if not isinstance(values, list):
            values = [values] * len(rows)
        for row, value in zip(rows, values, strict=False):  # as TRL: a list may be shorter
            row[name] = value


def with_images(
    host: GRPOTrainer, rows: list[dict[str, Any]], generated: tuple[Any, ...]
) -> tuple[Any, ...]:
    """What GRPOTrainer._generate returned, with the images of each row of a model that sees.

    TRL takes them from the rows where the rollouts name none, and would find those of all n there.
    """
    if not host._is_vlm or generated[IMAGES] is not None:
        return generated
    if "images" in rows[0]:
        images = [row["images"] for row in rows]
    elif "image" in rows[0]:
        images = [None if row["image"] is None else [row["image"]] for row in rows]
    else:
        images = [None] * len(rows)
    return (*generated[:IMAGES], images, *generated[IMAGES + 1 :])


def _check_number(completion_ids: list[Any], rows: list[Any]) -> None:
    if len(completion_ids) != len(rows):
        raise ValueError(
            f"{len(completion_ids)} rollouts were sampled for {len(rows)} prompts: rollout_func is "
            "given each prompt num_rollouts (n) times and must return one rollout for each."
        )
