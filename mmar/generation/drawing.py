"""Images while they are drawn, and what it takes to draw them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmar.generation.prefix import PromptedModel

Report = Callable[[Tensor], None]
"""``report(tokens)`` after each step, with the tokens so far."""


@dataclass(frozen=True)
class Drawing:
    """Images of some rows.

    Attributes:
        prompted: The language model behind their prompts: R = branches x B rows, conditional first.
        tokens: ``(B, N, C)`` float32 or ``(B, N)`` codes; zero where unknown.
        known: ``(B, N)`` bool.
        sources: One generator per row.
    """

    prompted: PromptedModel
    tokens: Tensor
    known: Tensor
    sources: list[torch.Generator]

    def with_tokens(self, rows: Tensor, positions: Tensor, drawn: Tensor) -> Drawing:
        """With ``drawn (b, n, ...)`` put at ``positions (b, n)`` of ``rows (b,)``, which know them from now on."""
        tokens, known = self.tokens.clone(), self.known.clone()
        tokens[rows[:, None], positions], known[rows[:, None], positions] = drawn, True
        return replace(self, tokens=tokens, known=known)


class Drawer(ABC):
    """Draws the unknown tokens of images."""

    @abstractmethod
    def steps(self, unknown: int) -> int:
        """How often :meth:`draw` reports for images with this many unknown tokens."""

    @abstractmethod
    def draw(self, drawing: Drawing, report: Report) -> Tensor:
        """All tokens ``(B, N, ...)`` of images with equally many unknown ones; the known ones as they were."""


def branches_of(rows: Tensor, count: int) -> Tensor:
    """``(branches B, ...)`` to ``(branches, B, ...)``."""
    return rows.view(-1, count, *rows.shape[1:])
