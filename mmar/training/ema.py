"""Exponential moving average of the trained parameters (paper section 4.2: 0.9999)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mmar.training.sharding import like, own_part


class ExponentialMovingAverage:
    """A float32 shadow of what is trained.

    In bf16 a shadow at 0.9999 would lose every update: 1e-4 of a number is less than half its last digit (2^-9). The decay
    warms up as (1 + n) / (10 + n), so that short runs do not average their first random weights. Where parameters are shards,
    so is their average.

    Args:
        model: Its trainable parameters are followed, by name.
        decay: Of a long run.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}; 0 keeps the last parameters")
        self.decay, self.updates = decay, 0
        self.shadow = {n: p.detach().float().clone() for n, p in model.named_parameters() if p.requires_grad}

    def decay_now(self) -> float:
        """Of the next update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the shadow towards the parameters."""
        current = [own_part(p.detach()) for n, p in model.named_parameters() if n in self.shadow]
        weight = 1 - self.decay_now()
        shadow = [own_part(value) for value in self.shadow.values()]
        torch._foreach_lerp_(shadow, [p.float() for p in current], weight)
        self.updates += 1

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within it the model has the averaged parameters; afterwards its own again, to the bit."""
        parameters = {n: p for n, p in model.named_parameters() if n in self.shadow}
        own = {n: p.detach().clone() for n, p in parameters.items()}
        try:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(self.shadow[name])
            yield
        finally:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(own[name])

    def load(self, shadow: dict[str, Tensor], updates: int) -> None:
        """Take up a saved average.

        Raises:
            ValueError: If it is of other parameters.
        """
        if set(shadow) != set(self.shadow):
            different = sorted(set(shadow) ^ set(self.shadow))
            raise ValueError(
                f"shadow must have the trainable parameters of the model, got differences: {', '.join(different[:4])}"
            )
        for name, value in shadow.items():
            self.shadow[name].copy_(like(self.shadow[name], value))
        self.updates = updates
