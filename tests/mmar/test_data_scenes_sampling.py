"""Scenes at random: what may be in them, how often, and who sees which."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mmar.data import SceneDataset
from mmar.data.draws import some, stream
from mmar.data.scenes import Glyph, Scene, SceneObject, sample_scene
from mmar.data.scenes.font import CHARACTERS, bitmap
from mmar.data.scenes.sampling import COUNTED_GIVEN_OBJECTS
from mmar.data.scenes.vocabulary import BACKGROUNDS, COLOURS, HELD_OUT, PAIRS, SHAPES, SPLITS, TRAINED, Split

scenes = st.builds(
    lambda seed, split: sample_scene(stream("test", seed), split).scene, st.integers(0, 10**6), st.sampled_from(SPLITS)
)


def drawn(split: Split, count: int) -> list[Scene]:
    return [sample_scene(stream("test", split, i), split).scene for i in range(count)]


def pairs_in(text: str) -> set[tuple[str, str]]:
    """Colours directly before shapes."""
    found = re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", text)
    return set(found)


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
