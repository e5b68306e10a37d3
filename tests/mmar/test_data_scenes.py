"""Drawn scenes: what may be in them, who sees which, and the same pixels everywhere."""

from __future__ import annotations

import hashlib
import itertools
import json
import pickle
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mmar.data import SceneDataset
from mmar.data.draws import some, stream
from mmar.data.scenes import Glyph, Scene, SceneObject, draw, sample_scene
from mmar.data.scenes.drawing import pixels
from mmar.data.scenes.font import CHARACTERS, bitmap
from mmar.data.scenes.sampling import COUNTED_GIVEN_OBJECTS
from mmar.data.scenes.vocabulary import BACKGROUNDS, COLOURS, HELD_OUT, INKS, PAIRS, POSITIONS, SHAPES, SPLITS, TRAINED, Split

GOLDEN = {"train": "cfc948b092e80d5c", "test": "eb3dae7fc214928f", "held_out": "3c77874ba44cefe0"}
"""Of the first examples of each split: images, captions and questions are the same on every machine and for good."""

scenes = st.builds(
    lambda seed, split: sample_scene(stream("test", seed), split).scene, st.integers(0, 10**6), st.sampled_from(SPLITS)
)


def drawn(split: Split, count: int) -> list[Scene]:
    return [sample_scene(stream("test", split, i), split).scene for i in range(count)]


def pairs_in(text: str) -> set[tuple[str, str]]:
    """Colours directly before shapes."""
    found = re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", text)
    return set(found)


# -- scenes -----------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, derandomize=True)
@given(scene=scenes)
def test_things_lie_apart_and_no_place_is_in_doubt(scene: Scene) -> None:
    things = [*scene.objects, *([scene.glyph] if scene.glyph else [])]
    canvas = np.zeros((32, 32), dtype=int)
    for thing in things:
        left, top, width, height = thing.box
        assert left >= 0
        assert top >= 0
        assert left + width <= 32
        assert top + height <= 32
        canvas[max(0, top - 1) : top + height + 1, max(0, left - 1) : left + width + 1] += 1  # a unit more on each side
        for start, extent in ((left, width), (top, height)):
            assert min(abs(start + extent / 2 - line) for line in (32 / 3, 64 / 3)) >= 1
    assert canvas.max() == 1
    assert len({thing.cell for thing in things}) == len(things)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(scene=scenes)
def test_a_scene_survives_json(scene: Scene) -> None:
    assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


@settings(max_examples=50, deadline=None, derandomize=True)
@given(scene=scenes)
def test_the_digest_is_of_what_is_seen(scene: Scene) -> None:
    turned = Scene(tuple(reversed(scene.objects)), scene.background, scene.glyph)
    assert turned.digest() == scene.digest()
    other = next(name for name in BACKGROUNDS if name != scene.background)
    assert Scene(scene.objects, other, scene.glyph).digest() != scene.digest()


@pytest.mark.parametrize("split", SPLITS)
def test_everything_is_as_frequent(split: Split) -> None:
    """Chi squared on what is drawn uniformly; counts of objects of one scene depend on each other, so one object each."""
    many = drawn(split, 3000)
    one = [scene.objects[0] for scene in many]
    for values, kinds in (
        ([len(scene) for scene in many], 4),
        ([o.colour for o in one], 7),
        ([o.shape for o in one], 7),
        ([o.size for o in one], 2),
        ([o.cell for o in one], 9),
        ([scene.background for scene in many], 3),
        ([scene.glyph.character for scene in many if scene.glyph], len(CHARACTERS)),
    ):
        counts = Counter(values)
        assert len(counts) == kinds
        assert stats.chisquare(list(counts.values())).pvalue > 1e-4
    printed = sum(scene.glyph is not None for scene in many) / 3000
    assert printed == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 3000) ** 0.5)


def test_counted_numbers_are_uniform_by_the_table() -> None:
    rows = [np.pad(row, (0, 5 - len(row))) for row in COUNTED_GIVEN_OBJECTS.values()]
    assert [sum(row) for row in rows] == pytest.approx([1.0] * 4)
    assert sum(rows).tolist() == pytest.approx([1, 1, 1, 1, 0])
    assert all(not row[n + 1 :].any() for n, row in zip(COUNTED_GIVEN_OBJECTS, rows, strict=True))


@pytest.mark.parametrize(
    ("objects", "options", "message"),
    [
        ([], {}, "objects must number 1 to 4"),
        ([("red", "circle", "small", 0, 0)], {"background": "pink"}, "background must be one of"),
        ([("red", "circle", "small", 0, 0), ("red", "circle", "small", 2, 2)], {}, "different cells"),
        ([("red", "circle", "large", 0, 0), ("red", "circle", "large", 10, 0)], {}, "units apart"),
        ([("pink", "circle", "small", 0, 0)], {}, "colour must be one of"),
        ([("red", "star", "small", 0, 0)], {}, "shape must be one of"),
        ([("red", "circle", "huge", 0, 0)], {}, "size must be one of"),
        ([("red", "circle", "large", 24, 0)], {}, "a box must lie in an image"),
    ],
)
def test_bad_scenes_are_refused(objects: list[tuple], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scene(tuple(SceneObject(*o) for o in objects), **options)


def test_bad_characters_are_refused() -> None:
    for refused in (lambda: Glyph("?", 0, 0), lambda: bitmap("B")):
        with pytest.raises(ValueError, match="character must be one of"):
            refused()


def test_permutations_are_as_frequent() -> None:
    rng = stream("permutations")
    counts = Counter(tuple(some(rng, "abc", 3)) for _ in range(3000))
    assert len(counts) == 6
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


# -- splits -----------------------------------------------------------------------------------------------------------


def test_held_out_pairs_are_as_many_for_each_word() -> None:
    assert sorted([*HELD_OUT, *TRAINED]) == sorted(PAIRS)
    assert set(Counter(colour for colour, _ in HELD_OUT).values()) == {2}
    assert set(Counter(shape for _, shape in HELD_OUT).values()) == {2}


def test_training_never_meets_held_out_pairs() -> None:
    data = SceneDataset("train", 5000, questions=3)
    seen: set[tuple[str, str]] = set()
    for example in data:
        seen |= {(o["colour"], o["shape"]) for o in example.meta["scene"]["objects"]}
        seen |= pairs_in(" ; ".join([example.caption, *example.captions, *itertools.chain(*example.turns)]))
    assert seen == set(TRAINED)


def test_held_out_scenes_show_held_out_pairs_and_ask_for_them() -> None:
    data = SceneDataset("held_out", 300, families=["existence", "relation"])
    for example in data:
        assert pairs_in(example.caption) & set(HELD_OUT)
        if example.meta["families"] == ["existence"]:
            assert not pairs_in(example.turns[0][0]) & set(TRAINED)


def test_no_test_scene_is_a_training_scene() -> None:
    """With one object in the middle of its cell there are 1890 scenes: two seeds meet."""

    def shown(split: Split, seed: int) -> set[tuple]:
        sampled = (sample_scene(stream(seed, i), split).scene for i in range(4000))
        return {(scene.objects, scene.background) for scene in sampled if len(scene) == 1 and scene.glyph is None}

    train, again, test = shown("train", 1), shown("train", 2), shown("test", 3)
    assert train & again  # the control
    assert not train & test


# -- pixels -----------------------------------------------------------------------------------------------------------


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


# -- data set ---------------------------------------------------------------------------------------------------------


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
        with pytest.raises(IndexError, match="index must lie in 0 .. 2"):
            data[index]


def test_positions_read_row_by_row() -> None:
    words = [SceneObject("red", "circle", "small", x, y).position for y in (2, 13, 24) for x in (2, 13, 24)]
    assert tuple(words) == POSITIONS
