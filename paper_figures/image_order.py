r"""Random masks against causal raster order, from a record of ``experiments/image_order.py``.

a: questions about test scans. b: Frechet distance of drawn digits to test scans; the dotted line is real scans. c: share of
drawn digits that are recognised. Bars go from the smallest to the largest seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.image_order import LABELS
from paper_figures import style
from paper_figures.arm_rows import FILLED, Row, draw_cells, draw_rows, frame_rows
from paper_figures.from_record import figure_command

COLORS = {"random": style.BLUE, "raster": style.ORANGE}
"""By the first word of a way."""


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at text width."""
    results = record["results"]
    colors = {name: COLORS[name.partition(",")[0]] for name in results["ways"]}
    rows = [Row(LABELS[name], colors[name], way["reading"], {"last": way["frechet"]}) for name, way in results["ways"].items()]
    fig = style.figure(style.TEXT_WIDTH, 0.3 * len(rows) + 0.9)
    a, b, c = fig.subplots(1, 3, sharey=True)
    draw_rows(a, b, rows, {"last": ("o", FILLED)}, reference=results["reference"].get("frechet"))
    for at, (name, way) in enumerate(results["ways"].items()):
        draw_cells(c, way["recognised"], at, colors[name], scale=100.0)
    frame_rows(c, len(rows))
    for ax, title in ((a, "a   read, %"), (b, "b   Frechet distance"), (c, "c   recognised, %")):
        ax.set_title(title, loc="left")
    return fig


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    figure_command("image_order", draw, argv)


if __name__ == "__main__":
    main()
