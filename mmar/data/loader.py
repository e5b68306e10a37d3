"""Batches of a stream, decoded in worker processes, resumable at the batch.

torch's DataLoader with the positions of the workers sent along with their batches: so a checkpoint holds the position behind
the last batch that was *taken*, however many were prepared, and the report of what was left out reaches the main process.
torchdata's ``StatefulDataLoader`` resumes these streams as well, but its last release (0.11) calls functions that torch 2.13
deprecates, and a report would have to be dug out of its state.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmar.data.skipped import Skipped

T = TypeVar("T")
S = TypeVar("S", covariant=True)
B = TypeVar("B")


class Resumable(Protocol[S]):
    """What a :class:`mmar.data.stream.Stream` offers; anything made of streams can offer it too."""

    @property
    def skipped(self) -> Skipped:
        """What was delivered and left out in the present pass."""

    def read(self, worker: int = 0, workers: int = 1) -> Iterator[S]:
        """Iterate over the part of a worker, from the present position on."""

    def state_dict(self) -> dict[str, Any]:
        """The present position and the report."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go to a position."""


class _Sent(NamedTuple):
    """What a worker sends.

    Attributes:
        role: Its part of the stream.
        batch: The batch; None at the end.
        state: Of the stream behind the batch.
        skipped: Until then, as its state.
    """

    role: int
    batch: Any
    state: dict[str, Any]
    skipped: dict[str, Any]


class StreamLoader(Generic[T, B]):
    """Batches of a stream.

    Iteration goes on behind the last batch that was taken. After the end of a stream the next iteration starts anew. No
    random numbers of torch's default generator are used up.

    Args:
        stream: What to read. Worker processes get copies; with ``num_workers=0`` it is read in place.
        batch_size: Samples per batch; the last ones of each worker may be fewer.
        collate: Makes a batch of a list of samples, in the worker. It must be picklable where workers are spawned.
        num_workers: Processes; 0: none.
        prefetch: Batches that each worker prepares ahead.
        pin_memory: Whether to copy tensors into page-locked memory.
        start_method: How to start workers: fork, forkserver or spawn; None: the platform's default.
    """

    def __init__(
        self,
        stream: Resumable[T],
        batch_size: int,
        collate: Callable[[list[T]], B],
        *,
        num_workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
        start_method: str | None = None,
    ) -> None:
        if batch_size < 1 or num_workers < 0 or prefetch < 1:
            raise ValueError(
                f"batch_size and prefetch must be at least 1 and num_workers at least 0, got {batch_size}, {prefetch} and "
                f"{num_workers}"
            )
        self.stream, self.batch_size, self.collate, self.num_workers = stream, batch_size, collate, num_workers
        self._options: dict[str, Any] = {"num_workers": num_workers, "pin_memory": pin_memory, "collate_fn": _unchanged}
        self._options["generator"] = torch.Generator()  # the default one would be advanced at every start and resumption
        if num_workers:
            self._options |= {"prefetch_factor": prefetch, "multiprocessing_context": start_method}
            self._options["worker_init_fn"] = _leave_signals_to_the_main_process
        self._states: dict[int, dict[str, Any]] = {}
        self._reports: dict[int, dict[str, Any]] = {}
        self._next = 0

    @property
    def skipped(self) -> Skipped:
        """What the workers of this rank delivered and left out in this pass, up to the last batch taken."""
        return Skipped.merged(Skipped.from_state(report) for report in self._reports.values())

    def __iter__(self) -> Iterator[B]:
        batches = _Batches(self.stream, self.batch_size, self.collate, self._next, self._roles, dict(self._states))
        for sent in DataLoader(batches, batch_size=None, **self._options):
            self._states[sent.role], self._reports[sent.role] = sent.state, sent.skipped
            self._next = (sent.role + 1) % self._roles
            if sent.batch is not None:
                yield sent.batch
        self._states, self._next = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """Behind the last batch that was taken. JSON values if the stream's are."""
        workers = [[role, self._states[role], self._reports[role]] for role in sorted(self._states)]
        return {"num_workers": self._roles, "next": self._next, "workers": workers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where a state was taken; what remains is the same to the sample. The batch size may be another.

        Raises:
            ValueError: If the number of workers is another.
        """
        if state["num_workers"] != self._roles:
            raise ValueError(
                f"num_workers must be {state['num_workers']} as in the state, got {self._roles}; "
                "to change it, start a new stream with first_epoch"
            )
        self._next = state["next"]
        self._states = {role: stream for role, stream, _ in state["workers"]}
        self._reports = {role: report for role, _, report in state["workers"]}

    @property
    def _roles(self) -> int:
        return max(1, self.num_workers)


class _Batches(IterableDataset[_Sent]):
    """In each worker: its part of the stream, in batches.

    A DataLoader always begins with worker 0, so after a resumption worker 0 takes the role whose turn it is.
    """

    def __init__(
        self,
        stream: Resumable[Any],
        batch_size: int,
        collate: Callable[[list[Any]], Any],
        first: int,
        roles: int,
        states: dict[int, dict[str, Any]],
    ) -> None:
        self.stream, self.batch_size, self.collate = stream, batch_size, collate
        self.first, self.roles, self.states = first, roles, states

    def __iter__(self) -> Iterator[_Sent]:
        worker = get_worker_info()
        role = (self.first + (0 if worker is None else worker.id)) % self.roles
        if role in self.states:
            self.stream.load_state_dict(self.states[role])
        samples: list[Any] = []
        for sample in self.stream.read(role, self.roles):
            samples.append(sample)
            if len(samples) == self.batch_size:
                yield self._sent(role, self.collate(samples))
                samples = []
        if samples:
            yield self._sent(role, self.collate(samples))
        yield self._sent(role, None)

    def _sent(self, role: int, batch: Any) -> _Sent:
        return _Sent(role, batch, self.stream.state_dict(), self.stream.skipped.state_dict())


def _unchanged(sent: _Sent) -> _Sent:
    """By default a DataLoader makes tensors of all arrays in a batch."""
    return sent


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ctrl-C and job schedulers signal a whole process group; the main process needs its workers to end its step and save.

    Workers end when the main process tells them, and when it is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
