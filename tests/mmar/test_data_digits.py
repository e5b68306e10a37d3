"""Digits: exact pixels, a split that never moves, questions with one right answer that their words do not tell."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter, defaultdict
from random import Random

import numpy as np
import pytest

import mmar.data
from mmar.data import DigitDataset, Example
from mmar.data.digits import (
    DIGIT_CHANCE,
    DIGIT_FAMILIES,
    NUMBERS,
    captions,
    load_scans,
    split_scans,
    to_image,
    to_levels,
)
from mmar.processing import MMARImageProcessor


@pytest.fixture(scope="module")
def train() -> DigitDataset:
    return DigitDataset("train", questions=3)


def answer(question: str, digit: int) -> str:
    """The right answer, from the words alone: no code shared with the data set."""
    if found := re.search(r"larger than (\w+)\?", question):
        return "yes" if digit > NUMBERS.index(found[1]) else "no"
    if found := re.search(r"smaller than (\w+)\?", question):
        return "yes" if digit < NUMBERS.index(found[1]) else "no"
    if found := re.search(r"an (even|odd) number", question):
        return "yes" if found[1] == ("even", "odd")[digit % 2] else "no"
    if "odd" in question:
        return ("even", "odd")[digit % 2]
    if "more" in question or "next" in question:
        return ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"][digit + 1]
    if "less" in question or "before" in question:
        return ["minus one", *NUMBERS][digit]
    if found := re.search(r"(?:is this|show) an? (\w+)\?", question):
        return "yes" if NUMBERS.index(found[1]) == digit else "no"
    assert re.search(r"(digit|number)", question), question
    return NUMBERS[digit]


def test_levels_and_pixels_are_each_others_inverse() -> None:
    levels, _ = load_scans()
    assert set(np.unique(levels)) == set(range(17))
    assert all((to_levels(to_image(scan)) == scan).all() for scan in levels)
    assert np.asarray(to_image(np.array([[0, 16]]))).tolist() == [[0, 255]]


def test_levels_survive_the_image_processor(train: DigitDataset) -> None:
    processor = MMARImageProcessor(image_size=8, channels=1)
    images = [train[i].image for i in range(50)]
    back = processor.to_pil(processor.preprocess(images)["pixel_values"])
    assert all((to_levels(image) == train.levels[train.scans[i]]).all() for i, image in enumerate(back))


def test_the_split_is_stratified_and_stays_for_good() -> None:
    _, labels = load_scans()
    train, test = split_scans(labels, "train"), split_scans(labels, "test")
    assert sorted([*train, *test]) == list(range(1797))
    shares = np.bincount(labels[test]) / np.bincount(labels)
    assert ((shares > 0.24) & (shares <= 0.25)).all()  # every fourth, rounded down
    digest = hashlib.sha256(test.astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == "ef7d9d14ab922d0a"


def test_examples(train: DigitDataset) -> None:
    example = train[7]
    digit = example.meta["digit"]
    assert isinstance(example, Example)
    assert example.image.size == (8, 8)
    assert train.labels[example.meta["scan"]] == digit
    assert (to_levels(example.image) == train.levels[example.meta["scan"]]).all()
    assert {example.caption, *example.captions} == set(captions(digit))
    assert example.reading().turns == example.turns
    assert {example.drawing(Random(i)).caption for i in range(60)} == set(captions(digit))
    assert example.drawing().caption == example.caption
    question, answer = example.describing().turns[0]
    assert (question, answer) == ("Describe the image.", example.caption)


def test_captions_tell_the_digit() -> None:
    for digit in range(10):
        told = [{word for word in re.findall(r"\w+", text) if word in NUMBERS or word.isdigit()} for text in captions(digit)]
        assert all(words in ({str(digit)}, {NUMBERS[digit]}) for words in told)


def test_answers_are_right() -> None:
    for split in ("train", "test"):
        data = DigitDataset(split, questions=8)
        for i in range(0, len(data), 3):
            example = data[i]
            assert len({question for question, _ in example.turns}) == 8
            assert all(answer(question, example.meta["digit"]) == given for question, given in example.turns)


@pytest.mark.parametrize("family", DIGIT_FAMILIES)
def test_words_do_not_tell_answers(family: str) -> None:
    """With all digits as frequent, the best guess for each wording is right by chance, within five standard deviations."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for digit in range(10):
        rng = Random(digit)
        for _ in range(1500):
            question, given = DIGIT_FAMILIES[family](digit, rng)
            seen[question][given] += 1
    for question, answers in seen.items():
        asked, chance = sum(answers.values()), DIGIT_CHANCE[family]
        allowed = chance + 5 * (chance * (1 - chance) / asked) ** 0.5
        assert max(answers.values()) / asked < allowed, (question, answers)


def test_thresholds_drawn_without_a_partner_would_tell() -> None:
    """The control of the test above: with any threshold below nine, "larger than zero" is nine times out of ten true."""
    larger = Counter(digit > 0 for digit in range(10))
    assert larger[True] / 10 > DIGIT_CHANCE["comparison"] + 0.3


def test_examples_depend_on_seed_and_index_alone() -> None:
    data = DigitDataset("test", questions=2, rounds=2)
    again = DigitDataset("test", questions=2, rounds=2)
    assert len(data) == 2 * 445
    assert [again[i] for i in (5, 3, 880)] == [data[i] for i in (5, 3, 880)]
    assert data[0].image == data[445].image
    assert len({data[i].key for i in range(len(data))}) == len(data)
    turns = [[d[i].turns for i in range(100)] for d in (data, DigitDataset("test", questions=2, seed=1))]
    assert turns[0] != turns[1]
    assert turns[0] != [data[445 + i].turns for i in range(100)]


def test_options() -> None:
    assert DigitDataset("test", caption_only=True)[0].turns == ()
    only = DigitDataset("test", families=["parity"])
    assert {only[i].meta["families"][0] for i in range(30)} == {"parity"}


@pytest.mark.parametrize(
    "options",
    [{"split": "all"}, {"questions": 0}, {"rounds": 0}, {"families": []}, {"families": ["sum"]}, {"families": "parity"}],
    ids=str,
)
def test_bad_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        DigitDataset(**options)


def test_bad_values_are_refused(train: DigitDataset) -> None:
    with pytest.raises(IndexError, match=r"0 \.\. 1351, got 1352"):
        train[1352]
    with pytest.raises(ValueError, match=r"levels must lie in 0 \.\. 16"):
        to_image(np.array([[17]]))
    with pytest.raises(ValueError, match="mode of the image must be L"):
        to_levels(train[0].image.convert("RGB"))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="scikit-learn must be installed"):
        DigitDataset()


def test_an_example_checks_itself(train: DigitDataset) -> None:
    image = train[0].image
    with pytest.raises(ValueError, match="key"):
        Example("", image)
    with pytest.raises(TypeError, match="Pillow"):
        Example("a", np.zeros((8, 8)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="caption must be a string"):
        Example("a", image, 7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="captions must go with a caption"):
        Example("a", image, captions=("b",))
    bare = Example("a", image)
    assert bare.drawing().caption is None
    with pytest.raises(ValueError, match="turns must hold"):
        bare.reading()
    with pytest.raises(ValueError, match="caption must be a string"):
        bare.describing()


def test_public_names_are_there() -> None:
    assert all(getattr(mmar.data, name).__name__ == name for name in mmar.data.__all__)
    assert set(mmar.data.__all__) <= set(dir(mmar.data))
    with pytest.raises(AttributeError, match="no attribute"):
        mmar.data.Digits  # noqa: B018
