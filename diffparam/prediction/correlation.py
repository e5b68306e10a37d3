r"""How the roundings of a slowly moving value add up.

Rounding to nearest is a sawtooth. Two values that differ by d units in the last place are rounded with the errors of two
points of it, d apart: of correlation 1 at d = 0, and none once d is spread over several teeth.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def correlated_energy(signed: np.ndarray, amplitude: np.ndarray, machine_epsilon: float) -> float:
    r"""E of the squared sum of roundings of :math:`U_k z`, one z for all k, each of rms ``|signed_k|``.

    The roundings of two values whose difference is d units in the last place have the correlation of two points of a sawtooth,
    :func:`sawtooth_correlation`. Here d is proportional to the value itself, :math:`d = |U_l/U_k - 1|\,m/\epsilon` with the
    significand m log-uniform in [1, 2).
    """
    oriented, count = signed * np.sign(amplitude), len(signed)
    total = float((signed**2).sum())
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.abs(1.0 / amplitude) / machine_epsilon
        for start in range(1, count, _LAGS):  # a thousand operations on one lag each would cost more than the pairs do
            later = np.append(amplitude[start:], np.full(_LAGS - 1, np.nan))
            earlier = slice(0, count - start)
            move = np.abs(sliding_window_view(later, _LAGS) - amplitude[earlier, None]) * inverse[earlier, None]
            first, lag = np.nonzero(move < _FAR)  # false of nan: past the end, or where nothing is said
            correlation = sawtooth_correlation(move[first, lag])
            total += 2.0 * float((oriented[first] * oriented[first + start + lag] * correlation).sum())
    return max(total, 0.0)


_LAGS = 64
"""Lags that are treated at once."""
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
