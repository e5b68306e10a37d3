"""Streams and their loader: every sample once per epoch, resumption to the sample, nothing left out in silence."""

from __future__ import annotations

import itertools
import json
import pickle
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mmar.data.loader import StreamLoader
from mmar.data.order import StreamSettings
from mmar.data.skipped import BadSample, Reason, SkipLimit, Skipped, TooManySkipped
from mmar.data.stream import ExampleStream

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # more workers than processors
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
ANY = SkipLimit(max_share=1.0)


class Numbers:
    """0, 1, ..., of which some are bad."""

    def __init__(self, length: int, bad: frozenset[int] = frozenset()) -> None:
        self.length, self.bad = length, bad

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        if index in self.bad:
            raise BadSample.of(Reason.BROKEN_IMAGE, f"number {index}")
        return index


class Broken(Numbers):
    """Has an error of its own."""

    def __getitem__(self, index: int) -> int:
        raise ZeroDivisionError("of the data set itself")


def stream(length: int = 50, bad: frozenset[int] = frozenset(), **options: Any) -> ExampleStream[int]:
    return ExampleStream(Numbers(length, bad), StreamSettings(**{"limit": ANY, **options}))


def take(source: Any, count: int) -> list[Any]:
    return list(itertools.islice(iter(source), count))


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(state))
    return copied


@settings(deadline=None, derandomize=True)
@given(
    length=st.integers(1, 40),
    world_size=st.integers(1, 5),
    workers=st.integers(1, 4),
    seed=st.integers(0, 5),
    shuffle=st.booleans(),
    epochs=st.integers(1, 3),
)
def test_every_sample_once_per_epoch_over_all_ranks_and_workers(
    length: int, world_size: int, workers: int, seed: int, shuffle: bool, epochs: int
) -> None:
    parts = [
        list(stream(length, seed=seed, shuffle=shuffle, epochs=epochs, rank=rank, world_size=world_size).read(worker, workers))
        for rank in range(world_size)
        for worker in range(workers)
    ]
    assert Counter(itertools.chain(*parts)) == Counter(list(range(length)) * epochs)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    # Without end the readers' samples, one of each in turn, are the same epochs one after the other.
    endless = [
        stream(length, seed=seed, shuffle=shuffle, rank=rank, world_size=world_size).read(worker, workers)
        for rank in range(world_size)
        for worker in range(workers)
    ]
    sequence = list(itertools.islice(itertools.chain.from_iterable(zip(*endless, strict=True)), epochs * length))
    for start in range(0, epochs * length, length):
        assert sorted(sequence[start : start + length]) == list(range(length))


@settings(deadline=None, derandomize=True)
@given(
    length=st.integers(1, 30),
    bad=st.frozensets(st.integers(0, 29), max_size=20),
    taken=st.integers(0, 80),
    epochs=st.none() | st.integers(1, 3),
    rank=st.integers(0, 2),
)
def test_the_rest_after_a_resumption_is_the_same(
    length: int, bad: frozenset[int], taken: int, epochs: int | None, rank: int
) -> None:
    options = {"epochs": epochs, "rank": rank, "world_size": 3, "seed": 3}
    if len(bad & set(range(length))) >= length:
        return
    whole, first, second = (stream(length, bad, **options) for _ in range(3))
    try:
        expected = take(whole, taken + 40)
    except TooManySkipped:  # all of this rank's few
        return
    assert take(first, taken) == expected[:taken]
    if len(expected) < taken + 40 <= taken:
        return
    second.load_state_dict(through_json(first.state_dict()))
    if len(expected) > taken:
        assert take(second, 40) == expected[taken:]
        assert second.skipped == whole.skipped
    elif epochs is not None and len(expected) == taken:
        assert take(second, 40) == []  # the pass that was resumed is over


def test_shuffling_depends_on_the_seed_and_the_epoch() -> None:
    first = take(stream(), 100)
    assert first == take(stream(), 100)
    assert first[:50] != first[50:]
    assert first != take(stream(seed=1), 100)
    assert first[50:] == take(stream(first_epoch=1), 50)
    assert take(stream(shuffle=False), 100) == [*range(50), *range(50)]
    # Neighbours: 50 places moved at random are next to their old neighbour with probability 2/50 each.
    assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(first[:50])) < 12


def test_iterating_goes_on_and_after_the_end_starts_anew() -> None:
    numbers = stream(5, shuffle=False, epochs=1)
    assert take(numbers, 2) == [0, 1]
    assert list(numbers) == [2, 3, 4]
    assert numbers.skipped.delivered == 5
    assert list(numbers) == [0, 1, 2, 3, 4]
    assert numbers.skipped.delivered == 5


def test_a_sample_left_out_at_the_very_end_counts_once() -> None:
    first, second = (stream(3, frozenset({2}), shuffle=False, epochs=1) for _ in range(2))
    assert list(first) == [0, 1]
    second.load_state_dict(through_json(first.state_dict()))
    assert list(second) == []
    assert second.skipped == first.skipped
    assert second.skipped.total == 1


def test_a_state_of_something_else_is_refused() -> None:
    numbers = stream(world_size=2)
    take(numbers, 3)
    state = numbers.state_dict()
    for other, what in (
        (stream(51, world_size=2), r"length 51 \(state: 50\)"),
        (stream(seed=1, world_size=2), r"seed 1 \(state: 0\)"),
        (stream(rank=1, world_size=2), r"rank 1 \(state: 0\)"),
        (stream(), r"world_size 1 \(state: 2\)"),
        (stream(shuffle=False, world_size=2), r"shuffle False \(state: True\)"),
    ):
        with pytest.raises(ValueError, match=what):
            other.load_state_dict(state)
    same = stream(world_size=2)
    same.load_state_dict(state)
    with pytest.raises(ValueError, match=r"must go on as the reader it was, Reader\(index=0, count=2\), got .*count=6"):
        next(same.read(0, workers=3))


def test_settings_are_checked() -> None:
    for options, message in (
        ({"rank": 2, "world_size": 2}, "rank must lie in"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"first_epoch": -1}, "first_epoch must not be negative"),
        ({"epochs": 0}, "epochs must be at least 1, or None"),
    ):
        with pytest.raises(ValueError, match=message):
            StreamSettings(**options)
    with pytest.raises(ValueError, match="at least one sample"):
        stream(0)
    with pytest.raises(ValueError, match="max_share must lie in"):
        SkipLimit(max_share=50)
    with pytest.raises(ValueError, match="window must be at least 1"):
        SkipLimit(window=0)


def test_the_limit_looks_at_every_window() -> None:
    """The disk fails in the second window of 100: 60 of its 100 are bad."""
    bad = frozenset(range(140, 200))
    failing = stream(1000, bad, shuffle=False, limit=SkipLimit(max_share=0.5, window=100))
    with pytest.raises(TooManySkipped, match="at most 50% of 100 samples in a row must be left out, got 60"):
        list(failing)
    assert failing.skipped.delivered == 140
    tolerant = stream(1000, bad, shuffle=False, epochs=1, limit=SkipLimit(max_share=0.6, window=100))
    assert len(list(tolerant)) == 940
    halfway = stream(1000, bad, shuffle=False, limit=SkipLimit(max_share=0.5, window=100))
    take(halfway, 140)
    resumed = stream(1000, bad, shuffle=False, limit=SkipLimit(max_share=0.5, window=100))
    resumed.load_state_dict(through_json(halfway.state_dict()))
    with pytest.raises(TooManySkipped, match="got 60"):
        next(iter(resumed))


def test_all_bad_is_never_an_empty_stream_nor_an_endless_search() -> None:
    with pytest.raises(TooManySkipped, match="got 5 of 5"):
        list(stream(5, frozenset(range(5)), epochs=1))
    with pytest.raises(TooManySkipped, match="1000 samples in a row"):
        next(iter(stream(5, frozenset(range(5)), limit=SkipLimit())))


def test_errors_of_the_data_set_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        next(iter(ExampleStream(Broken(3))))


def test_strict_streams_stop_at_the_first() -> None:
    numbers = stream(9, frozenset({4}), shuffle=False, strict=True)
    examples = iter(numbers)
    assert list(itertools.islice(examples, 4)) == [0, 1, 2, 3]
    with pytest.raises(BadSample, match="number 4: image is damaged"):
        next(examples)


REPORTS = st.builds(
    lambda reasons, delivered: (reasons, delivered), st.lists(st.sampled_from(list(Reason)), max_size=12), st.integers(0, 5)
)


def report(made: tuple[list[Reason], int]) -> Skipped:
    out = Skipped()
    out.delivered = made[1]
    for i, reason in enumerate(made[0]):
        out.add(BadSample.of(reason, f"file {i}"))
    return out


@settings(deadline=None, derandomize=True)
@given(REPORTS, REPORTS, REPORTS)
def test_reports_add_up(first: Any, second: Any, third: Any) -> None:
    made = (first, second, third)
    a, b, c = map(report, made)
    assert Skipped.merged([Skipped.merged([a, b]), c]) == Skipped.merged([a, Skipped.merged([b, c])])
    total = Skipped.merged([a, b, c])
    assert total.total == sum(len(reasons) for reasons, _ in made)
    assert total.delivered == sum(delivered for _, delivered in made)
    assert total.counts == Skipped.merged([c, b, a]).counts
    assert Skipped.from_state(through_json(total.state_dict())) == total
    assert all(1 <= len(texts) <= 5 for texts in total.examples.values())


def test_reports_can_be_printed_whatever_the_names() -> None:
    out = Skipped()
    out.add(BadSample.of(Reason.BROKEN_IMAGE, "caf\udce9\n\x1b[31m.jpg" + "x" * 1000))
    lines = str(out).encode("utf-8").decode().split("\n")
    assert lines[0] == "1 of 1 samples left out"
    assert lines[2].strip().startswith(r"caf\udce9\n\x1b[31m.jpgxxx")
    assert len(lines) == 3
    assert all(line.isprintable() and len(line) < 350 for line in lines)


def test_a_bad_sample_survives_the_way_from_a_worker() -> None:
    bad = pickle.loads(pickle.dumps(BadSample.of(Reason.NOT_UTF8, "list:3", "byte 0xe9")))
    assert bad.reason is Reason.NOT_UTF8
    assert str(bad) == "list:3: text is not UTF-8: byte 0xe9"
    assert str(BadSample("only a message")) == "only a message"  # what torch's workers send


BAD = frozenset({3, 17, 18, 40})


def loader(num_workers: int, **options: Any) -> StreamLoader[int, list[int]]:
    return StreamLoader(stream(50, BAD, **options), 4, list, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_a_loader_delivers_every_sample_once(num_workers: int) -> None:
    batches = loader(num_workers, epochs=1)
    state = torch.get_rng_state()
    first = list(batches)
    assert torch.get_rng_state().equal(state)  # or a resumed run would draw other noise
    assert sorted(itertools.chain(*first)) == sorted(set(range(50)) - BAD)
    assert batches.skipped.counts == {Reason.BROKEN_IMAGE: 4}
    assert batches.skipped.delivered == 46
    assert list(batches) == first  # anew after the end
    assert batches.skipped.delivered == 46


@pytest.mark.parametrize(("num_workers", "epochs"), [(0, None), (2, None), (3, 1)])
def test_a_loader_resumes_behind_the_last_batch_that_was_taken(num_workers: int, epochs: int | None) -> None:
    """Workers prepare batches ahead; these must come again. Stopped after any batch, also between two workers' ends."""
    whole = loader(num_workers, epochs=epochs)
    expected = take(whole, 30)
    for taken in (0, 1, 2, 5, len(expected) - 2, len(expected) - 1):
        first, second = loader(num_workers, epochs=epochs), loader(num_workers, epochs=epochs)
        assert take(first, taken) == expected[:taken]
        assert first.skipped.delivered == sum(map(len, expected[:taken]))
        second.load_state_dict(through_json(first.state_dict()))
        assert take(second, 30 - taken) == expected[taken:]
        if taken:
            assert second.skipped == whole.skipped


def test_a_loader_goes_on_where_it_was_left() -> None:
    batches = loader(2)
    expected = take(loader(2), 9)
    assert [*take(batches, 3), *take(batches, 6)] == expected


def test_a_loader_with_other_workers_is_refused() -> None:
    first = loader(0)
    take(first, 1)
    loader(1).load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="num_workers must be 1 as in the state, got 2"):
        loader(2).load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="batch_size and prefetch must be at least 1"):
        StreamLoader(stream(), 0, list)


def test_bad_samples_stop_a_strict_loader_with_their_place() -> None:
    with pytest.raises(BadSample, match="number 3: image is damaged"):
        list(loader(1, shuffle=False, strict=True))


class Sums:
    """A stream made of a stream, as a mixture of tasks is."""

    def __init__(self, inner: ExampleStream[int]) -> None:
        self.inner = inner

    @property
    def skipped(self) -> Skipped:
        return self.inner.skipped

    def read(self, worker: int = 0, workers: int = 1) -> Iterator[int]:
        numbers = self.inner.read(worker, workers)
        return (a + b for a, b in zip(numbers, numbers, strict=False))

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: Any, /) -> None:
        self.inner.load_state_dict(state)


def test_a_loader_takes_what_is_made_of_streams() -> None:
    expected = take(StreamLoader(Sums(stream()), 2, list), 8)
    first, second = (StreamLoader(Sums(stream()), 2, list) for _ in range(2))
    assert take(first, 3) == expected[:3]
    second.load_state_dict(first.state_dict())
    assert take(second, 5) == expected[3:]


def test_a_loader_leaves_batches_as_they_are() -> None:
    (batch,) = StreamLoader(stream(3, epochs=1, shuffle=False), 4, np.array)
    assert isinstance(batch, np.ndarray)
    assert batch.tolist() == [0, 1, 2]


def test_torchs_own_loader_divides_a_stream_over_its_workers() -> None:
    plain: DataLoader[int] = DataLoader(stream(20, epochs=1), batch_size=None, num_workers=2)
    assert sorted(plain) == list(range(20))
