"""What a picture of a scene shows, read back from its pixels: the examiner of generated images.

The picture is explained object by object: of all shapes, sizes, places and colours the one that takes most squared error off
the picture comes first, then its surroundings count as explained, and so on. Matched filters are the best linear detectors in
white noise, so noisy pictures are read as well; a real generator's flaws are milder than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from mmar.data.scenes.drawing import check_size, coverage
from mmar.data.scenes.font import CHARACTERS, HEIGHT, WIDTH, bitmap
from mmar.data.scenes.scene import Glyph, SceneObject
from mmar.data.scenes.vocabulary import BACKGROUNDS, COLOURS, INKS, SHAPES, SIZES, UNITS

STRENGTH = (0.5, 1.25)
"""How strongly an object may stand out from the background, 1 as drawn; fainter ones are no objects."""

LIKENESS = 0.6
"""Smallest correlation of an object with what was drawn, over its box."""

MOST_THINGS = 9
"""After so many a picture is not searched further."""

_COLOURS, _SIZES = tuple(COLOURS), tuple(SIZES)


@dataclass(frozen=True)
class Detection:
    """What was found.

    Attributes:
        background: The nearest of the backgrounds.
        objects: In the order in which they explain the picture; any number.
        glyph: The printed character, or None.
        likeness: For each object the correlation of its pixels with what was drawn, at most 1.
    """

    background: str
    objects: tuple[SceneObject, ...]
    glyph: Glyph | None
    likeness: tuple[float, ...]


@dataclass(frozen=True)
class _Match:
    gain: float
    strength: float
    colour: np.ndarray
    mask: np.ndarray
    thing: SceneObject | Glyph


def detect(image: Image.Image | np.ndarray) -> Detection:
    """The objects of a picture.

    Args:
        image: RGB Pillow image or ``(S, S, 3)`` uint8, S a multiple of 32. It is reduced to 32 pixels, where a unit of the
            scene is a pixel; places are found to a unit.

    Raises:
        ValueError: If the image is not a square of RGB pixels, or S is no multiple of 32.
        TypeError: If it has another dtype.
    """
    units = _reduced(image)
    ground = np.median(units, axis=(0, 1))  # objects cover less than half of a scene
    background = _nearest(ground)
    rest = units - ground
    objects: list[SceneObject] = []
    likeness: list[float] = []
    glyph: Glyph | None = None
    for _ in range(MOST_THINGS):
        match = _best(rest, ground, background)
        if match is None:
            break
        likelihood = _likeness(rest, match)
        if likelihood >= LIKENESS and isinstance(match.thing, SceneObject):
            objects.append(match.thing)
            likeness.append(likelihood)
        elif likelihood >= LIKENESS and glyph is None and isinstance(match.thing, Glyph):
            glyph = match.thing
        _explain(rest, match.thing)
    return Detection(background, tuple(objects), glyph, tuple(likeness))


def _reduced(image: Image.Image | np.ndarray) -> np.ndarray:
    """``(32, 32, 3)`` float64 in [0, 1], means of blocks of pixels."""
    if isinstance(image, Image.Image) and image.mode != "RGB":
        raise ValueError(f"mode of the image must be RGB, got {image.mode}; convert it")
    values = np.asarray(image)
    if values.ndim != 3 or values.shape[0] != values.shape[1] or values.shape[2] != 3:
        raise ValueError(f"image must be a square of RGB pixels, got shape {values.shape}")
    if values.dtype != np.uint8:
        raise TypeError(f"dtype of the image must be uint8, got {values.dtype}; MMARImageProcessor.to_pil makes 8-bit images")
    check_size(values.shape[0])
    scale = values.shape[0] // UNITS
    return values.reshape(UNITS, scale, UNITS, scale, 3).mean((1, 3)) / 255.0


def _nearest(ground: np.ndarray) -> str:
    return min(BACKGROUNDS, key=lambda name: float(((np.array(BACKGROUNDS[name]) / 255.0 - ground) ** 2).sum()))


def _best(rest: np.ndarray, ground: np.ndarray, background: str) -> _Match | None:
    """The thing that explains most of ``rest (32, 32, 3)``, the picture less its background."""
    found = [_best_object(rest, ground, size) for size in _SIZES] + [_best_glyph(rest, ground, background)]
    return max((match for match in found if match is not None), key=lambda match: match.gain, default=None)


def _best_object(rest: np.ndarray, ground: np.ndarray, size: str) -> _Match | None:
    masks = _shape_masks(SIZES[size])
    colours = np.array([COLOURS[name] for name in _COLOURS]) / 255.0 - ground  # (C, 3)
    gain, (strength, colour, shape, top, left) = _filtered(rest, masks, colours)
    if gain <= 0:
        return None
    thing = SceneObject(_COLOURS[colour], SHAPES[shape], size, left, top)
    return _Match(gain, strength, colours[colour], masks[shape], thing)


def _best_glyph(rest: np.ndarray, ground: np.ndarray, background: str) -> _Match | None:
    masks = _glyph_masks()
    ink = np.array([INKS[background]]) / 255.0 - ground  # (1, 3)
    gain, (strength, _, character, top, left) = _filtered(rest, masks, ink)
    return _Match(gain, strength, ink[0], masks[character], Glyph(CHARACTERS[character], left, top)) if gain > 0 else None


def _filtered(rest: np.ndarray, masks: np.ndarray, colours: np.ndarray) -> tuple[float, tuple[float, int, int, int, int]]:
    r"""Where, as what and in which colour ``a mask colour`` explains most.

    .. math:: \|d\|^2 - \|d - a\,m c\|^2 = 2 a\, \langle d, m c \rangle - a^2 \|m\|^2 \|c\|^2

    is largest at :math:`a = \langle d, m c \rangle / (\|m\|^2 \|c\|^2)`, which is kept within :data:`STRENGTH`.

    Args:
        rest: ``(32, 32, 3)``.
        masks: ``(M, h, w)``.
        colours: ``(C, 3)``, less the background.

    Returns:
        The gain, 0 where all are too faint, and ``a``, colour, mask, top, left.
    """
    windows = sliding_window_view(rest, masks.shape[1:], axis=(0, 1))  # (H, W, 3, h, w)
    planes = np.tensordot(windows, masks, axes=([3, 4], [1, 2]))  # (H, W, 3, M)
    overlap = np.einsum("hwkm,ck->cmhw", planes, colours)  # (C, M, H, W)
    energy = (colours**2).sum(1)[:, None] * (masks**2).sum((1, 2))  # (C, M)
    energy = np.maximum(energy, 1e-12)[..., None, None]
    strength = np.clip(overlap / energy, *STRENGTH)
    gains = np.where(overlap >= STRENGTH[0] * energy, (2.0 * overlap - strength * energy) * strength, 0.0)
    at = np.unravel_index(int(gains.argmax()), gains.shape)
    colour, mask, top, left = (int(i) for i in at)
    return float(gains[at]), (float(strength[at]), colour, mask, top, left)


def _likeness(rest: np.ndarray, match: _Match) -> float:
    """Cosine between the pixels of the box and what is drawn there."""
    left, top, width, height = match.thing.box
    patch = rest[top : top + height, left : left + width]
    drawn = match.mask[..., None] * match.colour
    return float((patch * drawn).sum() / np.sqrt((patch**2).sum() * (drawn**2).sum()))


def _explain(rest: np.ndarray, thing: SceneObject | Glyph) -> None:
    """Nothing is left in and around a box: two things lie two units apart."""
    left, top, width, height = thing.box
    rest[max(0, top - 1) : top + height + 1, max(0, left - 1) : left + width + 1] = 0.0


@lru_cache(maxsize=4)
def _shape_masks(side: int) -> np.ndarray:
    """``(shapes, side, side)``."""
    return np.stack([coverage(shape, side) for shape in SHAPES])


@lru_cache(maxsize=1)
def _glyph_masks() -> np.ndarray:
    """``(characters, 7, 5)``."""
    masks = np.stack([bitmap(character) for character in CHARACTERS]).astype(np.float64)
    return masks.reshape(len(CHARACTERS), HEIGHT, WIDTH)
