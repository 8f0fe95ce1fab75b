"""The pilot on a tiny model, its rewards, and rho against gradients taken one by one."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from helpers.tiny import make_model
from podsrl.plan import noise as noise_module
from podsrl.plan import pilot as pilot_module
from podsrl.plan.noise import (
    UNKNOWN,
    Group,
    Noise,
    Sketch,
    measure_noise,
    rho_of,
    slope_of,
    tilt_of,
)
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
    for num_prompts in (1, 4):
        found = measure_noise(
            make_model(), groups, temperature=0.7, per_token=per_token, num_prompts=num_prompts
        )
        assert (found.num_groups, found.num_rows, found.where) == (5, 20, "all parameters")
        model = make_model().eval()
        signals, noises, slopes = [], [], []
        for group in groups:
            gradients = []
            for completion in group.completion_ids:
                ids = torch.tensor([group.prompt_ids + completion])
                logits = model(ids).logits[0, 4:-1].double() / 0.7
                chosen = logits.log_softmax(-1)[range(len(completion)), completion]
                total = chosen.mean() if per_token else chosen.sum()
                parts = torch.autograd.grad(total, list(model.parameters()))
                gradients.append(torch.cat([part.flatten() for part in parts]).double())
            wrong, right = torch.stack(gradients)[[0, 3]], torch.stack(gradients)[[1, 2]]
            # k1 = k0 = 2: each mean has half the sample variance of its two.
            error = float(wrong.var(0).sum() + right.var(0).sum()) / 2
            slopes.append(right.mean(0) - wrong.mean(0))
            signals.append(float(slopes[-1].square().sum()) - error)
            noises.append(error)  # (sigma_1^2 + sigma_0^2) / 2, as k1 = k0 = 2
        pairs = [float(x @ y) for x, y in itertools.permutations(slopes, 2)]
        signal = sum(signals) / 5 + (num_prompts - 1) * sum(pairs) / 20
        # A sketch keeps an inner product to 1 % of the lengths.
        assert found.value == pytest.approx(max(0.0, signal / (sum(noises) / 5)), rel=0.1, abs=0.1)
        assert found.low <= found.value <= found.high


def test_a_slope_its_error_and_the_noise_by_hand():
    # Right 3 and 7, wrong 0 and 2: slope 5 - 1 = 4; variances 8 and 2, so 8/2 + 2/2 = 5.
    slope, error, noise = slope_of(
        torch.tensor([[0.0], [2.0], [3.0], [7.0]]).double(), torch.tensor([0, 0, 1, 1]).double()
    )
    assert (slope.item(), error.item()) == pytest.approx((4.0, 5.0))
    assert noise.tolist() == pytest.approx([2.0, 8.0])
    # Right 3, 5 (variance 2), wrong 0, 3, 0 (3): slope 4 - 1 = 3, error 2/2 + 3/3.
    slope, error, noise = slope_of(
        torch.tensor([[3.0], [0.0], [3.0], [5.0], [0.0]]).double(),
        torch.tensor([1, 0, 0, 1, 0]).double(),
    )
    assert (slope.item(), error.item()) == pytest.approx((3.0, 2.0))
    assert noise.tolist() == pytest.approx([3.0, 2.0])
    # Gradients on a line over graded rewards: no noise.
    rewards = torch.tensor([0.0, 0.5, 2.0, 1.0]).double()
    slope, error, noise = slope_of(rewards[:, None] * torch.tensor([2.0, -1.0]) + 7, rewards)
    assert slope.tolist() == pytest.approx([2.0, -1.0])
    assert error.item() < 1e-25 and noise.max() < 1e-25


def test_tilt_by_hand():
    # Wrong 3 and 5, right 1 and 3: 2 of a mean of 3.
    assert tilt_of(torch.tensor([[3.0, 1.0], [5.0, 3.0]])) == pytest.approx(2 / 3)
    assert (tilt_of(torch.tensor([[0.0, 0.0]])), tilt_of(torch.tensor([[1.0, 0.0]]))) == (1.0, 0.0)


def test_rho_of_a_step_by_hand():
    slopes = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double()
    errors, noises = torch.tensor([0.5, 0.5]).double(), torch.tensor([1.0, 1.0]).double()
    # Signal 1 - 0.5 each, product of the two prompts 1.
    assert rho_of(slopes, errors, noises, 1)[0] == pytest.approx(0.5)
    assert rho_of(slopes, errors, noises, 3)[0] == pytest.approx(0.5 + 2)
    # Opposite prompts have less than nothing in common; rho is not below 0.
    opposite = slopes * torch.tensor([[1.0], [-1.0]])
    assert rho_of(opposite, errors, noises, 3)[:2] == (0.0, 0.0)


def drawn_slopes(
    num: int, rewards: list[float], common: float, generator: torch.Generator, tilt: float = 1.0
) -> list[torch.Tensor]:
    """Slopes of groups whose d has length 1, `common` of it shared, and noise of mean 2."""
    size = 200
    shared = torch.nn.functional.normalize(torch.ones(size).double(), dim=0) * math.sqrt(common)
    rewards_R = torch.tensor(rewards).double()
    scatter_R = torch.where(rewards_R > 0, 2.0 * tilt, 2.0 * (2 - tilt)).sqrt()
    found = []
    for _ in range(num):
        own = torch.randn(size, generator=generator).double() * math.sqrt((1 - common) / size)
        noise = torch.randn(len(rewards), size, generator=generator).double()
        noise *= scatter_R[:, None] / math.sqrt(size)
        found.append(slope_of(rewards_R[:, None] * (shared + own) + noise, rewards_R))
    return list(map(torch.stack, zip(*found, strict=True)))


@pytest.mark.parametrize(
    ("rewards", "num_prompts", "common", "tilt", "expected"),
    [
        ([0, 0, 0, 0, 0, 0, 1, 1], 1, 0.3, 0.2, 0.5),  # 1 / 2
        ([0, 0, 0, 0, 0, 0, 1, 1], 4, 0.3, 1.0, 0.95),  # (1 + 3 x 0.3) / 2
        ([0, 2, 0.5, 1, 1.5, 0.2], 4, 1.0, 1.0, 2.0),  # (1 + 3) / 2
        ([0, 1, 1, 0], 1, 0.0, 1.6, 0.5),
    ],
)
def test_rho_of_known_signal_and_noise_is_unbiased_and_covered(
    rewards, num_prompts, common, tilt, expected
):
    generator = torch.Generator().manual_seed(0)
    repeats, tilts = [], []
    for _ in range(150):
        slopes, errors, noises = drawn_slopes(16, rewards, common, generator, tilt)
        repeats.append(rho_of(slopes, errors, noises.mean(1), num_prompts))
        tilts.append(tilt_of(noises))
    values = torch.tensor([value for value, _, _ in repeats])
    error = float(values.std()) / math.sqrt(150)
    # A ratio of means of 16 groups is biased by its denominator, which is known well here.
    assert abs(float(values.mean()) - expected) < 4 * error + 0.02 * expected
    assert sum(tilts) / 150 == pytest.approx(tilt, rel=0.02)
    covered = sum(low <= expected <= high for _, low, high in repeats)
    assert covered >= 0.9 * 150  # 95 % less three times the binomial error


def test_eight_rows_tell_rho_better_than_two_pairs_of_them():
    generator = torch.Generator().manual_seed(1)

    def scatter(rewards: list[float]) -> float:
        values = []
        for _ in range(60):
            slopes, errors, noises = drawn_slopes(16, rewards, 0.0, generator)
            values.append(rho_of(slopes, errors, noises.mean(1), 1)[0])
        return float(torch.tensor(values).std())

    assert scatter([0, 0, 0, 0, 1, 1, 1, 1]) < 0.7 * scatter([0, 0, 1, 1])


def test_a_sketch_keeps_inner_products():
    generator = torch.Generator().manual_seed(2)
    shapes = [(300, 64), (64,), (128, 512)]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    one, other = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))
    other = [x + 0.5 * y for x, y in zip(other, one, strict=True)]
    sketch = Sketch(parameters)
    inner = sum(float((x * y).sum()) for x, y in zip(one, other, strict=True))
    lengths = math.prod(
        math.sqrt(sum(float(x.square().sum()) for x in each)) for each in (one, other)
    )
    assert abs(float(sketch(one) @ sketch(other)) - inner) < 4 * lengths / math.sqrt(8191)
    # It is linear, and what has no gradient counts as 0.
    total = [x + y for x, y in zip(one, other, strict=True)]
    assert torch.allclose(sketch(total), sketch(one) + sketch(other), atol=1e-4)
    assert torch.equal(
        sketch([None, one[1], None]),
        sketch([torch.zeros(shapes[0]), one[1], torch.zeros(shapes[2])]),
    )
    # All of a gradient in one column still spreads over the sketch.
    column = [torch.zeros(shapes[0]), torch.zeros(64), torch.zeros(shapes[2])]
    column[0][:, 7] = 1.0
    assert int((sketch(column) != 0).sum()) > 250


def test_groups_in_which_an_outcome_is_alone_say_nothing():
    few = groups_of(3, [0.0, 1, 1, 0])
    rare = groups_of(20, [0.0, 1, 0, 0])
    short = groups_of(20, [0.0, 1.0, 1.0])
    alike = groups_of(20, [1.0] * 6)
    for groups in ([], few, rare, short, alike, few + rare):
        assert measure_noise(make_model(), groups, temperature=1.0, per_token=False) is UNKNOWN


def test_gradients_end_with_their_time():
    groups = groups_of(9, [0.0, 1.0, 1.0, 0.0])
    found = measure_noise(make_model(), groups, temperature=1.0, per_token=False, max_seconds=0.0)
    assert found.num_groups == 4 and not found.stopped


def test_the_last_block_is_measured_where_memory_is_short(monkeypatch):
    groups = groups_of(6, [0.0, 1.0, 1.0, 0.0])
    monkeypatch.setattr(noise_module, "free_bytes", lambda device: 1000)
    model = make_model()
    found = measure_noise(model, groups, temperature=1.0, per_token=False)
    assert found.where == "the last block" and found.num_groups == 6
    with_gradient = {name for name, p in model.named_parameters() if p.requires_grad}
    assert with_gradient and all(name.startswith("model.layers.1.") for name in with_gradient)
