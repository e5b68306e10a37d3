"""In which order the tokens of an image are drawn, and how many at a time (paper section 3.3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def tokens_per_step(total: int, steps: int, schedule: str = "cosine") -> list[int]:
    r"""How many tokens each autoregressive step draws; at least one each, ``total`` together.

    After the share :math:`x` of the steps there remain ``floor(total f(x))`` tokens: cosine :math:`f = \cos(\pi x/2)`
    (MaskGIT, MAR), linear :math:`f = 1 - x^2` (numbers in proportion to the step), constant :math:`f = 1 - x`. With as many
    steps as tokens all three are one token per step.

    Args:
        total: Tokens to draw.
        steps: Autoregressive steps, 1 to ``total``.
        schedule: cosine, linear or constant.
    """
    if not 1 <= steps <= total:
        raise ValueError(f"steps must lie in 1..{total}, one token each at least, got {steps}; take fewer steps")
    counts, left = [], total
    for done in range(1, steps + 1):
        # f is nowhere below its chord 1 - x, so what remains is never less than one for each later step.
        remaining = min(_remaining(total, done, steps, schedule), left - 1)
        counts.append(left - remaining)
        left = remaining
    return counts


def _remaining(total: int, done: int, steps: int, schedule: str) -> int:
    if done == steps:
        return 0
    if schedule == "constant":
        return total * (steps - done) // steps
    if schedule == "linear":
        return total * (steps**2 - done**2) // steps**2
    if schedule == "cosine":
        return math.floor(total * math.cos(0.5 * math.pi * done / steps))
    raise ValueError(f"schedule must be cosine, linear or constant, got {schedule!r}")


def draw_order(known: Tensor, order: str, sources: Sequence[torch.Generator]) -> Tensor:
    """The unknown tokens of each image in the order in which they are drawn.

    Args:
        known: ``(B, N)`` bool, with equally many unknown tokens in each row.
        order: random or raster.
        sources: One generator per row; random takes one permutation of all N tokens from each, whatever is known.

    Returns:
        ``(B, U)`` long positions.
    """
    count = known.shape[1]
    if order == "raster":
        everywhere = torch.arange(count, device=known.device).expand_as(known)  # (B, N)
    else:
        drawn = [torch.randperm(count, generator=source, device=source.device) for source in sources]
        everywhere = torch.stack([row.to(known.device) for row in drawn])  # (B, N)
    unknown = ~known.gather(1, everywhere)  # (B, N): in the order of drawing
    return everywhere[unknown].view(len(known), -1)  # (B, U)
