"""What is in a shard: a tar file whose members ``key.jpg``, ``key.txt``, ``key.json`` are one sample (WebDataset)."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from mmar.data.records import check_utf8
from mmar.data.skipped import BadSample, Reason

SHARD_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_BLOCK = 512
_CHUNK = 2**20


@dataclass(frozen=True)
class Member:
    """Contents of a file in the shard, bytes from ``start`` on."""

    start: int
    size: int


@dataclass(frozen=True)
class ShardSample:
    """The members of one key.

    Attributes:
        key: Name of the members up to the first dot of the last part.
        image: The picture.
        texts: By suffix, txt and json.
    """

    key: str
    image: Member
    texts: Mapping[str, Member]


def index_shard(path: Path) -> list[ShardSample | BadSample]:
    """The samples of a shard, in order of their first members, then what is wrong with it.

    Headers are read, contents are not. After a damaged header the next one that is whole is searched for. Members with other
    suffixes are other modalities of the sample, and ignored.

    Args:
        path: An uncompressed tar file.
    """
    where = str(path)
    members: dict[str, dict[str, Member]] = {}  # by key, then by kind
    bad: list[BadSample] = []
    try:
        with path.open("rb") as file:
            for item in _members(file, where):
                try:
                    _add(members, item, where)
                except BadSample as error:
                    bad.append(error)
    except OSError as error:
        bad.append(BadSample.of(Reason.BROKEN_SHARD, where, f"{type(error).__name__}: {error}"))
    samples: list[ShardSample | BadSample] = []
    for key, kinds in members.items():
        if "image" in kinds:
            samples.append(ShardSample(key, kinds.pop("image"), kinds))
        else:
            detail = f"a member must be one of {', '.join(SHARD_IMAGE_SUFFIXES)}"
            bad.append(BadSample.of(Reason.NO_IMAGE, f"{where}:{key}", detail))
    if not samples and not bad:
        bad.append(BadSample.of(Reason.BROKEN_SHARD, where, "it must hold at least one sample, got none"))
    return [*samples, *bad]


def _members(file: BufferedReader, where: str) -> Iterator[tarfile.TarInfo | BadSample]:
    """Members, and every stretch of bytes that is neither a member nor empty.

    tarfile itself takes a damaged header for the end of the file and stops without a word; told to ignore it, it searches on.
    """
    size, end = file.seek(0, 2), 0
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True, encoding="utf-8", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                if member.size < 0 or tar.offset <= end:  # goes in circles
                    raise tarfile.ReadError(f"a member of {member.size} bytes")
                yield from _gap(file, end, member.offset, where)
                end = tar.offset
                if member.offset_data + member.size > size:
                    yield BadSample.of(Reason.BROKEN_SHARD, f"{where}:{_shown(member)}", f"cut off at byte {size}")
                elif not member.isdir():
                    yield member
    except Exception as error:  # a damaged header can raise anything
        yield BadSample.of(Reason.BROKEN_SHARD, where, f"from byte {end} of {size} on: {error}")
        return
    yield from _gap(file, end, size, where)
    if size - end < _BLOCK:
        yield BadSample.of(Reason.BROKEN_SHARD, where, f"it must end with zeros, got its end at byte {size}: was it cut off?")


def _gap(file: BufferedReader, start: int, stop: int, where: str) -> Iterator[BadSample]:
    """Between members there may be zeros only."""
    file.seek(start)
    while (left := stop - file.tell()) > 0 and (chunk := file.read(min(left, _CHUNK))):
        if chunk.strip(b"\0"):
            yield BadSample.of(Reason.BROKEN_SHARD, where, f"bytes {start} to {stop} must be members of a tar file")
            break


def _add(members: dict[str, dict[str, Member]], member: tarfile.TarInfo | BadSample, where: str) -> None:
    """File a member under its key."""
    if isinstance(member, BadSample):
        raise member
    folder, _, name = member.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    suffix = suffix.lower()
    if suffix not in (*SHARD_IMAGE_SUFFIXES, "txt", "json"):
        return
    where = f"{where}:{_shown(member)}"
    check_utf8(member.name, where)
    if not stem:
        raise BadSample.of(Reason.BAD_RECORD, where, "the name of a member must have something before its first dot")
    if not member.isreg() or member.issparse():
        raise BadSample.of(Reason.BROKEN_SHARD, where, "a member must be a regular file, no link and not sparse")
    key = f"{folder}/{stem}" if folder else stem
    kinds, kind = members.setdefault(key, {}), "image" if suffix in SHARD_IMAGE_SUFFIXES else suffix
    if kind in kinds:
        raise BadSample.of(Reason.DUPLICATE, where, "a key must have one member of a kind; the first one is used")
    kinds[kind] = Member(member.offset_data, member.size)


def _shown(member: tarfile.TarInfo) -> str:
    return repr(member.name)[1:-1]
