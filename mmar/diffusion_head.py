"""The diffusion MLP: p(token | z) by a stack of AdaLN residual blocks (paper section 3.3.2; MAR, Li et al. 2024).

What its output means is an :class:`diffparam.AngularParam` of whoever trains it; the head itself does not know.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmar.layers import XavierLinear, ZeroLinear
from mmar.precision import Linear


def sinusoidal_embedding(t: Tensor, dim: int, *, max_period: float = 10_000.0) -> Tensor:
    """``(batch,)`` timesteps to ``(batch, dim)`` cosines and sines, in float32: bf16 cannot hold 1000 timesteps."""
    rate = torch.exp(-math.log(max_period) * torch.arange(dim // 2, device=t.device, dtype=torch.float32) / (dim // 2))
    angle = t.float()[:, None] * rate  # (B, dim/2)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)  # (B, dim)


class TimeEmbedding(nn.Module):
    """Sinusoid, Linear, SiLU, Linear; the sinusoid in float32, cast afterwards."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.up = Linear(frequencies, width)
        self.out = Linear(width, width)
        for layer in (self.up, self.out):  # also what transformers does to a linear layer that has no rule of its own
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """``(batch,)`` timesteps to ``(batch, width)`` in ``dtype``."""
        h = sinusoidal_embedding(t, self.frequencies).to(dtype)  # (B, F)
        return self.out(functional.silu(self.up(h)))  # (B, W)


class AdaLNBlock(nn.Module):
    """``x + gate * MLP(modulate(LayerNorm(x)))``; shift, scale and gate come from the condition, and start at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up = XavierLinear(width, width)
        self.out = XavierLinear(width, width)
        self.modulation = ZeroLinear(width, 3 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``(batch, width)`` and the condition after its SiLU to ``(batch, width)``."""
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)  # 3 x (B, W)
        h = functional.layer_norm(x, x.shape[-1:], self.norm.weight.to(x.dtype), self.norm.bias.to(x.dtype), self.norm.eps)
        h = h * (1 + scale) + shift  # (B, W)
        return x + gate * self.out(functional.silu(self.up(h)))  # (B, W)


class DiffusionHead(nn.Module):
    """The network u(x_t, t, z).

    Args:
        token_dim: Channels of a token (16 for KL-16).
        condition_dim: Width of the condition z.
        width: Hidden width; 1024 in MMAR-0.5B, 2048 in MMAR-7B.
        depth: Residual blocks; 8 in MMAR-0.5B, 12 in MMAR-7B.

    Output is exactly zero at initialisation (AdaLN and last layer start at zero, as in DiT).
    """

    def __init__(self, token_dim: int, condition_dim: int, width: int = 1024, depth: int = 8) -> None:
        super().__init__()
        for name, value in (("token_dim", token_dim), ("condition_dim", condition_dim), ("width", width), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.token_dim, self.condition_dim = token_dim, condition_dim
        self.token_in = XavierLinear(token_dim, width)
        self.condition_in = XavierLinear(condition_dim, width)
        self.time_embedding = TimeEmbedding(width)
        self.blocks = nn.ModuleList(AdaLNBlock(width) for _ in range(depth))
        self.final_modulation = ZeroLinear(width, 2 * width)
        self.token_out = ZeroLinear(width, token_dim)

    def forward(self, x_t: Tensor, t: Tensor, z: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """The output for noisy tokens.

        Args:
            x_t: Noisy tokens ``(batch, token_dim)``.
            t: Timesteps ``(batch,)``, any numeric dtype; embedded in float32.
            z: Conditions ``(batch, condition_dim)``.
            dtype: What to compute in; by default the dtype of the weights.

        Returns:
            ``(batch, token_dim)`` in ``dtype``. Cast it to float32 before any sampler arithmetic.

        Raises:
            ValueError: If a shape does not fit.
        """
        self._check(x_t, t, z)
        dtype = self.token_in.weight.dtype if dtype is None else dtype
        h = self.token_in(x_t.to(dtype))  # (B, W)
        condition = self.time_embedding(t, dtype) + self.condition_in(z.to(dtype))  # (B, W)
        condition = functional.silu(condition)  # (B, W): once, for every modulation
        for block in self.blocks:
            h = block(h, condition)  # (B, W)
        shift, scale = self.final_modulation(condition).chunk(2, dim=-1)  # 2 x (B, W)
        h = functional.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift  # (B, W)
        return self.token_out(h)  # (B, D)

    def _check(self, x_t: Tensor, t: Tensor, z: Tensor) -> None:
        batch = x_t.shape[0] if x_t.ndim else 0
        wanted = {"x_t": (x_t, (batch, self.token_dim)), "t": (t, (batch,)), "z": (z, (batch, self.condition_dim))}
        for name, (value, shape) in wanted.items():
            if tuple(value.shape) != shape:
                raise ValueError(
                    f"{name} must have shape {shape} (x_t decides the batch), got {tuple(value.shape)}; "
                    "flatten tokens to (batch * tokens, channels)"
                )
