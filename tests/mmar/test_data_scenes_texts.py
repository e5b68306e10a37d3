"""Captions and questions of drawn scenes: true, complete, with one right answer that words do not tell."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from typing import Any

import pytest
from scene_reader import COLOUR, NUMBERS, SHAPE, SIDE, answer, check_caption, check_terse, place
from scipy import stats

from mmar.data import SceneDataset
from mmar.data.draws import stream
from mmar.data.scenes import ANSWERS, CHANCE, FAMILIES, RepeatedWords, ask
from mmar.data.scenes.vocabulary import SPLITS, Split


@pytest.mark.parametrize("split", SPLITS)
def test_captions_tell_exactly_what_is_there(split: Split) -> None:
    wordings = set()
    for example in SceneDataset(split, 400, caption_only=True):
        for text in (example.caption, *example.captions):
            check_caption(text, example.meta["scene"])
        wordings.add(len(example.captions))
        assert len(example.captions) >= 4
    assert wordings == {4, 5}


def test_the_caption_tells_places() -> None:
    for example in SceneDataset("test", 100, caption_only=True):
        assert all(place(o) in example.caption for o in example.meta["scene"]["objects"])


def test_terse_captions_are_told_again_in_other_orders() -> None:
    moved = 0
    for example in SceneDataset("train", 200, caption_only=True, wording="terse"):
        for text in (example.caption, *example.captions):
            check_terse(text, example.meta["scene"])
        moved += len({example.caption, *example.captions}) > 1
    assert moved > 100  # of one thing there is one order


def test_retold_captions_are_terse_half_of_the_time_and_told_again_in_both_wordings() -> None:
    terse = 0
    for example in SceneDataset("train", 200, caption_only=True, wording="retold"):
        scene, (short, full) = example.meta["scene"], example.captions
        check_terse(short, scene)
        check_caption(full, scene)
        assert all(place(o) in full for o in scene["objects"])
        is_terse = "background" not in example.caption
        (check_terse if is_terse else check_caption)(example.caption, scene)
        terse += is_terse
    assert 70 < terse < 130


def test_wording_changes_nothing_but_captions() -> None:
    plain, terse = (SceneDataset("test", 5, wording=wording)[3] for wording in ("plain", "terse"))
    assert (plain.turns, plain.meta, plain.image) == (terse.turns, terse.meta, terse.image)
    with pytest.raises(ValueError, match=r"wording must be one of plain, terse, retold, got 'short'"):
        SceneDataset("test", 5, wording="short")  # type: ignore[arg-type]


def test_repeated_words_are_said_again() -> None:
    rows = [RepeatedWords(200, seed=1)[i] for i in range(200)]
    for row in rows:
        words = (row.caption or "").split()
        assert 6 <= len(words) == len(set(words)) <= 23
        assert row.turns == (("say it again.", row.caption),)
    assert {len((row.caption or "").split()) for row in rows} == set(range(6, 24))
    assert rows[3] == RepeatedWords(4, seed=1)[3] != RepeatedWords(4, seed=2)[3]
    with pytest.raises(IndexError, match=r"index must lie in 0 .. 3, got 4"):
        RepeatedWords(4)[4]
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        RepeatedWords(0)


def test_a_caption_of_another_scene_is_found_out() -> None:
    examples = list(SceneDataset("train", 60, caption_only=True))
    for example, other in itertools.pairwise(examples):
        for text in (example.caption, *example.captions):
            with pytest.raises((AssertionError, ValueError)):
                check_caption(text, other.meta["scene"])


@pytest.mark.parametrize("split", SPLITS)
def test_every_question_has_its_one_right_answer(split: Split) -> None:
    families = Counter()
    for example in SceneDataset(split, 400, questions=6):
        for family, (question, given) in zip(example.meta["families"], example.turns, strict=True):
            assert answer(question, example.meta["scene"]) == given, (question, example.meta)
            assert given in ANSWERS[family]
            assert len(given.split()) <= 2
            families[family] += 1
    assert set(families) == set(FAMILIES)


def test_the_reader_finds_wrong_answers_out() -> None:
    """The control: of a mirrored scene left is right, and of one with other colours red is blue."""
    turned = {"left": "right", "right": "left", "yes": "no", "no": "yes"}
    for example in SceneDataset("train", 200, families=["position", "relation"]):
        scene = example.meta["scene"]
        mirrored = {**scene, "objects": [{**o, "left": 32 - o["left"] - SIDE[o["size"]]} for o in scene["objects"]]}
        (question, given) = example.turns[0]
        if "left" in question or "right" in question:
            assert answer(question, mirrored) == turned[given]
        elif example.meta["families"] == ["position"]:
            assert answer(question, mirrored) == " ".join(turned.get(word, word) for word in given.split())


def asked(family: str, split: Split, count: int) -> list[tuple[str, str]]:
    found = []
    for i in range(count):
        _, questions = ask(stream("balance", family, split, i), split, (family,), 1)
        found.append((questions[0].question, questions[0].answer))
    return found


def wording(question: str) -> str:
    """A question without the words for what it is about."""
    return re.sub(rf"\b({COLOUR}|{SHAPE}|small|large|anything|an?)((e?s)?)\b", "", question)


def best_guess(turns: list[tuple[str, str]], reduce: Any) -> tuple[float, int]:
    """How often the answer that was most frequent for its wording in one half is right in the other, and of how many."""
    half = len(turns) // 2
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for question, given in turns[:half]:
        seen[reduce(question)][given] += 1
    rest = [(reduce(question), given) for question, given in turns[half:]]
    known = [(words, given) for words, given in rest if words in seen]
    right = sum(seen[words].most_common(1)[0][0] == given for words, given in known)
    return right / max(1, len(known)), max(1, len(known))


@pytest.mark.parametrize("family", FAMILIES)
def test_guessing_is_at_chance(family: str) -> None:
    """Guesses without the question, from its wording and from all of its words; within five standard deviations."""
    turns = asked(family, "train", 1200)
    chance = CHANCE[family]
    for reduce in (lambda question: "", wording, str):
        right, count = best_guess(turns, reduce)
        assert right < chance + 5 * (chance * (1 - chance) / count) ** 0.5


def test_a_question_that_tells_its_answer_is_found_out() -> None:
    """The control: what is asked for and there is a hint that something is asked for because it is there."""
    turns = [(f"{question} {given == 'yes'}", given) for question, given in asked("existence", "train", 300)]
    assert best_guess(turns, wording) == (1.0, 150)


@pytest.mark.parametrize(
    ("family", "answers"),
    [("existence", 2), ("colour", 7), ("shape", 7), ("position", 9), ("comparison", 2), ("reading", 20)],
)
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_answers_are_as_frequent(family: str, answers: int, split: Split) -> None:
    counts = Counter(given for _, given in asked(family, split, 800))
    assert len(counts) == answers
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_numbers_are_as_frequent() -> None:
    turns = asked("counting", "train", 1600)
    for everything in (True, False):
        counts = Counter(given for question, given in turns if bool(re.search(r"(many|of) shapes", question)) == everything)
        assert set(counts) == set(NUMBERS[1:] if everything else NUMBERS[:4])
        assert stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_what_is_asked_for_in_vain_is_near() -> None:
    """Colour, shape or both of a missing object are there."""
    for example in SceneDataset("train", 400, families=["existence"]):
        question, given = example.turns[0]
        found = re.search(rf"an? (?:(?:small|large) )?({COLOUR}) ({SHAPE})\?", question)
        if given == "no" and found:
            objects = example.meta["scene"]["objects"]
            assert any(o["colour"] == found[1] or o["shape"] == found[2] for o in objects)
