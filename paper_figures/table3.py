r"""Table 3 in small beside the paper's own numbers, from a record of ``experiments/table3.py``.

a: questions about test scans, mean over families; a dot a seed. b: Frechet distance of drawn digits to test scans, from
t = 999 (filled) and from the largest t that is safe for epsilon (open). c, d: what the paper prints for its models of 0.5B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.arm_rows import COLORS, FILLED, OPEN, draw_rows, frame_rows, rows_of
from paper_figures.from_record import figure_command

PUBLISHED = {
    "v_mixed": (34.56, 36.6),
    "eps_mixed": (32.21, 61.53),
    "vq_projector": (29.7, 66.26),
    "transfusion": (28.26, 95.38),
}
"""AVE@18 and FID-30K of table 3 (arXiv 2410.10798), by the arm that stands for the row."""
WAYS = {"last": ("o", FILLED), "safe": ("o", OPEN)}


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at text width."""
    results = record["results"]
    rows = rows_of(results["arms"])
    fig = style.figure(style.TEXT_WIDTH, 0.24 * len(rows) + 1.1)
    a, b, c, d = fig.subplots(1, 4, sharey=True, width_ratios=(4, 6, 3, 3))
    draw_rows(a, b, rows, WAYS, reference=results["reference"].get("frechet"))
    for ax, column in ((c, 0), (d, 1)):
        for at, name in enumerate(results["arms"]):
            if name in PUBLISHED:
                ax.plot(PUBLISHED[name][column], at, linestyle="none", marker="o", color=COLORS[name.partition("_")[0]])
        frame_rows(ax, len(rows))
    titles = ("a   read, %", "b   Frechet distance\n(digit features)", "c   AVE@18,\nthe paper's", "d   FID-30K,\nthe paper's")
    for ax, title in zip((a, b, c, d), titles, strict=True):
        ax.set_title(title, loc="left")
    return fig


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    figure_command("table3", draw, argv)


if __name__ == "__main__":
    main()
