"""Drawn scenes as images and as a data set: the same pixels and the same examples everywhere."""

from __future__ import annotations

import hashlib
import itertools
import json
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mmar.data import SceneDataset
from mmar.data.draws import stream
from mmar.data.scenes import FAMILIES, Glyph, Scene, SceneObject, draw, sample_scene
from mmar.data.scenes.drawing import pixels
from mmar.data.scenes.vocabulary import BACKGROUNDS, COLOURS, INKS, POSITIONS, SHAPES, SPLITS, Split

GOLDEN = {"train": "cfc948b092e80d5c", "test": "eb3dae7fc214928f", "held_out": "3c77874ba44cefe0"}
"""Of the first examples of each split: images, captions and questions are the same on every machine and for good."""

scenes = st.builds(
    lambda seed, split: sample_scene(stream("test", seed), split).scene, st.integers(0, 10**6), st.sampled_from(SPLITS)
)


@pytest.mark.parametrize("size", [32, 64, 256])
def test_images_have_their_size_and_their_colours(size: int) -> None:
    scene = Scene((SceneObject("red", "square", "small", 2, 3),), "grey", Glyph("L", 20, 20))
    image = draw(scene, size)
    assert (image.mode, image.size) == ("RGB", (size, size))
    scale = size // 32
    values = pixels(scene, size)
    assert (np.asarray(image) == values).all()
    inside = np.zeros((size, size), dtype=bool)
    inside[3 * scale : 9 * scale, 2 * scale : 8 * scale] = True
    assert (values[inside] == COLOURS["red"]).all()
    ink = (values == INKS["grey"]).all(-1)
    assert ink.sum() == (7 + 4) * scale**2  # the two strokes of an L
    assert (values[~inside & ~ink] == BACKGROUNDS["grey"]).all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(scene=scenes)
def test_a_scene_looks_the_same_at_every_size(scene: Scene) -> None:
    """Coverage is sampled at 8 x 8 points of a pixel: at most two rows of them, 2/8, are unsure along a slanting edge."""
    small = pixels(scene, 32) / 255
    reduced = pixels(scene, 256).reshape(32, 8, 32, 8, 3).mean((1, 3)) / 255
    assert abs(small - reduced).max() < 2 / 8
    assert abs(small - reduced).mean() < 2e-3


def test_shapes_differ_in_their_pixels() -> None:
    for size in ("small", "large"):
        images = [pixels(Scene((SceneObject("red", shape, size, 0, 0),))) for shape in SHAPES]
        for a, b in itertools.combinations(images, 2):
            assert (a != b).any(-1).sum() >= 8


@pytest.mark.parametrize("size", [0, 16, 48, -32])
def test_bad_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="size must be a multiple of 32"):
        SceneDataset(size=size)


@pytest.mark.parametrize("split", SPLITS)
def test_the_first_examples_stay_for_good(split: Split) -> None:
    """The number was computed in another process: it also shows that nothing depends on the hash seed of a process."""
    digest = hashlib.sha256()
    for example in SceneDataset(split, 40, questions=4):
        digest.update(example.image.tobytes())
        digest.update(json.dumps([example.key, example.caption, example.captions, example.turns]).encode())
    assert digest.hexdigest()[:16] == GOLDEN[split]


def test_examples_depend_on_arguments_and_index_alone() -> None:
    data = SceneDataset("train", 50, questions=3)
    copy = pickle.loads(pickle.dumps(data))  # as a worker process gets it
    assert [copy[i] for i in (7, 3, 49)] == [data[i] for i in (7, 3, 49)]
    assert SceneDataset("train", 8, questions=3)[7] == data[7]
    assert SceneDataset("train", 50, questions=3, seed=1)[7].meta != data[7].meta
    assert len({data[i].key for i in range(50)}) == 50


def test_size_changes_the_pixels_only() -> None:
    for small, large in zip(SceneDataset(length=20, questions=4), SceneDataset(length=20, questions=4, size=64), strict=True):
        assert (small.caption, small.captions, small.turns, small.meta) == (
            large.caption,
            large.captions,
            large.turns,
            large.meta,
        )
        assert large.image.size == (64, 64)


def test_meta_holds_the_scene() -> None:
    for example in SceneDataset("held_out", 20):
        assert draw(Scene.from_dict(example.meta["scene"])) == example.image
        assert json.loads(json.dumps(example.meta)) == example.meta


def test_families_and_numbers_of_questions() -> None:
    data = SceneDataset("train", 200, questions=6, families=["colour", "position", "reading", "counting"])
    for example in data:
        assert len({question for question, _ in example.turns}) == len(example.turns) == len(example.meta["families"])
        assert set(example.meta["families"]) <= {"colour", "position", "reading", "counting"}
    assert np.mean([len(example.turns) for example in data]) > 5.5
    only = SceneDataset("train", 40, families=["reading"])
    assert all(example.meta["scene"]["glyph"] for example in only)
    first = Counter(example.meta["families"][0] for example in data)
    assert stats.chisquare(list(first.values())).pvalue > 1e-4


@pytest.mark.parametrize("most", [1, 2, 3])
def test_easier_scenes_have_fewer_objects(most: int) -> None:
    data = SceneDataset("train", 200, questions=3, max_objects=most)
    numbers = Counter(len(example.meta["scene"]["objects"]) for example in data)
    assert set(numbers) == set(range(1, most + 1))
    asked = {family for example in data for family in example.meta["families"]}
    assert asked == set(FAMILIES) - (set() if most > 1 else {"relation"})
    captioned = SceneDataset("train", 50, caption_only=True, max_objects=most)
    assert max(len(example.meta["scene"]["objects"]) for example in captioned) == most


def test_captions_only() -> None:
    for example in SceneDataset("train", 10, caption_only=True):
        assert example.turns == ()
        assert example.caption


@pytest.mark.parametrize(
    "options",
    [
        {"split": "validation"},
        {"length": 0},
        {"questions": 0},
        {"families": []},
        {"families": ["colour", "colour"]},
        {"families": ["size"]},
        {"families": "colour"},
        {"max_objects": 0},
        {"max_objects": 5},
        {"max_objects": 1, "families": ["colour", "relation"]},
    ],
    ids=str,
)
def test_bad_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        SceneDataset(**options)


def test_an_index_out_of_range_is_refused() -> None:
    data = SceneDataset(length=3)
    assert len(list(data)) == 3
    for index in (-1, 3):
        with pytest.raises(IndexError, match=r"index must lie in 0 \.\. 2"):
            data[index]


def test_positions_read_row_by_row() -> None:
    words = [SceneObject("red", "circle", "small", x, y).position for y in (2, 13, 24) for x in (2, 13, 24)]
    assert tuple(words) == POSITIONS
