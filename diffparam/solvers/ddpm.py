r"""DDPM's ancestral step: the posterior mean is DDIM's at eta = 1, the noise is one of two variances."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from diffparam.angle import sin_difference
from diffparam.errors import UnknownName
from diffparam.parameterization import AngularParam
from diffparam.schedule import Schedule
from diffparam.solvers.ddim import ddim_coefficients
from diffparam.solvers.plan import Plan, legs_downwards, make_plan
from diffparam.solvers.step import StepCoefficients

Variance = Literal["posterior", "upper"]
VARIANCES = ("posterior", "upper")


def plan_ddpm(
    schedule: Schedule,
    *,
    param: AngularParam,
    variance: Variance = "posterior",
    temperature: float = 1.0,
    final_phi: float = 0.0,
) -> Plan:
    r"""Ancestral sampling (Ho et al. 2020) for any parameterization.

    With :math:`\beta = 1 - \cos^2\phi_t/\cos^2\phi_s = \sin(\phi_t-\phi_s)\sin(\phi_t+\phi_s)/\cos^2\phi_s`, the posterior
    variance is :math:`\beta\sin^2\phi_s/\sin^2\phi_t` and the upper one :math:`\beta`. Errors of the output and the noise are
    multiplied by the same later gains; the noise makes those smaller than a deterministic solver's, so old errors fade.

    Args:
        schedule: The sampling grid.
        param: What the network outputs.
        variance: ``posterior`` (diffusers' fixed_small) or ``upper`` (fixed_large); none at a last step to phi = 0 either way.
        temperature: Factor on the noise (MAR, MMAR); 1 is the model's distribution.
        final_phi: Angle to end at, radians.

    Raises:
        SingularParameterization: If a step is singular; names its timestep.
        UnknownName: For another variance.
    """
    if variance not in VARIANCES:
        raise UnknownName("variance", variance, VARIANCES)

    def coefficients(phi_t: np.ndarray, phi_s: np.ndarray) -> StepCoefficients:
        step = ddim_coefficients(phi_t, phi_s, param=param, eta=1.0, state=schedule.state)
        if variance == "posterior":
            return step
        upper = np.sqrt(sin_difference(phi_t, phi_s) * np.sin(phi_t + phi_s)) / np.cos(phi_s) * schedule.state.scale(phi_s)
        return replace(step, noise=np.where(np.asarray(step.noise) > 0, upper, 0.0))

    return make_plan("ddpm", schedule, param, legs_downwards(schedule, final_phi), coefficients).scaled_noise(temperature)
