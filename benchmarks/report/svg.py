"""From a matplotlib figure to a piece of SVG that fits into a page.

It takes out what a page does not need (prologue, metadata, comments, idle ids, long decimals),
makes the ids that are left unique in the page, puts the theme's variables in, and gives the
drawing a title and a description for readers who cannot see it. It draws nothing itself and
keeps no state: equal figures give equal text.
"""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
from markupsafe import escape
from matplotlib.figure import Figure

from benchmarks.report.palette import GRID, INK, MUTED, themed

# Text stays text; names of arms and classes are never read as formulas.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "baton",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "path.simplify": True,
}

_NUMBERS = re.compile(r' (d|x|y|x1|y1|x2|y2|width|height|transform|points)="([^"]*)"')
_DECIMALS = re.compile(r"(-?\d+\.\d)\d+")
_STYLE = re.compile(r"<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)
_FONT = re.compile(r"font: ([^;\"]*?)(\d+(?:\.\d+)?px) [^;\"]*")
_FAMILY = re.compile(r"font-family: [^;\"]*;? ?")
_ROOT = "font-family: var(--font, sans-serif); stroke-linejoin: round; stroke-linecap: butt"


def to_svg(figure: Figure, *, ident: str, title: str, description: str) -> str:
    """The figure as one ``<svg>`` element.

    Args:
        figure: drawn inside ``styled()``, in stand-in colours.
        ident: unique in the page; letters, digits and dashes.
        title: a short name of the chart.
        description: what it shows, in words.
    """
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = _STYLE.sub("", text)
    text = _NUMBERS.sub(lambda m: f' {m[1]}="{_shorter(m[2])}"', text)
    text = _FONT.sub(r"font: \1\2 var(--font, sans-serif)", text)
    text = _FAMILY.sub("", text)
    text = _unique_ids(text, ident)
    text = re.sub(r' transform="rotate\(-?0[ )][^"]*"', "", text)
    text = re.sub(r">\s+<", "><", text)
    return themed(_head(text, ident, title, description)).strip()


def styled() -> Any:
    """A context in which figures have to be built, so that the style applies to them."""
    return mpl.rc_context(STYLE)


def _shorter(numbers: str) -> str:
    text = _DECIMALS.sub(r"\1", " ".join(numbers.split()))
    return re.sub(r"([MLzCQ]) ", r"\1", re.sub(r" (?=[MLzCQ])", "", text))


def _unique_ids(text: str, ident: str) -> str:
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))

    def rename(match: re.Match[str]) -> str:
        return f' id="{ident}-{match[1]}"' if match[1] in used else ""

    text = re.sub(r' id="([^"]+)"', rename, text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{ident}-\1)", text)
    # The xlink prefix needs a declaration, a plain href none.
    return re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{ident}-\1"', text)


def _head(text: str, ident: str, title: str, description: str) -> str:
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None, "matplotlib writes a viewBox"
    body = text[text.index(">", text.index("<svg")) + 1 :]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box[1]}" role="img" style="{_ROOT}" '
        f'aria-labelledby="{ident}-t {ident}-d"><title id="{ident}-t">{escape(title)}</title>'
        f'<desc id="{ident}-d">{escape(description)}</desc>{body}'
    )
