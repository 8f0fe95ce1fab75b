"""A pilot's prediction in words, as JSON and as a figure."""

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from podsrl.plan.fit import Costs, Proposal, predictions
from podsrl.plan.gain import Advice, Gain, Rates
from podsrl.plan.pilot import Pilot


def lines(pilot: Pilot, rates: Rates, advice: Advice) -> Iterator[str]:
    """Yield what `podsrl plan` prints of a pilot: what was seen, what follows."""
    for name in ("mean_rate", "spread_of_logit", "mean_reward", "deviation_within_prompts"):
        if name in rates.described:
            yield f"  {name.replace('_', ' ')} {_bounded(rates.described[name])}"
    if pilot.noise.num_groups:
        noise = pilot.noise
        yield (
            f"  signal over noise of a rollout (rho) {noise.value:.2g} ({noise.low:.2g} to "
            f"{noise.high:.2g}), {noise.num_groups} groups, {noise.where}; right rollouts have "
            f"{noise.tilt / 2:.0%} of the noise of both kinds"
        )
    base = advice.gains[0].arm
    yield (
        f"  {'arm':<12} {'dead groups':>11} {'s a step':>9} {'a step is worth':>16}   "
        f"times as fast as {base} (95 %)"
    )
    yield from (_row(gain) for gain in _shown(advice))
    yield advice.verdict
    yield from (f"  {note}" for note in notes_on(pilot))


def pilot_line(pilot: Pilot) -> str:
    """Return what a pilot took."""
    num_rollouts = pilot.num_prompts * pilot.num_rollouts
    return (
        f"pilot: {num_rollouts} rollouts of {pilot.num_prompts} prompts and "
        f"{pilot.noise.num_rows} gradients in {pilot.seconds / 60:.1f} minutes"
    )


def cost_line(costs: Costs) -> str:
    """Return the seconds of a step as a formula of n and m."""
    a = costs.sampling.intercept + costs.update.intercept
    return f"seconds per step = {a:.2f} + {costs.sampling.slope:.3f} n + {costs.update.slope:.3f} m"


def proposal_lines(costs: Costs, proposal: Proposal, *, predicted: bool) -> Iterator[str]:
    """Yield what is proposed; `predicted`: the verdict and its reasons have been told."""
    layout = (
        f"n = {proposal.num_rollouts}, m = {proposal.num_kept}, "
        f"{proposal.num_micro_batches} micro-batch(es) of {proposal.micro_rows} kept rollouts, "
        f"{_backend()}"
    )
    if predicted:
        yield f"proposed: {layout}"
        return
    for arm, seconds in predictions(costs, proposal).items():
        yield f"  {arm}: {seconds:.2f} s"
    yield f"{'PODS pays here' if proposal.pays else 'PODS will hardly pay here'}: {layout}"
    yield from (f"  {reason}" for reason in proposal.reasons)


def _backend() -> str:
    """vLLM where it can run; it was not measured unless the recipe says use_vllm."""
    if torch.cuda.is_available() and importlib.util.find_spec("vllm") is not None:
        return "sampling with vLLM (use_vllm: true) is worth a second plan"
    return "sampling with transformers"


def _shown(advice: Advice) -> list[Gain]:
    """GRPO of each group size, and of each m the PODS arm that gains most at least."""
    best: dict[tuple[bool, int], Gain] = {}
    for gain in advice.gains:
        key = gain.num_rollouts > gain.num_kept, gain.num_kept
        if key not in best or gain.time_ratio[1] > best[key].time_ratio[1]:
            best[key] = gain
    return list(best.values())


def _row(gain: Gain) -> str:
    dead, seconds = f"{gain.frac_dead[0]:.0%}", f"{gain.seconds:.2f}"
    worth = f"{gain.steps_ratio[0]:.2f}"
    return f"  {gain.arm:<12} {dead:>11} {seconds:>9} {worth:>16}   {_bounded(gain.time_ratio)}"


def _bounded(interval: tuple[float, float, float]) -> str:
    value, low, high = interval
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def draw(advice: Advice, path: Path) -> None:
    """Draw each arm's predicted time ratio with its interval, the best of each m."""
    from matplotlib.figure import Figure

    shown = _shown(advice)[::-1]
    figure = Figure(figsize=(6.4, 0.32 * len(shown) + 1.4), layout="constrained")
    axes = figure.subplots()
    for place, gain in enumerate(shown):
        value, low, high = gain.time_ratio
        color = "#1f66c1" if gain.num_rollouts > gain.num_kept else "#6a717c"
        axes.plot([low, high], [place, place], color=color, linewidth=2, solid_capstyle="round")
        axes.plot(value, place, "o", color=color, markersize=9 if gain is advice.best else 5)
    axes.axvline(1.0, color="#1d2025", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [gain.arm for gain in shown])
    axes.set_xscale("log")
    axes.set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    axes.minorticks_off()
    axes.set_xlabel(f"predicted to be times as fast as {advice.gains[0].arm}, 95 %")
    axes.set_title(advice.verdict.split(":")[0], fontsize=11, loc="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def notes_on(pilot: Pilot) -> list[str]:
    """What a reader of the prediction must know of this pilot."""
    notes = []
    if pilot.is_binary and not bool(pilot.num_right_P.any()):
        notes.append(
            "no rollout of the pilot was right: whatever n and m, there is next to nothing to "
            "learn from; take easier prompts, or a model that has learned more"
        )
    if pilot.is_binary and bool((pilot.num_right_P == pilot.rewards_PR.shape[1]).all()):
        notes.append("every rollout of the pilot was right: take harder prompts")
    if not pilot.is_binary:
        notes.append(
            "rewards are graded: the prediction takes a rollout's gradient as linear in its reward "
            f"and draws every n from the {pilot.rewards_PR.shape[1]} rewards of a prompt, so dead "
            "groups are overestimated"
        )
    if not pilot.noise.num_groups:
        why = pilot.noise.where or "too few groups have both outcomes twice"
        notes.append(
            f"{why}: rho is unknown, 1 is assumed, and the intervals take it from 0 to infinity"
        )
    if pilot.stopped:
        notes.append("the pilot was stopped by Ctrl-C: this is what it had seen by then")
    if pilot.num_failed:
        notes.append(f"{pilot.num_failed} prompts are left out: a reward could not be computed")
    return notes


def as_json(pilot: Pilot, rates: Rates, advice: Advice) -> dict[str, Any]:
    """The pilot's part of plan.json; numbers that are not finite become None."""
    content = {
        "pilot": {
            "num_prompts": pilot.num_prompts,
            "num_rollouts": pilot.num_rollouts,
            "num_failed": pilot.num_failed,
            "seconds": pilot.seconds,
            "stopped": pilot.stopped,
            "rho": asdict(pilot.noise),
            **rates.described,
        },
        "gains": [asdict(gain) for gain in advice.gains],
        "advice": {
            "arm": advice.best.arm,
            "pods_pays": advice.pays,
            "verdict": advice.verdict,
            "notes": notes_on(pilot),
        },
    }
    return {name: _finite(value) for name, value in content.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
