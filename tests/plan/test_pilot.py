"""The pilot on a tiny model, its rewards, and rho against gradients taken one by one."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from helpers.tiny import make_model
from podsrl.plan import noise as noise_module
from podsrl.plan import pilot as pilot_module
from podsrl.plan.noise import UNKNOWN, Group, Noise, measure_noise, ratio_interval
from podsrl.plan.pilot import run_pilot, score
from podsrl.plan.tell import notes_on
from podsrl.tasks import load_task


def recipe(folder: str) -> dict:
    return {
        "task": "arithmetic",
        "model": folder,
        "num_rollouts": 4,
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "max_completion_length": 4,
    }


def test_pilot_of_a_tiny_model_is_the_same_twice(tiny_folder):
    one, other = (run_pilot(recipe(tiny_folder), 6, 8) for _ in range(2))
    assert one.rewards_PR.shape == (6, 8) and one.num_prompts == 6
    assert torch.equal(one.rewards_PR, other.rewards_PR)
    assert one.seconds > 0 and one.num_failed == 0


def interrupt_at(when: tuple[str, int], seen: list) -> Callable[[str, int, int], None]:
    def report(what: str, done: int, total: int) -> None:
        seen.append((what, done, total))
        if (what, done) == when:
            raise KeyboardInterrupt

    return report


def test_ctrl_c_keeps_what_was_sampled(tiny_folder, monkeypatch):
    monkeypatch.setattr(pilot_module, "ROWS_AT_A_TIME", 16)
    whole = run_pilot(recipe(tiny_folder), 6, 8)
    seen: list = []
    report = interrupt_at(("rollouts", 32), seen)
    part = run_pilot(recipe(tiny_folder), 6, 8, report=report)
    assert seen == [("rollouts", 16, 48), ("rollouts", 32, 48)]
    assert part.stopped and not whole.stopped
    assert (part.num_prompts, part.noise) == (4, UNKNOWN)
    assert torch.equal(part.rewards_PR, whole.rewards_PR[:4])
    assert any("stopped by Ctrl-C" in note for note in notes_on(part))
    monkeypatch.setattr(pilot_module, "_sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_pilot(recipe(tiny_folder), 6, 8)


def interrupted(*arguments, **options):
    raise KeyboardInterrupt


def test_ctrl_c_keeps_the_gradients_taken():
    def stop_at(count: int) -> Noise:
        report = interrupt_at(("gradients", count), [])
        return measure_noise(
            make_model(),
            groups_of(8, [0.0, 1.0, 1.0, 0.0]),
            temperature=1.0,
            per_token=False,
            report=lambda done, total: report("gradients", done, total),
        )

    assert (stop_at(20).num_groups, stop_at(20).stopped) == (5, True)
    assert stop_at(99).num_groups == 8 and not stop_at(99).stopped
    few = stop_at(8)  # two groups say nothing
    assert (few.num_groups, few.high, few.stopped) == (0, math.inf, True)


def test_a_pilot_of_one_rollout_is_refused(tiny_folder):
    with pytest.raises(ValueError, match=r"6 prompts of 1 rollouts.*--pilot 0"):
        run_pilot(recipe(tiny_folder), 6, 1)


def test_rewards_are_the_weighted_sum_and_nan_where_grading_failed():
    task = load_task("arithmetic")
    task = replace(
        task,
        reward_funcs={
            "length": lambda completions, **_: [float(len(c[0]["content"])) for c in completions],
            "is_answer": lambda completions, answer, **_: [
                None if c[0]["content"] == "?" else float(c[0]["content"] == a)
                for c, a in zip(completions, answer, strict=True)
            ],
        },
        reward_weights={"length": 0.0, "is_answer": 2.0},
    )
    rows = [{"prompt": [], "answer": "12"}, {"prompt": [], "answer": "7"}]
    rewards = score(task, rows, ["12", "1", "7", "77"], [[0]] * 4, None)
    assert rewards.tolist() == [[2.0, 0.0], [2.0, 0.0]]
    weighted = score(task, rows, ["12", "1", "7", "77"], [[0]] * 4, [1.0, 0.5])
    assert weighted.tolist() == [[2.5, 1.0], [1.5, 2.0]]
    task = replace(task, reward_funcs={"is_answer": task.reward_funcs["is_answer"]})
    assert score(task, rows, ["12", "?", "7", "8"], [[0]] * 4, None)[0].isnan().tolist() == [
        False,
        True,
    ]


def groups_of(num: int, rewards: list[float], seed: int = 0) -> list[Group]:
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(3, 40, (count,), generator=generator).tolist()

    return [
        Group(ids(5), [ids(3 + i % 2) for i in range(len(rewards))], torch.tensor(rewards))
        for _ in range(num)
    ]


@pytest.mark.parametrize("per_token", [True, False])
def test_rho_is_that_of_gradients_taken_one_by_one(per_token):
    groups = groups_of(5, [0.0, 1.0, 1.0, 0.0])
    found = measure_noise(make_model(), groups, temperature=0.7, per_token=per_token)
    assert (found.num_groups, found.num_rows, found.where) == (5, 20, "all parameters")
    model = make_model().eval()
    signals, noises = [], []
    for group in groups:
        gradients = []
        for completion in group.completion_ids:
            ids = torch.tensor([group.prompt_ids + completion])
            logits = model(ids).logits[0, 4:-1].double() / 0.7
            chosen = logits.log_softmax(-1)[range(len(completion)), completion]
            total = chosen.mean() if per_token else chosen.sum()
            parts = torch.autograd.grad(total, list(model.parameters()))
            gradients.append(torch.cat([part.flatten() for part in parts]).double())
        # Sorted by reward: wrong 0 and 3, right 1 and 2; every second one: (0, 1) and (3, 2), or
        # another pairing by the tie rule. One right less one wrong each, 1/k1 + 1/k0 = 2.
        kept = torch.tensor([0.0, 1.0, 1.0, 0.0]).argsort(stable=True).tolist()
        one = gradients[kept[2]] - gradients[kept[0]]
        other = gradients[kept[3]] - gradients[kept[1]]
        signals.append(float(one @ other))
        noises.append(float((one - other).square().sum()) / 4)
    expected = max(0.0, sum(signals) / sum(noises))
    assert found.value == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert found.low <= found.value <= found.high


def test_rho_is_found_in_gradients_of_known_signal_and_noise(monkeypatch):
    """d of length 1 and noise of variance 1 / rho, rho = 0.5, in 200 dimensions."""
    generator = torch.Generator().manual_seed(0)
    signal = torch.nn.functional.normalize(torch.randn(200, generator=generator), dim=0)

    def slope(model, parameters, group, rows, temperature, *, per_token):
        rewards = group.rewards_R[rows].double()
        weights = (rewards - rewards.mean()) / (rewards - rewards.mean()).square().sum()
        noise = torch.randn(len(rows), 200, generator=generator) * math.sqrt(2.0 / 200)
        return [weights.float() @ (rewards[:, None].float() * signal + noise)]

    monkeypatch.setattr(noise_module, "_slope", slope)
    for rewards in ([0.0, 1, 1, 0, 0, 1], [0.0, 2, 0.5, 1, 1.5, 0.2]):
        found = measure_noise(
            make_model(),
            groups_of(400, rewards),
            temperature=1.0,
            per_token=False,
            max_groups=400,
        )
        low, high = 3 * found.low, found.high / 3
        assert low < found.value < high < 1.25 * low
        # The interval is four standard errors wide.
        assert abs(found.value - 0.5) < high - low


def test_groups_without_both_outcomes_twice_say_nothing():
    few = groups_of(3, [0.0, 1, 1, 0])
    rare = groups_of(20, [0.0, 1, 0, 0])  # a half has equal rewards
    short = groups_of(20, [0.0, 1.0])
    for groups in ([], few, rare, short, few + rare):
        assert measure_noise(make_model(), groups, temperature=1.0, per_token=False) is UNKNOWN


def test_the_last_block_is_measured_where_memory_is_short(monkeypatch):
    groups = groups_of(6, [0.0, 1.0, 1.0, 0.0])
    monkeypatch.setattr(noise_module, "free_bytes", lambda device: 1000)
    model = make_model()
    found = measure_noise(model, groups, temperature=1.0, per_token=False)
    assert found.where == "the last block" and found.num_groups == 6
    with_gradient = {name for name, p in model.named_parameters() if p.requires_grad}
    assert with_gradient and all(name.startswith("model.layers.1.") for name in with_gradient)


def test_ratio_and_its_interval_by_hand():
    value, low, high = ratio_interval(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
    assert (value, low, high) == (1.0, 0.5, 1.5)
    assert ratio_interval(torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0])) == (0.0, 0.0, 0.0)
