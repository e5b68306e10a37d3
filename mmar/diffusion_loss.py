"""The diffusion loss of tokens given their conditions (paper eq. 3 and 8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffparam import AngularParam, Schedule
from mmar.noise_draws import NoiseDraws, draw_noise

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``network(x_t, t, z)``: ``(rows, D), (rows,), (rows, C)`` to ``(rows, D)``."""


@dataclass(frozen=True)
class DiffusionLoss:
    """Loss of a batch, and what a per-timestep statistic needs.

    Attributes:
        mean: Weighted mean over rows, scalar, float32, differentiable.
        per_row: Unweighted squared error per row, mean over channels, ``(rows,)`` float32, detached.
        t: Timestep of each row, ``(rows,)``.
    """

    mean: Tensor
    per_row: Tensor
    t: Tensor


def diffusion_loss(
    network: Network,
    tokens: Tensor,
    z: Tensor,
    schedule: Schedule,
    *,
    param: AngularParam,
    timesteps_per_token: int = 1,
    weight: Tensor | None = None,
    generator: torch.Generator | None = None,
    draws: NoiseDraws | None = None,
) -> DiffusionLoss:
    """Mean squared error of the output at uniform timesteps, formed in float32 whatever the network computes in.

    Args:
        network: The head.
        tokens: Clean tokens ``(batch, D)``; they decide the device.
        z: Conditions ``(batch, C)``.
        schedule: Training schedule.
        param: What the output means.
        timesteps_per_token: K noise levels per condition; rows are ``batch * K``.
        weight: Weight per timestep index of the schedule ``(len(schedule),)``; 1 by default (eq. 8).
        generator: CPU source of timesteps and noise, so that arms with one seed see the same draws on any device.
        draws: Timesteps and noise of the ``batch * K`` rows, in place of drawing them.
    """
    if timesteps_per_token < 1:
        raise ValueError(f"timesteps_per_token must be at least 1, got {timesteps_per_token}; 4 is MAR's choice")
    tokens, z = tokens.repeat_interleave(timesteps_per_token, 0), z.repeat_interleave(timesteps_per_token, 0)
    rows, device = tokens.shape[0], tokens.device
    draws = draw_noise(len(schedule), rows, tokens.shape[1], generator) if draws is None else draws
    index, eps = draws.index, draws.eps.to(device)  # (rows,), (rows, D)
    phi, t = schedule.phi[index], schedule.timesteps[index]
    x_t = schedule.add_noise(tokens.float(), eps, t)  # (rows, D)
    u = network(x_t, t.to(device), z).float()  # (rows, D)
    error = (u - param.target(tokens.float(), eps, phi)).square().mean(-1)  # (rows,)
    weighted = error if weight is None else error * weight[index].to(error)
    return DiffusionLoss(weighted.mean(), error.detach(), t)
