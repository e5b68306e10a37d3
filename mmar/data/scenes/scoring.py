"""How well a picture shows a scene: what was detected against what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from mmar.data.scenes.detector import Detection
from mmar.data.scenes.scene import Scene, SceneObject
from mmar.data.scenes.vocabulary import UNITS

_ATTRIBUTES = ("colour", "shape", "size", "position", "pair")
_Pair = tuple[SceneObject, SceneObject]


@dataclass(frozen=True)
class SceneScore:
    """Shares of what was asked for; an object that is missing has nothing right.

    Attributes:
        count: 1 where there are as many objects as there should be, and nothing unclear.
        colour: Objects of the right colour.
        shape: Objects of the right shape.
        size: Objects of the right size.
        position: Objects in the right cell of the 3 x 3 grid.
        pair: Objects right in colour and shape: attributes on the right object.
        background: 1 if it is right.
        glyph: 1 if the right character is printed and no other.
        exact: 1 if all of this is right; without position where the caption tells none.
    """

    count: float
    colour: float
    shape: float
    size: float
    position: float
    pair: float
    background: float
    glyph: float
    exact: float


def score(detection: Detection, scene: Scene, *, placed: bool = True) -> SceneScore:
    """Compare a picture with a scene.

    Objects are matched so that as many attributes as possible are right; nearer ones are preferred where that is equal.

    Args:
        detection: Of the picture.
        scene: What was asked for.
        placed: Whether the caption told places: they then count for the matching and for ``exact``.
    """
    pairs = _matched(detection.objects, scene.objects, placed)
    wanted = len(scene)
    shares = {name: sum(getattr(a, name) == getattr(b, name) for a, b in pairs) / wanted for name in _ATTRIBUTES}
    whole = {
        "count": float(len(detection.objects) == wanted and not detection.unclear),
        "background": float(detection.background == scene.background),
        "glyph": float([g.character for g in detection.glyphs] == ([scene.glyph.character] if scene.glyph else [])),
    }
    if placed and scene.glyph and whole["glyph"]:
        whole["glyph"] = float(detection.glyphs[0].cell == scene.glyph.cell)
    needed = {**shares, **whole} if placed else {**shares, **whole, "position": 1.0}
    return SceneScore(**shares, **whole, exact=float(all(share == 1.0 for share in needed.values())))


def average(scores: Sequence[SceneScore]) -> dict[str, float]:
    """The mean of each share.

    Raises:
        ValueError: If there are no scores.
    """
    if not scores:
        raise ValueError("scores must hold at least one, got none")
    return {name: float(np.mean([getattr(s, name) for s in scores])) for name in asdict(scores[0])}


def _matched(found: Sequence[SceneObject], wanted: Sequence[SceneObject], placed: bool) -> list[_Pair]:
    """As many pairs as the shorter list has objects."""
    costs = np.array([[_cost(a, b, placed) for b in wanted] for a in found]).reshape(len(found), len(wanted))
    return [(found[i], wanted[j]) for i, j in zip(*linear_sum_assignment(costs), strict=True)]


def _cost(a: SceneObject, b: SceneObject, placed: bool) -> float:
    """Attributes that differ; the distance, in widths of the image, only breaks ties."""
    differ = (a.colour != b.colour) + (a.shape != b.shape) + (a.size != b.size) + (placed and a.cell != b.cell)
    distance = np.hypot(a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]) / UNITS
    return differ + 0.01 * float(distance)
