"""Groups that several policies sample: what reaches the loss, what is logged, what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import podsrl.trl.sampling
from helpers.harness import build, logged, recorded
from helpers.tiny import even_reward
from podsrl import PODSConfig, PODSTrainer
from podsrl.runs.settings import SettingsParser, parse_settings
from podsrl.trl.behaviours import Behaviours
from podsrl.trl.behaviours_checks import nearest_counts, read_behaviours
from podsrl.trl.sampling import Sampler

HOT = [{"temperature": 1.0, "share": 0.5}, {"temperature": 1.3, "share": 0.5}]
EQUAL = [{"temperature": 1.0, "share": 0.25}, {"temperature": 1.0, "share": 0.75}]


def weights(trainer: PODSTrainer) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])


@pytest.mark.parametrize("objective", ["grpo", "sapg"])
def test_equal_behaviours_are_none_to_the_bit(
    objective: str, tiny_folder: str, tmp_path: Path
) -> None:
    found = []
    for behaviours in (None, EQUAL):
        trainer = build(
            tiny_folder, tmp_path, objective=objective, behaviours=behaviours, max_steps=2
        )
        trainer.train()
        found.append(weights(trainer))
        key = "behaviours/1/frac_kept"
        assert len(logged(trainer, key)) == (2 if behaviours else 0)
    assert torch.equal(*found)


def test_log_probs_of_the_behaviour_reach_the_loss(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of the weights that sampled at the temperature that sampled.

    Old log-probs are computed, as a batch is used for two steps; some groups are refilled; dead
    rows are left out.
    """
    trainer = build(
        tiny_folder,
        tmp_path,
        objective="sapg",
        behaviours=HOT,
        rewards=[even_reward],
        max_steps=4,
        num_iterations=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        refill_constant_groups=1,
        advantage_from="all",
    )
    seen: list[Any] = []
    kept_batch, weights_then = trainer.objective_step._kept_batch, {}

    def spy(model: Any, inputs: dict[str, Any]) -> Any:
        batch, entropies = kept_batch(model, inputs)
        seen.append((trainer.state.global_step, inputs, batch))
        return batch, entropies

    samplers = trainer.behaviours.samplers

    def remember(num_rows: int) -> list[Sampler]:
        weights_then[trainer.state.global_step] = {
            name: value.clone() for name, value in trainer.model.state_dict().items()
        }
        return samplers(num_rows)

    monkeypatch.setattr(trainer.objective_step, "_kept_batch", spy)
    monkeypatch.setattr(trainer.behaviours, "samplers", remember)
    recorder = recorded(trainer)
    trainer.train()
    assert len(seen) == 8 and set(weights_then) == {0, 2}
    num_hot = 0
    for step, inputs, batch in seen:
        trainer.model.load_state_dict(weights_then[step // 2 * 2])
        hot_B = batch.extras["behaviour"][:, 1] == 1
        assert torch.equal(batch.extras["behaviour"].sum(1), torch.ones(len(hot_B)))
        found_BT = batch.extras["behaviour_log_probs"]
        assert found_BT[~hot_B][batch.keep_BT[~hot_B]].isnan().all()
        expected_BT = log_probs_at(trainer.model, inputs, temperature=1.3)
        keep_BT = batch.keep_BT & hot_B[:, None]
        torch.testing.assert_close(found_BT[keep_BT], expected_BT[keep_BT], rtol=1e-4, atol=1e-5)
        num_hot += int(hot_B.sum())
    assert 8 < num_hot < 24  # of 32 rows, each batch's counted twice
    for key in ("mu", "frac_mu_capped", "num_tokens/1", "mu_frac_effective/1"):
        assert len(logged(trainer, f"objective/{key}")) == 4
    assert logged(trainer, "objective/mu_frac_effective/0") == [1.0] * 4
    assert all(0.3 < share < 1 for share in logged(trainer, "objective/mu_frac_effective/1"))
    for place, selection in enumerate(recorder.selections):
        success_PN = selection.rewards_PN > 0
        line = trainer.state.log_history[2 * place]
        assert line["behaviours/0/frac_success"] == success_PN[:, :4].double().mean()
        assert line["behaviours/1/frac_success"] == success_PN[:, 4:].double().mean()
        assert line["behaviours/1/frac_kept"] == selection.kept_PN[:, 4:].sum() / 8
        assert line["behaviours/0/frac_kept"] + line["behaviours/1/frac_kept"] == 1
        assert line["behaviours/frac_groups_with_success"] == success_PN.any(1).double().mean()


def log_probs_at(model: Any, inputs: dict[str, Any], *, temperature: float) -> Tensor:
    """By the model's plain forward pass, without TRL."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=places).logits
    log_probs = (logits[:, :-1] / temperature).log_softmax(-1)
    found = log_probs.gather(2, ids[:, 1:, None]).squeeze(2)
    return found[:, -inputs["completion_ids"].shape[1] :]


def test_the_reference_samples_at_its_own_temperature(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = podsrl.trl.sampling.sample

    def spy(model: Any, prompts: list[Any], num: int, **options: Any) -> Any:
        who = "reference" if model is trainer.ref_model else "policy"
        calls.append((who, options["settings"].temperature, len(prompts) * num))
        return original(model, prompts, num, **options)

    monkeypatch.setattr(podsrl.trl.sampling, "sample", spy)
    options = {"objective": "astar_po", "num_reference_rollouts": 5, "max_steps": 1}
    trainer = build(tiny_folder, tmp_path, behaviours=HOT, **options)
    trainer.train()
    # two prompts of 8 rollouts, half of them hot; 5 of the reference for each
    assert calls == [("policy", 1.0, 8), ("policy", 1.3, 8), ("reference", 1.0, 10)]


def test_places_of_a_group_that_straddles_processes() -> None:
    """n = 4, 6 rows a process: the second begins at place 2 of the second group."""
    args = SimpleNamespace(behaviours=HOT, num_rollouts=4, temperature=1.0)
    found: list[Sampler] = []
    for process in range(2):
        host = SimpleNamespace(args=args, accelerator=SimpleNamespace(process_index=process))
        found += Behaviours(host).samplers(6) or []  # type: ignore[arg-type]
    assert found == [Sampler(each) for each in (1.0, 1.0, 1.3, 1.3)] * 3
    rows_B = torch.tensor([0, 1, 2, 5, 7])
    behaviour_BK = Behaviours(host).of_rows(rows_B)  # type: ignore[arg-type]
    assert behaviour_BK.argmax(1).tolist() == [0, 0, 1, 0, 1]


def test_rows_of_the_policy_alone_have_log_probs_that_say_so(
    tiny_folder: str, tmp_path: Path
) -> None:
    """Another process may have the hot rows of the group, and all exchange the same columns."""
    trainer = build(tiny_folder, tmp_path, objective="sapg", behaviours=HOT)
    ids, log_probs = trainer.prompt_once([[5, 6]] * 2, None, [Sampler(1.0)] * 2)
    assert [len(each) for each in log_probs] == [len(each) for each in ids]
    assert torch.tensor(log_probs[0] + log_probs[1]).isnan().all()
    assert trainer.prompt_once([[5, 6]] * 2, None, None)[1] is None


def config(**options: Any) -> PODSConfig:
    settings = {"num_generations": 4, "use_cpu": True, "bf16": False, "objective": "sapg"}
    return PODSConfig("unused", **{**settings, "behaviours": HOT, **options})


@pytest.mark.parametrize("objective", ["sapg", "agro", "vargrad", "astar_po", "qrpo", "dpo", "bmc"])
def test_objectives_that_take_any_policy(objective: str) -> None:
    assert config(objective=objective).behaviours == HOT


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "grpo"}, "objective='grpo' takes every rollout for one of the policy"),
        ({"objective": "rebel"}, "objective='rebel' takes every rollout for one of the policy"),
        ({"objective": "veripo"}, "objective='veripo' takes every rollout"),
        ({"temperature": 1.3, "objective": "grpo"}, "at temperature 1.3, but behaviours samples"),
        ({"early_stop": True}, "behaviours needs early_stop=False"),
        ({"sampling_rounds": 2, "num_rollouts": 8}, "behaviours needs sampling_rounds=0"),
        ({"use_vllm": True}, "behaviours needs use_vllm=False"),
        ({"fast_sampling": False}, "behaviours needs fast_sampling=True, as generate does not say"),
        (
            {"use_transformers_continuous_batching": True},
            "behaviours needs use_transformers_continuous_batching=False",
        ),
        ({"top_k": 5}, "behaviours needs top_k=0, as no weight"),
        ({"top_p": 0.9}, "behaviours needs top_p=1, as no weight"),
        ({"min_p": 0.1}, "behaviours needs min_p=None"),
        ({"repetition_penalty": 1.1}, "behaviours needs repetition_penalty=1"),
        ({"generation_kwargs": {"top_k": 5}}, "behaviours needs generation_kwargs without"),
        ({"advantage": "krpo"}, "behaviours needs advantage other than 'krpo'"),
        ({"behaviours": "hot"}, "behaviours is 'hot', no JSON: write"),
        ({"behaviours": []}, "give a list of mappings with temperature and share"),
        ({"behaviours": [{"temperature": 1.0}]}, "give a list of mappings"),
        ({"behaviours": [{"temperature": 0, "share": 1}]}, "numbers above 0"),
        ({"behaviours": [{"temperature": True, "share": 1}]}, "numbers above 0"),
        (
            {"behaviours": [{"temperature": 1, "share": 0.5}, {"temperature": 2, "share": 0.4}]},
            "the shares of behaviours are 0.5, 0.4, which make 0.9: they must make 1",
        ),
        (
            {"behaviours": [{"temperature": 1, "share": 0.3}, {"temperature": 2, "share": 0.7}]},
            # n = 8, the default for m = 4
            r"0.3, 0.7 of num_rollouts = 8 are 2.4, 5.6 rollouts, which must be whole and at "
            r"least 1: the nearest shares that do are 0.25 \(2\), 0.75 \(6\)",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], words: str) -> None:
    options = {"steps_per_generation": 1, "reward_bounds": [0.0, 1.0], **options}
    with pytest.raises(ValueError, match=words):
        config(**options)


def test_what_only_a_trainer_shows_is_refused(tiny_folder: str, tmp_path: Path) -> None:
    options = {"objective": "sapg", "behaviours": HOT}
    with pytest.raises(NotImplementedError, match=r"our own sampling.*no_repeat_ngram_size=2"):
        build(tiny_folder, tmp_path, generation_kwargs={"no_repeat_ngram_size": 2}, **options)
    with pytest.raises(NotImplementedError, match="rollout_func samples further turns"):
        build(
            tiny_folder,
            tmp_path,
            make=lambda **given: PODSTrainer(rollout_func=lambda prompts, trainer: {}, **given),
            **options,
        )


@pytest.mark.parametrize(
    ("shares", "num_rollouts", "expected"),
    [
        ([0.3, 0.7], 8, [2, 6]),
        ([1 / 3, 1 / 3, 1 / 3], 7, [3, 2, 2]),
        ([0.01, 0.99], 8, [1, 7]),  # each at least one, at the cost of who has more
        ([0.2, 0.8], 1, None),
    ],
)
def test_nearest_whole_rollouts(
    shares: list[float], num_rollouts: int, expected: list[int] | None
) -> None:
    assert nearest_counts(shares, num_rollouts) == expected


def test_thirds_written_with_few_digits_are_whole() -> None:
    thirds = [{"temperature": 1 + k / 10, "share": 0.3333} for k in range(3)]
    assert len(config(num_rollouts=12, behaviours=thirds).behaviours) == 3


def test_a_recipe_and_a_flag_say_the_same() -> None:
    recipe = {"objective": "sapg", "num_generations": 4, "behaviours": HOT}
    _, by_recipe, _ = parse_settings(recipe)
    without = {key: value for key, value in recipe.items() if key != "behaviours"}
    _, by_flag, _ = SettingsParser().parse(["--behaviours", json.dumps(HOT)], without)
    assert by_recipe.behaviours == by_flag.behaviours == read_behaviours(HOT) == HOT
    assert by_flag.fast_sampling
