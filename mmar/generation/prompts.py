"""What stands before the image that is drawn: prompts of any length and padding, put into line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from mmar.image_batch import image_batch
from mmar.layout import ImageIds

if TYPE_CHECKING:
    from mmar.model import MMARForConditionalGeneration


@dataclass(frozen=True)
class Prompts:
    """Rows whose image to draw stands at the same columns ``P .. P + N - 1``: padded on the left, cut after it.

    Attributes:
        embeds: ``(R, P, H)``: everything up to begin-of-image, images that are read included.
        position_ids: ``(R, P + N)``.
        attend: ``(R, 1, P + N, P + N)`` bool.
        is_image: ``(R, P + N)`` bool: what meets the image expert.
    """

    embeds: Tensor
    position_ids: Tensor
    attend: Tensor
    is_image: Tensor

    def take(self, rows: Tensor) -> Prompts:
        """Some of the rows."""
        return Prompts(self.embeds[rows], self.position_ids[rows], self.attend[rows], self.is_image[rows])


def embed_prompts(
    model: MMARForConditionalGeneration,
    conditional: tuple[Tensor, Tensor | None],
    unconditional: tuple[Tensor, Tensor | None] | None = None,
    image_tokens: Tensor | None = None,
) -> Prompts:
    """Embed prompts ``(input_ids, attention_mask)``, each ``(B, L)``; with unconditional ones ``R = 2 B`` rows, those last.

    Args:
        model: The model.
        conditional: Rows whose last block is the image to draw.
        unconditional: The same for the other branch of guidance, of any length; one row serves all.
        image_tokens: The images of all other blocks. An unconditional row reads the same images as its conditional one, or
            none.

    Raises:
        ValueError: If a row has no image block, or the images do not fit.
    """
    ids, mask = _checked(model, conditional, "input_ids")
    rows = len(ids)
    if unconditional is not None:
        other_ids, other_mask = _checked(model, unconditional, "uncond_input_ids")
        if len(other_ids) not in (1, rows):
            raise ValueError(f"uncond_input_ids must have 1 or {rows} rows, as input_ids, got {len(other_ids)}")
        other_ids, other_mask = other_ids.expand(rows, -1), other_mask.expand(rows, -1)
        width = max(ids.shape[1], other_ids.shape[1])
        ids, mask = (
            torch.cat([functional.pad(t, (0, width - t.shape[1]), value=value) for t in pair])
            for pair, value in (((ids, other_ids), _padding(model.image_ids)), ((mask, other_mask), 0))
        )
    ids, mask = _aligned(ids, mask, model.image_ids)
    layout = model.layout(ids, mask)
    end = ids.shape[1] - 1  # the end-of-image is only there to make the block complete
    start = end - model.image_ids.count
    read = layout.is_image[:, :start]  # (R, P)
    embeds = model.embed_text(ids[:, :start])  # (R, P, H)
    features = _read_images(model, layout.block.amax(-1) - 1, rows, image_tokens)
    if features is not None:
        embeds = embeds.masked_scatter(read[..., None], features.to(embeds.dtype))
    return Prompts(embeds, layout.position_ids[:, :end], layout.attend[..., :end, :end], layout.is_image[:, :end])


def _checked(model: MMARForConditionalGeneration, prompt: tuple[Tensor, Tensor | None], name: str) -> tuple[Tensor, Tensor]:
    ids, mask = prompt
    images = model.layout(ids, mask).block.amax(-1)  # (B,)
    if not bool((images > 0).all()):
        row = int((images == 0).nonzero()[0])
        raise ValueError(
            f"{name} must hold the image to draw as the last image block of each row, got no block in row {row}; build prompts "
            "with the processor's generation template"
        )
    return ids, torch.ones_like(ids) if mask is None else mask.long()


def _aligned(ids: Tensor, mask: Tensor, image: ImageIds) -> tuple[Tensor, Tensor]:
    """Rows from their first token to the end of their last image, ``(R, P + N + 1)``, padded on the left."""
    column = torch.arange(ids.shape[1], device=ids.device)
    first = mask.argmax(-1)  # (R,)
    begin = ((ids == image.boi) * column).argmax(-1)  # (R,): the last begin-of-image
    prefix = int((begin - first).max()) + 1
    source = begin[:, None] + 1 - prefix + torch.arange(prefix + image.count + 1, device=ids.device)  # (R, P + N + 1)
    valid = source >= first[:, None]
    return ids.gather(1, source.clamp_min(0)).masked_fill(~valid, _padding(image)), valid.long()


def _padding(image: ImageIds) -> int:
    """An id that is in any vocabulary and no image's; what it embeds to is not read."""
    return min({0, 1, 2, 3} - {image.image, image.boi, image.eoi})


def _read_images(model: MMARForConditionalGeneration, per_row: Tensor, rows: int, image_tokens: Tensor | None) -> Tensor | None:
    """``(n, N, H)`` features of the images that each of R rows reads, in order; R is ``rows`` or twice that."""
    counts, other = per_row[:rows], per_row[rows:]
    by_image = image_tokens is not None and image_tokens.ndim == (2 if model.config.has_codes else 3)
    if image_tokens is not None and by_image and len(image_tokens) != int(counts.sum()):
        raise ValueError(
            f"image_tokens must hold the {int(counts.sum())} images that are read, all but the last of each row, got "
            f"{len(image_tokens)}; tokens of the image that is drawn are known_tokens"
        )
    images = image_batch(model.config, counts, image_tokens)
    wrong = ((other != counts[: len(other)]) & (other > 0)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"uncond_input_ids must read the images of input_ids or none, got {int(other[row])} images in row {row} beside "
            f"{int(counts[row])}"
        )
    if images is None:
        return None
    features = model.image_model.encode(images, None).features  # (n, N, H)
    row_of = torch.arange(rows, device=counts.device).repeat_interleave(counts)  # (n,)
    again = features[other[row_of] > 0] if len(other) else features[:0]
    return torch.cat([features, again])
