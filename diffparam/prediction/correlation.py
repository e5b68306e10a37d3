r"""How the roundings of a slowly moving value add up.

Rounding to nearest is a sawtooth. Two values that differ by d units in the last place are rounded with the errors of two
points of it, d apart: of correlation 1 at d = 0, and none once d is spread over several teeth.
"""

from __future__ import annotations

import functools

import numpy as np


def correlated_energy(signed: np.ndarray, amplitude: np.ndarray, machine_epsilon: float) -> float:
    r"""E of the squared sum of roundings of :math:`U_k z`, one z for all k, each of rms ``|signed_k|``.

    The roundings of two values whose difference is d units in the last place have the correlation of two points of a sawtooth,
    :func:`sawtooth_correlation`. Here d is proportional to the value itself, :math:`d = |U_l/U_k - 1|\,m/\epsilon` with the
    significand m log-uniform in [1, 2).
    """
    oriented = signed * np.sign(amplitude)
    total = float((signed**2).sum())
    for lag in range(1, len(signed)):
        with np.errstate(divide="ignore", invalid="ignore"):
            move = np.abs(amplitude[lag:] / amplitude[:-lag] - 1.0) / machine_epsilon
        move = np.where(np.isfinite(move), move, np.inf)
        total += 2.0 * float((oriented[lag:] * oriented[:-lag] * sawtooth_correlation(move)).sum())
        if move.min() > _FAR:
            break
    return max(total, 0.0)


_FAR = 4.0
"""Units in the last place beyond which roundings are independent."""


def sawtooth_correlation(move: np.ndarray) -> np.ndarray:
    """Correlation of the roundings of m and m (1 + move epsilon), over a log-uniform significand m."""
    table_move, table_value = _sawtooth_table()
    return np.interp(move, table_move, table_value, right=0.0)


@functools.cache
def _sawtooth_table() -> tuple[np.ndarray, np.ndarray]:
    move = np.linspace(0.0, _FAR, 513)
    m = np.exp2((np.arange(512) + 0.5) / 512)
    fraction = np.mod(move[:, None] * m, 1.0)
    return move, (1.0 - 6.0 * fraction * (1.0 - fraction)).mean(1)
