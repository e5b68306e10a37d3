"""What the sums of a budget do not say: unsafe steps, lost updates, repeated roundings, collisions, overflow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diffparam.error_model import CompensatedRounding, ErrorModel, RoundingError
from diffparam.prediction.sensitivity import Sensitivity, v_loss_floor
from diffparam.prediction.sources import told_timesteps
from diffparam.rounding import FloatFormat, parse_format
from diffparam.rounding_energy import overflow_probability, rounding_energy
from diffparam.solvers.plan import Plan


@dataclass(frozen=True)
class Flag:
    """Something the sums alone do not say.

    Attributes:
        kind: ``unsafe``, ``collision``, ``off_grid``, ``stagnation``, ``correlation``, ``grid``, ``heavy_tail``,
            ``overflow`` or ``large``.
        timestep: Where it begins; None where it is not about one.
        reason: In words, with numbers.
    """

    kind: str
    timestep: float | None
    reason: str


def unsafe_flags(plan: Plan, sizes: Sensitivity, error: ErrorModel, tolerance: float) -> list[Flag]:
    """Calls at which the output's error costs more than ``tolerance`` of the target's variance in v-space (eq. 27)."""
    floor = v_loss_floor(plan, sizes, error)
    bad = np.flatnonzero(floor > tolerance)
    if not len(bad):
        return []
    at = int(bad[np.argmax(floor[bad])])
    kappa = np.broadcast_to(plan.param.condition_number(plan.phi_t), (len(plan),))[at]
    return [
        Flag(
            "unsafe",
            float(plan.timestep[at]),
            f"{len(bad)} of {len(plan)} calls: kappa reaches {kappa:.3g} at timestep {plan.timestep[at]:g}, where the "
            f"output's error alone adds {floor[at]:.2g} times the target's variance to the v-space loss "
            f"(tolerance {tolerance:g})",
        )
    ]


def correlation_flags(plan: Plan, sizes: Sensitivity, error: ErrorModel) -> list[Flag]:
    """Outputs that move by less than a unit in the last place from call to call, so that their roundings repeat."""
    if not isinstance(error, RoundingError) or error.mode == "stochastic":
        return []
    unit = np.sqrt(12.0 * rounding_energy(parse_format(error.fmt), sizes.output_sq))
    slow = np.flatnonzero(np.sqrt(sizes.output_change_sq) < unit)
    if not len(slow):
        return []
    return [
        Flag(
            "correlation",
            float(plan.timestep[slow[0]]),
            f"the output moves by less than a unit in the last place at {len(slow)} of {len(plan) - 1} steps, so its roundings "
            "repeat or cancel; where the network is linear, or rounding was emulated, the prediction knows how, elsewhere it "
            "takes them as independent",
        )
    ]


def grid_flags(plan: Plan, sizes: Sensitivity, error: ErrorModel) -> list[Flag]:
    """A last update that is nothing but the rounded output: the sample itself lies on the format's grid."""
    if not isinstance(error, RoundingError):
        return []
    unit = math.sqrt(12.0 * rounding_energy(parse_format(error.fmt), float(sizes.output_sq[-1]))) * abs(float(plan.gain_u[-1]))
    if unit == 0 or abs(float(plan.gain_x[-1])) * math.sqrt(float(sizes.input_sq[-1])) > unit:
        return []
    reason = (
        "the last update is the rounded output, so the sample lies on its format's grid and the last rounding depends on the "
        "ones before: independent errors are a rough model there"
    )
    return [Flag("grid", float(plan.timestep[-1]), reason)]


def heavy_tail_flags(sizes: Sensitivity) -> list[Flag]:
    """Traced gains that a few samples carry."""
    if sizes.effective_samples >= _ENOUGH:
        return []
    reason = (
        f"the traced gains rest on {sizes.effective_samples:.0f} samples: some trajectories are far more sensitive than others "
        "(they pass between modes of the data), and first-order means say little about them; trace more samples"
    )
    return [Flag("heavy_tail", None, reason)]


_ENOUGH = 200
"""Samples whose mean square is known to about ten per cent."""


def stagnation_flags(plan: Plan, sizes: Sensitivity, error: ErrorModel) -> list[Flag]:
    """Updates that a rounded state loses, or rounds by less than independent roundings would."""
    if not isinstance(error, RoundingError | CompensatedRounding):
        return []
    stochastic = isinstance(error, RoundingError) and error.mode == "stochastic"
    half = np.sqrt(3.0 * np.asarray(error.energy(sizes.state_sq)) / (2.0 if stochastic else 1.0))
    lost = np.flatnonzero(np.sqrt(sizes.change_sq) < (2.0 * half if stochastic else half))
    if not len(lost):
        return []
    if stochastic:
        reason = (
            f"{len(lost)} of {len(plan)} updates are smaller than a unit in the last place of the stored state: stochastic "
            "rounding leaves most values where they are, and errs less than is predicted"
        )
        return [Flag("correlation", float(plan.timestep[lost[0]]), reason)]
    return [
        Flag(
            "stagnation",
            float(plan.timestep[lost[0]]),
            f"{len(lost)} of {len(plan)} updates are smaller than half a unit in the last place of the stored state, which "
            "loses them: take fewer steps, a wider state, stochastic rounding or a compensated state; sums of independent "
            "roundings do not describe this",
        )
    ]


def overflow_flags(plan: Plan, mean_square: np.ndarray, error: ErrorModel, what: str) -> list[Flag]:
    """Values beyond the largest of the format; Gaussian tails below 1e-9 are let pass."""
    if not isinstance(error, RoundingError):
        return []
    fmt = parse_format(error.fmt)
    share = overflow_probability(fmt, mean_square)
    at = int(np.argmax(share))
    if share[at] < 1e-9:
        return []
    reason = f"a share of {share[at]:.2g} of {what}'s values is beyond {fmt.max:g}, the largest of {fmt.name}; scale it down"
    return [Flag("overflow", float(plan.timestep[at]), reason)]


def timestep_flags(plan: Plan, fmt: FloatFormat) -> list[Flag]:
    """Timesteps that a format cannot tell apart, or moves."""
    distinct = np.unique(plan.timestep)
    told = told_timesteps(distinct, fmt)
    flags = []
    groups = len(np.unique(told))
    if groups < len(distinct):
        first = float(distinct[np.flatnonzero(np.diff(told) == 0)[0]])
        reason = f"{len(distinct)} timesteps become {groups} in {fmt.name}, the first pair at {first:g}: pass them in float32"
        flags.append(Flag("collision", first, reason))
    moved = np.flatnonzero(np.abs(told - distinct) > 2**-23 * np.abs(distinct))  # what Schedule.phi_at takes as the same
    if len(moved):
        worst = moved[np.argmax(np.abs(told - distinct)[moved])]
        reason = f"{len(moved)} of {len(distinct)} timesteps are moved by {fmt.name}, {distinct[worst]:g} to {told[worst]:g}"
        flags.append(Flag("off_grid", float(distinct[worst]), reason))
    return flags


def large_flags(relative: float) -> list[Flag]:
    """A prediction that says itself that it is not small."""
    if relative < 0.3:
        return []
    reason = (
        f"the predicted error is {relative:.2g} of the sample: first-order sums are rough there, and the result is lost anyway"
    )
    return [Flag("large", None, reason)]


def useful_steps(sizes: Sensitivity, error: ErrorModel) -> float:
    """Length of the path in half units in the last place of the state; infinite where no update is lost."""
    if not isinstance(error, RoundingError) or error.mode == "stochastic":
        return math.inf
    half = _half_ulp(sizes, error)
    return float((np.sqrt(sizes.change_sq[half > 0]) / half[half > 0]).sum())


def _half_ulp(sizes: Sensitivity, error: RoundingError) -> np.ndarray:
    return np.sqrt(3.0 * rounding_energy(parse_format(error.fmt), sizes.state_sq))
