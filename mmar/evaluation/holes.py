"""Holes in drawn scenes: patches that nothing explains, as figure 5 of the paper shows them of a model of stage 1 alone.

The detector says what a picture shows; drawn anew, that is the explanation. A picture that is a little out of focus, or half a
unit beside the explanation, is not incoherent, so a pixel may have any value between the least and the greatest that the
explanation has within one unit of it, in each colour. What is outside this range is left unexplained.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from mmar.data.scenes import Detection, detect
from mmar.data.scenes.drawing import check_size, coverage
from mmar.data.scenes.font import bitmap
from mmar.data.scenes.vocabulary import BACKGROUNDS, COLOURS, INKS, UNITS

THRESHOLD = 0.1
"""Root mean square of what is unexplained in a patch, 1 from black to white: noise of a decoder up to 25 levels passes."""


def scene_holes(image: Image.Image, *, patch: int = 4, threshold: float = THRESHOLD) -> np.ndarray:
    """Which patches of a picture of a scene are holes.

    An object that was asked for and is missing leaves no hole: nothing about such a picture is incoherent, and
    :func:`mmar.evaluation.scenes.read` counts it.

    Args:
        image: As :func:`mmar.data.scenes.detect` takes it.
        patch: Side of a patch, units; a picture is 32 units wide. Take the side of an image token.
        threshold: Least root mean square of what is unexplained.

    Returns:
        ``(32 / patch, 32 / patch)`` bool.

    Raises:
        ValueError: If the patch does not divide 32, the threshold is not positive, or the image is none of a scene's.
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be positive, got {threshold}")
    return patch_residuals(image, patch=patch) >= threshold


def hole_share(image: Image.Image, *, patch: int = 4, threshold: float = THRESHOLD) -> float:
    """Share of the patches that are holes, in [0, 1]; see :func:`scene_holes`."""
    return float(scene_holes(image, patch=patch, threshold=threshold).mean())


def patch_residuals(image: Image.Image, *, patch: int = 4) -> np.ndarray:
    """Root mean square, over the pixels and colours of each patch, of what is unexplained: ``(32 / patch, 32 / patch)``.

    Args:
        image: As in :func:`scene_holes`.
        patch: As above.
    """
    if patch < 1 or UNITS % patch:
        raise ValueError(f"patch must divide {UNITS} units, got {patch}")
    explained = explanation(detect(image))
    lowest = minimum_filter(explained, size=(3, 3, 1), mode="nearest")
    highest = maximum_filter(explained, size=(3, 3, 1), mode="nearest")
    units = _reduced(image)
    residual = np.maximum(np.maximum(lowest - units, units - highest), 0.0)  # (32, 32, 3)
    grid = UNITS // patch
    squares = (residual**2).reshape(grid, patch, grid, patch, 3)
    return np.sqrt(squares.mean((1, 3, 4)))


def explanation(detection: Detection) -> np.ndarray:
    """What was detected, drawn: ``(32, 32, 3)`` float64 in [0, 1]. Unlike a scene it may hold any number of things."""
    background = np.array(BACKGROUNDS[detection.background]) / 255.0
    canvas = np.broadcast_to(background, (UNITS, UNITS, 3)).copy()
    for o in detection.objects:
        _paint(canvas, coverage(o.shape, o.side), COLOURS[o.colour], o.left, o.top)
    for glyph in detection.glyphs:
        _paint(canvas, bitmap(glyph.character).astype(np.float64), INKS[detection.background], glyph.left, glyph.top)
    return canvas


def _paint(canvas: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], left: int, top: int) -> None:
    """In place, over what is there."""
    under = canvas[top : top + mask.shape[0], left : left + mask.shape[1]]
    under += mask[..., None] * (np.array(colour) / 255.0 - under)


def _reduced(image: Image.Image) -> np.ndarray:
    """``(32, 32, 3)`` float64 in [0, 1], means of blocks of pixels, as the detector sees it."""
    values = np.asarray(image, dtype=np.float64) / 255.0
    check_size(values.shape[0])
    scale = values.shape[0] // UNITS
    return values.reshape(UNITS, scale, UNITS, scale, 3).mean((1, 3))
