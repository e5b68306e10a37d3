"""The words of drawn scenes and what they look like: shapes, colours, sizes, places, numbers.

Lengths are in units: an image is 32 units wide at every size, so the same scene can be drawn with 32, 64 or 256 pixels.
"""

from __future__ import annotations

from itertools import product
from typing import Literal, get_args

Split = Literal["train", "test", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)

UNITS = 32
GAP = 2
"""Units between two boxes at least."""

MARGIN = 1
"""Units between the centre of a box and the lines between thirds of the image at least: no place is in doubt."""

SHAPES = ("circle", "square", "triangle", "cross", "ring", "moon", "bar")
PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in (*SHAPES, "shape")}

COLOURS = {
    "red": (225, 15, 25),
    "orange": (255, 140, 0),
    "yellow": (255, 240, 40),
    "green": (0, 180, 20),
    "cyan": (40, 215, 235),
    "blue": (30, 60, 230),
    "purple": (150, 0, 220),
}
BACKGROUNDS = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}
INKS = {"white": (0, 0, 0), "grey": (255, 255, 255), "black": (255, 255, 255)}
"""Of printed characters, by background."""

SIZES = {"small": 6, "large": 9}
"""Sides of the box around an object, units."""

POSITIONS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
"""Of the cells of a 3 x 3 grid, row by row."""

_PREPOSITIONS = {"centre": "in", "left": "on", "right": "on"}
PLACES = tuple(f"{_PREPOSITIONS.get(word, 'at')} the {word}" for word in POSITIONS)
"""The same with a preposition."""

NUMBERS = ("zero", "one", "two", "three", "four")
MAX_OBJECTS = len(NUMBERS) - 1

Pair = tuple[str, str]
"""A colour and a shape."""

PAIRS: tuple[Pair, ...] = tuple(product(COLOURS, SHAPES))
HELD_OUT: tuple[Pair, ...] = tuple(
    (colour, shape)
    for (i, colour), (j, shape) in product(enumerate(COLOURS), enumerate(SHAPES))
    if (j - i) % len(SHAPES) in (2, 5)
)
"""Pairs that training never meets: two of each colour and of each shape, so no word is rarer than another."""

TRAINED: tuple[Pair, ...] = tuple(pair for pair in PAIRS if pair not in HELD_OUT)
