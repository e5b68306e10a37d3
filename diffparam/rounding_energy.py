r"""How large rounding errors are for Gaussian values: the expected square, not a bound and not a typical ratio.

:attr:`diffparam.FloatFormat.rms` is the rms *relative* error of a log-uniform significand. The energy of the error itself
weighs large values more: for a log-uniform significand :math:`E[e^2]/E[u^2] = \epsilon^2\ln 2/18`, 8 per cent less in rms; for
a Gaussian it follows from how its mass falls into binades. Subnormals, and formats so coarse that the density changes within
one of their cells, are covered too.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from scipy.special import ndtr

from diffparam._checks import check_number
from diffparam.rounding import FloatFormat, RoundingMode, _require_mode, parse_format

_COARSE = 5
"""Bits of significand up to which cells are integrated one by one."""
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
    std = np.sqrt(np.asarray(mean_square, dtype=np.float64))
    energy = _by_cells(fmt, std, mode) if fmt.precision <= _COARSE else _by_binades(fmt, std, mode)
    return energy if energy.ndim else float(energy)


def overflow_probability(fmt: str | FloatFormat, mean_square: Any) -> Any:
    """Share of zero-mean Gaussian values beyond the largest finite one of ``fmt``."""
    std = np.sqrt(np.asarray(mean_square, dtype=np.float64))
    with np.errstate(divide="ignore"):
        share = 2.0 * ndtr(-parse_format(fmt).max / std)
    return share if share.ndim else float(share)


def _by_binades(fmt: FloatFormat, std: np.ndarray, mode: RoundingMode) -> np.ndarray:
    """Each binade's mass times the energy of its cells; the mean over cells is the mean over the binade."""
    with np.errstate(divide="ignore"):
        centre = np.floor(np.log2(np.where(std > 0, std, 1.0)))
    exponent = centre[..., None] + np.arange(-_OCTAVES_DOWN, _OCTAVES_UP + 1)
    low = np.where(exponent == exponent[..., :1], 0.0, np.exp2(exponent))
    scale = np.where(std > 0, std, 1.0)[..., None]
    mass = 2.0 * (ndtr(np.exp2(exponent + 1) / scale) - ndtr(low / scale))
    width = np.exp2(np.maximum(exponent, fmt.emin) - (fmt.precision - 1))
    energy = (mass * width**2).sum(-1) * _PER_CELL[mode]
    return np.where(std > 0, np.minimum(energy, _PER_CELL[mode] / _PER_CELL["nearest"] * std**2), 0.0)


def _by_cells(fmt: FloatFormat, std: np.ndarray, mode: RoundingMode) -> np.ndarray:
    """Gaussian moments of every cell in closed form."""
    value = _grid(fmt)
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
    r"""Energy-weighted relative error of a log-uniform significand: :math:`\epsilon\sqrt{\ln 2/18}` to nearest."""
    fmt = parse_format(fmt)
    _require_mode(mode)
    return float(check_number(fmt.machine_epsilon, "machine_epsilon") * np.sqrt(_PER_CELL[mode] * 2 * np.log(2) / 3))
