"""A run that a script of the user's trains: it leaves the folder that `podsrl train` leaves.

Of the files in runs/folder.py it writes config.json, versions.json, metrics.jsonl,
rollouts.jsonl.gz, result.json and curve.png, and with evaluations of the trainer's own
(`eval_dataset`, `eval_strategy`) curve.jsonl, of which `evaluation_row` says what stands in it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from podsrl.runs.callbacks import MetricsFile, StepProgress
from podsrl.runs.changes import changed_settings
from podsrl.runs.claims import forget_claims, is_claimed, is_own, owner
from podsrl.runs.clock import TrainingClock
from podsrl.runs.evaluations import CURVE, REWARDS, mean_or_none, read_curve
from podsrl.runs.folder import (
    FROM_PYTHON,
    read_json,
    read_metrics,
    retire_result,
    settings_of,
    write_json,
    write_settings,
)
from podsrl.runs.json_lines import append_lines, keep_until
from podsrl.runs.notebook import NotebookProgress
from podsrl.runs.place import from_main_process, new_folder
from podsrl.runs.result import plot_run, result_of
from podsrl.runs.rollout_log import attach_log
from podsrl.runs.step import step_in_words

if TYPE_CHECKING:
    from podsrl.trl.trainer import PODSTrainer


class RunRecorder(TrainerCallback):
    """Writes the run of a PODSTrainer into its output_dir, and shows how far it is.

    Where that holds another run, the folder is NAME-2, NAME-3, ..., as with `podsrl train`; a
    training that goes on from a checkpoint of the folder adds to its files. What is run is written
    when the first step is done, so that one whose rewards fail leaves the folder free. The main
    process writes, and nothing random is drawn. A rollout log that is attached already stays.
    """

    def __init__(self, trainer: "PODSTrainer") -> None:
        self.trainer, self.clock = trainer, TrainingClock()
        self.is_main = trainer.accelerator.is_main_process
        self.console = Console(quiet=not self.is_main)
        self.folder: Path | None = None
        self._wanted = Path()
        self._goes_on = self._is_begun = self._logs_rollouts = False
        self.clock.attach(trainer)
        trainer.add_callback(self)
        _show_progress(trainer, self.console, self.clock)

    @property
    def names(self) -> dict[str, str]:
        """What the run is called in its files; a script's questions have no name."""
        return {"task": FROM_PYTHON, "model": self.trainer.model.config._name_or_path}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.folder is not None and not state.global_step:
            self.clock.restart()
        here, checkpoint = Path(args.output_dir), self.trainer.resumed_from
        self.trainer.resumed_from = None
        self._goes_on = checkpoint is not None and checkpoint.parent.resolve() == here.resolve()
        if here != self.folder:  # the script's own choice, and not ours of its last training
            self._wanted = here
        wanted = here if self._goes_on else self._wanted
        self.folder = from_main_process(lambda: _folder(wanted, goes_on=self._goes_on))
        args.output_dir, self._is_begun = str(self.folder), False
        self.metrics = MetricsFile(self.folder)
        self.metrics.on_train_begin(args, state, control)
        if self.is_main:
            keep_until(self.folder / CURVE, state.global_step)
        if self.trainer.rollout_log is None or self._logs_rollouts:
            attach_log(self.trainer, self.folder, about=self.names)
            self._logs_rollouts = True
        step = step_in_words(self.trainer.args, self.trainer.accelerator.num_processes)
        self._say(f"{step}; {self.folder}")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.is_main and not self._is_begun:
            self._begin(state)
        self._is_begun = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self._is_begun:
            self.metrics.on_log(args, state, control, logs=logs)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self.folder is None or not self.is_main or "eval_reward" not in (metrics or {}):
            return
        before = [row["step"] for row in read_curve(self.folder)]
        if state.global_step in before:  # by the script, after the last of the training's own
            return
        assert metrics is not None
        row = evaluation_row(self.trainer, metrics, self.clock, state.global_step)
        last = max(before, default=0)
        since = [each for each in read_metrics(self.folder) if each["step"] > last]
        for name, key in REWARDS.items():
            row[name] = mean_or_none([each[key] for each in since if each.get(key) is not None])
        append_lines(self.folder / CURVE, [row])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self.is_main or not self._is_begun:  # no step was left to do
            return
        assert self.folder is not None
        config, steps = self.trainer.args, state.global_step
        result = result_of(self.folder, config, steps, self.clock, **self.names)
        write_json(self.folder / "result.json", result)
        plot_run(self.folder, steps, self.console.print)
        self._say(f"everything is in {self.folder}: podsrl view {self.folder}")

    def _begin(self, state: TrainerState) -> None:
        """Write what is run, once its first step is done, which was this one."""
        assert self.folder is not None
        about: dict[str, Any] = {**self.names, "reward_funcs": self.trainer.reward_func_names}
        args = self.trainer.args
        if args.eval_strategy == "steps":  # as podsrl train calls it
            about["evaluate_every_steps"] = state.eval_steps
        settings, path = settings_of(args) | about, self.folder / "config.json"
        old = read_json(path) if self._goes_on and path.is_file() else {}
        write_settings(
            self.folder,
            settings,
            args.device,
            changes=changed_settings(old, settings),
            from_step=state.global_step - 1,
        )
        if self._goes_on:
            retire_result(self.folder)
        forget_claims(self.folder)

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _folder(wanted: Path, *, goes_on: bool) -> Path:
    """Where to write: on in the folder, or in a new one, claimed until its first step is done."""
    own = is_own(wanted)  # of a training of this process that ended in its first step
    if is_claimed(wanted) and goes_on and not own:
        raise ValueError(
            f"{wanted} is being trained by {owner(wanted)}: wait for its end or stop it"
        )
    if goes_on or own:
        return wanted
    return new_folder(wanted)[0]


def evaluation_row(
    trainer: "PODSTrainer", metrics: dict[str, Any], clock: TrainingClock, step: int
) -> dict[str, Any]:
    """A row of curve.jsonl (runs/evaluations.py), of what an evaluation of the trainer's measured.

    `held_out_reward` is the weighted sum of rewards on `eval_dataset`; `accuracy` the mean of the
    first reward function there if all its rewards that TRL still has (of the last batch) are 0 or
    1, else null. Their answers are sampled as in training, not greedy.
    """
    name = trainer.reward_func_names[0]
    values = list(trainer._logs["rewards"][name])
    is_share = bool(values) and set(values) <= {0.0, 1.0}
    return {
        "mark_seconds": None,
        "training_seconds": clock.seconds["training"],
        "step": step,
        "accuracy": metrics.get(f"eval_rewards/{name}/mean") if is_share else None,
        "held_out_reward": metrics["eval_reward"],
        "format_rate": None,
        "both_rate": None,
        "mean_length": metrics.get("eval_completions/mean_length"),
        "frac_cut_off": metrics.get("eval_completions/clipped_ratio"),
        "wall_seconds": clock.wall_seconds(),
    }


def _show_progress(trainer: "PODSTrainer", console: Console, clock: TrainingClock) -> None:
    """Put our progress in the place of transformers' bar, or of its table in a notebook."""
    shown = [type(each) for each in trainer.callback_handler.callbacks]
    if ProgressCallback in shown:
        trainer.remove_callback(ProgressCallback)
        if not console.quiet:
            trainer.add_callback(StepProgress(console, clock))
    for kind in shown:
        if kind.__name__ == "NotebookProgressCallback":  # needs IPython to be imported
            trainer.remove_callback(kind)
            trainer.add_callback(NotebookProgress())
