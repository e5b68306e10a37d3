r"""The error of a sampler before it runs: by source, per step and at the end.

Each source puts an error :math:`e_k` into call k; later steps multiply it by the gain :math:`g_k` of
:class:`diffparam.Sensitivity`. Three sums of the :math:`g_k e_k`, for three things that may be true of the errors:

- independent: :math:`\sqrt{\sum g_k^2E[e_k^2]}`. Rounding errors of values that move by many units in the last place per step.
- correlated: :math:`\sum|g_k|\sqrt{E[e_k^2]}`. The same sign at every step; the paper's "the step size cancels" is this sum.
- worst case: :math:`\sum|g_k|\,b_k` with the bound b in place of the rms. It bounds the rms of the final error to first order.

Between the first two lies what a slowly moving output does: successive roundings correlate once u moves by less than a unit in the
last place a step, by a factor that is known (:func:`sawtooth_correlation`).

The probabilistic bound is that of Higham & Mary (2019) in its Azuma-Hoeffding form: errors that are bounded by :math:`b_k` and of zero
mean given the earlier ones stay below :math:`\lambda\sqrt{\sum g_k^2b_k^2}` with probability at least
:math:`1-2e^{-\lambda^2/2}` per element.
"""

from __future__ import annotations

import math
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from diffparam._checks import check_number
from diffparam.error_model import ErrorModel, RoundingError
from diffparam.guidance import guidance_error_gain
from diffparam.prediction.sensitivity import Sensitivity, gaussian_output_per_input, gaussian_sensitivity, moments_sensitivity
from diffparam.prediction.step import OutputMoments
from diffparam.rounding import FloatFormat, parse_format, round_to
from diffparam.rounding_energy import overflow_probability, rounding_energy
from diffparam.schedule import Schedule
from diffparam.solvers.plan import Plan

Data = float | OutputMoments | Sensitivity
Format = str | FloatFormat | None


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


@dataclass(frozen=True)
class Flag:
    """Something the sums alone do not say.

    Attributes:
        kind: ``unsafe``, ``collision``, ``off_grid``, ``stagnation``, ``correlation``, ``overflow`` or ``large``.
        timestep: Where it begins; None where it is not about one.
        reason: In words, with numbers.
    """

    kind: str
    timestep: float | None
    reason: str


@dataclass(frozen=True, eq=False)
class ErrorBudget:
    """The prediction, per element of the final sample.

    Attributes:
        plan: The run it speaks of.
        sources: By name.
        final_rms: Rms of the final sample itself.
        bound: What one element's error exceeds with probability at most ``1 - confidence``; infinite for unbounded errors.
        confidence: Of ``bound``.
        useful_steps: Steps beyond which a mean update is smaller than half a unit in the last place of the state.
        flags: What else to know.
    """

    plan: Plan
    sources: dict[str, SourceError]
    final_rms: float
    bound: float
    confidence: float
    useful_steps: float
    flags: tuple[Flag, ...]

    @property
    def rms(self) -> float:
        """Expected rms error over all sources."""
        return _root_sum_square(s.predicted for s in self.sources.values())

    @property
    def independent(self) -> float:
        """Rms with every error independent of every other."""
        return _root_sum_square(s.independent for s in self.sources.values())

    @property
    def correlated(self) -> float:
        """Rms with all errors of the same sign."""
        return sum(s.correlated for s in self.sources.values())

    @property
    def worst(self) -> float:
        """Worst case of the rms."""
        return sum(s.worst for s in self.sources.values())

    @property
    def relative(self) -> float:
        """``rms`` over ``final_rms``."""
        return self.rms / self.final_rms

    @property
    def dominant(self) -> str:
        """Name of the largest source."""
        return max(self.sources, key=lambda name: self.sources[name].predicted, default="none")

    def __repr__(self) -> str:
        return f"ErrorBudget({self.plan!r}: rms {self.rms:.3g} of {self.final_rms:.3g}, mostly {self.dominant}, {len(self.flags)} flags)"


def predict_error(
    plan: Plan,
    data: Data = 1.0,
    *,
    output: Format | ErrorModel = "bfloat16",
    arithmetic: Format = "float32",
    state: Format | ErrorModel = "float32",
    timestep: Format = "float32",
    guidance: float = 1.0,
    training: Schedule | None = None,
    tolerance: float = 0.01,
    confidence: float = 0.999,
) -> ErrorBudget:
    """Predict what low precision does to a run, before it.

    Args:
        plan: The run: :func:`plan_ddim`, :func:`plan_ddpm`, :func:`plan_dpm_solver`, :func:`plan_heun`.
        data: Standard deviation of Gaussian data, :class:`OutputMoments` per call, or a :class:`Sensitivity`.
        output: What the model's output suffers: a format, an error model (a calibrated one too), or None for nothing.
        arithmetic: Format of the products and sums of the update, and of its coefficients; None for exact.
        state: What storing the state suffers; None for nothing.
        timestep: Format in which the network is told the time (known for Gaussian data only); None for exact.
        guidance: Scale omega; both branches err on their own.
        training: Schedule of the training, to know what an off-grid timestep means; the plan's own angles by default.
        tolerance: Loss floor above which a step is unsafe, in units of the target's variance.
        confidence: Of :attr:`ErrorBudget.bound`.

    Raises:
        TypeError: If ``data`` or a format is of another kind.
        ValueError: If a number is out of range.
        UnknownName: For a format that is not known.
    """
    if check_number(confidence, "confidence", low=0.0, high=1.0) == 1.0:
        raise ValueError("confidence must be below 1, got 1; the bound that always holds is ErrorBudget.worst")
    tolerance = check_number(tolerance, "tolerance", low=0.0, open_low=True)
    sizes = _sensitivity(plan, data)
    on_output, on_state = as_error(output, "output"), as_error(state, "state")
    sources: list[SourceError] = []
    flags: list[Flag] = []
    if on_output is not None:
        sources.append(_output_source(plan, sizes, on_output, guidance))
        flags += unsafe_flags(plan, sizes, on_output, tolerance) + _overflow_flags(
            plan, sizes.output_sq, on_output, "the output"
        )
        flags += _correlation_flags(plan, sizes, on_output)
    if arithmetic is not None:
        fmt = parse_format(arithmetic)
        sources += [_arithmetic_source(plan, sizes, fmt), _coefficient_source(plan, sizes, fmt)]
    useful = math.inf
    if on_state is not None:
        useful = _useful_steps(sizes, on_state)
        flags += _stagnation_flags(plan, sizes, on_state) + _overflow_flags(plan, sizes.state_sq, on_state, "the state")
        # a sum that is rounded to the state's own format is stored for nothing
        if arithmetic is None or on_state != RoundingError(parse_format(arithmetic)):
            sources.append(_state_source(plan, sizes, on_state))
    if timestep is not None:
        fmt = parse_format(timestep)
        flags += _timestep_flags(plan, fmt)
        if isinstance(data, (int, float)):
            sources.append(_timestep_source(plan, sizes, fmt, float(data), training))
    by_name = {source.name: source for source in sources}
    final_rms = math.sqrt(sizes.final_sq)
    budget = ErrorBudget(plan, by_name, final_rms, _azuma(sources, confidence), confidence, useful, tuple(flags))
    return replace(budget, flags=(*budget.flags, *_large_flags(budget)))


def as_error(error: Format | ErrorModel, name: str) -> ErrorModel | None:
    """A format by any name as the error of rounding to it; an error model as it is."""
    if error is None or (isinstance(error, ErrorModel) and not isinstance(error, FloatFormat)):
        return error
    if isinstance(error, (str, FloatFormat, torch.dtype)):
        return RoundingError(error)
    raise TypeError(f"{name} must be a format, an error model or None, got {type(error).__name__}")


def _sensitivity(plan: Plan, data: Data) -> Sensitivity:
    if isinstance(data, Sensitivity):
        if len(data.output_sq) != len(plan):
            raise ValueError(f"data must have one entry per call ({len(plan)}), got {len(data.output_sq)}; trace the same plan")
        return data
    if isinstance(data, OutputMoments):
        return moments_sensitivity(plan, data)
    return gaussian_sensitivity(plan, check_number(data, "data", low=0.0))


# -- sources ----------------------------------------------------------------------------------------------------------


def _output_source(plan: Plan, sizes: Sensitivity, error: ErrorModel, guidance: float) -> SourceError:
    """Eq. 18 with the network's own output energy; both guidance branches err independently."""
    spread, both = guidance_error_gain(guidance), abs(guidance) + abs(guidance - 1.0)
    rms = np.sqrt(error.energy(sizes.output_sq)) * spread
    final = rms * _gain(sizes, error)
    predicted = _root_sum_square(final)
    if isinstance(error, RoundingError) and error.mode == "nearest" and sizes.output_amplitude is not None:
        fmt = parse_format(error.fmt)
        predicted = math.sqrt(
            correlated_energy(final * np.sign(sizes.output_gain), sizes.output_amplitude, fmt.machine_epsilon)
        )
    return SourceError(
        "output", np.abs(plan.gain_u) * rms, final, error.bound(sizes.output_sq) * both * _gain(sizes, error), predicted
    )


def _gain(sizes: Sensitivity, error: ErrorModel) -> np.ndarray:
    """Gain of the output's error: of one that is independent of the output's size, or of one that grows with it."""
    if error.scales_with_value:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(sizes.output_sq > 0, sizes.relative_gain / np.sqrt(sizes.output_sq), np.abs(sizes.output_gain))
    return np.abs(sizes.output_gain)


def _arithmetic_source(plan: Plan, sizes: Sensitivity, fmt: FloatFormat) -> SourceError:
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
    return SourceError("arithmetic", np.sqrt(energy), final, np.abs(sizes.state_gain) * bound, _root_sum_square(final))


def _coefficient_source(plan: Plan, sizes: Sensitivity, fmt: FloatFormat) -> SourceError:
    """The rounding of each coefficient is known: the same for every sample, so it moves the result and does not blur it."""
    in_x, in_u, in_m = (_rounding_of(gain, fmt) for gain in (plan.gain_x, plan.gain_u, plan.gain_m))
    sizes_rms = (np.sqrt(sizes.input_sq), np.sqrt(sizes.output_sq), np.sqrt(sizes.memory_sq))
    bound = sum(np.abs(e) * rms for e, rms in zip((in_x, in_u, in_m), sizes_rms, strict=True))
    if sizes.output_amplitude is None or plan.has_memory:
        step = _norm(*(e * rms for e, rms in zip((in_x, in_u, in_m), sizes_rms, strict=True)))
        final = np.abs(sizes.state_gain) * step
        predicted = _root_sum_square(final)
    else:
        signed = in_x * sizes.input_amplitude + in_u * sizes.output_amplitude
        step, final = np.abs(signed), np.abs(sizes.state_gain * signed)
        predicted = abs(float((sizes.state_gain * signed).sum()))
    return SourceError("coefficients", step, final, np.abs(sizes.state_gain) * bound, predicted)


def _state_source(plan: Plan, sizes: Sensitivity, error: ErrorModel) -> SourceError:
    energy = error.energy(sizes.state_sq)
    gain = np.abs(sizes.state_gain)
    final = gain * np.sqrt(energy)
    return SourceError("state", np.sqrt(energy), final, gain * error.bound(sizes.state_sq), _root_sum_square(final))


def _timestep_source(
    plan: Plan, sizes: Sensitivity, fmt: FloatFormat, sigma_data: float, training: Schedule | None
) -> SourceError:
    """The network answers for the angle of the timestep it is told; for Gaussian data the difference is known."""
    told = _rounded(plan.timestep.astype(np.float64), fmt)
    table_t, table_phi = (plan.timestep, plan.phi_t) if training is None else (training.timesteps.numpy(), training.phi.numpy())
    order = np.argsort(table_t, kind="stable")
    phi = np.where(told == plan.timestep, plan.phi_t, np.interp(told, table_t[order], table_phi[order]))
    change = gaussian_output_per_input(plan, phi, sigma_data) - gaussian_output_per_input(plan, plan.phi_t, sigma_data)
    step = np.abs(change * plan.gain_u) * np.sqrt(sizes.input_sq)
    if sizes.input_amplitude is None:
        final = np.abs(sizes.output_gain * change) * np.sqrt(sizes.input_sq)
        predicted = _root_sum_square(final)
    else:
        signed = sizes.output_gain * change * sizes.input_amplitude
        final, predicted = np.abs(signed), abs(float(signed.sum()))
    return SourceError("timestep", step, final, final, predicted)


# -- flags ------------------------------------------------------------------------------------------------------------


def unsafe_flags(plan: Plan, sizes: Sensitivity, error: ErrorModel, tolerance: float) -> list[Flag]:
    """Calls at which the output's error costs more than ``tolerance`` of the target's variance in v-space (eq. 27)."""
    floor = plan.param.condition_number(plan.phi_t) ** 2 * error.energy(sizes.output_sq) / plan.param.r_at(plan.phi_t) ** 2
    bad = np.flatnonzero(np.broadcast_to(floor, (len(plan),)) > tolerance)
    if not len(bad):
        return []
    at = int(bad[np.argmax(floor[bad])])
    kappa = np.broadcast_to(plan.param.condition_number(plan.phi_t), (len(plan),))[at]
    return [
        Flag(
            "unsafe",
            float(plan.timestep[at]),
            f"{len(bad)} of {len(plan)} calls: kappa reaches {kappa:.3g} at timestep {plan.timestep[at]:g}, where the output's error alone "
            f"adds {floor[at]:.2g} to the v-space loss (tolerance {tolerance:g})",
        )
    ]


def _correlation_flags(plan: Plan, sizes: Sensitivity, error: ErrorModel) -> list[Flag]:
    if not isinstance(error, RoundingError) or error.mode != "nearest" or sizes.output_amplitude is None or len(plan) < 2:
        return []
    move = (
        np.abs(np.diff(sizes.output_amplitude)) / np.abs(sizes.output_amplitude[:-1]) / parse_format(error.fmt).machine_epsilon
    )
    slow = np.flatnonzero(move < 0.5)
    if not len(slow):
        return []
    return [
        Flag(
            "correlation",
            float(plan.timestep[slow[0]]),
            f"the output moves by less than half a unit in the last place at {len(slow)} of {len(plan) - 1} steps, so its roundings "
            "repeat: errors add up instead of averaging out (the prediction counts them so)",
        )
    ]


def _stagnation_flags(plan: Plan, sizes: Sensitivity, error: ErrorModel) -> list[Flag]:
    if not isinstance(error, RoundingError) or error.mode == "stochastic":
        return []
    lost = np.flatnonzero(np.sqrt(sizes.change_sq) < _half_ulp(sizes, error))
    if not len(lost):
        return []
    return [
        Flag(
            "stagnation",
            float(plan.timestep[lost[0]]),
            f"{len(lost)} of {len(plan)} updates are smaller than half a unit in the last place of the stored state, which loses them: "
            "take fewer steps, a wider state, stochastic rounding or a compensated state. Independent roundings do not describe this",
        )
    ]


def _overflow_flags(plan: Plan, mean_square: np.ndarray, error: ErrorModel, what: str) -> list[Flag]:
    if not isinstance(error, RoundingError):
        return []
    fmt = parse_format(error.fmt)
    share = overflow_probability(fmt, mean_square)
    at = int(np.argmax(share))
    if share[at] < 1e-9:
        return []
    reason = f"a share of {share[at]:.2g} of {what}'s values is beyond {fmt.max:g}, the largest of {fmt.name}; scale it down"
    return [Flag("overflow", float(plan.timestep[at]), reason)]


def _timestep_flags(plan: Plan, fmt: FloatFormat) -> list[Flag]:
    distinct, told = np.unique(plan.timestep), _rounded(np.unique(plan.timestep).astype(np.float64), fmt)
    flags = []
    groups = len(np.unique(told))
    if groups < len(distinct):
        first = float(distinct[np.flatnonzero(np.diff(told) == 0)[0]])
        reason = f"{len(distinct)} timesteps become {groups} in {fmt.name}, the first pair at {first:g}: pass them in float32"
        flags.append(Flag("collision", first, reason))
    moved = np.flatnonzero(told != distinct)
    if len(moved):
        worst = moved[np.argmax(np.abs(told - distinct)[moved])]
        reason = f"{len(moved)} of {len(distinct)} timesteps are moved by {fmt.name}, {distinct[worst]:g} to {told[worst]:g}"
        flags.append(Flag("off_grid", float(distinct[worst]), reason))
    return flags


def _large_flags(budget: ErrorBudget) -> list[Flag]:
    if budget.relative < 0.3:
        return []
    reason = (
        f"the predicted error is {budget.relative:.2g} of the sample: first-order sums are rough, and the result is lost anyway"
    )
    return [Flag("large", None, reason)]


# -- sums -------------------------------------------------------------------------------------------------------------


def correlated_energy(signed: np.ndarray, amplitude: np.ndarray, machine_epsilon: float) -> float:
    r"""E of the squared sum of roundings of :math:`U_k z`, one z for all k, each of rms ``|signed_k|``.

    The roundings of two values whose difference is d units in the last place have the correlation of two points of a sawtooth,
    :func:`sawtooth_correlation`. Here d is proportional to the value itself, :math:`d = |U_l/U_k - 1|\,m/\epsilon` with the
    significand m log-uniform in [1, 2).
    """
    oriented = signed * np.sign(amplitude)
    total = float((signed**2).sum())
    for lag in range(1, len(signed)):
        with np.errstate(divide="ignore", invalid="ignore"):
            move = np.abs(amplitude[lag:] / amplitude[:-lag] - 1.0) / machine_epsilon
        move = np.where(np.isfinite(move), move, np.inf)
        total += 2.0 * float((oriented[lag:] * oriented[:-lag] * sawtooth_correlation(move)).sum())
        if move.min() > _FAR:
            break
    return max(total, 0.0)


_FAR = 4.0
"""Units in the last place beyond which roundings are independent."""


def sawtooth_correlation(move: np.ndarray) -> np.ndarray:
    """Correlation of the roundings of m and m (1 + move epsilon), over a log-uniform significand m."""
    table_move, table_value = _sawtooth_table()
    return np.interp(move, table_move, table_value, right=0.0)


@functools.cache
def _sawtooth_table() -> tuple[np.ndarray, np.ndarray]:
    move = np.linspace(0.0, _FAR, 513)
    m = np.exp2((np.arange(512) + 0.5) / 512)
    fraction = np.mod(move[:, None] * m, 1.0)
    return move, (1.0 - 6.0 * fraction * (1.0 - fraction)).mean(1)


def _useful_steps(sizes: Sensitivity, error: ErrorModel) -> float:
    """Length of the path in half units in the last place of the state."""
    if not isinstance(error, RoundingError):
        return math.inf
    half = _half_ulp(sizes, error)
    return float((np.sqrt(sizes.change_sq) / half).sum())


def _half_ulp(sizes: Sensitivity, error: RoundingError) -> np.ndarray:
    return np.sqrt(3.0 * rounding_energy(parse_format(error.fmt), sizes.state_sq))


def _azuma(sources: Sequence[SourceError], confidence: float) -> float:
    """Zero-mean errors in quadrature, known ones (coefficients, timesteps) in full."""
    squares = sum(float((s.bounds**2).sum()) for s in sources if s.name not in _KNOWN)
    known = sum(s.worst for s in sources if s.name in _KNOWN)
    return math.sqrt(2.0 * math.log(2.0 / (1.0 - confidence)) * squares) + known


_KNOWN = ("coefficients", "timestep")


def _rounded(values: np.ndarray, fmt: FloatFormat) -> np.ndarray:
    return round_to(torch.from_numpy(np.ascontiguousarray(values)), fmt).numpy()


def _rounding_of(values: np.ndarray, fmt: FloatFormat) -> np.ndarray:
    return _rounded(values, fmt) - values


def _norm(*parts: np.ndarray) -> np.ndarray:
    return np.sqrt(sum(p**2 for p in parts))


def _root_sum_square(values: Iterable[float]) -> float:
    return math.sqrt(sum(float(v) ** 2 for v in values))
