"""Where errors enter a run, one function per source: the network's output, the update's arithmetic and coefficients, the stored
state, the timestep.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from diffparam.angle import HALF_PI
from diffparam.error_model import ErrorModel, RelativeError, RoundingError
from diffparam.errors import NonFiniteError
from diffparam.guidance import guidance_error_gain
from diffparam.network_error import NetworkError
from diffparam.prediction.correlation import correlated_energy, sawtooth_correlation
from diffparam.prediction.emulation import Emulation
from diffparam.prediction.known import known_error
from diffparam.prediction.sensitivity import (
    Sensitivity,
    gaussian_output_per_input,
    memory_gain,
)
from diffparam.rounding import FloatFormat, parse_format, round_to
from diffparam.rounding_energy import rounding_energy
from diffparam.schedule import Schedule
from diffparam.solvers.plan import Plan
from diffparam.solvers.step import StepCoefficients


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
    """Eq. 18 with the network's own output energy. Guidance branches err independently, but for what is one factor of both.

    Errors that are known to correlate from call to call add up with their signs.
    """
    spread, both = guidance_error_gain(guidance), abs(guidance) + abs(guidance - 1.0)
    gain = _gain(sizes, error)
    bounds = _times(both * gain, error.bound(sizes.output_sq))
    factor, random = split_error(error, sizes.output_sq)
    rms = np.sqrt(random * spread**2 + factor**2 * sizes.output_sq)
    final = rms * gain
    predicted = root_sum_square(np.sqrt(random) * spread * gain)
    if (emulated := _emulated(sizes, "output", error)) is not None:
        final, predicted = emulated.final * spread, emulated.total * spread
    elif factor:
        change = StepCoefficients(factor * plan.gain_u, 0.0, memory_u=factor * plan.memory_u)
        predicted = math.hypot(predicted, known_error(plan, sizes, change)[2])
    elif isinstance(error, NetworkError) and error.correlation is not None:
        predicted = math.sqrt(max(float(final @ (error.correlation * _alignment(sizes)) @ final), 0.0))
    elif isinstance(error, RoundingError) and error.mode == "nearest" and sizes.output_amplitude is not None:
        signed = final * np.sign(sizes.output_gain)
        predicted = math.sqrt(correlated_energy(signed, sizes.output_amplitude, parse_format(error.fmt).machine_epsilon))
    return SourceError("output", np.abs(plan.gain_u) * rms, final, bounds, predicted)


def _alignment(sizes: Sensitivity) -> np.ndarray:
    """Whether errors of one sign at two calls add up at the end: traced, or the signs of a linear run."""
    if sizes.output_alignment is not None:
        return sizes.output_alignment
    sign = np.sign(sizes.output_gain)
    return np.outer(sign, sign)


def split_error(error: ErrorModel, mean_square: np.ndarray) -> tuple[float, np.ndarray]:
    r"""What an error is in the mean, as a factor of the value, and the energy of the rest.

    Rounding toward zero takes half a spacing from each value: :math:`\epsilon/(4\ln2)` of a Gaussian one, which is 7/10 of the
    energy of its error.
    """
    factor = 0.0
    if isinstance(error, RelativeError) and error.law == "constant":
        factor = error.rms
    elif isinstance(error, RoundingError) and error.mode == "toward_zero":
        factor = -parse_format(error.fmt).machine_epsilon / (4.0 * math.log(2.0))
    return factor, np.maximum(error.energy(mean_square) - factor**2 * mean_square, 0.0)


def _gain(sizes: Sensitivity, error: ErrorModel) -> np.ndarray:
    """Gain of an error that is independent of the output's size, of one that grows with it, or of a mixture."""
    fixed = np.abs(sizes.output_gain)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(sizes.output_sq > 0, sizes.relative_gain / np.sqrt(sizes.output_sq), fixed)
    if isinstance(error, NetworkError):
        share = error.relative_share(sizes.output_sq)
        return np.sqrt(share * relative**2 + (1.0 - share) * fixed**2)
    return relative if error.scales_with_value else fixed


def arithmetic_source(plan: Plan, sizes: Sensitivity, fmt: FloatFormat, increments: bool = False) -> SourceError:
    """One rounding per product and per sum of the update and of the memory; a power of two times a stored value needs none.

    With ``increments`` the products make a change of the state, and adding it is one more sum.
    """
    one = np.ones(len(plan))
    values = (sizes.input_sq, sizes.output_sq, sizes.memory_sq, one, sizes.input_sq, sizes.output_sq)
    gain_x = plan.gain_x - 1.0 if increments else plan.gain_x
    gains = np.array([gain_x, plan.gain_u, plan.gain_m, plan.noise, plan.memory_x, plan.memory_u])
    gains = _rounded(gains, fmt, "arithmetic")
    products = gains**2 * np.array(values)
    later = np.arange(len(plan)) > 0  # the first state is the caller's
    stored = np.array([later, 0 * one, one, 0 * one, later, 0 * one], dtype=bool)
    exact = stored & (np.abs(np.frexp(gains)[0]) == 0.5)
    squares = np.concatenate([np.where(exact, 0.0, products), _sums(plan, sizes, increments)])
    energy, bound = rounding_energy(fmt, squares), np.where(squares > 0, RoundingError(fmt).bound(squares), 0.0)
    in_state, in_memory = energy[_IN_STATE].sum(0), energy[_IN_MEMORY].sum(0)
    if sizes.output_per_input is not None:  # the roundings of a x and of b u, which is b K x
        in_state += _common(gains[0], gains[1] * sizes.output_per_input, energy[0], energy[1], fmt)
        in_memory += _common(gains[4], gains[5] * sizes.output_per_input, energy[4], energy[5], fmt)
    gain, to_memory = _state_gain(sizes), np.abs(memory_gain(plan, sizes.state_gain))
    final = np.sqrt(gain**2 * in_state + to_memory**2 * in_memory)
    bounds = gain * bound[_IN_STATE].sum(0) + to_memory * bound[_IN_MEMORY].sum(0)
    predicted = root_sum_square(final)
    name = "increments" if increments else "arithmetic"
    if (emulated := _emulated(sizes, name, RoundingError(fmt))) is not None:
        final, predicted = emulated.final, emulated.total
    return SourceError("arithmetic", np.sqrt(in_state), final, bounds, predicted)


_IN_STATE, _IN_MEMORY = [0, 1, 2, 3, 6, 7, 8, 10], [4, 5, 9]
"""Of the roundings of six products and five sums, those that go into the state and into the memory."""


def _sums(plan: Plan, sizes: Sensitivity, increments: bool) -> np.ndarray:
    """Mean squares of ``a x + b u``, of that ``+ c m``, of that ``+ n z``, of ``p x + q u``, and, with ``increments``, where a
    is ``gain_x - 1``, of the state plus all that; 0 where nothing is added.
    """
    gain_x = plan.gain_x - 1.0 if increments else plan.gain_x
    whole = sizes.change_sq if increments else sizes.state_sq
    before_noise = np.maximum(whole - plan.noise**2, 0.0)
    first = before_noise
    if sizes.output_per_input is not None:
        k = sizes.output_per_input
        residual = np.maximum(sizes.output_sq - k**2 * sizes.input_sq, 0.0)
        without_memory = (gain_x + plan.gain_u * k) ** 2 * sizes.input_sq + plan.gain_u**2 * residual
        first = np.where(plan.gain_m == 0, before_noise, without_memory)
    x, u, m, z, p, q = (np.asarray(v != 0) for v in (
        gain_x, plan.gain_u, plan.gain_m, plan.noise, plan.memory_x, plan.memory_u,
    ))  # fmt: skip
    return np.array([
        np.where(x & u, first, 0.0),
        np.where((x | u) & m, before_noise, 0.0),
        np.where((x | u | m) & z, whole, 0.0),
        np.where(p & q, np.append(sizes.memory_sq[1:], 0.0), 0.0),
        sizes.state_sq if increments else np.zeros(len(plan)),
    ])  # fmt: skip


def _common(a: np.ndarray, b: np.ndarray, energy_a: np.ndarray, energy_b: np.ndarray, fmt: FloatFormat) -> np.ndarray:
    """Twice E of the product of the roundings of a x and b x: they are those of two points of one sawtooth."""
    with np.errstate(divide="ignore", invalid="ignore"):
        move = np.abs(np.abs(b / a) - 1.0) / fmt.machine_epsilon
    correlation = sawtooth_correlation(np.where(np.isfinite(move), move, np.inf))
    return 2.0 * np.sign(a) * np.sign(b) * correlation * np.sqrt(energy_a * energy_b)


def coefficient_source(plan: Plan, sizes: Sensitivity, fmt: FloatFormat, increments: bool = False) -> SourceError:
    """The rounding of each coefficient is known: the same for every sample, so it moves the result and does not blur it."""
    columns = (
        plan.gain_u,
        plan.gain_x - 1.0 if increments else plan.gain_x,
        plan.noise,
        plan.gain_m,
        plan.memory_u,
        plan.memory_x,
    )
    change = StepCoefficients(*(_rounded(column, fmt, "arithmetic") - column for column in columns))
    step, final, predicted = known_error(plan, sizes, change)
    x, u, m = (np.sqrt(v) for v in (sizes.input_sq, sizes.output_sq, sizes.memory_sq))
    in_state = np.abs(change.gain_x) * x + np.abs(change.gain_u) * u + np.abs(change.gain_m) * m + np.abs(change.noise)
    in_memory = np.abs(change.memory_x) * x + np.abs(change.memory_u) * u
    bounds = np.abs(sizes.state_gain) * in_state + np.abs(memory_gain(plan, sizes.state_gain)) * in_memory
    return SourceError("coefficients", step, final, bounds, predicted)


def state_source(plan: Plan, sizes: Sensitivity, error: ErrorModel) -> SourceError:
    """The state, rounded each time it is stored."""
    gain = _state_gain(sizes) if error.scales_with_value else np.abs(sizes.state_gain)
    factor, random = split_error(error, sizes.state_sq)
    rms = np.sqrt(random + factor**2 * sizes.state_sq)
    predicted = root_sum_square(gain * np.sqrt(random))
    if factor:  # of all that the update is made of
        change = StepCoefficients(*(factor * v for v in (plan.gain_u, plan.gain_x, plan.noise, plan.gain_m)))
        predicted = math.hypot(predicted, known_error(plan, sizes, change)[2])
    final = gain * rms
    if (emulated := _emulated(sizes, "state", error)) is not None:
        final, predicted = emulated.final, emulated.total
    return SourceError("state", rms, final, _times(gain, error.bound(sizes.state_sq)), predicted)


def _emulated(sizes: Sensitivity, name: str, error: ErrorModel) -> Emulation | None:
    """What was traced with this very error in this place."""
    found = sizes.emulated.get(name)
    return None if found is None or found.error != error else found


def _state_gain(sizes: Sensitivity) -> np.ndarray:
    """Gain of an error of the state that grows with it: traced where it was, else as if the two were independent."""
    gain = np.abs(sizes.state_gain)
    if sizes.state_relative_gain is None:
        return gain
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sizes.state_sq > 0, sizes.state_relative_gain / np.sqrt(sizes.state_sq), gain)


def timestep_source(
    plan: Plan, sizes: Sensitivity, fmt: FloatFormat, sigma_data: float, training: Schedule | None
) -> SourceError:
    """The network answers for the angle of the timestep it is told; for Gaussian data the difference is known."""
    told = told_timesteps(plan.timestep, fmt)
    table_t, table_phi = (plan.timestep, plan.phi_t) if training is None else (training.timesteps.numpy(), training.phi.numpy())
    order = np.argsort(table_t, kind="stable")
    phi = np.where(told == plan.timestep, plan.phi_t, _angle_of(told, table_t[order], table_phi[order]))
    change = gaussian_output_per_input(plan, phi, sigma_data) - gaussian_output_per_input(plan, plan.phi_t, sigma_data)
    step, final, predicted = known_error(plan, sizes, StepCoefficients(0.0, 0.0), change)
    return SourceError("timestep", step, final, final, predicted)


def _angle_of(told: np.ndarray, timestep: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """Linear between the timesteps of a table; beyond its last one, where a rounding may lead, along its last step."""
    inside = np.interp(told, timestep, phi)
    if len(phi) < 2:
        return inside
    slope = (phi[-1] - phi[-2]) / (timestep[-1] - timestep[-2])
    beyond = np.minimum(phi[-1] + slope * (told - timestep[-1]), max(np.nextafter(HALF_PI, 0.0), phi[-1]))
    return np.where(told > timestep[-1], beyond, inside)


def told_timesteps(timestep: np.ndarray, fmt: FloatFormat) -> np.ndarray:
    """Timesteps as the network is told them, float64.

    Raises:
        NonFiniteError: If the format has no such number.
    """
    return _rounded(timestep.astype(np.float64), fmt, "timestep")


def _rounded(values: np.ndarray, fmt: FloatFormat, name: str) -> np.ndarray:
    """``values`` rounded to nearest, float64; refused where the format that argument ``name`` asks for does not reach."""
    near = round_to(torch.from_numpy(np.ascontiguousarray(values)), fmt).numpy()
    if not np.isfinite(near).all():
        raise NonFiniteError(
            f"{name} must be a format that holds {np.abs(values).max():g}, got {fmt.name}, whose largest value is {fmt.max:g}; "
            "take float32"
        )
    return near


def _times(gain: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """``gain * bound``; what has no gain does nothing, however large it is."""
    return np.multiply(gain, bound, where=gain > 0, out=np.zeros(np.broadcast(gain, bound).shape))


def root_sum_square(values: Iterable[float]) -> float:
    """Errors that are independent, added up."""
    return math.sqrt(sum(float(v) ** 2 for v in values))
