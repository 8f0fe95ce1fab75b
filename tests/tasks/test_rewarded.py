"""A task with the rewards that a recipe names."""

from pathlib import Path
from typing import Any

import pytest

from podsrl.rewards.own import call_reward, try_reward
from podsrl.tasks import Task
from podsrl.tasks.base import make_row, make_task
from podsrl.tasks.rewarded import with_rewards

ROWS = [make_row("1 + 1", "2", tags=True, level=5), make_row("2 + 2", "4", tags=True, level=7)]


def task(score: Any = None) -> Task:
    return make_task(
        "sums", lambda split: ROWS, answer_format="tags", max_new_tokens=4, score=score
    )


def own(tmp_path: Path, body: str, name: str = "mine") -> str:
    path = tmp_path / f"{name}.py"
    path.write_text(f"def {name}(completions, **columns):\n    {body}\n")
    return f"{path}:{name}"


def test_the_tasks_own_rewards_where_none_is_named() -> None:
    plain = task()
    assert with_rewards(plain, None, ROWS) is plain


def test_own_rewards_beside_the_tasks(tmp_path: Path) -> None:
    mine = own(tmp_path, "return [float(level) for level in columns['level']]")
    found = with_rewards(task(), ["correctness", mine, "format"], ROWS)
    assert list(found.reward_funcs) == ["correctness", "mine", "format"]
    assert found.reward_weights == {"correctness": 1.0, "mine": 1.0, "format": 0.1}
    assert found.reward_bounds == {"correctness": (0.0, 1.0), "format": (0.0, 1.0)}
    assert found.measured == ("mine",)
    assert call_reward(found.reward_funcs["mine"], ROWS, ["", ""], [[0], [0]]) == [5.0, 7.0]
    with pytest.raises(ValueError, match="has no bounds for mine"):
        found.bounds()
    assert with_rewards(task(), ["format"], ROWS).measured == ()


def test_no_reward_of_what_could_not_be_graded(tmp_path: Path) -> None:
    def fails_on_first(texts: Any, rows: Any) -> list[float | None]:
        return [None, 1.0]

    mine = own(tmp_path, "return [1.0] * len(completions)")
    found = with_rewards(task(fails_on_first), ["correctness", mine], ROWS)
    values = [call_reward(f, ROWS, ["a", "b"], [[0], [0]]) for f in found.reward_funcs.values()]
    assert values == [[None, 1.0], [None, 1.0]]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 1.0", "mine.py, line 1: mine returns 1.0: return a list"),
        ("return [1.0]", "line 1: mine returns 1 values for 2 completions"),
        ("return [1.0, float('inf')]", "returns inf: return finite numbers"),
        ("return [1.0, 'good']", "returns 'good': return finite numbers"),
        ("return columns['answers']", "mine.py, line 2: KeyError: 'answers'"),
    ],
)
def test_what_is_said_of_a_reward_that_cannot_be_used(body: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as raised:
        with_rewards(task(), [own(tmp_path, body)], ROWS)
    assert said in str(raised.value)


def test_names_that_do_not_go(tmp_path: Path) -> None:
    for names, said in (
        ([], "reward_funcs is empty"),
        (["corectness"], "did you mean correctness"),
        (["brevity"], "sums has correctness, format, tag_count"),
        (["format", "correctness"], "put correctness first"),
        (["format", "format"], "twice, and metrics go by that name"),
    ):
        with pytest.raises(ValueError, match=said):
            with_rewards(task(), names, ROWS)


def test_values_that_are_a_tensor_or_awaited_are_taken() -> None:
    import torch

    async def later(completions: Any, **_: Any) -> list[float | None]:
        return [0.5, None]

    try_reward("later", later, ROWS)
    try_reward("tensor", lambda completions, **_: torch.ones(2), ROWS)
    try_reward("one row", lambda completions, **_: [1, 2], ROWS[:1])
