"""Rows of arms: what each reads and how far from real images it draws, with the spread of its seeds; for several figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.paper_study.arms import ARMS
from paper_figures import style

COLORS = {"v": style.BLUE, "eps": style.VERMILLION, "epsw": style.ORANGE, "vq": style.GREEN, "transfusion": style.PURPLE}
"""By the first word of an arm's name; others are grey."""
FILLED, OPEN = "filled", "white"


@dataclass(frozen=True)
class Row:
    """One line of a figure.

    Attributes:
        label: At its left.
        color: Of its marks.
        read: Share of questions, over seeds: ``mean``, ``min``, ``max`` and, where the record has them, ``seeds``.
        distances: Likewise by way of drawing.
    """

    label: str
    color: str
    read: Mapping[str, Any] | None
    distances: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def rows_of(arms: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> list[Row]:
    """Rows of a record's ``arms`` (or ``sizes``), in their order."""
    found = []
    for name, one in arms.items():
        label = ARMS[name].label if labels is None else labels[name]
        read = one["reading"].get("test", {"mean": one["reading"]})["mean"]  # of scenes: by split and family
        distances = {way: of["frechet"] for way, of in one["drawing"].items()}
        color = COLORS.get(name.partition("_")[0], style.GREY)
        found.append(Row(label.removeprefix("MMAR: "), color, read, distances))
    return found


def draw_rows(
    reading: Axes,
    distance: Axes,
    rows: Sequence[Row],
    ways: Mapping[str, tuple[str, str]],
    *,
    reference: float | None = None,
) -> None:
    """Fill two axes that share their rows.

    Args:
        reading: Axes for percent of questions answered.
        distance: For Frechet distances, on a logarithmic axis.
        rows: From the top.
        ways: Marker and face (``filled`` or a colour) of each way of drawing that is shown.
        reference: Distance of real images, as a dotted line.
    """
    for at, row in enumerate(rows):
        if row.read is not None:
            draw_cells(reading, row.read, at, row.color, scale=100.0)
        for way, (marker, face) in ways.items():
            if row.distances.get(way, {}).get("mean") is not None:
                draw_cells(distance, row.distances[way], at, row.color, marker=marker, face=face)
    if reference is not None:
        distance.axvline(reference, color=style.GREY, linestyle=(0, (1, 1.5)))
    distance.set_xscale("log")
    distance.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if _is_narrow(rows) else (1.0,)))
    distance.xaxis.set_major_formatter("{x:g}")
    distance.xaxis.set_minor_formatter(NullFormatter())
    reading.set_yticks(range(len(rows)), [row.label for row in rows])
    for ax in (reading, distance):
        frame_rows(ax, len(rows))


def frame_rows(ax: Axes, rows: int) -> None:
    """The first row on top, a line for each."""
    ax.grid(True, axis="y")
    ax.set_axisbelow(True)
    ax.margins(x=0.1)
    ax.set_ylim(rows - 0.4, -0.6)


def _is_narrow(rows: Sequence[Row]) -> bool:
    """Less than two decades: an axis with few powers of ten."""
    values = [cell["mean"] for row in rows for cell in row.distances.values() if cell["mean"] is not None]
    return not values or max(values) < 100 * min(values)


def draw_cells(
    ax: Axes,
    cell: Mapping[str, Any],
    at: int,
    color: str,
    *,
    scale: float = 1.0,
    marker: str = "o",
    face: str = FILLED,
    size: float | None = None,
) -> None:
    """A mark for each seed of a record's cell, or one at its mean, with a bar from the smallest to the largest."""
    values = [scale * value for value in cell.get("seeds", [cell["mean"]]) if value is not None]
    ax.plot([scale * cell["min"], scale * cell["max"]], [at, at], color=color, linewidth=0.8)
    marks = {"linestyle": "none", "marker": marker, "color": color, "markerfacecolor": color if face == FILLED else face}
    ax.plot(values, [at] * len(values), markersize=size, **marks)
