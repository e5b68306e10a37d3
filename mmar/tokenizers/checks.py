"""What may enter and leave an image tokenizer. Every message ends with what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from diffparam import NonFiniteError

_TO_FLOAT = "8-bit images become floats by x / 127.5 - 1 (mmar.processing does it)"


class NonFiniteImages(NonFiniteError):
    """Images with a NaN or an infinity, in the pixels or in what was computed from them.

    Attributes:
        what: What was not finite.
        images: Indices in the batch.
    """

    def __init__(self, what: str, images: tuple[int, ...]) -> None:
        self.what, self.images = what, images
        shown = ", ".join(map(str, images[:8])) + (", ..." if len(images) > 8 else "")
        super().__init__(
            f"{what} must be finite, got NaN or infinity in {len(images)} of the batch (index {shown}); "
            "look at these images, and compute in float32 if it was a lower precision that overflowed"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.what, self.images))


def check_finite(what: str, x: Tensor) -> None:
    """Raise :class:`NonFiniteImages` that names the entries of the batch ``(batch, ...)`` which are not finite."""
    if not torch.isfinite(x).all():
        bad = ~torch.isfinite(x).flatten(1).all(1)  # (B,)
        raise NonFiniteImages(what, tuple(bad.nonzero().flatten().tolist()))


def check_pixels(pixels: Tensor, image_channels: int, image_size: int) -> None:
    """Raise unless ``pixels`` are finite floats in [-1, 1], up to 4 units of roundoff, of the tokenizer's shape."""
    _check_float("pixels", pixels, _TO_FLOAT)
    shape = (image_channels, image_size, image_size)
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != shape:
        raise ValueError(
            f"pixels must have shape (batch, {', '.join(map(str, shape))}), got {tuple(pixels.shape)}; "
            "resize and crop first, give one image a batch axis, and convert grey to RGB or RGB to grey"
        )
    check_finite("pixels", pixels)
    tolerance = 4 * max(torch.finfo(pixels.dtype).eps, torch.finfo(torch.float32).eps)
    if len(pixels) and float(pixels.abs().max()) > 1 + tolerance:
        low, high = pixels.aminmax()
        raise ValueError(f"pixels must lie in [-1, 1], got [{float(low):g}, {float(high):g}]; {_TO_FLOAT}")


def check_tokens(tokens: Tensor, count: int, channels: int) -> None:
    """Raise unless ``tokens`` are finite floats ``(batch, count, channels)``."""
    _check_float("tokens", tokens, "codes are decoded by decode_codes")
    if tokens.ndim != 3 or tuple(tokens.shape[1:]) != (count, channels):
        raise ValueError(
            f"tokens must have shape (batch, {count}, {channels}), got {tuple(tokens.shape)}; "
            "they are those of encode, in raster order"
        )
    check_finite("tokens", tokens)


def check_codes(codes: Tensor, count: int, codebook_size: int) -> None:
    """Raise unless ``codes`` are integers ``(batch, count)`` in ``[0, codebook_size)``."""
    if codes.dtype is not torch.long:
        raise TypeError(f"codes must be int64, got {codes.dtype}; vectors are decoded by decode")
    if codes.ndim != 2 or codes.shape[1] != count:
        raise ValueError(f"codes must have shape (batch, {count}), got {tuple(codes.shape)}; they are those of encode_codes")
    if len(codes) and (int(codes.min()) < 0 or int(codes.max()) >= codebook_size):
        raise ValueError(
            f"codes must lie in [0, {codebook_size}), got [{int(codes.min())}, {int(codes.max())}]; "
            "is a mask token among them, or were they drawn for another codebook?"
        )


def _check_float(name: str, x: Tensor, remedy: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}; convert with torch.as_tensor")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}; {remedy}")
