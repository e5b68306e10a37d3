r"""Does :math:`\kappa` order the parameterizations? From a record of ``experiments/parameterization_race.py``.

a: v-space loss of each output over that of v, bf16 as lines and the float32 control as dots.
b: what rounding adds to that loss, measured with the same weights in two precisions, and the prediction for one rounding.
c: Frechet distance of samples over the predicted floor, by loss weighting and precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.field_study.race_arms import PARAMS, PRECISIONS, WEIGHTINGS, arm_name
from paper_figures import style
from paper_figures.from_record import figure_command

DOTS: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 3, "markerfacecolor": "white", "markeredgewidth": 0.8}
MARKERS = {"own": ("o", "own loss"), "v": ("s", "v loss")}
SHORT = {"eps": r"$\epsilon$", "x": r"$\hat{x}$", "v": "$v$", "flow": "flow", "edm": "$F$"}
START = "safe"
"""Where the samples of panel c start: from the last timestep the distance of eps is off the scale."""


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at column width."""
    results = record["results"]
    fig = style.figure(style.COLUMN_WIDTH, 7.4)
    rows = fig.subfigures(3, 1, height_ratios=[1.1, 1.15, 1.0])  # axes of their own width
    a, b, c = (row.subplots() for row in rows)
    _losses(a, results)
    _rounding(b, results)
    _quality(c, results, record["config"]["step_counts"])
    return fig


def _losses(ax: Axes, results: dict[str, Any]) -> None:
    t = np.asarray(results["timesteps"])
    reference = {p: _curve(results, "v", p, f"loss_{p}") for p in PRECISIONS}
    for key in PARAMS:
        look = _look(key)
        ratio = {p: _curve(results, key, p, f"loss_{p}") / reference[p] for p in PRECISIONS}
        ax.plot(t, ratio["bf16"], **look.line())
        if key != "v":
            ax.plot(t, ratio["float32"], color=look.color, **DOTS)
    ax.set(yscale="log", ylim=(0.7, 1e3), ylabel="loss in $v$-space\nover that of $v$")
    _time_axis(ax, "a   loss: bf16, and float32 as dots")
    ax.legend(loc="upper center", ncols=3, handlelength=2.4, columnspacing=1.0)


def _rounding(ax: Axes, results: dict[str, Any]) -> None:
    t = np.asarray(results["timesteps"])
    for key in PARAMS:
        look = _look(key)
        ax.plot(t, results["predicted"]["floor"][key], color=look.color, linestyle=look.linestyle)
        ax.plot(t, _curve(results, key, "bf16", "direct"), color=look.color, **DOTS)
    ax.set(yscale="log", ylim=(3e-7, 1e2), ylabel=r"$E|v_{\mathrm{bf16}} - v_{\mathrm{float32}}|^2$")
    _time_axis(ax, "b   rounding: predicted, and measured as dots")


def _quality(ax: Axes, results: dict[str, Any], step_counts: Sequence[int]) -> None:
    """Filled marks are bf16, open ones float32; every mark has a line from its smallest to its largest seed."""
    steps = step_counts[len(step_counts) // 2]
    for key in PARAMS:
        color, x = _look(key).color, results["predicted"]["rank_floor"][START][key]
        for weighting in WEIGHTINGS if key != "v" else ("own",):
            for precision in PRECISIONS:
                rows = results["samples"][arm_name(key, weighting, precision)]
                cell = next(row["frechet"] for row in rows if row["start"] == START and row["steps"] == steps)
                if cell["mean"] is None:
                    continue
                open_mark = precision == "float32"
                ax.plot([x, x], [cell["min"], cell["max"]], color=color, linewidth=0.8)
                ax.plot(
                    x, cell["mean"], linestyle="none", marker=MARKERS[weighting][0], color=color,
                    markersize=7 if open_mark else 4, markerfacecolor="none" if open_mark else color,
                )  # fmt: skip
        ax.annotate(
            SHORT[key],
            (x, 0.1 if key == "v" else 0.03),
            xycoords=("data", "axes fraction"),
            ha="center",
            fontsize=7,
            color=color,
        )
    ax.set(xscale="log", yscale="log", xlabel="predicted floor, mean over timesteps")
    ax.set_ylabel("Fr\N{LATIN SMALL LETTER E WITH ACUTE}chet distance")
    ax.margins(x=0.15)
    low, high = ax.get_ylim()
    ax.set_ylim(low / (high / low) ** 0.2, high)
    ax.set_title(f"c   samples, {steps} steps from t = {results['starts'][START]}", loc="left")
    ax.grid(True)
    ax.set_axisbelow(True)
    handles = [Line2D([], [], color=style.GREY, linestyle="none", marker=mark, markersize=4) for mark, _ in MARKERS.values()]
    handles.append(Line2D([], [], color=style.GREY, linestyle="none", marker="o", markersize=7, markerfacecolor="none"))
    labels = [*(f"{label}, bf16" for _, label in MARKERS.values()), "open: float32"]
    ax.legend(handles, labels, loc="upper left", handletextpad=0.1)


def _look(key: str) -> style.Look:
    return style.look(PARAMS[key].name)


def _curve(results: dict[str, Any], key: str, precision: str, curve: str) -> np.ndarray:
    """Mean over seeds of an arm trained on its own loss."""
    return np.asarray(results["curves"][arm_name(key, "own", precision)][curve]).mean(0)


def _time_axis(ax: Axes, title: str) -> None:
    ax.set(xlim=(0, 1010), xlabel="timestep $t$ of 1000, cosine schedule")
    ax.set_title(title, loc="left")
    ax.minorticks_off()
    ax.grid(True)
    ax.set_axisbelow(True)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    figure_command("parameterization_race", draw, argv)


if __name__ == "__main__":
    main()
