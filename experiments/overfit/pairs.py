"""Four digit scans with captions and questions, and the parts that read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from mmar.config import MMARConfig
from mmar.processing.chat import ChatFormat, GenerationSample, UnderstandingSample
from mmar.processing.processor import MMARProcessor
from mmar.processing.text_tokenizer import train_tokenizer
from mmar.tokenizers.patches import PatchTokenizer
from mmar.tokenizers.scale import LatentScale

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = (0, 3, 4, 7)


@dataclass(frozen=True)
class Pairs:
    """The data.

    Attributes:
        tokens: ``(4, N, C)`` image tokens of unit standard deviation over all scans.
        captions: One per image.
        questions: Pairs (question, answer) per image.
        processor: Text to rows.
        tokenizer: Pixels to tokens.
    """

    tokens: Tensor
    captions: list[str]
    questions: list[list[tuple[str, str]]]
    processor: MMARProcessor
    tokenizer: PatchTokenizer

    def drawing(self) -> list[GenerationSample]:
        """Samples whose image is drawn."""
        return [GenerationSample(caption) for caption in self.captions]

    def reading(self) -> list[UnderstandingSample]:
        """Samples whose image is read: one per question, image by image."""
        return [UnderstandingSample([None], [turn]) for turns in self.questions for turn in turns]


def make_pairs(config: MMARConfig) -> Pairs:
    """The first scan of each of four digits."""
    scans = load_digits()
    pixels = torch.from_numpy(scans.images).float()[:, None] / 8 - 1  # (1797, 1, 8, 8) in [-1, 1]
    first = [int(np.flatnonzero(scans.target == digit)[0]) for digit in DIGITS]
    plain = PatchTokenizer(8, 2, image_channels=1)
    tokenizer = plain.with_scale(LatentScale(std=float(plain.encode(pixels).std())))
    captions = [f"the digit {NAMES[digit]}" for digit in DIGITS]
    questions = [_questions(digit) for digit in DIGITS]
    chat = ChatFormat(system_prompt=None)
    words = [chat.generation_prompt.replace("{caption}", caption) for caption in captions]
    words += [text for turns in questions for turn in turns for text in turn]
    text_tokenizer = train_tokenizer(words * 4, config.text_config.vocab_size)
    processor = MMARProcessor.from_config(config, text_tokenizer, chat=chat)
    return Pairs(tokenizer.encode(pixels[first]), captions, questions, processor, tokenizer)


def _questions(digit: int) -> list[tuple[str, str]]:
    return [
        ("which digit is this?", NAMES[digit]),
        ("is it even?", "no" if digit % 2 else "yes"),
        ("what is one more?", NAMES[digit + 1]),
    ]
