"""Settings that a resumed run may have otherwise than before, and those that make it another."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import Trainer

from podsrl.runs.settings import STEADY_SCHEDULERS

# When a run ends, what it measures and what it writes: the steps themselves stay as they were.
_NAMES = """
batch_eval_metrics bf16_full_eval changes dataloader_multiprocessing_context dataloader_num_workers
dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor ddp_timeout debug
disable_tqdm do_eval do_predict do_train enable_jit_checkpoint eval_accumulation_steps eval_delay
eval_do_concat_batches eval_on_start eval_steps eval_strategy eval_use_gather_object
evaluate_every_seconds evaluate_every_steps evaluate_limit evaluate_samples fp16_full_eval
greater_is_better hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token
include_for_metrics include_num_input_tokens_seen load_best_model_at_end local_rank log_completions
log_completions_hub_repo log_level log_level_replica log_multimodal log_on_each_node log_rollouts
log_unique_prompts logging_first_step logging_nan_inf_filter logging_steps logging_strategy
majority_stop metric_for_best_model num_completions_to_print num_generations_eval output_dir
per_device_eval_batch_size prediction_loss_only project push_to_hub report_to
restore_callback_states_from_checkpoint resume resume_from_checkpoint resume_with_changes
reward_timeout_seconds run_name save_model save_on_each_node save_only_model save_steps
save_strategy save_total_limit skip_memory_metrics torch_empty_cache_steps trackio_bucket_id
trackio_space_id trackio_static_space_id training_seconds vllm_gpu_memory_utilization
vllm_group_port vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout
"""
NO_TRAINING = frozenset(_NAMES.split())
ENDS = ("max_steps", "num_train_epochs")
# What a checkpoint was made with and cannot be loaded into otherwise.
FIXED = ("optim", "model", "model_name_or_path", "use_peft", "lora_r", "lora_target_modules")

# What a run of an older version did where it did not know the setting, by its objective.
BEFORE = {"qrpo": {"qrpo_ties": "upper"}}

Changes = dict[str, list[Any]]


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> Changes:
    """Return the settings of which a resumed run would train otherwise: name -> [before, now].

    max_steps and num_train_epochs are among them where the learning rate or m follows them.
    Settings that an older version did not know are left out, but for those in BEFORE.

    Example: {"learning_rate": [3e-3, 1e-2]}.
    """
    old, new = (json.loads(json.dumps(settings, default=str)) for settings in (old, new))
    old = {**BEFORE.get(str(old.get("objective")), {}), **old}
    known = [name for name in new if name in old and name not in NO_TRAINING]
    if not _follows_the_end(new):
        known = [name for name in known if name not in ENDS]
    return {name: [old[name], new[name]] for name in known if old[name] != new[name]}


def _follows_the_end(settings: Mapping[str, Any]) -> bool:
    grows = settings.get("num_generations_start") and not settings.get("num_generations_steps")
    return bool(grows) or settings.get("lr_scheduler_type") not in STEADY_SCHEDULERS


def told(changes: Changes) -> str:
    """The changes in words: learning_rate 0.003 -> 0.01, seed 0 -> 1."""
    return ", ".join(
        f"{name} {before!r} -> {now!r}{' (which the learning rate or m follows)' * (name in ENDS)}"
        for name, (before, now) in changes.items()
    )


def fingerprints(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The digest of the questions, and that of checkpoints from when no columns were kept."""
    bare = [{name: row[name] for name in ("prompt", "answer") if name in row} for row in rows]
    return fingerprint(rows), fingerprint(bare)


def fingerprint(rows: Sequence[Mapping[str, Any]]) -> str:
    """A digest of the questions that a run trains on, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


class ApplyChanges(TrainerCallback):
    """Puts changed settings of the optimizer in the place of those that its checkpoint brought."""

    def __init__(self, changes: Changes) -> None:
        self.changes = changes

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **_: Any,
    ) -> None:
        if not self.changes:
            return
        _, options = Trainer.get_optimizer_cls_and_kwargs(args)
        options.pop("lr")
        for group in optimizer.param_groups:
            group.update({name: options[name] for name in options if name in group})
        # The first group decays, the second, of biases and norms, never does.
        optimizer.param_groups[0]["weight_decay"] = args.weight_decay
        if "learning_rate" in self.changes:
            _set_learning_rate(optimizer, lr_scheduler, args.learning_rate)


def _set_learning_rate(optimizer: Any, lr_scheduler: Any, rate: float) -> None:
    """Scale what the schedule has made of the old rate by this step."""
    schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
    for group in optimizer.param_groups:
        share = group["lr"] / group["initial_lr"] if group["initial_lr"] else 1.0
        group["lr"], group["initial_lr"] = rate * share, rate
    schedule.base_lrs = [rate] * len(schedule.base_lrs)
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]
