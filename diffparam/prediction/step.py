r"""Closed forms for the error of one step, before it is run.

Two quantities, kept apart everywhere: kappa = 1/\|sin(psi - phi)\| belongs to the parameterization, delta to the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffparam._checks import check_number, check_pair, check_phi, check_sample, everywhere
from diffparam._combine import lift
from diffparam.angle import Angle, namespace, rebase_gains, sin_difference
from diffparam.errors import NonFiniteError
from diffparam.parameterization import AngularParam, check_param
from diffparam.rounding import FloatFormat, relative_error
from diffparam.schedule import Schedule


@dataclass(frozen=True)
class OutputMoments:
    r"""Second moments of what an MSE-trained network sees and says, per element and in v-space.

    The network outputs not the target but its conditional mean, :math:`\hat u/r = \cos\theta\,x_t + \sin\theta\,\hat v`, so
    these three decide the size of its output in every parameterization.

    Args:
        x_sq: E[x_t^2].
        x_v: E[x_t v_hat].
        v_sq: E[v_hat^2].

    Raises:
        NonFiniteError: If one is NaN.
        ValueError: If a mean square is negative, or E[x_t v]^2 exceeds E[x_t^2] E[v^2], which no samples have.
    """

    x_sq: Any
    x_v: Any
    v_sq: Any

    def __post_init__(self) -> None:
        for name in ("x_sq", "x_v", "v_sq"):
            value = getattr(self, name)
            if not everywhere(value == value):
                raise NonFiniteError(f"{name} must be finite, got {value!r}; OutputMoments.measure takes it from finite values")
            if name != "x_v" and not everywhere(value >= 0):
                raise ValueError(f"{name} must be a mean square of at least 0, got {value!r}; OutputMoments.measure takes it")
        # As |cos| <= 1: by roots, whose product does not overflow where that of the squares would.
        if not everywhere(abs(self.x_v) <= (1 + 1e-6) * self.x_sq**0.5 * self.v_sq**0.5):
            raise ValueError(
                f"x_v must be at most sqrt(x_sq v_sq) in size, got {self.x_v!r} with {self.x_sq!r} and {self.v_sq!r}; all "
                "three are means over the same values (OutputMoments.measure)"
            )

    @classmethod
    def gaussian(cls, phi: Angle, *, sigma_data: float = 1.0) -> OutputMoments:
        """The ideal network's on zero-mean Gaussian data, in closed form. At ``sigma_data`` 1 it always says v = 0."""
        phi = check_phi(phi)
        sigma_data = check_number(sigma_data, "sigma_data", low=0.0)
        if sigma_data == 0 and not everywhere(phi > 0):
            raise ValueError(
                "phi must be above 0 for sigma_data = 0, got 0; a point mass without noise leaves nothing to predict"
            )
        xp = namespace(phi)
        c, s = xp.cos(phi), xp.sin(phi)
        x_sq = (c * sigma_data) ** 2 + s**2
        x_v = c * s * (1.0 - sigma_data**2)
        return cls(x_sq, x_v, x_v**2 / x_sq)

    @classmethod
    def target(cls) -> OutputMoments:
        """Those of the target itself for unit-variance data, eq. 19: E[(u/r)^2] = 1 in every parameterization."""
        return cls(1.0, 0.0, 1.0)

    @classmethod
    def measure(cls, x_t: Tensor, v_hat: Tensor) -> OutputMoments:
        """From states and v outputs of one shape ``(count, *event)`` at one angle (:func:`diffparam.predict_v`)."""
        check_pair(x_t, v_hat, ("x_t", "v_hat"))
        if not x_t.numel():
            raise ValueError(f"x_t must hold at least one value, got shape {tuple(x_t.shape)}; a mean of nothing is NaN")
        x, v = x_t.detach().double(), v_hat.detach().double()
        return cls(float((x * x).mean()), float((x * v).mean()), float((v * v).mean()))


def output_energy(phi: Angle, *, param: AngularParam, moments: OutputMoments) -> Any:
    r""":math:`E[(\hat u/r)^2] = \cos^2\theta\,E[x_t^2] + 2\sin\theta\cos\theta\,E[x_t\hat v] + \sin^2\theta\,E[\hat v^2]`."""
    check_param(param)
    phi = check_phi(phi)
    psi = param.psi_at(phi)
    sin, cos = sin_difference(psi, phi), namespace(psi, phi).cos(psi - phi)
    energy = cos**2 * moments.x_sq + 2 * sin * cos * moments.x_v + sin**2 * moments.v_sq
    return abs(energy)  # where the network says nothing it rounds to either side of zero


def step_error(
    u: Tensor,
    phi_t: Angle,
    phi_s: Angle,
    *,
    param: AngularParam,
    delta: float | str | Tensor,
    fmt: str | torch.dtype | FloatFormat = "bfloat16",
) -> Tensor:
    r"""The error that a relative error delta of u leaves in the next state: eq. 18, and for epsilon eq. 6.

    .. math:: \tilde x_s - x_s = \frac{\sin(\phi_s-\phi_t)}{\sin(\psi-\phi_t)}\,\frac{u}{r}\,\delta

    Args:
        u: Network output ``(*batch, *event)``.
        phi_t: Current angle, radians.
        phi_s: Next angle.
        param: What ``u`` means.
        delta: Relative error: a number, a tensor like ``u``, or a name (:func:`diffparam.relative_error`).
        fmt: Format that a named delta speaks of.

    Returns:
        Like ``u``, in at least float32: the error is not rounded again.
    """
    check_sample(u, "u")
    gain = step_error_gain(phi_t, phi_s, param=param)
    if not isinstance(delta, Tensor):
        delta = relative_error(delta, fmt)
    wide = u if u.dtype.itemsize >= 4 else u.float()
    return wide * lift(gain, wide) * delta


def step_error_gain(phi_t: Angle, phi_s: Angle, *, param: AngularParam) -> Angle:
    """What ``u delta`` is multiplied by in eq. 18: sin(phi_s - phi_t) / (r sin(psi - phi_t)), signed."""
    check_param(param)
    phi_t, phi_s = check_phi(phi_t, "phi_t"), check_phi(phi_s, "phi_s")
    gain_u, _ = rebase_gains(phi_t, param.psi_at(phi_t), phi_s, name=param.name)
    return gain_u / param.r_at(phi_t)


def step_error_rms(
    phi_t: Angle,
    phi_s: Angle,
    *,
    param: AngularParam,
    delta: float | str,
    moments: OutputMoments | None = None,
    fmt: str | torch.dtype | FloatFormat = "bfloat16",
) -> Any:
    r"""Root mean square of eq. 18 per element: :math:`|\sin(\phi_s-\phi_t)|\,\kappa\,\delta\sqrt{E[(\hat u/r)^2]}`.

    ``moments`` default to the paper's assumption of a unit-variance output (eq. 19).
    """
    phi_t, phi_s = check_phi(phi_t, "phi_t"), check_phi(phi_s, "phi_s")
    floor = loss_floor(phi_t, param=param, delta=delta, moments=moments, fmt=fmt)
    return abs(sin_difference(phi_s, phi_t)) * floor**0.5


def unit_step_error(
    phi: Angle, *, param: AngularParam, delta: float | str, fmt: str | torch.dtype | FloatFormat = "bfloat16"
) -> Any:
    """Eq. 23 for unit-variance output: kappa delta, the error per unit DDIM step and, equally, in v-space (eq. 25)."""
    return check_param(param).condition_number(phi) * relative_error(delta, fmt)


def loss_floor(
    phi: Angle,
    *,
    param: AngularParam,
    delta: float | str,
    moments: OutputMoments | None = None,
    fmt: str | torch.dtype | FloatFormat = "bfloat16",
) -> Any:
    r"""What a relative output error adds to the v-space loss: :math:`(\kappa\,\delta)^2\,E[(\hat u/r)^2]`.

    With the default moments (eq. 19) and ``delta="machine_epsilon"`` this is eq. 27, 1/(128^2 alpha_bar) for epsilon; with
    the network's moments and ``delta="rms"`` it is the energy of one rounding to nearest.

    Args:
        phi: Angle, radians.
        param: Parameterization.
        delta: Relative error by name or number.
        moments: Output statistics at ``phi``; :meth:`OutputMoments.target` by default.
        fmt: Format that a named delta speaks of.

    Raises:
        SingularParameterization: Where the floor is infinite.
    """
    energy = output_energy(phi, param=param, moments=OutputMoments.target() if moments is None else moments)
    return (param.condition_number(phi) * relative_error(delta, fmt)) ** 2 * energy


def largest_safe_timestep(
    schedule: Schedule,
    *,
    param: AngularParam,
    delta: float | str,
    tolerance: float = 0.01,
    sigma_data: float = 1.0,
    fmt: str | torch.dtype | FloatFormat = "bfloat16",
) -> int | float | None:
    """The largest timestep whose :func:`loss_floor` is at most ``tolerance`` of the target's variance; None if none is.

    The answer to "from where may I start sampling": above it one relative error of size delta in an output as large as its
    target costs more than ``tolerance`` of the v-space energy of data of standard deviation ``sigma_data``. It looks at the
    noisy end alone: x0, which is unsafe at the clean end, is safe here.
    """
    tolerance = check_number(tolerance, "tolerance", low=0.0, open_low=True)
    worth = relative_error(delta, fmt) ** 2
    check_param(param)
    psi = torch.as_tensor(param.psi_at(schedule.phi), dtype=torch.float64).expand(len(schedule))
    sine = sin_difference(psi, schedule.phi)
    sigma_data = check_number(sigma_data, "sigma_data", low=0.0)
    if sigma_data == 1.0:
        safe = (sine**2 * tolerance >= worth) & (sine != 0)
    else:  # E[(u/r)^2] of the output and E[v^2] of the target
        output_sq = (psi.cos() * sigma_data) ** 2 + psi.sin() ** 2
        target_sq = schedule.phi.cos() ** 2 + (schedule.phi.sin() * sigma_data) ** 2
        safe = (sine**2 * tolerance * target_sq >= worth * output_sq) & (sine != 0)
    index = safe.nonzero()
    return schedule.timesteps[int(index[-1])].item() if len(index) else None


def optimal_angle(phi: Angle, moments: OutputMoments) -> Any:
    r"""Psi that minimises :func:`loss_floor` for measured moments: u orthogonal to x_t.

    .. math:: \cot\theta^* = -E[x_t\hat v]/E[x_t^2]
    """
    phi = check_phi(phi)
    xp = namespace(moments.x_sq, moments.x_v)
    return phi + xp.atan2(moments.x_sq, -moments.x_v)
