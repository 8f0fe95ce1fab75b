"""A comparison at work, as a person sees it: who runs, how far, how long it will take."""

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any, Protocol

from rich.console import Console
from rich.status import Status
from rich.table import Table

from podsrl.compare.budget import Budget
from podsrl.compare.comparison import Comparison, PlannedRun
from podsrl.compare.queue import Worker, state_of
from podsrl.runs.evaluations import read_curve
from podsrl.runs.stop import STOP_SIGNALS


def work_on(
    comparison: Comparison,
    runs: Sequence[PlannedRun],
    *,
    devices: Sequence[str] | None,
    retry_failed: bool,
    console: Console,
) -> int:
    """Run what is left of the runs, one at a time on each device; returns the exit status.

    0: every run has its result or is with another worker; 1: some failed; 130: stopped.
    """
    print_arms(comparison, console)
    screen = ComparisonScreen(runs, comparison.budget, max(1, len(devices or ())), console)
    environments = [{"CUDA_VISIBLE_DEVICES": device} for device in devices or ()] or [{}]
    workers = [
        Worker(runs, tell=screen.tell, environment=environment, retry_failed=retry_failed)
        for environment in environments
    ]
    stopped = run_workers(workers, screen, console)
    states = [state_of(run) for run in runs]
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    console.print(f"{counts}; everything is in {comparison.output_dir}", soft_wrap=True)
    if stopped:
        console.print("stopped; the same command goes on from here")
        return 130
    return 0 if set(states) <= {"finished", "running"} else 1


class Works(Protocol):
    """What `run_workers` takes: a `Worker`, or what works and stops as one does."""

    def work(self) -> None: ...

    def stop(self) -> None: ...


def run_workers(workers: Sequence[Works], screen: "Screen", console: Console) -> bool:
    """Let all workers work until they have ended; True when a signal stopped them."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        again = stopped.is_set()
        stopped.set()
        console.print(
            "stopping now" if again else "stopping after this step; once more to stop at once"
        )
        for worker in workers:
            worker.stop()

    previous = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    threads = [threading.Thread(target=worker.work) for worker in workers]
    try:
        with screen:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return stopped.is_set()


def print_arms(comparison: Comparison, console: Console) -> None:
    """A table of what each arm does."""
    table = Table(title=f"{comparison.budget} per run")
    for heading in ("arm", "n", "m", "rule", "settings of its own"):
        table.add_column(heading)
    shared = _shared(list(comparison.arms.values()))
    for name, settings in comparison.arms.items():
        own = {k: v for k, v in settings.items() if k not in shared and k not in SHOWN}
        table.add_row(
            name + (" (baseline)" if name == comparison.baseline else ""),
            str(settings["num_rollouts"]),
            str(settings["num_generations"]),
            str(settings.get("selection_rule", "max_variance")),
            ", ".join(f"{key}={value}" for key, value in own.items()),
        )
    console.print(table)


SHOWN = ("num_rollouts", "num_generations", "selection_rule")


def _shared(arms: list[dict[str, Any]]) -> set[str]:
    return {key for key in arms[0] if all(key in a and a[key] == arms[0][key] for a in arms)}


class Screen:
    """Prints each run as it starts and ends; on a terminal also how far the runs are.

    What a run is called, what is told of it and where it stands is for those that derive from it.
    """

    def __init__(self, num_workers: int, console: Console) -> None:
        self.num_workers, self.console = num_workers, console
        self.seconds_per_run: list[float] = []
        self.texts: dict[str, str] = {}
        self.lock = threading.Lock()
        self.status = Status("", console=console)

    def __enter__(self) -> "Screen":
        if self.console.is_terminal:
            self.status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.status.stop()

    def name_of(self, run: PlannedRun) -> str:
        raise NotImplementedError

    def detail(self, event: str, run: PlannedRun) -> str:
        """What is told beside the event and its seconds; of a failure the log is."""
        raise NotImplementedError

    def reached(self, run: PlannedRun) -> str:
        """How far a run is, in words."""
        raise NotImplementedError

    def tell(self, event: str, run: PlannedRun, seconds: float) -> None:
        """Show the event of a `Worker`."""
        with self.lock:
            name = self.name_of(run)
            if event == "running":
                self._show(name, run)
                return
            if event == "finished":
                self.seconds_per_run.append(seconds)
            if event != "started":
                self.texts.pop(name, None)
            after = "" if event == "started" else f" after {seconds:.0f} s"
            failed = f"; see {run.folder / 'log.txt'}"
            detail = failed if event == "failed" else self.detail(event, run)
            self.console.print(f"{name}: {event}{after}{detail}", soft_wrap=True)

    def minutes(self, num_runs: int) -> float:
        """What so many runs will take, at the mean of those that have finished."""
        mean = sum(self.seconds_per_run) / len(self.seconds_per_run)
        return mean * num_runs / self.num_workers / 60

    def _show(self, name: str, run: PlannedRun) -> None:
        if self.console.is_terminal:
            self.texts[name] = f"{name}: {self.reached(run)}"
            self.status.update("   ".join(self.texts.values()))


class ComparisonScreen(Screen):
    """The runs of a comparison."""

    def __init__(
        self, runs: Sequence[PlannedRun], budget: Budget, num_workers: int, console: Console
    ) -> None:
        super().__init__(num_workers, console)
        self.runs, self.budget = runs, budget

    def name_of(self, run: PlannedRun) -> str:
        return run.name

    def detail(self, event: str, run: PlannedRun) -> str:
        return f", {self._latest(run)}; {self._left()}" if event == "finished" else ""

    def reached(self, run: PlannedRun) -> str:
        return f"{self._latest(run)} of {self.budget}"

    def _left(self) -> str:
        states = [state_of(run) for run in self.runs]
        open_runs = sum(state in ("to do", "half done", "running") for state in states)
        done, minutes = states.count("finished"), self.minutes(open_runs)
        return f"{done} of {len(states)} done, about {minutes:.0f} min left"

    def _latest(self, run: PlannedRun) -> str:
        """The last point of the run's curve in words."""
        rows = read_curve(run.folder)
        if not rows:
            return "loading, 0"
        accuracy = 100 * rows[-1]["accuracy"]
        return f"accuracy {accuracy:.1f} % at {self.budget.reached(rows[-1])}"
