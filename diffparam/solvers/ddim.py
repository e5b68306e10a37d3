r"""The DDIM step for any parameterization: the identity at ``B = phi_s`` (paper eq. 14)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from diffparam._checks import check_finite, check_number, check_pair, check_phi, check_sample, everywhere
from diffparam.angle import Angle, namespace, rebase_gains, sin_difference
from diffparam.error_model import ErrorModel, check_error_model
from diffparam.parameterization import AngularParam, check_param
from diffparam.schedule import Schedule
from diffparam.solvers.plan import Plan, legs_downwards, legs_upwards, make_plan
from diffparam.solvers.step import StepCoefficients, apply_step
from diffparam.state import VP, StateSpace


def ddim_coefficients(
    phi_t: Angle, phi_s: Angle, *, param: AngularParam, eta: float = 0.0, state: StateSpace = VP
) -> StepCoefficients:
    r"""float64 coefficients of the step from ``phi_t`` to ``phi_s``.

    With eta the target is :math:`\cos\phi_s\,\hat x + \sqrt{\sin^2\phi_s - \sigma_\eta^2}\,\hat\varepsilon`, of length
    :math:`h` at angle :math:`B`, so :math:`h\,w(B)`; :math:`\sigma_\eta = \eta\,\frac{\sin\phi_s}{\sin\phi_t}
    \sqrt{\sin(\phi_t-\phi_s)\sin(\phi_t+\phi_s)}/\cos\phi_s` (Song et al. 2021, eq. 16, without cancellation). At eta = 1 the
    mean is DDPM's posterior mean.

    Args:
        phi_t: Current angle, radians in [0, pi/2].
        phi_s: Next angle; above ``phi_t`` the step is an inversion.
        param: What the output means.
        eta: 0 is deterministic, 1 is ancestral; only downwards.
        state: Convention of ``x_t`` and ``x_s``.

    Raises:
        SingularParameterization: If ``sin(psi - phi_t)`` is zero.
        ValueError: If an angle is out of range, or eta asks for more noise than ``sin(phi_s)``.
    """
    check_param(param)
    phi_t, phi_s = check_phi(phi_t, "phi_t"), check_phi(phi_s, "phi_s")
    eta = check_number(eta, "eta", low=0.0) if eta else 0.0
    length: Any = 1.0
    target, noise = phi_s, 0.0
    if eta:
        length, target, noise = _stochastic_target(phi_t, phi_s, eta)
    gain_u, gain_x = rebase_gains(phi_t, param.psi_at(phi_t), target, name=param.name)
    gain_u = gain_u / param.r_at(phi_t)
    if eta:
        gain_u, gain_x = length * gain_u, length * gain_x
    if state.kind == "vp":
        return StepCoefficients(gain_u, gain_x, noise)
    to, per = state.scale(phi_s), state.scale(phi_t)
    return StepCoefficients(gain_u * to, gain_x * to / per, noise * to if eta else 0.0)


def _stochastic_target(phi_t: Angle, phi_s: Angle, eta: float) -> tuple[Any, Any, Any]:
    """``(length, angle, noise)`` of the mean of a step with eta > 0."""
    xp = namespace(phi_t, phi_s)
    if xp is torch:
        phi_t, phi_s = (torch.as_tensor(phi, dtype=torch.float64) for phi in (phi_t, phi_s))
    if not everywhere(phi_s <= phi_t):
        raise ValueError(f"eta must be 0 for a step upwards, got {eta!r}; inversion is deterministic")
    if not everywhere(phi_t > 0):
        raise ValueError(f"phi_t must be above 0 where eta is not 0, got 0 with eta = {eta!r}; nothing is left to denoise")
    ratio = xp.sin(phi_s) * xp.cos(phi_t) / (xp.cos(phi_s) * xp.sin(phi_t))
    kept = (1.0 - eta**2) + (eta * ratio) ** 2
    if not everywhere(kept >= 0):
        raise ValueError(f"eta must leave a variance of at least 0 at phi_s, got eta = {eta!r}; any eta up to 1 does")
    # At eta = 1 the root is the ratio itself, whose derivative is finite at phi_s = 0.
    b = xp.sin(phi_s) * (abs(ratio) if eta == 1 else xp.sqrt(kept))
    a = xp.cos(phi_s)
    spread = xp.sqrt(sin_difference(phi_t, phi_s) * xp.sin(phi_t + phi_s))
    noise = eta * xp.sin(phi_s) / xp.sin(phi_t) * spread / xp.cos(phi_s)
    return xp.hypot(a, b), xp.atan2(b, a), noise


def plan_ddim(
    schedule: Schedule, *, param: AngularParam, eta: float = 0.0, final_phi: float = 0.0, upwards: bool = False
) -> Plan:
    r"""DDIM along a schedule, from its last angle to ``final_phi`` or, ``upwards``, from its first to its last (inversion).

    Args:
        schedule: The sampling grid: see :meth:`Schedule.respace`.
        param: What the network outputs.
        eta: 0 is deterministic, 1 ancestral. The noise makes later gains smaller, so early errors fade.
        final_phi: Angle to end at, radians; 0 is clean data.
        upwards: Whether to invert.

    Raises:
        SingularParameterization: If a step is singular; names its timestep.
        ValueError: If ``final_phi`` is above the schedule.
    """
    final_phi = float(check_phi(final_phi, "final_phi"))
    legs = legs_upwards(schedule) if upwards else legs_downwards(schedule, final_phi)
    return make_plan(
        "ddim", schedule, param, legs, lambda t, s: ddim_coefficients(t, s, param=param, eta=eta, state=schedule.state)
    )


def ddim_step(
    u: Tensor,
    x_t: Tensor,
    phi_t: Angle,
    phi_s: Angle,
    *,
    param: AngularParam,
    eta: float = 0.0,
    state: StateSpace = VP,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    output_error: ErrorModel | None = None,
    state_error: ErrorModel | None = None,
    coefficient_error: ErrorModel | None = None,
) -> Tensor:
    r"""One DDIM step from angle ``phi_t`` to ``phi_s`` (paper eq. 14, and eq. 17 with an injected error).

    .. math:: x_s = \frac{\sin(\phi_s-\phi_t)\, u/r + \sin(\psi-\phi_s)\, x_t}{\sin(\psi-\phi_t)}

    For ``V`` the denominator is 1 and the step is a rotation. A step upwards, ``phi_s > phi_t``, is DDIM inversion.

    Args:
        u: Network output for ``x_t``, shape ``(*batch, *event)``.
        x_t: Current sample, same shape; sets dtype and device of the result. Below float32 the arithmetic is float32 and the
            result is rounded once.
        phi_t: Current angle, radians in [0, pi/2]: a float, or a float64 CPU tensor: scalar, one per batch item ``(batch,)``,
            or broadcastable to ``x_t``.
        phi_s: Next angle, as ``phi_t``.
        param: What ``u`` means.
        eta: 0 is deterministic, 1 ancestral (Song et al. 2021, eq. 16).
        state: Convention of ``x_t`` and of the result.
        noise: Standard normal noise for eta > 0, same shape; drawn from ``generator`` if missing.
        generator: Source of all random numbers, on the device of ``x_t``.
        output_error: Error put on ``u`` before the step.
        state_error: Error put on the result, as storing it would.
        coefficient_error: Error put on the three coefficients.

    Returns:
        The sample at ``phi_s``, like ``x_t``.

    Raises:
        SingularParameterization: If ``sin(psi - phi_t)`` is zero; names the angle.
        ValueError: If shapes differ or an angle is out of range.
        NonFiniteError: If the result is not finite (its inputs were not). Not checked under ``torch.compile`` and ``vmap``.
    """
    check_pair(u, x_t, ("u", "x_t"))
    step = ddim_coefficients(phi_t, phi_s, param=param, eta=eta, state=state)
    if coefficient_error is not None:
        check_error_model(coefficient_error, "coefficient_error")
        step = step.perturbed(coefficient_error, generator)
    if output_error is not None:
        check_error_model(output_error, "output_error")
        u = output_error.apply(u, generator)
    if noise is not None:
        check_pair(noise, x_t, ("noise", "x_t"))
    x_s = apply_step(step, u, x_t, noise=noise, generator=generator)
    if state_error is not None:
        check_error_model(state_error, "state_error")
        x_s = state_error.apply(x_s, generator)
    check_finite(x_s, "the sample at phi_s", "look for it in u and x_t, which the step only adds up")
    return x_s


def exact_gaussian_flow(x_t: Tensor, phi_t: float, phi_s: float, *, sigma_data: float) -> Tensor:
    """Where the probability-flow ODE takes ``x_t`` for zero-mean Gaussian data: times sqrt(Var_s / Var_t).

    ``Var = (cos(phi) sigma_data)^2 + sin(phi)^2``. The oracle that DDIM converges to with first order.

    Args:
        x_t: State at ``phi_t``, any shape, variance preserving.
        phi_t: Current angle, radians.
        phi_s: Angle that is wanted, radians.
        sigma_data: Standard deviation of the data.

    Raises:
        ValueError: If an angle is out of range, or nothing is left of a point mass at ``phi_t = 0``.
    """
    check_sample(x_t, "x_t")
    phi_t, phi_s = float(check_phi(phi_t, "phi_t")), float(check_phi(phi_s, "phi_s"))
    sigma_data = check_number(sigma_data, "sigma_data", low=0.0)
    if sigma_data == 0 and phi_t == 0:
        raise ValueError("phi_t must be above 0 for sigma_data = 0, got 0; every state is the one point there")
    std_t, std_s = (math.hypot(math.cos(p) * sigma_data, math.sin(p)) for p in (phi_t, phi_s))
    return x_t * (std_s / std_t)
