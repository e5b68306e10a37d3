"""Predicted against measured error of the final sample, from a record of ``experiments/prediction_check.py``.

Left: every case, over many decades; cases that the prediction flagged before the run are drawn open. Right: the distribution of
measured over predicted, for unflagged and flagged cases.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.record import read_record
from paper_figures import style

KINDS = {
    "Gaussian data": ("gaussian", style.BLUE, "o"),
    "mixture": ("mixture", style.GREEN, "^"),
    "two points": ("two_point", style.ORANGE, "s"),
    "digits, trained head": ("digits", style.VERMILLION, "D"),
}


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at text width."""
    results = record["results"]
    table = [dict(zip(results["columns"], row, strict=True)) for row in results["rows"]]
    rows = [row for row in table if row["measured"] and row["predicted"] and row["measured"] > 1e-9]
    fig = style.figure(style.TEXT_WIDTH, 3.1)
    left, right = fig.subplots(1, 2, width_ratios=(1.2, 1))
    _scatter(left, rows)
    _ratios(right, rows)
    return fig


def _scatter(ax: Axes, rows: list[dict[str, Any]]) -> None:
    for label, (start, color, marker) in KINDS.items():
        mine = [row for row in rows if row["data"].startswith(start)]
        for flagged in (True, False):
            some = [row for row in mine if row["flagged"] is flagged]
            ax.plot(
                [row["predicted"] for row in some], [row["measured"] for row in some], linestyle="none", marker=marker,
                markersize=2.6, color=color, markerfacecolor="none" if flagged else color, markeredgewidth=0.4,
                alpha=0.7, label=None if flagged else label, zorder=1 if flagged else 2,
            )  # fmt: skip
    ends = (1e-6, 3.0)
    ax.plot(ends, ends, color=style.BLACK, linewidth=0.7)
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    ax.set(xlabel="predicted rms error of the final sample", ylabel="measured (per element)")
    ax.set_title("a   every case; open: flagged beforehand", loc="left")
    ax.legend(loc="lower right", handlelength=1.0)
    ax.minorticks_off()


def _ratios(ax: Axes, rows: list[dict[str, Any]]) -> None:
    edges = np.geomspace(0.3, 3.0, 61)
    for flagged, label, color, style_of in ((True, "flagged", style.ORANGE, "--"), (False, "unflagged", style.BLUE, "-")):
        ratio = np.array([row["measured"] / row["predicted"] for row in rows if row["flagged"] is flagged])
        outside = np.mean((ratio < edges[0]) | (ratio > edges[-1]))
        counts, _ = np.histogram(ratio.clip(edges[0], edges[-1]), edges)
        text = f"{label}: {len(ratio)} cases" + (f",\n{100 * outside:.0f} % beyond the axis" if outside > 0 else "")
        ax.stairs(100 * counts / len(ratio), edges, color=color, linestyle=style_of, label=text, linewidth=1.2)
    for edge in (0.9, 1.1):
        ax.axvline(edge, color=style.GREY, linewidth=0.7, linestyle=(0, (2, 2)))
    ax.set_xscale("log")
    ax.set_xticks([0.3, 0.5, 0.7, 1, 1.5, 2, 3], ["0.3", "0.5", "0.7", "1", "1.5", "2", "3"])
    ax.minorticks_off()
    ax.set(xlabel="measured / predicted", ylabel="share of the cases, per cent")
    ax.set_title("b   ratio; dashed lines at ±10 %", loc="left")
    ax.legend(loc="upper left", handlelength=1.2, borderaxespad=0.2)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    parser = argparse.ArgumentParser(
        description="Predicted against measured error, from a record of experiments/prediction_check.py."
    )
    parser.add_argument("--record", default="prediction_check-cpu", help="name in experiments/records, or a path")
    parser.add_argument("--out", type=Path, default=style.FOLDER, help="folder for the picture (default: beside this script)")
    args = parser.parse_args(argv)
    with style.applied():
        print(style.save(draw(read_record(args.record)), "prediction_check", args.out))


if __name__ == "__main__":
    main()
