"""Which tokens of an image are masked in training (paper section 3.3.3 and figure 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from mmar.noise_draws import Generators, check_generators


@dataclass(frozen=True)
class MaskRatio:
    """The density of the share of masked tokens.

    Attributes:
        shape: truncated_normal (MAR: mean 1, width 0.25), cosine (the shares that a cosine decoding visits) or uniform.
        low: Smallest share.
        high: Largest share.
        width: Standard deviation of the normal before truncation.

    The paper gives [0.7, 1] for stage 1 and (0, 1] for stage 2; the curve of its figure 2 is not legible, so stage 2 is cosine
    here, and the others are options.
    """

    shape: Literal["truncated_normal", "cosine", "uniform"] = "truncated_normal"
    low: float = 0.7
    high: float = 1.0
    width: float = 0.25

    def __post_init__(self) -> None:
        if self.shape not in ("truncated_normal", "cosine", "uniform"):
            raise ValueError(f"shape must be truncated_normal, cosine or uniform, got {self.shape!r}")
        if not 0.0 <= self.low < self.high <= 1.0:
            raise ValueError(f"low and high must satisfy 0 <= low < high <= 1, got {self.low} and {self.high}")
        if not self.width > 0:
            raise ValueError(f"width must be positive, got {self.width}")

    @classmethod
    def stage1(cls) -> MaskRatio:
        """Truncated normal on [0.7, 1]: image expert pretraining."""
        return cls()

    @classmethod
    def stage2(cls) -> MaskRatio:
        """Cosine on (0, 1]: image expert fine-tuning."""
        return cls("cosine", 0.0, 1.0)

    def quantile(self, p: float) -> float:
        """The share below which a part ``p`` of the draws lies."""
        if self.shape == "uniform":
            return self.low + p * (self.high - self.low)
        if self.shape == "cosine":
            lowest, highest = math.acos(self.high), math.acos(self.low)
            return math.cos(highest + p * (lowest - highest))
        return float(self._normal().ppf(p))

    def density(self, ratio: np.ndarray) -> np.ndarray:
        """Probability density at ``ratio``; 0 outside [low, high]."""
        ratio = np.asarray(ratio, dtype=np.float64)
        inside = (ratio >= self.low) & (ratio <= self.high)
        if self.shape == "uniform":
            values = np.full_like(ratio, 1.0 / (self.high - self.low))
        elif self.shape == "cosine":
            angle = math.acos(self.low) - math.acos(self.high)
            with np.errstate(divide="ignore", invalid="ignore"):  # the density is infinite at 1
                values = 1.0 / (angle * np.sqrt(1.0 - ratio**2))
        else:
            values = self._normal().pdf(ratio)
        return np.where(inside, values, 0.0)

    def sample(self, generator: torch.Generator | None = None) -> float:
        """One share."""
        return self.quantile(float(torch.rand((), generator=generator, dtype=torch.float64)))

    def _normal(self) -> stats.rv_continuous:
        return stats.truncnorm((self.low - 1.0) / self.width, (self.high - 1.0) / self.width, loc=1.0, scale=self.width)


def masked_count(ratio: float, tokens: int) -> int:
    """Masked tokens of ``tokens`` at a share: rounded up, at least one."""
    return min(tokens, max(1, math.ceil(ratio * tokens)))


def draw_known(images: int, tokens: int, ratio: float, generator: Generators = None) -> Tensor:
    """``(images, tokens)`` bool, True where known: another set for each image, of one size for all.

    One share per micro-batch keeps EmbeddingViT dense; draw it with the same seed on all ranks to balance their load. The
    sets come from one generator, or from one per image.
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"ratio must lie in [0, 1], got {ratio}; it comes from MaskRatio.sample")
    check_generators(generator, images)
    if isinstance(generator, Sequence):
        uniform = torch.stack([torch.rand(tokens, generator=source) for source in generator])
    else:
        uniform = torch.rand(images, tokens, generator=generator)
    rank = uniform.argsort(-1).argsort(-1)  # (images, tokens): a random order
    return rank >= masked_count(ratio, tokens)
