"""How figures look: colours, type, legend; light in the files, with the page's variables inline."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

INK, MUTED, GRID = "#1d2025", "#5d646e", "#dfe2e7"

ARMS = (
    ("#6a717c", "#a4acb8"),
    ("#1f66c1", "#6fb1ff"),
    ("#c2481a", "#ff9a66"),
    ("#1b8457", "#5ccf9c"),
    ("#7d4bc4", "#bd9bff"),
    ("#a97c08", "#e3c04d"),
    ("#b83280", "#ff86c3"),
    ("#187f8c", "#5fcbd8"),
)
"""Light and dark colour of each arm, the baseline's (grey) first."""

PHASE_COLORS = {
    "sampling": ("#2f6fb5", "#6fb1ff"),
    "rewards": ("#b58a1b", "#e3c04d"),
    "selection": ("#3b8f5c", "#5ccf9c"),
    "update": ("#b3502e", "#ff9a66"),
}
"""Light and dark colour of each phase of a step."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")

WIDTH_INCHES, HEIGHT_INCHES = 4.6, 3.1
LEGEND_LETTERS = 48
"""How many letters of a legend stand beside each other in that width."""
LEGEND_ROW_INCHES = 0.2
LONGEST_LABEL = 28
"""An arm's name that is longer is cut in figures: it would leave them no room."""

STYLE: dict[str, Any] = {
    "font.size": 10.0,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a $ in an arm's name is a $
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.left": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.4,
    "legend.borderaxespad": 0.2,
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing: a short name for files, what stands above it, what it shows in words."""

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    png: bytes


def color_of(index: int) -> str:
    """The light colour of the arm at that place; colours repeat, markers then differ."""
    return ARMS[index % len(ARMS)][0]


def figure(
    *,
    name: str,
    title: str,
    caption: str,
    alt: str,
    draw: Callable[[Any], None],
    height: float = HEIGHT_INCHES,
    panels: tuple[int, int] | None = None,
) -> Figure:
    """Return the figure that `draw` makes on matplotlib axes; the same bytes every time.

    With `panels`, rows and columns, `draw` gets the axes of all panels in one list; they share
    their scales.
    """
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        drawing = Drawing(figsize=(WIDTH_INCHES, height), layout="constrained")
        if panels:
            every = list(drawing.subplots(*panels, sharex=True, sharey=True, squeeze=False).flat)
            draw(every)
        else:
            every = [drawing.subplots()]
            draw(every[0])
            _add_legend(drawing, every[0])
        for axes in every:
            axes.grid(color=GRID, linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right", "left"]].set_visible(False)
        drawing.draw_without_rendering()
        drawing.set_layout_engine("none")  # the layout is found; it need not be found per file
        svg, png = io.StringIO(), io.BytesIO()
        drawing.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        drawing.savefig(png, format="png", dpi=200, facecolor="white")
    return Figure(
        name=name, title=title, caption=caption, alt=alt, svg=svg.getvalue(), png=png.getvalue()
    )


def label_of(name: str) -> str:
    """The name as it stands in a figure; matplotlib leaves names that begin with _ out."""
    short = name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"
    return f" {short}" if short.startswith("_") else short


def _add_legend(drawing: Any, axes: Any) -> None:
    """A legend above the axes, for which the figure grows: many arms must leave room to draw."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(4, LEGEND_LETTERS // (max(map(len, labels)) + 4)))
    rows = -(-len(labels) // columns)
    drawing.set_figheight(drawing.get_figheight() + LEGEND_ROW_INCHES * max(0, rows - 3))
    drawing.legend(
        handles, labels, loc="outside upper left", ncols=columns, frameon=False, labelcolor=INK
    )


def css_variables() -> tuple[str, str]:
    """The figures' variables for a light and for a dark page, as CSS declarations."""
    light = {"--ink": INK, "--muted": MUTED, "--grid": GRID}
    dark = {"--ink": "#eceef1", "--muted": "#a7aeb9", "--grid": "#333941"}
    for index, pair in enumerate(ARMS):
        light[f"--arm-{index}"], dark[f"--arm-{index}"] = pair
    for index, pair in enumerate(PHASE_COLORS.values()):
        light[f"--phase-{index}"], dark[f"--phase-{index}"] = pair
    return tuple(  # type: ignore[return-value]
        "".join(f"{name}:{value};" for name, value in variables.items())
        for variables in (light, dark)
    )


def inline(svg: str, prefix: str, alt: str) -> Markup:
    """Return matplotlib's SVG for the page: named for readers, themed, ids unique to the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"font(-family)?: ?([\d.]+px )?['\"]?(DejaVu Sans|sans-serif)[^;\"]*", _font, svg)
    for variable, color in _names().items():
        svg = svg.replace(color, f"var({variable})")
    size = re.search(r'viewBox="([^"]+)"', svg)
    assert size, "matplotlib writes a viewBox"
    head = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(size[1], alt)
    return head + Markup(svg[svg.index(">") + 1 :].strip())


def _font(match: re.Match[str]) -> str:
    return f"font-size: {match[2].strip()}" if match[2] else "font-family: inherit"


def _names() -> dict[str, str]:
    names = {"--ink": INK, "--muted": MUTED, "--grid": GRID}
    names |= {f"--arm-{index}": light for index, (light, _) in enumerate(ARMS)}
    colors = PHASE_COLORS.values()
    return names | {f"--phase-{index}": light for index, (light, _) in enumerate(colors)}
