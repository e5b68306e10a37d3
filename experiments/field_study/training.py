"""Training a head as ``head_study.arms.train`` does, with a weight per timestep and an eye on one bin of timesteps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.field_study.reports import Head, Report
from experiments.head_study.arms import Recipe, train
from experiments.tokens import TokenSet
from mmar.diffusion_head import DiffusionHead
from mmar.diffusion_loss import DiffusionLoss

BLOCKS = 60
"""Points of a recorded loss curve, at most."""


def train_watched(
    head: Head, report: Report, recipe: Recipe, data: TokenSet, *, seed: int, device: str, tick: Callable[[int], None]
) -> tuple[DiffusionHead, dict[str, Any]]:
    """Train one head; data order, timesteps, noise and initial weights depend on the seed alone.

    Returns:
        The head, and :func:`describe` of the weighted loss in the report's tail and outside it.
    """
    weight = head.weight(report.schedule)
    bins: dict[str, list[float]] = {"tail": [], "rest": []}

    def watch(loss: DiffusionLoss) -> None:
        for name, value in _by_bin(loss, report, weight).items():
            bins[name].append(value)

    network = train(head.arm, recipe, data, report.schedule, seed=seed, device=device, tick=tick, weight=weight, watch=watch)
    return network, {name: describe(np.asarray(values)) for name, values in bins.items()}


def describe(loss: np.ndarray) -> dict[str, Any]:
    """A loss over training steps, of which the second half is judged.

    Returns:
        ``median``; ``spike``, largest over median; ``spread``, standard deviation over mean; ``not_finite``, steps of the whole
        training without a finite loss; ``blocks``, the median and the largest of at most 60 stretches of the whole training.
        What such a step enters is not finite either.
    """
    second = loss[len(loss) // 2 :]
    stretches = np.array_split(loss, min(BLOCKS, len(loss)))
    median = float(np.median(second))
    with np.errstate(invalid="ignore"):  # inf - inf; the result is not finite, and said to be
        spread = float(second.std() / second.mean())
    return {
        "median": median,
        "spike": float(second.max()) / median,
        "spread": spread,
        "not_finite": int((~np.isfinite(loss)).sum()),
        "blocks": {
            "median": [float(np.median(part)) for part in stretches],
            "max": [float(part.max()) for part in stretches],
        },
    }


def _by_bin(loss: DiffusionLoss, report: Report, weight: Tensor | None) -> dict[str, float]:
    """Mean weighted loss of the rows in the tail, and of the others; a bin without rows has none."""
    per_row, t = loss.per_row.cpu().double(), loss.t.cpu().double()
    if weight is not None:
        per_row = per_row * weight[torch.searchsorted(report.schedule.timesteps.double(), t)]
    low, high = report.tail
    tail = (t >= low - 0.5) & (t <= high + 0.5)
    return {"tail": per_row[tail].mean().item(), "rest": per_row[~tail].mean().item()}
