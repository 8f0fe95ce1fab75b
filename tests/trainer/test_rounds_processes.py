"""Two processes sample in rounds together: equal decisions, equal work, the same bits again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import launch
from helpers.rounds_processes import CASES
from podsrl import select

TESTS = Path(__file__).resolve().parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def found(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What rounds_processes.py wrote on each of two gloo processes."""
    output = tmp_path_factory.mktemp("rounds")
    launch("rounds_processes.py", tiny_folder, output, timeout_seconds=500)
    return [torch.load(output / f"found-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_processes_decide_alike_and_work_alike(found: list[dict[str, Any]], case: str) -> None:
    first, second = (each[case] for each in found)
    assert (first["rank"], second["rank"]) == (0, 1)
    assert first["calls"] == second["calls"]  # as many rounds, and rows in each
    sizes = {size for _, size in first["calls"]}
    assert len(sizes) > 1 and len(first["calls"]) > 4  # more rounds than batches
    assert torch.equal(first["weights"], second["weights"])
    assert len({entry["pods/mean_num_rollouts"] for entry in first["logged"]}) > 1
    for one, two in zip(first["kept"], second["kept"], strict=True):
        assert torch.equal(one["kept"], two["kept"])
        assert torch.equal(one["rewards"].nan_to_num(nan=-1), two["rewards"].nan_to_num(nan=-1))
        assert not one["rewards"][one["kept"]].isnan().any()


@pytest.mark.parametrize("case", CASES)
def test_texts_stay_with_their_prompts_and_rewards(found: list[dict[str, Any]], case: str) -> None:
    first, second = (each[case] for each in found)
    for one, two in zip(first["kept"], second["kept"], strict=True):
        texts, prompts = one["texts"] + two["texts"], one["prompts"] + two["prompts"]
        rewards = one["rewards"][one["kept"]].tolist()
        assert len(texts) == len(rewards)
        for text, prompt, reward in zip(texts, prompts, rewards, strict=True):
            is_easy = any(question in prompt for question in ("1+1", "2+3 is", "what is 7-4?"))
            assert reward == (1.0 if is_easy else float(len(text) % 2 == 0))
    assert first["text_logged"] == first["completion_logged"]


def test_a_process_whose_prompts_are_settled_takes_part(found: list[dict[str, Any]]) -> None:
    """Each owns two prompts; the calls of both are equal, whoever's prompts are still open."""
    lasts = []
    for entry in found[0]["whole"]["kept"]:
        sizes_P = (~entry["rewards"].isnan()).sum(1)
        lasts.append((int(sizes_P[:2].max()), int(sizes_P[2:].max())))
    assert any(mine != theirs for mine, theirs in lasts), lasts


def test_the_same_bits_again_and_after_a_resume(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert torch.equal(each["whole"]["weights"], each["again"]["weights"])
        assert torch.equal(each["whole"]["weights"], each["resumed"]["weights"])
        assert each["whole"]["logged"] == each["again"]["logged"] == each["resumed"]["logged"]


def test_kept_are_what_select_keeps(found: list[dict[str, Any]]) -> None:
    """The variance kept is the best of what was sampled."""
    for entry in found[0]["whole"]["kept"]:
        rewards_PN = entry["rewards"].double()
        best_PM = rewards_PN.gather(1, select(rewards_PN, 4))
        kept_PM = rewards_PN[entry["kept"]].view(-1, 4)
        assert torch.equal(best_PM.sort(1).values, kept_PM.sort(1).values)
