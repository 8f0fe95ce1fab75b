"""podsrl.verl.settings: what is read, filled in and refused, on verl's own configuration."""

from pathlib import Path

import pytest
from harness import make_config

from podsrl.core.selection import Selector
from podsrl.verl.settings import WHY_NOT, settings_of

PODS = "+trainer.v1.pods"


@pytest.fixture
def read(tmp_path: Path):  # type: ignore[no-untyped-def]
    """The settings of verl's configuration with four kept rollouts and the overrides."""

    def settings(*overrides: str):  # type: ignore[no-untyped-def]
        kept = "actor_rollout_ref.rollout.n=4"
        return settings_of(make_config("none", tmp_path, kept, *overrides))

    return settings


def test_defaults_are_two_rollouts_for_one_kept_and_the_papers_rule(read) -> None:  # type: ignore[no-untyped-def]
    settings = read()
    assert (settings.num_kept, settings.num_rollouts) == (4, 8)
    assert settings.selector() == Selector(num_kept=4, rule="max_variance", budget="per_prompt")
    assert settings.dropped_data_dir is None


def test_all_settings_reach_the_selector(read) -> None:  # type: ignore[no-untyped-def]
    settings = read(
        f"{PODS}.num_rollouts=32",
        f"{PODS}.selection_rule=percentile",
        f"{PODS}.budget=pooled",
        f"{PODS}.budget_floor=2",
        f"{PODS}.budget_cap=8",
        f"{PODS}.seed=7",
    )
    assert settings.num_rollouts == 32 and settings.seed == 7
    assert settings.selector() == Selector(
        num_kept=4, rule="percentile", budget="pooled", budget_floor=2, budget_cap=8
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"{PODS}.num_rollouts=3"], r"rollout\.n \(kept\) is 4 and .*num_rollouts .* is 3"),
        (["actor_rollout_ref.rollout.n=1"], "2 <= kept <= sampled"),
        ([f"{PODS}.selection_rule=best"], "selection_rule is 'best'; choose one of max_variance"),
        ([f"{PODS}.budget=all"], "budget is 'all'; choose one of per_prompt, pooled"),
        ([f"{PODS}.budget=pooled", f"{PODS}.budget_floor=3"], "budget_floor is 3"),
        ([f"{PODS}.budget_floor=2"], "do nothing with budget=per_prompt"),
        ([f"{PODS}.budget=pooled", f"{PODS}.budget_cap=3"], "budget_cap is 3; it lies between"),
        ([f"{PODS}.num_generations=4"], "num_generations is unknown; choose from num_rollouts"),
        ([f"{PODS}.num_kept=4"], "num_kept is unknown"),
        (["critic.enable=True"], "critic.enable is True"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_refused(read, overrides: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        read(*overrides)


@pytest.mark.parametrize("estimator", sorted(WHY_NOT))
def test_estimators_without_a_group_are_refused(read, estimator: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=f"adv_estimator is '{estimator}'"):
        read(f"algorithm.adv_estimator={estimator}")


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "opo", "gpg"])
def test_estimators_over_a_group_pass(read, estimator: str) -> None:  # type: ignore[no-untyped-def]
    assert read(f"algorithm.adv_estimator={estimator}").num_kept == 4
