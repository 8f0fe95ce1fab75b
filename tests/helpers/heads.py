"""What is known of a head, for tests that write one."""

from typing import Any

from podsrl.probe.head import About


def about(**changes: Any) -> About:
    values: dict[str, Any] = {
        "model": "tiny",
        "model_digest": "0",
        "layers": [2],
        "num_layers": 2,
        "at": "last",
        "kind": "logistic",
        "label": "correctness >= 1",
        "auroc": 0.8,
        "auroc_low": 0.7,
        "auroc_high": 0.9,
        "num_prompts_fitted": 80,
        "num_prompts_held_out": 40,
        "within_low": 0.6,
    }
    return About(**{**values, **changes})
