"""What an image looks like while some of its tokens are not drawn yet."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmar.picture_codec import PictureCodec

LIGHT, DARK = (208, 216, 236), (178, 190, 218)
"""Colours of the pattern: pale, and a little blue, so that grey pictures are told from it."""


def unfinished_picture(codec: PictureCodec, tokens: Tensor) -> Image.Image:
    """The picture of one image, with a pattern where its tokens are unknown.

    A decoder with neighbourhoods sees zeros beyond the edge of what is known, so cells there change once more later.

    Args:
        codec: Of the pipeline.
        tokens: ``(N, C)`` float or ``(N,)`` codes, zero where unknown; N is a square.

    Returns:
        An RGB picture of the size that ``codec`` makes.
    """
    with torch.no_grad():
        picture = codec.decode(tokens[None])[0]
    known = known_tokens(tokens)
    grid = round(len(known) ** 0.5)
    unknown = Image.fromarray((~known).view(grid, grid).cpu().numpy()).resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(pattern(picture.size, grid), picture.convert("RGB"), unknown)


def known_tokens(tokens: Tensor) -> Tensor:
    """Which tokens are drawn, ``(N,)`` bool: those that are not zero.

    Exact for continuous tokens, of which none is drawn as zero in all channels. Code 0 looks unknown until the end.
    """
    return tokens != 0 if tokens.ndim == 1 else tokens.any(dim=-1)


def pattern(size: tuple[int, int], grid: int) -> Image.Image:
    """A checkerboard of 2 x 2 squares per token.

    Args:
        size: Width and height, pixels.
        grid: Tokens per side.
    """
    columns, rows = (np.arange(side) * 2 * grid // side for side in size)
    odd = (rows[:, None] + columns[None, :]) % 2 == 1  # (height, width)
    return Image.fromarray(np.where(odd[..., None], DARK, LIGHT).astype(np.uint8))
