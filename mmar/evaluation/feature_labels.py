"""What a feature network learns to tell: the attributes of drawn scenes, or the digit of a scan, as zeros and ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np

from mmar.data.digits import LEVELS, load_scans, split_scans
from mmar.data.scenes.drawing import pixels
from mmar.data.scenes.sampling import sample_scene
from mmar.data.scenes.scene import Scene
from mmar.data.scenes.vocabulary import BACKGROUNDS, COLOURS, MAX_OBJECTS, PAIRS, SHAPES, SIZES, UNITS

Sample = Callable[[Random, int], tuple[np.ndarray, np.ndarray]]
"""``sample(rng, n)``: pixels ``(n, C, S, S)`` float32 in [0, 1] and labels ``(n, L)`` float32."""


@dataclass(frozen=True)
class LabelledPictures:
    """A kind of pictures with labels.

    Attributes:
        kind: Its name.
        image_size: Side, pixels.
        channels: 3 for RGB, 1 for grey.
        labels: Number of zeros and ones.
        train: Draws pictures to learn from.
        test: Draws others.
    """

    kind: str
    image_size: int
    channels: int
    labels: int
    train: Sample
    test: Sample


SCENE_LABELS = (
    *BACKGROUNDS,
    *COLOURS,
    *SHAPES,
    *SIZES,
    "character",
    *(f"{number} objects" for number in range(1, MAX_OBJECTS + 1)),
    *(" ".join(pair) for pair in PAIRS),
)


def scene_labels(scene: Scene) -> np.ndarray:
    """``(73,)`` zeros and ones, in the order of :data:`SCENE_LABELS`: what is there, wherever it is."""
    shown = {scene.background, f"{len(scene)} objects"} | ({"character"} if scene.glyph else set())
    for o in scene.objects:
        shown |= {o.colour, o.shape, o.size, " ".join(o.pair)}
    return np.array([name in shown for name in SCENE_LABELS], dtype=np.float32)


def _scenes(split: str) -> Sample:
    def sample(rng: Random, count: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = [sample_scene(rng, split).scene for _ in range(count)]  # type: ignore[arg-type]
        images = np.stack([pixels(scene) for scene in drawn]).transpose(0, 3, 1, 2)  # (n, 3, 32, 32)
        return images.astype(np.float32) / 255.0, np.stack([scene_labels(scene) for scene in drawn])

    return sample


def _digits(split: str) -> Sample:
    def sample(rng: Random, count: int) -> tuple[np.ndarray, np.ndarray]:
        levels, digits = load_scans()
        scans = split_scans(digits, split)  # type: ignore[arg-type]
        chosen = scans[[int(rng.random() * len(scans)) for _ in range(count)]]
        return levels[chosen, None].astype(np.float32) / LEVELS, np.eye(10, dtype=np.float32)[digits[chosen]]

    return sample


PICTURES = {
    "scenes": LabelledPictures("scenes", UNITS, 3, len(SCENE_LABELS), _scenes("train"), _scenes("test")),
    "digits": LabelledPictures("digits", 8, 1, 10, _digits("train"), _digits("test")),
}


def labelled_pictures(kind: str) -> LabelledPictures:
    """The kind of that name.

    Raises:
        ValueError: If there is none.
    """
    if kind not in PICTURES:
        raise ValueError(f"kind must be one of {', '.join(PICTURES)}, got {kind!r}")
    return PICTURES[kind]
