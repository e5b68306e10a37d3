r"""What a rounded state does to a run, without assuming that its roundings are independent.

A stored state lies on its format's grid, and the next update moves it by d units in the last place. Rounding to nearest makes
that round(d) units: none for d < 1/2, up to twice too many just above. The roundings of successive steps are functions of each
other; stochastic rounding errs by the energy f (1 - f) square units, f the fractional part of d, which is nothing for an update
that is small. Independent roundings (:func:`diffparam.predict_error`) are the limit of d that is large or spread over many
units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffparam import ErrorModel, Plan, RoundingError, Sensitivity, parse_format, rounding_energy
from diffparam.prediction.correlation import sawtooth_correlation
from diffparam.solvers.loop import Model, timestep_tensor
from diffparam.solvers.step import advance

OCTAVES_DOWN, OCTAVES_UP = 8, 3
"""Factors of two below and above one standard deviation that the quadrature over a Gaussian covers."""


def step_ratios(plan: Plan, sizes: Sensitivity) -> np.ndarray:
    """J with ``x_after = J x_before`` for each call of a linear run, float64 ``(calls,)``.

    Raises:
        ValueError: If the run adds noise, reads a memory, or is not known to be linear.
    """
    if sizes.input_amplitude is None or sizes.output_amplitude is None or plan.has_memory:
        raise ValueError(
            f"the run must be linear, without noise and memory, got {plan!r}; take Gaussian data and DDIM, or traced_error"
        )
    return plan.gain_x + plan.gain_u * sizes.output_amplitude / sizes.input_amplitude


@dataclass(frozen=True, eq=False)
class Transported:
    """Final states of a rounded linear run, on quadrature nodes of its initial noise z > 0.

    Attributes:
        z: Nodes, float64 ``(nodes,)``.
        weight: Of each, for means over standard normal z.
        final: The rounded run's end.
        right: What it is per unit of z without rounding.
    """

    z: Tensor
    weight: Tensor
    final: Tensor
    right: float

    def rms_error(self, target: float | None = None) -> float:
        """Rms distance from ``target`` z, by default from what the run gives without rounding."""
        right = self.right if target is None else target
        return math.sqrt(float((self.weight * (self.final - right * self.z) ** 2).sum()))


def transported(plan: Plan, sizes: Sensitivity, error: ErrorModel, *, per_octave: int = 512) -> Transported:
    r"""The rounded recursion :math:`x_{k+1} = \mathrm{round}(J_k x_k)` of a linear run from :math:`x_0 = A_0 z`.

    With :math:`z = 2^y` the mean over standard normal z is a midpoint rule in y.

    Args:
        plan: A run without noise and memory.
        sizes: Of Gaussian data (:func:`diffparam.gaussian_sensitivity`).
        error: What storing the state does; not stochastic.
        per_octave: Nodes per factor of two of z. Where N roundings are as good as independent they are a sample of about four
            octaves, so the error is known to ``1/sqrt(8 per_octave)``; where updates are lost, far better.

    Raises:
        ValueError: If the run is not linear or the error is random.
    """
    if isinstance(error, RoundingError) and error.mode == "stochastic":
        raise ValueError("error must be deterministic, got stochastic rounding; use on_grid_error")
    ratios = step_ratios(plan, sizes).tolist()
    initial = float(np.asarray(sizes.input_amplitude)[0])
    y = (torch.arange(-OCTAVES_DOWN * per_octave, OCTAVES_UP * per_octave, dtype=torch.float64) + 0.5) / per_octave
    z = torch.exp2(y)
    weight = torch.exp(-0.5 * z**2) * z * (math.sqrt(2.0 / math.pi) * math.log(2.0) / per_octave)  # density of |z| in y
    x = initial * z
    for ratio in ratios:
        x = error.apply(ratio * x)
    return Transported(z, weight, x, initial * math.prod(ratios))


def on_grid_error(sizes: Sensitivity, error: ErrorModel) -> float:
    r"""Rms error with roundings that are independent of each other, but each of an update from a state on the grid.

    The energy of each rounding is multiplied by :func:`on_grid_share`. Exact to first order for stochastic rounding, whose
    errors have zero mean given the earlier ones; for rounding to nearest where fresh noise decides each of them. A compensated
    state is taken as it is: its second number is on no grid for the updates of any run that is not absurdly long.
    """
    energy = error.energy(sizes.state_sq)
    if isinstance(error, RoundingError):
        move = np.sqrt(sizes.change_sq / sizes.input_sq) / parse_format(error.fmt).machine_epsilon
        share = on_grid_share(move, stochastic=error.mode == "stochastic")
        share[0] = 1.0  # the initial state is on no grid
        energy = energy * share
    return math.sqrt(float((sizes.state_gain**2 * energy).sum()))


def on_grid_share(move: np.ndarray, *, stochastic: bool) -> np.ndarray:
    r"""Energy of rounding an update from the grid, in units of that of rounding any value.

    Args:
        move: Relative change of the state over the machine epsilon; d = move m units for a log-uniform significand m.
        stochastic: 6 E[f (1 - f)], which is 1 minus the correlation of a sawtooth's values d apart; to nearest
            12 E[(d - round d)^2].
    """
    if stochastic:
        return 1.0 - sawtooth_correlation(move)
    m = np.exp2((np.arange(256) + 0.5) / 256)
    d = np.minimum(move, 1e6)[:, None] * m
    return 12.0 * ((d - np.rint(d)) ** 2).mean(1)


def traced_error(
    model: Model, plan: Plan, x_init: Tensor, errors: Sequence[ErrorModel], generator: torch.Generator
) -> list[float]:
    r"""Rms error of any run with a rounded state, errors of different steps taken as independent.

    One float64 run and one reverse pass give the gain :math:`\lambda_k` of every element (as
    :func:`diffparam.trace_sensitivity` does), the error models what they do to the very update from a state on their grid. The
    mean of :math:`\lambda_k^2e_k^2` keeps what the product of means forgets: errors grow with the state, and between two modes
    of the data the state is small where the gain is large.

    Args:
        model: ``model(x_t, t)``, differentiable.
        plan: The run.
        x_init: Noise ``(batch, *event)``, float64.
        errors: Of the stored state.
        generator: Source of all random numbers.
    """
    x, memory = x_init, None
    bumps, moves = [], []
    with torch.enable_grad():
        for step in plan.steps():
            before = x
            x, memory = advance(step.coefficients, model(x, timestep_tensor(step.timestep, x)), x, memory, generator=generator)
            bumps.append(torch.zeros_like(x, requires_grad=True))
            moves.append((before.detach(), (x - before).detach()))
            x = x + bumps[-1]
        zeta = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        gains = torch.autograd.grad((zeta * x).sum(), bumps)

    def local(error: ErrorModel, before: Tensor, move: Tensor) -> Tensor:
        moved = error.apply(before, generator) + move
        return error.apply(moved, generator) - moved

    return [
        math.sqrt(sum(float((g * local(error, *move)).square().mean()) for g, move in zip(gains, moves, strict=True)))
        for error in errors
    ]


def lost_share(sizes: Sensitivity, fmt: str) -> float:
    """Share of the updates whose rms is below half a unit in the last place of the state."""
    half_unit = np.sqrt(3.0 * rounding_energy(parse_format(fmt), sizes.state_sq))
    return float((np.sqrt(sizes.change_sq) < half_unit).mean())
