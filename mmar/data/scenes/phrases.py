"""Words for objects: what they are, how many, and which one is meant."""

from __future__ import annotations

from collections.abc import Sequence

from mmar.data.scenes.scene import Glyph, Scene, SceneObject
from mmar.data.scenes.vocabulary import NUMBERS, PLURALS

RELATION_DISTANCE = 4
"""Units between two centres, along an axis, from which one object is said to be left of or above another."""

_ATTRIBUTES = (
    ("shape",),
    ("colour",),
    ("colour", "shape"),
    ("size", "shape"),
    ("size", "colour"),
    ("size", "colour", "shape"),
)
"""Sets of attributes by which an object can be singled out; one that lacks a shape is called an object."""


def with_article(words: str) -> str:
    """A red circle, an orange circle."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def noun(colour: str | None = None, shape: str | None = None, size: str | None = None, *, kind: str = "object") -> str:
    """Small red circle, or fewer words; ``kind`` stands for an open shape."""
    return " ".join(word for word in (size, colour, shape or kind) if word)


def plural(colour: str | None, shape: str | None, size: str | None = None) -> str:
    """Red circles, circles or red shapes; characters are no shapes."""
    return " ".join(word for word in (size, colour, PLURALS[shape or "shape"]) if word)


def references(scene: Scene, thing: SceneObject, hidden: Sequence[str] = ()) -> list[str]:
    """Every way to single out an object by its looks, such as "the circle" and "the small red circle".

    Args:
        scene: Where it is.
        thing: One of the scene's objects.
        hidden: Attributes (colour, shape, size) that must not be told.

    Returns:
        Noun phrases; none where another object looks the same.
    """
    found = []
    for attributes in _ATTRIBUTES:
        told = {name: getattr(thing, name) for name in attributes}
        if not any(name in told for name in hidden) and len(scene.matching(**told)) == 1:
            found.append("the " + noun(**told))
    return found


def groups(objects: Sequence[SceneObject]) -> list[str]:
    """Objects that look the same together: a small red circle, two large blue bars."""
    counts: dict[tuple[str, str, str], int] = {}
    for o in objects:
        counts[o.size, o.colour, o.shape] = counts.get((o.size, o.colour, o.shape), 0) + 1
    return [
        f"{NUMBERS[n]} {plural(colour, shape, size)}" if n > 1 else f"a {noun(colour, shape, size)}"
        for (size, colour, shape), n in counts.items()
    ]


def character(glyph: Glyph) -> str:
    """The digit 7, the letter K."""
    return f"the {'digit' if glyph.character.isdigit() else 'letter'} {glyph.character}"


def enumerated(items: Sequence[str]) -> str:
    """One, two and three."""
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else items[0]


def relations(a: SceneObject, b: SceneObject) -> list[tuple[str, str]]:
    """What holds of ``a`` and ``b``, and its opposite: ("left of", "right of"); none where centres are close."""
    dx, dy = (a.centre[axis] - b.centre[axis] for axis in (0, 1))
    found = []
    if abs(dx) >= RELATION_DISTANCE:
        found.append(("left of", "right of") if dx < 0 else ("right of", "left of"))
    if abs(dy) >= RELATION_DISTANCE:
        found.append(("above", "below") if dy < 0 else ("below", "above"))
    return found
