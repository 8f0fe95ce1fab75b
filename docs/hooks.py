"""What mkdocs does to a page on its way to the site: links into the repository become its paths."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with links to files outside docs/, which no site has, as text."""
    return OUTSIDE.sub(in_repository, markdown)


def in_repository(link: re.Match[str]) -> str:
    """Return the words of a link and the path that it leads to.

    Example: `[the loop](../examples/loop.py)` becomes "the loop (`examples/loop.py`)".
    """
    words, path = link[1], link[2].removeprefix("../").partition("#")[0]
    if not (ROOT / path).exists():
        raise FileNotFoundError(f"a page links to {path}, which is not there")
    plain = words.strip("`")
    return f"`{path}`" if plain in (path, Path(path).name) else f"{words} (`{path}`)"
