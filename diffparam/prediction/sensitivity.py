r"""How large output and state are along a run, and what an error made there does to the final sample.

For Gaussian data the ideal network is linear, :math:`u_k = K_k x_k`, and so is every planned update: one forward recursion
gives the second moments, one backward recursion the gains. For any other model see :mod:`diffparam.prediction.trace`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from diffparam._checks import check_number
from diffparam.angle import sin_difference
from diffparam.error_model import ErrorModel
from diffparam.errors import NonFiniteError
from diffparam.prediction.emulation import Emulation
from diffparam.prediction.step import OutputMoments
from diffparam.solvers.plan import Plan


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Along a plan, per element; arrays are float64 ``(calls,)``.

    Attributes:
        output_sq: E[u^2] of each call.
        input_sq: E[x^2] of the state it sees.
        memory_sq: E[m^2] of the memory its update reads.
        state_sq: E[x^2] of the state after the update.
        change_sq: E[(x_after - x_before)^2].
        output_change_sq: E[(u - previous u)^2]; infinite for the first call.
        output_gain: Final sample per independent error of u; signed where the run is linear, else an rms.
        state_gain: The same per error of the state after the update.
        relative_gain: Rms of the final sample per relative error of u.
        final_sq: E[x^2] of the final sample.
        state_relative_gain: Rms of the final sample per relative error of the state after the update, where it was traced: the
            state is small where its gain is large if the data have modes.
        input_memory: E[x m] of the state that a call sees and the memory that its update reads.
        output_per_input: K with u = K x plus an independent rest of energy output_sq - K^2 input_sq; None if not linear.
        output_amplitude: U with u_k = U_k z for one standard normal z, in a linear run without noise; else None.
        input_amplitude: The same of the state that a call sees.
        emulated: What a rounding does to the very values of a traced run, by where it is done: ``output``, ``arithmetic``,
            ``increments``, ``state``; those that were asked for.
        effective_samples: Samples that carry the traced gains, (sum s)^2 / sum s^2; few where some trajectories are far more
            sensitive than others.
        output_alignment: ``(calls, calls)``, how far what two errors of u of one sign do to the final sample is of one sign, in
            [-1, 1], where it was traced.
        coefficient_response: Final sample per unit of each coefficient that a traced run has, ``(calls, directions)`` by its
            name in :class:`StepCoefficients`: projections on random directions, whose mean square is that of an element.
        target_sq: Variance of v of the data at each call, the unit of a loss floor; None where it is not known: then 1.
    """

    output_sq: np.ndarray
    input_sq: np.ndarray
    memory_sq: np.ndarray
    state_sq: np.ndarray
    change_sq: np.ndarray
    output_change_sq: np.ndarray
    output_gain: np.ndarray
    state_gain: np.ndarray
    relative_gain: np.ndarray
    final_sq: float
    state_relative_gain: np.ndarray | None = None
    input_memory: np.ndarray | None = None
    output_per_input: np.ndarray | None = None
    output_amplitude: np.ndarray | None = None
    input_amplitude: np.ndarray | None = None
    emulated: Mapping[str, Emulation] = field(default_factory=dict)
    effective_samples: float = math.inf
    output_alignment: np.ndarray | None = None
    coefficient_response: Mapping[str, np.ndarray] | None = None
    target_sq: np.ndarray | None = None

    def __post_init__(self) -> None:
        calls = len(self.output_sq)
        for name in _PER_CALL:
            value = getattr(self, name)
            if value.shape != (calls,):
                raise ValueError(f"{name} must have one entry per call ({calls}), got shape {value.shape}")
            if not np.isfinite(value[1:] if name == "output_change_sq" else value).all():
                raise NonFiniteError(f"{name} must be finite, got {value[~np.isfinite(value)][-1]}; the run itself overflows")


def v_loss_floor(plan: Plan, sizes: Sensitivity, error: ErrorModel) -> np.ndarray:
    """What an error of the output adds to the v-space loss at each call, in units of the target's variance (eq. 27)."""
    kappa, r = plan.param.condition_number(plan.phi_t), plan.param.r_at(plan.phi_t)
    floor = np.broadcast_to(kappa**2 * error.energy(sizes.output_sq) / r**2, (len(plan),))
    if sizes.target_sq is None:
        return floor
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(floor > 0, floor / sizes.target_sq, floor)


_PER_CALL = (
    *("output_sq", "input_sq", "memory_sq", "state_sq", "change_sq", "output_change_sq"),
    *("output_gain", "state_gain", "relative_gain"),
)


def gaussian_sensitivity(plan: Plan, sigma_data: float = 1.0) -> Sensitivity:
    """Exact for zero-mean Gaussian data of standard deviation ``sigma_data`` and the discrete steps as planned.

    A run downwards starts from noise of unit variance in the variance-preserving state, as a sampler does; an inversion from
    the data at its first angle.
    """
    require_calls(plan)
    sigma_data = check_number(sigma_data, "sigma_data", low=0.0)
    start = OutputMoments.gaussian(float(plan.phi_t[0]), sigma_data=sigma_data).x_sq
    sizes = _linear(plan, gaussian_output_per_input(plan, plan.phi_t, sigma_data), np.zeros(len(plan)), start)
    return replace(sizes, target_sq=np.cos(plan.phi_t) ** 2 + (np.sin(plan.phi_t) * sigma_data) ** 2)


def moments_sensitivity(plan: Plan, moments: OutputMoments) -> Sensitivity:
    r"""From second moments at each call's ``phi_t``, measured or known, each a number or an array ``(calls,)``.

    The network is replaced by its linear regression on the state, :math:`\hat v = (E[x_t\hat v]/E[x_t^2])\,x_t`, plus a
    residual of the remaining energy: exact for Gaussian data, a model of how errors travel for any other.

    Raises:
        NonFiniteError: If a moment is infinite.
        ValueError: If E[x_t^2] is not positive, or there is not one number per call.
    """
    require_calls(plan)
    x_sq, x_v, v_sq = (_moment(plan, moments, name) for name in ("x_sq", "x_v", "v_sq"))
    if not (x_sq > 0).all():
        raise ValueError(f"moments.x_sq must be positive, got {x_sq.min():g}; it is the mean square of the state")
    psi, r = plan.param.psi_at(plan.phi_t), plan.param.r_at(plan.phi_t)
    residual = (r * sin_difference(psi, plan.phi_t)) ** 2 * np.maximum(v_sq - x_v**2 / x_sq, 0.0)
    return _linear(plan, _output_per_input(plan, plan.phi_t, x_v / x_sq), residual, float(x_sq[0]))


def gaussian_output_per_input(plan: Plan, phi: np.ndarray, sigma_data: float) -> np.ndarray:
    """K(phi) of the ideal network of zero-mean Gaussian data: u = K x, x in the plan's state convention at its own angles."""
    moments = OutputMoments.gaussian(phi, sigma_data=sigma_data)
    return _output_per_input(plan, phi, moments.x_v / moments.x_sq)


def _output_per_input(plan: Plan, phi: np.ndarray, v_per_x: Any) -> np.ndarray:
    psi, r = plan.param.psi_at(phi), plan.param.r_at(phi)
    scale = plan.state.scale(phi)
    return np.broadcast_to(r * (np.cos(psi - phi) + sin_difference(psi, phi) * v_per_x) / scale, phi.shape)


def _moment(plan: Plan, moments: OutputMoments, name: str) -> np.ndarray:
    value = np.asarray(getattr(moments, name), dtype=np.float64)
    if value.shape not in ((), (1,), (len(plan),)):
        raise ValueError(f"moments.{name} must be a number or one per call ({len(plan)}), got shape {value.shape}")
    if not np.isfinite(value).all():
        raise NonFiniteError(f"moments.{name} must be finite, got {value[~np.isfinite(value)].flat[0]}")
    return np.broadcast_to(value, (len(plan),))


def require_calls(plan: Plan) -> None:
    """Raise unless ``plan`` is a plan that calls its network."""
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a Plan, got {type(plan).__name__}; make one with plan_ddim and its like")
    if not len(plan):
        raise ValueError("plan must have at least one network call, got none; final_phi is the schedule's last angle")


def _linear(plan: Plan, per_input: np.ndarray, residual: np.ndarray, start_sq: float) -> Sensitivity:
    """Forward second moments and backward gains of the run with ``u = K x + independent residual``."""
    to_x, to_m = state_factors(plan, per_input)
    scale = float(np.broadcast_to(plan.state.scale(plan.phi_t), (len(plan),))[0])
    start = scale * (math.sqrt(start_sq) if plan.phi_s[0] > plan.phi_t[0] else 1.0)
    fresh = [plan.noise**2 + plan.gain_u**2 * residual, plan.gain_u * plan.memory_u * residual, plan.memory_u**2 * residual]
    columns = [v.tolist() for v in (to_x, plan.gain_m, to_m, *fresh)]
    xx, xm, mm, x, m = start**2, 0.0, 0.0, start, 0.0
    rows = [(xx, xm, mm, x)]
    for jx, c, jm, new_xx, new_xm, new_mm in zip(*columns, strict=True):
        xx, xm, mm = (
            jx * jx * xx + 2 * jx * c * xm + c * c * mm + new_xx,
            jx * jm * xx + c * jm * xm + new_xm,
            jm * jm * xx + new_mm,
        )
        x, m = jx * x + c * m, jm * x
        rows.append((xx, xm, mm, x))
    state_sq, input_memory, memory_sq, amplitude = np.array(rows).T
    input_sq, input_memory, memory_sq, amplitude = state_sq[:-1], input_memory[:-1], memory_sq[:-1], amplitude[:-1]
    output_sq = per_input**2 * input_sq + residual
    move = to_x - 1.0
    change_sq = move**2 * input_sq + 2 * move * plan.gain_m * input_memory + plan.gain_m**2 * memory_sq + fresh[0]
    output_with_next_input = per_input * (to_x * input_sq + plan.gain_m * input_memory) + plan.gain_u * residual
    output_change_sq = output_sq[1:] + output_sq[:-1] - 2 * per_input[1:] * output_with_next_input[:-1]
    state_gain = _state_gain(plan, to_x, to_m)
    output_gain = plan.gain_u * state_gain + plan.memory_u * memory_gain(plan, state_gain)
    known = not (residual.any() or plan.is_stochastic)
    return Sensitivity(
        output_sq,
        input_sq,
        memory_sq,
        state_sq[1:],
        np.maximum(change_sq, 0.0),
        np.array([math.inf, *np.maximum(output_change_sq, 0.0)]),
        output_gain,
        state_gain,
        relative_gain=np.abs(output_gain) * np.sqrt(output_sq),
        final_sq=float(state_sq[-1]),
        input_memory=input_memory,
        output_per_input=per_input,
        output_amplitude=per_input * amplitude if known else None,
        input_amplitude=amplitude if known else None,
    )


def state_factors(plan: Plan, per_input: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a call of ``u = K x`` multiplies the state with: in the next state, and in the next memory."""
    return plan.gain_x + plan.gain_u * per_input, plan.memory_x + plan.memory_u * per_input


def memory_gain(plan: Plan, state_gain: np.ndarray) -> np.ndarray:
    """Final sample per error of the memory after the update: it is read once, by the next."""
    return np.append(plan.gain_m[1:] * state_gain[1:], 0.0)


def _state_gain(plan: Plan, to_x: np.ndarray, to_m: np.ndarray) -> np.ndarray:
    """Final sample per error of the state after each update, from the last one backwards."""
    after, next_c, next_after = 1.0, 0.0, 0.0
    gains = []
    for jx, jm, c in zip(*(v[::-1].tolist() for v in (to_x, to_m, plan.gain_m)), strict=True):
        gains.append(after)
        after, next_c, next_after = jx * after + jm * next_c * next_after, c, after
    return np.array(gains[::-1])
