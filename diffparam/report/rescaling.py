r"""When a converted output is the old one times a number, so that a checkpoint can be converted once and for all.

By the identity of :mod:`diffparam.angle` the target output is

.. math:: u_B = \underbrace{\frac{r_B\sin(\psi_B-\phi)}{r_A\sin(\psi_A-\phi)}}_{g_u(\phi)}\,u_A
               + \underbrace{\frac{r_B\sin(\psi_A-\psi_B)}{\sin(\psi_A-\phi)}}_{g_x(\phi)}\,x_t

A layer knows neither x_t nor phi, so two things must hold at every phi: :math:`g_x = 0`, which is :math:`\psi_B=\psi_A` up to a
multiple of pi; and then :math:`g_u = \pm r_B/r_A`, the same at every phi.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from diffparam._checks import check_count
from diffparam.angle import HALF_PI, sin_difference
from diffparam.parameterization import AngularParam
from diffparam.report.errors import NotARescaling

ANGLES = 1025
ROUNDING = 64 * 2.0**-52
"""Of two angles of up to 2 pi and two scales, each right to a few units in the last place."""


def constant_factor(source: AngularParam, target: AngularParam, *, angles: int = ANGLES) -> float:
    """The number c with ``u_target = c u_source`` for every state and every angle.

    Args:
        source: What the layer gives now.
        target: What it shall give.
        angles: How many angles inside (0, pi/2) to look at.

    Raises:
        NotARescaling: If there is none; says which gain is in the way, and how large it is.
    """
    phi = (np.arange(check_count(angles, "angles", low=2)) + 0.5) / angles * HALF_PI
    psi_a, psi_b = (np.broadcast_to(param.psi_at(phi), phi.shape) for param in (source, target))
    r_a, r_b = (np.broadcast_to(param.r_at(phi), phi.shape) for param in (source, target))
    apart = sin_difference(psi_a, psi_b)
    names = f"{target.name} is no constant multiple of {source.name}"
    if bool((np.abs(apart) > ROUNDING).any()):
        at = int(np.argmax(np.abs(apart)))
        gain = r_b[at] * apart[at] / sin_difference(psi_a, phi)[at]
        raise NotARescaling(
            f"{names}: it needs x_t with gain r_B sin(psi_A - psi_B) / sin(psi_A - phi) = {gain:.4g} at phi = {phi[at]:.4g}, "
            "and a layer does not see x_t; convert its outputs instead (tensors u and x_t), or train again"
        )
    factor = np.where(np.cos(psi_a - psi_b) > 0, 1.0, -1.0) * r_b / r_a
    low, high = float(factor.min()), float(factor.max())
    if high - low > ROUNDING * max(abs(low), abs(high)):
        raise NotARescaling(
            f"{names}: the gain on u runs from {low:.4g} to {high:.4g} over phi in (0, pi/2), and a layer does not know phi; "
            "convert its outputs instead (tensors u and x_t), or scale by the timestep where the output is used"
        )
    return _snapped(float(np.median(factor)))


def _snapped(value: float) -> float:
    """The number of few digits that ``value`` is up to rounding, if there is one."""
    digits: Any = 12 - math.ceil(math.log10(abs(value)))
    near = round(value, digits)
    return near if abs(near - value) <= ROUNDING * abs(value) else value
