"""Scenes to pixels, with soft edges, the same bits on every machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image

from mmar.data.scenes.font import bitmap
from mmar.data.scenes.scene import Scene
from mmar.data.scenes.vocabulary import BACKGROUNDS, COLOURS, INKS, UNITS

_SAMPLES = 8
"""Per pixel and axis. Coverage is then a multiple of 1/64, exact in binary, and so are the blended values."""

_INSIDE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: x * x + y * y <= 1.0,
    "square": lambda x, y: np.ones_like(x * y, dtype=bool),
    "triangle": lambda x, y: 2.0 * abs(x) <= y + 1.0,
    "cross": lambda x, y: 3.0 * np.minimum(abs(x), abs(y)) <= 1.0,
    "ring": lambda x, y: (x * x + y * y <= 1.0) & (x * x + y * y >= 0.25),
    "moon": lambda x, y: (x * x + y * y <= 1.0) & ((x - 0.5625) ** 2 + y * y >= 0.5),
    "bar": lambda x, y: 3.0 * abs(y) <= 1.0 + 0.0 * x,
}
"""In a box from -1 to 1, x to the right, y downwards."""


def draw(scene: Scene, size: int = UNITS) -> Image.Image:
    """The scene as an RGB image.

    Args:
        scene: What to draw.
        size: Side, pixels; a multiple of 32.

    Raises:
        ValueError: If the size is no multiple of 32.
    """
    return Image.fromarray(pixels(scene, size))


def pixels(scene: Scene, size: int = UNITS) -> np.ndarray:
    """The scene as ``(size, size, 3)`` uint8; see :func:`draw`."""
    check_size(size)
    scale = size // UNITS
    image = np.empty((size, size, 3), dtype=np.uint8)
    image[:] = BACKGROUNDS[scene.background]
    for o in scene.objects:
        side, top, left = o.side * scale, o.top * scale, o.left * scale
        image[top : top + side, left : left + side] = _object_block(o.colour, o.shape, scene.background, side)
    if scene.glyph is not None:
        block = _glyph_block(scene.glyph.character, scene.background, scale)
        top, left = scene.glyph.top * scale, scene.glyph.left * scale
        image[top : top + block.shape[0], left : left + block.shape[1]] = block
    return image


def check_size(size: int) -> None:
    """Refuse sides on which a unit is no whole number of pixels.

    Raises:
        ValueError: If the size is no multiple of 32.
    """
    if size < UNITS or size % UNITS:
        raise ValueError(f"size must be a multiple of {UNITS} pixels, got {size}; draw larger and resize for other sizes")


@lru_cache(maxsize=256)
def coverage(shape: str, side: int) -> np.ndarray:
    """The share of each pixel that a shape covers, ``(side, side)`` float64, read-only."""
    n = side * _SAMPLES
    at = (2.0 * np.arange(n) + 1.0) / n - 1.0
    inside = _INSIDE[shape](at[None, :], at[:, None])
    mask = inside.reshape(side, _SAMPLES, side, _SAMPLES).mean((1, 3))
    mask.flags.writeable = False
    return mask


@lru_cache(maxsize=1024)
def _object_block(colour: str, shape: str, background: str, side: int) -> np.ndarray:
    return _blend(coverage(shape, side), COLOURS[colour], BACKGROUNDS[background])


@lru_cache(maxsize=256)
def _glyph_block(character: str, background: str, scale: int) -> np.ndarray:
    ink = bitmap(character).repeat(scale, 0).repeat(scale, 1)
    return _blend(ink.astype(np.float64), INKS[background], BACKGROUNDS[background])


def _blend(mask: np.ndarray, colour: tuple[int, int, int], background: tuple[int, int, int]) -> np.ndarray:
    """``(h, w, 3)`` uint8, read-only."""
    under, over = np.array(background, dtype=np.float64), np.array(colour, dtype=np.float64)
    block = (under + mask[..., None] * (over - under)).round().astype(np.uint8)
    block.flags.writeable = False
    return block
