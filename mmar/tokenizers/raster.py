"""Feature maps to token sequences in raster order (rows from the top, each from the left), and back."""

from __future__ import annotations

import math

from torch import Tensor


def to_tokens(features: Tensor) -> Tensor:
    """``(batch, channels, grid, grid)`` to ``(batch, grid * grid, channels)``."""
    return features.flatten(2).transpose(1, 2)  # (B, N, C)


def to_features(tokens: Tensor) -> Tensor:
    """``(batch, grid * grid, channels)`` to ``(batch, channels, grid, grid)``, contiguous."""
    grid = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (grid, grid)).contiguous()  # (B, C, g, g)
