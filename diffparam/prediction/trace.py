r"""Sizes and gains of any differentiable model: one float64 run, and reverse passes through it.

With :math:`\zeta` standard normal, the gradient :math:`\lambda` of :math:`\zeta\cdot x_{\mathrm{final}}` with respect to an
output has :math:`E[\lambda_i^2] = \sum_j J_{ji}^2`: its mean square is the squared gain of an independent error, and the mean
of :math:`\lambda_i^2u_i^2` that of a relative one.

Errors that are known, such as those of rounded coefficients, add up with their signs. A change :math:`\delta_k` of what
multiplies :math:`u_k` moves :math:`\zeta\cdot x_{\mathrm{final}}` by :math:`\sum_k\delta_k\,\lambda_k\cdot u_k`, and the mean
square of that is the squared length of the change itself: the numbers :math:`\lambda_k\cdot u_k` are kept for every sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffparam._checks import check_count, check_finite, check_sample
from diffparam.error_model import ErrorModel, RoundingError, check_error_model
from diffparam.prediction.emulation import (
    Emulation,
    Gradients,
    TracedCall,
    emulate_output,
    emulate_states,
    emulate_updates,
)
from diffparam.prediction.sensitivity import Sensitivity, require_calls
from diffparam.rounding import FloatFormat
from diffparam.solvers.loop import Model, check_output, timestep_tensor
from diffparam.solvers.plan import Plan
from diffparam.solvers.step import advance


def trace_sensitivity(
    model: Model,
    plan: Plan,
    x_init: Tensor,
    *,
    generator: torch.Generator | None = None,
    emulate: ErrorModel | None = None,
    emulate_arithmetic: str | FloatFormat | None = None,
    emulate_state: ErrorModel | None = None,
    probes: int = 1,
) -> Sensitivity:
    r"""From one float64 run of any differentiable model, and one reverse pass through it for each probe.

    The run's activations are held in memory; a few hundred samples are enough for the gains. A known error (coefficients) is
    the rms of one number for each sample and probe, to :math:`1/\sqrt{2n}`: two per cent for a thousand of them.

    Args:
        model: ``model(x_t, t)``, differentiable; called in float64.
        plan: The run.
        x_init: Noise ``(batch, *event)``.
        generator: Source of the plan's noise and of zeta, on the device of ``x_init``.
        emulate: An error model to apply to the outputs as they come: exact where they lie on a grid or in few places, so that
            no law of significands describes them.
        emulate_arithmetic: Format of the update's products and sums, to be rounded as they come, with increments and without:
            exact where a state moves so little at a step that successive roundings repeat each other.
        emulate_state: Likewise for the state that is stored. All three take the elements of a sample to err independently of
            each other (:mod:`diffparam.prediction.emulation`).
        probes: Directions zeta for each sample.

    Raises:
        TypeError: If ``plan``, ``x_init`` or an error model is of another kind.
        ValueError: If the model cannot be differentiated or returns another shape, or the plan has no calls.
        NonFiniteError: If the run is not finite.
        UnknownName: For a format that is not known.
    """
    require_calls(plan)
    x = check_sample(x_init, "x_init").detach().double()
    check_finite(x, "x_init", "draw it with torch.randn")
    probes = check_count(probes, "probes", low=1)
    check_error_model(emulate, "emulate")
    check_error_model(emulate_state, "emulate_state")
    rounding = None if emulate_arithmetic is None else RoundingError(emulate_arithmetic)
    memory: Tensor | None = None
    calls: list[TracedCall] = []
    with torch.enable_grad():
        for step in plan.steps():
            bumps = (torch.zeros_like(x, requires_grad=True), torch.zeros_like(x, requires_grad=True))
            u = _differentiable(model, x, step.timestep) + bumps[0]
            before, read = x, memory
            noise = _normal(x, generator) if step.coefficients.is_stochastic else None
            x, memory = advance(step.coefficients, u, x, memory, noise=noise)
            x = x + bumps[1]
            kept = None if read is None else read.detach()
            calls.append(TracedCall(u.detach(), before.detach(), kept, noise, x.detach(), bumps))
        check_finite(x, "the final sample", "run diffparam.sample with record=Trajectory() to see at which timestep it began")
        everywhere = [bump for call in calls for bump in call.bumps]
        passes = [
            torch.autograd.grad((_normal(x, generator) * x).sum(), everywhere, retain_graph=left > 0)
            for left in reversed(range(probes))
        ]
    stacked = [torch.stack([found[i] for found in passes]) for i in range(len(everywhere))]  # (P, B, *event) each
    gradients = Gradients(stacked[0::2], stacked[1::2], _by_memory(plan, stacked[1::2]))
    emulated: dict[str, Emulation] = {}
    if emulate is not None:
        emulated["output"] = emulate_output(calls, gradients, emulate, generator)
    if rounding is not None:
        for name in ("arithmetic", "increments"):
            emulated[name] = emulate_updates(plan, calls, gradients, rounding, generator, increments=name == "increments")
    if emulate_state is not None:
        emulated["state"] = emulate_states(plan, calls, gradients, emulate_state, generator)
    return _sensitivity(plan, calls, gradients, emulated)


def _by_memory(plan: Plan, by_state: Sequence[Tensor]) -> list[Tensor]:
    """A memory is read once, by the next update."""
    reads = [*plan.gain_m[1:].tolist(), 0.0]
    return [c * g for c, g in zip(reads, [*by_state[1:], by_state[-1]], strict=True)]


def _sensitivity(
    plan: Plan, calls: Sequence[TracedCall], gradients: Gradients, emulated: Mapping[str, Emulation]
) -> Sensitivity:
    relative = [g * call.u for g, call in zip(gradients.by_output, calls, strict=True)]
    state_sq = np.array([_mean_square(call.after) for call in calls])
    return Sensitivity(
        output_sq=np.array([_mean_square(call.u) for call in calls]),
        input_sq=np.array([_mean_square(call.before) for call in calls]),
        memory_sq=np.array([_mean_square(call.memory) for call in calls]),
        state_sq=state_sq,
        change_sq=np.array([_mean_square(call.after - call.before) for call in calls]),
        output_change_sq=np.array([math.inf, *(_mean_square(b.u - a.u) for a, b in pairwise(calls))]),
        output_gain=_rms(gradients.by_output),
        state_gain=_rms(gradients.by_state),
        relative_gain=_rms(relative),
        state_relative_gain=_rms([g * call.after for g, call in zip(gradients.by_state, calls, strict=True)]),
        final_sq=float(state_sq[-1]),
        input_memory=np.array([0.0 if c.memory is None else (c.before * c.memory).mean().item() for c in calls]),
        emulated=emulated,
        effective_samples=_effective(torch.stack([r.square().mean(0).flatten(1).sum(1) for r in relative]).sum(0)),
        output_alignment=_alignment(gradients.by_output),
        coefficient_response=_coefficient_response(plan, calls, gradients),
    )


def _coefficient_response(plan: Plan, calls: Sequence[TracedCall], gradients: Gradients) -> dict[str, np.ndarray]:
    """What each coefficient multiplies, projected on the gradient by what it is added to; only of those that are not all 0."""
    factors: dict[str, tuple[Sequence[Tensor], Sequence[Tensor | None]]] = {
        "gain_u": (gradients.by_state, [call.u for call in calls]),
        "gain_x": (gradients.by_state, [call.before for call in calls]),
        "gain_m": (gradients.by_state, [call.memory for call in calls]),
        "noise": (gradients.by_state, [call.noise for call in calls]),
        "memory_u": (gradients.by_memory, [call.u for call in calls]),
        "memory_x": (gradients.by_memory, [call.before for call in calls]),
    }
    return {
        name: np.stack([_project(g, value) for g, value in zip(by, values, strict=True)])
        for name, (by, values) in factors.items()
        if getattr(plan, name).any()
    }


def _project(gradient: Tensor, value: Tensor | None) -> np.ndarray:
    """``(probes, batch, *event)`` and ``(batch, *event)`` to ``(probes * batch,)``, for a mean square per element."""
    elements = gradient[0, 0].numel()
    products = torch.zeros_like(gradient) if value is None else gradient * value
    projected: np.ndarray = (products.flatten(2).sum(2).flatten() / math.sqrt(elements)).cpu().numpy()
    return projected


def _alignment(gradients: Sequence[Tensor]) -> np.ndarray:
    """Cosines between the gradients of the calls; a call without a gradient is aligned with itself alone.

    For errors whose elements are independent of each other and of the gradients.
    """
    rows = torch.stack([g.flatten() for g in gradients])
    gram = (rows @ rows.T).cpu().numpy()
    length = np.sqrt(np.diag(gram))
    safe = np.where(length > 0, length, 1.0)
    with np.errstate(invalid="ignore"):  # gains that are not finite are refused, by name, where they are stored
        cosines = gram / np.outer(safe, safe)
    np.fill_diagonal(cosines, 1.0)
    return cosines


def _normal(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=torch.float64, device=x.device)


def _differentiable(model: Model, x: Tensor, timestep: int | float) -> Tensor:
    """The model's output, which must be a function of ``x`` that autograd can see."""
    u = model(x, timestep_tensor(timestep, x))
    check_output(u, x, timestep)
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
    return 0.0 if value is None else value.square().mean().item()


def _rms(values: Sequence[Any]) -> np.ndarray:
    return np.array([_mean_square(v) ** 0.5 for v in values])
