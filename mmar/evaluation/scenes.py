"""What drawn scenes show, read by the exact detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from mmar.data.example import Example
from mmar.data.scenes import Scene, SceneScore, detect, score
from mmar.generation.settings import ImageGenerationConfig
from mmar.pipeline import MMARPipeline


@dataclass(frozen=True)
class Drawn:
    """A caption, its picture and what the picture shows of it.

    Attributes:
        caption: The fullest one: it tells every place.
        image: As drawn.
        score: Of the picture.
    """

    caption: str
    image: Image.Image
    score: SceneScore


def draw_scenes(
    pipeline: MMARPipeline,
    examples: Sequence[Example],
    *,
    settings: ImageGenerationConfig | None = None,
    seed: int = 0,
    batch_size: int = 50,
    tick: Callable[[int], None] | None = None,
) -> list[Drawn]:
    """Draw the captions of drawn scenes and read the pictures.

    Args:
        pipeline: Draws.
        examples: Of :class:`mmar.data.scenes.SceneDataset`.
        settings: How; those of the pipeline by default.
        seed: Each picture has random numbers of its own.
        batch_size: Pictures at a time.
        tick: Told the number of pictures that are done.
    """
    found: list[Drawn] = []
    for start in range(0, len(examples), batch_size):
        part = [examples[i] for i in range(start, min(start + batch_size, len(examples)))]
        captions = [str(example.caption) for example in part]
        seeds = [seed + start + i for i in range(len(part))]
        pictures = pipeline.draw(captions, settings=settings, seed=seeds)
        found += [
            Drawn(caption, picture, read(picture, example))
            for caption, picture, example in zip(captions, pictures, part, strict=True)
        ]
        if tick is not None:
            tick(len(part))
    return found


def read(picture: Image.Image, example: Example) -> SceneScore:
    """Compare a picture with the scene that an example is of."""
    return score(detect(picture.convert("RGB")), Scene.from_dict(example.meta["scene"]))
