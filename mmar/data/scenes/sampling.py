"""Scenes at random, so that no question about them can be guessed from its words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random

from mmar.data.draws import coin, pick, some
from mmar.data.scenes.font import CHARACTERS, HEIGHT, WIDTH
from mmar.data.scenes.scene import Box, Glyph, Scene, SceneObject, apart
from mmar.data.scenes.vocabulary import (
    BACKGROUNDS,
    HELD_OUT,
    MARGIN,
    MAX_OBJECTS,
    PAIRS,
    POSITIONS,
    SIZES,
    TRAINED,
    UNITS,
    Pair,
    Split,
)

_BACKGROUNDS, _SIZES = tuple(BACKGROUNDS), tuple(SIZES)

TEST_SHARE = 4
"""One of so many scenes belongs to the test split, by its content: no test image is ever seen in training."""

GLYPH_PROBABILITY = 0.25
GRID_PROBABILITY = 0.25
"""Of objects in the middle of their cells; otherwise they lie anywhere in them."""

_FREE_TRIES = 20

COUNTED_GIVEN_OBJECTS = {1: (0.7, 0.3), 2: (0.3, 0.4, 0.3), 3: (0.0, 0.2, 0.4, 0.4), 4: (0.0, 0.1, 0.3, 0.6)}
"""How likely 0, 1, 2, ... of n objects are of the counted kind. Rows and, over uniform n, columns 0 to 3 sum to one: the number
of all objects is uniform on one to four, and the number of counted ones on zero to three."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The kind of object whose number was drawn to be uniform; one of the two may be open.

    Attributes:
        colour: A colour, or None for any.
        shape: A shape, or None for any.
    """

    colour: str | None
    shape: str | None

    def includes(self, pair: Pair) -> bool:
        """Whether a colour and a shape are of this kind."""
        return self.colour in (None, pair[0]) and self.shape in (None, pair[1])


@dataclass(frozen=True, slots=True)
class SampledScene:
    """A scene and what questions about it need to know of how it was drawn.

    Attributes:
        scene: The scene.
        counted: What to count.
        split: Where it belongs.
    """

    scene: Scene
    counted: Counted
    split: Split

    @property
    def subjects(self) -> tuple[SceneObject, ...]:
        """The objects to ask about: in the held-out split those that training never met."""
        if self.split != "held_out":
            return self.scene.objects
        return tuple(o for o in self.scene.objects if o.pair in HELD_OUT)

    @property
    def nameable(self) -> tuple[Pair, ...]:
        """The pairs that may be asked for, there or not."""
        return HELD_OUT if self.split == "held_out" else TRAINED


def sample_scene(rng: Random, split: Split, *, with_glyph: bool = False, max_objects: int = MAX_OBJECTS) -> SampledScene:
    """A scene of a split.

    Number of objects, colours, shapes, sizes, cells, backgrounds and characters are uniform. Training and test scenes never
    hold held-out pairs and never coincide; held-out scenes hold at least one such pair.

    Args:
        rng: Source of randomness.
        split: train, test or held_out.
        with_glyph: Print a character for sure; otherwise every fourth scene has one.
        max_objects: Most objects; fewer than all make an easier lesson.
    """
    while True:
        sampled = _sample(rng, split, with_glyph, max_objects)
        if split == "held_out" or (sampled.scene.digest() % TEST_SHARE == 0) == (split == "test"):
            return sampled


def _sample(rng: Random, split: Split, with_glyph: bool, max_objects: int) -> SampledScene:
    count = 1 + int(rng.random() * max_objects)
    counted, pairs = _pairs(rng, split, count)
    sizes = [pick(rng, _SIZES) for _ in pairs]
    extents = [(SIZES[size], SIZES[size]) for size in sizes]
    printed = coin(rng, GLYPH_PROBABILITY) or with_glyph
    boxes = _boxes(rng, [*extents, (WIDTH, HEIGHT)] if printed else extents)
    objects = tuple(SceneObject(*pair, size, *box[:2]) for pair, size, box in zip(pairs, sizes, boxes, strict=False))
    glyph = Glyph(pick(rng, CHARACTERS), *boxes[-1][:2]) if printed else None
    return SampledScene(Scene(objects, pick(rng, _BACKGROUNDS), glyph), counted, split)


def _pairs(rng: Random, split: Split, count: int) -> tuple[Counted, list[Pair]]:
    """Colours and shapes of ``count`` objects in a random order, and what is counted among them."""
    universe = PAIRS if split == "held_out" else TRAINED
    included = _included(rng, count)
    kind = int(rng.random() * 3)
    while True:
        colour, shape = pick(rng, universe)
        counted = Counted(colour if kind != 0 else None, shape if kind != 1 else None)
        pairs = [_pair(rng, universe, counted, i < included) for i in range(count)]
        if split != "held_out" or any(pair in HELD_OUT for pair in pairs):
            return counted, some(rng, pairs, count)


def _included(rng: Random, count: int) -> int:
    left = rng.random()
    for number, probability in enumerate(COUNTED_GIVEN_OBJECTS[count]):
        left -= probability
        if left < 0:
            return number
    return len(COUNTED_GIVEN_OBJECTS[count]) - 1  # rounding


def _pair(rng: Random, universe: tuple[Pair, ...], counted: Counted, included: bool) -> Pair:
    return pick(rng, _choices(universe is PAIRS, counted, included))


@lru_cache(maxsize=512)
def _choices(all_pairs: bool, counted: Counted, included: bool) -> tuple[Pair, ...]:
    return tuple(pair for pair in (PAIRS if all_pairs else TRAINED) if counted.includes(pair) == included)


def _boxes(rng: Random, extents: list[tuple[int, int]]) -> list[Box]:
    """A box in a cell of its own for each width and height; the cells are drawn first and kept, so that they are uniform."""
    cells = some(rng, range(len(POSITIONS)), len(extents))
    if not coin(rng, GRID_PROBABILITY):
        for _ in range(_FREE_TRIES):
            boxes = _free(rng, cells, extents)
            if boxes is not None:
                return boxes
    return [(_middle(w)[cell % 3], _middle(h)[cell // 3], w, h) for cell, (w, h) in zip(cells, extents, strict=True)]


def _free(rng: Random, cells: list[int], extents: list[tuple[int, int]]) -> list[Box] | None:
    """Boxes anywhere in their cells, or None where one has no room beside those before it."""
    boxes: list[Box] = []
    for cell, (width, height) in zip(cells, extents, strict=True):
        for _ in range(4):
            box = pick(rng, _starts(width)[cell % 3]), pick(rng, _starts(height)[cell // 3]), width, height
            if all(apart(box, other) for other in boxes):
                break
        else:
            return None
        boxes.append(box)
    return boxes


@lru_cache(maxsize=16)
def _starts(extent: int) -> tuple[range, range, range]:
    """Where boxes of a width may begin so that their centre lies well within each third of the image."""
    thirds: list[list[int]] = [[], [], []]
    for start in range(UNITS - extent + 1):
        centre = 6 * start + 3 * extent  # in sixths of a unit: exact
        if all(abs(centre - line) >= 6 * MARGIN for line in (2 * UNITS, 4 * UNITS)):
            thirds[centre // (2 * UNITS)].append(start)
    first, second, third = (range(starts[0], starts[-1] + 1) for starts in thirds)
    return first, second, third


@lru_cache(maxsize=16)
def _middle(extent: int) -> tuple[int, ...]:
    """Where boxes of a width begin in the middle of each third; thirds of 10 units with one between them."""
    return tuple(11 * third + (10 - extent) // 2 for third in range(3))
