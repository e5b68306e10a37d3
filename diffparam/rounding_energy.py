r"""How large rounding errors are for Gaussian values: the expected square, not a bound and not a typical ratio.

:attr:`diffparam.FloatFormat.rms` is the rms *relative* error of a log-uniform significand. Within one binade all values have
the same error, so there :math:`E[e^2]/E[u^2] = \epsilon^2\ln 2/18`, 8 per cent less in rms. A Gaussian falls into many binades
and comes within half a per cent of the square of ``rms``, whatever its size, while the format has digits: subnormals, and
formats so coarse that the density changes within one of their cells, are covered too.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from scipy.special import ndtr

from diffparam._checks import check_number
from diffparam.errors import NonFiniteError
from diffparam.rounding import FloatFormat, RoundingMode, _require_mode, parse_format

_COARSE = 5
"""Bits of significand up to which cells are integrated one by one."""
_PER_OCTAVE = 32
"""Nodes of the table per factor of two."""
_SMALL = 512
"""Values of the subnormal spacing that are integrated one by one in any format."""
_OCTAVES_DOWN, _OCTAVES_UP = 16, 4
"""Binades around the standard deviation that hold all but 1e-9 of the energy of a Gaussian."""
_PER_CELL = {"nearest": 1 / 12, "stochastic": 1 / 6, "toward_zero": 1 / 3}


def rounding_energy(fmt: str | FloatFormat, mean_square: Any, *, mode: RoundingMode = "nearest") -> Any:
    r"""E[(round(u) - u)^2] for zero-mean Gaussian u.

    Within a cell of width q the error energy is q^2 / 12 to nearest, q^2 / 6 stochastic, q^2 / 3 toward zero.

    Args:
        fmt: Format.
        mean_square: E[u^2], at least 0; a number or an array.
        mode: Rounding mode.

    Returns:
        float64 like ``mean_square``; overflow is left out (:func:`overflow_probability`).
    """
    fmt = parse_format(fmt)
    _require_mode(mode)
    square = np.asarray(mean_square, dtype=np.float64)
    if not (square >= 0).all() or np.isinf(square).any():
        raise NonFiniteError(f"mean_square must be finite and at least 0, got {_first_bad(square)!r}")
    std = np.atleast_1d(np.sqrt(square))
    some = std > 0
    octave = np.log2(std, where=some, out=np.zeros(std.shape))
    low, high, nodes = _curve(fmt, mode)
    if fmt.precision > _COARSE:  # from the last octave on all are alike
        octave = np.where(octave > high, high - 1.0 + np.mod(octave - high, 1.0), octave)
    inside = some & (octave >= low) & (octave <= high)
    lost = std < fmt.smallest_subnormal / 16  # half the smallest value is at eight standard deviations
    outside = some & ~inside & ~lost
    up = fmt.smallest_subnormal * math.sqrt(2 / math.pi) * std - std**2 if mode == "stochastic" else std**2
    energy = np.where(lost, up, 0.0)
    energy[inside] = std[inside] ** 2 * _between(nodes, (octave[inside] - low) * _PER_OCTAVE)
    if outside.any():
        energy[outside] = _exact(fmt, std[outside], mode)
    return energy if square.ndim else float(energy[0])


def _first_bad(square: np.ndarray) -> float:
    return float(square[~(square >= 0) | np.isinf(square)].flat[0])


def _exact(fmt: FloatFormat, std: np.ndarray, mode: RoundingMode) -> np.ndarray:
    if fmt.precision <= _COARSE:
        return _by_cells(_grid(fmt), std, mode)
    small = np.arange(min(2**fmt.precision, _SMALL)) * fmt.smallest_subnormal  # all of one spacing
    low = 8.0 * std < small[-1]
    energy = np.empty(std.shape)
    energy[low], energy[~low] = _by_cells(small, std[low], mode), _by_binades(fmt, std[~low], mode)
    return energy


@functools.cache
def _curve(fmt: FloatFormat, mode: RoundingMode) -> tuple[float, float, np.ndarray]:
    """E[e^2]/E[u^2] over log2 of the standard deviation, between two ends and a node beyond them: a hundred times as fast.

    Of a coarse format the whole range. Of a fine one up to an octave above where subnormals have 1e-9 of the energy, and of one
    whose subnormals are beyond all use that octave alone.
    """
    free = fmt.emin + 10.0
    high = math.ceil(math.log2(fmt.max)) if fmt.precision <= _COARSE else free + 1.0
    low = math.log2(fmt.smallest_subnormal) - 4.0 if fmt.emin > -100 else free
    octave = low + np.arange(-1, round(_PER_OCTAVE * (high - low)) + 3) / _PER_OCTAVE
    if low < free:
        return low, high, _exact(fmt, np.exp2(octave), mode) / np.exp2(2 * octave)
    std = np.exp2(octave - low)  # any octave will do, and this one does not underflow
    return low, high, _by_binades(fmt, std, mode) / std**2


def _between(nodes: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The cubic through four neighbours (Lagrange), here right to 1e-6; position 0 is the second node."""
    at = np.floor(position).astype(np.int64)
    f = position - at
    a, b, c, d = (nodes[at + k] for k in range(4))
    outer = f * (1.0 - f) / 6.0 * ((f - 2.0) * a - (f + 1.0) * d)
    return outer + (f + 1.0) * (2.0 - f) / 2.0 * ((1.0 - f) * b + f * c)


def compensated_energy(fmt: str | FloatFormat, mean_square: Any) -> Any:
    r"""E[e^2] of Gaussian u stored as the sum of two numbers, the second what rounding the first to nearest left over.

    The remainder is uniform within half a spacing h either way, and h is a power of two. The binade that begins at
    :math:`2^{-j}h` has the share :math:`2^{-j}` of it and the spacing :math:`2^{-j}h\epsilon`: together :math:`\epsilon^2/28`
    of the remainder's energy, where nothing is subnormal.

    Args:
        fmt: Format of both numbers.
        mean_square: E[u^2], at least 0; a number or an array.

    Returns:
        float64 like ``mean_square``.
    """
    fmt = parse_format(fmt)
    std = np.sqrt(np.asarray(mean_square, dtype=np.float64))
    mass, spacing = _binades(fmt, std)
    share = np.exp2(-np.arange(1.0, 33.0))
    second = np.maximum(spacing[..., None] / 2 * share * fmt.machine_epsilon, fmt.smallest_subnormal)
    energy = (mass * (share * second**2).sum(-1) / 12).sum(-1)
    energy = np.where(std > 0, np.minimum(energy, rounding_energy(fmt, mean_square)), 0.0)
    return energy if energy.ndim else float(energy)


def overflow_probability(fmt: str | FloatFormat, mean_square: Any) -> Any:
    """Share of zero-mean Gaussian values beyond the largest finite one of ``fmt``."""
    square = np.asarray(mean_square, dtype=np.float64)
    if not (square >= 0).all():
        raise NonFiniteError(f"mean_square must be at least 0, got {_first_bad(square)!r}")
    std = np.sqrt(square)
    with np.errstate(divide="ignore"):
        share = 2.0 * ndtr(-parse_format(fmt).max / std)
    return share if share.ndim else float(share)


def _binades(fmt: FloatFormat, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of Gaussian values in each binade around ``std``, and the spacing of ``fmt`` there, ``(*std.shape, binades)``."""
    scale = np.where(std > 0, std, 1.0)[..., None]
    exponent = np.floor(np.log2(scale)) + np.arange(-_OCTAVES_DOWN, _OCTAVES_UP + 1)
    edges = np.concatenate((np.zeros_like(scale), np.exp2(exponent[..., 1:]), np.exp2(exponent[..., -1:] + 1)), axis=-1)
    mass = 2.0 * np.diff(ndtr(edges / scale), axis=-1)
    return mass, np.exp2(np.maximum(exponent, fmt.emin) - (fmt.precision - 1))


def _by_binades(fmt: FloatFormat, std: np.ndarray, mode: RoundingMode) -> np.ndarray:
    """Each binade's mass times the energy of its cells; the mean over cells is the mean over the binade."""
    if not std.any():  # the noise of a run without noise
        return np.zeros_like(std)
    mass, spacing = _binades(fmt, std)
    return np.where(std > 0, (mass * spacing**2).sum(-1) * _PER_CELL[mode], 0.0)


def _by_cells(value: np.ndarray, std: np.ndarray, mode: RoundingMode) -> np.ndarray:
    """Gaussian moments of every cell between neighbouring values, in closed form."""
    low, high = value[:-1], value[1:]
    scale = np.where(std > 0, std, 1.0)[..., None]
    if mode == "nearest":
        middle = (low + high) / 2
        energy = _second_moment(low, middle, low, low, scale) + _second_moment(middle, high, high, high, scale)
    elif mode == "toward_zero":
        energy = _second_moment(low, high, low, low, scale)
    else:
        energy = -_second_moment(low, high, low, high, scale)  # (u - low)(high - u)
    return np.where(std > 0, 2.0 * energy.sum(-1), 0.0)


@functools.cache
def _grid(fmt: FloatFormat) -> np.ndarray:
    """The values of ``fmt`` from 0 up."""
    count = 2 ** (fmt.precision - 1)
    spacing = fmt.smallest_subnormal
    values = [np.arange(count) * spacing]
    while values[-1][-1] < fmt.max:
        values.append(np.arange(count, 2 * count) * spacing)
        spacing *= 2
    grid = np.concatenate(values)
    return grid[grid <= fmt.max]


def _second_moment(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, std: np.ndarray) -> np.ndarray:
    """E[(u - c)(u - d); a < u < b] for u ~ N(0, std^2)."""
    za, zb = a / std, b / std
    pa, pb = (np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi) for z in (za, zb))
    mass = ndtr(zb) - ndtr(za)
    first = pa - pb
    second = mass + za * pa - zb * pb
    return std**2 * second - std * (c + d) * first + c * d * mass


def relative_rounding(fmt: str | FloatFormat, mode: RoundingMode = "nearest") -> float:
    r"""sqrt(E[e^2]/E[m^2]) of a log-uniform significand m, within one binade: :math:`\epsilon\sqrt{\ln 2/18}` to nearest."""
    fmt = parse_format(fmt)
    _require_mode(mode)
    return float(check_number(fmt.machine_epsilon, "machine_epsilon") * np.sqrt(_PER_CELL[mode] * 2 * np.log(2) / 3))
