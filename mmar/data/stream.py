"""Streams of samples: shuffled, divided over ranks and workers, resumable at the sample, tolerant of bad samples.

:mod:`mmar.data.order` says how they are divided. The positions of worker processes stay in these processes;
:class:`mmar.data.loader.StreamLoader` brings them back. ``state_dict`` and ``load_state_dict`` are also what torchdata's
``StatefulDataLoader`` looks for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

from torch.utils.data import IterableDataset, get_worker_info

from mmar.data.order import LongSequence, Reader, StreamSettings
from mmar.data.skipped import BadSample, Skipped, TooManySkipped

T = TypeVar("T")
S = TypeVar("S", covariant=True)
Cursor = tuple[int, int]
Visit = tuple[Cursor, Callable[[], T]]
"""Where the cursor stands after a sample, and how to read it."""


class Indexed(Protocol[S]):
    """Samples by index; one that cannot be used raises :class:`mmar.data.skipped.BadSample`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> S: ...


class Stream(IterableDataset[T], ABC, Generic[T]):
    """What all streams have in common.

    Iteration goes on from the present position. After the last epoch the next iteration starts anew.

    Attributes:
        settings: See :class:`StreamSettings`.
        skipped: What was delivered and left out in this pass: since the start, if there is no last epoch.
    """

    skipped: Skipped
    _cursor: Cursor
    _window: tuple[int, int]  # delivered and left out since it began
    _ended: bool

    def __init__(self, settings: StreamSettings | None = None) -> None:
        self.settings = StreamSettings() if settings is None else settings
        self._reader: Reader | None = None
        self._restart()

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the data are, as JSON values: the same where a state is loaded or a latent cache continued."""

    @abstractmethod
    def _visits(self, reader: Reader, cursor: Cursor) -> Iterator[Visit[T]]:
        """The samples from the cursor on. ``(0, 0)`` is the start."""

    def __iter__(self) -> Iterator[T]:
        worker = get_worker_info()
        return self.read() if worker is None else self.read(worker.id, worker.num_workers)

    def read(self, worker: int = 0, workers: int = 1) -> Iterator[T]:
        """Iterate over the part of one worker of this rank, from the present position on.

        Raises:
            BadSample: If strict, at the first.
            TooManySkipped: If more are left out than the limit allows, or all of them.
            ValueError: If the present position is that of another worker.
        """
        settings = self.settings
        reader = Reader(settings.rank * workers + worker, settings.world_size * workers)
        self._enter(reader)
        for cursor, load in self._visits(reader, self._cursor):
            try:
                sample = load()
            except BadSample as bad:
                if settings.strict:
                    raise
                self._cursor = cursor
                self._count(bad)
                continue
            self._cursor = cursor
            self._count(None)
            yield sample
        self._ended = True
        if not self.skipped.delivered:
            self.skipped.check(0.0)

    def state_dict(self) -> dict[str, Any]:
        """The present position: behind the sample that was delivered last. JSON values."""
        return {
            "data": self._described(),
            "reader": None if self._reader is None else [self._reader.index, self._reader.count],
            "cursor": list(self._cursor),
            "window": list(self._window),
            "skipped": self.skipped.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position. What remains is the same, to the sample, as where the state was taken.

        Raises:
            ValueError: If the data, the seed or the ranks are others.
        """
        here, there = self._described(), state["data"]
        keys = [key for key in {**there, **here} if here.get(key) != there.get(key)]
        if keys:
            different = ", ".join(f"{key} {here.get(key)!r} (state: {there.get(key)!r})" for key in keys)
            raise ValueError(
                f"a stream must be what it was when its state was taken, got {different}; "
                "to go on with other data or ranks, start a new stream with first_epoch"
            )
        self._restart()
        self._reader = None if state["reader"] is None else Reader(*state["reader"])
        (turn, place), (good, bad) = state["cursor"], state["window"]
        self._cursor, self._window = (turn, place), (good, bad)
        self.skipped = Skipped.from_state(state["skipped"])

    def _restart(self) -> None:
        self._cursor = (0, 0)
        self._window = (0, 0)
        self.skipped = Skipped()
        self._ended = False

    def _described(self) -> dict[str, Any]:
        names = ("seed", "shuffle", "first_epoch", "rank", "world_size")
        return {**self.identity(), **{name: getattr(self.settings, name) for name in names}}

    def _enter(self, reader: Reader) -> None:
        if self._ended:
            self._restart()
        if self._cursor != (0, 0) and reader != self._reader:
            raise ValueError(
                f"a stream must go on as the reader it was, {self._reader}, got {reader}; keep the number of ranks and "
                "workers, or start a new stream with first_epoch"
            )
        self._reader = reader

    def _count(self, bad: BadSample | None) -> None:
        """Count a sample; at the end of a window, look at its share."""
        good, left_out = self._window
        if bad is None:
            self.skipped.delivered += 1
            good += 1
        else:
            self.skipped.add(bad)
            left_out += 1
        limit, seen = self.settings.limit, good + left_out
        self._window = (good, left_out) if seen < limit.window else (0, 0)
        if seen >= limit.window and left_out > limit.max_share * seen:
            raise TooManySkipped(
                f"at most {limit.max_share:.0%} of {seen} samples in a row must be left out, got {left_out}; "
                f"correct the data, or raise max_share\n{self.skipped}"
            )


class ExampleStream(Stream[T]):
    """A data set with an index as a stream.

    Args:
        dataset: Samples by index. Its ``fingerprint``, if it has one, is compared when a state is loaded.
        settings: See :class:`StreamSettings`.
    """

    def __init__(self, dataset: Indexed[T], settings: StreamSettings | None = None) -> None:
        super().__init__(settings)
        if not len(dataset):
            raise ValueError("dataset must hold at least one sample, got none")
        self.dataset = dataset
        self._fingerprint = getattr(dataset, "fingerprint", None)  # it may be slow, and a state is taken at every batch

    def identity(self) -> dict[str, Any]:
        """Length and fingerprint of the data set."""
        return {"length": len(self.dataset), "fingerprint": self._fingerprint}

    def _visits(self, reader: Reader, cursor: Cursor) -> Iterator[Visit[T]]:
        sequence = LongSequence(len(self.dataset), self.settings)
        for turn in count(cursor[0]):
            index = sequence.index(reader.position(turn))
            if index is None:
                return
            yield (turn + 1, 0), partial(self.dataset.__getitem__, index)
