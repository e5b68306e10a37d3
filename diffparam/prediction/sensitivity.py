r"""How large output and state are along a run, and what an error made there does to the final sample.

For Gaussian data the ideal network is linear, :math:`u_k = K_k x_k`, and so is every planned update: one forward recursion
gives the second moments, one backward recursion the gains. For any other model one reverse pass through a float64 run gives the
same numbers (:func:`trace_sensitivity`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffparam._checks import check_finite, check_number, check_sample
from diffparam.angle import sin_difference
from diffparam.error_model import ErrorModel
from diffparam.errors import NonFiniteError
from diffparam.prediction.step import OutputMoments
from diffparam.solvers.loop import Model, timestep_tensor
from diffparam.solvers.plan import Plan
from diffparam.solvers.step import advance


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
        emulated: Rms of the final sample per call for the very values that ``emulated_error`` met; None unless asked for.
        emulated_error: The error model that was emulated.
        effective_samples: Samples that carry the traced gains, (sum s)^2 / sum s^2; few where some trajectories are far more
            sensitive than others.
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
    emulated: np.ndarray | None = None
    emulated_error: ErrorModel | None = None
    effective_samples: float = math.inf

    def __post_init__(self) -> None:
        calls = len(self.output_sq)
        for name in _PER_CALL:
            value = getattr(self, name)
            if value.shape != (calls,):
                raise ValueError(f"{name} must have one entry per call ({calls}), got shape {value.shape}")
            if not np.isfinite(value[1:] if name == "output_change_sq" else value).all():
                raise NonFiniteError(f"{name} must be finite, got {value[~np.isfinite(value)][-1]}; the run itself overflows")


_PER_CALL = (
    *("output_sq", "input_sq", "memory_sq", "state_sq", "change_sq", "output_change_sq"),
    *("output_gain", "state_gain", "relative_gain"),
)


def gaussian_sensitivity(plan: Plan, sigma_data: float = 1.0) -> Sensitivity:
    """Exact for zero-mean Gaussian data of standard deviation ``sigma_data`` and the discrete steps as planned.

    A run downwards starts from noise of unit variance in the variance-preserving state, as a sampler does; an inversion from
    the data at its first angle.
    """
    _require_calls(plan)
    sigma_data = check_number(sigma_data, "sigma_data", low=0.0)
    start = OutputMoments.gaussian(float(plan.phi_t[0]), sigma_data=sigma_data).x_sq
    return _linear(plan, gaussian_output_per_input(plan, plan.phi_t, sigma_data), np.zeros(len(plan)), start)


def moments_sensitivity(plan: Plan, moments: OutputMoments) -> Sensitivity:
    r"""From second moments at each call's ``phi_t``, measured or known, each a number or an array ``(calls,)``.

    The network is replaced by its linear regression on the state, :math:`\hat v = (E[x_t\hat v]/E[x_t^2])\,x_t`, plus a
    residual of the remaining energy: exact for Gaussian data, a model of how errors travel for any other.

    Raises:
        NonFiniteError: If a moment is NaN or infinite.
        ValueError: If E[x_t^2] is not positive, or E[x_t v]^2 exceeds E[x_t^2] E[v^2], which no samples have.
    """
    _require_calls(plan)
    x_sq, x_v, v_sq = (_moment(plan, moments, name) for name in ("x_sq", "x_v", "v_sq"))
    if not (x_sq > 0).all():
        raise ValueError(f"moments.x_sq must be positive, got {x_sq.min():g}; it is the mean square of the state")
    excess = x_v**2 - x_sq * v_sq
    if (excess > 1e-6 * x_v**2).any():  # more than the rounding of moments summed in float32
        at = int(np.argmax(excess))
        raise ValueError(
            f"moments.x_v**2 must not exceed x_sq * v_sq, got {x_v[at] ** 2:g} above {x_sq[at] * v_sq[at]:g} at call {at}; "
            "take all three from the same samples (OutputMoments.measure)"
        )
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


def _require_calls(plan: Plan) -> None:
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


def trace_sensitivity(
    model: Model,
    plan: Plan,
    x_init: Tensor,
    *,
    generator: torch.Generator | None = None,
    emulate: ErrorModel | None = None,
) -> Sensitivity:
    r"""From one float64 run of any differentiable model and one reverse pass through it.

    With :math:`\zeta` standard normal, the gradient :math:`\lambda` of :math:`\zeta\cdot x_{\mathrm{final}}` with respect to an
    output has :math:`E[\lambda_i^2] = \sum_j J_{ji}^2`: its mean square is the squared gain of an independent error, and the
    mean of :math:`\lambda_i^2u_i^2` that of a relative one. The run's activations are held in memory; a few hundred samples are
    enough.

    Args:
        model: ``model(x_t, t)``, differentiable; called in float64.
        plan: The run.
        x_init: Noise ``(batch, *event)``.
        generator: Source of the plan's noise and of zeta, on the device of ``x_init``.
        emulate: An error model to apply to the outputs as they come: exact where they lie on a grid or in few places, so that
            no law of significands describes them.
    """
    _require_calls(plan)
    x = check_sample(x_init, "x_init").detach().double()
    check_finite(x, "x_init", "draw it with torch.randn")
    memory: Tensor | None = None
    sizes: list[tuple[float, ...]] = []
    bumps: list[Tensor] = []
    outputs: list[Tensor] = []
    states: list[Tensor] = []
    with torch.enable_grad():
        for step in plan.steps():
            bump_u, bump_x = (torch.zeros_like(x, requires_grad=True) for _ in range(2))
            u = _differentiable(model, x, step.timestep) + bump_u
            before, read = x, memory
            x, memory = advance(step.coefficients, u, x, memory, generator=generator)
            x = x + bump_x
            together = 0.0 if read is None else (before * read).detach().mean().item()
            sizes.append((*(_mean_square(v) for v in (u, before, read, x, x - before)), together))
            bumps += [bump_u, bump_x]
            outputs.append(u.detach())
            states.append(x.detach())
        check_finite(x, "the final sample", "run diffparam.sample with record=Trajectory() to see at which timestep it began")
        zeta = torch.randn(x.shape, generator=generator, dtype=torch.float64, device=x.device)
        gradients = torch.autograd.grad((zeta * x).sum(), bumps)
    to_u, to_x = gradients[0::2], gradients[1::2]
    relative = [g * u for g, u in zip(to_u, outputs, strict=True)]
    output_sq, input_sq, memory_sq, state_sq, change_sq, input_memory = np.array(sizes).T
    return Sensitivity(
        output_sq,
        input_sq,
        memory_sq,
        state_sq,
        change_sq,
        np.array([math.inf, *(_mean_square(b - a) for a, b in pairwise(outputs))]),
        output_gain=_rms(to_u),
        state_gain=_rms(to_x),
        relative_gain=_rms(relative),
        state_relative_gain=_rms([g * s for g, s in zip(to_x, states, strict=True)]),
        final_sq=float(state_sq[-1]),
        input_memory=input_memory,
        emulated=None
        if emulate is None
        else _rms([g * (emulate.apply(u, generator) - u) for g, u in zip(to_u, outputs, strict=True)]),
        emulated_error=emulate,
        effective_samples=_effective(torch.stack([r.square().flatten(1).sum(1) for r in relative]).sum(0)),
    )


def _differentiable(model: Model, x: Tensor, timestep: int | float) -> Tensor:
    """The model's output, which must be a function of ``x`` that autograd can see."""
    u = model(x, timestep_tensor(timestep, x))
    if u.shape != x.shape:
        raise ValueError(f"model must return the shape of its input {tuple(x.shape)}, got {tuple(u.shape)} at t = {timestep}")
    if x.requires_grad and not u.requires_grad:
        raise ValueError(
            f"model must be differentiable, but its output at t = {timestep} has no gradient; "
            "remove torch.no_grad, torch.inference_mode and .detach() from it"
        )
    return u.double()


def _effective(per_sample: Tensor) -> float:
    """(sum s)^2 / sum s^2; the number of samples where none has anything."""
    share = per_sample / per_sample.max().clamp(min=1e-300)
    return float(share.sum() ** 2 / share.square().sum()) if bool(share.any()) else float(len(share))


def _mean_square(value: Tensor | None) -> float:
    return 0.0 if value is None else value.detach().square().mean().item()


def _rms(values: Sequence[Tensor]) -> np.ndarray:
    return np.array([_mean_square(v) ** 0.5 for v in values])
