r"""Quality of drawn digits over the time and the calls of the head that they took, from ``experiments/speed_quality.py``.

Each point is a way of drawing, mean over models and seeds; the line is the front of time and Frechet distance. The band is
what drawing again does to the full recipe, the black cross: a way inside it is as good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.speed_quality import PAPER
from paper_figures import style
from paper_figures.from_record import figure_command

SOLVERS = {
    "ddpm": ("DDPM", style.VERMILLION, "o"),
    "ddim": ("DDIM", style.ORANGE, "s"),
    "dpm_solver": ("DPM-Solver++", style.BLUE, "^"),
}


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at text width."""
    results = record["results"]
    fig = style.figure(style.TEXT_WIDTH, 3.0)
    a, b = fig.subplots(1, 2)
    _panel(a, results, "seconds", "frechet", "a   distance over time")
    _panel(b, results, "head_calls", "recognised", "b   recognised over calls of the head")
    fig.legend(*a.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    a.set(xlabel=f"seconds for {10 * record['config']['amount']['drawn']} pictures, one thread", ylabel="Frechet distance")
    b.set(xlabel="calls of the head an image", ylabel="share recognised")
    return fig


def _panel(ax: Axes, results: dict[str, Any], x: str, y: str, title: str) -> None:
    ways, shown = results["ways"], set()
    full = ways[PAPER]
    if full[y]["mean"] is not None:
        low, high = full[y]["mean"] - full[y]["spread"], full[y]["mean"] + full[y]["spread"]
        ax.axhspan(low, high, color=style.GREY, alpha=0.2, linewidth=0, label="the full recipe, drawn again")
    for name, way in ways.items():
        settings, value = way["settings"], way[y]["mean"]
        if value is None:
            continue
        label, color, marker = SOLVERS[settings["solver"]]
        is_annealed = settings["head_steps_end"] is not None
        look = f"{label}, falling" if is_annealed else label
        face = "white" if is_annealed else color
        ax.plot(
            _number(way[x]), value, marker=marker, color=color, markerfacecolor=face, linestyle="none",
            label=None if look in shown else look,
        )  # fmt: skip
        shown.add(look)
        if name == PAPER:
            ax.plot(_number(way[x]), value, marker="x", color=style.BLACK, markersize=9, linestyle="none", label="the paper's")
    if x == "seconds" and results["front"]:
        front = [ways[name] for name in results["front"]]
        ax.plot([way[x]["mean"] for way in front], [way[y]["mean"] for way in front], color=style.GREY, linewidth=0.8)
    ax.set_xscale("log")
    ax.set_title(title, loc="left")
    ax.grid(True)
    ax.set_axisbelow(True)


def _number(cell: Any) -> float:
    return float(cell["mean"] if isinstance(cell, dict) else cell)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    figure_command("speed_quality", draw, argv)


if __name__ == "__main__":
    main()
