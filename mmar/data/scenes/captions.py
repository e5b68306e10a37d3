"""Captions of drawn scenes: everything that is there, in several wordings."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from mmar.data.draws import pick, some
from mmar.data.scenes.phrases import character, enumerated, groups, noun, references, relations
from mmar.data.scenes.scene import Scene
from mmar.data.scenes.vocabulary import NUMBERS, PLACES, PLURALS, POSITIONS


def caption(scene: Scene) -> str:
    """The fullest caption: number, size, colour, shape and place of all objects, character and background."""
    return _full(scene, _placed(scene))


def paraphrases(scene: Scene, rng: Random) -> tuple[str, ...]:
    """Other captions. All tell numbers, sizes, colours, shapes, character and background; the last ones also tell places or a
    relation, the latter where two objects can be told apart and lie apart.

    Args:
        scene: The scene.
        rng: Chooses the order of the objects and the relation.
    """
    ground = f"on a {scene.background} background"
    number = "one shape" if len(scene) == 1 else f"{NUMBERS[len(scene)]} {PLURALS['shape']}"
    found = [
        f"{_listed(scene, rng)} {ground}",
        f"a {scene.background} image that shows {_listed(scene, rng)}",
        f"{number} {ground}: {_listed(scene, rng)}",
        f"on {scene.background}: {enumerated(some(rng, items := _placed(scene), len(items)))}",
    ]
    related = _related(scene, rng)
    return (*found, f"{_listed(scene, rng)} {ground}, {related}") if related else tuple(found)


def terse(scene: Scene) -> str:
    """The fullest caption in the fewest words, each place right after what is there: white: small red circle top left, digit 7
    bottom.
    """
    return f"{scene.background}: {', '.join(_terse(scene))}"


def retellings(scene: Scene, rng: Random, *, terse_only: bool = False) -> tuple[str, ...]:
    """The fullest caption, terse and in full, its things in other orders.

    To tell a description again in another order, a language model must know what stands where.

    Args:
        scene: The scene.
        rng: Chooses the orders.
        terse_only: All of them terse.
    """
    things, placed = _terse(scene), _placed(scene)
    found = []
    for is_terse in (True, terse_only):
        items = some(rng, things if is_terse else placed, len(things))
        found.append(f"{scene.background}: {', '.join(items)}" if is_terse else _full(scene, items))
    return tuple(found)


def _full(scene: Scene, placed: Sequence[str]) -> str:
    return f"a {scene.background} background with {enumerated(placed)}"


def _terse(scene: Scene) -> list[str]:
    objects = sorted(scene.objects, key=lambda o: o.cell)
    items = [f"{noun(o.colour, o.shape, o.size)} {o.position}" for o in objects]
    if scene.glyph:
        items.append(f"{character(scene.glyph).removeprefix('the ')} {POSITIONS[PLACES.index(scene.glyph.place)]}")
    return items


def _placed(scene: Scene) -> list[str]:
    objects = sorted(scene.objects, key=lambda o: o.cell)
    items = [f"a {noun(o.colour, o.shape, o.size)} {o.place}" for o in objects]
    return [*items, f"{character(scene.glyph)} {scene.glyph.place}"] if scene.glyph else items


def _listed(scene: Scene, rng: Random) -> str:
    items = groups(some(rng, scene.objects, len(scene)))
    return enumerated([*items, character(scene.glyph)] if scene.glyph else items)


def _related(scene: Scene, rng: Random) -> str | None:
    """Such as "the circle left of the blue bar"."""
    if len(scene) < 2:
        return None
    a, b = some(rng, scene.objects, 2)
    names = references(scene, a), references(scene, b)
    holds = relations(a, b)
    if not holds or not all(names):
        return None
    return f"{pick(rng, names[0])} {pick(rng, holds)[0]} {pick(rng, names[1])}"
