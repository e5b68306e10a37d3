"""Where errors enter a run, one function per source: the network's output, the update's arithmetic and coefficients, the stored
state, the timestep.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from diffparam.error_model import ErrorModel, RoundingError
from diffparam.guidance import guidance_error_gain
from diffparam.network_error import NetworkError
from diffparam.prediction.correlation import correlated_energy
from diffparam.prediction.sensitivity import Sensitivity, gaussian_output_per_input
from diffparam.rounding import FloatFormat, parse_format, round_to
from diffparam.rounding_energy import rounding_energy
from diffparam.schedule import Schedule
from diffparam.solvers.plan import Plan


@dataclass(frozen=True, eq=False)
class SourceError:
    """What one source of rounding does.

    Attributes:
        name: ``output``, ``arithmetic``, ``coefficients``, ``state`` or ``timestep``.
        step_rms: Rms error it puts into the state at each call, ``(calls,)``.
        final: Each call's contribution to the rms of the final sample, ``(calls,)``.
        bounds: The same with a bound in place of the rms; infinite for unbounded errors, zero-mean or not.
        predicted: Expected rms of the final sample: ``independent`` where successive errors do not correlate.
    """

    name: str
    step_rms: np.ndarray
    final: np.ndarray
    bounds: np.ndarray
    predicted: float

    @property
    def independent(self) -> float:
        """Root of the sum of squares of ``final``."""
        return float(np.sqrt((self.final**2).sum()))

    @property
    def correlated(self) -> float:
        """Sum of ``final``: every error of the same sign."""
        return float(self.final.sum())

    @property
    def worst(self) -> float:
        """Sum of ``bounds``: no rms of the final sample exceeds it, to first order."""
        return float(self.bounds.sum())


def output_source(plan: Plan, sizes: Sensitivity, error: ErrorModel, guidance: float) -> SourceError:
    """Eq. 18 with the network's own output energy; both guidance branches err independently."""
    spread, both = guidance_error_gain(guidance), abs(guidance) + abs(guidance - 1.0)
    rms = np.sqrt(error.energy(sizes.output_sq)) * spread
    final = rms * _gain(sizes, error)
    if sizes.emulated is not None and sizes.emulated_error == error:
        final = sizes.emulated * spread
    predicted = root_sum_square(final)
    if isinstance(error, RoundingError) and error.mode == "nearest" and sizes.output_amplitude is not None:
        fmt = parse_format(error.fmt)
        predicted = math.sqrt(
            correlated_energy(final * np.sign(sizes.output_gain), sizes.output_amplitude, fmt.machine_epsilon)
        )
    return SourceError(
        "output", np.abs(plan.gain_u) * rms, final, error.bound(sizes.output_sq) * both * _gain(sizes, error), predicted
    )


def _gain(sizes: Sensitivity, error: ErrorModel) -> np.ndarray:
    """Gain of the output's error: of one that is independent of the output's size, of one that grows with it, or of a mixture."""
    fixed = np.abs(sizes.output_gain)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(sizes.output_sq > 0, sizes.relative_gain / np.sqrt(sizes.output_sq), fixed)
    if isinstance(error, NetworkError):
        share = error.relative_share(sizes.output_sq)
        return np.sqrt(share * relative**2 + (1.0 - share) * fixed**2)
    return relative if error.scales_with_value else fixed


def arithmetic_source(plan: Plan, sizes: Sensitivity, fmt: FloatFormat) -> SourceError:
    """One rounding per product and per sum; sums of three or four terms have partial sums of about the final size."""
    products = [
        plan.gain_x**2 * sizes.input_sq,
        plan.gain_u**2 * sizes.output_sq,
        plan.gain_m**2 * sizes.memory_sq,
        plan.noise**2,
    ]
    present = [p > 0 for p in products]
    sums = np.sum(present, axis=0) - 1
    energy = sum(rounding_energy(fmt, p) for p in products) + sums * rounding_energy(fmt, sizes.state_sq)
    bound = sum(fmt.bound_of("nearest") * np.sqrt(p) for p in products) + sums * fmt.bound_of("nearest") * np.sqrt(
        sizes.state_sq
    )
    final = np.abs(sizes.state_gain) * np.sqrt(energy)
    return SourceError("arithmetic", np.sqrt(energy), final, np.abs(sizes.state_gain) * bound, root_sum_square(final))


def coefficient_source(plan: Plan, sizes: Sensitivity, fmt: FloatFormat) -> SourceError:
    """The rounding of each coefficient is known: the same for every sample, so it moves the result and does not blur it."""
    in_x, in_u, in_m = (_rounding_of(gain, fmt) for gain in (plan.gain_x, plan.gain_u, plan.gain_m))
    sizes_rms = (np.sqrt(sizes.input_sq), np.sqrt(sizes.output_sq), np.sqrt(sizes.memory_sq))
    bound = sum(np.abs(e) * rms for e, rms in zip((in_x, in_u, in_m), sizes_rms, strict=True))
    if sizes.output_amplitude is None or plan.has_memory:
        step = _norm(*(e * rms for e, rms in zip((in_x, in_u, in_m), sizes_rms, strict=True)))
        final = np.abs(sizes.state_gain) * step
        predicted = root_sum_square(final)
    else:
        signed = in_x * sizes.input_amplitude + in_u * sizes.output_amplitude
        step, final = np.abs(signed), np.abs(sizes.state_gain * signed)
        predicted = abs(float((sizes.state_gain * signed).sum()))
    return SourceError("coefficients", step, final, np.abs(sizes.state_gain) * bound, predicted)


def state_source(plan: Plan, sizes: Sensitivity, error: ErrorModel) -> SourceError:
    """The state, rounded each time it is stored."""
    energy = error.energy(sizes.state_sq)
    gain = np.abs(sizes.state_gain)
    final = gain * np.sqrt(energy)
    return SourceError("state", np.sqrt(energy), final, gain * error.bound(sizes.state_sq), root_sum_square(final))


def timestep_source(
    plan: Plan, sizes: Sensitivity, fmt: FloatFormat, sigma_data: float, training: Schedule | None
) -> SourceError:
    """The network answers for the angle of the timestep it is told; for Gaussian data the difference is known."""
    told = rounded(plan.timestep.astype(np.float64), fmt)
    table_t, table_phi = (plan.timestep, plan.phi_t) if training is None else (training.timesteps.numpy(), training.phi.numpy())
    order = np.argsort(table_t, kind="stable")
    phi = np.where(told == plan.timestep, plan.phi_t, np.interp(told, table_t[order], table_phi[order]))
    change = gaussian_output_per_input(plan, phi, sigma_data) - gaussian_output_per_input(plan, plan.phi_t, sigma_data)
    step = np.abs(change * plan.gain_u) * np.sqrt(sizes.input_sq)
    if sizes.input_amplitude is None:
        final = np.abs(sizes.output_gain * change) * np.sqrt(sizes.input_sq)
        predicted = root_sum_square(final)
    else:
        signed = sizes.output_gain * change * sizes.input_amplitude
        final, predicted = np.abs(signed), abs(float(signed.sum()))
    return SourceError("timestep", step, final, final, predicted)


def rounded(values: np.ndarray, fmt: FloatFormat) -> np.ndarray:
    """``values`` rounded to nearest, float64."""
    return round_to(torch.from_numpy(np.ascontiguousarray(values)), fmt).numpy()


def _rounding_of(values: np.ndarray, fmt: FloatFormat) -> np.ndarray:
    return rounded(values, fmt) - values


def _norm(*parts: np.ndarray) -> np.ndarray:
    return np.sqrt(sum(p**2 for p in parts))


def root_sum_square(values: Iterable[float]) -> float:
    """Errors that are independent, added up."""
    return math.sqrt(sum(float(v) ** 2 for v in values))
