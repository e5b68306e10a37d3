"""Questions about drawn scenes, one function per family, each with exactly one right answer.

The families are those that the benchmarks of the paper test: existence (POPE), counting, colour, shape, position, relation,
comparison and reading. Answers are drawn before questions where that is possible, so the words of a question tell nothing
about its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from mmar.data.draws import coin, pick, some
from mmar.data.scenes.font import CHARACTERS
from mmar.data.scenes.phrases import noun, plural, references, relations, with_article
from mmar.data.scenes.sampling import SampledScene
from mmar.data.scenes.scene import SceneObject
from mmar.data.scenes.vocabulary import COLOURS, NUMBERS, POSITIONS, SHAPES, SIZES, Pair

Turn = tuple[str, str]
"""Question and answer."""

Family = Callable[[SampledScene, Random], Turn | None]
"""Asks about a scene; None where the scene gives no reason for such a question, or the draw found none."""


def existence(sampled: SampledScene, rng: Random) -> Turn:
    """Is there a red circle? Half of the answers are yes.

    What is asked for in vain shares its colour, its shape or both with objects that are there, or differs in size alone.
    """
    yes = coin(rng)
    kind = pick(rng, (_exists_pair, _exists_pair, _exists_sized, _exists_shape, _exists_colour))
    question = pick(rng, ("is there {}?", "does the image show {}?", "can you see {}?"))
    return question.format(kind(sampled, rng, yes)), "yes" if yes else "no"


def counting(sampled: SampledScene, rng: Random) -> Turn:
    """How many shapes are there? One to four; of a given kind: zero to three. Both are uniform."""
    scene, kind = sampled.scene, sampled.counted
    if coin(rng):
        asked, number = plural(None, None), len(scene)
    else:
        asked, number = plural(kind.colour, kind.shape), len(scene.matching(kind.colour, kind.shape))
    question = pick(rng, ("how many {} are there?", "what is the number of {}?", "how many {} do you see?"))
    return question.format(asked), NUMBERS[number]


def colour(sampled: SampledScene, rng: Random) -> Turn | None:
    """What colour is the circle?"""
    name = _name_without(sampled, rng, "colour")
    if name is None:
        return None
    thing, words = name
    question = pick(rng, ("what colour is {}?", "which colour does {} have?", "what is the colour of {}?"))
    return question.format(words), thing.colour


def shape(sampled: SampledScene, rng: Random) -> Turn | None:
    """What shape is the red object?"""
    name = _name_without(sampled, rng, "shape")
    if name is None:
        return None
    thing, words = name
    question = pick(rng, ("what shape is {}?", "which shape does {} have?", "what is the shape of {}?"))
    return question.format(words), thing.shape


def position(sampled: SampledScene, rng: Random) -> Turn | None:
    """Where is the red circle? One of nine places."""
    thing = pick(rng, sampled.subjects)
    names = references(sampled.scene, thing)
    if not names:
        return None
    question = pick(rng, ("where is {}?", "where in the image is {}?", "in which part of the image is {}?"))
    return question.format(pick(rng, names)), thing.position


def relation(sampled: SampledScene, rng: Random) -> Turn | None:
    """Is the circle left of the blue bar? Yes or no. Is it left or right of it? Above or below?"""
    chosen = _two(sampled, rng)
    if chosen is None:
        return None
    a, b = chosen
    names = references(sampled.scene, a), references(sampled.scene, b)
    holds = relations(a, b)
    if not holds or not all(names):
        return None
    true, false = pick(rng, holds)
    first, second = pick(rng, names[0]), pick(rng, names[1])
    if coin(rng):
        yes = coin(rng)
        return f"is {first} {true if yes else false} {second}?", "yes" if yes else "no"
    choice = "left or right of" if true in ("left of", "right of") else "above or below"
    return f"is {first} {choice} {second}?", true.removesuffix(" of")


def comparison(sampled: SampledScene, rng: Random) -> Turn | None:
    """Is the red circle larger than the blue bar? Are there more circles than bars? Half of the answers are yes."""
    return _larger(sampled, rng) if coin(rng) else _more(sampled, rng)


def reading(sampled: SampledScene, rng: Random) -> Turn | None:
    """What is printed in the image? A digit or a capital letter."""
    if sampled.scene.glyph is None:
        return None
    question = pick(rng, ("what is printed in the image?", "which character is printed?", "what does the image say?"))
    return question, sampled.scene.glyph.character


FAMILIES: dict[str, Family] = {
    "existence": existence,
    "counting": counting,
    "colour": colour,
    "shape": shape,
    "position": position,
    "relation": relation,
    "comparison": comparison,
    "reading": reading,
}

NEED_TWO = ("relation",)
"""Families that ask about two objects."""

_YES_NO = ("yes", "no")
ANSWERS: dict[str, tuple[str, ...]] = {
    "existence": _YES_NO,
    "counting": NUMBERS,
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "position": POSITIONS,
    "relation": (*_YES_NO, "left", "right", "above", "below"),
    "comparison": _YES_NO,
    "reading": CHARACTERS,
}
"""Everything that can be the right answer to a question of a family."""

CHANCE: dict[str, float] = {
    "existence": 1 / 2,
    "counting": 1 / 4,
    "colour": (1 / 5 + 1 / 7) / 2,
    "shape": (1 / 5 + 1 / 7) / 2,
    "position": 1 / 9,
    "relation": 1 / 2,
    "comparison": 1 / 2,
    "reading": 1 / len(CHARACTERS),
}
"""How often the best guess from the words of a single question is right, in training and test.

A colour is one of seven where an object is named by its place and one of five where it is named by its shape, because two of
the seven are held out for each shape; each happens half of the time.
"""


def _exists_pair(sampled: SampledScene, rng: Random, yes: bool) -> str:
    if yes:
        there = list(dict.fromkeys(o.pair for o in sampled.subjects))
        return with_article(noun(*pick(rng, there)))
    return with_article(noun(*_missing(sampled, rng)))


def _missing(sampled: SampledScene, rng: Random) -> Pair:
    """A pair that is not there, near to what is: half of the time both its colour and its shape are there, if that can be."""
    there = [o.pair for o in sampled.scene.objects]
    colours, shapes = [pair[0] for pair in there], [pair[1] for pair in there]
    absent = [pair for pair in sampled.nameable if pair not in there]
    near = [pair for pair in absent if (pair[0] in colours) != (pair[1] in shapes)]
    nearer = [pair for pair in absent if pair[0] in colours and pair[1] in shapes]
    return pick(rng, nearer if nearer and coin(rng) else near)


def _exists_sized(sampled: SampledScene, rng: Random, yes: bool) -> str:
    """Only where no object has the other size, so that neither answer is likelier."""
    scene, other = sampled.scene, dict(zip(SIZES, reversed(SIZES), strict=True))
    alone = [o for o in sampled.subjects if not scene.matching(o.colour, o.shape, other[o.size])]
    if not alone:
        return _exists_pair(sampled, rng, yes)
    thing = pick(rng, alone)
    return with_article(noun(thing.colour, thing.shape, thing.size if yes else other[thing.size]))


def _exists_shape(sampled: SampledScene, rng: Random, yes: bool) -> str:
    there = [o.shape for o in sampled.scene.objects]
    return with_article(pick(rng, [word for word in SHAPES if (word in there) == yes]))


def _exists_colour(sampled: SampledScene, rng: Random, yes: bool) -> str:
    there = [o.colour for o in sampled.scene.objects]
    return "anything " + pick(rng, [word for word in COLOURS if (word in there) == yes])


def _name_without(sampled: SampledScene, rng: Random, hidden: str) -> tuple[SceneObject, str] | None:
    """An object that has a name without one of its attributes, named half of the time by its looks and half by its place."""
    thing = pick(rng, sampled.subjects)
    names = references(sampled.scene, thing, (hidden,))
    if not names:
        return None
    return thing, pick(rng, names) if coin(rng) else f"the object {thing.place}"


def _two(sampled: SampledScene, rng: Random) -> tuple[SceneObject, SceneObject] | None:
    """Two objects in a random order, one of them a subject."""
    if len(sampled.scene) < 2:
        return None
    thing = pick(rng, sampled.subjects)
    a, b = some(rng, [thing, pick(rng, [o for o in sampled.scene.objects if o is not thing])], 2)
    return a, b


def _larger(sampled: SampledScene, rng: Random) -> Turn | None:
    chosen = _two(sampled, rng)
    if chosen is None or chosen[0].size == chosen[1].size:
        return None
    a, b = chosen
    names = references(sampled.scene, a, ("size",)), references(sampled.scene, b, ("size",))
    if not all(names):
        return None
    asked = pick(rng, tuple(SIZES))
    word = {"small": "smaller", "large": "larger"}[asked]
    return f"is {pick(rng, names[0])} {word} than {pick(rng, names[1])}?", "yes" if a.size == asked else "no"


def _more(sampled: SampledScene, rng: Random) -> Turn | None:
    by_colour = coin(rng)
    there = [o.colour if by_colour else o.shape for o in sampled.scene.objects]
    words: tuple[str, ...] = tuple(COLOURS) if by_colour else SHAPES
    word = pick(rng, there)
    others = [other for other in words if there.count(other) != there.count(word)]
    present = [other for other in others if other in there]
    a, b = some(rng, [word, pick(rng, present or others)], 2)
    asked = [plural(w, None) if by_colour else plural(None, w) for w in (a, b)]
    word = pick(rng, ("more", "fewer"))
    yes = (there.count(a) > there.count(b)) == (word == "more")
    return f"are there {word} {asked[0]} than {asked[1]}?", "yes" if yes else "no"
