"""Colours and type of the figures; light colours in the files, the page's variables inline."""

import re
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


def color_of(index: int) -> str:
    """The light colour of the arm at that place; colours repeat, markers then differ."""
    return ARMS[index % len(ARMS)][0]


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
