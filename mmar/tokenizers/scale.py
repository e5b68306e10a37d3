"""From latents to tokens and back: tokens are ``(z - mean) / std``, so that a diffusion head meets unit variance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Moment = float | tuple[float, ...]
"""One number for all channels, or one for each."""

MAR_KL16_STD = 1 / 0.2325
"""Standard deviation of KL-16 latents on ImageNet: MAR's code (Li et al. 2024) multiplies by 0.2325, for its file kl16.ckpt.

Other weights have another: measure it with ``mmar latent-statistics``.
"""


@dataclass(frozen=True)
class LatentScale:
    """Mean and standard deviation of the latents. Plain numbers, not buffers: casting a module to bf16 must not round them.

    Attributes:
        std: Positive; one number, or one for each channel.
        mean: As ``std``. The paper and MAR divide only, so it is 0 by default.
    """

    std: Moment = 1.0
    mean: Moment = 0.0

    def __post_init__(self) -> None:
        for name in ("std", "mean"):
            object.__setattr__(self, name, _plain(getattr(self, name)))
            if not all(math.isfinite(v) for v in _values(getattr(self, name))):
                raise ValueError(f"latent {name} must be finite, got {getattr(self, name)}; measure it with measure_latents")
        if min(_values(self.std)) <= 0:
            raise ValueError(f"latent std must be positive, got {self.std}; a constant channel carries nothing: leave it at 1")

    def check_channels(self, channels: int) -> None:
        """Raise a ValueError unless there is one number, or one for each channel."""
        for name, moment in (("std", self.std), ("mean", self.mean)):
            if isinstance(moment, tuple) and len(moment) != channels:
                raise ValueError(f"latent {name} must be one number or one for each of {channels} channels, got {len(moment)}")

    def normalize(self, z: Tensor) -> Tensor:
        """Latents ``(..., channels)`` to tokens, in the dtype of ``z``."""
        if self == LatentScale():  # to the bit, signs of zeros too
            return z
        return (z - _like(self.mean, z)) / _like(self.std, z)  # (..., C)

    def denormalize(self, tokens: Tensor) -> Tensor:
        """Tokens ``(..., channels)`` to latents, in the dtype of ``tokens``."""
        if self == LatentScale():
            return tokens
        return tokens * _like(self.std, tokens) + _like(self.mean, tokens)  # (..., C)


def _plain(moment: object) -> Moment:
    """Lists (from JSON), arrays and tensors become tuples; one number stays one number."""
    if isinstance(moment, int | float):
        return float(moment)
    values = torch.as_tensor(moment, dtype=torch.float64)
    if values.ndim > 1:
        raise ValueError(f"a latent moment must be one number or one for each channel, got shape {tuple(values.shape)}")
    return float(values) if values.ndim == 0 else tuple(values.tolist())


def _values(moment: Moment) -> tuple[float, ...]:
    return moment if isinstance(moment, tuple) else (moment,)


def _like(moment: Moment, x: Tensor) -> Tensor:
    return torch.tensor(moment, dtype=x.dtype, device=x.device)
