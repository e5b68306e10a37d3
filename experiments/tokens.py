"""Continuous tokens with conditions: what a diffusion head is trained on.

Digits here; the hidden states and latents of a language model fit the same three tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Tokens to model, each with its condition.

    Attributes:
        tokens: ``(count, D)`` float32, of zero mean and unit standard deviation over the training split.
        z: Conditions ``(count, C)`` float32.
        labels: Classes ``(count,)`` int64.
        mean: What was subtracted, in pixel units.
        scale: What was divided by, in pixel units.
    """

    tokens: Tensor
    z: Tensor
    labels: Tensor
    mean: float
    scale: float

    def __len__(self) -> int:
        return len(self.tokens)

    def to_pixels(self, tokens: Tensor) -> Tensor:
        """Tokens in the units of the scans, 0 (blank) to 16 (ink), not clipped."""
        return tokens.double() * self.scale + self.mean


def digits(*, held_out: int = 600) -> tuple[TokenSet, TokenSet]:
    """scikit-learn's 1797 handwritten digit scans, each 8 x 8 image one token of 64 channels, its class one-hot as z.

    Args:
        held_out: Size of the second split, stratified by class; the split never changes.

    Returns:
        Training split and held-out split, both normalised by the scalar mean and standard deviation of the first.
    """
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels, labels, test_size=held_out, stratify=labels, random_state=0)
    train, test, train_labels, test_labels = (torch.as_tensor(part) for part in parts)
    mean, scale = train.mean().item(), train.std(correction=0).item()

    def normalised(x: Tensor, y: Tensor) -> TokenSet:
        return TokenSet(((x - mean) / scale).float(), functional.one_hot(y, 10).float(), y, mean, scale)

    return normalised(train, train_labels), normalised(test, test_labels)
