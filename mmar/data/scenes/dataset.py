"""Drawn scenes with captions and questions as a map-style data set: nothing is stored, everything follows from the index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

from torch.utils.data import Dataset

from mmar.data.draws import coin, pick, some, stream
from mmar.data.example import Example
from mmar.data.scenes.captions import caption, paraphrases, retellings, terse
from mmar.data.scenes.drawing import check_size, draw
from mmar.data.scenes.questions import FAMILIES, NEED_TWO
from mmar.data.scenes.sampling import SampledScene, sample_scene
from mmar.data.scenes.scene import Scene
from mmar.data.scenes.vocabulary import MAX_OBJECTS, SPLITS, UNITS, Split

Wording = Literal["plain", "terse", "retold"]
WORDINGS: tuple[Wording, ...] = get_args(Wording)


@dataclass(frozen=True, slots=True)
class Question:
    """A question with exactly one right answer.

    Attributes:
        family: What it tests.
        question: The question.
        answer: One to three words.
    """

    family: str
    question: str
    answer: str


class SceneDataset(Dataset[Example]):
    """Drawn scenes.

    ``dataset[i]`` depends on the arguments and ``i`` alone; ``size`` changes the pixels only. The meta of an example holds
    ``scene`` (:meth:`Scene.from_dict` reads it), ``split``, and the ``families`` of its questions in order.

    The first question of an image is the one whose answer cannot be guessed (:data:`CHANCE`): its family is drawn, then a
    scene that suits it. Further questions are about the same scene, and their words tell what the scene holds ("where is the
    circle?" tells that there is one). They are good supervision; measure with ``questions=1``.

    Args:
        split: train; test, other scenes of the same kind; held_out, scenes with pairs of colour and shape that training never
            meets, and questions about these.
        length: Number of examples.
        size: Side of the images, pixels; a multiple of 32.
        seed: Another seed, another data set. Test scenes are never training scenes, whatever the seeds.
        questions: Number per image; fewer where a scene gives no more different ones.
        families: Families to ask for; None: all that the number of objects allows.
        caption_only: No questions.
        wording: Of captions: plain; terse (:func:`terse`, told again in other orders), or retold (either way, told again in
            either). The last two are lessons for a language model: what stands where?
        max_objects: Most objects in a scene, one to four: an easier lesson to begin with. With one, the families that need
            two are left out where ``families`` is None.

    Raises:
        ValueError: If an argument is out of range or not known.
    """

    def __init__(
        self,
        split: Split = "train",
        length: int = 10_000,
        *,
        size: int = UNITS,
        seed: int = 0,
        questions: int = 1,
        families: Sequence[str] | None = None,
        caption_only: bool = False,
        wording: Wording = "plain",
        max_objects: int = MAX_OBJECTS,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if questions < 1:
            raise ValueError(f"questions must be at least 1, got {questions}; caption_only=True asks none")
        if not 1 <= max_objects <= MAX_OBJECTS:
            raise ValueError(f"max_objects must lie in 1 .. {MAX_OBJECTS}, got {max_objects}")
        if wording not in WORDINGS:
            raise ValueError(f"wording must be one of {', '.join(WORDINGS)}, got {wording!r}")
        check_size(size)
        self.max_objects, self.wording = max_objects, wording
        self.split, self.length, self.size, self.seed, self.questions = split, length, size, seed, questions
        self.families = () if caption_only else _checked_families(families, max_objects)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.length:
            raise IndexError(f"index must lie in 0 .. {self.length - 1}, got {index}")
        rng = stream("scenes", self.seed, self.split, index)
        if self.families:
            sampled, asked = ask(rng, self.split, self.families, self.questions, self.max_objects)
        else:
            sampled, asked = sample_scene(rng, self.split, max_objects=self.max_objects), []
        told, again = self._texts(sampled.scene, index, rng)
        return Example(
            key=f"scenes/{self.split}/{self.seed}/{index}",
            image=draw(sampled.scene, self.size),
            caption=told,
            turns=tuple((q.question, q.answer) for q in asked),
            captions=again,
            meta={"scene": sampled.scene.to_dict(), "split": self.split, "families": [q.family for q in asked]},
        )

    def _texts(self, scene: Scene, index: int, rng: Random) -> tuple[str, tuple[str, ...]]:
        """The caption and others."""
        if self.wording == "plain":
            return caption(scene), paraphrases(scene, rng)
        is_terse = self.wording == "terse" or coin(stream("wording", self.seed, self.split, index))
        return terse(scene) if is_terse else caption(scene), retellings(scene, rng, terse_only=self.wording == "terse")


def ask(
    rng: Random, split: Split, families: Sequence[str], count: int, max_objects: int = MAX_OBJECTS
) -> tuple[SampledScene, list[Question]]:
    """A scene, and questions about it in families as different as possible.

    Args:
        rng: Source of randomness.
        split: Of the scene.
        families: Names out of :data:`FAMILIES`.
        count: Number of questions; there may be fewer, but one at least.
        max_objects: In the scene.
    """
    first = pick(rng, families)
    while True:  # every family suits at least every tenth scene
        sampled = sample_scene(rng, split, with_glyph=first == "reading", max_objects=max_objects)
        turn = FAMILIES[first](sampled, rng)
        if turn is not None:
            break
    asked = [Question(first, *turn)]
    order = [family for family in some(rng, families, len(families)) if family != first] + [first]
    for attempt in range(4 * (count - 1)):
        if len(asked) == count:
            break
        family = order[attempt % len(order)]
        turn = FAMILIES[family](sampled, rng)
        if turn is not None and all(turn[0] != q.question for q in asked):
            asked.append(Question(family, *turn))
    return sampled, asked


def _checked_families(families: Sequence[str] | None, max_objects: int) -> tuple[str, ...]:
    if families is None:
        return tuple(family for family in FAMILIES if max_objects > 1 or family not in NEED_TWO)
    unknown = [family for family in families if family not in FAMILIES]
    if isinstance(families, str) or not families or unknown or len(set(families)) < len(families):
        raise ValueError(f"families must be different names among {', '.join(FAMILIES)}, got {families!r}")
    pairs = [family for family in families if family in NEED_TWO]
    if max_objects == 1 and pairs:
        raise ValueError(f"max_objects must be at least 2 for the families {', '.join(pairs)}, got 1")
    return tuple(families)
