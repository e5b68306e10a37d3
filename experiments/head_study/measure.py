"""Per-timestep errors of a trained head in v-space: the same weights in float32 and in bf16, on the same inputs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from diffparam import Schedule, V, predict_v
from experiments.head_study.arms import Arm
from experiments.tokens import TokenSet
from mmar.diffusion_head import DiffusionHead

Curves = dict[str, list[float]]


def measure(
    head: DiffusionHead,
    arm: Arm,
    data: TokenSet,
    schedule: Schedule,
    timesteps: list[int],
    *,
    draws: int,
    seed: int,
    device: str,
) -> Curves:
    r"""Errors at each timestep, mean over tokens, channels and noise draws; ``hi`` and ``lo`` are float32 and bf16 evaluations.

    Returns:
        Lists over ``timesteps``: ``loss_float32`` E[(v - v_hi)^2]; ``loss_bf16`` E[(v - v_lo)^2]; ``direct``
        E[(v_lo - v_hi)^2], the energy of the rounding of the forward pass alone; ``delta`` rms(u_lo - u_hi) / rms(u_hi);
        ``x_sq``, ``x_v``, ``v_sq``, what :class:`diffparam.OutputMoments` of the float32 evaluation are, NaN of a head that has
        diverged. Conversion to v (eq. 24) is in float64.
    """
    exact = copy.deepcopy(head).float()  # bf16 weights are float32 numbers too: the same weights
    noise = torch.Generator().manual_seed(seed)
    x0, z = data.tokens.repeat(draws, 1), data.z.repeat(draws, 1).to(device)
    curves: Curves = {k: [] for k in ("loss_float32", "loss_bf16", "direct", "delta", "x_sq", "x_v", "v_sq")}
    for t in timesteps:
        phi = schedule.phi_at(t)
        eps = torch.randn(x0.shape, generator=noise)
        x_t = schedule.add_noise(x0, eps, t)
        v = V.target(x0.double(), eps.double(), phi)
        u_hi, u_lo = (_evaluate(net, x_t, t, z, d) for net, d in ((exact, torch.float32), (head, torch.bfloat16)))
        v_hi, v_lo = (predict_v(u, x_t.double(), phi, param=arm.param) for u in (u_hi, u_lo))
        x = x_t.double()
        values = (
            _energy(v - v_hi),
            _energy(v - v_lo),
            _energy(v_lo - v_hi),
            (_energy(u_lo - u_hi) / _energy(u_hi)) ** 0.5,
            _energy(x),
            (x * v_hi).mean().item(),
            _energy(v_hi),
        )
        for curve, value in zip(curves.values(), values, strict=True):
            curve.append(value)
    return curves


def _evaluate(head: DiffusionHead, x_t: Tensor, t: int, z: Tensor, dtype: torch.dtype) -> Tensor:
    times = torch.full((len(x_t),), t, device=z.device)
    return head(x_t.to(z.device), times, z, dtype=dtype).double().cpu()


def _energy(x: Tensor) -> float:
    return x.square().mean().item()
