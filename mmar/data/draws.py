"""Random choices that stay the same for good.

They rest on ``Random.random()`` alone: of its methods it is the one whose sequence Python promises to keep between versions,
so a test split drawn from a seed is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def stream(*key: object) -> Random:
    """A generator of its own for a key such as ``("scenes", seed, split, index)``."""
    return Random("/".join(map(str, key)))


def pick(rng: Random, items: Sequence[T]) -> T:
    """One of the items, each as likely."""
    return items[int(rng.random() * len(items))]


def coin(rng: Random, probability: float = 0.5) -> bool:
    """True with the given probability."""
    return rng.random() < probability


def some(rng: Random, items: Sequence[T], count: int) -> list[T]:
    """``count`` different items in a random order; all of them: a permutation."""
    left = list(items)
    for i in range(count):
        j = i + int(rng.random() * (len(left) - i))
        left[i], left[j] = left[j], left[i]
    return left[:count]
