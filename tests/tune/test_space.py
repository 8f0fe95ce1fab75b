"""What may be searched: how values are drawn and seen by the model, and what is refused."""

from typing import Any

import numpy as np
import pytest

from podsrl.tune.space import Choices, Range, read_space


def test_a_space_as_yaml_gives_it() -> None:
    """1e-6 is text to YAML 1.1; whole numbers are whole where the setting is."""
    space = read_space(
        {
            "num_rollouts": {"low": 8, "high": 64, "scale": "log"},
            "learning_rate": {"low": "1e-6", "high": "1e-4", "scale": "log"},
            "beta": [0, "1e-2", 0.1],
            "selection_rule": ["max_variance", "random"],
        }
    )
    assert space.dimensions == {
        "num_rollouts": Range(low=8, high=64, is_log=True, is_whole=True),
        "learning_rate": Range(low=1e-6, high=1e-4, is_log=True, is_whole=False),
        "beta": Choices((0, 0.01, 0.1)),
        "selection_rule": Choices(("max_variance", "random")),
    }
    assert space.num_values() == float("inf")
    whole = read_space({"num_rollouts": {"low": 8, "high": 64}, "num_generations": [4, 8]})
    assert whole.num_values() == 57 * 2 == len({str(values) for values in whole.every()})


def test_what_the_model_sees() -> None:
    space = read_space(
        {
            "learning_rate": {"low": 1e-6, "high": 1e-4, "scale": "log"},
            "temperature": {"low": 0.5, "high": 1.5},
            "num_generations": [16, 4, 8],
            "selection_rule": ["max_variance", "random"],
        }
    )
    values = {
        "learning_rate": 1e-5,
        "temperature": 1.0,
        "num_generations": 8,
        "selection_rule": "random",
    }
    assert space.encode([values]) == pytest.approx(np.array([[0.5, 0.5, 0.5, 0.0, 1.0]]))


def test_draws_are_even_on_their_scale_and_reach_both_ends() -> None:
    rng = np.random.default_rng(0)
    log = Range(low=1e-6, high=1e-4, is_log=True, is_whole=False)
    drawn = np.log10([log.draw(rng) for _ in range(4000)])
    assert drawn.min() >= -6 and drawn.max() <= -4
    assert np.mean(drawn < -5) == pytest.approx(0.5, abs=0.03)
    whole = Range(low=2, high=4, is_log=False, is_whole=True)
    counts = np.bincount([whole.draw(rng) for _ in range(3000)], minlength=5)
    assert counts[2:] == pytest.approx(np.full(3, 1000), abs=120) and not counts[:2].any()
    chosen = [Choices((4, 8)).draw(rng) for _ in range(1000)]
    assert chosen.count(4) == pytest.approx(500, abs=70)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (None, "space is None: name at least one"),
        ({}, "space is {}: name at least one"),
        ({"learning_rat": [1, 2]}, "unknown setting of space: learning_rat; did you mean"),
        ({"seed": [0, 1]}, "space names seed, which the search sets"),
        ({"max_steps": [1, 2]}, "space names max_steps, which the search sets"),
        ({"task": ["gsm8k", "math"]}, "space names task, which changes what is measured"),
        ({"beta": 0.1}, "beta is 0.1: give a list of values"),
        ({"beta": [0.1]}, "beta has 1 values"),
        ({"beta": [0.1, 0.1]}, "beta has 2 values"),
        ({"beta": [0.1, "much"]}, "beta is 'much': it must be a number"),
        ({"num_rollouts": [8, 0.5]}, "num_rollouts is 0.5: it must be a whole number"),
        ({"beta": {"low": 0, "up": 1}}, "unknown field of beta in space: up"),
        ({"beta": {"low": 0, "high": None}}, "beta goes from 0 to None"),
        ({"beta": {"low": 1, "high": 0.5}}, "beta goes from 1 to 0.5"),
        ({"beta": {"low": 0, "high": 1, "scale": "log"}}, "beta starts at 0 on a log scale"),
        ({"beta": {"low": 0, "high": 1, "scale": "lg"}}, "scale of beta is 'lg'"),
        ({"num_rollouts": {"low": 4.5, "high": 8}}, "its ends must be whole numbers"),
        ({"selection_rule": {"low": 0, "high": 1}}, "selection_rule is no number"),
    ],
)
def test_what_is_refused(space: Any, words: str) -> None:
    with pytest.raises(ValueError) as error:
        read_space(space)
    assert words in str(error.value)
