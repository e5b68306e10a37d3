"""Errors put on the very values of a traced run, not on their sizes: how rounding errors repeat from step to step is then seen.

Elements of a sample err independently of each other here, as roundings of different numbers do: what one and the same error in
all of them would add is left out. Where errors are alike in all elements, as those of coefficients are, see
:mod:`diffparam.prediction.known`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffparam.error_model import ErrorModel, RoundingError
from diffparam.rounding import parse_format
from diffparam.solvers.plan import Plan
from diffparam.solvers.step import advance, advance_rounded


@dataclass(frozen=True, eq=False)
class Emulation:
    """What an error model does to the values of a run, to first order.

    Attributes:
        error: The error model.
        final: Rms of the final sample for the error of each call, ``(calls,)``.
        total: For all of them, added up with their signs, element by element.
    """

    error: ErrorModel
    final: np.ndarray
    total: float


@dataclass(frozen=True, eq=False)
class TracedCall:
    """What a call of a run saw, ``(batch, *event)`` each, and the two zeros whose gradients say what an error there does."""

    u: Tensor
    before: Tensor
    memory: Tensor | None
    noise: Tensor | None
    after: Tensor
    bumps: tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Gradients:
    """Of the final sample by each output, by each state and each memory after an update, ``(probes, batch, *event)`` each."""

    by_output: Sequence[Tensor]
    by_state: Sequence[Tensor]
    by_memory: Sequence[Tensor]


def emulate_output(
    calls: Sequence[TracedCall], gradients: Gradients, error: ErrorModel, generator: torch.Generator | None
) -> Emulation:
    """``error`` on each output."""
    errors = [error.apply(call.u, generator) - call.u for call in calls]
    return _emulation(error, [g * e for g, e in zip(gradients.by_output, errors, strict=True)])


def emulate_updates(
    plan: Plan,
    calls: Sequence[TracedCall],
    gradients: Gradients,
    rounding: RoundingError,
    generator: torch.Generator | None,
    *,
    increments: bool,
) -> Emulation:
    """Each update as the arithmetic does it, less the exact one with the same (rounded) coefficients, from rounded values."""
    moved, fmt = [], parse_format(rounding.fmt)
    for k, (step, call) in enumerate(zip(plan.steps(), calls, strict=True)):
        before = _stored(call.before, k, rounding, generator)
        memory = None if call.memory is None else rounding.apply(call.memory, generator)
        coefficients = step.coefficients.perturbed(rounding, increments=increments)
        exact, kept = advance(coefficients, call.u, before, memory, noise=call.noise)
        rounded, rounded_kept = advance_rounded(
            coefficients, call.u, before, memory, fmt, increments=increments, noise=call.noise
        )
        total = gradients.by_state[k] * (rounded - exact)
        if kept is not None and rounded_kept is not None:
            total = total + gradients.by_memory[k] * (rounded_kept - kept)
        moved.append(total)
    return _emulation(rounding, moved)


def emulate_states(
    plan: Plan, calls: Sequence[TracedCall], gradients: Gradients, error: ErrorModel, generator: torch.Generator | None
) -> Emulation:
    """Each new state as it is stored, less what was to be stored, from a stored state."""
    moved = []
    for k, (step, call) in enumerate(zip(plan.steps(), calls, strict=True)):
        before = _stored(call.before, k, error, generator)
        after, _ = advance(step.coefficients, call.u, before, call.memory, noise=call.noise)
        moved.append(gradients.by_state[k] * (error.apply(after, generator) - after))
    return _emulation(error, moved)


def _stored(state: Tensor, index: int, error: ErrorModel, generator: torch.Generator | None) -> Tensor:
    """As the update before has left it; the first one is the caller's."""
    return state if index == 0 else error.apply(state, generator)


def _emulation(error: ErrorModel, moved: Sequence[Tensor]) -> Emulation:
    """Of what the error of each call does to the final sample, times zeta."""
    final = np.array([_rms(one) for one in moved])
    return Emulation(error, final, _rms(torch.stack(list(moved)).sum(0)))


def _rms(value: Tensor) -> float:
    return value.square().mean().item() ** 0.5
