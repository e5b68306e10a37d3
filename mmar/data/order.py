"""Which sample is read when, and by whom.

Every epoch has its own order, decided by the seed. All epochs one after the other are one long sequence, and of ``n`` readers
(ranks times workers) reader ``r`` takes the positions ``r, r + n, r + 2 n, ...``. So every sample is read once in every epoch,
by whichever reader, also where ``n`` does not divide their number; a reader may be in the next epoch already while another is
in the last. A sequence without end never stops on one rank before another. One of a fixed number of epochs may: its readers
differ by one position, and by the samples that are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mmar.data.skipped import SkipLimit


@dataclass(frozen=True)
class StreamSettings:
    """How a stream goes through its data.

    Attributes:
        seed: Of the orders; not negative.
        shuffle: A new order in every epoch; False: the order of the data in all of them.
        epochs: How many; None: without end.
        first_epoch: Number of the first one. To go on with another number of ranks or workers, start at the next epoch.
        rank: Of this process.
        world_size: Number of processes.
        strict: Raise at the first bad sample instead of leaving it out.
        limit: How many may be left out.
    """

    seed: int = 0
    shuffle: bool = True
    epochs: int | None = None
    first_epoch: int = 0
    rank: int = 0
    world_size: int = 1
    strict: bool = False
    limit: SkipLimit = field(default_factory=SkipLimit)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must lie in [0, world_size), got {self.rank} of {self.world_size}")
        for name in ("seed", "first_epoch"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, or None for a stream without end, got {self.epochs}")


@dataclass(frozen=True)
class Reader:
    """One of those that a stream is divided over.

    Attributes:
        index: From 0 to ``count - 1``.
        count: Ranks times workers.
    """

    index: int
    count: int

    def position(self, turn: int) -> int:
        """Of its turn number ``turn`` in the long sequence."""
        return self.index + self.count * turn


class LongSequence:
    """The epochs one after the other.

    Args:
        length: Of an epoch.
        settings: Seed and epochs.
    """

    def __init__(self, length: int, settings: StreamSettings) -> None:
        self.length, self.settings = length, settings
        self._epoch, self._order = -1, np.arange(length)  # of the last epoch asked for

    def epoch(self, position: int) -> int:
        """Which epoch a position is in, counted from 0."""
        return position // self.length

    def index(self, position: int) -> int | None:
        """What is at a position, from 0 to ``length - 1``; None after the last epoch."""
        epoch, place = divmod(position, self.length)
        if self.settings.epochs is not None and epoch >= self.settings.epochs:
            return None
        if self.settings.shuffle and epoch != self._epoch:
            self._epoch = epoch
            self._order = permutation(self.length, self.settings.seed, self.settings.first_epoch + epoch)
        return int(self._order[place])


def permutation(length: int, *key: int) -> npt.NDArray[np.int64]:
    """A permutation of ``range(length)``, the same for the same key of non-negative numbers."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key))).permutation(length)
