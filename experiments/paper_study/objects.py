"""What an arm trained on drawn scenes of one object can do: questions answered, attributes drawn, distances of features."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from experiments.head_study.decompose import over_seeds
from experiments.paper_study.measure import Amount, ways_of
from mmar.data.example import Example
from mmar.data.scenes import CHANCE, SceneDataset, average
from mmar.data.scenes.vocabulary import Split
from mmar.evaluation.feature_network import FeatureNetwork
from mmar.evaluation.feature_training import train_feature_network
from mmar.evaluation.fidelity import measure_fidelity
from mmar.evaluation.scenes import draw_scenes, read
from mmar.evaluation.understanding import ask, by_family, mean_accuracy
from mmar.pipeline import MMARPipeline

FAMILIES = ("existence", "colour", "shape", "position")
"""Of questions: those of ``configs/objects-stage1.yaml``."""
SPLITS: tuple[Split, ...] = ("test", "held_out")
ATTRIBUTES = ("count", "colour", "shape", "size", "position", "exact")
"""Of what was drawn, by the exact detector."""
DISTANCES = ("frechet", "kernel", "precision", "recall")


def measure_objects(pipeline: MMARPipeline, amount: Amount, seed: int) -> dict[str, Any]:
    """Questions about test scenes and about pairs of colour and shape that training never met; test captions drawn."""
    scenes = captions_of("test", amount.drawn)
    drawing = {}
    for way, settings in ways_of(pipeline, amount.head_steps).items():
        drawn = draw_scenes(pipeline, scenes, settings=settings, seed=seed * len(scenes))
        distances = _distances([one.image for one in drawn], amount.drawn)
        drawing[way] = {**average([one.score for one in drawn]), **distances, "settings": settings.to_dict()}
    return {"reading": {split: read_objects(pipeline, amount.asked, split) for split in SPLITS}, "drawing": drawing}


def read_objects(pipeline: MMARPipeline, asked: int, split: Split) -> dict[str, Any]:
    """``asked`` questions of each family, each about a scene of its own; ``mean`` is our AVE."""
    accuracies = {}
    for family in FAMILIES:
        scenes = SceneDataset(split, asked, families=[family], max_objects=1)
        accuracies[family] = by_family(ask(pipeline, [scenes[i] for i in range(asked)]))[family]
    families = {name: {**asdict(one), "chance": CHANCE[name]} for name, one in accuracies.items()}
    return {"families": families, "mean": mean_accuracy(accuracies)}


def captions_of(split: Split, count: int, *, seed: int = 0) -> list[Example]:
    """Scenes of one object with their captions."""
    scenes = SceneDataset(split, count, caption_only=True, max_objects=1, seed=seed)
    return [scenes[i] for i in range(count)]


def references(amount: Amount, pipeline: MMARPipeline) -> dict[str, dict[str, Any]]:
    """What real training scenes score, as many as are drawn, and what test scenes do that only went through the autoencoder."""
    training, scenes = captions_of("train", amount.drawn), captions_of("test", amount.drawn)
    found = {
        "real scenes": ([scene.image for scene in training], training),
        "reconstructed test scenes": ([pipeline.reconstruct(scene.image) for scene in scenes], scenes),
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
