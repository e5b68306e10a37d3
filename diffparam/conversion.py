"""Output to output and output to sample, each one rebase and never a detour through x0 or eps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffparam._checks import check_pair, check_phi
from diffparam._combine import combine
from diffparam.angle import Angle, rebase_gains, require_regular, sin_difference
from diffparam.parameterization import EPSILON, X0, AngularParam, V, check_param


def convert(u: Tensor, x_t: Tensor, phi: Angle, *, source: AngularParam, target: AngularParam) -> Tensor:
    r"""What a network with the ``target`` parameterization would have said: :math:`r_B\,w(\psi_B)` from :math:`r_A\,w(\psi_A)`.

    Going straight multiplies the error of u/r by \|sin(psi_B - phi) / sin(psi_A - phi)\|; a detour through x0 or eps adds a
    factor 1/sin(phi) or 1/cos(phi) that nothing pays back.

    Args:
        u: Output in the ``source`` parameterization, shape ``(*batch, *event)``.
        x_t: State it was computed from, same shape, variance preserving; sets dtype and device of the result.
        phi: Angle: float or float64 tensor, scalar, ``(batch,)`` or broadcastable to ``u``.
        source: What ``u`` means.
        target: What is wanted.

    Raises:
        SingularParameterization: Where ``sin(psi_A - phi)`` is zero.
        ValueError: If shapes differ or an angle is out of range.
    """
    check_pair(u, x_t, ("u", "x_t"))
    phi = check_phi(phi)
    gain_u, gain_x = conversion_gains(phi, source=source, target=target)
    return combine(gain_x, x_t, gain_u, u)


def conversion_gains(phi: Angle, *, source: AngularParam, target: AngularParam) -> tuple[Angle, Angle]:
    """float64 gains ``(on u, on x_t)`` of :func:`convert`."""
    source, target = check_param(source, "source"), check_param(target, "target")
    gain_u, gain_x = rebase_gains(phi, source.psi_at(phi), target.psi_at(phi), name=source.name)
    r = target.r_at(phi)
    return gain_u * r / source.r_at(phi), gain_x * r


def predict_x0(u: Tensor, x_t: Tensor, phi: Angle, *, param: AngularParam) -> Tensor:
    """The clean sample that ``u`` implies (eq. 12). Arguments as :func:`convert`."""
    return convert(u, x_t, phi, source=param, target=X0)


def predict_eps(u: Tensor, x_t: Tensor, phi: Angle, *, param: AngularParam) -> Tensor:
    """The noise that ``u`` implies (eq. 12). Arguments as :func:`convert`."""
    return convert(u, x_t, phi, source=param, target=EPSILON)


def predict_v(u: Tensor, x_t: Tensor, phi: Angle, *, param: AngularParam) -> Tensor:
    """The v that ``u`` implies; for epsilon it is eq. 24. Arguments as :func:`convert`."""
    return convert(u, x_t, phi, source=param, target=V)


def loss_weight(phi: Angle, *, source: AngularParam, target: AngularParam) -> Any:
    r"""The factor from a squared error of ``source`` to the squared error it causes in ``target``.

    .. math:: \|\Delta_B\|^2 = \left(\frac{r_B\,\sin(\psi_B-\phi)}{r_A\,\sin(\psi_A-\phi)}\right)^2 \|\Delta_A\|^2

    Every weighting of the literature is one line: an epsilon network trained on the v loss weighs its squared error by
    ``loss_weight(phi, source=EPSILON, target=V)`` = 1/alpha_bar; min-SNR-gamma of a v network is
    ``min(snr, gamma) * loss_weight(phi, source=V, target=X0)`` (Hang et al. 2023), finite at zero SNR.

    Returns:
        float64, in the kind of ``phi``.

    Raises:
        SingularParameterization: Where the source is singular, so that the weight is infinite.
    """
    source, target = check_param(source, "source"), check_param(target, "target")
    phi = check_phi(phi)
    psi = source.psi_at(phi)
    s = sin_difference(psi, phi)
    require_regular(s, phi, psi, name=source.name)
    return (target.r_at(phi) * sin_difference(target.psi_at(phi), phi) / (source.r_at(phi) * s)) ** 2
