"""Random words said twice, a language model's first lesson: whoever can say them again can look up what stood after a word."""

from __future__ import annotations

from torch.utils.data import Dataset

from mmar.data.draws import some, stream
from mmar.data.example import Example
from mmar.data.scenes.vocabulary import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES

_LEAST, _MOST = 6, 23
_WORDS = (
    *(*COLOURS, *BACKGROUNDS, *SHAPES, *SIZES),
    *dict.fromkeys(word for position in POSITIONS for word in position.split()),
    *("at", "the", "on", "in", "a", "and", "with", "object", "shape", "is", "background"),
)


class RepeatedWords(Dataset[Example]):
    """Words of scenes in a random order, each once, to be said again; no images.

    On such rows attention heads form that find an earlier occurrence of a word and what stood after it (induction heads,
    Olsson et al. 2022, https://arxiv.org/abs/2209.11895), within a few hundred steps. Questions about descriptions, whose
    answers are a word or two, did not bring them about in 1400.

    Args:
        length: Number of examples.
        seed: Another seed, other rows.

    Raises:
        ValueError: If length is below 1.
    """

    def __init__(self, length: int = 10_000, *, seed: int = 0) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        self.length, self.seed = length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.length:
            raise IndexError(f"index must lie in 0 .. {self.length - 1}, got {index}")
        rng = stream("repeats", self.seed, index)
        words = " ".join(some(rng, _WORDS, _LEAST + int(rng.random() * (_MOST - _LEAST + 1))))
        return Example(key=f"repeats/{self.seed}/{index}", image=None, caption=words, turns=(("say it again.", words),))
