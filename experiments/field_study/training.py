"""Training a head as ``head_study.arms.train`` does, with a weight per timestep and an eye on one bin of timesteps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.field_study.reports import Head, Report
from experiments.head_study.arms import Recipe
from experiments.tokens import TokenSet
from mmar.diffusion_head import DiffusionHead
from mmar.diffusion_loss import DiffusionLoss, diffusion_loss

BLOCKS = 60
"""Points of a recorded loss curve, at most."""


def train_watched(
    head: Head, report: Report, recipe: Recipe, data: TokenSet, *, seed: int, device: str, tick: Callable[[int], None]
) -> tuple[DiffusionHead, dict[str, Any]]:
    """Train one head; data order, timesteps, noise and initial weights depend on the seed alone.

    Returns:
        The head, and :func:`describe` of the weighted loss in the report's tail and outside it.
    """
    torch.manual_seed(seed)
    arm, schedule = head.arm, report.schedule
    network = DiffusionHead(data.tokens.shape[1], data.z.shape[1], recipe.width, recipe.depth).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / recipe.warmup))
    weight = head.weight(schedule)
    draws = torch.Generator().manual_seed(seed)
    tokens, z = data.tokens.to(device), data.z.to(device)
    bins: dict[str, list[float]] = {"tail": [], "rest": []}

    def run(x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return network(x_t, t, condition, dtype=arm.dtype)

    for _ in range(recipe.steps):
        rows = torch.randint(len(data), (recipe.batch,), generator=draws).to(device)
        loss = diffusion_loss(
            run, tokens[rows], z[rows], schedule, param=arm.param,
            timesteps_per_token=recipe.timesteps_per_token, weight=weight, generator=draws,
        )  # fmt: skip
        optimizer.zero_grad()
        loss.mean.backward()
        optimizer.step()
        warmup.step()
        for name, value in _by_bin(loss, report, weight).items():
            bins[name].append(value)
        tick(1)
    return network.requires_grad_(False), {name: describe(np.asarray(values)) for name, values in bins.items()}


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
