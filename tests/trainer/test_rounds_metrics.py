"""What rounds took by difficulty, on literal groups."""

import torch

from podsrl.trl.rounds_metrics import count_by_difficulty, difficulties, rounds_metrics

NAN = torch.nan
# Successes of 4: 0, 1, 3, 4, 1 of 3 scored, none scored. The second function says nothing of it.
FIRST_ROUND = torch.tensor(
    [[0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [NAN, 1, 0, 0], [NAN] * 4]
)
REWARDS_PSF = torch.stack([FIRST_ROUND, torch.ones(6, 4)], dim=-1)


def test_difficulty_is_the_share_of_successes_in_the_first_round() -> None:
    # 1/4 and 3/4 are in the middle, and 1/3 is.
    expected = ["hard", "middle", "middle", "easy", "middle", None]
    assert difficulties(REWARDS_PSF) == expected
    # Whatever is above 0 is a success, and order says nothing.
    assert difficulties(REWARDS_PSF * 0.1) == expected
    assert difficulties(REWARDS_PSF.flip(1)) == expected
    assert difficulties(REWARDS_PSF.flip(0)) == expected[::-1]


def test_each_difficulty_has_its_own_means() -> None:
    counts = count_by_difficulty(
        REWARDS_PSF, [12, 4, 4, 8, 16, 16], settled=[1, 2, 4], given_up=[0, 3]
    )
    counts.update(groups=6, rollouts=60, rounds=4, settled=3, given_up=2)
    found = {name: value.item() for name, value in rounds_metrics(counts, REWARDS_PSF).items()}
    assert found["pods/mean_num_rollouts"] == 10
    hard, middle, easy = (
        [found[f"rounds/{each}/{name}"] for name in NAMES] for each in ("hard", "middle", "easy")
    )
    assert hard == [1 / 6, 12, 0, 1]
    assert middle == [3 / 6, (4 + 4 + 16) / 3, 1, 0]
    assert easy == [1 / 6, 8, 0, 1]


NAMES = ("frac_groups", "mean_num_rollouts", "frac_settled", "frac_given_up")


def test_of_no_prompt_there_is_no_mean() -> None:
    counts = count_by_difficulty(REWARDS_PSF[:1], [4], settled=[], given_up=[])
    counts.update(groups=1, rollouts=4, rounds=1)
    found = rounds_metrics(counts, REWARDS_PSF)
    assert [name for name in found if "easy" in name] == ["rounds/easy/frac_groups"]
    assert found["rounds/easy/frac_groups"] == 0 and found["rounds/hard/mean_num_rollouts"] == 4
