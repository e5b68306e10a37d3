r"""Heun's method on Karras' ODE (EDM, Karras et al. 2022, algorithm 1) in angular form.

The ODE :math:`dx_\sigma/d\sigma = \hat\varepsilon` at :math:`\sigma = \tan\phi`, :math:`x_\sigma = x_t/\cos\phi`. Its Euler
step is the DDIM step; the corrector averages the slopes at both ends:

.. math::
    x_s = \cos\phi_s\left(\frac{x_t}{\cos\phi_t} + \frac{\sigma_s-\sigma_t}{2}\,(\hat\varepsilon_t + \hat\varepsilon_s')\right)

As two planned calls: the first makes the Euler point and puts everything of the corrector that is known into the memory, the
second evaluates there and adds the rest. An error of the first output enters three times: through the Euler point into the
second evaluation, through the state part of the second slope, and through the first slope, the slopes with half weight each.
The error of the second output enters with half the gain of its eps_hat.
"""

from __future__ import annotations

import math

import numpy as np

from diffparam.angle import HALF_PI, rebase_gains, sin_difference
from diffparam.parameterization import AngularParam
from diffparam.schedule import Schedule
from diffparam.solvers.ddim import ddim_coefficients
from diffparam.solvers.plan import Plan, legs_downwards, make_plan


def plan_heun(schedule: Schedule, *, param: AngularParam) -> Plan:
    """Heun's second-order method for any parameterization, two network calls a step; the last step to phi = 0 is Euler's.

    Args:
        schedule: The sampling grid.
        param: What the network outputs.

    Raises:
        SingularParameterization: If a step is singular; names its timestep.
        ValueError: If the schedule reaches pi/2, where sigma is infinite.
    """
    if float(schedule.phi[-1]) >= HALF_PI:
        raise ValueError(
            "phi must be below pi/2 for heun, got pi/2 where sigma is infinite; start lower (Schedule.up_to) or use DDIM"
        )
    timestep, phi_t, phi_s = legs_downwards(schedule)
    euler = make_plan(
        "heun",
        schedule,
        param,
        (timestep, phi_t, phi_s),
        lambda t, s: ddim_coefficients(t, s, param=param, state=schedule.state),
    )
    inner = slice(None, -1)  # every step but the last has a corrector
    t, s = phi_t[inner], phi_s[inner]
    next_timestep = timestep[1:]
    to, per = schedule.state.scale(s), schedule.state.scale(t)
    # sigma_s - sigma_t = -sin(phi_t - phi_s) / (cos cos); times cos(phi_s) / 2
    half = -0.5 * sin_difference(t, s) / np.cos(t)
    slope_u, slope_x = _slope(t, param)
    corrector_u, corrector_x = _slope(s, param)
    count = 2 * len(timestep) - 1
    table = np.zeros((6, count))  # gain_u, gain_x, noise, gain_m, memory_u, memory_x
    table[:2, 0::2] = euler.gain_u, euler.gain_x
    table[4, 0:-1:2] = half * slope_u * to
    table[5, 0:-1:2] = (np.cos(s) / np.cos(t) + half * slope_x) * to / per
    table[0, 1::2] = half * corrector_u * to
    table[1, 1::2] = half * corrector_x  # of the Euler point, which is already at phi_s
    table[3, 1::2] = 1.0
    return Plan(
        "heun",
        param,
        schedule.state,
        _interleave(timestep, next_timestep),
        _interleave(phi_t, s),
        _interleave(phi_s, s),
        *table,
    )


def _slope(phi: np.ndarray, param: AngularParam) -> tuple[np.ndarray, np.ndarray]:
    """Gains of eps_hat on u and on x_t."""
    gain_u, gain_x = rebase_gains(phi, param.psi_at(phi), math.pi / 2, name=param.name)
    return gain_u / param.r_at(phi), gain_x


def _interleave(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    out = np.empty(len(a) + len(b), dtype=a.dtype)
    out[0::2], out[1::2] = a, b
    return out
