"""Workers of a search: each takes trials that are open, and proposes the next where none is.

A trial's folder holds trial.json, its values, from the moment on at which it is proposed; while one
worker proposes, it holds the folder's claim. Below it is the folder of its run.
"""

import threading
from collections.abc import Mapping

import numpy as np

from podsrl.compare.comparison import PlannedRun, check_arms
from podsrl.compare.queue import Told, Worker
from podsrl.runs.claims import forget_claims, try_claim
from podsrl.runs.folder import write_json
from podsrl.tune.results import write_results
from podsrl.tune.suggest import Proposal, propose
from podsrl.tune.tuning import RECIPE, Trial, Tuning, known

POLL_SECONDS = 0.5
MAX_REFUSED = 20


class TuneWorker:
    """Works on a search until all its trials have ended, those of other workers, too.

    environment, tell, retry_failed: as for `podsrl.compare.queue.Worker`.
    """

    def __init__(
        self,
        tuning: Tuning,
        *,
        tell: Told,
        environment: Mapping[str, str] | None = None,
        retry_failed: bool = False,
    ) -> None:
        self.tuning = tuning
        self.tell = tell
        self.environment = environment
        self.retry_failed = retry_failed
        self.problem: ValueError | None = None
        """Why no further trial could be proposed."""
        self.is_exhausted = False
        """Whether every setting of the space has been tried."""
        self._retried: set[int] = set()
        self._worker: Worker | None = None
        self._stopped = threading.Event()

    def work(self) -> None:
        """Run trials until all have ended, or until told to stop."""
        while not self._stopped.is_set() and self.problem is None:
            trials = self.tuning.trials()
            trial = self._open(trials)
            if trial is not None:
                self._run(trial)
            elif not self.is_exhausted and len(trials) < self.tuning.num_trials:
                self._propose(trials)
            elif any(trial.state == "running" for trial in trials):
                self._stopped.wait(POLL_SECONDS)
            else:
                return

    def stop(self) -> None:
        """End the trial under way after its step, with a checkpoint; a second call ends it now."""
        self._stopped.set()
        if self._worker is not None:
            self._worker.stop()

    def _open(self, trials: list[Trial]) -> Trial | None:
        states = ("to do", "half done", *(["failed"] if self.retry_failed else []))
        for trial in trials:
            if trial.state in states and trial.number not in self._retried:
                return trial
        return None

    def _run(self, trial: Trial) -> None:
        if trial.state == "failed":
            self._retried.add(trial.number)
        worker = Worker(
            [trial.run],
            tell=self._told,
            environment=self.environment,
            retry_failed=self.retry_failed,
        )
        self._worker = worker
        if self._stopped.is_set():  # told before there was a worker to be told
            return
        worker.work()

    def _told(self, event: str, run: PlannedRun, seconds: float) -> None:
        if event not in ("running", "lost"):
            write_results(self.tuning)
        self.tell(event, run, seconds)

    def _propose(self, trials: list[Trial]) -> None:
        """Make the next trial, unless another worker is about to."""
        folder = self.tuning.folder(len(trials))
        claim = try_claim(folder)
        if claim is None:
            self._stopped.wait(POLL_SECONDS)
            return
        if not (folder / "trial.json").exists():
            try:
                proposal = self._next(self.tuning.trials())
            except ValueError as error:
                self.problem, proposal = error, None
            if proposal is None:
                self.is_exhausted = self.problem is None
                claim.release()
                return
            write_json(
                folder / "trial.json", {"values": proposal.values, "chosen": proposal.chosen}
            )
        forget_claims(folder)

    def _next(self, trials: list[Trial]) -> Proposal | None:
        """The first proposal that passes the checks of a run; the recipe itself comes first."""
        if not trials:
            return Proposal(self.tuning.recipe_values, RECIPE)
        tried, scores = known(trials)
        refused = None
        for _ in range(MAX_REFUSED):
            proposal = propose(
                self.tuning.search, tried, scores, seed=_seed(self.tuning.seed, len(trials))
            )
            if proposal is None:
                break
            try:
                check_arms([self.tuning.run(len(trials), proposal.values)])
            except ValueError as error:
                refused = error
                tried.append(proposal.values)
            else:
                return proposal
        if refused is not None:
            raise refused
        return None


def _seed(seed: int, number: int) -> int:
    """A seed of its own for each trial of each search."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
