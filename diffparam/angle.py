r"""The identity that carries the library.

With :math:`w(B) = \cos B\, x + \sin B\, \varepsilon`, the state is :math:`x_t = w(\phi)` and the network output is
:math:`u = r\, w(\psi)` (paper eq. 10-11). For any angle B

.. math:: w(B) = \frac{\sin(B-\phi)\; u/r + \sin(\psi-B)\; x_t}{\sin(\psi-\phi)}

``B = 0`` is the clean sample and ``B = pi/2`` the noise (eq. 12), ``B = phi_s`` the DDIM step (eq. 14) and, upwards, its
inversion; ``B = phi + pi/2`` is v. Everything in this package is that pair of gains put to use.

The functions here take angles as Python floats, numpy float64 arrays or torch float64 tensors and answer in kind.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.compiler import is_compiling

from diffparam.errors import SingularParameterization

Angle = float | np.ndarray | Tensor
"""Radians, float64: a Python float, a numpy array or a torch tensor on the CPU."""

HALF_PI = math.pi / 2


def namespace(*angles: Angle) -> Any:
    """The module whose ``sin``, ``cos``, ``atan2``, ``hypot`` fit these angles: ``math``, ``numpy`` or ``torch``."""
    found: Any = math
    for angle in angles:
        if isinstance(angle, float):  # first: every step of a sampler asks, and isinstance(., Tensor) is slow to say no
            continue
        if isinstance(angle, Tensor):
            return torch
        if isinstance(angle, np.ndarray):
            found = np
    return found


def sin_difference(a: Any, b: Any) -> Any:
    """``sin(a - b)``, right to an ulp or two even where ``a - b`` rounds (near a multiple of pi).

    The subtraction's rounding error is recovered exactly (Knuth's two-sum) and added to first order.
    """
    xp = namespace(a, b)
    d = a - b
    minus_b = d - a
    lost = (a - (d - minus_b)) - (b + minus_b)
    return xp.sin(d) + lost * xp.cos(d)


def rebase_gains(phi: Angle, psi: Angle, target: Angle, *, name: str = "custom") -> tuple[Any, Any]:
    r"""Gains ``(on u/r, on x_t)`` that give :math:`w(B)`: ``sin(B-phi)/sin(psi-phi)`` and ``sin(psi-B)/sin(psi-phi)``.

    Args:
        phi: Angle of the state, radians.
        psi: Angle of the output, radians.
        target: Angle B that is wanted, radians.
        name: What to call the parameterization in an error.

    Returns:
        Two float64 values of the angles' common shape. Each is within 4 ulp of the exact value *of the given doubles*
        wherever ``sin(psi - phi)`` is not tiny; what a double cannot say of the angle itself is lost before
        (``cos(phi)`` near ``pi/2`` is known to about ``1e-16 / cos(phi)``).

    Raises:
        SingularParameterization: If ``sin(psi - phi)`` vanishes to within the rounding of the angles.
    """
    s = sin_difference(psi, phi)
    require_regular(s, phi, psi, name=name)
    return sin_difference(target, phi) / s, sin_difference(psi, target) / s


def require_regular(sin_theta: Any, phi: Any, psi: Any, *, name: str) -> None:
    """Raise :class:`SingularParameterization` where ``sin_theta`` is zero to within the rounding of its angles."""
    if isinstance(sin_theta, float):
        if abs(sin_theta) <= 2**-52 * max(abs(phi), abs(psi)):
            raise SingularParameterization(name, float(phi))
        return
    if is_traced(sin_theta):
        return
    with torch.no_grad():
        s, p, q = torch.broadcast_tensors(*(torch.as_tensor(v, dtype=torch.float64) for v in (sin_theta, phi, psi)))
        bad = s.abs() <= 2**-52 * torch.maximum(p.abs(), q.abs())
        if bool(bad.any()):
            raise SingularParameterization(name, float(p[bad].flatten()[0]))


def is_traced(value: object) -> bool:
    """Whether ``value`` has no readable numbers: under ``torch.compile``, ``vmap`` and the other functorch transforms, or on
    the meta device. Checks on values are skipped there; checks on shapes and dtypes are not.
    """
    if not isinstance(value, Tensor):
        return False
    if is_compiling() or value.is_meta:
        return True
    return torch._C._functorch.is_functorch_wrapped_tensor(value)
