"""Leaf modules that know how they start.

transformers builds a model on the meta device and initialises afterwards, leaf by leaf: what a constructor wrote into a
parameter is lost. So each kind of start is a class with ``reset_parameters``, and :func:`initialize_leaf` is the one rule.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmar.precision import Linear


class XavierLinear(Linear):
    """A :class:`Linear` that starts Xavier-uniform with zero bias."""

    def reset_parameters(self) -> None:
        """Draw the weight anew, after the draws of ``nn.Linear``: a seed gives what it gave in the committed records."""
        super().reset_parameters()
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ZeroLinear(Linear):
    """A :class:`Linear` that starts at zero: AdaLN modulations and last layers (DiT's AdaLN-zero)."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero, after the draws of ``nn.Linear`` (see :class:`XavierLinear`)."""
        super().reset_parameters()
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ScaledLinear(Linear):
    """A :class:`Linear` that starts normal with a given standard deviation and zero bias."""

    def __init__(self, in_features: int, out_features: int, *, std: float) -> None:
        self.std = std
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Draw the weight anew."""
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Convolution(nn.Conv2d):
    """A convolution that starts He-normal with zero bias; its weights are cast to the dtype of the input at each call."""

    def reset_parameters(self) -> None:
        """Draw the weight anew."""
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, in_channels, h, w)`` to ``(n, out_channels, h', w')``, in the dtype of ``x``."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self._conv_forward(x, self.weight.to(x.dtype), bias)


class LearnedTable(nn.Module):
    """``rows`` learned vectors: positions, mask token, begin and end of image, timesteps, codebook.

    Args:
        rows: Vectors.
        dim: Numbers in each.
        std: Standard deviation at the start. Position tables need that of the features they are added to: at 0.02 beside
            features of order 1 a model with one shared RoPE position does not learn where anything is.
    """

    def __init__(self, rows: int, dim: int, *, std: float = 1.0) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(rows, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors anew."""
        nn.init.normal_(self.weight, std=self.std)

    def forward(self, index: Tensor) -> Tensor:
        """``(...)`` indices to ``(..., dim)`` vectors."""
        return nn.functional.embedding(index, self.weight)


def initialize_leaf(module: nn.Module) -> bool:
    """Start a module of this file as its class says; False for any other module."""
    if isinstance(module, XavierLinear | ZeroLinear | ScaledLinear | Convolution | LearnedTable):
        module.reset_parameters()
        return True
    return False
