"""What a drawn scene holds: a few objects and at most one printed character on a plain background."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from mmar.data.scenes.font import CHARACTERS, HEIGHT, WIDTH
from mmar.data.scenes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    GAP,
    MAX_OBJECTS,
    PLACES,
    POSITIONS,
    SHAPES,
    SIZES,
    UNITS,
    Pair,
)

Box = tuple[int, int, int, int]
"""Left, top, width, height, units."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """An object.

    Attributes:
        colour: One of the colours.
        shape: One of the shapes.
        size: small or large.
        left: Left edge of its box, units from the left of the image.
        top: Upper edge, units from the top.
    """

    colour: str
    shape: str
    size: str
    left: int
    top: int

    def __post_init__(self) -> None:
        if self.colour not in COLOURS:
            raise ValueError(f"colour must be one of {', '.join(COLOURS)}, got {self.colour!r}")
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {self.shape!r}")
        if self.size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {self.size!r}")
        _check_inside(self.box)

    @property
    def side(self) -> int:
        """Width and height of the box, units."""
        return SIZES[self.size]

    @property
    def box(self) -> Box:
        """Left, top, width, height, units."""
        return self.left, self.top, SIZES[self.size], SIZES[self.size]

    @property
    def pair(self) -> Pair:
        """Colour and shape."""
        return self.colour, self.shape

    @property
    def centre(self) -> tuple[float, float]:
        """To the right and downwards from the upper left corner, units."""
        return self.left + self.side / 2, self.top + self.side / 2

    @property
    def cell(self) -> int:
        """Of the 3 x 3 grid, where the centre lies, row by row."""
        return cell_of(self.box)

    @property
    def position(self) -> str:
        """The cell in words, such as top left."""
        return POSITIONS[self.cell]

    @property
    def place(self) -> str:
        """The same with a preposition, such as at the top left."""
        return PLACES[self.cell]


@dataclass(frozen=True, slots=True)
class Glyph:
    """A printed character.

    Attributes:
        character: A digit or a capital letter of the font.
        left: Left edge of its box, units.
        top: Upper edge, units.
    """

    character: str
    left: int
    top: int

    def __post_init__(self) -> None:
        if self.character not in CHARACTERS:
            raise ValueError(f"character must be one of {''.join(CHARACTERS)}, got {self.character!r}")
        _check_inside(self.box)

    @property
    def box(self) -> Box:
        """Left, top, width, height, units."""
        return self.left, self.top, WIDTH, HEIGHT

    @property
    def cell(self) -> int:
        """Of the 3 x 3 grid, where the centre lies, row by row."""
        return cell_of(self.box)

    @property
    def place(self) -> str:
        """Where it is, such as at the top left."""
        return PLACES[self.cell]


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects on a background; every cell of the 3 x 3 grid holds one thing at most.

    Attributes:
        objects: One to four.
        background: One of the backgrounds.
        glyph: A printed character, or None.
    """

    objects: tuple[SceneObject, ...]
    background: str = "white"
    glyph: Glyph | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.objects) <= MAX_OBJECTS:
            raise ValueError(f"objects must number 1 to {MAX_OBJECTS}, got {len(self.objects)}")
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background must be one of {', '.join(BACKGROUNDS)}, got {self.background!r}")
        things: list[SceneObject | Glyph] = [*self.objects, *([self.glyph] if self.glyph else [])]
        if len({thing.cell for thing in things}) < len(things):
            raise ValueError(f"objects must lie in different cells of the 3 x 3 grid, got cells {[t.cell for t in things]}")
        for a, b in combinations(things, 2):
            if not apart(a.box, b.box):
                raise ValueError(f"objects must be {GAP} units apart, got boxes {a.box} and {b.box}")

    def __len__(self) -> int:
        return len(self.objects)

    def matching(self, colour: str | None = None, shape: str | None = None, size: str | None = None) -> tuple[SceneObject, ...]:
        """The objects with the given attributes; None: any."""
        return tuple(
            o for o in self.objects if colour in (None, o.colour) and shape in (None, o.shape) and size in (None, o.size)
        )

    def digest(self) -> int:
        """32 bits of what the image shows; the order of the objects does not count."""
        objects = sorted((o.colour, o.shape, o.size, o.left, o.top) for o in self.objects)
        glyph = (self.glyph.character, self.glyph.left, self.glyph.top) if self.glyph else None
        return zlib.crc32(json.dumps([objects, self.background, glyph]).encode())

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        glyph = self.glyph
        return {
            "objects": [
                {"colour": o.colour, "shape": o.shape, "size": o.size, "left": o.left, "top": o.top} for o in self.objects
            ],
            "background": self.background,
            "glyph": {"character": glyph.character, "left": glyph.left, "top": glyph.top} if glyph else None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scene:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: If the values break a rule of scenes.
            KeyError: If one is missing.
        """
        glyph = values["glyph"]
        objects = tuple(SceneObject(**values) for values in values["objects"])
        return cls(objects, values["background"], Glyph(**glyph) if glyph else None)


def cell_of(box: Box) -> int:
    """The cell of the 3 x 3 grid in which the centre of a box lies, row by row."""
    left, top, width, height = box
    return 3 * ((2 * top + height) * 3 // (2 * UNITS)) + (2 * left + width) * 3 // (2 * UNITS)


def apart(a: Box, b: Box) -> bool:
    """Whether two boxes are at least two units apart, beside or above each other."""
    return a[0] + a[2] + GAP <= b[0] or b[0] + b[2] + GAP <= a[0] or a[1] + a[3] + GAP <= b[1] or b[1] + b[3] + GAP <= a[1]


def _check_inside(box: Box) -> None:
    left, top, width, height = box
    if not (0 <= left <= UNITS - width and 0 <= top <= UNITS - height):
        raise ValueError(f"a box must lie in an image of {UNITS} x {UNITS} units, got left, top, width, height {box}")
