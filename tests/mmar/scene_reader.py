"""A slow reader of the English of drawn scenes, which shares no code with what writes it.

It sees a text and the plain values of a scene, and says what the answer is or whether a caption is true.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

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


def check_terse(text: str, scene: Plain) -> None:
    """Raise unless a terse caption tells exactly what is there."""
    ground, things = text.split(": ")
    assert ground == scene["background"]
    printed = [] if scene["glyph"] is None else [scene["glyph"]]
    expected = Counter((*looks(o), place(o)) for o in scene["objects"])
    expected.update(("digit" if g["character"].isdigit() else "letter", g["character"], place(g)) for g in printed)
    forms = rf"(small|large) ({COLOUR}) ({SHAPE}) ({PLACE})", rf"(digit|letter) (\w) ({PLACE})"
    found = [next(match for form in forms if (match := re.fullmatch(form, one))) for one in things.split(", ")]
    assert Counter(match.groups() for match in found) == expected, text
