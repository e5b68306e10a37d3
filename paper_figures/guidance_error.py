r"""What guidance does to rounding errors, from a record of ``experiments/guidance_error.py``.

a: error of the guided output over one branch's, at three noise levels of v: at low noise both branches say the same, their
roundings are the same, and the gain falls below :math:`\sqrt{\omega^2 + (\omega-1)^2}`. b: the same for the largest scale over
the distance of the branches. c: error of the final sample; dashed: ``predict_error``, solid: both branches as they are rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffparam import guidance_error_gain
from paper_figures import style
from paper_figures.from_record import figure_command

LEVELS = ((style.VERMILLION, "o"), (style.ORANGE, "s"), (style.SKY_BLUE, "^"))
"""Of the smallest, the middle and the largest noise level drawn."""
RUNS = {"nearest": ("to nearest", style.VERMILLION, "o"), "stochastic": ("stochastic", style.BLUE, "^")}
HIGHEST = 0.8
"""Radians: above it the branches are as far apart as there."""


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at column width."""
    results, config = record["results"], record["config"]
    fig = style.figure(style.COLUMN_WIDTH, 6.6)
    a, b, c = fig.subplots(3, 1)
    _levels(a, results["levels-v_prediction"], config)
    _distance(b, results["separation"], config["omegas"])
    _runs(c, results["run-v_prediction"])
    return fig


def _levels(ax: Axes, part: dict[str, Any], config: dict[str, Any]) -> None:
    omegas, low = config["omegas"], [i for i, phi in enumerate(config["phis"]) if phi <= HIGHEST]
    shown = sorted({low[0], low[len(low) // 2], low[-1]})
    _formula(ax, omegas)
    for i, (color, marker) in zip(shown, LEVELS, strict=False):
        ax.plot(omegas, part["correlated"][i], color=color, linewidth=1.0)
        label = rf"$\phi$ = {config['phis'][i]:g}, $\rho$ = {abs(part['rho'][i]):.2f}"
        ax.plot(omegas, part["nearest"][i], color=color, marker=marker, markerfacecolor="white", linestyle="none", label=label)
    _axes(ax, "a   guided output, by noise level", r"error over one branch's")
    ax.set_xlabel(r"guidance scale $\omega$")
    ax.legend(loc="upper left")


def _distance(ax: Axes, part: dict[str, Any], omegas: Sequence[float]) -> None:
    at = int(np.argmax(omegas))
    order = [i for i in np.argsort(part["apart"]) if part["apart"][i] > 1e-6]
    apart = np.array(part["apart"])[order]
    ax.axhline(guidance_error_gain(omegas[at]), color=style.BLACK, linestyle=(0, (1, 1.5)))
    ax.axhline(1.0, color=style.GREY, linewidth=0.8)
    for name, (label, color, marker) in RUNS.items():
        values = np.array(part[name])[order, at]
        ax.plot(apart, values, color=color, marker=marker, markerfacecolor="white", linestyle="none", label=label)
    ax.plot(apart, np.array(part["correlated"])[order, at], color=style.VERMILLION, linewidth=1.0)
    ax.set_xscale("log")
    _axes(ax, rf"b   nearly equal branches, $\omega$ = {omegas[at]:g}", r"error over one branch's")
    ax.set(ylim=(0, None), xlabel="rms distance over rms unit in the last place")
    ax.legend(loc="center right", title="rounding", title_fontsize=7)


def _runs(ax: Axes, part: dict[str, Any]) -> None:
    for name, (label, color, marker) in RUNS.items():
        ax.plot(part["omega"], part[f"{name}_formula"], color=color, linestyle=(0, (3, 1.5)), linewidth=1.0)
        ax.plot(part["omega"], part[f"{name}_emulated"], color=color, linewidth=1.0)
        points: dict[str, Any] = {"marker": marker, "markerfacecolor": "white", "linestyle": "none"}
        ax.plot(part["omega"], part[f"{name}_measured"], color=color, label=label, **points)
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.5 * min(part["nearest_measured"]))
    ax.set_yticks(ticks := _ticks(*ax.get_ylim()), [f"{tick:g}" for tick in ticks])
    _axes(ax, "c   final sample, v and DDIM", "rms error")
    ax.set_xlabel(r"guidance scale $\omega$")
    ax.legend(loc="lower right", title="rounding of both branches", title_fontsize=7)


def _formula(ax: Axes, omegas: Sequence[float]) -> None:
    x = np.linspace(min(omegas), max(omegas), 100)
    y = [guidance_error_gain(float(omega)) for omega in x]
    ax.plot(x, y, color=style.BLACK, linestyle=(0, (1, 1.5)), label=r"$\sqrt{\omega^2 + (\omega-1)^2}$")


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the limits."""
    return [t for e in range(-9, 3) for t in (10.0**e, 2 * 10.0**e, 5 * 10.0**e) if low <= t <= high]


def _axes(ax: Axes, title: str, ylabel: str) -> None:
    ax.set_ylabel(ylabel)
    ax.set_title(title, loc="left")
    ax.minorticks_off()
    ax.grid(True)
    ax.set_axisbelow(True)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    figure_command("guidance_error", draw, argv)


if __name__ == "__main__":
    main()
