"""Tar files of images with their texts as a stream, for what does not fit on one disk.

Plain :mod:`tarfile`: WebDataset's own reader cannot go back to a sample, and this one must. A reader takes whole shards, a few
at a time, reads their headers, and visits their samples together in random order. So a position is two numbers, and nothing
is buffered. It needs uncompressed files in a file system that reads at random places, not a pipe or a bucket.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from mmar.data.example import Example
from mmar.data.images import ImageLimits, check_bytes, decode_image
from mmar.data.order import LongSequence, Reader, StreamSettings, permutation
from mmar.data.records import Texts, decode_text, parse_object, texts_of
from mmar.data.skipped import BadSample, Reason
from mmar.data.stream import Cursor, Stream, Visit
from mmar.data.tar_index import Member, ShardSample, index_shard


class ShardStream(Stream[Example]):
    """Examples of tar files. The key is the name of the shard, a colon, and the key of the members.

    Shards are divided over ranks and workers, so there should be several times more of them than readers. Without end, fewer
    will do: readers then take the same shard in different epochs.

    Args:
        shards: Paths, or a pattern: ``train-{000..012}.tar`` or ``train-*.tar``.
        settings: See :class:`StreamSettings`.
        mixed: Shards whose samples are shuffled together.
        limits: On images.

    Raises:
        FileNotFoundError: If a shard is not there.
        ValueError: If there is none, or two have the same name.
    """

    def __init__(
        self,
        shards: str | Sequence[str | Path],
        settings: StreamSettings | None = None,
        *,
        mixed: int = 4,
        limits: ImageLimits | None = None,
    ) -> None:
        super().__init__(settings)
        if mixed < 1:
            raise ValueError(f"mixed must be at least 1 shard, got {mixed}")
        self.shards = expand_shards(shards) if isinstance(shards, str) else [Path(shard) for shard in shards]
        _check_shards(self.shards)
        self.mixed, self.limits = mixed, limits or ImageLimits()
        sizes = [(path.name, path.stat().st_size) for path in self.shards]
        self.fingerprint = hashlib.sha256(repr(sizes).encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def identity(self) -> dict[str, Any]:
        """Names and sizes of the shards, and how they are mixed."""
        return {"shards": len(self.shards), "fingerprint": self.fingerprint, "mixed": self.mixed}

    def _visits(self, reader: Reader, cursor: Cursor) -> Iterator[Visit[Example]]:
        if self.settings.epochs is not None and reader.count > len(self.shards) * self.settings.epochs:
            raise ValueError(
                f"shards must be at least as many as ranks times workers, got {len(self.shards)} for {reader.count}; "
                "use fewer workers, or smaller shards"
            )
        sequence, (turn, start) = LongSequence(len(self.shards), self.settings), cursor
        while group := self._group(sequence, reader, turn):
            with ExitStack() as files:
                loads = [load for shard in group for load in self._loads(shard, files)]
                order = self._order(len(loads), reader.position(turn))
                for place in range(start, len(loads)):
                    after = (turn, place + 1) if place + 1 < len(loads) else (turn + len(group), 0)
                    yield after, loads[order[place]]
            turn, start = turn + len(group), 0

    def _group(self, sequence: LongSequence, reader: Reader, turn: int) -> list[Path]:
        """The next shards of a reader, of one epoch; none after the last."""
        epoch, group = sequence.epoch(reader.position(turn)), []
        for position in (reader.position(turn + i) for i in range(self.mixed)):
            index = sequence.index(position)
            if index is None or sequence.epoch(position) != epoch:
                break
            group.append(self.shards[index])
        return group

    def _order(self, length: int, position: int) -> Sequence[int] | npt.NDArray[np.int64]:
        """Positions in the long sequence belong to one group each, so groups have different orders."""
        settings = self.settings
        return permutation(length, settings.seed, settings.first_epoch, position) if settings.shuffle else range(length)

    def _loads(self, shard: Path, files: ExitStack) -> list[Callable[[], Example]]:
        """How to read each sample of a shard."""
        samples = index_shard(shard)
        try:
            file = files.enter_context(shard.open("rb"))
        except OSError as error:
            samples = [BadSample.of(Reason.BROKEN_SHARD, str(shard), f"{type(error).__name__}: {error}")]
        return [partial(_raise, s) if isinstance(s, BadSample) else partial(self._load, file, s) for s in samples]

    def _load(self, shard: BufferedReader, sample: ShardSample) -> Example:
        name, where = Path(shard.name).name, f"{shard.name}:{sample.key}"
        texts = self._texts(shard, sample, where)
        image = decode_image(self._bytes(shard, sample.image, where), where, self.limits)
        return Example(f"{name}:{sample.key}", image, texts.caption, texts.turns, texts.captions, {"source": where})

    def _texts(self, shard: BufferedReader, sample: ShardSample, where: str) -> Texts:
        """``.txt`` is the caption; one in ``.json``, if it is another, a paraphrase."""
        parts = {suffix: decode_text(self._bytes(shard, member, where), where) for suffix, member in sample.texts.items()}
        record = parse_object(parts["json"], where) if "json" in parts else {}
        if "txt" in parts:
            beside = record.get("text")
            record["text"] = [parts["txt"], *(beside if isinstance(beside, list) else [beside])]
        return texts_of(record, where)

    def _bytes(self, shard: BufferedReader, member: Member, where: str) -> bytes:
        check_bytes(member.size, where, self.limits)
        try:
            shard.seek(member.start)
            data = shard.read(member.size)
        except OSError as error:
            raise BadSample.of(Reason.BROKEN_SHARD, where, f"{type(error).__name__}: {error}") from error
        if len(data) < member.size:
            raise BadSample.of(Reason.BROKEN_SHARD, where, f"{member.size} bytes must follow, got {len(data)}; has it changed?")
        return data


def expand_shards(pattern: str) -> list[Path]:
    """Names of shards: numbers in ``{000..012}``, else what ``*``, ``?`` and ``[]`` match, in order of names.

    Raises:
        FileNotFoundError: If nothing matches.
        ValueError: If a range is malformed.
    """
    if "{" in pattern or "}" in pattern:
        return [Path(name) for name in _ranges(pattern)]
    if not glob.has_magic(pattern):
        return [Path(pattern)]
    names = sorted(glob.glob(pattern))
    if not names:
        raise FileNotFoundError(f"shards must match at least one file, got {pattern!r}")
    return [Path(name) for name in names]


def _ranges(pattern: str) -> list[str]:
    parts = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)  # text, first, last, text, ...
    if any(brace in text for text in parts[::3] for brace in "{}"):
        raise ValueError(f"braces in shards must be ranges of numbers such as {{000..012}}, got {pattern!r}; list the paths")
    choices = [[parts[0]]]
    for first, last, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        if int(first) > int(last):
            raise ValueError(f"a range in shards must go upwards, got {{{first}..{last}}}")
        choices.append([f"{number:0{len(first)}}{text}" for number in range(int(first), int(last) + 1)])
    return ["".join(choice) for choice in itertools.product(*choices)]


def _check_shards(shards: Sequence[Path]) -> None:
    missing = [str(path) for path in shards if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"shards must be files, got {len(missing)} that are not: {', '.join(missing[:3])}")
    if not shards:
        raise ValueError("shards must be at least one, got none")
    twice = [name for name, times in Counter(path.name for path in shards).items() if times > 1]
    if twice:
        raise ValueError(f"shards must have different names, got {', '.join(twice[:3])} twice; rename them, or use two streams")


def _raise(bad: BadSample) -> NoReturn:
    raise bad
