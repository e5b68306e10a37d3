"""Questions with exact answers: how many of each family a model answers right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from mmar.data.example import Example
from mmar.pipeline import MMARPipeline

Tick = Callable[[int], None]


@dataclass(frozen=True)
class Answered:
    """A question and what was said.

    Attributes:
        key: Of the example.
        family: What the question tests.
        question: As asked.
        answer: The right one.
        said: The model's.
    """

    key: str
    family: str
    question: str
    answer: str
    said: str

    @property
    def is_right(self) -> bool:
        """Exact matching, up to case, white space and a full stop at the end."""
        return normalized(self.said) == normalized(self.answer)


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers.

    Attributes:
        right: Right answers.
        asked: Questions.
    """

    right: int
    asked: int

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return self.right / self.asked

    @property
    def standard_error(self) -> float:
        """Of the share, questions taken as independent draws (Agresti and Coull's plus-four rule, so never zero)."""
        share = (self.right + 2) / (self.asked + 4)
        return math.sqrt(share * (1 - share) / (self.asked + 4))


def ask(
    pipeline: MMARPipeline,
    examples: Iterable[Example],
    *,
    batch_size: int = 32,
    max_new_tokens: int = 8,
    timestep: int | None = None,
    tick: Tick | None = None,
) -> list[Answered]:
    """Ask every question of every example, each in a conversation of its own, greedily.

    Args:
        pipeline: Answers.
        examples: With ``turns``, and their ``families`` in ``meta``; a family that is missing is ``other``.
        batch_size: Images at a time.
        max_new_tokens: Of an answer.
        timestep: Noise level at which images are read, for whole-image diffusion (figure 7); None: clean. The noise of a group
            of images is always the same.
        tick: Told the number of examples that are done.

    Returns:
        In the order of the examples and their turns.

    Raises:
        ValueError: If an example has no questions.
    """
    found: list[Answered] = []
    for group in _batched(examples, batch_size):
        bare = [example.key for example in group if not example.turns]
        if bare:
            raise ValueError(f"examples must have questions, got none in {bare[0]}; use questions=1 or more")
        samples = [(example.image, [question for question, _ in example.turns]) for example in group]
        noise = {} if timestep is None else _noise(timestep, len(group))
        said = pipeline.answer_batch(samples, do_sample=False, max_new_tokens=max_new_tokens, **noise)
        for example, answers in zip(group, said, strict=True):
            families = example.meta.get("families") or ["other"] * len(example.turns)
            for (question, answer), family, text in zip(example.turns, families, answers, strict=True):
                found.append(Answered(example.key, family, question, answer, text))
        if tick is not None:
            tick(len(group))
    return found


def _noise(timestep: int, images: int) -> dict[str, Any]:
    return {"image_timesteps": torch.full((images,), timestep), "generator": torch.Generator().manual_seed(timestep)}


def by_family(answered: Sequence[Answered]) -> dict[str, Accuracy]:
    """Accuracy of each family, in alphabetical order."""
    families: dict[str, list[bool]] = {}
    for one in answered:
        families.setdefault(one.family, []).append(one.is_right)
    return {family: Accuracy(sum(right), len(right)) for family, right in sorted(families.items())}


def mean_accuracy(accuracies: dict[str, Accuracy]) -> float:
    """Mean over families, each with the same weight: our AVE.

    Raises:
        ValueError: If there are none.
    """
    if not accuracies:
        raise ValueError("accuracies must hold at least one family, got none")
    return sum(one.share for one in accuracies.values()) / len(accuracies)


def normalized(text: str) -> str:
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(text.lower().split()).removesuffix(".")


def _batched(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}")
    remaining = iter(examples)
    while group := list(islice(remaining, size)):
        yield group
