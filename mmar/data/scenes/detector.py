"""What a picture of a scene shows, read back from its pixels: the examiner of generated images.

The picture is explained thing by thing. A search over all shapes, sizes, colours and whole units finds what takes most squared
error off the picture; a closer look around it compares half units and blurred versions as well; then the surroundings count
as explained. Matched filters are the best linear detectors in white noise, so noisy pictures are read too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from mmar.data.scenes.drawing import check_size, coverage
from mmar.data.scenes.font import CHARACTERS, bitmap
from mmar.data.scenes.scene import Box, Glyph, SceneObject
from mmar.data.scenes.templates import WINDOW, Templates, glyph_templates, shape_templates
from mmar.data.scenes.vocabulary import BACKGROUNDS, COLOURS, INKS, SHAPES, SIZES, UNITS

FAINTEST = 0.5
"""Least contrast of a thing, 1 as drawn."""

STRONGEST = 1.25
"""Contrasts above this count as this."""

LIKENESS = 0.75
"""Least correlation of a thing with what was drawn, over its box."""

_FAINTEST_AT_FIRST = 0.3
"""Out of focus or half a unit beside a mask, a thing seems fainter than it is."""

_MOST_LOOKS = 12
_PAD = WINDOW // 2 + 1


@dataclass(frozen=True)
class Detection:
    """What was found, the most conspicuous first.

    Attributes:
        background: The nearest of the backgrounds.
        objects: Any number; places are rounded to whole units.
        glyphs: Printed characters.
        unclear: How many things stand out that are like nothing that can be drawn.
    """

    background: str
    objects: tuple[SceneObject, ...]
    glyphs: tuple[Glyph, ...]
    unclear: int


@dataclass(frozen=True)
class _Match:
    gain: float
    likeness: float
    thing: SceneObject | Glyph


@dataclass(frozen=True)
class _Best:
    """The entry of a bank of masks, and the colour, that take most squared error off."""

    gain: float
    mask: int
    colour: int


def detect(image: Image.Image | np.ndarray) -> Detection:
    """The objects of a picture.

    Args:
        image: RGB Pillow image or ``(S, S, 3)`` uint8, S a multiple of 32. It is reduced to 32 pixels, where a pixel is a unit.

    Raises:
        ValueError: If the image is not a square of RGB pixels, or S is no multiple of 32.
        TypeError: If it has another dtype.
    """
    units = _reduced(image)
    ground = np.median(units, axis=(0, 1))  # things cover less than half of a scene
    background = min(BACKGROUNDS, key=lambda name: float(((_unit(BACKGROUNDS[name]) - ground) ** 2).sum()))
    palette = np.stack([_unit(colour) for colour in (*COLOURS.values(), INKS[background])]) - ground  # (colours + 1, 3)
    rest = np.pad(units - ground, ((_PAD, _PAD), (_PAD, _PAD), (0, 0)))
    found: list[SceneObject | Glyph] = []
    unclear = 0
    for _ in range(_MOST_LOOKS):
        box = _conspicuous(rest[_PAD:-_PAD, _PAD:-_PAD], palette)
        if box is None:
            break
        match = _closest(rest, box, palette)
        if match is not None and match.likeness >= LIKENESS:
            found.append(match.thing)
            _explain(rest, match.thing.box)
        elif match is not None:
            unclear += 1
        _explain(rest, box)
    objects = tuple(thing for thing in found if isinstance(thing, SceneObject))
    glyphs = tuple(thing for thing in found if isinstance(thing, Glyph))
    return Detection(background, objects, glyphs, unclear)


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


def _unit(colour: tuple[int, int, int]) -> np.ndarray:
    return np.array(colour) / 255.0


def _conspicuous(rest: np.ndarray, palette: np.ndarray) -> Box | None:
    """The box of what explains most of ``rest (32, 32, 3)``, the picture less its background; None if all are too faint."""
    banks = [(_shape_masks(side), palette[:-1]) for side in SIZES.values()] + [(_glyph_masks(), palette[-1:])]
    boxes: list[tuple[float, Box]] = []
    for masks, colours in banks:
        height, width = masks.shape[1:]
        windows = sliding_window_view(rest, (height, width), axis=(0, 1))  # (H, W, 3, h, w)
        planes = np.tensordot(masks, windows, axes=([1, 2], [3, 4]))  # (M, H, W, 3)
        best = planes.shape[1] * planes.shape[2]
        energies = np.repeat((masks**2).sum((1, 2)), best)
        top = _most_explained(planes.reshape(-1, 3), energies, colours, _FAINTEST_AT_FIRST)
        if top is not None:
            row, column = divmod(top.mask % best, planes.shape[2])
            boxes.append((top.gain, (column, row, width, height)))
    return max(boxes)[1] if boxes else None


def _closest(rest: np.ndarray, box: Box, palette: np.ndarray) -> _Match | None:
    """What is most like the surroundings of a box, objects and characters compared."""
    left = box[0] + box[2] // 2 - WINDOW // 2  # of the window, units
    top = box[1] + box[3] // 2 - WINDOW // 2
    window = rest[top + _PAD : top + _PAD + WINDOW, left + _PAD : left + _PAD + WINDOW]  # (13, 13, 3)
    matches = [
        _match(window, templates, colours, left, top)
        for templates, colours in ((shape_templates(), palette[:-1]), (glyph_templates(), palette[-1:]))
    ]
    return max((match for match in matches if match is not None), key=lambda match: match.gain, default=None)


def _match(window: np.ndarray, templates: Templates, colours: np.ndarray, left: int, top: int) -> _Match | None:
    planes = np.tensordot(templates.masks, window, axes=([1, 2], [0, 1]))  # (M, 3)
    best = _most_explained(planes, (templates.masks**2).sum((1, 2)), colours, FAINTEST)
    if best is None:
        return None
    name, size = templates.names[best.mask], templates.sizes[best.mask]
    dx, dy = np.floor(templates.corners[best.mask] + 0.5).astype(int)
    width, height = (SIZES[size], SIZES[size]) if size else bitmap(name).shape[::-1]
    x, y = _inside(left + int(dx), width), _inside(top + int(dy), height)
    thing = SceneObject(tuple(COLOURS)[best.colour], name, size, x, y) if size else Glyph(name, x, y)
    here = np.s_[dy : dy + height, dx : dx + width]
    drawn = templates.masks[best.mask][here][..., None] * colours[best.colour]
    return _Match(best.gain, _cosine(window[here], drawn), thing)


def _most_explained(planes: np.ndarray, energies: np.ndarray, colours: np.ndarray, faintest: float) -> _Best | None:
    r"""As what and in which colour ``a mask colour`` explains most of ``d``, the picture less its background.

    .. math:: \|d\|^2 - \|d - a\,m c\|^2 = 2 a \langle d, m c \rangle - a^2 \|m\|^2 \|c\|^2

    is largest at :math:`a = \langle d, m c \rangle / (\|m\|^2 \|c\|^2)`, which may not be less than ``faintest`` and counts as
    :data:`STRONGEST` if it is more.

    Args:
        planes: ``(M, 3)``, the inner products of d with each mask, per channel.
        energies: ``(M,)``, squared norms of the masks.
        colours: ``(C, 3)``, less the background.
        faintest: Least a.
    """
    overlap = planes @ colours.T  # (M, C)
    energy = np.maximum(energies[:, None] * (colours**2).sum(1), 1e-12)
    strength = np.minimum(overlap / energy, STRONGEST)
    gains = np.where(strength >= faintest, (2.0 * overlap - strength * energy) * strength, 0.0)
    mask, colour = divmod(int(gains.argmax()), len(colours))
    return _Best(float(gains[mask, colour]), mask, colour) if gains[mask, colour] > 0 else None


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def _inside(start: int, extent: int) -> int:
    return min(max(start, 0), UNITS - extent)


def _explain(rest: np.ndarray, box: Box) -> None:
    """Nothing is left in and around a box: two things lie two units apart."""
    left, top, width, height = box[0] + _PAD, box[1] + _PAD, box[2], box[3]
    rest[top - 1 : top + height + 1, left - 1 : left + width + 1] = 0.0


@lru_cache(maxsize=4)
def _shape_masks(side: int) -> np.ndarray:
    """``(shapes, side, side)``."""
    return np.stack([coverage(shape, side) for shape in SHAPES])


@lru_cache(maxsize=1)
def _glyph_masks() -> np.ndarray:
    """``(characters, 7, 5)``."""
    return np.stack([bitmap(character) for character in CHARACTERS]).astype(np.float64)
