r"""The condition number of every parameterization, :math:`\kappa = 1/|\sin(\psi - \phi)|`, and the loss floor it sets.

Above, kappa over the timesteps of the cosine schedule: what a relative error of the output is multiplied by. Below,
:math:`(\kappa\delta)^2` for the paper's delta = 1/128 (eq. 27), and the timesteps up to which epsilon stays under a tolerance.

kappa alone does not rank parameterizations: the floor is :math:`(\kappa\delta)^2 E[(\hat u/r)^2]`, and eq. 19 takes the second
factor as 1, for data of unit variance. There v is the optimum. For data of standard deviation 0.5 it is EDM's F, whose larger
kappa comes with a smaller output; "optimal" is the same direction with the other sign, so its kappa is the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffparam import EPSILON, FLOW, X0, AngularParam, Schedule, V, largest_safe_timestep, loss_floor
from paper_figures import style

SIGMA_DATA = 0.5
PARAMS = (EPSILON, X0, V, FLOW, AngularParam.edm(SIGMA_DATA), AngularParam.optimal(SIGMA_DATA))
DELTA = 1 / 128
TOLERANCES = (1.0, 0.01)
"""Of the target's unit variance: all of it, and the default of :func:`diffparam.largest_safe_timestep`."""


@dataclass(frozen=True, eq=False)
class Curves:
    """What the figure shows.

    Attributes:
        t: Timesteps.
        kappa: Condition number by name of the parameterization, one value per timestep.
        floor: Loss floor, likewise, in units of the target's variance.
        safe: Largest safe timestep of epsilon by tolerance; None if every timestep is over it.
    """

    t: np.ndarray
    kappa: dict[str, np.ndarray]
    floor: dict[str, np.ndarray]
    safe: dict[float, int | float | None]


def curves(schedule: Schedule, *, delta: float = DELTA) -> Curves:
    """All numbers of the figure, from the library alone."""
    phi = schedule.phi.numpy()
    return Curves(
        schedule.timesteps.numpy(),
        {param.name: np.broadcast_to(param.condition_number(phi), phi.shape) for param in PARAMS},
        {param.name: np.broadcast_to(loss_floor(phi, param=param, delta=delta), phi.shape) for param in PARAMS},
        {tol: largest_safe_timestep(schedule, param=EPSILON, delta=delta, tolerance=tol) for tol in TOLERANCES},
    )


def draw(data: Curves) -> Figure:
    """The figure, at column width."""
    fig = style.figure(style.COLUMN_WIDTH, 4.9)
    above, below = fig.subplots(2, 1, sharex=True)
    for ax in (above, below):
        ax.set_yscale("log")
    _plot(above, data.t, data.kappa)
    above.set(ylim=(0.7, 4e4), ylabel=r"condition number $\kappa$ (no unit)")
    _magnifier(above, data)
    _plot(below, data.t, data.floor)
    below.set(ylim=(2e-5, 1e5), xlim=(-15, 1015), xticks=range(0, 1001, 200))
    below.set_xlabel(f"timestep $t$ (cosine schedule, {len(data.t)} steps)")
    below.set_ylabel("loss floor $(\\kappa\\delta)^2$, $\\delta = 1/128$\n(variance of the target = 1)")
    _tolerances(below, data)
    handles, labels = above.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=3, handlelength=2.6, columnspacing=1.2)
    return fig


def _plot(ax: Axes, t: np.ndarray, values: dict[str, np.ndarray]) -> None:
    for name, y in values.items():
        look = style.look(name)
        sigma = rf", $\sigma_d$ = {SIGMA_DATA:g}" if "(" in name else ""
        ax.plot(t, y, **look.line(label=look.label + sigma))
    ax.minorticks_off()
    ax.grid(True)
    ax.set_axisbelow(True)


def _magnifier(ax: Axes, data: Curves) -> None:
    """Kappa near 1 on a linear axis: on the logarithmic one, v, flow and EDM's F are one line."""
    inset = ax.inset_axes((0.29, 0.44, 0.55, 0.52))
    _plot(inset, data.t, data.kappa)
    inset.set(xlim=(-15, 1015), ylim=(0.95, 1.55), yticks=(1.0, 1.25, 1.5), xticks=(0, 500, 1000))
    inset.set_title(r"$\kappa$ near 1, linear", fontsize=7, pad=2, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    inset.tick_params(labelsize=6.5, pad=1.5)


def _tolerances(ax: Axes, data: Curves) -> None:
    for tolerance, t in data.safe.items():
        ax.axhline(tolerance, color=style.GREY, linewidth=0.8, linestyle="-", zorder=1)
        if t is None:
            continue
        ax.plot([t, t], [ax.get_ylim()[0], tolerance], color=style.GREY, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        ax.plot([t], [tolerance], marker=style.look("epsilon").marker, color=style.look("epsilon").color, linestyle="none")
        text = rf"tolerance {tolerance:.0%}: $\epsilon$ safe up to $t = {t}$"
        ax.annotate(text, (t, tolerance), xytext=(-8, 3), textcoords="offset points", ha="right", va="bottom", fontsize=7)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    parser = argparse.ArgumentParser(description="Condition numbers and loss floors over the cosine schedule.")
    parser.add_argument("--out", type=Path, default=style.FOLDER, help="folder for kappa.png (default: beside this script)")
    args = parser.parse_args(argv)
    data = curves(Schedule.cosine(1000))
    with style.applied():
        print(style.save(draw(data), "kappa", args.out))


if __name__ == "__main__":
    main()
