"""A table of a report: cells with bounds, rows that belong together, and its text on a terminal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a cell says: a figure, with its bounds in small type, or a text that is a link."""

    text: str
    low: str | None = None
    high: str | None = None
    told: bool = False
    """Whether it stands out, because its interval leaves out 0."""
    href: str | None = None


Row = list[str | Cell]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; the first cell of a row names it, and those below with the same first cell."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Row]

    @property
    def groups(self) -> list[list[Row]]:
        """The rows, those together that share their first cell."""
        return [list(group) for _, group in groupby(self.rows, key=lambda row: row[0])]


def with_bounds(
    found: dict[str, Any], show: Callable[[Any], str], *, key: str = "value", told: bool = False
) -> Cell:
    """Return a figure with its bounds; "never" to "never" goes without saying.

    The bounds of `value` are `low` and `high`, those of another key `key_low` and `key_high`.
    """
    low, high = ("low", "high") if key == "value" else (f"{key}_low", f"{key}_high")
    if found[low] is None:
        return Cell(text=show(found[key]), told=told)
    text, bounds = show(found[key]), (show(found[low]), show(found[high]))
    if {text, *bounds} == {"never"}:
        return Cell(text=text, told=told)
    return Cell(text=text, low=bounds[0], high=bounds[1], told=told)


def in_text(table: Table) -> str:
    """Return a table for a terminal: columns two spaces apart, bounds in brackets."""
    lines = [list(table.head)]
    for group in table.groups:
        for index, row in enumerate(group):
            lines.append(
                [_in_text(cell) if place or not index else "" for place, cell in enumerate(row)]
            )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return f"{table.caption}\n" + "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _in_text(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return cell
    return cell.text if cell.low is None else f"{cell.text} ({cell.low} to {cell.high})"
