"""One look for every figure: widths of a two-column page, the Okabe-Ito palette, and pictures without a date in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLUMN_WIDTH = 3.4
"""Inches: one column of a two-column page."""
TEXT_WIDTH = 7.0
"""Inches: both columns."""
DPI = 240
FOLDER = Path(__file__).parent

BLACK, GREY = "#000000", "#666666"
ORANGE, SKY_BLUE, GREEN = "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"

_FONT_SIZES = {
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
}
"""Points, in a picture that is printed at its own width."""
_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "mathtext.fontset": "dejavusans",
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.linewidth": 0.4,
    "grid.color": "#DDDDDD",
    "lines.linewidth": 1.3,
    "lines.markersize": 4.0,
    "lines.solid_capstyle": "butt",
    "lines.dash_capstyle": "round",
}


@dataclass(frozen=True)
class Look:
    """How one parameterization is drawn, in every figure. The dashes tell the colours apart in grey, too.

    Attributes:
        label: As legends print it.
        color: Of the Okabe-Ito palette, which the common forms of colour blindness tell apart.
        linestyle: Matplotlib's line style.
        marker: Matplotlib's marker.
    """

    label: str
    color: str
    linestyle: Any
    marker: str

    def line(self, **options: Any) -> dict[str, Any]:
        """Keywords for ``Axes.plot``: label, colour and line style, overridden by ``options``."""
        return {"label": self.label, "color": self.color, "linestyle": self.linestyle, **options}


_LOOKS = {
    "epsilon": Look(r"$\epsilon$", VERMILLION, (0, (5, 1.5)), "o"),
    "sample": Look(r"$\hat{x}$", ORANGE, (0, (5, 1.5, 1, 1.5)), "s"),
    "v_prediction": Look(r"$v$", BLUE, "-", "^"),
    "flow": Look(r"flow, $\epsilon - x$", GREEN, (0, (1, 2.2)), "D"),
    "score": Look("score", PURPLE, (0, (3, 1, 1, 1, 1, 1)), "v"),
    "edm": Look("EDM's $F$", SKY_BLUE, "-", "P"),
    "optimal": Look("optimal", BLACK, (0, (0.1, 4)), "x"),
}


def look(name: str) -> Look:
    """The look of a parameterization by ``AngularParam.name`` (``edm(0.5)`` looks like ``edm``); grey if it has none."""
    kind = name.lstrip("-").partition("(")[0]
    return _LOOKS.get(kind, Look(name, GREY, "-", "."))


@contextmanager
def applied(font_scale: float = 1.0) -> Iterator[None]:
    """Draw and save inside this context: it sets the fonts and lines, and puts the caller's settings back.

    Args:
        font_scale: Above 1 for a picture that may be printed narrower than it is drawn.
    """
    sizes = {key: size * font_scale for key, size in _FONT_SIZES.items()}
    with matplotlib.rc_context(_RC | sizes):
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure in inches on the Agg canvas; it needs no display and no ``pyplot``."""
    fig = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(fig)
    return fig


def save(fig: Figure, stem: str, folder: Path | None = None) -> Path:
    """Write ``<stem>.png``, by default beside the scripts; the same figure gives the same bytes on any day."""
    path = (FOLDER if folder is None else folder) / f"{stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=DPI, metadata={"Software": None})
    return path
