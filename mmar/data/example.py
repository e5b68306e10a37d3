"""What a data set delivers: an image, its captions, questions about it, and what is true of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from PIL import Image

from mmar.data.draws import pick
from mmar.processing.chat import GenerationSample, UnderstandingSample

DESCRIBE = ("Describe the image.", "What does the image show?", "What is in this image?")
"""Questions that a caption answers."""


@dataclass(frozen=True)
class Example:
    """An image with the texts that belong to it.

    Attributes:
        key: Names the example for good: the same in every epoch, process and order.
        image: As it is; resizing and scaling are the image processor's. None where its tokens travel instead.
        caption: The fullest caption; None where there is none.
        turns: Pairs ``(question, answer)``, in the order of a conversation.
        captions: Paraphrases of the caption.
        meta: What is true of the image, in values that JSON can hold.
    """

    key: str
    image: Image.Image | None
    caption: str | None = None
    turns: tuple[tuple[str, str], ...] = ()
    captions: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.key, str) or not self.key:
            raise ValueError(f"key must be a string that is not empty, got {self.key!r}")
        if not isinstance(self.image, Image.Image | None):
            raise TypeError(f"image must be a Pillow image or None, got {type(self.image).__name__} in {self.key}")
        if self.caption is not None and not isinstance(self.caption, str):
            raise TypeError(f"caption must be a string or None, got {type(self.caption).__name__} in {self.key}")
        if self.captions and self.caption is None:
            raise ValueError(f"captions must go with a caption that they paraphrase, got none in {self.key}")

    def drawing(self, rng: Random | None = None) -> GenerationSample:
        """The image as something to be generated.

        Args:
            rng: Chooses among the caption and its paraphrases; None: the caption.

        Returns:
            A sample; unconditional where the example has no caption.
        """
        return GenerationSample(self._text(rng), self.image)

    def reading(self) -> UnderstandingSample:
        """The image as something to be asked about.

        Raises:
            ValueError: If the example has no questions.
        """
        if not self.turns:
            raise ValueError(f"turns must hold at least one question, got none in {self.key}; describing() needs none")
        return UnderstandingSample([self.image], self.turns)

    def describing(self, rng: Random | None = None) -> UnderstandingSample:
        """The image as something to be described: the caption is the answer.

        Args:
            rng: Chooses the words of the question and of the answer; None: the first question and the caption.

        Raises:
            ValueError: If the example has no caption.
        """
        answer = self._text(rng)
        if answer is None:
            raise ValueError(f"caption must be a string to describe an image, got None in {self.key}")
        question = DESCRIBE[0] if rng is None else pick(rng, DESCRIBE)
        return UnderstandingSample([self.image], ((question, answer),))

    def _text(self, rng: Random | None) -> str | None:
        if rng is None or not self.captions:
            return self.caption
        return pick(rng, (self.caption, *self.captions))
