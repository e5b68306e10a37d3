r"""Figure 5 in small: drawn digits after stage 1 alone and after both stages, from a record of ``experiments/figure5.py``.

Above: pictures of the first seed, of the same captions and noise. Below: the share of patches that are holes; a dot a seed, the
dotted line is real test scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.paper_study.arms import ARMS
from experiments.pictures import unpacked
from paper_figures import style
from paper_figures.from_record import figure_command

SHOWN = ("stage1_only", "v_mixed")
COLORS = {"stage1_only": style.VERMILLION, "v_mixed": style.BLUE, "normal": style.GREEN, "uniform": style.GREY}


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at text width."""
    found = record["results"]
    names = list(found["holes"])
    fig = style.figure(style.TEXT_WIDTH, 3.2)
    grid = fig.add_gridspec(2, 2, height_ratios=(2, 1))
    for column, name in enumerate(SHOWN):
        ax = fig.add_subplot(grid[0, column])
        ax.imshow(_sheet(found["pictures"][name]), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        ax.set_axis_off()
        ax.set_title(f"{'ab'[column]}   {ARMS[name].label.removeprefix('MMAR: ')}", loc="left")
    ax = fig.add_subplot(grid[1, :])
    for row, name in enumerate(names):
        values = [100 * v for v in found["holes"][name]["seeds"]]
        ax.plot(values, [row] * len(values), color=COLORS[name], marker="o", linestyle="none")
    ax.axvline(100 * found["holes_in_test_scans"], color=style.GREY, linestyle=(0, (1, 1.5)))
    ax.set_yticks(range(len(names)), [ARMS[name].label.removeprefix("MMAR: ") for name in names])
    ax.invert_yaxis()
    ax.set(xlabel="holes, per cent of patches", xlim=(0, None), ylim=(len(names) - 0.5, -0.5))
    ax.set_title("c   patches that the rest of the picture makes surprising", loc="left")
    ax.grid(True, axis="y")
    return fig


def _sheet(pictures: Sequence[str], columns: int = 10) -> np.ndarray:
    """Ten digits a line, a pixel between them."""
    tiles = np.stack([np.asarray(unpacked(one).convert("L")) for one in pictures])  # (n, 8, 8)
    padded = np.pad(tiles, ((0, 0), (1, 0), (1, 0)), constant_values=128)  # (n, 9, 9)
    return padded.reshape(-1, columns, 9, 9).transpose(0, 2, 1, 3).reshape(-1, 9 * columns)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    figure_command("figure5", draw, argv)


if __name__ == "__main__":
    main()
