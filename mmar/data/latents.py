"""Encode the images of a stream once, so that training needs neither images nor the encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmar.data.example import Example
from mmar.data.latent_files import text_record
from mmar.data.latent_writer import LatentWriter
from mmar.data.loader import StreamLoader
from mmar.data.skipped import Skipped
from mmar.data.stream import Stream
from mmar.processing.image_processor import MMARImageProcessor
from mmar.tokenizers.base import ImageTokenizer
from mmar.tokenizers.checks import NonFiniteImages

Batch = tuple[Tensor, list[dict[str, Any]]]
"""Pixels ``(B, C, H, W)`` and a record of texts for each."""


def cache_latents(
    stream: Stream[Example],
    tokenizer: ImageTokenizer,
    folder: str | Path,
    *,
    image_processor: MMARImageProcessor | None = None,
    batch_size: int = 16,
    images_per_shard: int = 2048,
    num_workers: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Skipped:
    """Write a latent cache, or go on with one that was interrupted.

    Stored are means and standard deviations of the posterior, codes where there is a codebook, tokens otherwise, in float32
    and int32: for 256 tokens of 16 channels 32 kB per image, and as much again with a posterior. Each rank writes files of its
    own. An interruption costs the images of the shard that was being filled.

    Args:
        stream: One epoch of examples.
        tokenizer: Whose tokens; moved to ``device``.
        folder: Of the cache.
        image_processor: Makes the pixels; by default one of the tokenizer's size and colours.
        batch_size: Images that are encoded together.
        images_per_shard: Images in a file at least, rounded up to whole batches.
        num_workers: Processes that decode images.
        dtype: What the tokenizer computes in.
        device: Where it computes.
        progress: Called with the number of images after each batch.

    Returns:
        What was stored and left out by this rank.

    Raises:
        ValueError: If the stream has not exactly one epoch, or the cache was begun with other data, another tokenizer or other
            pixels.
    """
    if stream.settings.epochs != 1:
        raise ValueError(f"stream must have one epoch to be cached, got {stream.settings.epochs}; use StreamSettings(epochs=1)")
    if images_per_shard < 1:
        raise ValueError(f"images_per_shard must be at least 1, got {images_per_shard}")
    processor = image_processor or MMARImageProcessor(tokenizer.image_size, tokenizer.image_channels)
    collate: Callable[[list[Example]], Batch] = Collate(processor)
    loader = StreamLoader(stream, batch_size, collate, num_workers=num_workers)
    Path(folder).mkdir(parents=True, exist_ok=True)
    described = {
        "identity": tokenizer.identity,
        "pixels": {name: getattr(processor, name) for name in ("image_size", "channels", "do_resize", "resample")},
        "data": stream.identity(),
        "world_size": stream.settings.world_size,
    }
    cache = LatentWriter(Path(folder), stream.settings.rank, described)
    if (report := cache.finished()) is not None:
        return report
    if (state := cache.resume()) is not None:
        loader.load_state_dict(state)
    encoder = tokenizer.to(device)
    for pixels, texts in loader:
        kept, tensors = _encoded(encoder, pixels.to(device), dtype)
        cache.add(tensors, texts, kept, loader)
        if cache.waiting >= images_per_shard:
            cache.write_shard()
        if progress is not None:
            progress(len(texts))
    return cache.finish(loader)


@dataclass(frozen=True)
class Collate:
    """Examples to pixels and texts.

    Attributes:
        image_processor: Makes the pixels.
    """

    image_processor: MMARImageProcessor

    def __call__(self, examples: list[Example]) -> Batch:
        """Batch them."""
        pixels = self.image_processor([example.image for example in examples])["pixel_values"]
        return pixels, [text_record(example) for example in examples]


def _encoded(tokenizer: ImageTokenizer, pixels: Tensor, dtype: torch.dtype | None) -> tuple[list[int], dict[str, Tensor]]:
    """Which images have finite tokens, and these."""
    kept = list(range(len(pixels)))
    while True:
        try:
            return kept, _tensors(tokenizer, pixels[kept], dtype)
        except NonFiniteImages as error:
            bad = {kept[i] for i in error.images}
            kept = [i for i in kept if i not in bad]


def _tensors(tokenizer: ImageTokenizer, pixels: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
    if tokenizer.codebook_size is not None:
        return {"codes": tokenizer.encode_codes(pixels, dtype=dtype).to("cpu", torch.int32)}
    mean, std = tokenizer.encode_posterior(pixels, dtype=dtype)
    return {"mean": mean.cpu()} if std is None else {"mean": mean.cpu(), "std": std.cpu()}
