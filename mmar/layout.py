"""Where images stand in a sequence: blocks, positions, and who may look at whom (paper section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class ImageIds:
    """The three placeholder ids of images and the length of a block ``boi, image x count, eoi``."""

    image: int
    boi: int
    eoi: int
    count: int


@dataclass(frozen=True)
class SequenceLayout:
    """What the language model has to know about a batch of rows.

    Attributes:
        block: ``(B, L)`` long: 0 for text, k > 0 for the tokens of the k-th image of the row.
        position_ids: ``(B, L)`` long, RoPE positions.
        attend: ``(B, 1, L, L)`` bool, True where row i may look at column j.
    """

    block: Tensor
    position_ids: Tensor
    attend: Tensor

    @property
    def is_image(self) -> Tensor:
        """``(B, L)`` bool: image tokens, without boi and eoi."""
        return self.block > 0


def sequence_layout(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    ids: ImageIds,
    shared_positions: bool = True,
    causal_images: bool = False,
) -> SequenceLayout:
    """Blocks, positions and mask of rows of text and images.

    Text is causal. The tokens of an image see all text and images before them and their whole image; they share one position
    (boi p, image p + 1, eoi p + 2). Padding, left or right, takes no position and is seen by nobody but itself.

    Args:
        input_ids: ``(B, L)`` long.
        attention_mask: ``(B, L)``, 1 for tokens and 0 for padding; None: no padding.
        ids: Placeholder ids and the number of tokens of an image.
        shared_positions: One position per image (the paper) or one per token.
        causal_images: Let image tokens see only those before them.

    Raises:
        ValueError: If shapes differ, padding stands between tokens, or an image token stands outside a complete block.
    """
    valid = _valid(input_ids, attention_mask)
    block = image_blocks(input_ids, ids)
    if (block > 0).logical_and(~valid).any():
        raise ValueError("attention_mask must be 1 on image tokens, got 0; pad outside the image blocks")
    return SequenceLayout(block, _positions(block, valid, shared_positions), _attend(block, valid, causal_images))


def image_blocks(input_ids: Tensor, ids: ImageIds) -> Tensor:
    """``(B, L)`` long: 0 for text, k for the k-th image of the row.

    Raises:
        ValueError: If a begin-of-image is not followed by a whole image and an end, or an image token stands elsewhere.
    """
    is_image, starts = input_ids == ids.image, input_ids == ids.boi
    row, start = starts.nonzero(as_tuple=True)
    offset = torch.arange(ids.count + 2, device=input_ids.device)
    expected = torch.full_like(offset, ids.image)
    expected[0], expected[-1] = ids.boi, ids.eoi
    padded = functional.pad(input_ids, (0, ids.count + 2), value=-1)
    found = padded[row[:, None], start[:, None] + offset]  # (images, count + 2)
    broken = (found != expected).any(-1).nonzero().flatten()
    if len(broken):
        r, c = int(row[broken[0]]), int(start[broken[0]])
        raise ValueError(
            f"input_ids must hold {ids.count} image tokens and an end-of-image after each begin-of-image, got "
            f"{int((found[broken[0]] == ids.image).sum())} image tokens after row {r}, column {c}; the processor expands images"
        )
    strays = int(is_image.sum()) - ids.count * len(row), int((input_ids == ids.eoi).sum()) - len(row)
    if any(strays):
        raise ValueError(
            f"input_ids must hold image tokens ({ids.image}, {ids.boi}, {ids.eoi}) in whole blocks only, got {strays[0]} stray "
            f"image tokens and {strays[1]} stray end-of-image tokens; image markers are not allowed in text"
        )
    return starts.long().cumsum(-1) * is_image


def _valid(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids {tuple(input_ids.shape)}, got {tuple(attention_mask.shape)}; "
            "1 for tokens, 0 for padding"
        )
    valid = attention_mask.bool()
    edges = (valid[:, 1:] != valid[:, :-1]).sum(-1)
    if ((edges > 2) | ((edges == 2) & valid[:, 0])).any():
        raise ValueError("attention_mask must be 0 at the ends of a row only, got padding between tokens; join the tokens")
    return valid


def _positions(block: Tensor, valid: Tensor, shared: bool) -> Tensor:
    advances = valid
    if shared:
        before = functional.pad(block[:, :-1], (1, 0))
        advances = valid & ((block == 0) | (block != before))  # a whole image advances by one
    return (advances.long().cumsum(-1) - 1).clamp_min(0)


def _attend(block: Tensor, valid: Tensor, causal_images: bool) -> Tensor:
    index = torch.arange(block.shape[1], device=block.device)
    attend = (index[None, :] <= index[:, None])[None]  # (1, L, L)
    if not causal_images:
        attend = attend | ((block[:, :, None] == block[:, None, :]) & (block[:, :, None] > 0))
    itself = index[None, :] == index[:, None]  # a padding row that saw nothing would be 0 / 0
    return ((attend & valid[:, None, :] & valid[:, :, None]) | itself)[:, None]
