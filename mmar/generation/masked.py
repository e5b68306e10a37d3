"""Masked autoregression: some tokens per step, in any order (paper section 3.3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmar.generation.drawing import Drawer, Drawing, Report, branches_of
from mmar.generation.order import draw_order, tokens_per_step
from mmar.generation.settings import ImageGenerationConfig
from mmar.generation.token_sampler import ArStep, TokenSampler
from mmar.image_input import KnownTokensInput


@dataclass(frozen=True)
class MaskedDrawer(Drawer):
    """All unknown tokens are mask tokens; each step reads the whole image and draws the next few of the order.

    Attributes:
        image_input: Known and mask tokens to features.
        sampler: States to tokens.
        settings: Options.
    """

    image_input: KnownTokensInput
    sampler: TokenSampler
    settings: ImageGenerationConfig

    def steps(self, unknown: int) -> int:
        """As many as asked for, or as there are tokens."""
        return self.settings.ar_steps_for(unknown)

    def draw(self, drawing: Drawing, report: Report) -> Tensor:
        """As :meth:`Drawer.draw`."""
        order = draw_order(drawing.known, self.settings.order or "random", drawing.sources)  # (B, U)
        counts = tokens_per_step(order.shape[1], self.steps(order.shape[1]), self.settings.tokens_schedule)
        total, every = drawing.known.shape[1], torch.arange(len(order), device=order.device)
        for index, positions in enumerate(order.split(counts, dim=1)):
            left = sum(counts[index + 1 :])
            z = self._states(drawing, positions)  # (branches, B, n, H)
            drawn = self.sampler(z, ArStep(index, len(counts), (total - left) / total), drawing.sources)  # (B, n, ...)
            drawing = drawing.with_tokens(every, positions, drawn)
            report(drawing.tokens)
        return drawing.tokens

    def _states(self, drawing: Drawing, positions: Tensor) -> Tensor:
        """States z at positions ``(B, n)``, ``(branches, B, n, H)``; the images are the same for all branches."""
        features = self.image_input(drawing.tokens, drawing.known)  # (B, N, H)
        branches = drawing.prompted.rows // len(features)
        states = drawing.prompted.states(features.repeat(branches, 1, 1))[:, 1:]  # (branches B, N, H)
        states = branches_of(states, len(features))  # (branches, B, N, H)
        return states.take_along_dim(positions[None, ..., None], dim=2)
