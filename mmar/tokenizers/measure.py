"""Measuring the moments of latents, in one pass over the images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from mmar.tokenizers.base import ImageTokenizer
from mmar.tokenizers.checks import NonFiniteImages
from mmar.tokenizers.latent_statistics import LatentStatistics
from mmar.tokenizers.scale import LatentScale

NOT_FINITE = "not finite"
"""Reason for skipping."""


class RunningMoments:
    """Mean and covariance of rows that arrive in parts, in float64, merged without cancellation (Chan et al. 1979)."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)  # (D,)
        self._products = torch.zeros(dim, dim, dtype=torch.float64)  # (D, D), of deviations from the mean

    def update(self, rows: Tensor) -> None:
        """Add ``(rows, dim)``."""
        rows = rows.detach().cpu().double()
        mean = rows.mean(0)  # (D,)
        deviation, delta = rows - mean, mean - self.mean
        total = self.count + len(rows)
        self._products += deviation.T @ deviation + torch.outer(delta, delta) * (self.count * len(rows) / total)
        self.mean += delta * (len(rows) / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """``(dim, dim)``, divided by the count."""
        return self._products / self.count


def measure_latents(
    tokenizer: ImageTokenizer,
    images: Iterable[Tensor],
    *,
    sample: bool = True,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    non_finite: Literal["refuse", "skip"] = "refuse",
) -> LatentStatistics:
    """Moments of the unscaled latents of images.

    Args:
        tokenizer: Whose latents; its present scale plays no part.
        images: Batches ``(batch, image_channels, image_size, image_size)`` in [-1, 1].
        sample: Draw from the posterior, as generation targets are drawn.
        generator: Source of these draws.
        dtype: What the tokenizer computes in.
        non_finite: What to do with images whose pixels or latents are not finite: raise, or leave out and count.

    Raises:
        NonFiniteImages: If an image is not finite and ``non_finite`` is refuse.
        ValueError: If no image is left, or all latents are equal.
    """
    unscaled = tokenizer.with_scale(LatentScale())
    channels, per_image = RunningMoments(tokenizer.channels), RunningMoments(2)
    skipped = 0
    for pixels in images:
        good, z = _encode_finite(unscaled, pixels, sample, generator, dtype, skip=non_finite == "skip")
        skipped += len(pixels) - len(good)
        if not len(z):
            continue
        channels.update(z.flatten(0, 1))
        flat = z.flatten(1).cpu().double()  # (B, N C)
        per_image.update(torch.stack([flat.mean(1), flat.square().mean(1)], dim=1))
    if per_image.count == 0:
        raise ValueError(f"images must hold at least one finite image, got none and skipped {skipped}")
    return _statistics(channels, per_image, skipped, sample, unscaled.identity)


def _encode_finite(
    tokenizer: ImageTokenizer,
    pixels: Tensor,
    sample: bool,
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
    *,
    skip: bool,
) -> tuple[Tensor, Tensor]:
    """The images that are finite with finite latents, and the latents."""
    while True:
        try:
            return pixels, tokenizer.encode(pixels, sample=sample, generator=generator, dtype=dtype)
        except NonFiniteImages as error:
            if not skip:
                raise
            keep = torch.ones(len(pixels), dtype=torch.bool)
            keep[list(error.images)] = False
            pixels = pixels[keep.to(pixels.device)]


def _statistics(
    channels: RunningMoments, per_image: RunningMoments, skipped: int, sampled: bool, identity: str
) -> LatentStatistics:
    mean = float(channels.mean.mean())
    within = channels.covariance.diagonal()  # (C,)
    std = math.sqrt(float(within.mean() + (channels.mean - mean).square().mean()))
    if std == 0:
        raise ValueError("latents must differ from each other, but all are equal; are all images the same single colour?")
    # The variance is E q - (E s)^2, s the mean of an image and q its mean square: what one image adds to it is q - 2 (E s) s.
    gradient = torch.tensor([-2 * float(per_image.mean[0]), 1.0], dtype=torch.float64)
    variance_error = _standard_error(per_image, gradient)
    return LatentStatistics(
        count=per_image.count,
        skipped={NOT_FINITE: skipped} if skipped else {},
        mean=mean,
        std=std,
        mean_standard_error=_standard_error(per_image, torch.tensor([1.0, 0.0], dtype=torch.float64)),
        std_standard_error=None if variance_error is None else variance_error / (2 * std),
        channel_mean=tuple(channels.mean.tolist()),
        channel_std=tuple(within.sqrt().tolist()),
        sampled=sampled,
        tokenizer=identity,
    )


def _standard_error(moments: RunningMoments, gradient: Tensor) -> float | None:
    """Of the mean of ``gradient . row``; None where one row tells nothing."""
    if moments.count < 2:
        return None
    variance = float(gradient @ moments.covariance @ gradient) / (moments.count - 1)
    return math.sqrt(max(0.0, variance))  # rounding can leave a zero slightly negative
