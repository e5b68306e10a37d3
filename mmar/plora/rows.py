"""Which rows of a batch are image tokens: found once per forward pass, handed to the adapted layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

KEYWORD = "image_rows"
"""Under which :class:`ImageRows` travel from the text model through the decoder layers to their attention."""


@dataclass(frozen=True, eq=False)
class ImageRows:
    """The image tokens of a batch.

    Attributes:
        mask: ``(B, L)`` bool, True on image tokens.
        index: ``(n,)`` long, their places in the flattened batch.
    """

    mask: Tensor
    index: Tensor

    @classmethod
    def from_mask(cls, mask: Tensor) -> Self:
        """Rows of a ``(B, L)`` bool mask. On a GPU this waits for the device, once per forward pass."""
        return cls(mask, mask.flatten().nonzero().flatten())

    @property
    def count(self) -> int:
        """Image tokens in the batch."""
        return len(self.index)

    @property
    def is_all(self) -> bool:
        """Whether there is nothing else."""
        return self.count == self.mask.numel()


class RowsInbox:
    """Where the linears of one decoder layer find the rows of the call that is running.

    Qwen2 calls ``q_proj(x)`` without keywords, but hands its own keywords down to the attention, which runs before the MLP:
    :meth:`take` is a pre-hook there. Gradient checkpointing recomputes the inside of a decoder layer, so this hook runs again
    and finds the rows of the call that is recomputed. A hook on the decoder layer itself does not run again, and a context
    variable has long been reset.
    """

    rows: ImageRows | None = None

    def take(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take the rows out of the keywords of the attention; none there means none."""
        self.rows = kwargs.pop(KEYWORD, None)
        return args, kwargs
