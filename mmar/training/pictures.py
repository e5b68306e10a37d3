"""Sample grids while a run goes on."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from mmar.data.order import StreamSettings
from mmar.generation.settings import ImageGenerationConfig
from mmar.pipeline import MMARPipeline
from mmar.tokenizers import ImageTokenizer
from mmar.training.config import TrainingConfig
from mmar.training.sources import make_stream

SIDE = 128
"""Pixels of a picture in a grid, at least."""


def draw_grid(pipeline: MMARPipeline, config: TrainingConfig, folder: Path, step: int) -> Path:
    """Draw the configured captions, or the first ones of the data, with the run's own seed at every step."""
    ar_steps, head_steps = config.saving.sample_steps
    count = pipeline.model.config.image_config.count
    causal = pipeline.model.config.is_causal
    settings = ImageGenerationConfig(
        ar_steps=None if causal else min(ar_steps, count), head_steps=head_steps, max_timestep="safe"
    )
    captions = config.saving.samples or _first_captions(config, pipeline.image_tokenizer)
    pictures = pipeline.draw(captions, settings=settings, seed=config.seed)
    path = folder / "samples" / f"step-{step:09d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(pictures).save(path)
    return path


def grid(pictures: list[Image.Image], columns: int = 8, side: int = SIDE) -> Image.Image:
    """Pictures side by side with white lines between, small ones enlarged pixel by pixel."""
    size = max(side, pictures[0].width)
    gap = max(1, size // 16)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (size + gap) - gap, rows * (size + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        large = picture.convert("RGB").resize((size, size), Image.Resampling.NEAREST)
        sheet.paste(large, (i % columns * (size + gap), i // columns * (size + gap)))
    return sheet


def _first_captions(config: TrainingConfig, tokenizer: ImageTokenizer, count: int = 8) -> list[str | None]:
    """None, unconditional, where the data have no captions."""
    stream = make_stream(config.data, StreamSettings(seed=config.seed, epochs=1), tokenizer)
    captions: list[str | None] = []
    for item in stream.read():
        example = item[1] if isinstance(item, tuple) else item
        if example.caption is not None:
            captions.append(example.caption)
        if len(captions) == count:
            break
    return captions or [None] * count
