r"""Table 3 on drawn scenes, from a record of ``experiments/table3_scenes.py``: is it rounding that keeps epsilon from drawing?

a: questions about test scenes, mean over families; the dotted line is chance. b: Frechet distance of drawn scenes to test
scenes, from t = 999 (filled) and from the largest t that is safe for epsilon (open); crosses: the same weights and noise in
float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.arm_rows import FILLED, OPEN, draw_rows, rows_of
from paper_figures.from_record import figure_command

WAYS = {"last": ("o", FILLED), "safe": ("o", OPEN), "last_float32": ("x", FILLED), "safe_float32": ("x", FILLED)}


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at text width."""
    results = record["results"]
    rows = rows_of(results["arms"])
    fig = style.figure(style.TEXT_WIDTH, 0.28 * len(rows) + 0.9)
    a, b = fig.subplots(1, 2, sharey=True, width_ratios=(1, 2))
    draw_rows(a, b, rows, WAYS, reference=results["references"]["real scenes"].get("frechet"))
    a.axvline(100 * results["chance"]["mean"], color=style.GREY, linestyle=(0, (1, 1.5)))
    a.set_title("a   read, %", loc="left")
    b.set_title("b   Frechet distance (scene features)", loc="left")
    return fig


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    figure_command("table3_scenes", draw, argv)


if __name__ == "__main__":
    main()
