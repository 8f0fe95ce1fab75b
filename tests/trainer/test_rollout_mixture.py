"""Rollouts that several models write: what reaches the loss, what is logged, what is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from helpers.harness import build, logged, recorded, spy
from helpers.heads import about
from helpers.tiny import even_reward, make_tokenizer, save_tiny, text_of
from podsrl import PODSConfig, PODSTrainer
from podsrl.core.objectives import OBJECTIVES
from podsrl.probe.head import FORMAT, model_digest
from podsrl.runs.settings import SettingsParser, parse_settings
from podsrl.sampling.mixture import AGREED
from podsrl.trl.mixture_checks import POLICY

Told = list[dict[str, str]]


def write_head(folder: str, name: str, *, bias: float = 0.0, **changes: Any) -> str:
    """A head of the model in the folder; a bias of 30 or -30 makes it 1 or 0 of any state."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    told = about(model=folder, model_digest=model_digest(model), layers=[1], at="prefix")
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(32, generator=generator) * (bias == 0)
    path = f"{folder}/{name}.safetensors"
    metadata = {"format": FORMAT, "about": json.dumps(asdict(replace(told, **changes)))}
    save_file({"weight": weight, "bias": torch.tensor(bias)}, path, metadata=metadata)
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another model of the tiny one's tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("other"), seed=5)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("policy"))


def mixture(policy: str, other: str, *, bias: float = 0.0) -> Told:
    """bias: makes the policy's proposals worth more than any other's; 0: states decide."""
    return [
        {"model": other, "head": write_head(other, f"other{bias}", bias=-bias)},
        {"model": POLICY, "head": write_head(policy, f"policy{bias}", bias=bias)},
    ]


def weights(trainer: PODSTrainer) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])


def test_a_mixture_that_always_takes_the_policys_token_changes_no_bit(
    policy: str, other: str, tmp_path: Path
) -> None:
    """Whatever the other model is, over a whole training in which the policy moves."""
    found = []
    for told in (None, mixture(policy, other, bias=30.0)):
        trainer = build(policy, tmp_path, objective="vargrad", rollout_mixture=told)
        trainer.train()
        found.append(weights(trainer))
    assert torch.equal(*found)
    assert logged(trainer, "mixture/frac_tokens_other") == [0.0] * 3
    assert all(share < 1 for share in logged(trainer, "mixture/frac_tokens_agreed"))
    assert logged(trainer, "mixture/frac_kept") == [1.0] * 3
    assert not logged(trainer, "mixture/frac_success_of_policy")


def test_what_is_kept_and_trained_is_what_was_written(
    policy: str, other: str, tmp_path: Path
) -> None:
    """Half of each group of 8, its last places, in every batch, with groups that were refilled."""
    options = {"objective": "agro", "rollout_mixture_share": 0.5, "refill_constant_groups": 1}
    trainer = build(
        policy,
        tmp_path,
        rewards=[even_reward],
        rollout_mixture=mixture(policy, other),
        **options,
    )
    written, recorder = spy(trainer.prompt_once, "_write"), recorded(trainer)
    outputs = spy(trainer, "_generate_and_score_completions")
    trainer.train()
    assert len(recorder.batches) == len(outputs) == 3
    tokenizer, lines = make_tokenizer(), trainer.state.log_history
    for batch, output, line in zip(recorder.batches, outputs, lines, strict=False):
        texts_PN = [batch.completions[start : start + 8] for start in (0, 8)]
        told = {
            tokenizer.decode(each.token_ids, skip_special_tokens=True)
            for call in written
            for each in call
        }
        for texts in texts_PN:
            assert {text_of(text) for text in texts[4:]} <= told
        kept_PN = batch.selection.kept_PN
        ids_B = output["completion_ids"]
        kept_texts = tokenizer.batch_decode(ids_B, skip_special_tokens=True)
        expected = [
            text_of(texts[place])
            for texts, kept_N in zip(texts_PN, kept_PN, strict=True)
            for place in kept_N.nonzero().flatten().tolist()
        ]
        assert sorted(kept_texts) == sorted(expected)
        success_PN = batch.selection.rewards_PN > 0
        assert line["mixture/frac_success"] == success_PN[:, 4:].double().mean()
        assert line["mixture/frac_success_of_policy"] == success_PN[:, :4].double().mean()
        assert line["mixture/frac_kept"] == kept_PN[:, 4:].sum() / 8
    assert len(written) > 3  # some batch was refilled
    owners = [owner for call in written for each in call for owner in each.chosen]
    shares = (owners.count(AGREED) / len(owners), owners.count(0) / len(owners))
    # Model 0 is the other one. Shares of batches of different numbers of tokens, so about.
    for name, share in zip(("agreed", "other"), shares, strict=True):
        found = logged(trainer, f"mixture/frac_tokens_{name}")
        assert 0 < min(found) <= share <= max(found) < 1
    assert trainer.prompt_once.written == []


def test_resumed_to_the_bit(policy: str, other: str, tmp_path: Path) -> None:
    found = []
    for resume in (False, True):
        trainer = build(
            policy,
            tmp_path / "run",
            objective="dpo",
            rollout_mixture=mixture(policy, other),
            rollout_mixture_share=0.25,
            save_strategy="steps",
            save_steps=2,
        )
        trainer.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2") if resume else None)
        found.append((weights(trainer), logged(trainer, "mixture/frac_tokens_other")[-1]))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def test_the_reference_samples_alone(policy: str, other: str, tmp_path: Path) -> None:
    told = mixture(policy, other)
    options = {"objective": "astar_po", "num_reference_rollouts": 5, "max_steps": 1}
    trainer = build(policy, tmp_path, rollout_mixture=told, **options)
    written, sampled = spy(trainer.prompt_once, "_write"), spy(trainer.prompt_once, "policy")
    trainer.train()
    # two prompts of 8 rollouts by the mixture, then 5 of the reference for each
    assert [len(call) for call in written] == [16]
    assert [len(ids) for ids, _ in sampled] == [10]


TOLD = [{"model": POLICY, "head": "h"}, {"model": "m", "head": "g"}]


def config(**options: Any) -> PODSConfig:
    settings = {"num_generations": 4, "use_cpu": True, "bf16": False, "objective": "agro"}
    return PODSConfig("unused", **{**settings, "rollout_mixture": TOLD, **options})


READ_NO_PROBABILITY = {
    "agro", "astar_po", "qrpo", "vargrad", "subtb", "dpo", "tdpo1", "tdpo2", "bmc", "rbrm",
}  # fmt: skip


@pytest.mark.parametrize("objective", ["grpo", *OBJECTIVES])
def test_objectives_that_read_how_likely_a_rollout_was_are_refused(objective: str) -> None:
    if objective in READ_NO_PROBABILITY:
        found = config(objective=objective)
        assert found.rollout_mixture == TOLD and found.rollout_mixture_share == 1.0
        return
    with pytest.raises(ValueError, match=f"objective='{objective}' needs to know how likely.*agro"):
        config(objective=objective)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"early_stop": True}, "rollout_mixture needs early_stop=False"),
        ({"sampling_rounds": 2, "num_rollouts": 8}, "rollout_mixture needs sampling_rounds=0"),
        ({"use_vllm": True}, "rollout_mixture needs use_vllm=False"),
        ({"fast_sampling": False}, "rollout_mixture needs fast_sampling=True"),
        (
            {"use_transformers_continuous_batching": True},
            "rollout_mixture needs use_transformers_continuous_batching=False",
        ),
        (
            {"behaviours": [{"temperature": 1.3, "share": 1.0}]},
            "rollout_mixture needs behaviours left out",
        ),
        ({"objective": "bmc", "bmc_bridges": 2}, "rollout_mixture needs bmc_bridges left out"),
        ({"rollout_mixture": "both"}, "rollout_mixture is 'both', no JSON: write"),
        ({"rollout_mixture": [{"model": "m"}]}, "give a list of mappings with model and head"),
        ({"rollout_mixture": [{"model": "m", "head": ""}]}, "give a list of mappings"),
        ({"rollout_mixture": TOLD[:1]}, "has 1 models, 1 of them the policy"),
        ({"rollout_mixture": TOLD[1:] * 2}, "has 2 models, 0 of them the policy: give the policy"),
        # n = 8, the default for m = 4
        ({"rollout_mixture_share": 0.3}, r"is 0.3: of num_rollouts = 8 .* 0.125 \(1\) to 1 \(8\)"),
        ({"rollout_mixture_share": 0.0}, "rollout_mixture_share is 0.0"),
        ({"rollout_mixture_share": 1.5}, "rollout_mixture_share is 1.5"),
        (
            {"rollout_mixture": None, "rollout_mixture_share": 0.5},
            "has no effect without rollout_mixture",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], words: str) -> None:
    options = {"steps_per_generation": 1, "reward_bounds": [0.0, 1.0], **options}
    with pytest.raises(ValueError, match=words):
        config(**options)


def test_what_only_a_trainer_shows_is_refused(policy: str, other: str, tmp_path: Path) -> None:
    told = mixture(policy, other)

    def trainer(*, of: Told = told, **options: Any) -> None:
        build(policy, tmp_path, objective="agro", rollout_mixture=of, **options)

    with pytest.raises(NotImplementedError, match="does not serve what our sampler does not"):
        trainer(generation_kwargs={"no_repeat_ngram_size": 2})
    with pytest.raises(NotImplementedError, match="one answer to one prompt, but rollout_func"):
        trainer(make=lambda **args: PODSTrainer(rollout_func=lambda prompts, trainer: {}, **args))
    with pytest.raises(ValueError, match="and this model is another"):
        trainer(of=[told[1], {**told[0], "head": told[1]["head"]}])
    with pytest.raises(ValueError, match="there is no head nowhere"):
        trainer(of=[told[1], {**told[0], "head": "nowhere"}])
    within = write_head(other, "within", within_low=0.5)
    with pytest.raises(ValueError, match="not shown to tell right from wrong among answers"):
        trainer(of=[told[1], {**told[0], "head": within}])
    changes = (
        ("its 46 tokens are not the policy's 45", lambda each: each.add_tokens(["plus"])),
        ("its answers end with another", lambda each: setattr(each, "eos_token", "<bos>")),
        ("its chat template makes", lambda each: setattr(each, "chat_template", "say {{ 1 }}")),
    )
    for words, change in changes:
        tokenizer = make_tokenizer()
        change(tokenizer)
        tokenizer.save_pretrained(other)
        with pytest.raises(ValueError, match=words):
            trainer()
    make_tokenizer().save_pretrained(other)


def test_a_recipe_and_a_flag_say_the_same() -> None:
    recipe = {"objective": "agro", "num_generations": 4, "rollout_mixture": TOLD}
    _, by_recipe, _ = parse_settings(recipe)
    without = {key: value for key, value in recipe.items() if key != "rollout_mixture"}
    _, by_flag, _ = SettingsParser().parse(["--rollout_mixture", json.dumps(TOLD)], without)
    assert by_recipe.rollout_mixture == by_flag.rollout_mixture == TOLD
    assert by_flag.fast_sampling
