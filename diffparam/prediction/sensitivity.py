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

from diffparam._checks import check_number, check_sample
from diffparam.angle import sin_difference
from diffparam.error_model import ErrorModel
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
    output_amplitude: np.ndarray | None = None
    input_amplitude: np.ndarray | None = None
    emulated: np.ndarray | None = None
    emulated_error: ErrorModel | None = None
    effective_samples: float = math.inf


def gaussian_sensitivity(plan: Plan, sigma_data: float = 1.0) -> Sensitivity:
    """Exact for zero-mean Gaussian data of standard deviation ``sigma_data`` and the discrete steps as planned.

    The run starts from noise of unit variance in the variance-preserving state, as a sampler does.
    """
    sigma_data = check_number(sigma_data, "sigma_data", low=0.0)
    return _linear(plan, gaussian_output_per_input(plan, plan.phi_t, sigma_data), np.zeros(len(plan)))


def moments_sensitivity(plan: Plan, moments: OutputMoments) -> Sensitivity:
    r"""From second moments at each call's ``phi_t``, measured or known, each a number or an array ``(calls,)``.

    The network is replaced by its linear regression on the state, :math:`\hat v = (E[x_t\hat v]/E[x_t^2])\,x_t`, plus a
    residual of the remaining energy: exact for Gaussian data, a model of how errors travel for any other.
    """
    x_sq, x_v, v_sq = (
        np.broadcast_to(np.asarray(m, np.float64), (len(plan),)) for m in (moments.x_sq, moments.x_v, moments.v_sq)
    )
    psi, r = plan.param.psi_at(plan.phi_t), plan.param.r_at(plan.phi_t)
    residual = (r * sin_difference(psi, plan.phi_t)) ** 2 * np.maximum(v_sq - x_v**2 / x_sq, 0.0)
    return _linear(plan, _output_per_input(plan, plan.phi_t, x_v / x_sq), residual)


def gaussian_output_per_input(plan: Plan, phi: np.ndarray, sigma_data: float) -> np.ndarray:
    """K(phi) of the ideal network of zero-mean Gaussian data: u = K x, x in the plan's state convention at its own angles."""
    moments = OutputMoments.gaussian(phi, sigma_data=sigma_data)
    return _output_per_input(plan, phi, moments.x_v / moments.x_sq)


def _output_per_input(plan: Plan, phi: np.ndarray, v_per_x: Any) -> np.ndarray:
    psi, r = plan.param.psi_at(phi), plan.param.r_at(phi)
    scale = plan.state.scale(phi)
    return np.broadcast_to(r * (np.cos(psi - phi) + sin_difference(psi, phi) * v_per_x) / scale, phi.shape)


def _linear(plan: Plan, per_input: np.ndarray, residual: np.ndarray) -> Sensitivity:
    """Forward second moments and backward gains of the run with ``u = K x + independent residual``."""
    a, b, c, p, q = (v.tolist() for v in (plan.gain_x, plan.gain_u, plan.gain_m, plan.memory_x, plan.memory_u))
    noise_sq, k, extra = (plan.noise**2).tolist(), per_input.tolist(), residual.tolist()
    initial = float(np.broadcast_to(plan.state.scale(plan.phi_t), (len(plan),))[0])
    xx, xm, mm, x, m = initial**2, 0.0, 0.0, initial, 0.0
    rows = []
    output_change = math.inf
    for i in range(len(plan)):
        jx, jm, r, before = a[i] + b[i] * k[i], p[i] + q[i] * k[i], extra[i], (xx, mm, x)
        xm_before = xm
        change = (jx - 1) ** 2 * xx + c[i] ** 2 * mm + 2 * (jx - 1) * c[i] * xm + noise_sq[i] + b[i] ** 2 * r
        xx, xm, mm = (
            jx * jx * xx + c[i] * c[i] * mm + 2 * jx * c[i] * xm + noise_sq[i] + b[i] * b[i] * r,
            jx * jm * xx + c[i] * jm * xm + b[i] * q[i] * r,
            jm * jm * xx + q[i] * q[i] * r,
        )
        x, m = jx * x + c[i] * m, jm * x
        rows.append((*before, xx, change, output_change))
        if i + 1 < len(plan):
            cross = jx * before[0] + c[i] * xm_before
            output_change = k[i + 1] ** 2 * xx + k[i] ** 2 * before[0] - 2 * k[i] * k[i + 1] * cross + r + extra[i + 1]
    input_sq, memory_sq, amplitude, state_sq, change_sq, output_change_sq = np.array(rows).T
    gx, gm = 1.0, 0.0
    gains = []
    for i in range(len(plan) - 1, -1, -1):
        gains.append((b[i] * gx + q[i] * gm, gx))
        gx, gm = (a[i] + b[i] * k[i]) * gx + (p[i] + q[i] * k[i]) * gm, c[i] * gx
    output_gain, state_gain = np.array(gains[::-1]).T
    output_sq = per_input**2 * input_sq + residual
    known = not (residual.any() or plan.is_stochastic)
    return Sensitivity(
        output_sq,
        input_sq,
        memory_sq,
        state_sq,
        np.maximum(change_sq, 0.0),
        np.maximum(output_change_sq, 0.0),
        output_gain,
        state_gain,
        relative_gain=np.abs(output_gain) * np.sqrt(output_sq),
        final_sq=xx,
        output_amplitude=per_input * amplitude if known else None,
        input_amplitude=amplitude if known else None,
    )


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
    mean of
    :math:`\lambda_i^2u_i^2` that of a relative one. The run's activations are held in memory; a few hundred samples are enough.

    Args:
        model: ``model(x_t, t)``, differentiable; called in float64.
        plan: The run.
        x_init: Noise ``(batch, *event)``.
        generator: Source of the plan's noise and of zeta, on the device of ``x_init``.
        emulate: An error model to apply to the outputs as they come: exact where they lie on a grid or in few places, so that
            no law of significands describes them.
    """
    x = check_sample(x_init, "x_init").detach().double()
    memory: Tensor | None = None
    sizes: list[tuple[float, ...]] = []
    bumps: list[Tensor] = []
    outputs: list[Tensor] = []
    with torch.enable_grad():
        for step in plan.steps():
            bump_u, bump_x = (torch.zeros_like(x, requires_grad=True) for _ in range(2))
            u = model(x, timestep_tensor(step.timestep, x)).double() + bump_u
            before, read = x, memory
            x, memory = advance(step.coefficients, u, x, memory, generator=generator)
            x = x + bump_x
            sizes.append(tuple(_mean_square(v) for v in (u, before, read, x, x - before)))
            bumps += [bump_u, bump_x]
            outputs.append(u.detach())
        zeta = torch.randn(x.shape, generator=generator, dtype=torch.float64, device=x.device)
        gradients = torch.autograd.grad((zeta * x).sum(), bumps)
    to_u, to_x = gradients[0::2], gradients[1::2]
    relative = [g * u for g, u in zip(to_u, outputs, strict=True)]
    per_sample = sum(r.square().flatten(1).sum(1) for r in relative)
    output_sq, input_sq, memory_sq, state_sq, change_sq = np.array(sizes).T
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
        final_sq=float(state_sq[-1]),
        emulated=None
        if emulate is None
        else _rms([g * (emulate.apply(u, generator) - u) for g, u in zip(to_u, outputs, strict=True)]),
        emulated_error=emulate,
        effective_samples=float(per_sample.sum() ** 2 / per_sample.square().sum().clamp(min=1e-300)),
    )


def _mean_square(value: Tensor | None) -> float:
    return 0.0 if value is None else value.detach().square().mean().item()


def _rms(values: Sequence[Tensor]) -> np.ndarray:
    return np.array([_mean_square(v) ** 0.5 for v in values])
