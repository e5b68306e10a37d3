r"""Table 3 in small beside the paper's own numbers, from a record of ``experiments/table3.py``.

a: questions about test scans, mean over families; a dot a seed. b: Frechet distance of drawn digits to test scans, from
t = 999 (filled) and from the largest t that is safe for epsilon (open). c, d: what the paper prints for its models of 0.5B.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.paper_study.arms import ARMS
from experiments.record import read_record
from paper_figures import style

PUBLISHED = {"v_mixed": (34.56, 36.6), "eps_mixed": (32.21, 61.53), "vq": (29.7, 66.26), "transfusion": (28.26, 95.38)}
"""AVE@18 and FID-30K of table 3 (arXiv 2410.10798), by the arm that stands for the row."""
COLORS = {"v": style.BLUE, "eps": style.VERMILLION, "epsw": style.ORANGE, "vq": style.GREEN, "transfusion": style.PURPLE}


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at text width."""
    results = record["results"]
    names = list(results["arms"])
    fig = style.figure(style.TEXT_WIDTH, 0.24 * len(names) + 1.1)
    a, b, c, d = fig.subplots(1, 4, sharey=True, width_ratios=(4, 6, 3, 3))
    for row, name in enumerate(names):
        arm, color = results["arms"][name], COLORS[name.partition("_")[0]]
        a.plot([100 * v for v in arm["reading"]["seeds"]], [row] * len(arm["reading"]["seeds"]), **_dots(color))
        for way, face in (("last", color), ("safe", "white")):
            values = arm["drawing"].get(way, {}).get("frechet", {"seeds": []})["seeds"]
            shown = [v for v in values if v is not None]
            b.plot(shown, [row] * len(shown), **_dots(color, face))
        if name in PUBLISHED:
            for ax, value in zip((c, d), PUBLISHED[name], strict=True):
                ax.plot([value], [row], **_dots(color))
    floor = results["reference"].get("frechet")
    if floor is not None:
        b.axvline(floor, color=style.GREY, linestyle=(0, (1, 1.5)))
    titles = ("a   read, %", "b   Frechet distance\n(digit features)", "c   AVE@18,\nthe paper's", "d   FID-30K,\nthe paper's")
    for ax, title in zip((a, b, c, d), titles, strict=True):
        _axes(ax, title, len(names))
    b.set_xscale("log")
    a.set_yticks(range(len(names)), [ARMS[name].label.removeprefix("MMAR: ") for name in names])
    a.invert_yaxis()
    return fig


def _dots(color: str, face: str | None = None) -> dict[str, Any]:
    return {"linestyle": "none", "marker": "o", "color": color, "markerfacecolor": color if face is None else face}


def _axes(ax: Axes, title: str, rows: int) -> None:
    ax.set_title(title, loc="left")
    ax.grid(True, axis="y")
    ax.set_axisbelow(True)
    ax.margins(x=0.1)
    ax.set_ylim(-0.6, rows - 0.4)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    parser = argparse.ArgumentParser(description="Table 3 as a figure, from a record of experiments/table3.py.")
    parser.add_argument("--record", default="table3-cpu", help="name in experiments/records, or a path (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=style.FOLDER, help="folder for table3.png (default: beside this script)")
    args = parser.parse_args(argv)
    with style.applied():
        print(style.save(draw(read_record(args.record)), "table3", args.out))


if __name__ == "__main__":
    main()
