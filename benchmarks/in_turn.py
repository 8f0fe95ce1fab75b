"""One of two training runs that go on step by step in turn, so that both meet the same machine.

Started by `paths.py --in_turn`, as `python in_turn.py FOLDER NAME OTHER ARGUMENTS OF podsrl`.
FOLDER/turn holds the name of the run whose step it is; a run that has ended leaves FOLDER/NAME.
"""

import sys
import time
from pathlib import Path
from typing import Any

from podsrl.cli import main

POLL_SECONDS = 0.002


def take_turns(folder: Path, name: str, other: str) -> Any:
    """A callback that waits for this run's turn before each step and gives it away after it."""
    from transformers import TrainerCallback

    class InTurn(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            while (folder / "turn").read_text() not in (name, "") and not (folder / other).exists():
                time.sleep(POLL_SECONDS)

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            (folder / "turn").write_text(other)

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            (folder / name).touch()

    return InTurn()


if __name__ == "__main__":
    import transformers

    folder, name, other, *arguments = sys.argv[1:]
    begin = transformers.Trainer.__init__

    def with_turns(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self.add_callback(take_turns(Path(folder), name, other))

    transformers.Trainer.__init__ = with_turns  # type: ignore[method-assign]
    sys.exit(main(arguments))
