r"""Figure 7 in small: accuracy of a model that reads noised images, over the noise, from ``experiments/figure7.py``.

A panel a family of questions about test scans; the line is MMAR, which reads clean tokens, the dots are chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.paper_study.arms import ARMS
from paper_figures import style
from paper_figures.from_record import figure_command

COLORS = (style.VERMILLION, style.ORANGE, style.GREEN)
MARKERS = ("o", "s", "^")


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at text width."""
    found = record["results"]
    families = list(found["chance"])
    fig = style.figure(style.TEXT_WIDTH, 3.6)
    axes = fig.subplots(2, (len(families) + 1) // 2, sharex=True, sharey=True).ravel()
    clean = next(levels["clean"] for levels in found["arms"].values() if "clean" in levels)
    noised = {name: levels for name, levels in found["arms"].items() if "clean" not in levels}
    for ax, family in zip(axes, families, strict=False):
        for (name, levels), color, marker in zip(noised.items(), COLORS, MARKERS, strict=False):
            cells = [one[family] for one in levels.values()]
            t = [int(level) for level in levels]
            ax.plot(t, [100 * c["mean"] for c in cells], color=color, marker=marker, label=ARMS[name].label)
            low, high = ([100 * c[end] for c in cells] for end in ("min", "max"))
            ax.fill_between(t, low, high, color=color, alpha=0.2, linewidth=0)
        ax.axhline(100 * clean[family]["mean"], color=style.BLUE, label="MMAR, clean tokens")
        ax.axhline(100 * found["chance"][family], color=style.GREY, linestyle=(0, (1, 1.5)), label="chance")
        ax.set_title(family, loc="left")
        ax.set_ylim(0, 103)
        ax.grid(True)
        ax.set_axisbelow(True)
    fig.supxlabel("noise level $t$ of the image that is read", fontsize=8)
    fig.supylabel("right answers, per cent", fontsize=8)
    axes[1].legend(loc="lower left", fontsize=6)  # below the line of chance there
    return fig


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    figure_command("figure7", draw, argv)


if __name__ == "__main__":
    main()
