"""PODSTrainer with weights sharded by FSDP2, in gloo processes on a CPU; with 4, copied, too."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.commands import launch
from helpers.fsdp_processes import CASES
from podsrl import select
from podsrl.trl import sharded

TESTS = Path(__file__).resolve().parents[1]
Found = list[dict[str, Any]]

FOUR = ["pooled", "refill", "rounds", "early"]
FOUR += ["ddp pooled", "ddp refill", "ddp rounds", "ddp whole", "ddp resumed"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def launched(folder: str, output: Path, num_processes: int, cases: list[str]) -> Found:
    """What fsdp_processes.py wrote on each process."""
    output.mkdir()
    launch("fsdp_processes.py", folder, output, *cases, num_processes=num_processes)
    return [
        torch.load(output / f"found-{rank}.pt", weights_only=False) for rank in range(num_processes)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both launches write, each into a folder of its own."""
    return tmp_path_factory.mktemp("fsdp2")


@pytest.fixture(scope="module")
def two(tiny_folder: str, folder: Path) -> Found:
    cases = [case for case in CASES if case != "moved"]
    return launched(tiny_folder, folder / "two", 2, [*cases, "ddp whole", "ddp resumed"])


@pytest.fixture(scope="module")
def four(tiny_folder: str, folder: Path, two: Found) -> Found:
    of_two = folder / "two"
    moved = [f"{how}moved={of_two / f'{how}whole' / 'checkpoint-2'}" for how in ("", "ddp ")]
    return launched(tiny_folder, folder / "four", 4, ["packed", "padded", *moved, *FOUR])


def check_alike(found: Found, case: str) -> None:
    """The model is sharded on all processes, or copied, and they keep the same rollouts."""
    wrapped = "DistributedDataParallel" if case.startswith("ddp ") else "FSDP"
    for each in found:
        assert each[case]["class"].startswith(wrapped)  # else this would be a test of the other
        for mine, others in zip(each[case]["kept"], found[0][case]["kept"], strict=True):
            assert torch.equal(mine, others)


def check_choice(found: Found, case: str) -> None:
    """All keep what one process chooses of these rewards with this seed."""
    check_alike(found, case)
    first = found[0][case]
    assert any(rewards_PN.var(1).max() > 0 for rewards_PN in first["rewards"])
    chosen = zip(first["rewards"], first["kept"], first["seeds"], strict=True)
    for rewards_PN, kept_PN, seed in chosen:
        alone_PM = select(rewards_PN, keep=4, seed=seed)
        assert torch.equal(kept_PN.nonzero()[:, 1].reshape(-1, 4), alone_PM)


@pytest.mark.parametrize(
    "case", ["packed", "padded", "whole", "twice", "refill", "lora", "generate"]
)
def test_two_processes_choose_as_one(two: Found, case: str) -> None:
    check_choice(two, case)


@pytest.mark.parametrize("case", ["packed", "refill", "ddp refill", "ddp whole"])
def test_four_processes_choose_as_one(four: Found, case: str) -> None:
    check_choice(four, case)


def test_our_sampler_samples_and_leaves_the_sharding_as_it_was(two: Found) -> None:
    for each in two:
        untouched = each["generate"]
        assert untouched["generate"] == "as told"
        assert all(found["generate"] is None for found in each.values() if found is not untouched)
        assert set(untouched["reshards"]) == {True, False}  # layers, and what is needed last
        assert each["packed"]["reshards"] == untouched["reshards"]


@pytest.mark.parametrize("how", ["two", "four"])
def test_packed_rows_are_read_and_teach_the_same(how: str, request: pytest.FixtureRequest) -> None:
    found: Found = request.getfixturevalue(how)
    for each in found:
        assert each["packed"]["num_packed"] >= 3 and each["padded"]["num_packed"] == 0
        assert each["packed"]["loss"] == pytest.approx(each["padded"]["loss"], abs=1e-5)
    packed, padded = found[0]["packed"]["weights"], found[0]["padded"]["weights"]
    assert packed and packed.keys() == padded.keys()
    for name, weight in packed.items():
        torch.testing.assert_close(weight, padded[name], rtol=1e-4, atol=1e-5)


def check_goes_on(found: Found, whole: str, resumed: str) -> None:
    whole, resumed = found[0][whole], found[0][resumed]
    assert len(whole["kept"]) == 3 and len(resumed["kept"]) == 1
    assert torch.equal(resumed["kept"][0], whole["kept"][2])
    for name, weight in whole["weights"].items():
        assert torch.equal(resumed["weights"][name], weight), name


def test_a_sharded_checkpoint_goes_on_to_the_same_weights(two: Found) -> None:
    check_goes_on(two, "whole", "resumed")


def test_a_checkpoint_of_four_processes_goes_on_to_the_same_weights(four: Found) -> None:
    check_goes_on(four, "ddp whole", "ddp resumed")


@pytest.mark.parametrize("how", ["", "ddp "])
def test_four_processes_go_on_from_the_weights_of_two(two: Found, four: Found, how: str) -> None:
    """What is drawn from there on is other: random states are those of two processes."""
    check_alike(four, f"{how}moved")
    moved, resumed = four[0][f"{how}moved"], two[0][f"{how}resumed"]
    assert len(moved["kept"]) == 1
    assert moved["start"] and moved["start"].keys() == resumed["start"].keys()
    for name, weight in moved["start"].items():
        assert torch.equal(weight, resumed["start"][name]), name


@pytest.mark.parametrize("case", ["pooled", "rounds"])
@pytest.mark.parametrize(("how", "copied"), [("two", ""), ("four", ""), ("four", "ddp ")])
def test_a_pooled_budget_and_rounds_are_shared_alike(
    how: str, copied: str, case: str, request: pytest.FixtureRequest
) -> None:
    found: Found = request.getfixturevalue(how)
    case = copied + case
    check_alike(found, case)
    kept = found[0][case]["kept"]
    assert len(kept) == 2 and all(kept_PN.sum() == 4 * len(found) for kept_PN in kept)


@pytest.mark.parametrize("how", ["two", "four"])
def test_sampling_stops_early(how: str, request: pytest.FixtureRequest) -> None:
    """Rollouts that were stopped have no reward; of the others the best variance is kept."""
    found: Found = request.getfixturevalue(how)
    check_alike(found, "early")
    first = found[0]["early"]
    assert any(rewards_PN.isnan().any() for rewards_PN in first["rewards"])
    for rewards_PN, kept_PN, seed in zip(
        first["rewards"], first["kept"], first["seeds"], strict=True
    ):
        alone_PM = select(rewards_PN, keep=4, seed=seed)
        assert torch.equal(kept_PN.nonzero()[:, 1].reshape(-1, 4), alone_PM)


def test_adapters_alone_are_trained(two: Found) -> None:
    weights = two[0]["lora"]["weights"]
    changed = [name for name, weight in weights.items() if "lora_B" in name and weight.any()]
    assert changed  # they start at 0


@pytest.mark.parametrize(
    ("version", "precision", "memory", "told"),
    [
        (2, "bf16", 4_000_000, None),  # a million weights of 2 bytes are half of it
        (2, "bf16", 3_999_999, "more than 50%"),
        (2, "no", 4_000_000, "more than 50%"),
        (1, "bf16", 4_000_000, "version 1"),
    ],
)
def test_weights_too_large_for_a_device_are_not_gathered(
    version: int, precision: str, memory: int, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    host: Any = SimpleNamespace(
        _dist=SimpleNamespace(fsdp_version=version),
        accelerator=SimpleNamespace(mixed_precision=precision, device="cpu"),
        model=torch.nn.Linear(1000, 1000, bias=False),
    )
    monkeypatch.setattr(sharded, "_memory_bytes", lambda _: memory)
    reason = sharded.why_not_whole(host)
    assert reason is None if told is None else told in str(reason)
