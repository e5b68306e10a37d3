"""Causal autoregression: one token per step in raster order, predicted from the state one place before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmar.generation.drawing import Drawer, Drawing, Report, branches_of
from mmar.generation.token_sampler import ArStep, TokenSampler
from mmar.image_input import KnownTokensInput


@dataclass(frozen=True)
class CausalDrawer(Drawer):
    """Image tokens see only those before them, so with a cache each is run once.

    Known tokens are kept; they inform those after them, not those before.

    Attributes:
        image_input: Tokens to features.
        sampler: States to tokens.
        count: Tokens of an image.
    """

    image_input: KnownTokensInput
    sampler: TokenSampler
    count: int

    def steps(self, unknown: int) -> int:
        """One per token, known or not."""
        return self.count

    def draw(self, drawing: Drawing, report: Report) -> Tensor:
        """As :meth:`Drawer.draw`."""
        z = self._state(drawing, 0)  # (branches, B, 1, H)
        for place in range(self.count):
            step = ArStep(place, self.count, (place + 1) / self.count)
            drawing = self._put(drawing, z, place, step)
            report(drawing.tokens)
            if place + 1 < self.count:
                z = self._state(drawing, place + 1)
        return drawing.tokens

    def _put(self, drawing: Drawing, z: Tensor, place: int, step: ArStep) -> Drawing:
        """Draw the token at ``place`` in the rows that do not know it."""
        wanted = (~drawing.known[:, place]).nonzero()[:, 0]  # (b,)
        if not len(wanted):
            return drawing
        drawn = self.sampler(z[:, wanted], step, [drawing.sources[row] for row in wanted.tolist()])  # (b, 1, ...)
        return drawing.with_tokens(wanted, torch.full_like(wanted, place)[:, None], drawn)

    def _state(self, drawing: Drawing, place: int) -> Tensor:
        """State ``(branches, B, 1, H)`` that predicts the token at ``place``, all before it being there."""
        prompted, rows = drawing.prompted, len(drawing.tokens)
        if place == 0 and prompted.is_cached:
            return branches_of(prompted.begin, rows)
        before = (torch.arange(self.count, device=drawing.known.device) < place).expand_as(drawing.known)  # (B, N)
        features = self.image_input(drawing.tokens, before).repeat(prompted.rows // rows, 1, 1)  # (branches B, N, H)
        if prompted.is_cached:
            return branches_of(prompted.extend(features[:, place - 1 : place]), rows)
        return branches_of(prompted.states(features[:, :place])[:, -1:], rows)
