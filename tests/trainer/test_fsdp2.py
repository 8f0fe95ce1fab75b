"""PODSTrainer with weights sharded by FSDP2, in gloo processes on a CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import launch
from helpers.fsdp_processes import CASES
from podsrl import select

TESTS = Path(__file__).resolve().parents[1]
Found = list[dict[str, Any]]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def launched(folder: str, output: Path, num_processes: int, cases: list[str]) -> Found:
    """What fsdp_processes.py wrote on each process."""
    launch("fsdp_processes.py", folder, output, *cases, num_processes=num_processes)
    return [
        torch.load(output / f"found-{rank}.pt", weights_only=False) for rank in range(num_processes)
    ]


@pytest.fixture(scope="module")
def two(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return launched(tiny_folder, tmp_path_factory.mktemp("two"), 2, [*CASES])


@pytest.fixture(scope="module")
def four(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return launched(tiny_folder, tmp_path_factory.mktemp("four"), 4, ["packed", "padded"])


def check_alike(found: Found, case: str) -> None:
    """The model is sharded on all processes, and they keep the same rollouts."""
    for each in found:
        assert each[case]["class"].startswith("FSDP")  # else this would be a test of DDP
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


@pytest.mark.parametrize("case", ["packed", "padded", "whole", "twice", "refill", "lora"])
def test_two_processes_choose_as_one(two: Found, case: str) -> None:
    check_choice(two, case)


def test_four_processes_choose_as_one(four: Found) -> None:
    check_choice(four, "packed")


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


def test_a_sharded_checkpoint_goes_on_to_the_same_weights(two: Found) -> None:
    whole, resumed = two[0]["whole"], two[0]["resumed"]
    assert len(whole["kept"]) == 3 and len(resumed["kept"]) == 1
    assert torch.equal(resumed["kept"][0], whole["kept"][2])
    for name, weight in whole["weights"].items():
        assert torch.equal(resumed["weights"][name], weight), name


def test_a_pooled_budget_and_rounds_are_shared_alike(two: Found) -> None:
    for case in ("pooled", "rounds"):
        check_alike(two, case)
        kept = two[0][case]["kept"]
        assert len(kept) == 2 and all(kept_PN.sum() == 8 for kept_PN in kept)


def test_adapters_alone_are_trained(two: Found) -> None:
    weights = two[0]["lora"]["weights"]
    changed = [name for name, weight in weights.items() if "lora_B" in name and weight.any()]
    assert changed  # they start at 0
