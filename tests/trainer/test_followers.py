"""LoRA adapters that sample a part of each group and learn from that part: SAPG's followers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM
from trl.trainer.utils import use_adapter

import podsrl.trl.followers
from helpers.harness import build, logged, recorded
from helpers.tiny import even_reward
from podsrl import PODSConfig, PODSTrainer
from podsrl.cli import main
from podsrl.trl.behaviours_checks import parts_of_policies
from podsrl.trl.followers import FILE, weights_of

NAME = "follower_1"


def behaviours(bonus: float = 0.01) -> list[dict[str, float]]:
    return [
        {"temperature": 1.0, "share": 0.5},
        {"temperature": 1.0, "share": 0.5, "follower_entropy": bonus},
    ]


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **options)


def followed(folder: str, output: Path, bonus: float = 0.01, **options: Any) -> PODSTrainer:
    """Two prompts a step; of each prompt's eight rollouts four are the follower's, two kept."""
    given = {"objective": "sapg", "rewards": [even_reward], "behaviours": behaviours(bonus)}
    return build(folder, output, peft_config=lora(), **{**given, **options})


def snapshot(trainer: PODSTrainer, adapter: str) -> Tensor:
    weights = weights_of(trainer.model, adapter).values()
    return torch.cat([weight.detach().flatten().clone() for weight in weights])


def scatter(trainer: PODSTrainer, adapter: str, seed: int) -> None:
    """Give an adapter, which begins as an addition of 0, weights that show."""
    random = torch.Generator().manual_seed(seed)
    for weight in weights_of(trainer.model, adapter).values():
        weight.data = 0.5 * torch.randn(weight.shape, generator=random)


def tokens_of(model: Any, inputs: dict[str, Any], adapter: str) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of completions by the model's plain pass, without TRL."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with use_adapter(model, adapter):
        logits = model(input_ids=ids, attention_mask=mask, position_ids=places).logits[:, :-1]
    all_log_probs = logits.log_softmax(-1)
    log_probs = all_log_probs.gather(2, ids[:, 1:, None]).squeeze(2)
    entropies = -(all_log_probs.exp() * all_log_probs).sum(-1)
    length = inputs["completion_ids"].shape[1]
    return log_probs[:, -length:], entropies[:, -length:]


def taken(trainer: PODSTrainer, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Micro-batches as the followers get them, from now on."""
    found: list[dict[str, Any]] = []
    take = trainer.behaviours.followers.take

    def spy(model: Any, inputs: dict[str, Any]) -> None:
        found.append(inputs)
        take(model, inputs)

    monkeypatch.setattr(trainer.behaviours.followers, "take", spy)
    return found


def test_a_follower_begins_as_the_leader_and_then_goes_its_own_way(
    tiny_folder: str, tmp_path: Path
) -> None:
    trainer = followed(tiny_folder, tmp_path, max_steps=3)
    recorder = recorded(trainer)
    begin = snapshot(trainer, "default")
    assert torch.equal(snapshot(trainer, NAME), begin) and begin.abs().sum() > 0
    trainer.train()
    leader, follower = (snapshot(trainer, adapter) for adapter in ("default", NAME))
    assert not torch.equal(leader, begin) and not torch.equal(follower, begin)
    assert (leader - follower).abs().max() > 1e-4
    assert trainer.model.active_adapter == "default"
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert trained and all(".default." in name for name in trained)
    for selection in recorder.selections:
        assert selection.kept_PN[:, :4].sum(1).tolist() == [2, 2]  # each policy keeps its share
    mu = logged(trainer, "objective/mu")
    assert mu[0] == pytest.approx(1, abs=1e-5) and abs(mu[2] - 1) > 1e-5
    for key in ("entropy", "grad_norm", "frac_success", "frac_kept"):
        assert len(logged(trainer, f"behaviours/1/{key}")) == 3


def test_each_policy_samples_and_learns_by_its_own_adapter(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The follower's gradient is that of its own rollouts, with its bonus, by a plain pass."""
    bonus, options = 0.3, {"max_grad_norm": 0.0, "gradient_accumulation_steps": 2}
    trainer = followed(
        tiny_folder, tmp_path, bonus, max_steps=1, per_device_train_batch_size=4, **options
    )
    scatter(trainer, "default", 0)
    scatter(trainer, NAME, 1)
    begin = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    batches, gradients = taken(trainer, monkeypatch), {}
    (follower,) = trainer.behaviours.followers.each

    def step() -> None:
        for adapter in ("default", NAME):
            weights = weights_of(trainer.model, adapter).values()
            gradients[adapter] = [weight.grad.clone() for weight in weights]

    monkeypatch.setattr(follower.optimizer, "step", step)
    trainer.train()
    assert len(batches) == 2
    model = trainer.model
    model.load_state_dict(begin)  # the leader has moved
    total, policy, entropy, num_own = 0, 0.0, 0.0, 0
    for inputs in batches:
        log_probs, entropies = tokens_of(model, inputs, NAME)
        of_leader, _ = tokens_of(model, inputs, "default")
        is_own = inputs["objective_behaviour"][:, 1] == 1
        keep = (inputs["completion_mask"] * is_own[:, None]).bool()
        sampled = inputs["sampling_per_token_logps"]
        torch.testing.assert_close(sampled[keep], log_probs[keep], rtol=1e-4, atol=1e-5)
        assert (sampled - of_leader)[keep].abs().mean() > 0.1
        leaders = inputs["completion_mask"].bool() & ~is_own[:, None]
        assert sampled[leaders].isnan().all()
        advantages = inputs["objective_follower_advantages"]
        assert not advantages[~is_own].any()
        policy = policy + (log_probs * advantages[:, None])[keep].sum()
        entropy = entropy + entropies[keep].sum()
        total, num_own = total + keep.sum(), num_own + int(is_own.sum())
    assert num_own == 4
    weights = [*weights_of(model, NAME).values()]
    for weight in weights:
        weight.requires_grad_()
    loss = -(policy + bonus * entropy) / total
    expected = torch.autograd.grad(loss, weights)
    torch.testing.assert_close(gradients[NAME], [*expected], rtol=1e-3, atol=1e-5)
    assert any(gradient.abs().max() > 0 for gradient in gradients["default"])


def test_the_leader_has_nothing_of_the_followers_bonus(tiny_folder: str, tmp_path: Path) -> None:
    """Nor is its gradient clipped for the follower's; the follower's own step is another."""
    found = []
    for bonus in (0.0, 50.0):
        trainer = followed(tiny_folder, tmp_path, bonus, max_steps=1, max_grad_norm=0.01)
        trainer.train()
        norms = [logged(trainer, key)[0] for key in ("grad_norm", "behaviours/1/grad_norm")]
        found.append([*norms, snapshot(trainer, "default"), snapshot(trainer, NAME)])
    assert found[0][0] == found[1][0] and found[1][1] > 10 * found[0][1]
    assert torch.equal(found[0][2], found[1][2]) and not torch.equal(found[0][3], found[1][3])


def test_the_bonus_raises_the_followers_entropy(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rewards are equal: nothing else teaches, and the leader stays where it began."""

    def same(completions: list[Any], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    options = {"rewards": [same], "learning_rate": 1e-2, "max_steps": 6, "weight_decay": 0.0}
    trainer = followed(tiny_folder, tmp_path, 1.0, lr_scheduler_type="constant", **options)
    begin, batches = snapshot(trainer, "default"), taken(trainer, monkeypatch)
    trainer.train()
    assert torch.equal(snapshot(trainer, "default"), begin)
    keep = batches[0]["completion_mask"].bool()
    with torch.no_grad():
        of_leader, of_follower = (
            tokens_of(trainer.model, batches[0], adapter)[1][keep].mean()
            for adapter in ("default", NAME)
        )
    assert of_follower > of_leader + 0.05
    entropies = logged(trainer, "behaviours/1/entropy")
    assert entropies[-1] > entropies[0]


def test_a_batch_used_again_is_compared_with_what_sampled_it(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates a batch: the first has ratio 1, the second not; dead rows cost no pass."""
    trainer = followed(
        tiny_folder, tmp_path, 0.0, max_steps=2, num_iterations=2, learning_rate=1e-2
    )
    batches, original = [], podsrl.trl.followers.sapg_follower

    def spy(batch: Any, entropies: Tensor, **options: Any) -> Any:
        batches.append(batch)
        return original(batch, entropies, **options)

    monkeypatch.setattr(podsrl.trl.followers, "sapg_follower", spy)
    trainer.train()
    assert trainer.args.skip_dead_rows and len(batches) == 2
    ratios = [batch.log_ratio_BT("old").abs().max().item() for batch in batches]
    assert ratios[0] < 1e-4 < 1e-3 < ratios[1]


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tiny_folder: str, tmp_path: Path) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = followed(tiny_folder, tmp_path / "whole", **options)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert (checkpoint / FILE).exists() and not (checkpoint / NAME).exists()
    resumed = followed(tiny_folder, tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for adapter in ("default", NAME):
        assert torch.equal(snapshot(resumed, adapter), snapshot(whole, adapter))
    for one, other in zip(*(t.behaviours.followers.each for t in (whole, resumed)), strict=True):
        states = [each.optimizer.state_dict()["state"] for each in (one, other)]
        assert states[0].keys() == states[1].keys() and len(states[0]) == 8
        for number, state in states[0].items():
            assert all(torch.equal(state[name], states[1][number][name]) for name in state)
    (checkpoint / FILE).unlink()
    with pytest.raises(ValueError, match=r"has no followers\.pt: it was saved without these"):
        followed(tiny_folder, tmp_path / "none", **options).train(
            resume_from_checkpoint=str(checkpoint)
        )
    # The model that is saved is the leader, for plain peft.
    whole.save_model(str(tmp_path / "model"))
    assert not [path for path in (tmp_path / "model").iterdir() if path.is_dir()]
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype="float32")
    loaded = PeftModel.from_pretrained(base, tmp_path / "model")
    found = torch.cat([weight.flatten() for weight in weights_of(loaded, "default").values()])
    assert torch.equal(found, snapshot(whole, "default"))


def config(**options: Any) -> PODSConfig:
    settings = {"num_generations": 4, "use_cpu": True, "bf16": False, "objective": "sapg"}
    return PODSConfig("unused", **{**settings, "behaviours": behaviours(), **options})


def mixed(*each: tuple[float, ...]) -> list[dict[str, float]]:
    """Behaviours from (temperature, share) and (temperature, share, follower_entropy)."""
    names = ("temperature", "share", "follower_entropy")
    return [dict(zip(names, numbers, strict=False)) for numbers in each]


def test_what_each_policy_keeps() -> None:
    assert parts_of_policies(config()) == ((4, 2), (4, 2))
    three = mixed((1.0, 0.25), (1.3, 0.25), (1.0, 0.25, 0.0), (1.0, 0.25, 0.01))
    found = config(behaviours=three, num_generations=8, num_rollouts=32)
    assert parts_of_policies(found) == ((16, 4), (8, 2), (8, 2))
    assert parts_of_policies(config(behaviours=mixed((1.0, 0.5), (1.3, 0.5)))) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "agro"}, "follower_entropy needs objective='sapg'"),
        ({"behaviours": mixed((1.0, 0.5, 0.0), (1.0, 0.5))}, "needs followers to stand last"),
        ({"behaviours": mixed((1.0, 1.0, 0.0))}, "after one behaviour or more of the leader"),
        ({"behaviours": mixed((1.0, 0.5), (1.3, 0.5, 0.0))}, "policy's temperature, 1: they"),
        (
            {"behaviours": mixed((1.0, 0.25), (1.0, 0.75, 0.0))},
            "at most half of the rollouts, not 0.75",
        ),
        ({"behaviours": mixed((1.0, 0.5), (1.0, 0.5, -1.0))}, "a follower has follower_entropy, 0"),
        ({"budget": "pooled"}, "needs budget='per_prompt'"),
        ({"num_generations_start": 2}, "needs num_generations_start=None"),
        ({"advantage_weights": "stratified"}, "needs advantage_weights='none'"),
        ({"fp16": True}, "needs fp16=False"),
        (
            {"behaviours": mixed((1.0, 0.75), (1.0, 0.25, 0.0))},
            "the shares 0.25 of followers keep 1 of num_generations = 4 rollouts, which must be",
        ),
        (
            {"behaviours": mixed((1.0, 0.625), (1.0, 0.375, 0.0)), "num_generations": 4},
            "the shares 0.375 of followers keep 1.5 of",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**{"steps_per_generation": 1, "per_device_train_batch_size": 8, **options})


def test_what_only_a_model_shows_is_refused(tiny_folder: str, tmp_path: Path) -> None:
    options = {"objective": "sapg", "behaviours": behaviours()}
    with pytest.raises(ValueError, match=r"follower_entropy needs LoRA.*pass peft_config"):
        build(tiny_folder, tmp_path, **options)
    with pytest.raises(NotImplementedError, match="does not serve LoRA that trains biases"):
        build(tiny_folder, tmp_path, peft_config=lora(bias="lora_only"), **options)

    def given(**arguments: Any) -> PODSTrainer:
        model = get_peft_model(arguments.pop("model"), lora())
        adapters = [w for w in model.parameters() if w.requires_grad]
        optimizer = torch.optim.SGD(adapters, lr=0.1)
        return PODSTrainer(model=model, optimizers=(optimizer, None), **arguments)

    with pytest.raises(NotImplementedError, match="an optimizer that the trainer was given"):
        build(tiny_folder, tmp_path, make=lambda peft_config, **more: given(**more), **options)


def test_a_recipe_without_lora_is_refused_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "{task: arithmetic, model: none/such, use_cpu: true, bf16: false, objective: sapg, "
        "num_generations: 4, behaviours: [{temperature: 1.0, share: 0.5}, "
        "{temperature: 1.0, share: 0.5, follower_entropy: 0.01}], "
        f"per_device_train_batch_size: 8, output_dir: {tmp_path / 'run'}}}"
    )
    assert main(["train", str(recipe)]) == 2
    assert "follower_entropy needs LoRA" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
