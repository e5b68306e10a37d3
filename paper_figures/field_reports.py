r"""Two public reports, precision against conditioning, from a record of ``experiments/field_reports.py``.

a: the noisy end, an :math:`\epsilon` output sampled from where :math:`\bar\alpha` vanishes: what each cure does, in both
precisions, and a perfect network whose output is rounded to bf16.
b: the clean end, an x output on the loss of the velocity: loss over the noise level in both precisions, and what rounding adds.
c: the same, the largest training loss near the clean end, in stretches of the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from diffparam import EPSILON, X0
from experiments.field_study.missing import numbers
from experiments.field_study.reports import FOLK_CLAMP, REPORTS
from paper_figures import style
from paper_figures.from_record import figure_command

OUTPUTS = {
    "x": ("x, no clamp", style.look("sample").color),
    "xclamp": (f"x, clamp {FOLK_CLAMP}", style.PURPLE),
    "flow": ("flow", style.look("flow").color),
}
BF16: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 4.5}
FLOAT32: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 7,
    "markerfacecolor": "none",
    "markeredgewidth": 1.0,
}
PERFECT: dict[str, Any] = {"linestyle": "none", "marker": "x", "markersize": 4.5, "markeredgewidth": 1.2, "color": style.BLACK}
SMALL: dict[str, Any] = {"fontsize": 6.5, "color": style.GREY}
CONTROL: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 3,
    "markerfacecolor": "white",
    "markeredgewidth": 0.8,
}


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at column width."""
    results = record["results"]
    fig = style.figure(style.COLUMN_WIDTH, 7.2)
    rows = fig.subfigures(3, 1, height_ratios=[1.0, 1.3, 0.9])  # axes of their own width
    a, b, c = (row.subplots() for row in rows)
    _cures(a, results)
    _losses(b, results["reports"]["clean_end"])
    _spikes(c, results["reports"]["clean_end"], record["config"]["recipe"]["steps"])
    return fig


def _cures(ax: Axes, results: dict[str, Any]) -> None:
    """One row per run; a run without a finite distance has no mark."""
    report = results["reports"]["noisy_end"]
    rows = [("eps", run, REPORTS["noisy_end"].label(EPSILON.name, run)) for run in report["samples"]["eps_bf16"]]
    rows.append(("v", "reported", "v output"))
    for y, (output, run, _) in enumerate(rows):
        color = style.look("epsilon" if output == "eps" else "v_prediction").color
        for precision, marks in (("float32", FLOAT32), ("bf16", BF16)):
            cell = report["samples"][f"{output}_{precision}"][run][precision]["frechet"]
            if cell["mean"] is not None:
                ax.plot([cell["min"], cell["max"]], [y, y], color=color, linewidth=0.8)
                ax.plot(cell["mean"], y, color=color, **marks)
        perfect = report["exact"]["epsilon" if output == "eps" else "v_prediction"]["samples"].get(run)
        if perfect and perfect["bf16"]["frechet"] is not None:
            ax.plot(perfect["bf16"]["frechet"], y, **PERFECT)
    ax.axvline(results["reference"]["frechet"], color=style.GREY, linewidth=0.8, linestyle=(0, (2, 2)))
    ax.annotate("training scans", (results["reference"]["frechet"], -0.7), (3, 0), textcoords="offset points", **SMALL)
    ax.set_yticks(range(len(rows)), [label for *_, label in rows])
    ax.set(
        xscale="log",
        ylim=(len(rows) - 0.4, -1.9),
        xlabel="Fr\N{LATIN SMALL LETTER E WITH ACUTE}chet distance to held-out scans",
    )
    ax.set_title(r"a   noisy end: $\epsilon$ sampled from $\bar\alpha \approx 0$", loc="left")
    ax.tick_params(axis="y", length=0)
    ax.grid(True, axis="x")
    ax.set_axisbelow(True)
    ax.minorticks_off()
    handles = [Line2D([], [], **{"color": style.GREY, **marks}) for marks in (BF16, FLOAT32, PERFECT)]
    labels = ["bf16", "float32", "perfect, bf16"]
    ax.legend(handles, labels, loc="upper right", ncols=3, handletextpad=0.1, columnspacing=0.8, borderaxespad=0.1)


def _losses(ax: Axes, report: dict[str, Any]) -> None:
    """Lines are bf16, dots the float32 control; below them what rounding adds."""
    noise = np.asarray(report["timesteps"]) / 1000
    for output, (label, color) in OUTPUTS.items():
        curves = {p: numbers(report["curves"][f"{output}_{p}"][f"loss_{p}"]) for p in ("bf16", "float32")}
        ax.plot(noise, curves["bf16"].mean(0), color=color, label=label)
        ax.fill_between(noise, curves["bf16"].min(0), curves["bf16"].max(0), color=color, alpha=0.25, linewidth=0)
        ax.plot(noise, curves["float32"].mean(0), color=color, **CONTROL)
    direct = numbers(report["curves"]["x_bf16"]["direct"]).mean(0)
    ax.plot(noise, direct, color=style.VERMILLION, linestyle=(0, (5, 1.5)), label="rounding in x")
    perfect = report["exact"][X0.name]["rounding"]["bf16"]
    ax.plot(noise, perfect, color=style.BLACK, linestyle=(0, (1, 1.5)), label="one rounding, perfect x")
    ax.axvline(FOLK_CLAMP, ymax=0.75, color=style.GREY, linewidth=0.8)
    ax.annotate(f"n = {FOLK_CLAMP}", (FOLK_CLAMP, 2e-6), (3, 0), textcoords="offset points", **SMALL)
    ax.set(xscale="log", yscale="log", xlabel=r"noise level $n = 1 - t$ (0 is clean)", ylabel="loss in $v$-space, per element")
    ax.set_ylim(1e-6, 1e9)
    ax.set_yticks([1e-6, 1e-3, 1, 1e3, 1e6])
    ax.set_title("b   clean end: x output, velocity loss", loc="left")
    ax.minorticks_off()
    ax.grid(True)
    ax.set_axisbelow(True)
    handles, labels = ax.get_legend_handles_labels()
    handles.append(Line2D([], [], color=style.GREY, **CONTROL))
    ax.legend(handles, [*labels, "float32 control"], loc="upper right", ncols=2, handlelength=2.2, columnspacing=1.0)


def _spikes(ax: Axes, report: dict[str, Any], steps: int) -> None:
    for output, (label, color) in OUTPUTS.items():
        for precision, look in (
            ("bf16", {"color": color, "label": label}),
            ("float32", {"color": color, "markevery": 3, **CONTROL}),
        ):
            largest = numbers(report["training"][f"{output}_{precision}"]["blocks"]["max"])
            middle = (np.arange(len(largest)) + 0.5) * steps / len(largest)
            ax.plot(middle, largest, **look)
    low, high = report["tail"]
    ax.set(yscale="log", xlabel="training step", ylabel=f"largest loss at\nn = {low / 1000:g} to {high / 1000:g}")
    ax.set_title("c   clean end: is training stable?", loc="left")
    ax.minorticks_off()
    ax.grid(True)
    ax.set_axisbelow(True)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    figure_command("field_reports", draw, argv)


if __name__ == "__main__":
    main()
