r"""MMAR with one thing changed, from a record of ``experiments/ablations.py``, against the spread of its seeds in table 3.

a: questions about test scans, mean over families. b: Frechet distance of drawn digits to test scans, from t = 999 (filled)
and from the largest t that is safe for epsilon (open). Grey bands: from the smallest to the largest seed of the unchanged
model in ``experiments/table3.py``; one run inside the band shows no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.record import read_record
from paper_figures import style
from paper_figures.arm_rows import FILLED, OPEN, draw_rows, rows_of
from paper_figures.from_record import figure_command

WAYS = {"last": ("o", FILLED), "safe": ("o", OPEN)}
UNCHANGED = ("table3-cpu", "v_mixed")
"""Record and arm of the bands."""


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at text width."""
    results = record["results"]
    rows = rows_of(results["arms"])
    fig = style.figure(style.TEXT_WIDTH, 0.24 * len(rows) + 0.9)
    a, b = fig.subplots(1, 2, sharey=True)
    name, arm = UNCHANGED
    unchanged = read_record(name)["results"]["arms"][arm]
    for ax, cell, scale in ((a, unchanged["reading"], 100), (b, unchanged["drawing"]["last"]["frechet"], 1)):
        ax.axvspan(scale * cell["min"], scale * cell["max"], color=style.GREY, alpha=0.2, linewidth=0)
    draw_rows(a, b, rows, WAYS, reference=results["reference"].get("frechet"))
    a.set_title("a   read, %", loc="left")
    b.set_title("b   Frechet distance (digit features)", loc="left")
    return fig


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    figure_command("ablations", draw, argv)


if __name__ == "__main__":
    main()
