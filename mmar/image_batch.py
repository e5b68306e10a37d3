"""The images of a batch, checked at the door."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmar.config import MMARConfig


@dataclass(frozen=True)
class ImageBatch:
    """Images in the order in which they appear in the rows of ``input_ids``, row by row.

    Attributes:
        tokens: ``(n, N, C)`` float values, or ``(n, N)`` long codes.
        known: ``(n, N)`` bool: which tokens the model may read.
        targets: ``(n,)`` bool: which images are generated, not only read.
        timesteps: ``(n,)`` long noise level of each image, for models that read noised images; None: as training or reading
            needs.
    """

    tokens: Tensor
    known: Tensor
    targets: Tensor
    timesteps: Tensor | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]


def image_batch(
    config: MMARConfig,
    per_row: Tensor,
    image_tokens: Tensor | None,
    known: Tensor | None = None,
    targets: Tensor | None = None,
    timesteps: Tensor | None = None,
) -> ImageBatch | None:
    """Check the images of a batch against the placeholders of its rows.

    Args:
        config: Of the model.
        per_row: ``(B,)`` images in each row of ``input_ids``.
        image_tokens: ``(n, N, C)`` or ``(n, N)``; or, grouped by row and padded at the end, ``(B, I, N, C)`` or ``(B, I, N)``.
        known: ``(n, N)`` bool; None: all.
        targets: ``(n,)`` bool; None: those of which a token is unknown.
        timesteps: ``(n,)`` long.

    Returns:
        None where there are no images.

    Raises:
        ValueError: If counts, shapes or values do not fit.
        TypeError: If dtypes do not fit.
    """
    count = int(per_row.sum())
    if image_tokens is None:
        if count:
            raise ValueError(f"image_tokens must be given for the {count} images of input_ids, got None; encode them first")
        return None
    tokens = _flat(config, per_row, image_tokens)
    if len(tokens) != count:
        raise ValueError(f"image_tokens must hold the {count} images of input_ids, got {len(tokens)}; one per image block")
    if not count:
        return None
    _check_values(config, tokens)
    shape = tokens.shape[:2]
    known = torch.ones(shape, dtype=torch.bool, device=tokens.device) if known is None else known
    _check(known, "known", shape, torch.bool)
    if not config.is_masked and not bool(known.all()):
        raise ValueError(
            f"known must be True everywhere for {config.image_objective!r}, got False; only masked ones mask tokens"
        )
    targets = ~known.all(-1) if targets is None else targets
    _check(targets, "targets", shape[:1], torch.bool)
    if bool((~known.all(-1) & ~targets).any()):
        raise ValueError("targets must be True for images with unknown tokens, got False; an image that is read is known")
    if timesteps is not None:
        if config.image_objective != "whole_image_diffusion" and not config.noised_context:
            raise ValueError(
                f"timesteps must be None for {config.image_objective!r}, which reads clean images; whole_image_diffusion and "
                "noised_context have them"
            )
        _check(timesteps, "timesteps", shape[:1], torch.int64)
    return ImageBatch(tokens, known, targets, timesteps)


def _flat(config: MMARConfig, per_row: Tensor, image_tokens: Tensor) -> Tensor:
    image = config.image_config
    event: tuple[int, ...] = (image.count,) if config.has_codes else (image.count, image.channels)
    if image_tokens.ndim not in (len(event) + 1, len(event) + 2) or image_tokens.shape[-len(event) :] != event:
        raise ValueError(
            f"image_tokens must have shape (images, {', '.join(map(str, event))}), got {tuple(image_tokens.shape)}; "
            f"they come from the image tokenizer {image.tokenizer!r} at {image.image_size} pixels"
        )
    if image_tokens.ndim == len(event) + 1:
        return image_tokens
    filled = torch.arange(image_tokens.shape[1], device=per_row.device)[None] < per_row[:, None]
    if image_tokens.shape[:2] != (len(per_row), int(per_row.max())):
        raise ValueError(
            f"image_tokens must hold the images of {len(per_row)} rows, up to {int(per_row.max())} in a row, "
            f"got {tuple(image_tokens.shape[:2])}"
        )
    return image_tokens[filled.to(image_tokens.device)]


def _check_values(config: MMARConfig, tokens: Tensor) -> None:
    if config.has_codes:
        size = config.image_config.codebook_size
        if tokens.is_floating_point():
            raise TypeError(f"image_tokens must be codes (int64) for {config.image_objective!r}, got {tokens.dtype}")
        if int(tokens.min()) < 0 or int(tokens.max()) >= size:
            raise ValueError(f"image_tokens must lie in 0..{size - 1}, got {int(tokens.min())}..{int(tokens.max())}")
    elif not tokens.is_floating_point():
        raise TypeError(f"image_tokens must be floating point for {config.image_objective!r}, got {tokens.dtype}; scale them")
    elif not bool(tokens.isfinite().all()):
        raise ValueError("image_tokens must be finite, got NaN or infinity; look at the images and the image tokenizer")


def _check(value: Tensor, name: str, shape: torch.Size, dtype: torch.dtype) -> None:
    if value.shape != shape or value.dtype != dtype:
        raise ValueError(f"{name} must be {dtype} of shape {tuple(shape)}, got {value.dtype} of shape {tuple(value.shape)}")
