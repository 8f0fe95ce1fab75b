"""How many rollouts are kept as training goes on."""

from types import SimpleNamespace

from podsrl.core.schedule import kept_at, num_kept_now, smallest_unit


def test_every_number_holds_for_an_equal_share():
    kept = [kept_at(step, 12, start=2, end=8, unit=2) for step in range(12)]
    assert kept == [2, 2, 2, 4, 4, 4, 6, 6, 6, 8, 8, 8]


def test_uneven_shares_and_the_step_after_the_last():
    assert [kept_at(step, 5, start=2, end=4) for step in range(6)] == [2, 2, 3, 3, 4, 4]
    assert kept_at(0, 0, start=2, end=4) == 2
    assert [kept_at(step, 3, start=4, end=4) for step in range(3)] == [4, 4, 4]


def test_unit_keeps_micro_batches_whole():
    # 8 kept, 2 rows: 2 k / 8 whole means k = 4 or 8; 12 rows: 12 k / 8 whole means k even.
    assert (smallest_unit(8, 2), smallest_unit(8, 12), smallest_unit(8, 16)) == (4, 2, 1)
    assert smallest_unit(4, 1) == 4


def test_the_number_grows_over_the_steps_that_are_named():
    args = SimpleNamespace(
        num_generations_start=2,
        num_generations=4,
        num_generations_steps=4,
        per_device_train_batch_size=4,
    )
    states = [SimpleNamespace(global_step=step, max_steps=1000) for step in (0, 1, 2, 3, 4, 500)]
    assert [num_kept_now(args, state) for state in states] == [2, 2, 3, 4, 4, 4]
    args.num_generations_steps = None  # 1000 steps: 2, 3, 4 for a third of them each
    assert [num_kept_now(args, state) for state in states] == [2, 2, 2, 2, 2, 3]
