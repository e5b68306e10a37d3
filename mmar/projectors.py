"""VisProjector and PostProjector (appendix A.1): a Linear, then blocks of (activation, Linear)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from mmar.layers import XavierLinear


class Projector(nn.Module):
    """From one width to another.

    Args:
        in_features: Of the input.
        out_features: Of every layer's output; the paper does not give the inner widths.
        blocks: (GELU, Linear) pairs after the first Linear: 2 in the VisProjector, 1 in the PostProjector.
    """

    def __init__(self, in_features: int, out_features: int, blocks: int) -> None:
        super().__init__()
        self.first = XavierLinear(in_features, out_features)
        self.blocks = nn.ModuleList(XavierLinear(out_features, out_features) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        h = self.first(x)  # (..., W)
        for layer in self.blocks:
            h = layer(functional.gelu(h))  # (..., W)
        return h
