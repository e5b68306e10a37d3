r"""Figure 3C in small: understanding against training steps through both stages, from a record of ``experiments/figure3c.py``.

Mean accuracy over families of questions about test scans; bands span the seeds; the dotted line is where stage 2 begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.from_record import figure_command

CURVES = {"tuned": ("after a short tuning on questions", style.BLUE, "o"), "plain": ("as it is", style.ORANGE, "s")}


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at column width."""
    results = record["results"]
    first = record["config"]["recipe"]["stage1_steps"]
    steps = [point["step"] + (first if point["stage"] == "stage2" else 0) for point in results["points"]]
    fig = style.figure(style.COLUMN_WIDTH, 2.4)
    ax = fig.subplots()
    for name, (label, color, marker) in CURVES.items():
        cells = results[name]
        ax.plot(steps, [100 * c["mean"] for c in cells], color=color, marker=marker, label=label)
        low, high = ([100 * c[end] for c in cells] for end in ("min", "max"))
        ax.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
    ax.axvline(first, color=style.GREY, linestyle=(0, (1, 1.5)))
    ax.set(xlabel="training steps through stages 1 and 2", ylabel="right answers, per cent", xlim=(0, None), ylim=(0, 101))
    ax.grid(True)
    ax.set_axisbelow(True)
    ax.legend(loc="lower right")
    return fig


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    figure_command("figure3c", draw, argv)


if __name__ == "__main__":
    main()
