"""Per-timestep errors of a trained head in v-space: the same weights in float32 and in bf16, on the same inputs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from diffparam import Schedule, V, predict_v
from experiments.head_study.arms import Arm
from experiments.tokens import TokenSet
from mmar.diffusion_head import DiffusionHead

KEYS = ("loss_float32", "loss_bf16", "direct", "output_energy", "delta")


def measure(
    head: DiffusionHead, arm: Arm, data: TokenSet, schedule: Schedule, timesteps: list[int], *, draws: int, seed: int, device: str
) -> dict[str, list[float]]:
    r"""Errors at each timestep, mean over tokens, channels and noise draws.

    Returns:
        Lists over ``timesteps``: ``loss_float32`` E[(v - v_hi)^2]; ``loss_bf16`` E[(v - v_lo)^2]; ``direct`` E[(v_lo - v_hi)^2],
        the energy of the rounding of the forward pass alone; ``output_energy`` E[u_hi^2]; ``delta`` rms(u_lo - u_hi) / rms(u_hi).
        ``hi`` and ``lo`` are float32 and bf16 evaluations of the same weights. Conversion to v (eq. 24) is in float64.
    """
    exact = copy.deepcopy(head).float()  # bf16 weights are float32 numbers too: the same weights
    noise = torch.Generator().manual_seed(1_000_000 + seed)
    x0, z = data.tokens.repeat(draws, 1), data.z.repeat(draws, 1).to(device)
    out: dict[str, list[float]] = {key: [] for key in KEYS}
    for t in timesteps:
        phi = schedule.phi_at(t)
        eps = torch.randn(x0.shape, generator=noise)
        x_t = schedule.add_noise(x0, eps, t)
        v = V.target(x0.double(), eps.double(), phi)
        u_hi, u_lo = (_evaluate(net, x_t, t, z, d) for net, d in ((exact, torch.float32), (head, torch.bfloat16)))
        v_hi, v_lo = (predict_v(u, x_t.double(), phi, param=arm.param) for u in (u_hi, u_lo))
        out["loss_float32"].append(_energy(v - v_hi))
        out["loss_bf16"].append(_energy(v - v_lo))
        out["direct"].append(_energy(v_lo - v_hi))
        out["output_energy"].append(_energy(u_hi))
        out["delta"].append((_energy(u_lo - u_hi) / _energy(u_hi)) ** 0.5)
    return out


def _evaluate(head: DiffusionHead, x_t: Tensor, t: int, z: Tensor, dtype: torch.dtype) -> Tensor:
    times = torch.full((len(x_t),), t, device=z.device)
    return head(x_t.to(z.device), times, z, dtype=dtype).double().cpu()


def _energy(x: Tensor) -> float:
    return x.square().mean().item()
