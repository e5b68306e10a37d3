r"""The families of table 1 and three sizes of MMAR, in small, from a record of ``experiments/table1.py``.

Above families of joint models, below sizes, each with a language model of its own (x: factor of the learning rate). a:
questions about test scans, mean over families of questions; squares: the same told by captions, which the language model
reads alone. b: Frechet distance of drawn digits to test scans, from t = 999; the dotted line is real scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.arm_rows import FILLED, OPEN, draw_rows, rows_of
from paper_figures.from_record import figure_command

WAYS = {"last": ("o", FILLED)}


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at text width."""
    results = record["results"]
    sizes, reference = results["sizes"], results["reference"].get("frechet")
    labels = {name: f"{name.removeprefix('mmar-digits') or ' middle'}".strip(" -") for name in sizes}
    blocks = (rows_of(results["arms"]), rows_of(sizes, labels))
    fig = style.figure(style.TEXT_WIDTH, 0.26 * sum(len(rows) for rows in blocks) + 1.3)
    axes = fig.subplots(2, 2, sharex="col", width_ratios=(1, 1), height_ratios=[len(rows) for rows in blocks])
    for (a, b), rows in zip(axes, blocks, strict=True):
        draw_rows(a, b, rows, WAYS, reference=reference)
        b.set_yticks(range(len(rows)), [""] * len(rows))
    below = axes[1][0]
    for at, one in enumerate(sizes.values()):
        told = 100 * one["reading_captions"]["mean"]
        below.plot(told, at, linestyle="none", marker="s", color=style.GREY, markerfacecolor=OPEN)
    axes[0][0].set_title("a   read, %", loc="left")
    axes[0][1].set_title("b   Frechet distance (digit features)", loc="left")
    return fig


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    figure_command("table1", draw, argv)


if __name__ == "__main__":
    main()
