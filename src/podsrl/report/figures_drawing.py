"""One figure of the report: axes, legend, and the two files it becomes."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from podsrl.report.theme import GRID, INK, STYLE

SIZE_INCHES = (4.6, 3.1)
LEGEND_LETTERS = 48
"""How many letters of a legend stand beside each other in that width."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing: a short name for files, what stands above it, what it shows in words."""

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    png: bytes


def figure(*, name: str, title: str, caption: str, alt: str, draw: Callable[[Any], None]) -> Figure:
    """Return the figure that `draw` makes on matplotlib axes; the same bytes every time."""
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        drawing = Drawing(figsize=SIZE_INCHES, layout="constrained")
        axes = drawing.subplots()
        draw(axes)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        _add_legend(drawing, axes)
        drawing.draw_without_rendering()
        drawing.set_layout_engine("none")  # the layout is found; it need not be found per file
        svg, png = io.StringIO(), io.BytesIO()
        drawing.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        drawing.savefig(png, format="png", dpi=200, facecolor="white")
    return Figure(
        name=name, title=title, caption=caption, alt=alt, svg=svg.getvalue(), png=png.getvalue()
    )


def _add_legend(drawing: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(4, LEGEND_LETTERS // (max(map(len, labels)) + 4)))
    drawing.legend(
        handles, labels, loc="outside upper left", ncols=columns, frameon=False, labelcolor=INK
    )
