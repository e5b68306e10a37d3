"""Which tokens of an image a painted mask touches."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

PixelMask = Image.Image | np.ndarray | Tensor
"""``(H, W)``, white, True or 1 where to paint anew."""


def painted_pixels(mask: PixelMask) -> Tensor:
    """The pixels to paint anew.

    Args:
        mask: A Pillow image (turned upright by its EXIF tag), an array or a tensor ``(H, W)`` of bools or numbers. Painted is
            what is at least half of white: 128 of 255 for whole numbers, 0.5 of 1 for floats.

    Returns:
        ``(H, W)`` bool.

    Raises:
        TypeError: If the mask is something else.
        ValueError: If it has another shape or values out of range.
    """
    if isinstance(mask, Image.Image):
        mask = np.array(ImageOps.exif_transpose(mask).convert("L"))
    if not isinstance(mask, np.ndarray | Tensor):
        raise TypeError(f"mask must be a Pillow image, an array or a tensor, got {type(mask).__name__}")
    values = torch.as_tensor(mask).cpu()
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"mask must have shape (H, W), got {tuple(values.shape)}; one plane, without a batch axis")
    if values.dtype is torch.bool:
        return values
    low, high, white = float(values.min()), float(values.max()), 1 if values.is_floating_point() else 255
    if not (low >= 0 and high <= white):  # also where one is NaN
        raise ValueError(f"mask must lie in 0..{white} for {values.dtype}, got {low:g}..{high:g}; or give bools")
    return values >= white / 2


def check_size(painted: Tensor, image: Image.Image | np.ndarray) -> None:
    """Raise a ValueError unless mask and image are of one size: only then are they cropped alike."""
    shape = ImageOps.exif_transpose(image).size[::-1] if isinstance(image, Image.Image) else tuple(image.shape)
    if tuple(painted.shape) not in (shape[:2], shape[-2:]):
        raise ValueError(f"mask must have the height and width of the image, got {tuple(painted.shape)} beside {shape}")


def touched_tokens(painted: Tensor, grid: int) -> Tensor:
    """Tokens of which at least one pixel is painted: a token is drawn as a whole.

    Args:
        painted: ``(H, W)`` bool of the size of the original image. It is cropped to the centred square, as the image processor
            crops the image; tokens at the edge of a cell that falls between pixels share these pixels.
        grid: Tokens per side.

    Returns:
        ``(grid * grid,)`` bool, raster order.

    Raises:
        ValueError: If nothing is painted there, or the square has fewer pixels than tokens a side.
    """
    height, width = painted.shape
    side = min(height, width)
    if side < grid:
        raise ValueError(f"mask must have at least {grid} pixels a side, one per token, got {width} x {height}")
    top, left = (height - side) // 2, (width - side) // 2
    square = painted[top : top + side, left : left + side].float()
    tokens = functional.adaptive_max_pool2d(square[None], grid)[0] > 0  # (grid, grid)
    if not bool(tokens.any()):
        raise ValueError("mask must be painted within the centred square, got nothing there; white or True is drawn anew")
    return tokens.flatten()
