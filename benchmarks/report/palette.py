"""Colours of the reports: drawn as stand-ins, shown as the reader's theme wants them.

Charts are drawn in stand-in colours that occur nowhere else, and each is then replaced by a CSS
variable, so that one drawing serves light, dark and paper. The hues keep apart for readers who
see few colours (after Okabe and Ito's set), and every arm has a line style and a marker as well.
Nothing is drawn here.
"""

from __future__ import annotations

# Stand-in -> (variable, light, dark).
_INK = ("#010203", "ink", "#1b1f24", "#e8eaed")
_MUTED = ("#010204", "muted", "#59626d", "#a2abb5")
_GRID = ("#010205", "grid", "#e3e6ea", "#30363d")
_PAPER = ("#010206", "paper", "#ffffff", "#16191d")
_SLO = ("#010207", "slo", "#a33600", "#ff9d6e")

INK, MUTED, GRID, PAPER, SLO = (row[0] for row in (_INK, _MUTED, _GRID, _PAPER, _SLO))

_ARMS = (
    ("#010211", "arm-1", "#59626d", "#b3bac2"),
    ("#010212", "arm-2", "#0068a8", "#56b4e9"),
    ("#010213", "arm-3", "#c04a00", "#ff9152"),
    ("#010214", "arm-4", "#007a5a", "#2fcf9f"),
    ("#010215", "arm-5", "#a2417f", "#e79ac6"),
)
_STAGES = (
    ("#010221", "stage-1", "#bcc3cb", "#59626d"),
    ("#010222", "stage-2", "#0068a8", "#56b4e9"),
    ("#010223", "stage-3", "#e0a100", "#f0c541"),
    ("#010224", "stage-4", "#007a5a", "#2fcf9f"),
    ("#010225", "stage-5", "#a2417f", "#e79ac6"),
    ("#010226", "stage-6", "#c04a00", "#ff9152"),
    ("#010227", "stage-7", "#6a7b1f", "#b5c95a"),
    ("#010228", "stage-8", "#1b1f24", "#e8eaed"),
)
_OUTCOMES = (
    ("#010231", "better", "#00694b", "#4bd6aa"),
    ("#010232", "worse", "#a33600", "#ff9d6e"),
    ("#010233", "tie", "#59626d", "#a2abb5"),
    ("#010234", "unknown", "#59626d", "#a2abb5"),
)

OUTCOME = {row[1]: row[0] for row in _OUTCOMES}

# Matplotlib's dash patterns, in line widths, and the same as SVG's stroke-dasharray.
_DASHES: tuple[tuple[float, ...], ...] = ((5, 2), (), (6, 1.6, 1.2, 1.6), (1.4, 1.4), (9, 3))
MARKERS = ("o", "s", "^", "D", "v")

ALL = (_INK, _MUTED, _GRID, _PAPER, _SLO, *_ARMS, *_STAGES, *_OUTCOMES)


def arm_colour(index: int) -> str:
    """The stand-in of the ``index``-th arm; the sixth looks like the first again."""
    return _ARMS[index % len(_ARMS)][0]


def arm_variable(index: int) -> str:
    """The CSS variable of the ``index``-th arm, without its dashes."""
    return _ARMS[index % len(_ARMS)][1]


def arm_dashes(index: int) -> tuple[float, ...]:
    """Its line style: lengths of dashes and gaps in line widths; empty for a whole line."""
    return _DASHES[index % len(_DASHES)]


def arm_marker(index: int) -> str:
    """Its marker, by matplotlib's names."""
    return MARKERS[index % len(MARKERS)]


def stage_colour(index: int) -> str:
    """The stand-in of the ``index``-th stage of a request."""
    return _STAGES[index % len(_STAGES)][0]


def stage_variable(index: int) -> str:
    """The CSS variable of the ``index``-th stage."""
    return _STAGES[index % len(_STAGES)][1]


def themed(svg: str) -> str:
    """``svg`` with every stand-in replaced by its CSS variable."""
    for stand_in, variable, _light, _dark in ALL:
        svg = svg.replace(stand_in, f"var(--{variable})")
    return svg


def css_variables(theme: str) -> str:
    """Declarations of all variables for ``light`` or ``dark``."""
    column = 2 if theme == "light" else 3
    return "".join(f"--{row[1]}:{row[column]};" for row in ALL)
