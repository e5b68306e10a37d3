r"""The error of a network's own arithmetic, measured: the same weights in two precisions on the same inputs.

Every layer rounds, so the relative error of an output is neither 1/603 nor 1/128, and where a network subtracts large numbers
(its input, at low noise) it is not relative at all. Per timestep, over all elements of the output,

.. math:: E[e^2 \mid u] = \delta^2u^2 + a^2

is fitted by least squares with :math:`\delta^2, a^2 \ge 0`: delta is what scales with the element itself, a what does not. The
fit always has the measured energy, :math:`\delta^2E[u^2] + a^2 = E[e^2]`.

What the rounding of weights does is much the same at every call of a run. Small as its share of each call's error is, it adds
up with its sign while the rest averages out, so how errors correlate from timestep to timestep is measured too, if asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffparam._checks import check_sample
from diffparam.error_sums import ErrorSums, PairedErrors, fit_energy, moment_terms
from diffparam.errors import NonFiniteError
from diffparam.module_precision import BorrowedModule
from diffparam.network_error import NetworkError
from diffparam.parameterization import AngularParam
from diffparam.prediction.step import OutputMoments
from diffparam.schedule import Schedule
from diffparam.solvers.plan import Plan

Network = Callable[..., Tensor]
Cast = Callable[[Sequence[Any], torch.dtype], Sequence[Any]]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a network's arithmetic does to its output; float64 arrays ``(timesteps,)``, rising in the timestep.

    Attributes:
        timesteps: The timesteps, or the mean timestep of each bucket.
        delta: Multiplicative error of an element, relative to that element.
        scale: Additive error, in units of the output.
        output_sq: E[u^2] of the reference.
        error_sq: E[e^2].
        counts: Samples behind each entry.
        span: Smallest and largest timestep that was measured.
        moments: :class:`diffparam.OutputMoments` of the reference as arrays, where ``schedule`` and ``param`` were given.
        dtype: The low precision.
        reference: The high one.
        correlation: Of the errors of the same samples at two timesteps, ``(timesteps, timesteps)``, where it was measured.
    """

    timesteps: np.ndarray
    delta: np.ndarray
    scale: np.ndarray
    output_sq: np.ndarray
    error_sq: np.ndarray
    counts: np.ndarray
    span: tuple[float, float]
    moments: OutputMoments | None
    dtype: torch.dtype
    reference: torch.dtype
    correlation: np.ndarray | None = None

    def __repr__(self) -> str:
        ends = f"{self.relative.min():.3g} .. {self.relative.max():.3g}"
        count = f"{self.counts.sum():g} samples at {len(self.timesteps)} timesteps"
        return f"Calibration({self.dtype}, rms error {ends} of the output, {count})"

    @property
    def relative(self) -> np.ndarray:
        """Rms error over rms output: one delta per timestep, whatever it is made of; 0 where both are 0."""
        safe = np.where(self.output_sq > 0, self.output_sq, 1.0)
        return np.sqrt(np.where(self.output_sq > 0, self.error_sq / safe, np.where(self.error_sq > 0, math.inf, 0.0)))

    def at(self, where: Plan | Sequence[float] | np.ndarray | Tensor | float) -> NetworkError:
        """The error model of each call of a plan, or of timesteps (of one, for a number).

        Between timesteps the energies of error and output are interpolated in their logarithms, the multiplicative share of
        the error and the correlation linearly.

        Raises:
            ValueError: If a timestep is outside of the calibrated span.
        """
        t = self._inside(where)
        share = np.interp(t, self.timesteps, self._multiplicative_share())
        error_sq, output_sq = (_interpolate_log(t, self.timesteps, v) for v in (self.error_sq, self.output_sq))
        relative_sq = np.where(output_sq > 0, share * error_sq / np.where(output_sq > 0, output_sq, 1.0), 0.0)
        correlation = None if self.correlation is None or not t.ndim else _between(t, self.timesteps, self.correlation)
        return NetworkError(np.sqrt(relative_sq), np.sqrt((1.0 - share) * error_sq), correlation)

    def moments_at(self, where: Plan | Sequence[float] | np.ndarray | Tensor | float) -> OutputMoments:
        """The measured moments at each call of a plan: what :func:`diffparam.predict_error` takes as data.

        Interpolated linearly in the timestep.

        Raises:
            ValueError: If none were measured, or a timestep is outside of the calibrated span.
        """
        if self.moments is None:
            raise ValueError("moments must have been measured, got none; calibrate with schedule= and param=")
        t = self._inside(where)
        return OutputMoments(
            *(np.interp(t, self.timesteps, m) for m in (self.moments.x_sq, self.moments.x_v, self.moments.v_sq))
        )

    def _multiplicative_share(self) -> np.ndarray:
        safe = np.where(self.error_sq > 0, self.error_sq, 1.0)
        return np.where(self.error_sq > 0, np.clip(self.delta**2 * self.output_sq / safe, 0.0, 1.0), 0.0)

    def _inside(self, where: Any) -> np.ndarray:
        t = where.timestep if isinstance(where, Plan) else where
        t = np.asarray(t.detach().cpu().double().numpy() if isinstance(t, Tensor) else t, dtype=np.float64)
        if t.ndim > 1:
            raise ValueError(f"where must be a plan, a timestep or a sequence of timesteps, got shape {t.shape}")
        low, high = self.span
        outside = ~((t >= low) & (t <= high))
        if outside.any():
            raise ValueError(
                f"where must lie in the calibrated timesteps [{low:g}, {high:g}], got {t[outside].flat[0]:g}; "
                "calibrate on batches whose timesteps include the plan's"
            )
        return t


def calibrate(
    model: Network,
    batches: Iterable[Sequence[Any]],
    dtype: torch.dtype = torch.bfloat16,
    *,
    reference: torch.dtype = torch.float32,
    low: Network | None = None,
    autocast: bool = False,
    cast: Cast | None = None,
    edges: Sequence[float] | None = None,
    schedule: Schedule | None = None,
    param: AngularParam | None = None,
    correlated: bool = False,
) -> Calibration:
    """Measure what evaluating ``model`` in ``dtype`` does to its output, per timestep.

    A module is evaluated in both precisions in turn, in evaluation mode, without gradients, and is left exactly as it was,
    however this ends; its weights are held once more, in the precision that they are not in. The rounding of weights and inputs
    to ``dtype`` is part of the error; that of the weights is the same in each call of a run, where errors then add up
    (``correlated``), and is absent if ``model`` has weights in ``dtype`` already. Both evaluations see the same state of
    torch's random numbers, and leave it alone. Only sums are kept: memory does not grow with the batches, but with the distinct
    timesteps where there are no ``edges``.

    Args:
        model: A module or any function ``model(x_t, t, ...)`` that returns a tensor ``(batch, ...)``.
        batches: Each a tuple of the model's positional arguments, on its device: ``x_t`` ``(batch, *event)``, ``t`` a number or
            ``(batch,)``, then whatever else the model takes.
        dtype: The low precision.
        reference: The precision that counts as exact, float32 or float64. On a GPU see that TF32 is off.
        low: The model in low precision, where it is not the module cast to ``dtype``: a deep copy made otherwise, a quantised
            model, a function. It gets inputs in ``dtype``.
        autocast: The low precision is ``torch.autocast(dtype=dtype)`` over weights and inputs in float32.
        cast: ``cast(args, dtype)``: how arguments are taken to a precision; by default :func:`cast_inputs`. A function that has
            no weights follows the precision of its inputs: pass ``cast=cast_inputs`` to say so.
        edges: Rising edges of buckets of timesteps, each with its lower edge and the last with both; by default every
            timestep stands alone.
        schedule: With ``param``: the schedule of ``t``, whose state convention ``x_t`` is in; measures the moments too.
        param: With ``schedule``: what the output means.
        correlated: Measure how errors correlate between timesteps. Each batch must be at one timestep, all of the same samples
            in the same order with the same noise, as a run sees them; their errors are held in memory.

    Raises:
        TypeError: If a batch, the output or the combination of options is of the wrong kind.
        ValueError: If there are no batches, shapes do not fit, a timestep is outside of ``edges``, or ``correlated`` is asked
            for with ``edges`` or of batches that are not of one timestep each and of the same samples.
        NonFiniteError: If an output is not finite; names timestep and precision.
    """
    if (schedule is None) != (param is None):
        raise ValueError("schedule and param must be given together; the moments need both")
    if correlated and edges is not None:
        raise ValueError("correlated must not be given together with edges; errors correlate between single timesteps")
    high, narrow = _networks(model, dtype, reference, low=low, autocast=autocast, cast=cast)
    cast = cast_inputs if cast is None else cast
    sums, paired = ErrorSums(edges), PairedErrors() if correlated else None
    for batch in batches:
        x_t, t = _check_batch(batch)
        outputs = []
        for network, precision, how in ((high, reference, None), (narrow, dtype, dtype if autocast else None)):
            inputs = cast(batch, torch.float32 if how else precision)  # autocast leaves float64 alone
            with torch.no_grad(), _same_random_numbers(x_t), _autocast(x_t, how):
                outputs.append(_check_output(network(*inputs), x_t, t, precision))
        u, u_low = outputs
        if u.shape != u_low.shape:
            raise ValueError(f"model must return one shape in both precisions, got {tuple(u.shape)} and {tuple(u_low.shape)}")
        moments = None if schedule is None or param is None else moment_terms(u, x_t, t, schedule=schedule, param=param)
        if paired is not None:
            paired.add(t, u, u_low)
        sums.add(t, u, u_low, moments)
    return _fitted(sums, paired, dtype, reference)


def _fitted(sums: ErrorSums, paired: PairedErrors | None, dtype: torch.dtype, reference: torch.dtype) -> Calibration:
    means = sums.means()
    delta_sq = fit_energy(means.u_sq, means.e_sq, means.u_4, means.u_sq_e_sq)
    return Calibration(
        timesteps=means.timesteps,
        delta=np.sqrt(delta_sq),
        scale=np.sqrt(np.maximum(means.e_sq - delta_sq * means.u_sq, 0.0)),
        output_sq=means.u_sq,
        error_sq=means.e_sq,
        counts=means.samples,
        span=sums.span,
        moments=None if means.moments is None else OutputMoments(*means.moments),
        dtype=dtype,
        reference=reference,
        correlation=None if paired is None else paired.correlation(),
    )


def cast_inputs(args: Sequence[Any], dtype: torch.dtype) -> tuple[Any, ...]:
    """Floating-point tensors in ``dtype``, also inside of lists, tuples and dicts; the second argument, the time, as it is."""
    return tuple(value if place == 1 else _cast(value, dtype) for place, value in enumerate(args))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_cast(item, dtype) for item in value)
    return value


def _networks(
    model: Network, dtype: torch.dtype, reference: torch.dtype, *, low: Network | None, autocast: bool, cast: Cast | None
) -> tuple[Network, Network]:
    """The network in the reference precision and in the low one."""
    for name, value in (("dtype", dtype), ("reference", reference)):
        if not isinstance(value, torch.dtype) or not value.is_floating_point:
            raise TypeError(f"{name} must be a floating-point torch dtype, got {value!r}")
    if autocast and low is not None:
        raise ValueError("low and autocast must not both be given; under autocast the model itself is the low precision")
    if autocast and dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be torch.bfloat16 or torch.float16 for autocast, got {dtype}")
    high = BorrowedModule(model, reference) if isinstance(model, nn.Module) else model
    if autocast:
        return high, BorrowedModule(model, torch.float32) if isinstance(model, nn.Module) else model
    if low is not None:
        return high, BorrowedModule(low) if isinstance(low, nn.Module) else low
    if isinstance(model, nn.Module):
        return high, BorrowedModule(model, dtype)
    if cast is None:
        raise TypeError(
            f"model must be a torch module to be cast to {dtype}, got {type(model).__name__}; pass low= (the function in that "
            "precision), autocast=True, or cast=cast_inputs if its precision is that of its inputs"
        )
    return high, model


def _same_random_numbers(x: Tensor) -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else [])


def _autocast(x: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Autocast to ``dtype``, or none at all: not even one that the caller is in."""
    kind = x.device.type
    if dtype is None and not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, dtype=dtype, enabled=dtype is not None)


def _check_batch(batch: Any) -> tuple[Tensor, np.ndarray]:
    """``x_t`` and its timesteps ``(batch,)``."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise TypeError(f"batches must yield tuples (x_t, t, ...), got {type(batch).__name__}; wrap the arguments in a tuple")
    x_t, t = check_sample(batch[0], "x_t"), batch[1]
    if x_t.ndim < 1 or not x_t.numel():
        raise ValueError(f"x_t must have shape (batch, ...) with at least one sample, got {tuple(x_t.shape)}")
    t = np.asarray(t.detach().cpu().double().numpy() if isinstance(t, Tensor) else t, dtype=np.float64)
    if t.shape not in ((), (1,), (len(x_t),)):
        raise ValueError(f"t must be a number or have shape ({len(x_t)},), one per sample, got {t.shape}")
    if not np.isfinite(t).all():
        raise NonFiniteError(f"t must be finite, got {t[~np.isfinite(t)].flat[0]}; timesteps come from Schedule.timesteps")
    return x_t, np.broadcast_to(t, (len(x_t),))


def _check_output(u: Any, x_t: Tensor, t: np.ndarray, precision: torch.dtype) -> Tensor:
    """``u`` in float64 (float32 where the device has none), once it is known to be an output."""
    if not isinstance(u, Tensor) or not u.is_floating_point():
        raise TypeError(
            f"model must return one floating-point tensor, got {type(u).__name__}; wrap it in a module that returns the tensor"
        )
    if u.shape[:1] != x_t.shape[:1] or not u.numel():
        raise ValueError(f"model must return shape ({len(x_t)}, ...), one output per sample, got {tuple(u.shape)}")
    bad = (~torch.isfinite(u)).flatten(1).any(1) if u.ndim > 1 else ~torch.isfinite(u)
    if bool(bad.any()):
        at = t[bad.cpu().numpy()][0]
        raise NonFiniteError(
            f"model must return finite values, but its output in {precision} is NaN or infinite at timestep {at:g}; "
            "a format of larger range (bfloat16) does not overflow where float16 does"
        )
    return u.detach().to(torch.float32 if u.device.type == "mps" else torch.float64)


def _between(t: np.ndarray, at: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """Linear in both timesteps, between different calls.

    The 1 of an error with itself is none of their business: errors that are made anew at each call do not come to correlate as
    timesteps draw near. In its place stand the neighbours of a timestep, or 1 where there is only one.
    """
    table = correlation.copy()
    beside = np.diag(correlation, 1)  # of neighbours
    if len(beside):
        np.fill_diagonal(table, (np.append(beside, beside[-1]) + np.append(beside[0], beside)) / 2)
    rows = np.array([np.interp(t, at, row) for row in table])
    found: np.ndarray = np.array([np.interp(t, at, column) for column in rows.T])
    found = (found + found.T) / 2  # the order of interpolation shows in the last digit
    np.fill_diagonal(found, 1.0)
    return found


def _interpolate_log(t: np.ndarray, at: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Linear in the logarithm; linear where one of the two neighbours is zero."""
    after = np.clip(np.searchsorted(at, t, side="right"), 1, max(len(at) - 1, 1))
    low, high = values[after - 1], values[np.minimum(after, len(at) - 1)]
    positive = (low > 0) & (high > 0)
    logs = np.log(np.where(values > 0, values, 1.0))
    return np.where(positive, np.exp(np.interp(t, at, logs)), np.interp(t, at, values))
