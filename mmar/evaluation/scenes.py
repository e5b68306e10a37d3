"""Scenes as a benchmark: questions of each family, and what drawn ones show, read by the exact detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from mmar.data.example import Example
from mmar.data.scenes import CHANCE, FAMILIES, Scene, SceneDataset, SceneScore, detect, score
from mmar.data.scenes.vocabulary import MAX_OBJECTS, Split
from mmar.evaluation.understanding import Answered, ask, by_family, mean_accuracy
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


def ask_scenes(
    pipeline: MMARPipeline,
    split: Split,
    asked: int,
    *,
    families: Sequence[str] = tuple(FAMILIES),
    max_objects: int = MAX_OBJECTS,
    asker: Callable[[MMARPipeline, list[Example]], list[Answered]] = ask,
    tick: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Ask about scenes, family by family, each question about a scene of its own: a second would tell what the scene holds.

    Args:
        pipeline: Answers.
        split: Of the scenes.
        asked: Questions of each family.
        families: Of questions.
        max_objects: In a scene.
        asker: ``ask``, about images; :func:`mmar.evaluation.reading_text.ask_caption` asks about captions instead.
        tick: Told the number of families that are done.

    Returns:
        ``families``: right answers, questions, standard error and chance of each; ``mean``: over families, our AVE.
    """
    accuracies = {}
    for family in families:
        scenes = SceneDataset(split, asked, families=[family], max_objects=max_objects)
        accuracies[family] = by_family(asker(pipeline, [scenes[i] for i in range(asked)]))[family]
        if tick is not None:
            tick(1)
    found = {name: {**asdict(one), "standard_error": one.standard_error} for name, one in accuracies.items()}
    return {
        "families": {name: {**one, "chance": CHANCE[name]} for name, one in found.items()},
        "mean": mean_accuracy(accuracies),
    }


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
