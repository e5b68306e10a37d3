"""What stands in each token of a drawn scene, as labels for :mod:`experiments.scene_sight`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmar.data.scenes import Scene
from mmar.data.scenes.font import CHARACTERS
from mmar.data.scenes.vocabulary import COLOURS, POSITIONS, SHAPES, SIZES, UNITS

NOTHING = "nothing"
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "kind": (NOTHING, *SHAPES, *CHARACTERS),
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "position": POSITIONS,
}
"""What is told of the thing whose centre lies in a token; characters have no colour or size of their own."""
NOT_ASKED = -100
"""Label that :func:`torch.nn.functional.cross_entropy` leaves out."""


def labels(scene: Scene, grid: int) -> Tensor:
    """``(grid * grid, attributes)`` int64, row by row: what has its centre in each token."""
    side = UNITS / grid
    found = torch.full((grid * grid, len(ATTRIBUTES)), NOT_ASKED)
    found[:, 0] = 0
    things = [(o.box, (o.shape, o.colour, o.size, o.position)) for o in scene.objects]
    if scene.glyph is not None:
        things.append((scene.glyph.box, (scene.glyph.character, None, None, POSITIONS[scene.glyph.cell])))
    for (left, top, width, height), words in things:
        at = int((top + height / 2) // side) * grid + int((left + width / 2) // side)
        asked = zip(words, ATTRIBUTES.values(), strict=True)
        found[at] = torch.tensor([NOT_ASKED if word is None else known.index(word) for word, known in asked])
    return found
