"""Dead rows of several processes: live ones are dealt out, and what is learned stays the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import launch
from helpers.dead_row_processes import CASES
from podsrl import PODSConfig
from podsrl.trl.checks import rows_may_change_process

TESTS = Path(__file__).resolve().parents[1]
Found = list[dict[str, Any]]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def launched(folder: str, output: Path, num_processes: int, cases: list[str]) -> Found:
    """What dead_row_processes.py wrote on each gloo process."""
    launch("dead_row_processes.py", folder, output, *cases, num_processes=num_processes)
    return [torch.load(output / f"found-{rank}.pt") for rank in range(num_processes)]


@pytest.fixture(scope="module")
def two(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return launched(tiny_folder, tmp_path_factory.mktemp("two"), 2, [*CASES][:-1])


@pytest.fixture(scope="module")
def four(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return launched(tiny_folder, tmp_path_factory.mktemp("four"), 4, ["dapo", "none dead of four"])


def check_same(found: Found, case: str) -> None:
    """Loss, gradients, weights and the optimizer's state to rounding, alike on all processes."""
    for each in found:
        off, on = each[case]["off"], each[case]["on"]
        assert on["loss"] == pytest.approx(off["loss"], abs=1e-5)
        largest = max(gradient.abs().max() for gradient in off["gradients"])
        assert largest > 1e-3
        for mine, theirs in zip(on["gradients"], off["gradients"], strict=True):
            assert (mine - theirs).abs().max() < 1e-4 * largest
        assert (on["weights"] - off["weights"]).abs().max() < 1e-4
        if off["momenta"] is not None:
            torch.testing.assert_close(on["momenta"], off["momenta"], rtol=1e-4, atol=1e-7)
        assert torch.equal(on["weights"], found[0][case]["on"]["weights"])


def live(found: Found, case: str, how: str) -> list[tuple[int, ...]]:
    """Live rows of the processes, one entry for each micro-batch."""
    return list(zip(*(each[case][how]["live"] for each in found), strict=True))


def by_step(rows: list[tuple[int, ...]], num_batches: int) -> list[list[int]]:
    """Live rows of the processes in each step, of those of its micro-batches."""
    steps = [rows[first : first + num_batches] for first in range(0, len(rows), num_batches)]
    return [[sum(process) for process in zip(*step, strict=True)] for step in steps]


@pytest.mark.parametrize("case", [*CASES][:-1])
def test_two_processes_learn_the_same(two: Found, case: str) -> None:
    check_same(two, case)
    assert {width for each in two for width in each[case]["on"]["widths"]} == {4}


@pytest.mark.parametrize("case", ["dapo", "grpo", "padded", "twice"])
def test_live_rows_are_dealt_over_two_processes(two: Found, case: str) -> None:
    """Of one prompt a process one is dead in some step: then each process has 2 of its 4 rows.

    Tokens are balanced and not rows: of three live prompts in four micro-batches none is torn, as
    its prompt of 9 tokens would be read twice.
    """
    num_batches = CASES[case].get("gradient_accumulation_steps", 1)
    moved = 0
    for before, after in zip(
        by_step(live(two, case, "off"), num_batches),
        by_step(live(two, case, "on"), num_batches),
        strict=True,
    ):
        assert sum(before) == sum(after)
        assert abs(after[0] - after[1]) <= abs(before[0] - before[1]), (before, after)
        assert num_batches > 1 or after[0] == after[1]
        moved += before != after
    assert moved  # or nothing was tested


def test_a_process_without_a_live_row_joins_the_backward_pass(two: Found) -> None:
    """bnpo divides by each micro-batch's tokens, so that rows stay where they are."""
    alone = [rows for rows in live(two, "bnpo", "on") if 0 in rows and max(rows) == 4]
    assert alone and live(two, "bnpo", "on") == live(two, "bnpo", "off")


def test_where_all_rows_of_all_processes_are_dead_momentum_and_decay_go_on(two: Found) -> None:
    """And all processes stop in the same step, as settings ask for."""
    assert [each["all dead"][how]["num_steps"] for each in two for how in ("off", "on")] == [4] * 4
    assert live(two, "all dead", "on")[1:] == [(0, 0)] * 3
    for each in two:
        gradients = each["all dead"]["on"]["gradients"]
        assert gradients[0].abs().max() > 0 and not any(g.any() for g in gradients[1:])
        assert each["all dead"]["on"]["momenta"].abs().max() > 0


@pytest.mark.parametrize(
    ("how_many", "case"), [("two", "none dead"), ("four", "none dead of four")]
)
def test_where_nothing_is_dead_every_bit_is_the_same(
    how_many: str, case: str, request: pytest.FixtureRequest
) -> None:
    for each in request.getfixturevalue(how_many):
        off, on = each[case]["off"], each[case]["on"]
        assert torch.equal(on["weights"], off["weights"]) and on["loss"] == off["loss"]
        assert min(on["live"]) > 0


def test_four_processes_learn_the_same_and_share_the_work(four: Found) -> None:
    check_same(four, "dapo")
    for before, after in zip(live(four, "dapo", "off"), live(four, "dapo", "on"), strict=True):
        assert sum(before) == sum(after)
        # 4 live rows are 1 each, 8 are 2 each, 12 are 3 each, where that is lighter than 4.
        assert max(after) <= max(before)
    assert any(
        max(after) < max(before)
        for before, after in zip(live(four, "dapo", "off"), live(four, "dapo", "on"), strict=True)
    )


@pytest.mark.parametrize("how_many", ["two", "four"])
def test_exchanged_rows_are_those_that_python_s_objects_give(
    how_many: str, request: pytest.FixtureRequest
) -> None:
    for each in request.getfixturevalue(how_many):
        assert each["exchanged"] == {"tokens": True, "numbers": True, "values": True}


@pytest.mark.parametrize(
    ("options", "may"),
    [
        ({}, True),
        ({"loss_type": "bnpo"}, False),
        ({"objective": "sapg"}, True),
        ({"objective": "rebel", "per_device_train_batch_size": 8}, False),
    ],
)
def test_rows_change_process_where_it_is_one_to_the_loss(
    options: dict[str, Any], may: bool
) -> None:
    settings = {"num_generations": 4, "use_cpu": True, "bf16": False, **options}
    assert rows_may_change_process(PODSConfig("unused", **settings)) is may
