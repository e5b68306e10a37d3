"""A module that is never trained, and that computes in a precision of its own."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Self

import torch
from torch import Tensor, nn

from mmar.precision import autocast
from mmar.tokenizers.saved import digest


class FrozenModule(nn.Module):
    """Without gradient, and in evaluation mode even after ``train()``: batch norms must not learn from what is encoded.

    Args:
        network: The weights, or None; frozen in place, so pass a copy of a network that is still trained.
    """

    def __init__(self, network: nn.Module | None) -> None:
        super().__init__()
        self.network = network
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever ``mode``."""
        return super().train(False)

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the weights. Reads them all: about a second for 280 MB."""
        return digest(state=self.state_dict())

    def _weights_dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    def _as_weights(self, x: Tensor) -> Tensor:
        return x.to(self._weights_dtype())

    def _precision(self, dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[None]:
        """Autocast to ``dtype``, or protection from the autocast of whoever calls."""
        weights = self._weights_dtype()
        dtype = weights if dtype is None else dtype
        if dtype not in (weights, torch.bfloat16, torch.float16):
            raise ValueError(
                f"dtype must be {weights} (that of the weights), torch.bfloat16 or torch.float16, got {dtype}; "
                "for float32, load the weights in float32"
            )
        return autocast(device, dtype, enabled=dtype is not weights)
