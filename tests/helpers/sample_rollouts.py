"""A rollout log as training writes it, with made-up texts, for the tests of log and page."""

import random
from pathlib import Path
from typing import Any

import torch

from podsrl import select
from podsrl.core.selection import Selection, Selector
from podsrl.runs.rollout_log import FILE_NAME, RolloutLog
from podsrl.runs.rollout_records import batch_records

WORDS = ["we", "add", "the", "tens", "first", "then", "ones", "so", "sum", "is", "carry", "one"]
HEADER = {
    "reward_names": ["correctness", "format"],
    "reward_weights": [1.0, 0.1],
    "rule": "max_variance",
    "num_generations": 4,
    "num_rollouts": 16,
    "task": "arithmetic",
    "model": "smollm2-135m",
}


def batch(
    step: int,
    *,
    prompts: int = 4,
    n: int = 16,
    m: int = 4,
    num_words: int = 20,
    graded: bool = False,
) -> list[dict[str, Any]]:
    """Records of one step: 0/1 rewards, or rewards in (0, 1) with `graded`, and 0.1 for format."""
    generator = torch.Generator().manual_seed(step)
    draws_PN = torch.rand(prompts, n, generator=generator)
    right_PN = draws_PN if graded else (draws_PN < 0.3 + 0.02 * step).float()
    format_PN = (torch.rand(prompts, n, generator=generator) < 0.8).float()
    rewards_PN = right_PN + 0.1 * format_PN
    kept_PM = select(rewards_PN, m, seed=step)
    kept_PN = torch.zeros(prompts, n, dtype=torch.bool).scatter_(1, kept_PM, True)
    selection = Selection(
        Selector(num_kept=m), torch.stack([right_PN, format_PN], dim=2), rewards_PN, kept_PN
    )
    choose = random.Random(step)
    texts = [" ".join(choose.choices(WORDS, k=num_words)) for _ in range(prompts * n)]
    rows = [
        {"prompt": [{"role": "user", "content": f"What is {step} + {p}?"}], "answer": str(step + p)}
        for p in range(prompts)
    ]
    return batch_records(
        selection,
        rows,
        [[{"role": "assistant", "content": text}] for text in texts],
        [len(text.split()) for text in texts],
        advantages={row: 1.0 for row in selection.kept_rows_B.tolist()},
        rule="max_variance",
    )


def write_log(folder: Path, *, steps: int = 3, **options: Any) -> Path:
    """A run folder with the log of some steps."""
    log = RolloutLog(folder / FILE_NAME, HEADER, limit_mib=None)
    for step in range(1, steps + 1):
        log.write(step, batch(step, **options))
    return folder
