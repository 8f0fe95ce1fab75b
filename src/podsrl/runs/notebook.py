"""Progress of a training in a notebook: a table that grows under the cell."""

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from podsrl.runs.callbacks import figures_of

MOST_ROWS = 12


class NotebookProgress(TrainerCallback):
    """Shows the last logged steps with reward, kept variance, dead groups, and the time left."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []
        self.start, self.first_step = 0.0, 0
        self._display: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        from IPython.display import HTML, display

        self.rows, self.start, self.first_step = [], time.perf_counter(), state.global_step
        self._display = display(HTML(self.page(state)), display_id=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._show(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.rows.append({"step": str(state.global_step), **figures_of(logs)})
            self._show(state)

    def page(self, state: TrainerState) -> str:
        """The HTML: how far it is, and a row for each of the last logged steps."""
        done, total = state.global_step, state.max_steps
        line = f"step {done} of {total}"
        if done > self.first_step:
            seconds = (time.perf_counter() - self.start) / (done - self.first_step)
            line += f", {seconds:.1f} s a step, {seconds * (total - done) / 60:.1f} min left"
        parts = [f"<p>{line}</p>"]
        if self.rows:
            parts += ["<table>", _row(self.rows[0], "th")]
            parts += [_row(row.values(), "td") for row in self.rows[-MOST_ROWS:]]
            parts.append("</table>")
        return "\n".join(parts)

    def _show(self, state: TrainerState) -> None:
        from IPython.display import HTML

        self._display.update(HTML(self.page(state)))


def _row(cells: Any, kind: str) -> str:
    return "<tr>" + "".join(f"<{kind}>{cell}</{kind}>" for cell in cells) + "</tr>"
