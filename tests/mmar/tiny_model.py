"""Two-layer models whose every path carries signal, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmar.baselines import BASELINES, baseline_config
from mmar.config import ImageTokensConfig, MMARConfig
from mmar.model import MMARForConditionalGeneration

CODES = ImageTokensConfig(tokenizer="vq-16", image_size=8, grid=4, channels=8, codebook_size=32)
COUNT, CHANNELS = 16, 12
BLOCK = [5, *[4] * COUNT, 6]
"""Begin of image, image, end of image, with the ids of the small presets."""


def tiny_config(name: str = "mmar", **options: Any) -> MMARConfig:
    """mmar-tiny as one of the baselines."""
    config = baseline_config(
        MMARConfig.preset("mmar-tiny"), name, image_config=CODES if BASELINES[name].needs_codes else None
    ).to_dict()
    for key, value in options.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    return MMARConfig(**config)


def tiny_model(name: str = "mmar", *, seed: int = 0, **options: Any) -> MMARForConditionalGeneration:
    """A model with everything that starts at zero moved off it, in evaluation mode."""
    torch.manual_seed(seed)
    model = MMARForConditionalGeneration(tiny_config(name, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def some_tokens(model: MMARForConditionalGeneration, images: int, seed: int = 1) -> Tensor:
    """Random image tokens or codes."""
    g = torch.Generator().manual_seed(seed)
    image = model.config.image_config
    if model.config.has_codes:
        return torch.randint(image.codebook_size, (images, image.count), generator=g)
    return torch.randn(images, image.count, image.channels, generator=g)


def some_known(images: int, masked: int = 10, seed: int = 2) -> Tensor:
    """Random sets of known tokens."""
    g = torch.Generator().manual_seed(seed)
    return torch.rand(images, COUNT, generator=g).argsort(-1).argsort(-1) >= masked


def rows(*contents: list[int], side: str = "right") -> tuple[Tensor, Tensor]:
    """Padded ``input_ids`` and ``attention_mask``."""
    width = max(map(len, contents))
    ids, mask = torch.zeros(len(contents), width, dtype=torch.int64), torch.zeros(len(contents), width, dtype=torch.int64)
    for i, content in enumerate(contents):
        where = slice(0, len(content)) if side == "right" else slice(width - len(content), width)
        ids[i, where], mask[i, where] = torch.tensor(content), 1
    return ids, mask
