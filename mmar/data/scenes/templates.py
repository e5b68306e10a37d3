"""What each thing looks like around the middle of a small window: at half units and out of focus as well."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from mmar.data.scenes.drawing import coverage
from mmar.data.scenes.font import CHARACTERS, bitmap
from mmar.data.scenes.vocabulary import SHAPES, SIZES

WINDOW = 13
"""Units: a large object, half a unit or so beside the middle, and its surroundings."""

BLURS = (0.0, 0.5, 1.0)
"""Standard deviations, units. Decoders of latents lose focus; at 1 small rings have lost their holes."""

_OFFSETS = tuple(half / 2 for half in range(-3, 4))
"""Of centres from the middle of the window, units, along each axis."""


@dataclass(frozen=True)
class Templates:
    """Pictures of things and what they show, entry by entry.

    Attributes:
        masks: ``(M, 13, 13)`` float64 in [0, 1], the share of each pixel that a thing covers.
        names: Shape or character.
        sizes: small or large; empty for characters.
        corners: ``(M, 2)``, left and upper edge of the box in the window, multiples of 1/2.
    """

    masks: np.ndarray
    names: tuple[str, ...]
    sizes: tuple[str, ...]
    corners: np.ndarray


@lru_cache(maxsize=1)
def shape_templates() -> Templates:
    """All shapes in both sizes."""
    return _templates([(shape, size, coverage(shape, 2 * side)) for size, side in SIZES.items() for shape in SHAPES])


@lru_cache(maxsize=1)
def glyph_templates() -> Templates:
    """All characters."""
    return _templates([(name, "", bitmap(name).repeat(2, 0).repeat(2, 1).astype(np.float64)) for name in CHARACTERS])


def _templates(things: list[tuple[str, str, np.ndarray]]) -> Templates:
    """From masks of two pixels a unit."""
    masks, names, sizes, corners = [], [], [], []
    for name, size, mask in things:
        for dy in _OFFSETS:
            for dx in _OFFSETS:
                left, top = (WINDOW / 2 - mask.shape[1] / 4 + dx, WINDOW / 2 - mask.shape[0] / 4 + dy)
                masks += _placed(mask, round(2 * left), round(2 * top))
                names += [name] * len(BLURS)
                sizes += [size] * len(BLURS)
                corners += [(left, top)] * len(BLURS)
    return Templates(np.stack(masks), tuple(names), tuple(sizes), np.array(corners))


def _placed(mask: np.ndarray, left: int, top: int) -> list[np.ndarray]:
    """The mask in a window, one ``(13, 13)`` for each blur."""
    window = np.zeros((2 * WINDOW, 2 * WINDOW))
    window[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    blurred = [gaussian_filter(window, 2 * blur) if blur else window for blur in BLURS]
    return [picture.reshape(WINDOW, 2, WINDOW, 2).mean((1, 3)) for picture in blurred]
