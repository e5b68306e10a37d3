r"""Figure 3B in small, from a record of ``experiments/figure3b.py``.

a: Frechet distance of drawn digits over the scale of guidance, after a short and a long stage 1; bands span the seeds. b: error
of the guided output in bf16 over that of one branch, at six noise levels, and :math:`\sqrt{\omega^2 + (\omega-1)^2}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.from_record import figure_command

LENGTHS = ((style.VERMILLION, "o", (0, (5, 1.5))), (style.BLUE, "^", "-"), (style.GREEN, "s", "-"))


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at text width."""
    results, config = record["results"], record["config"]
    scales = config["scales"]
    fig = style.figure(style.TEXT_WIDTH, 2.6)
    a, b = fig.subplots(1, 2)
    for (length, curves), (color, marker, dashes) in zip(results["curves"].items(), LENGTHS, strict=False):
        cells = curves["frechet"]
        if cells[0]["mean"] is None:
            continue
        a.plot(
            scales, [c["mean"] for c in cells], color=color, marker=marker, linestyle=dashes, label=f"{length} steps of stage 1"
        )
        a.fill_between(scales, [c["min"] for c in cells], [c["max"] for c in cells], color=color, alpha=0.2, linewidth=0)
    a.set(xlabel=r"guidance scale $\omega$", ylabel="Frechet distance (digit features)", yscale="log")
    a.set_title("a   quality of drawn digits", loc="left")
    levels = matplotlib.colormaps["viridis"]
    for i, (t, row) in enumerate(zip(config["timesteps"], results["gain"]["measured"], strict=True)):
        color = levels(0.9 * i / max(1, len(config["timesteps"]) - 1))
        b.plot(scales, [cell["mean"] for cell in row], color=color, marker=".", label=f"t = {t}")
    b.plot(scales, results["gain"]["predicted"], color=style.BLACK, linestyle=(0, (1, 1.5)), label="independent roundings")
    b.set(xlabel=r"guidance scale $\omega$", ylabel="error over one branch's")
    b.set_title("b   rounding of the guided output in bf16", loc="left")
    for ax in (a, b):
        ax.grid(True)
        ax.set_axisbelow(True)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="lower right" if ax is a else "upper left")
    return fig


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    figure_command("figure3b", draw, argv)


if __name__ == "__main__":
    main()
