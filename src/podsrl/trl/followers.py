"""Followers: LoRA adapters that sample a part of each group and learn from that part alone.

SAPG, arXiv 2407.20230. The leader is the adapter that is trained, evaluated and saved; it learns
from all kept rollouts, its followers' weighed by mu (`sapg`). A follower is a further adapter on
the same base, a copy of the leader as training begins, with a bonus for its entropy
(`sapg_follower`). To TRL and transformers there is the leader alone: a follower is switched on
while it samples and while it is updated, and has an optimizer of its own.

Shape letters: P prompts, N sampled rollouts, B kept rows, T completion tokens.
"""

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.trainer.utils import use_adapter

from podsrl.core.objectives import KeptBatch
from podsrl.core.objectives.ratio import sapg_follower
from podsrl.core.selection import Selection
from podsrl.packing.microbatch import pick
from podsrl.trl.behaviours_checks import FOLLOWER
from podsrl.trl.dealing import BEHAVIOUR, FOLLOWER_ADVANTAGES, GROUP, REWARDS
from podsrl.trl.needs import refuse_cases

FILE = "followers.pt"


def name_of(behaviour: int) -> str:
    """The adapter of a follower, by the number of its behaviour."""
    return f"follower_{behaviour}"


@dataclass(frozen=True)
class Follower:
    """One adapter beside the leader's."""

    behaviour: int
    """Its number among `behaviours`, from 0."""
    entropy_bonus: float
    weights: dict[str, nn.Parameter]
    """By their names in the leader, without the adapter's."""
    optimizer: torch.optim.Optimizer

    @property
    def name(self) -> str:
        return name_of(self.behaviour)


class Followers(TrainerCallback):
    """Updates every follower once in each optimizer step, just before the leader's.

    Its gradient is made when the leader's has been clipped, so that neither is clipped for the
    other's sake. Optimizer, learning rate, weight decay, clipping and epsilon are the leader's.
    """

    def __init__(self, host: GRPOTrainer) -> None:
        self.host = host
        self.policy: Any = host.accelerator.unwrap_model(host.model)
        leader = self.policy.active_adapter
        found = [(k, each) for k, each in enumerate(host.args.behaviours) if FOLLOWER in each]
        self.each = [self._begin(k, each[FOLLOWER], leader) for k, each in found]
        self.policy.set_adapter(leader)
        # What is saved as the model is the leader; checkpoints have the followers in `FILE`.
        save = self.policy.save_pretrained
        self.policy.save_pretrained = partial(save, selected_adapters=[leader])
        self.taken: list[tuple[Any, dict[str, Any]]] = []
        """Model and micro-batches of the optimizer step under way."""
        host.add_callback(self)

    def advantages(self, selection: Selection) -> Tensor:
        """Of each kept row among what its follower kept, (B,); 0 in the leader's rows."""
        assert selection.selector.parts is not None
        found_PN = torch.zeros_like(selection.rewards_PN)
        parts = found_PN.split([size for size, _ in selection.selector.parts], dim=1)
        for i in range(1, len(parts)):  # the first is the leader's
            own = selection.part(i)
            parts[i][own.kept_PN] = own.advantages_B.to(found_PN)
        return found_PN[selection.kept_PN]

    def take(self, model: Any, inputs: dict[str, Any]) -> None:
        """Remember a micro-batch until the leader's gradient is whole."""
        self.taken.append((model, inputs))

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Update the followers on what has been taken since the last step."""
        taken, self.taken = self.taken, []
        for each in self.each:
            with use_adapter(self.policy, each.name):
                self._update(each, taken)

    def save(self, checkpoint: Path) -> None:
        """Write weights and optimizers into a checkpoint's folder."""
        states = {
            each.name: {"weights": each.weights, "optimizer": each.optimizer.state_dict()}
            for each in self.each
        }
        torch.save(states, checkpoint / FILE)

    def load(self, checkpoint: Path) -> None:
        """Go on with what a checkpoint holds; `ValueError` where it was saved without followers."""
        if not (checkpoint / FILE).exists():
            raise ValueError(
                f"{checkpoint} has no {FILE}: it was saved without these followers; go on without "
                "follower_entropy, or begin anew."
            )
        states = torch.load(checkpoint / FILE, map_location="cpu", weights_only=True)
        for each in self.each:
            for name, weight in each.weights.items():
                weight.data.copy_(states[each.name]["weights"][name])
            each.optimizer.load_state_dict(states[each.name]["optimizer"])

    def _begin(self, behaviour: int, entropy_bonus: float, leader: str) -> Follower:
        """A copy of the leader, with an optimizer like its."""
        config = copy.deepcopy(self.policy.peft_config[leader])
        config.init_lora_weights = True  # others change the base, which is the leader's, too
        self.policy.add_adapter(name_of(behaviour), config)
        weights = weights_of(self.policy, name_of(behaviour))
        of_leader = weights_of(self.policy, leader)
        for name, weight in weights.items():
            weight.data = of_leader[name].data.clone()
        kind, options = optimizer_of(self.host)
        group = {"params": [*weights.values()], "weight_decay": self.host.args.weight_decay}
        return Follower(behaviour, entropy_bonus, weights, kind([group], **options))

    def _update(self, follower: Follower, taken: list[tuple[Any, dict[str, Any]]]) -> None:
        own = [(model, self._rows_of(follower, inputs)) for model, inputs in taken]
        own = [(model, inputs) for model, inputs in own if len(inputs["completion_ids"])]
        if not own:
            return
        num_tokens = sum(inputs["completion_mask"].sum() for _, inputs in own)
        entropies = []
        for model, inputs in own:
            with self.host.compute_loss_context_manager():
                loss, metrics = self._loss(follower, model, inputs, num_tokens)
            loss.backward()
            entropies.append(metrics["entropy"])
        norm = nn.utils.clip_grad_norm_(
            follower.weights.values(), self.host.args.max_grad_norm or torch.inf
        )
        for group in follower.optimizer.param_groups:
            group["lr"] = self.host.optimizer.param_groups[0]["lr"]
        follower.optimizer.step()
        follower.optimizer.zero_grad()
        numbers = torch.stack([torch.stack(entropies).sum(), norm.to(entropies[0])]).tolist()
        for name, number in zip(("entropy", "grad_norm"), numbers, strict=True):
            key = f"behaviours/{follower.behaviour}/{name}"
            self.host._metrics["train"][key].append(number)

    def _rows_of(self, follower: Follower, inputs: dict[str, Any]) -> dict[str, Any]:
        rows = inputs[BEHAVIOUR][:, follower.behaviour].nonzero().squeeze(1).tolist()
        return pick(inputs, [rows])[0]

    def _loss(
        self, follower: Follower, model: Any, inputs: dict[str, Any], num_tokens: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Its share of the mean over all tokens of the step."""
        # Where a batch is used again the follower has moved on from what sampled it.
        is_first = inputs.get("old_per_token_logps") is None
        old_BT = None if is_first else inputs["sampling_per_token_logps"]
        log_probs_BT, entropies_BT = self._log_probs(follower, model, inputs, old_BT)
        batch = KeptBatch(
            log_probs_BT=log_probs_BT,
            old_log_probs_BT=log_probs_BT.detach() if old_BT is None else old_BT,
            mask_BT=inputs["completion_mask"],
            rewards_B=inputs[REWARDS],
            advantages_B=inputs[FOLLOWER_ADVANTAGES],
            group_B=inputs[GROUP],
            num_tokens=num_tokens,
        )
        args = self.host.args
        clip = {"epsilon": args.epsilon, "epsilon_high": args.epsilon_high}
        return sapg_follower(batch, entropies_BT, entropy_bonus=follower.entropy_bonus, **clip)

    def _log_probs(
        self, follower: Follower, model: Any, inputs: dict[str, Any], old_BT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """By TRL's pass, or the packed one; a dead row is read only for its entropy."""
        rows = (
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].shape[1],
        )
        padded = partial(GRPOTrainer._get_per_token_logps_and_entropies, self.host)
        if not self.host.kept_log_probs:
            log_probs_BT, entropies_BT, _ = padded(*rows, compute_entropy=True)
            return log_probs_BT, entropies_BT
        skips_dead = self.host.args.skip_dead_rows and not follower.entropy_bonus
        live = {"advantages": inputs[FOLLOWER_ADVANTAGES], "known_BT": old_BT} if skips_dead else {}
        found: tuple[Tensor, Tensor] = self.host.kept_log_probs(
            padded, *rows, compute_entropy=True, **live
        )
        return found


def weights_of(policy: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """The weights of an adapter by their names, which leave out the adapter's.

    Example: `q_proj.lora_A.default.weight` is `q_proj.lora_A.weight` of "default".
    """
    found = {}
    for name, parameter in policy.named_parameters():
        parts = name.split(".")
        if adapter in parts:
            parts.remove(adapter)
            found[".".join(parts)] = parameter
    return found


def optimizer_of(host: GRPOTrainer) -> tuple[Any, dict[str, Any]]:
    """The class of the host's optimizer and its settings."""
    return host.optimizer_cls_and_kwargs or host.get_optimizer_cls_and_kwargs(host.args, host.model)


def refuse_followers(host: GRPOTrainer) -> None:
    """Raise for models, adapters, processes and optimizers that followers do not go with."""
    policy: Any = host.accelerator.unwrap_model(host.model)
    if not getattr(policy, "peft_config", None):
        raise ValueError(
            "follower_entropy needs LoRA, as followers are adapters on the base of the policy: "
            "pass peft_config (use_peft: true in a recipe), or leave follower_entropy out."
        )
    from peft import LoraConfig  # an extra of podsrl's, there by now

    active = policy.active_adapters
    config = policy.peft_config[active[0]]
    is_lora = isinstance(config, LoraConfig)
    more = ("modules_to_save", "target_parameters", "trainable_token_indices")
    cases = {
        "several processes": host.accelerator.num_processes > 1,
        "FSDP or DeepSpeed": host.is_fsdp_enabled or host.is_deepspeed_enabled,
        "several adapters that are active at once": len(active) > 1,
        f"an adapter of {type(config).__name__}": not is_lora,
        "LoRA that trains biases": is_lora and config.bias != "none",
        f"LoRA with {', '.join(more)}": any(getattr(config, name, None) for name in more),
        "an optimizer that the trainer was given": host.optimizer is not None,
        f"optim={host.args.optim!r}, which is made for a whole model": bool(
            {"model", "params", "optimizer_dict"} & set(optimizer_of(host)[1])
        ),
    }
    refuse_cases("follower_entropy does not serve", cases, "leave it out, or the other.")
