"""What an arm trained on drawn scenes of one object can do: questions answered, attributes drawn, distances of features."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from PIL import Image

from experiments.head_study.decompose import over_seeds
from experiments.paper_study.measure import Amount, ways_of
from experiments.paper_study.runs import SUBJECTS, WEIGHTS
from mmar.data.example import Example
from mmar.data.scenes import SceneDataset, average
from mmar.data.scenes.vocabulary import UNITS, Split
from mmar.evaluation.feature_network import FeatureNetwork
from mmar.evaluation.feature_training import train_feature_network
from mmar.evaluation.fidelity import measure_fidelity
from mmar.evaluation.scenes import ask_scenes, draw_scenes, read
from mmar.generation.settings import ImageGenerationConfig
from mmar.picture_codec import PictureCodec
from mmar.pipeline import MMARPipeline
from mmar.processing import MMARImageProcessor
from mmar.tokenizers import load_image_tokenizer

FAMILIES = ("existence", "colour", "shape", "position")
"""Of questions: those of ``configs/objects-stage1.yaml``."""
SPLITS: tuple[Split, ...] = ("test", "held_out")
ATTRIBUTES = ("background", "count", "colour", "shape", "size", "position", "exact")
"""Of what was drawn, by the exact detector."""
DISTANCES = ("frechet", "kernel", "precision", "recall")


def measure_objects(pipeline: MMARPipeline, amount: Amount, seed: int) -> dict[str, Any]:
    """Questions about test scenes and about pairs of colour and shape that training never met; test captions drawn."""
    drawing = {way: _draw(pipeline, settings, amount, seed) for way, settings in ways_of(pipeline, amount.head_steps).items()}
    reading = {split: ask_scenes(pipeline, split, amount.asked, families=FAMILIES, max_objects=1) for split in SPLITS}
    return {"reading": reading, "drawing": drawing}


def measure_float32(pipeline: MMARPipeline, amount: Amount, seed: int) -> dict[str, Any]:
    """The control of bf16 in drawing: the same weights, the same noise, everything in float32."""
    pipeline.model.float()
    pipeline.compute_dtype = torch.float32
    ways = ways_of(pipeline, amount.head_steps)
    return {"drawing": {f"{way}_float32": _draw(pipeline, settings, amount, seed) for way, settings in ways.items()}}


def _draw(pipeline: MMARPipeline, settings: ImageGenerationConfig, amount: Amount, seed: int) -> dict[str, Any]:
    scenes = captions_of("test", amount.drawn)
    drawn = draw_scenes(pipeline, scenes, settings=settings, seed=seed * len(scenes))
    distances = _distances([one.image for one in drawn], amount.drawn)
    return {**average([one.score for one in drawn]), **distances, "settings": settings.to_dict()}


def captions_of(split: Split, count: int, *, seed: int = 0) -> list[Example]:
    """Scenes of one object with their captions."""
    scenes = SceneDataset(split, count, caption_only=True, max_objects=1, seed=seed)
    return [scenes[i] for i in range(count)]


def references(amount: Amount) -> dict[str, dict[str, Any]]:
    """What real training scenes score, as many as are drawn, and what test scenes do that only went through an autoencoder."""
    training, scenes = captions_of("train", amount.drawn), captions_of("test", amount.drawn)
    subject, pictures = SUBJECTS["objects"], [scene.image for scene in scenes]
    found = {
        "real scenes": ([scene.image for scene in training], training),
        "test scenes after the autoencoder": (_reconstructed(pictures, subject.continuous), scenes),
        "test scenes after that with a codebook": (_reconstructed(pictures, subject.discrete), scenes),
    }
    return {
        name: {**average([read(image, one) for image, one in zip(images, of, strict=True)]), **_distances(images, amount.drawn)}
        for name, (images, of) in found.items()
    }


def over_seeds_of_objects(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of one arm over its seeds: mean, smallest and largest."""
    first = seeds[0]
    return {
        "reading": {
            split: {
                "mean": over_seeds([seed["reading"][split]["mean"] for seed in seeds]),
                **{
                    family: over_seeds([_share(seed["reading"][split]["families"][family]) for seed in seeds])
                    for family in FAMILIES
                },
            }
            for split in SPLITS
        },
        "drawing": {
            way: {name: over_seeds([seed["drawing"][way].get(name) for seed in seeds]) for name in (*ATTRIBUTES, *DISTANCES)}
            for way in first["drawing"]
        },
        "training_s": over_seeds([seed["training_s"] for seed in seeds]),
        "trained_parameters": first["parameters"],
        "devices": [seed["device"] for seed in seeds],
    }


def _reconstructed(pictures: list[Any], tokenizer: str) -> list[Image.Image]:
    codec = PictureCodec(MMARImageProcessor(UNITS, 3), load_image_tokenizer(WEIGHTS / tokenizer), "vq" in tokenizer)
    return codec.decode(codec.encode(pictures, torch.device("cpu")))


def _share(family: Mapping[str, Any]) -> float:
    return float(family["right"] / family["asked"])


def _distances(pictures: Sequence[Image.Image], count: int) -> dict[str, Any]:
    """From other test scenes than those whose captions are drawn; a smoke test has none."""
    if len(pictures) <= 3:
        return {}
    real = [scene.image for scene in captions_of("test", count, seed=1)]
    return asdict(measure_fidelity(_scene_features(), real, pictures, subsets=20))


@functools.cache
def _scene_features() -> FeatureNetwork:
    """A minute to train, and the same each time."""
    return train_feature_network("scenes")
