r"""The paper's Figure 4, for any parameterization: one DDIM step as a parallelogram in the plane of x and epsilon.

A vector (a, b) stands for ``a x + b eps``. The state, the output (over r) and the next state lie on the unit circle at phi_t,
psi and phi_s; the step writes the next state as OB + OC, a multiple of the output plus a multiple of the state (eq. 15-16). An
output that is off by a relative error delta is off by OB delta after the step (eq. 18): the longer OB, the larger the error,
and OB is long where the output nearly points along the state. All vectors come from :mod:`diffparam`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Circle

from diffparam import (
    EPSILON,
    AngularParam,
    RelativeError,
    V,
    ddim_step,
    parse_parameterization,
    rebase_gains,
    step_error,
)
from paper_figures import style

PHI_T, PHI_S = math.radians(60), math.radians(35)
DELTA = 0.25
"""Large, to be seen: the largest relative error of a number rounded to bf16 is 1/257."""

_FAINT = "#BBBBBB"


@dataclass(frozen=True, eq=False)
class StepGeometry:
    """A DDIM step in the plane; vectors are float64 arrays ``(2,)``, the parts along x and along epsilon.

    Attributes:
        param: What the output means.
        phi_t: Angle of the state, radians.
        phi_s: Angle of the next state, radians.
        psi: Angle of the output, radians.
        delta: Relative error of the output.
        x_t: The state.
        u: The output over r, of unit length.
        x_s: The next state, from :func:`diffparam.ddim_step`.
        gain_u: OB of eq. 15, signed: how much of ``u`` is in ``x_s`` (:func:`diffparam.rebase_gains`).
        gain_x: BA of eq. 15: how much of ``x_t``.
        error: What delta adds to ``x_s`` (eq. 18).
        x_off: The next state with the error (eq. 17), from a step on the output ``u (1 + delta)``.
    """

    param: AngularParam
    phi_t: float
    phi_s: float
    psi: float
    delta: float
    x_t: np.ndarray
    u: np.ndarray
    x_s: np.ndarray
    gain_u: float
    gain_x: float
    error: np.ndarray
    x_off: np.ndarray

    @property
    def along_u(self) -> np.ndarray:
        """The vector OB."""
        return self.gain_u * self.u

    @property
    def along_x(self) -> np.ndarray:
        """The vector OC, which equals BA: ``x_s`` is OB + OC."""
        return self.gain_x * self.x_t

    @property
    def kappa(self) -> float:
        """Condition number at ``phi_t``."""
        return float(self.param.condition_number(self.phi_t))


def step_geometry(param: AngularParam, phi_t: float = PHI_T, phi_s: float = PHI_S, *, delta: float = DELTA) -> StepGeometry:
    """The vectors of one step.

    Args:
        param: What the output means.
        phi_t: Current angle, radians.
        phi_s: Next angle, radians; above ``phi_t`` the step is an inversion.
        delta: Relative error of the output.

    Raises:
        SingularParameterization: If ``sin(psi - phi_t)`` is zero.
        ValueError: If an angle is out of range.
    """
    psi, r = float(param.psi_at(phi_t)), float(param.r_at(phi_t))
    gain_u, gain_x = rebase_gains(phi_t, psi, phi_s, name=param.name)
    x, eps = torch.eye(2, dtype=torch.float64)
    x_t = AngularParam(phi_t).target(x, eps, phi_t)  # the state is the output of psi = phi
    u = param.target(x, eps, phi_t)
    x_s = ddim_step(u, x_t, phi_t, phi_s, param=param)
    x_off = ddim_step(u, x_t, phi_t, phi_s, param=param, output_error=RelativeError(delta))
    error = step_error(u, phi_t, phi_s, param=param, delta=delta)
    return StepGeometry(
        param, phi_t, phi_s, psi, delta, x_t.numpy(), (u / r).numpy(), x_s.numpy(), gain_u, gain_x, error.numpy(), x_off.numpy()
    )


def draw(steps: Sequence[StepGeometry]) -> Figure:
    """One panel per step, side by side at one scale."""
    width = style.COLUMN_WIDTH if len(steps) == 1 else style.TEXT_WIDTH
    corners = np.concatenate([(s.x_s, s.along_u, s.along_x, s.x_off) for s in steps])
    low = np.minimum(corners.min(0) - 0.17, -1.17)
    high = np.maximum(corners.max(0) + 0.17, (1.25, 1.6))  # room for the table of angles above the circle
    scale = (width / len(steps) - 0.1) / (high[0] - low[0])
    fig = style.figure(width, scale * (high[1] - low[1]) + 0.75)
    for ax, step in zip(fig.subplots(1, len(steps), squeeze=False)[0], steps, strict=True):
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        color = style.look(step.param.name).color
        _plane(ax)
        _vectors(ax, step, color)
        _angles(ax, step, color)
        _numbers(ax, step)
    return fig


def _plane(ax: Axes) -> None:
    ax.add_patch(Circle((0, 0), 1, fill=False, color=_FAINT, linewidth=0.8))
    for x, y, label in ((1.13, 0, "$x$"), (0, 1.13, r"$\epsilon$")):
        ax.annotate("", (x, y), (-0.95 * x, -0.95 * y), arrowprops=_arrow(_FAINT, 0.7))
        _label(ax, label, (x, y), (0.08 * (x > 0), 0.08 * (y > 0)), style.GREY)
    _label(ax, "$O$", (0, 0), (-0.07, -0.07), style.GREY)


def _vectors(ax: Axes, step: StepGeometry, color: str) -> None:
    """The step and its name tags; each tag stands off its tip along ``out`` (away from O) and ``left`` (a quarter turn on)."""
    b, c, a, off = step.along_u, step.along_x, step.x_s, step.x_off
    for start in (b, c):  # the two auxiliary lines of the paper's figure
        ax.plot(*zip(start, a, strict=True), color=style.GREY, linewidth=0.9, linestyle=(0, (3, 2)))
    for tip, shade, width in ((c, style.GREY, 1.0), (b, color, 1.0), (step.x_t, style.BLACK, 1.7), (step.u, color, 1.7)):
        ax.annotate("", tuple(tip), (0, 0), arrowprops=_arrow(shade, width))
    ax.annotate("", tuple(a), (0, 0), arrowprops=_arrow(style.BLACK, 1.7))
    ax.plot(*zip(a, off, strict=True), color=style.PURPLE, linewidth=3, marker="o", markevery=[1], gid="error")
    for text, tip, out, left, shade in (
        ("$x_t$", step.x_t, 0.09, 0.09, style.BLACK),
        ("$u/r$", step.u, 0.11, 0.13, color),
        ("$x_s$", a, 0.12, 0.03, style.BLACK),
        ("$B$", b, 0.03, -0.10, color),
        ("$C$", c, 0.03, 0.10, style.GREY),
    ):
        along = _unit(tip)
        _label(ax, text, tip, out * along + left * np.array((-along[1], along[0])), shade)
    _label(ax, r"$\tilde{x}_s$", off, 0.13 * _unit(off - a), style.PURPLE)


def _angles(ax: Axes, step: StepGeometry, color: str) -> None:
    """Arcs from the x axis: psi the smallest, then the smaller of the two states' angles, then the larger."""
    (small, near), (large, far) = sorted(((step.phi_s, r"$\phi_s$"), (step.phi_t, r"$\phi_t$")))
    beside = step.psi - math.copysign(0.27, step.psi) * (1 if abs(step.psi) > 0.5 else -1)
    for text, angle, at, radius, shade in (
        (r"$\psi$", step.psi, beside, 0.22, color),
        (near, small, small / 2, 0.37, style.BLACK),
        (far, large, (small + large) / 2, 0.55, style.BLACK),
    ):
        start, end = sorted((0.0, math.degrees(angle)))
        ax.add_patch(Arc((0, 0), 2 * radius, 2 * radius, theta1=start, theta2=end, color=shade, linewidth=0.9))
        _label(ax, text, (0, 0), ((radius + 0.09) * math.cos(at), (radius + 0.09) * math.sin(at)), shade)


def _numbers(ax: Axes, step: StepGeometry) -> None:
    angles = ((r"\phi_t", step.phi_t), (r"\phi_s", step.phi_s), (r"\psi", step.psi))
    table = "\n".join(rf"${symbol} = {math.degrees(angle):.0f}\degree$ = {angle:.3f} rad" for symbol, angle in angles)
    ax.text(0, 1, table, transform=ax.transAxes, va="top", ha="left", linespacing=1.35)
    ax.set_title(style.look(step.param.name).label + rf":  $\kappa = 1/|\sin(\psi - \phi_t)| = {step.kappa:#.3g}$")
    ax.set_xlabel(
        rf"$x_s = {step.gain_u:.3f}\,u/r\ {step.gain_x:+.3f}\,x_t$,   $|OB| = {abs(step.gain_u):.3f}$" + "\n"
        rf"$\delta = {step.delta:g}$:  $|\tilde{{x}}_s - x_s| = |OB|\,\delta = {np.hypot(*step.error):.3f}$"
    )


def _label(ax: Axes, text: str, at: Any, offset: Any, color: str) -> None:
    ax.text(at[0] + offset[0], at[1] + offset[1], text, color=color, ha="center", va="center", zorder=6)


def _unit(vector: np.ndarray) -> np.ndarray:
    """Its direction; zero for the zero vector (a step of no length, or no error)."""
    return vector / (np.hypot(*vector) or 1.0)


def _arrow(color: str, width: float) -> dict[str, object]:
    return {"arrowstyle": "-|>", "color": color, "linewidth": width, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7}


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    parser = argparse.ArgumentParser(description="A DDIM step in the plane of x and epsilon; by default epsilon beside v.")
    parser.add_argument(
        "--param", metavar="NAME", help="draw this parameterization alone (epsilon, sample, v, flow, score, edm, ...)"
    )
    parser.add_argument("--sigma-data", type=float, help="standard deviation of the data, for edm, trigflow and optimal")
    parser.add_argument(
        "--phi-t", type=float, default=PHI_T, help="current angle, radians in [0, pi/2] (default: %(default).3f)"
    )
    parser.add_argument("--phi-s", type=float, default=PHI_S, help="next angle, radians in [0, pi/2] (default: %(default).3f)")
    parser.add_argument("--delta", type=float, default=DELTA, help="relative error of the output (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=style.FOLDER, help="folder for figure4.png or figure4-NAME.png")
    args = parser.parse_args(argv)
    try:
        params = [parse_parameterization(args.param, sigma_data=args.sigma_data)] if args.param else [EPSILON, V]
        steps = [step_geometry(param, args.phi_t, args.phi_s, delta=args.delta) for param in params]
    except ValueError as error:  # a name, an angle or a singular parameterization: the message says what to do
        parser.error(str(error))
    stem = f"figure4-{args.param}" if args.param else "figure4"
    with style.applied(font_scale=1.0 if args.param else 1.2):  # two panels stay legible at column width
        print(style.save(draw(steps), stem, args.out))


if __name__ == "__main__":
    main()
