r"""The angle that loses least to rounding and what v loses, from a record of ``experiments/optimum.py``.

a: loss of one rounding over the angle between output and state, for a mixture of three scales; v is at a right angle, a cross
marks the closed form :math:`\tan\psi^* = -\sigma_d^2\cot\phi`. b: that curve over the noise levels, and the least found by
search. c: rms error of v over that of the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffparam import AngularParam
from experiments.optimum import target_ratio
from paper_figures import style
from paper_figures.from_record import figure_command

COLORS = {0.25: style.PURPLE, 0.5: style.VERMILLION, 1.0: style.BLUE, 2.0: style.GREEN, 4.0: style.ORANGE}
"""By standard deviation of the data."""
SHOWN = (0.5, 1.0, 2.0)
LEVEL = 0.8
"""Radians: the noise level of a and c; the nearest of the record."""


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at column width."""
    results, config = record["results"], record["config"]
    level = int(np.argmin(np.abs(np.array(config["phis"]) - LEVEL)))
    fig = style.figure(style.COLUMN_WIDTH, 6.8)
    a, b, c = fig.subplots(3, 1)
    _losses(a, results, config, level)
    _angles(b, results["data"], config)
    _ratios(c, results["data"], config, level)
    return fig


def _losses(ax: Axes, results: dict[str, Any], config: dict[str, Any], level: int) -> None:
    theta, phi = np.array(results["theta"]), config["phis"][level]
    for sigma in (s for s in config["sigmas"] if s in SHOWN):
        part = results["data"][f"mixture-{sigma:g}"]
        ax.plot(np.degrees(theta), part["losses"][level], color=COLORS[sigma], label=rf"$\sigma_d$ = {sigma:g}")
        ax.plot(np.degrees(theta), part["predicted"][level], color=style.BLACK, linewidth=0.7, linestyle=(0, (2, 2)))
        best = AngularParam.optimal(sigma).psi_at(phi) - phi
        ax.plot([math.degrees(best)], [part["loss_moments"][level]], color=style.BLACK, marker="x", linestyle="none", zorder=3)
    ax.axvline(90, color=style.GREY, linewidth=0.8)
    ax.annotate("$v$", (90, 30), xytext=(3, 0), textcoords="offset points")
    ax.set_yscale("log")
    ax.set(xlim=(0, 180), ylim=(0.02, 100), xticks=range(0, 181, 30))
    ax.set(xlabel=r"$\psi - \phi$, degrees", ylabel=r"loss in $v$-space / $\delta^2$")
    _axes(ax, rf"a   one rounding to bf16, mixture, $\phi$ = {phi:g}")
    ax.legend(loc="lower left", handlelength=1.6)


def _angles(ax: Axes, data: dict[str, Any], config: dict[str, Any]) -> None:
    phi = np.linspace(0.01, math.pi / 2 - 0.01, 200)
    for sigma in config["sigmas"]:
        color = COLORS.get(sigma, style.GREY)
        ax.plot(phi, np.degrees(AngularParam.optimal(sigma).psi_at(phi) - phi), color=color, linewidth=1.0)
        for kind, marker in (("gaussian", "o"), ("mixture", "s")):
            part = data[f"{kind}-{sigma:g}"]
            theta = np.degrees(np.array(part["psi_search"]) - np.array(part["phi"]))
            ax.plot(part["phi"], theta, color=color, marker=marker, markerfacecolor="white", linestyle="none")
    for marker, label in (("o", "Gaussian, search"), ("s", "mixture, search")):
        ax.plot([], [], color=style.BLACK, marker=marker, markerfacecolor="white", linestyle="none", label=label)
    ax.plot([], [], color=style.BLACK, linewidth=1.0, label="closed form")
    ax.set(xlim=(0, math.pi / 2), ylim=(22, 166), yticks=range(30, 151, 30))
    ax.set(xlabel=r"$\phi$, radians", ylabel=r"$\psi^* - \phi$, degrees")
    _axes(ax, "b   the angle of least loss")
    ax.legend(loc="upper right", handlelength=1.2)
    for sigma, place in ((min(config["sigmas"]), (0.25, 155)), (max(config["sigmas"]), (0.75, 36))):
        ax.annotate(rf"$\sigma_d$ = {sigma:g}", place, color=COLORS.get(sigma, style.GREY), ha="center", fontsize=7)


def _ratios(ax: Axes, data: dict[str, Any], config: dict[str, Any], level: int) -> None:
    sigmas, phi = np.array(config["sigmas"]), config["phis"][level]
    fine = np.geomspace(sigmas.min(), sigmas.max(), 100)
    parts = [data[f"mixture-{sigma:g}"] for sigma in sigmas]
    points: dict[str, Any] = {"linestyle": "none", "markerfacecolor": "white"}
    ax.plot(fine, [math.sqrt(target_ratio(phi, s)) for s in fine], color=style.GREY)
    target = [math.sqrt(p["target_ratio"][level]) for p in parts]
    ax.plot(sigmas, target, color=style.GREY, marker="D", label="one rounding of the target", **points)
    predicted = [math.sqrt(p["predicted_v"][level] / p["predicted_moments"][level]) for p in parts]
    ax.plot(sigmas, predicted, color=style.VERMILLION, linewidth=1.0)
    output = [math.sqrt(p["loss_v"][level] / p["loss_moments"][level]) for p in parts]
    ax.plot(sigmas, output, color=style.VERMILLION, marker="o", label="one rounding of the output", **points)
    pairs = [(p["runs"]["v_prediction"], p["runs"]["optimal"]) for p in parts]
    ax.plot(sigmas, [v["predicted"] / best["predicted"] for v, best in pairs], color=style.BLUE, linewidth=1.0)
    measured = [v["measured"] / best["measured"] for v, best in pairs]
    ax.plot(sigmas, measured, color=style.BLUE, marker="^", label=f"a run of {config['steps']} steps", **points)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(sigmas, [f"{sigma:g}" for sigma in sigmas])
    ax.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    ax.set(xlabel=r"standard deviation of the data $\sigma_d$", ylabel="rms error, $v$ over optimum")
    _axes(ax, rf"c   what $v$ loses, mixture ($\phi$ = {phi:g})")
    ax.legend(loc="upper center")


def _axes(ax: Axes, title: str) -> None:
    ax.set_title(title, loc="left")
    ax.minorticks_off()
    ax.grid(True)
    ax.set_axisbelow(True)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    figure_command("optimum", draw, argv)


if __name__ == "__main__":
    main()
