"""The network that training aims at: the exact posterior mean of the training scans, class by class.

It has no error of its own, so what rounding its output does to samples is rounding alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffparam import X0, AngularParam, Schedule, convert, predict_v, round_to
from experiments.tokens import TokenSet


class ExactNetwork:
    """Called like a trained head; computes in float64 and rounds its output once, to ``dtype``.

    Each training scan is a point mass of its class. :class:`diffparam.GaussianMixture` says the same (a test compares); for
    point masses it takes two products of matrices.

    Args:
        data: Training scans.
        schedule: What the timesteps mean; variance preserving.
        param: What it outputs.
    """

    def __init__(self, data: TokenSet, schedule: Schedule, param: AngularParam) -> None:
        self.schedule, self.param = schedule, param
        self.scans, self.labels = data.tokens.double(), data.labels  # (K, D), (K,)

    def exact(self, x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """The output before rounding, ``(batch, D)`` float64, on the device of ``x_t``."""
        x, scans = x_t.double(), self.scans.to(x_t.device)  # (B, D), (K, D)
        phi = self.schedule.phi_at(t).to(x.device)[:, None]  # (B, 1)
        cos, sin = phi.cos(), phi.sin()
        exponent = (cos * (x @ scans.T) - 0.5 * cos**2 * (scans**2).sum(-1)) / sin**2  # (B, K): log density up to a constant
        other_class = z.argmax(-1)[:, None] != self.labels.to(z.device)
        posterior = exponent.masked_fill(other_class.to(x.device), -torch.inf).softmax(-1)  # (B, K)
        return convert(posterior @ scans, x, self.schedule.phi_at(t), source=X0, target=self.param)  # (B, D)

    def __call__(self, x_t: Tensor, t: Tensor, z: Tensor, *, dtype: torch.dtype) -> Tensor:
        """``(batch, D)`` in ``dtype``, rounded once."""
        return round_to(self.exact(x_t, t, z), dtype).to(dtype)


def rounding_loss(network: ExactNetwork, data: TokenSet, t: int, dtype: torch.dtype, *, seed: int) -> float:
    """E|v_rounded - v|^2 per element: what rounding the exact output once adds to the v-space loss."""
    schedule, x0 = network.schedule, data.tokens.double()
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    phi, x_t = schedule.phi_at(t), schedule.add_noise(x0, eps, t)
    u = network.exact(x_t, torch.full((len(x0),), t), data.z)
    v_hi, v_lo = (predict_v(value, x_t, phi, param=network.param) for value in (u, round_to(u, dtype)))
    return (v_lo - v_hi).square().mean().item()
