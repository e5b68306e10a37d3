r"""Errors that are known: changed coefficients, a network that answers for another angle, outputs too large by one factor.

They do not add in quadrature: what they do at one call has the sign of what they do at the next. In a linear run nothing is
left to guess. Errors that are :math:`s_k x_k + q_k m_k` in the final sample sum up to
:math:`R_0 x_0 + \sum_k R_{k+1} n_k z_k` with a row R carried backwards through the calls, and the starting noise and the fresh
noises :math:`z_k` are independent. Of a traced run the sum is taken for each sample in random directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from diffparam.prediction.sensitivity import Sensitivity, memory_gain, state_factors
from diffparam.solvers.plan import Plan
from diffparam.solvers.step import StepCoefficients


def known_error(
    plan: Plan, sizes: Sensitivity, change: StepCoefficients, output_change: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray, float]:
    """What small changes of a run do to it, to first order.

    Args:
        plan: The run.
        sizes: Of the run. Where its network is not linear, the parts of what a call puts into the state are added in
            quadrature; where it was not traced either, so are the calls.
        change: What is added to each coefficient, arrays ``(calls,)`` or numbers.
        output_change: What is added to the network's K = u / x.

    Returns:
        Rms error that each call puts into the state, that it makes of the final sample, and the rms of all of them together.
    """
    per_input = sizes.output_per_input
    to_memory = memory_gain(plan, sizes.state_gain)
    if per_input is None:
        x, u, m = (np.sqrt(v) for v in (sizes.input_sq, sizes.output_sq, sizes.memory_sq))
        step = _norm(change.gain_x * x, change.gain_u * u, change.gain_m * m, change.noise)
        kept = _norm(change.memory_x * x, change.memory_u * u)
        if sizes.coefficient_response is not None:
            return step, *_traced(sizes.coefficient_response, change)
        final = _norm(sizes.state_gain * step, to_memory * kept)
        return step, final, float(_norm(*final))
    residual = np.maximum(sizes.output_sq - per_input**2 * sizes.input_sq, 0.0)
    in_state = change.gain_x + change.gain_u * per_input + plan.gain_u * output_change
    in_memory = change.memory_x + change.memory_u * per_input + plan.memory_u * output_change
    of_x = sizes.state_gain * in_state + to_memory * in_memory
    of_m = sizes.state_gain * change.gain_m
    of_noise = sizes.state_gain * change.noise
    of_rest = sizes.state_gain * change.gain_u + to_memory * change.memory_u
    step = _size(sizes, in_state, change.gain_m, change.noise, change.gain_u, residual)
    final = _size(sizes, of_x, of_m, of_noise, of_rest, residual)
    to_x, to_m = state_factors(plan, per_input)
    columns = (of_x, of_m, of_noise, of_rest, to_x, to_m, plan.gain_m, plan.noise, plan.gain_u, plan.memory_u, residual)
    total, rx, rm = 0.0, 0.0, 0.0
    for sx, sm, sn, sr, jx, jm, c, n, b, q, rest in zip(*(v[::-1].tolist() for v in columns), strict=True):
        total += (rx * n + sn) ** 2 + rest * (rx * b + rm * q + sr) ** 2
        rx, rm = sx + rx * jx + rm * jm, sm + rx * c
    return step, final, math.sqrt(total + rx**2 * float(sizes.input_sq[0]))


def _traced(response: Mapping[str, np.ndarray], change: StepCoefficients) -> tuple[np.ndarray, float]:
    """Rms of the final sample for each call, and for all together; a coefficient that is 0 stays so."""
    parts = [(getattr(change, name), moved) for name, moved in response.items()]
    by_call = sum(np.broadcast_to(np.asarray(delta, dtype=np.float64), len(moved))[:, None] * moved for delta, moved in parts)
    return np.sqrt(np.mean(by_call**2, axis=1)), float(np.sqrt(np.mean(by_call.sum(axis=0) ** 2)))


def _size(
    sizes: Sensitivity, of_x: np.ndarray, of_m: np.ndarray, of_noise: np.ndarray, of_rest: np.ndarray, residual: np.ndarray
) -> np.ndarray:
    """Rms of ``of_x x + of_m m + of_noise z + of_rest rest``."""
    together = 0.0 if sizes.input_memory is None else sizes.input_memory
    square = of_x**2 * sizes.input_sq + 2 * of_x * of_m * together + of_m**2 * sizes.memory_sq
    return np.sqrt(np.maximum(square, 0.0) + of_noise**2 + of_rest**2 * residual)


def _norm(*parts: np.ndarray) -> np.ndarray:
    return np.sqrt(sum(p**2 for p in parts))
