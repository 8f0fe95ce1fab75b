"""Where two answers differ, by hand and by brute force, and from where one is written anew."""

import random

import pytest

from podsrl.core.objectives.bridging import bridge_starts, differing_places, num_differing


def test_differing_tokens_by_hand() -> None:
    # 5 and 7 are aligned; 6 stands against 8, 9.
    assert differing_places((5, 6, 7), (5, 8, 9, 7)) == ([1], [1, 2])
    assert num_differing((5, 6, 7), (5, 8, 9, 7)) == 3
    # One answer within the other: what it lacks differs on one side alone.
    assert differing_places((5, 6, 7), (5, 7)) == ([1], [])
    assert num_differing((), (1, 2)) == 2 and num_differing((1, 2), (3,)) == 3


@pytest.mark.parametrize(
    ("chosen", "rejected", "num", "expected"),
    [
        # 9 stands for 6, and 4 for 8: stretches from places 1 and 3.
        ((5, 6, 7, 8), (5, 9, 7, 4), 1, [1]),
        ((5, 6, 7, 8), (5, 9, 7, 4), 2, [1, 3]),
        ((5, 6, 7, 8), (5, 9, 7, 4), 3, [1, 1, 3]),  # floor(2 i / 3): 0, 0, 1
        # Four stretches, of which two are taken evenly: the first and the third.
        ((1, 0, 2, 0, 3, 0, 4, 0), (1, 5, 2, 6, 3, 7, 4, 8), 2, [1, 5]),
        # A token that the rejected answer lacks: from where it would stand, 7's place.
        ((5, 6, 7), (5, 7), 2, [1, 1]),
        # Cut off by the limit within the chosen one, or equal to it: nothing of it differs.
        ((5, 6, 7), (5, 6), 2, []),
        ((5, 6, 7), (5, 6, 7), 2, []),
        # Nothing in common: from the start.
        ((1, 2), (3, 4), 2, [0, 0]),
    ],
)
def test_starts_by_hand(
    chosen: tuple[int, ...], rejected: tuple[int, ...], num: int, expected: list[int]
) -> None:
    assert bridge_starts(chosen, rejected, num=num) == expected


def test_random_answers() -> None:
    """What is left of either is the same; each stretch that differs is a place to begin at."""
    rng = random.Random(0)
    for _ in range(200):
        chosen, rejected = ([rng.randrange(3) for _ in range(rng.randrange(1, 9))] for _ in "ab")
        differing = differing_places(chosen, rejected)
        left = [
            [token for place, token in enumerate(answer) if place not in places]
            for answer, places in zip((chosen, rejected), differing, strict=True)
        ]
        assert left[0] == left[1]
        others = set(differing[1])
        starts = bridge_starts(chosen, rejected, num=50)  # more than there are: all of them
        assert {place for place in others if place - 1 not in others} <= set(starts)
        assert all(0 <= start < len(rejected) and start - 1 not in others for start in starts)
        assert bool(starts) or not others
        few = bridge_starts(chosen, rejected, num=2)
        assert few[:1] == starts[:1] and set(few) <= set(starts)
