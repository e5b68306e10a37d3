r"""The error of a sampler before it runs: by source, per step and at the end.

Each source puts an error :math:`e_k` into call k; later steps multiply it by the gain :math:`g_k` of
:class:`diffparam.Sensitivity`. Three sums of the :math:`g_k e_k`, for three things that may be true of the errors:

- independent: :math:`\sqrt{\sum g_k^2E[e_k^2]}`. Rounding errors of values that move by many units in the last place per step.
- correlated: :math:`\sum|g_k|\sqrt{E[e_k^2]}`. The same sign at every step; the paper's "the step size cancels" is this sum.
- worst case: :math:`\sum|g_k|\,b_k` with the bound b in place of the rms. It bounds the rms of the final error to first order.

Between the first two lies what a slowly moving output does: successive roundings correlate once u moves by less than a unit in
the last place a step, by a factor that is known (:func:`sawtooth_correlation`). So does what a network in low precision does,
whose rounded weights err alike at every call: its correlation is measured (``calibrate(..., correlated=True)``).

The probabilistic bound is that of Higham & Mary (2019) in its Azuma-Hoeffding form: errors that are bounded by :math:`|z|b_k`
and of zero mean given the earlier ones exceed :math:`\lambda\sqrt{\sum g_k^2b_k^2}` with probability at most
:math:`2e^{-\lambda^2/2z^2}`. Elements are not all of rms size: over a standard normal z the mean of that is
:math:`2e^{-\lambda}`. Where successive roundings correlate, the root is multiplied by what that does to the rms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from scipy.special import ndtri

from diffparam._checks import check_increments, check_number
from diffparam.error_model import ErrorModel, RoundingError
from diffparam.prediction.flags import (
    Flag,
    correlation_flags,
    grid_flags,
    heavy_tail_flags,
    large_flags,
    overflow_flags,
    stagnation_flags,
    timestep_flags,
    unsafe_flags,
    useful_steps,
)
from diffparam.prediction.sensitivity import Sensitivity, gaussian_sensitivity, moments_sensitivity
from diffparam.prediction.sources import (
    SourceError,
    arithmetic_source,
    coefficient_source,
    output_source,
    root_sum_square,
    state_source,
    timestep_source,
)
from diffparam.prediction.step import OutputMoments
from diffparam.rounding import FloatFormat, parse_format
from diffparam.schedule import Schedule
from diffparam.solvers.plan import Plan

Data = float | OutputMoments | Sensitivity
Format = str | FloatFormat | None


@dataclass(frozen=True, eq=False)
class ErrorBudget:
    """The prediction, per element of the final sample.

    Attributes:
        plan: The run it speaks of.
        sources: By name.
        final_rms: Rms of the final sample itself.
        bound: What a Gaussian element's error exceeds with probability at most ``1 - confidence``; infinite for unbounded ones.
        confidence: Of ``bound``.
        useful_steps: Steps beyond which a mean update is smaller than half a unit in the last place of the state, and lost;
            infinite for a state that loses none (stochastic, compensated).
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
        return root_sum_square(s.predicted for s in self.sources.values())

    @property
    def independent(self) -> float:
        """Rms with every error independent of every other."""
        return root_sum_square(s.independent for s in self.sources.values())

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
        """``rms`` over ``final_rms``; infinite where the final sample is zero and its error is not."""
        if self.final_rms == 0:
            return math.inf if self.rms else 0.0
        return self.rms / self.final_rms

    @property
    def dominant(self) -> str:
        """Name of the largest source."""
        return max(self.sources, key=lambda name: self.sources[name].predicted, default="none")

    def __repr__(self) -> str:
        size = f"rms {self.rms:.3g} of {self.final_rms:.3g}"
        return f"ErrorBudget({self.plan!r}: {size}, mostly {self.dominant}, {len(self.flags)} flags)"


def predict_error(
    plan: Plan,
    data: Data = 1.0,
    *,
    output: Format | ErrorModel = "bfloat16",
    arithmetic: Format = "float32",
    state: Format | ErrorModel = "float32",
    timestep: Format = "float32",
    increments: bool = False,
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
        increments: The update is computed as a change of the state, ``x + ((gain_x - 1) x + gain_u u)``.
        guidance: Scale omega; both branches err on their own.
        training: Schedule of the training, to know what an off-grid timestep means; the plan's own angles by default.
        tolerance: Loss floor above which a step is unsafe, in units of the target's variance (of a standard deviation as
            ``data``; else of unit variance).
        confidence: Of :attr:`ErrorBudget.bound`.

    Raises:
        TypeError: If ``data`` or a format is of another kind.
        ValueError: If a number is out of range, the plan has no calls, or ``increments`` comes without ``arithmetic``.
        NonFiniteError: If ``timestep`` or ``arithmetic`` cannot hold the plan's timesteps or coefficients.
        UnknownName: For a format that is not known.
    """
    if check_number(confidence, "confidence", low=0.0, high=1.0) == 1.0:
        raise ValueError("confidence must be below 1, got 1; the bound that always holds is ErrorBudget.worst")
    tolerance = check_number(tolerance, "tolerance", low=0.0, open_low=True)
    guidance = check_number(guidance, "guidance")
    sizes = _sensitivity(plan, data)
    on_output, on_state = as_error(output, "output"), as_error(state, "state")
    sources: list[SourceError] = []
    flags: list[Flag] = []
    if on_output is not None:
        sources.append(output_source(plan, sizes, on_output, guidance))
        flags += unsafe_flags(plan, sizes, on_output, tolerance) + overflow_flags(
            plan, sizes.output_sq, on_output, "the output"
        )
        flags += correlation_flags(plan, sizes, on_output) + grid_flags(plan, sizes, on_output) + heavy_tail_flags(sizes)
    rounds = None if arithmetic is None else RoundingError(arithmetic)
    check_increments(increments, rounds)
    if rounds is not None:
        fmt = parse_format(rounds.fmt)
        sources += [source(plan, sizes, fmt, increments) for source in (arithmetic_source, coefficient_source)]
    if on_state is not None and on_state != rounds:  # a sum that is rounded to the state's own format is stored for nothing
        sources.append(state_source(plan, sizes, on_state))
    stored = [error for error in (on_state, rounds) if error is not None]
    useful, lost = _lost_updates(plan, sizes, stored)
    flags += lost
    if timestep is not None:
        fmt = parse_format(timestep)
        flags += timestep_flags(plan, fmt)
        if not isinstance(data, (OutputMoments, Sensitivity)):
            sources.append(timestep_source(plan, sizes, fmt, float(data), training))
    by_name = {source.name: source for source in sources}
    final_rms = math.sqrt(sizes.final_sq)
    bound = _probable_bound(sources, confidence)
    budget = ErrorBudget(plan, by_name, final_rms, bound, confidence, useful, tuple(flags))
    return replace(budget, flags=(*budget.flags, *large_flags(budget.relative)))


def _lost_updates(plan: Plan, sizes: Sensitivity, stored: list[ErrorModel]) -> tuple[float, list[Flag]]:
    """Useful steps, and flags: of two that round the state the coarser has the word."""
    flags: dict[str, Flag] = {}
    for error in sorted(stored, key=lambda error: useful_steps(sizes, error), reverse=True):
        found = stagnation_flags(plan, sizes, error) + overflow_flags(plan, sizes.state_sq, error, "the state")
        flags |= {flag.kind: flag for flag in found}
    return min((useful_steps(sizes, error) for error in stored), default=math.inf), list(flags.values())


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


def _probable_bound(sources: Sequence[SourceError], confidence: float) -> float:
    """Zero-mean errors in quadrature, known ones (coefficients, timesteps) in full; each has half of the probability."""
    half = (1.0 - confidence) / 2.0
    random = [s for s in sources if s.name not in _KNOWN]
    root = root_sum_square(_correlation_factor(s) * math.sqrt((s.bounds**2).sum()) for s in random)
    known = sum(s.worst for s in sources if s.name in _KNOWN)
    return math.log(2.0 / half) * root - float(ndtri(half / 2.0)) * known


def _correlation_factor(source: SourceError) -> float:
    """What the correlation of successive errors makes of their sum, at least 1."""
    return max(source.predicted / source.independent, 1.0) if source.independent > 0 else 1.0


_KNOWN = ("coefficients", "timestep")
