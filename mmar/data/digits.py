"""Scikit-learn's 1797 scans of handwritten digits with captions and questions.

The scans are 8 x 8 pixels of 17 levels, 0 to 16 (Alpaydin and Kaynak, UCI optical recognition of handwritten digits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, get_args

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from mmar.data.draws import coin, pick, some, stream
from mmar.data.example import Example

DigitSplit = Literal["train", "test"]

LEVELS = 16
"""The highest level, white."""

SIDE = 8
"""Pixels."""

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_TEST_SHARE = 4

Turn = tuple[str, str]


class DigitDataset(Dataset[Example]):
    """The scans of one split.

    Every fourth scan of a digit, in the order of the file, is a test scan: 445 of 1797, for good. Both parts then have the same
    distribution and the same writers; the file goes writer by writer, and with its last quarter as test a nearest neighbour
    is right on 96.0 % instead of 99.1 %.

    The meta of an example holds ``digit``, ``scan`` (index in the file), ``split``, and the ``families`` of its questions.

    Args:
        split: train or test.
        seed: Of the questions.
        questions: Number per image; fewer where the families give no more different ones.
        families: Families to ask for; None: all.
        caption_only: No questions.
        rounds: How often the scans are gone through, each time with other questions.

    Raises:
        ValueError: If an argument is out of range or not known.
        ImportError: If scikit-learn is missing.
    """

    def __init__(
        self,
        split: DigitSplit = "train",
        *,
        seed: int = 0,
        questions: int = 1,
        families: Sequence[str] | None = None,
        caption_only: bool = False,
        rounds: int = 1,
    ) -> None:
        if split not in get_args(DigitSplit):
            raise ValueError(f"split must be train or test, got {split!r}")
        if questions < 1:
            raise ValueError(f"questions must be at least 1, got {questions}; caption_only=True asks none")
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {rounds}")
        self.families = () if caption_only else _checked_families(families)
        self.split, self.seed, self.questions, self.rounds = split, seed, questions, rounds
        self.levels, self.labels = load_scans()
        self.scans = split_scans(self.labels, split)

    def __len__(self) -> int:
        return self.rounds * len(self.scans)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"index must lie in 0 .. {len(self) - 1}, got {index}")
        visit, position = divmod(index, len(self.scans))
        scan = int(self.scans[position])
        digit = int(self.labels[scan])
        asked = _ask(digit, stream("digits", self.seed, visit, scan), self.families, self.questions)
        first, *others = captions(digit)
        return Example(
            key=f"digits/{self.seed}/{visit}/{scan:04d}",
            image=to_image(self.levels[scan]),
            caption=first,
            turns=tuple(turn for _, turn in asked),
            captions=tuple(others),
            meta={"digit": digit, "scan": scan, "split": self.split, "families": [family for family, _ in asked]},
        )


def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """Levels ``(1797, 8, 8)`` uint8 in 0 .. 16, and digits ``(1797,)``.

    Raises:
        ImportError: If scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("scikit-learn must be installed: it holds the digits; pip install scikit-learn") from error
    data = load_digits()
    return data.images.astype(np.uint8), data.target.astype(np.int64)


def split_scans(labels: np.ndarray, split: DigitSplit) -> np.ndarray:
    """Indices of the scans of a split, ascending: of each digit the fourth, eighth, ... scan is a test scan."""
    rank = np.zeros(len(labels), dtype=np.int64)
    for digit in np.unique(labels):
        rank[labels == digit] = np.arange((labels == digit).sum())
    is_test = rank % _TEST_SHARE == _TEST_SHARE - 1
    return np.flatnonzero(is_test if split == "test" else ~is_test)


def to_image(levels: np.ndarray) -> Image.Image:
    """Levels 0 .. 16 as a grey image, 16 white.

    Args:
        levels: ``(8, 8)`` integers.

    Raises:
        ValueError: If a level is out of range.
    """
    levels = np.asarray(levels)
    if levels.size and not (levels.min() >= 0 and levels.max() <= LEVELS):
        raise ValueError(f"levels must lie in 0 .. {LEVELS}, got {levels.min()} to {levels.max()}")
    return Image.fromarray((levels * (255.0 / LEVELS)).round().astype(np.uint8))


def to_levels(image: Image.Image) -> np.ndarray:
    """The nearest levels of a grey image, uint8; the exact inverse of :func:`to_image`.

    Raises:
        ValueError: If the image is not grey.
    """
    if image.mode != "L":
        raise ValueError(f"mode of the image must be L, got {image.mode}; convert it")
    return (np.asarray(image) * (LEVELS / 255.0)).round().astype(np.uint8)


def captions(digit: int) -> tuple[str, ...]:
    """Paraphrases, the plainest first."""
    word = NUMBERS[digit]
    return (f"the digit {word}", f"a handwritten {digit}", f"the number {digit}", f"a handwritten {word}", f"the digit {digit}")


def identity(digit: int, rng: Random) -> Turn:
    """Which digit is this?"""
    return pick(rng, ("which digit is this?", "what digit is shown?", "which number is written here?")), NUMBERS[digit]


def verification(digit: int, rng: Random) -> Turn:
    """Is this a seven? Half of the answers are yes."""
    asked = digit if coin(rng) else _other(digit, rng)
    article = "an" if NUMBERS[asked] == "eight" else "a"
    return pick(rng, ("is this {} {}?", "does it show {} {}?")).format(article, NUMBERS[asked]), _yes(asked == digit)


def parity(digit: int, rng: Random) -> Turn:
    """Is the digit even or odd?"""
    asked = pick(rng, ("even", "odd"))
    if coin(rng):
        return pick(rng, ("is the digit even or odd?", "odd or even?")), "odd" if digit % 2 else "even"
    return f"is it an {asked} number?", _yes((digit % 2 == 0) == (asked == "even"))


def comparison(digit: int, rng: Random) -> Turn:
    """Is it larger than four?

    The threshold lies between the digit and another one drawn at random, which would have given the opposite answer just as
    often: every threshold is balanced.
    """
    other = _other(digit, rng)
    threshold = min(digit, other) + int(rng.random() * abs(digit - other))  # low <= threshold < high
    if coin(rng):
        return f"is it larger than {NUMBERS[threshold]}?", _yes(digit > threshold)
    return f"is it smaller than {NUMBERS[threshold + 1]}?", _yes(digit < threshold + 1)


def neighbour(digit: int, rng: Random) -> Turn:
    """What is one more than this digit? Minus one to ten."""
    if coin(rng):
        return pick(rng, ("what is one more?", "which number comes next?")), NUMBERS[digit + 1]
    return pick(rng, ("what is one less?", "which number comes before?")), NUMBERS[digit - 1] if digit else "minus one"


DIGIT_FAMILIES: dict[str, Callable[[int, Random], Turn]] = {
    "identity": identity,
    "verification": verification,
    "parity": parity,
    "comparison": comparison,
    "neighbour": neighbour,
}
DIGIT_CHANCE = {"identity": 0.1, "verification": 0.5, "parity": 0.5, "comparison": 0.5, "neighbour": 0.1}
"""How often the best guess from the words of a single question is right, with all digits as frequent."""


def _ask(digit: int, rng: Random, families: Sequence[str], count: int) -> list[tuple[str, Turn]]:
    asked: list[tuple[str, Turn]] = []
    order = some(rng, families, len(families))
    for attempt in range(4 * count if order else 0):
        if len(asked) == count:
            break
        family = order[attempt % len(order)]
        turn = DIGIT_FAMILIES[family](digit, rng)
        if all(turn[0] != question for _, (question, _) in asked):
            asked.append((family, turn))
    return asked


def _other(digit: int, rng: Random) -> int:
    """Another digit, each as likely."""
    return (digit + 1 + int(rng.random() * 9)) % 10


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _checked_families(families: Sequence[str] | None) -> tuple[str, ...]:
    if families is None:
        return tuple(DIGIT_FAMILIES)
    unknown = [family for family in families if family not in DIGIT_FAMILIES]
    if isinstance(families, str) or not families or unknown or len(set(families)) < len(families):
        raise ValueError(f"families must be different names among {', '.join(DIGIT_FAMILIES)}, got {families!r}")
    return tuple(families)
