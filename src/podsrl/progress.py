"""A progress bar for work that reports how much of it is done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def counted(report: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    """What is told how much more is done, and tells `report` (done, total).

    Example: of a total of 10, told 3 and then 2, it tells (3, 10) and (5, 10).
    """
    done = 0

    def count(num: int) -> None:
        nonlocal done
        done += num
        report(done, total)

    return count


@contextmanager
def progress_bar(console: Console, text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that is moved by calling what it yields with (done, total); none without a terminal.

    Example: `with progress_bar(Console(), "answers") as report: report(3, 10)` shows 3/10.
    """
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    off = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=off) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
