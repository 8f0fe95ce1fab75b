"""What a search leaves: results.jsonl, a line for each trial, and what was confirmed."""

import json
import os
import uuid
from dataclasses import asdict
from typing import Any

import yaml

from podsrl.runs.evaluations import read_curve
from podsrl.runs.folder import read_json, write_json
from podsrl.tune.confirm import Verdict
from podsrl.tune.tuning import Trial, Tuning

RESULTS = "results.jsonl"


def write_results(tuning: Tuning) -> None:
    """Write results.jsonl anew; several workers may do so at once, each a whole file."""
    lines = "".join(json.dumps(record(trial)) + "\n" for trial in tuning.trials())
    path = tuning.output_dir / RESULTS
    aside = path.with_name(f"{RESULTS}.{uuid.uuid4().hex}.part")
    aside.write_text(lines, encoding="ascii")
    os.replace(aside, path)


def record(trial: Trial) -> dict[str, Any]:
    """Return what is known of a trial.

    trial, values, chosen (recipe, random or model), state; n and m; if finished, score, the
    accuracies it is the mean of with 0 before, steps, training seconds; if failed, the exit status
    and last line of its log.
    """
    found: dict[str, Any] = {
        "trial": trial.number,
        "values": trial.values,
        "chosen": trial.chosen,
        "state": trial.state,
        "num_rollouts": trial.run.settings["num_rollouts"],
        "num_generations": trial.run.settings["num_generations"],
    }
    if trial.state == "finished":
        rows = read_curve(trial.run.folder)
        found |= {
            "score": trial.score,
            "accuracy": [row["accuracy"] for row in rows],
            "steps": rows[-1]["step"] if rows else 0,
            "training_seconds": rows[-1]["training_seconds"] if rows else 0.0,
        }
    if trial.state == "failed":
        failure = read_json(trial.run.folder / "failed.json")
        lines = failure["last_lines"]
        found |= {"exit_status": failure["exit_status"], "log": lines[-1] if lines else ""}
    return found


def write_verdict(tuning: Tuning, found: Verdict) -> None:
    """Write confirmed.json, and best.yaml where there is a winner: its recipe for podsrl train."""
    arms = [{**asdict(arm), "is_better": arm.is_better} for arm in found.arms]
    write_json(
        tuning.output_dir / "confirmed.json",
        {"verdict": found.text, "winner": found.winner, "seeds": found.seeds, "arms": arms},
    )
    path = tuning.output_dir / "best.yaml"
    if found.winner is None:
        path.unlink(missing_ok=True)
        return
    (values,) = (arm.values for arm in found.arms if arm.arm == found.winner)
    text = yaml.safe_dump(tuning.settings(values), sort_keys=False)
    path.write_text(f"# {found.text}\n{text}", encoding="utf-8")
