"""Timesteps and noise of a training batch, from one generator or from one per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None
"""One source for a batch, or one per image: then an image meets the same noise in every batch, on every number of ranks."""


@dataclass(frozen=True)
class NoiseDraws:
    """What a batch is noised with.

    Attributes:
        index: ``(rows,)`` long: indices into the timesteps of a schedule, uniform.
        eps: ``(rows, C)`` standard normal, float32.
    """

    index: Tensor
    eps: Tensor


def check_generators(generator: Generators, images: int) -> None:
    """Refuse a sequence of another length than there are images.

    Raises:
        ValueError: With both numbers.
    """
    if isinstance(generator, Sequence) and len(generator) != images:
        raise ValueError(f"generator must be one, or one for each of the {images} images, got {len(generator)}")


def draw_noise(steps: int, rows: int, channels: int, generator: torch.Generator | None = None) -> NoiseDraws:
    """Uniform indices below ``steps``, then noise, from one source on the CPU."""
    index = torch.randint(steps, (rows,), generator=generator)  # (rows,)
    return NoiseDraws(index, torch.randn(rows, channels, generator=generator))


def draw_noise_per_image(steps: int, rows: Sequence[int], channels: int, generators: Sequence[torch.Generator]) -> NoiseDraws:
    """The same, each image's rows from its own source.

    Args:
        steps: Of the schedule.
        rows: Of each image.
        channels: Numbers per row.
        generators: One per image.

    Raises:
        ValueError: If there are not as many generators as images.
    """
    check_generators(generators, len(rows))
    drawn = [draw_noise(steps, n, channels, source) for n, source in zip(rows, generators, strict=True)]
    return NoiseDraws(torch.cat([d.index for d in drawn]), torch.cat([d.eps for d in drawn]))


def draw_image_noise(shape: torch.Size, generator: Generators = None) -> tuple[Tensor, Tensor]:
    """One noise level for each image: ``(n,)`` float64 uniform in [0, 1), and noise of ``shape (n, ...)``, on the CPU."""
    if not isinstance(generator, Sequence):
        return torch.rand(shape[0], generator=generator, dtype=torch.float64), torch.randn(shape, generator=generator)
    uniforms = [torch.rand((), generator=source, dtype=torch.float64) for source in generator]
    return torch.stack(uniforms), torch.stack([torch.randn(shape[1:], generator=source) for source in generator])
