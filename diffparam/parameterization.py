r"""What a network's output means: ``u = r (cos psi * x + sin psi * eps)`` (paper eq. 11).

Every parameterization of the field is one :class:`AngularParam`, a pair (psi, r) that may depend on phi. Nothing else in
the library branches on the prediction type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffparam._checks import check_number, check_pair, check_phi
from diffparam._combine import combine
from diffparam.angle import HALF_PI, Angle, is_traced, namespace, require_regular, sin_difference
from diffparam.errors import NonFiniteError, SingularParameterization

AngleFunction = Callable[[Any], Any]
"""A function of phi that works for floats, numpy arrays and torch tensors alike (see :func:`diffparam.angle.namespace`)."""


@dataclass(frozen=True)
class AngularParam:
    r"""A parameterization in angular form, :math:`u = r(\cos\psi\,x + \sin\psi\,\varepsilon)`.

    Args:
        psi: Angle of the output in radians, any real number, or a function of phi.
        r: Scale of the output, positive, or a function of phi.
        name: What errors and tables call it; not part of equality.
    """

    psi: float | AngleFunction
    r: float | AngleFunction = 1.0
    name: str = field(default="custom", compare=False)

    def __post_init__(self) -> None:
        if not callable(self.psi):
            object.__setattr__(self, "psi", check_number(self.psi, "psi"))
        if not callable(self.r):
            object.__setattr__(self, "r", check_number(self.r, "r", low=0.0, open_low=True))

    # -- the two functions of phi -------------------------------------------------------------------------------------

    def psi_at(self, phi: Angle) -> Any:
        """Psi at ``phi``, radians, in the kind of ``phi`` (a float stays a float)."""
        return _evaluate(self.psi, phi, "psi", self.name) if callable(self.psi) else self.psi

    def r_at(self, phi: Angle) -> Any:
        """R at ``phi``, positive and finite.

        Raises:
            SingularParameterization: If r is infinite there (the score at phi = 0).
        """
        if not callable(self.r):
            return self.r
        r = _evaluate(self.r, phi, "r", self.name)
        _require_positive(r, phi, self.name)
        return r

    # -- what follows from them ---------------------------------------------------------------------------------------

    def sin_theta(self, phi: Angle) -> Any:
        """``sin(psi - phi)``, the sine between output and state; 1 for v."""
        phi = check_phi(phi)
        return sin_difference(self.psi_at(phi), phi)

    def condition_number(self, phi: Angle) -> Any:
        r"""Kappa = 1/\|sin(psi - phi)\|: what a relative error of u is multiplied by, per unit step and in v-space.

        Raises:
            SingularParameterization: Where it is infinite.
        """
        phi = check_phi(phi)
        psi = self.psi_at(phi)
        s = sin_difference(psi, phi)
        require_regular(s, phi, psi, name=self.name)
        return 1.0 / abs(s)

    def coefficients(self, phi: Angle) -> tuple[Any, Any]:
        """``(a, b)`` with ``u = a x + b eps``."""
        phi = check_phi(phi)
        psi, r = self.psi_at(phi), self.r_at(phi)
        xp = namespace(psi)
        return r * xp.cos(psi), r * xp.sin(psi)

    def target(self, x0: Tensor, eps: Tensor, phi: Angle) -> Tensor:
        """The training target ``u = r (cos psi x + sin psi eps)`` (eq. 11).

        Args:
            x0: Clean sample, shape ``(*batch, *event)``; sets dtype and device of the result.
            eps: Standard normal noise, same shape.
            phi: Angle, float or float64 tensor: scalar, one per batch item ``(batch,)``, or broadcastable to ``x0``.

        Raises:
            ValueError: If shapes differ or an angle is out of range.
        """
        check_pair(x0, eps, ("x0", "eps"))
        a, b = self.coefficients(phi)
        return combine(a, x0, b, eps)

    def __neg__(self) -> AngularParam:
        """The same parameterization with the sign of u flipped: psi + pi."""
        psi = self.psi
        if isinstance(psi, Turned):
            turned: float | AngleFunction = psi.psi
        else:
            turned = Turned(psi) if callable(psi) else math.remainder(psi + math.pi, 2 * math.pi)
        return AngularParam(turned, self.r, name=self.name[1:] if self.name.startswith("-") else f"-{self.name}")

    # -- other ways to say it -----------------------------------------------------------------------------------------

    @classmethod
    def from_coefficients(cls, a: float | AngleFunction, b: float | AngleFunction, *, name: str = "custom") -> AngularParam:
        """``u = a x + b eps``, numbers or functions of phi: psi = atan2(b, a), r = hypot(a, b).

        Raises:
            ValueError: If both numbers are zero: then u says nothing.
        """
        if callable(a) or callable(b):
            return cls(PsiOfCoefficients(a, b), ROfCoefficients(a, b), name=name)
        a, b = check_number(a, "a"), check_number(b, "b")
        if a == 0 and b == 0:
            raise ValueError("a and b must not both be zero, got a = 0 and b = 0; u would carry no information")
        return cls(math.atan2(b, a), math.hypot(a, b), name=name)

    @classmethod
    def from_preconditioning(
        cls, c_skip: float | AngleFunction, c_out: float | AngleFunction, *, name: str = "preconditioned"
    ) -> AngularParam:
        """The F of a denoiser ``D(x_sigma) = c_skip x_sigma + c_out F`` with ``x_sigma = x + sigma eps`` (EDM eq. 7).

        Args:
            c_skip: Number, or function of sigma = tan(phi).
            c_out: Nonzero number, or function of sigma.
            name: What errors and tables call it.

        Undefined at phi = pi/2, where sigma is infinite; :meth:`edm` has the limit in closed form.
        """
        if not callable(c_out) and check_number(c_out, "c_out") == 0:
            raise ValueError("c_out must not be zero, got 0; the denoiser would ignore its network")
        if not callable(c_skip):
            check_number(c_skip, "c_skip")
        return cls.from_coefficients(SignalOfPreconditioner(c_skip, c_out), NoiseOfPreconditioner(c_skip, c_out), name=name)

    @classmethod
    def edm(cls, sigma_data: float) -> AngularParam:
        """F of EDM (Karras et al. 2022, table 1) for data of standard deviation ``sigma_data``. At 1 it is -v."""
        sigma_data = check_number(sigma_data, "sigma_data", low=0.0, open_low=True)
        return cls(EdmPsi(sigma_data), EdmR(sigma_data), name=f"edm({sigma_data:g})")

    @classmethod
    def optimal(cls, sigma_data: float = 1.0) -> AngularParam:
        r"""The parameterization that loses least to a relative output error, for data with second moment ``sigma_data**2``.

        Minimising :math:`\delta^2(\cot^2\theta\,E[x_t^2] + 2\cot\theta\,E[x_t\hat v] + E[\hat v^2])` over psi gives
        :math:`\cot\theta^* = -E[x_t v]/E[x_t^2]`, that is :math:`\tan\psi^* = -\sigma_d^2\cot\phi`: u is orthogonal to x_t in
        L2. It is the direction of EDM's F, with the sign of v and unit variance, and it is v exactly when ``sigma_data`` is 1.
        """
        negative = -cls.edm(sigma_data)
        return cls(negative.psi, negative.r, name=f"optimal({float(sigma_data):g})")


def check_param(value: Any, name: str = "param") -> AngularParam:
    """A parameterization; a name of one is for :func:`diffparam.parse_parameterization`."""
    if not isinstance(value, AngularParam):
        raise TypeError(
            f"{name} must be an AngularParam, got {type(value).__name__} ({value!r}); take V, EPSILON, X0 or FLOW, or read a "
            "name with diffparam.parse_parameterization"
        )
    return value


# -- functions of phi, as values that compare, hash and pickle --------------------------------------------------------


def quarter_turn_ahead(phi: Any) -> Any:
    """Psi of v: a right angle ahead of the state, so that sin(psi - phi) = 1."""
    return phi + HALF_PI


def reciprocal_sine(phi: Any) -> Any:
    """R of the score of the VP state, -eps / sin(phi)."""
    if isinstance(phi, float):
        return 1.0 / math.sin(phi) if phi > 0 else math.inf
    if isinstance(phi, np.ndarray):
        with np.errstate(divide="ignore"):  # the infinity is refused by name
            return 1.0 / np.sin(phi)
    return 1.0 / phi.sin()


@dataclass(frozen=True)
class Turned:
    """psi + pi."""

    psi: AngleFunction

    def __call__(self, phi: Any) -> Any:
        return self.psi(phi) + math.pi


@dataclass(frozen=True)
class EdmPsi:
    """atan2(-sigma_d^2 cos phi, sin phi)."""

    sigma_data: float

    def __call__(self, phi: Any) -> Any:
        xp = namespace(phi)
        return xp.atan2(-(self.sigma_data**2) * xp.cos(phi), xp.sin(phi))


@dataclass(frozen=True)
class EdmR:
    """hypot(sin, sigma_d^2 cos) / (sigma_d hypot(sin, sigma_d cos))."""

    sigma_data: float

    def __call__(self, phi: Any) -> Any:
        xp, s = namespace(phi), self.sigma_data
        return xp.hypot(xp.sin(phi), s * s * xp.cos(phi)) / (s * xp.hypot(xp.sin(phi), s * xp.cos(phi)))


@dataclass(frozen=True)
class PsiOfCoefficients:
    """atan2(b, a)."""

    a: float | AngleFunction
    b: float | AngleFunction

    def __call__(self, phi: Any) -> Any:
        a, b = _alike(_call(self.a, phi), _call(self.b, phi))
        return namespace(a, b).atan2(b, a)


@dataclass(frozen=True)
class ROfCoefficients:
    """hypot(a, b)."""

    a: float | AngleFunction
    b: float | AngleFunction

    def __call__(self, phi: Any) -> Any:
        a, b = _alike(_call(self.a, phi), _call(self.b, phi))
        return namespace(a, b).hypot(a, b)


@dataclass(frozen=True)
class SignalOfPreconditioner:
    """a of F: (1 - c_skip) / c_out, functions of sigma."""

    c_skip: float | AngleFunction
    c_out: float | AngleFunction

    def __call__(self, phi: Any) -> Any:
        sigma = namespace(phi).tan(phi)
        return (1.0 - _call(self.c_skip, sigma)) / _call(self.c_out, sigma)


@dataclass(frozen=True)
class NoiseOfPreconditioner:
    """b of F: -c_skip sigma / c_out, functions of sigma."""

    c_skip: float | AngleFunction
    c_out: float | AngleFunction

    def __call__(self, phi: Any) -> Any:
        sigma = namespace(phi).tan(phi)
        return -_call(self.c_skip, sigma) * sigma / _call(self.c_out, sigma)


def _call(value: float | AngleFunction, at: Any) -> Any:
    return value(at) if callable(value) else value


def _alike(a: Any, b: Any) -> tuple[Any, Any]:
    """Both as the same kind of angle: torch's and numpy's atan2 take no mixture."""
    xp = namespace(a, b)
    if xp is torch:
        return torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return a, b


def _evaluate(function: AngleFunction, phi: Angle, what: str, name: str) -> Any:
    """A user's function of phi, held to its contract: float64, finite where it can be read."""
    try:
        value = function(phi)
    except ZeroDivisionError:
        value = math.nan  # what an array holds there; refused below
    except (TypeError, AttributeError, ValueError) as error:  # math.sin of a tensor is a ValueError
        raise TypeError(
            f"{what}(phi) of {name!r} must accept a {type(phi).__name__}, but failed: {error}; "
            "write it with operators or with diffparam.angle.namespace(phi)"
        ) from error
    if isinstance(value, Tensor):
        if value.dtype is not torch.float64:
            raise TypeError(f"{what}(phi) of {name!r} must be float64, got {value.dtype}; compute it from phi in float64")
    elif not isinstance(value, np.ndarray):
        value = float(value)
    bad = value != value
    if what == "psi":  # an infinite r is singular, and refused as that
        bad = bad | (abs(value) == math.inf)
    if not is_traced(bad) and bool(bad if isinstance(bad, bool) else bad.any()):
        raise NonFiniteError(
            f"{what}(phi) of {name!r} must be finite, got nan or infinity within phi = {phi}; restrict phi or give the limit"
        )
    return value


def _require_positive(r: Any, phi: Any, name: str) -> None:
    if isinstance(r, float):
        if r == math.inf:
            raise SingularParameterization(name, float(phi))
        if r <= 0:
            raise ValueError(f"r(phi) of {name!r} must be positive, got {r!r} at phi = {phi!r}; a sign belongs in psi (add pi)")
    elif not is_traced(r):
        r, phi = torch.broadcast_tensors(torch.as_tensor(r), torch.as_tensor(phi))
        if bool(r.isinf().any()):
            raise SingularParameterization(name, float(phi[r.isinf()].flatten()[0]))
        if bool((r <= 0).any()):
            raise ValueError(f"r(phi) of {name!r} must be positive, got {float(r.min())!r}; a sign belongs in psi (add pi)")


EPSILON = AngularParam(HALF_PI, name="epsilon")
"""The noise; singular at phi = pi/2."""
X0 = AngularParam(0.0, name="sample")
"""The clean sample; singular at phi = 0."""
V = AngularParam(quarter_turn_ahead, name="v_prediction")
"""cos(phi) eps - sin(phi) x (Salimans & Ho 2022; paper eq. 21)."""
FLOW = AngularParam(0.75 * math.pi, math.sqrt(2.0), name="flow")
"""eps - x, the velocity of rectified flow with noise at the end of time."""
SCORE = AngularParam(-HALF_PI, reciprocal_sine, name="score")
"""Score of the VP state, -eps / sin(phi); r is infinite at phi = 0."""
