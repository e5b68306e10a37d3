r"""DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) in angular form: a DDIM step plus a multiple of the change of x0.

With :math:`\lambda = \log\cot\phi`, :math:`h = \lambda_s - \lambda_t` and the previous step's :math:`h'`, the solver takes a
DDIM step towards :math:`D = \hat x_t + \frac{h}{2h'}(\hat x_t - \hat x_{t'})` in place of :math:`\hat x_t`:

.. math:: x_s = \underbrace{x_s^{\mathrm{DDIM}}}_{\text{eq. 14}} + g\,(\hat x_t - \hat x_{t'}),
          \qquad g = \frac{h}{2h'}\,\frac{\sin(\phi_t-\phi_s)}{\sin\phi_t}

Both parts go straight from u. The memory is the last :math:`\hat x`, so an error of one output enters two updates: its own
with the gain of eq. 18 plus g times that of x0, and the next with minus the next g times that of x0; the two partly cancel.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from diffparam.angle import rebase_gains, sin_difference
from diffparam.parameterization import AngularParam
from diffparam.schedule import Schedule
from diffparam.solvers.ddim import ddim_coefficients
from diffparam.solvers.plan import Plan, legs_downwards, make_plan
from diffparam.solvers.step import StepCoefficients


def plan_dpm_solver(schedule: Schedule, *, param: AngularParam, lower_order_final: bool = True, final_phi: float = 0.0) -> Plan:
    """DPM-Solver++(2M) for any parameterization.

    The first step has no memory and is DDIM; so is a last step to phi = 0, where h is infinite, and the last of fewer than 15
    with ``lower_order_final`` (the usual end-point handling). A first angle of pi/2 is allowed: the second step's correction
    is then zero.

    Args:
        schedule: The sampling grid.
        param: What the network outputs.
        lower_order_final: Whether the last of fewer than 15 steps is first order.
        final_phi: Angle to end at, radians.

    Raises:
        SingularParameterization: If a step is singular; names its timestep.
    """

    def coefficients(phi_t: np.ndarray, phi_s: np.ndarray) -> StepCoefficients:
        step = ddim_coefficients(phi_t, phi_s, param=param, state=schedule.state)
        ratio = _half_step_ratio(phi_t, phi_s)
        if final_phi == 0 or (lower_order_final and len(phi_t) < 15):
            ratio[-1:] = 0.0
        g = ratio * sin_difference(phi_t, phi_s) / np.sin(phi_t) * schedule.state.scale(phi_s)
        x0_u, x0_x = rebase_gains(phi_t, param.psi_at(phi_t), 0.0, name=param.name)
        x0_u, x0_x = x0_u / param.r_at(phi_t), x0_x / schedule.state.scale(phi_t)
        return replace(
            step, gain_u=step.gain_u + g * x0_u, gain_x=step.gain_x + g * x0_x, gain_m=-g, memory_u=x0_u, memory_x=x0_x
        )

    return make_plan("dpm_solver++2m", schedule, param, legs_downwards(schedule, final_phi), coefficients)


def _half_step_ratio(phi_t: np.ndarray, phi_s: np.ndarray) -> np.ndarray:
    """``h / (2 h')`` per step; 0 for the first, and after a step of infinite h."""
    with np.errstate(divide="ignore"):
        h = np.log(np.tan(phi_t)) - np.log(np.tan(phi_s))
    h[phi_t == math.pi / 2] = np.inf
    ratio = np.zeros_like(h)
    with np.errstate(invalid="ignore"):
        ratio[1:] = h[1:] / (2.0 * h[:-1])
    ratio[~np.isfinite(ratio)] = 0.0
    return ratio
