"""Captions and questions of drawn scenes, read by an independent and slow reader of English.

The reader sees a text and the plain values of the scene; it shares no code with what wrote the text.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

import pytest
from scipy import stats

from mmar.data import SceneDataset
from mmar.data.draws import stream
from mmar.data.scenes import ANSWERS, CHANCE, FAMILIES, ask
from mmar.data.scenes.vocabulary import SPLITS, Split

Plain = dict[str, Any]

COLOUR = "red|orange|yellow|green|cyan|blue|purple"
SHAPE = "circle|square|triangle|cross|ring|moon|bar"
PLACE = "(?:top|bottom) (?:left|right)|top|bottom|left|right|centre"
LOOKS = rf"(?:(small|large) )?(?:({COLOUR}) )?(?:({SHAPE})(?:e?s)?|objects?|shapes?)"
NUMBERS = ["zero", "one", "two", "three", "four"]
SIDE = {"small": 6, "large": 9}


def middle(o: Plain) -> tuple[float, float]:
    width, height = (5, 7) if "character" in o else (SIDE[o["size"]],) * 2
    return o["left"] + width / 2, o["top"] + height / 2


def place(o: Plain) -> str:
    x, y = middle(o)
    column = "left" if x < 32 / 3 else "right" if x > 64 / 3 else ""
    row = "top" if y < 32 / 3 else "bottom" if y > 64 / 3 else ""
    return f"{row} {column}".strip() or "centre"


def alike(scene: Plain, size: str | None, colour: str | None, shape: str | None, where: str | None = None) -> list[Plain]:
    return [
        o
        for o in scene["objects"]
        if all(wanted is None or wanted == has for wanted, has in zip((size, colour, shape), looks(o), strict=True))
        and (where is None or place(o) == where)
    ]


def looks(o: Plain) -> tuple[str, str, str]:
    return o["size"], o["colour"], o["shape"]


def meant(scene: Plain, phrase: str) -> Plain:
    """The one object that "the small red circle" or "the object at the top" can mean."""
    found = re.fullmatch(rf"the {LOOKS}(?: (?:at|on|in) the ({PLACE}))?", phrase)
    assert found, phrase
    (one,) = alike(scene, *found.groups())
    return one


def holds(a: Plain, relation: str, b: Plain) -> bool:
    (ax, ay), (bx, by) = middle(a), middle(b)
    distance = {"left of": bx - ax, "right of": ax - bx, "above": by - ay, "below": ay - by}[relation]
    assert abs(distance) >= 4, "too close to tell"
    return distance > 0


def answer(question: str, scene: Plain) -> str:
    """The answer to a question, from its words."""
    for pattern, rule in RULES.items():
        if found := re.fullmatch(pattern, question):
            return rule(scene, *found.groups())
    raise AssertionError(f"no rule reads {question!r}")


def said(true: bool) -> str:
    return "yes" if true else "no"


def number(scene: Plain, *phrases: str | None) -> str:
    found = re.fullmatch(LOOKS, next(phrase for phrase in phrases if phrase))
    assert found
    return NUMBERS[len(alike(scene, *found.groups()))]


def exists(scene: Plain, phrase: str) -> str:
    if found := re.fullmatch(rf"anything ({COLOUR})", phrase):
        return said(bool(alike(scene, None, found[1], None)))
    found = re.fullmatch(rf"(an?) ({LOOKS})", phrase)
    assert found, phrase
    assert (found[1] == "an") == (found[2][0] in "aeiou")
    return said(bool(alike(scene, *found.groups()[2:])))


def choice(scene: Plain, a: str, words: str, b: str) -> str:
    options = ("left of", "right of") if "left" in words else ("above", "below")
    return next(o for o in options if holds(meant(scene, a), o, meant(scene, b))).removesuffix(" of")


def larger(scene: Plain, a: str, word: str, b: str) -> str:
    sizes = [SIDE[meant(scene, phrase)["size"]] for phrase in (a, b)]
    assert sizes[0] != sizes[1]
    return said((sizes[0] > sizes[1]) == (word == "larger"))


def more(scene: Plain, word: str, a: str, b: str) -> str:
    counts = [NUMBERS.index(number(scene, phrase)) for phrase in (a, b)]
    assert counts[0] != counts[1]
    return said((counts[0] > counts[1]) == (word == "more"))


RULES = {
    r"(?:is there|does the image show|can you see) (.+)\?": exists,
    r"how many (.+) are there\?|what is the number of (.+)\?|how many (.+) do you see\?": number,
    r"(?:what|which) colour (?:is|does) (.+?)(?: have)?\?": lambda scene, a: meant(scene, a)["colour"],
    r"what is the colour of (.+)\?": lambda scene, a: meant(scene, a)["colour"],
    r"(?:what|which) shape (?:is|does) (.+?)(?: have)?\?": lambda scene, a: meant(scene, a)["shape"],
    r"what is the shape of (.+)\?": lambda scene, a: meant(scene, a)["shape"],
    r"(?:where|where in the image|in which part of the image) is (.+)\?": lambda scene, a: place(meant(scene, a)),
    r"is (the .+) (left or right of|above or below) (the .+)\?": choice,
    r"is (the .+) (left of|right of|above|below) (the .+)\?": lambda scene, a, relation, b: said(
        holds(meant(scene, a), relation, meant(scene, b))
    ),
    r"is (the .+) (larger|smaller) than (the .+)\?": larger,
    r"are there (more|fewer) (.+) than (.+)\?": more,
    r"what is printed in the image\?|which character is printed\?|what does the image say\?": lambda scene: scene["glyph"][
        "character"
    ],
}


def check_caption(text: str, scene: Plain) -> None:
    """Raise unless a caption tells exactly what is there."""
    if found := re.search(r", (the [a-z ]+?) (left of|right of|above|below) (the [a-z ]+)$", text):
        assert holds(meant(scene, found[1]), found[2], meant(scene, found[3]))
        text = text[: found.start()]
    if found := re.search(r"(one shape|\w+ shapes)", text):
        assert found[1].split()[0] == NUMBERS[len(scene["objects"])]
        text = text.replace(found[1], "")
    item = rf"(a|two|three|four) (small|large) ({COLOUR}) ({SHAPE})(s|es)?\b(?: (?:at|on|in) the ({PLACE}))?"
    told: Counter[tuple] = Counter()
    for count, size, colour, shape, ending, where in re.findall(item, text):
        assert (count != "a") == bool(ending)
        told[size, colour, shape, where] += max(1, NUMBERS.index(count) if count in NUMBERS else 1)
    placed = any(where for *_, where in told)
    assert told == Counter((*looks(o), place(o) if placed else "") for o in scene["objects"])
    glyph = scene["glyph"]
    printed = re.findall(rf"the (digit|letter) (\w)(?: (?:at|on|in) the ({PLACE}))?", text)
    expected = [("digit" if glyph["character"].isdigit() else "letter", glyph["character"])] if glyph else []
    assert [(kind, character) for kind, character, _ in printed] == expected
    assert all(where == (place(glyph) if placed else "") for *_, where in printed)
    rest = re.sub(item, "", re.sub(rf"the (digit|letter) \w(?: (?:at|on|in) the ({PLACE}))?", "", text))
    words = set(re.findall(r"\w+", rest)) - {"a", "and", "with", "on", "background", "image", "that", "shows"}
    assert words == {scene["background"]}, text


# -- captions ---------------------------------------------------------------------------------------------------------


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


def test_a_caption_of_another_scene_is_found_out() -> None:
    examples = list(SceneDataset("train", 60, caption_only=True))
    for example, other in zip(examples, examples[1:], strict=False):
        for text in (example.caption, *example.captions):
            with pytest.raises((AssertionError, ValueError)):
                check_caption(text, other.meta["scene"])


# -- questions --------------------------------------------------------------------------------------------------------


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
