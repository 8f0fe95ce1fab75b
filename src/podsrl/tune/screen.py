"""A search at work, as a person sees it: what is tried, how it scored, how long it will take."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from podsrl.compare.comparison import PlannedRun, write_comparison
from podsrl.compare.queue import state_of
from podsrl.compare.screen import Screen, run_workers, work_on
from podsrl.runs.evaluations import read_curve
from podsrl.tune.confirm import Confirmed, Verdict, chosen, comparison, verdict
from podsrl.tune.results import write_results, write_verdict
from podsrl.tune.tuning import Trial, Tuning, score_of, scored
from podsrl.tune.work import TuneWorker


def work_on_search(
    tuning: Tuning, *, devices: Sequence[str] | None, retry_failed: bool, console: Console
) -> int:
    """Run what is left of the search, then of its confirmation; returns the exit status.

    0: all is done, or with another worker; 1: some runs failed; 130: stopped.

    Raises `ValueError` where no further trial passes the checks of a run.
    """
    screen = SearchScreen(tuning, max(1, len(devices or ())), console)
    environments = [{"CUDA_VISIBLE_DEVICES": device} for device in devices or ()] or [{}]
    workers = [
        TuneWorker(tuning, tell=screen.tell, environment=environment, retry_failed=retry_failed)
        for environment in environments
    ]
    stopped = run_workers(workers, screen, console)
    write_results(tuning)
    for worker in workers:
        if worker.problem is not None:
            raise worker.problem
    if stopped:
        console.print("stopped; the same command goes on from here")
        return 130
    if any(worker.is_exhausted for worker in workers):
        console.print(f"every setting of the space has been tried: {len(tuning.trials())} trials")
    failed = [trial for trial in tuning.trials() if trial.state == "failed"]
    return max(_confirm(tuning, devices, retry_failed, console), int(bool(failed)))


def _confirm(
    tuning: Tuning, devices: Sequence[str] | None, retry_failed: bool, console: Console
) -> int:
    trials = chosen(tuning)
    if not trials:
        console.print("nothing to confirm: no trial but the recipe's has a score, or none is asked")
        return 0
    arms = comparison(tuning, trials)
    write_comparison(arms)
    status = work_on(arms, arms.runs(), devices=devices, retry_failed=retry_failed, console=console)
    if any(state_of(run) == "running" for run in arms.runs()):
        console.print("the rest is with other workers: the last of them tells what comes of it")
        return status
    found = verdict(tuning)
    if found is not None:
        write_verdict(tuning, found)
        print_verdict(found, console)
    return status


def print_verdict(found: Verdict, console: Console) -> None:
    """A table of what was confirmed, and the sentence that follows from it."""
    table = Table(title=f"mean accuracy over the marks in %, {len(found.seeds)} fresh seeds")
    for heading in ("arm", "in the search", "confirmed (95 %)", "from the recipe (95 %)", "values"):
        table.add_column(heading)
    for arm in found.arms:
        table.add_row(arm.arm, *_cells(arm), told(arm.values))
    console.print(table)
    console.print(found.text, soft_wrap=True)


def _cells(arm: Confirmed) -> tuple[str, str, str]:
    search = "" if arm.search_score is None else f"{100 * arm.search_score:.1f}"
    mean, low, high = arm.mean["value"], arm.mean["low"], arm.mean["high"]
    bounds = "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
    against = ""
    if arm.difference is not None and arm.half is not None:
        value, half = 100 * arm.difference, 100 * arm.half
        against = f"{value:+.1f} ({value - half:+.1f} to {value + half:+.1f})"
    return search, f"{100 * mean:.1f}{bounds}", against


def told(values: Mapping[str, Any]) -> str:
    """Settings as people read them.

    Example: `told({"beta": 0.0123456, "num_rollouts": 16})` is "beta=0.0123, num_rollouts=16".
    """
    return ", ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in values.items()
    )


class SearchScreen(Screen):
    """The trials of a search."""

    def __init__(self, tuning: Tuning, num_workers: int, console: Console) -> None:
        super().__init__(num_workers, console)
        self.tuning = tuning

    def name_of(self, run: PlannedRun) -> str:
        return run.arm

    def detail(self, event: str, run: PlannedRun) -> str:
        trials = self.tuning.trials()
        if event == "started":
            (trial,) = (trial for trial in trials if trial.name == run.arm)
            return f", {trial.chosen}: {told(trial.values)}"
        if event == "finished":
            return f", {_percent(score_of(run.folder))}; {self._left(trials)}"
        return ""

    def reached(self, run: PlannedRun) -> str:
        rows = read_curve(run.folder)
        where = self.tuning.budget.reached(rows[-1]) if rows else "loading"
        return f"{where} of {self.tuning.budget}"

    def _left(self, trials: Sequence[Trial]) -> str:
        best = scored(trials)[0]
        done = sum(trial.state in ("finished", "failed") for trial in trials)
        minutes = self.minutes(self.tuning.num_trials - done)
        return (
            f"best {_percent(best.score)} of {best.name}; {done} of {self.tuning.num_trials} done, "
            f"about {minutes:.0f} min left of the search"
        )


def _percent(score: float | None) -> str:
    return "no score" if score is None else f"{100 * score:.1f} %"
