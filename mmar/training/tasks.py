"""Examples to rows for the tasks of a step, the same rows on any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

from mmar.data.example import Example
from mmar.processing.chat import GenerationSample, UnderstandingSample
from mmar.training.mixture import GENERATION, TEXT, UNCONDITIONAL, UNDERSTANDING, Mixture

Row = GenerationSample | UnderstandingSample | list[dict[str, Any]]


@dataclass(frozen=True)
class Place:
    """Where a sample stands in a run.

    Attributes:
        seed: Of the run.
        step: Optimizer step.
        index: Within the global batch of the step.
    """

    seed: int
    step: int
    index: int

    def random(self, what: str = "words") -> Random:
        """Choices of words and questions, or of something else by its name."""
        return Random(f"{what} {self.seed} {self.step} {self.index}")

    def generator(self) -> torch.Generator:
        """Masks, noise and posterior of this sample, whatever rank or batch it is in."""
        return torch.Generator().manual_seed(Random(f"noise {self.seed} {self.step} {self.index}").getrandbits(63))


def places(seed: int, step: int, *, rank: int, world_size: int, count: int) -> list[Place]:
    """The samples of one rank in a step, in the order in which a stream delivers them: every ``world_size``-th."""
    return [Place(seed, step, rank + world_size * i) for i in range(count)]


def step_generator(seed: int, step: int, micro_batch: int) -> torch.Generator:
    """What all ranks draw alike in a micro-batch: its mask ratio."""
    return torch.Generator().manual_seed(Random(f"step {seed} {step} {micro_batch}").getrandbits(63))


class TaskPlan:
    """The tasks of each step: exact shares, in an order of the step's own.

    Args:
        mixture: Of tasks.
        size: Samples of a step over all ranks.
        seed: Of the orders.
    """

    def __init__(self, mixture: Mixture, size: int, seed: int) -> None:
        self.mixture, self.size, self.seed = mixture, size, seed

    def step(self, step: int) -> list[str]:
        """Tasks of the global batch of a step; to be asked for step by step."""
        if self.mixture.done != step * self.size:
            self.mixture = Mixture(self.mixture.weights, step * self.size)
        tasks = [next(self.mixture) for _ in range(self.size)]
        Random(f"tasks {self.seed} {step}").shuffle(tasks)  # or every other rank would only draw
        return tasks


def make_row(example: Example, task: str, rng: Random, *, questions: int, describing: float = 0.5) -> Row:
    """What is read or drawn of an example.

    Args:
        example: With an image, or its tokens outside.
        task: understanding asks its questions, or for its caption where there are none; generation draws from its caption;
            unconditional from nothing; text is the same questions with a caption in the place of the image.
        rng: Of words, questions and their order.
        questions: In one row at most.
        describing: Share of rows with questions that ask for a description too.

    Raises:
        ValueError: If the example has nothing to ask about.
    """
    if task == GENERATION:
        return example.drawing(rng)
    if task == UNCONDITIONAL:
        return GenerationSample(None, example.image)
    if task not in (UNDERSTANDING, TEXT):
        raise ValueError(f"task must be one of {UNDERSTANDING}, {GENERATION}, {UNCONDITIONAL}, {TEXT}, got {task!r}")
    sample = _asked(example, rng, questions, describing)
    return sample if task == UNDERSTANDING else as_text(sample.turns, _description(example, rng))


def as_text(turns: Sequence[tuple[str, str | None]], description: str | None = None) -> list[dict[str, Any]]:
    """A conversation without its image, for the language model's own training.

    Args:
        turns: Questions and answers.
        description: Stands before the first question, where the image would. A language model that has read nothing but
            questions has nowhere to look for an answer; one that has learned to read descriptions, as any pretrained one has,
            can be shown an image by an expert that makes image tokens look like one.
    """
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        if description is not None and not messages:
            question = f"{description}. {question}"
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer or ""})
    return messages


def _description(example: Example, rng: Random) -> str | None:
    """The fullest caption most of the time, else any; nothing now and then."""
    if not example.turns or example.caption is None or rng.random() < 0.05:
        return None
    return example.caption if rng.random() < 0.9 else rng.choice((example.caption, *example.captions))


def _asked(example: Example, rng: Random, questions: int, describing: float) -> UnderstandingSample:
    """Questions, in a random order unless they are a conversation that fits; for the share ``describing`` a third of them, and
    a description is asked for too.

    Answers are a word or two, a description is a dense lesson: everything that is there, and where.
    """
    if not example.turns:
        return example.describing(rng)
    chosen = list(example.turns)
    independent = "families" in example.meta or len(chosen) > questions  # else a conversation, each may refer to those before
    if independent:
        rng.shuffle(chosen)
    if example.caption is None or rng.random() >= describing:
        return UnderstandingSample([example.image], chosen[:questions])
    turns = [*chosen[: questions // 3], *example.describing(rng).turns]
    if independent:
        rng.shuffle(turns)
    return UnderstandingSample([example.image], turns)
