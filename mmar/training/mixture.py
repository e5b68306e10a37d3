"""Which task each sample of a batch is for: proportions that hold over every window, not only on average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

UNDERSTANDING, GENERATION, UNCONDITIONAL, TEXT = "understanding", "generation", "unconditional", "text"


@dataclass
class Mixture:
    """An endless sequence of tasks in fixed proportions.

    Each next task is the one that is furthest behind its share, so that in every window of n tasks each occurs its share of n
    times, within one.

    Attributes:
        weights: Task to weight, in any units: the paper's 1:1 of reading and drawing, and 9:1 of captioned and unconditional
            drawing, are 10, 9 and 1.
        done: Tasks given so far; all there is to resume.
    """

    weights: Mapping[str, float]
    done: int = 0
    _counts: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.weights or not all(math.isfinite(w) and w >= 0 for w in self.weights.values()):
            raise ValueError(f"weights must be finite and not negative, got {dict(self.weights)}")
        if not sum(self.weights.values()) > 0:
            raise ValueError(f"weights must not all be zero, got {dict(self.weights)}")
        done, self.done = self.done, 0
        self._counts = dict.fromkeys(self.weights, 0)
        if all(float(w).is_integer() for w in self.weights.values()):  # then the sequence repeats
            period = int(sum(self.weights.values()))
            self.done = done - done % period
            self._counts = {task: self.done // period * int(weight) for task, weight in self.weights.items()}
        while self.done < done:
            next(self)

    @classmethod
    def paper(cls) -> Mixture:
        """Understanding to generation 1:1, captioned to unconditional 9:1 (section 4.1)."""
        return cls({UNDERSTANDING: 10.0, GENERATION: 9.0, UNCONDITIONAL: 1.0})

    def __iter__(self) -> Mixture:
        return self

    def __next__(self) -> str:
        total = sum(self.weights.values())
        self.done += 1
        behind = {task: self.done * weight / total - self._counts[task] for task, weight in self.weights.items()}
        task = max(behind, key=lambda name: behind[name])
        self._counts[task] += 1
        return task
