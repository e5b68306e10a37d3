"""What each token of a drawn scene holds, told in part: conditions for :mod:`experiments.scene_hand`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmar.data.scenes import Scene
from mmar.data.scenes.font import CHARACTERS
from mmar.data.scenes.vocabulary import BACKGROUNDS, COLOURS, MAX_OBJECTS, POSITIONS, SHAPES, SIZES, UNITS

KINDS = (*SHAPES, *CHARACTERS)
NO_WORD = -1
"""A character has no colour or size of its own; a scene with fewer things has empty rows."""
FIELDS = ("kind", "colour", "size", "cell", "left", "top", "width", "height")
MOST_THINGS = MAX_OBJECTS + 1


def things(scene: Scene) -> Tensor:
    """``(MOST_THINGS, FIELDS)`` int64, NO_WORD where there is nothing to say; boxes in units."""
    found = torch.full((MOST_THINGS, len(FIELDS)), NO_WORD)
    for row, one in zip(found, scene.objects, strict=False):
        words = (KINDS.index(one.shape), list(COLOURS).index(one.colour), list(SIZES).index(one.size), one.cell, *one.box)
        row.copy_(torch.tensor(words))
    if scene.glyph is not None:
        kind, glyph = KINDS.index(scene.glyph.character), scene.glyph
        found[-1] = torch.tensor((kind, NO_WORD, NO_WORD, glyph.cell, *glyph.box))
    return found


def background(scene: Scene) -> Tensor:
    """Scalar index."""
    return torch.tensor(list(BACKGROUNDS).index(scene.background))


@dataclass(frozen=True)
class Share:
    """How often each thing is told.

    Attributes:
        words: Each of kind, colour, size, background.
        place: The box, to the unit; otherwise only the cell of the 3 x 3 grid.
        scene: Anything at all.
    """

    words: float = 0.9
    place: float = 0.7
    scene: float = 0.9


EVERYTHING = Share(1.0, 1.0, 1.0)


class Teller(nn.Module):
    """Sums a vector for each word of each thing that lies in a token, or that may lie there where only its cell is told.

    Args:
        width: Of the condition, as of states of the language model.
        grid: Tokens a side.
    """

    starts: Tensor

    def __init__(self, width: int, grid: int) -> None:
        super().__init__()
        self.side = UNITS // grid
        starts = torch.arange(grid) * self.side
        self.register_buffer("starts", torch.cartesian_prod(starts, starts), persistent=False)  # (N, 2): top, left
        self.words = nn.ModuleList(nn.Embedding(len(known), width) for known in (KINDS, COLOURS, SIZES))
        self.background = nn.Embedding(len(BACKGROUNDS), width)
        self.offset = nn.ModuleList(nn.Embedding(2 * UNITS, width) for _ in range(2))
        self.cell = nn.Embedding(len(POSITIONS) * grid * grid, width)
        self.nothing = nn.Parameter(torch.randn(width))
        self.norm = nn.RMSNorm(width)

    def forward(self, told: Tensor, background: Tensor, share: Share) -> Tensor:
        """Conditions of all tokens.

        Args:
            told: ``(n, M, FIELDS)`` of :func:`things`.
            background: ``(n,)`` indices.
            share: How much of it is told.

        Returns:
            ``(n, N, width)``.
        """
        n, most, count = len(told), told.shape[1], len(self.starts)

        def chosen(p: float, *shape: int) -> Tensor:
            return torch.rand(shape, device=told.device) < p

        box = told[..., 4:]  # (n, M, 4)
        of_words = sum(
            (table(told[..., i].clamp(min=0)) * ((told[..., i] >= 0) & chosen(share.words, n, most))[..., None])
            for i, table in enumerate(self.words)
        )  # (n, M, W)
        exactly = chosen(share.place, n, most, count)  # (n, M, N)
        offsets = torch.stack([box[..., 1 - axis, None] - self.starts[:, axis] for axis in range(2)])  # (2, n, M, N)
        sides = torch.stack([box[..., 3 - axis, None] for axis in range(2)])  # (2, n, M, 1)
        inside = ((offsets < self.side) & (offsets > -sides)).all(0)  # (n, M, N)
        may = self._may_reach(told[..., 3], sides)  # (n, M, N)
        where = sum(table(offset + UNITS) for table, offset in zip(self.offset, offsets, strict=True))  # (n, M, N, W)
        cells = self.cell(told[..., 3, None].clamp(min=0) * count + torch.arange(count, device=told.device))  # (n, M, N, W)
        of_things = of_words[:, :, None] + torch.where(exactly[..., None], where, cells)  # (n, M, N, W)
        there = torch.where(exactly, inside, may) & (told[..., :1] >= 0)  # (n, M, N)
        ground = self.background(background)[:, None] * chosen(share.words, n, count)[..., None]  # (n, N, W)
        found = ((of_things * there[..., None]).sum(1) + ground) * chosen(share.scene, n)[:, None, None]  # (n, N, W)
        return self.norm(found + self.nothing)

    def _may_reach(self, cell: Tensor, sides: Tensor) -> Tensor:
        """``(n, M, N)``: which tokens a thing with its centre in a cell may touch."""
        third = UNITS / 3
        reach = torch.ones(*cell.shape, len(self.starts), dtype=torch.bool, device=cell.device)
        for axis, place in enumerate((cell // 3, cell % 3)):
            low = place[..., None] * third - sides[axis] / 2  # (n, M, 1)
            high = (place[..., None] + 1) * third + sides[axis] / 2
            reach &= (low < self.starts[:, axis] + self.side) & (high > self.starts[:, axis])
        return reach
