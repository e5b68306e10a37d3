"""Tar files of images: what a folder gives, division and resumption by the sample, damage anywhere."""

from __future__ import annotations

import io
import itertools
import json
import random
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from bad_image_files import PHOTOGRAPHS, bad_files, encoded, flipped, to_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmar.data.example import Example
from mmar.data.folder import FolderDataset
from mmar.data.images import ImageLimits
from mmar.data.order import StreamSettings
from mmar.data.shards import ShardStream, expand_shards
from mmar.data.skipped import BadSample, Reason, SkipLimit, TooManySkipped
from mmar.data.stream import ExampleStream
from mmar.data.tar_index import index_shard

LIMITS = ImageLimits(max_pixels=10**6)
ANY = SkipLimit(max_share=1.0)
ONCE = StreamSettings(epochs=1, shuffle=False, limit=ANY)
PIXEL = to_bytes(Image.new("L", (1, 1)), "PNG")


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def numbered(path: Path, numbers: Iterable[int]) -> Path:
    return write_tar(path, [m for i in numbers for m in ((f"{i:04d}.png", PIXEL), (f"{i:04d}.txt", str(i).encode()))])


def captions(examples: Iterable[Example]) -> list[str]:
    return [str(example.caption) for example in examples]


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seven shards of 1, 2, ..., 7 samples, numbered through."""
    folder, start, shards = tmp_path_factory.mktemp("seven"), 0, []
    for i in range(7):
        shards.append(numbered(folder / f"{i}.tar", range(start, start + i + 1)))
        start += i + 1
    return shards


ALL = [str(i) for i in range(28)]


def test_shards_give_what_the_folder_gives(tmp_path: Path) -> None:
    """Photographs, generated images and 60 bad ones, with captions and questions."""
    contents = {path.name: path.read_bytes() for path in PHOTOGRAPHS}
    contents |= {f"good_{i}.png": encoded(i, "PNG") for i in range(8)}
    contents |= {name: data for name, (data, _) in bad_files(each=4).items()}
    turns = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]
    records = [{"file_name": name, "text": [f"This is {name}.", "Picture."], "conversations": turns} for name in contents]
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    members = []
    for record in records:
        key = str(record["file_name"]).rsplit(".", 1)[0]
        beside = {"caption": "Picture.", "conversations": turns, "width": 7}
        members.append(
            [(record["file_name"], contents[str(record["file_name"])]), (f"{key}.json", json.dumps(beside).encode())]
        )
        members[-1].append((f"{key}.txt", f"This is {record['file_name']}.\n".encode()))
    for i in range(3):
        write_tar(tmp_path / f"{i:02d}.tar", itertools.chain.from_iterable(members[i::3]))
    folder = FolderDataset.from_folder(tmp_path, limits=LIMITS)
    plain = ExampleStream(folder, ONCE)
    shards = ShardStream(str(tmp_path / "{00..02}.tar"), ONCE, limits=LIMITS)
    expected = {example.key.rsplit(".", 1)[0]: example for example in plain}
    found = {example.key.split(":")[1]: example for example in shards}
    assert len(found) == 10
    assert set(found) == set(expected)
    for key, example in found.items():
        same = expected[key]
        assert (example.caption, example.captions, example.turns) == (same.caption, same.captions, same.turns)
        assert example.image == same.image
    assert shards.skipped.counts == plain.skipped.counts
    assert shards.skipped.total == 60


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_and_long_names(tmp_path: Path, form: int) -> None:
    name = "folder/" * 20 + "n" * 90 if form != tarfile.USTAR_FORMAT else "folder/" * 10 + "n" * 90
    path = write_tar(tmp_path / "a.tar", [(f"{name}.seg.npy", b"123"), (f"{name}.PNG", PIXEL), (f"{name}.txt", b"x")], form)
    (example,) = ShardStream([path], ONCE)
    assert example.key == f"a.tar:{name}"
    assert example.meta == {"source": f"{path}:{name}"}


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program")
@pytest.mark.parametrize("form", ["v7", "ustar", "oldgnu", "gnu", "pax"])
def test_shards_of_another_writer(tmp_path: Path, form: str) -> None:
    for path, text in zip(PHOTOGRAPHS, ("A temple.", "A flower."), strict=True):
        shutil.copy(path, tmp_path)
        (tmp_path / f"{path.stem}.txt").write_text(f"{text}\n")
    names = ["china.jpg", "china.txt", "flower.jpg", "flower.txt"]
    subprocess.run(["tar", f"--format={form}", "-cf", "photos.tar", *names], cwd=tmp_path, check=True)
    stream = ShardStream(str(tmp_path / "photos.tar"), StreamSettings(epochs=1, shuffle=False, strict=True))
    for example, path in zip(stream, PHOTOGRAPHS, strict=True):
        assert example.key == f"photos.tar:{path.stem}"
        with Image.open(path) as expected:
            assert example.image.tobytes() == expected.tobytes()
    assert stream.skipped.delivered == 2


@settings(deadline=None, derandomize=True, max_examples=20)
@given(
    world_size=st.integers(1, 4),
    workers=st.integers(1, 3),
    seed=st.integers(0, 9),
    mixed=st.integers(1, 9),
    shuffle=st.booleans(),
)
def test_every_sample_once_per_epoch(
    seven: list[Path], world_size: int, workers: int, seed: int, mixed: int, shuffle: bool
) -> None:
    def read(epochs: int) -> Counter[str]:
        parts = []
        for rank in range(world_size):
            options = StreamSettings(seed, shuffle, epochs, rank=rank, world_size=world_size)
            for worker in range(workers):
                parts += captions(ShardStream(seven, options, mixed=mixed).read(worker, workers))
        return Counter(parts)

    if world_size * workers > 7:
        with pytest.raises(ValueError, match="shards must be at least as many as ranks times workers, got 7"):
            read(1)
        assert set(read(2).values()) == {2}
        return
    assert read(1) == Counter(ALL)
    assert read(3) == Counter(ALL * 3)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(taken=st.integers(0, 70), mixed=st.integers(1, 9), seed=st.integers(0, 3), world_size=st.integers(1, 9))
def test_the_rest_after_a_resumption_is_the_same(seven: list[Path], taken: int, mixed: int, seed: int, world_size: int) -> None:
    def stream() -> ShardStream:
        return ShardStream(seven, StreamSettings(seed, rank=world_size - 1, world_size=world_size), mixed=mixed)

    whole = captions(itertools.islice(stream(), taken + 30))
    first, second = stream(), stream()
    assert captions(itertools.islice(first, taken)) == whole[:taken]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert captions(itertools.islice(second, 30)) == whole[taken:]


def test_epochs_have_different_orders_and_mix_shards(seven: list[Path]) -> None:
    data = captions(itertools.islice(ShardStream(seven, StreamSettings(), mixed=4), 56))
    assert sorted(data[:28]) == sorted(data[28:]) == sorted(ALL)
    assert data[:28] != data[28:]
    assert data != captions(itertools.islice(ShardStream(seven, StreamSettings(seed=1), mixed=4), 56))
    one_by_one = ShardStream(seven, StreamSettings(epochs=1), mixed=1)
    shards = [example.key.split(":")[0] for example in one_by_one]
    assert len([group for group, _ in itertools.groupby(shards)]) == 7
    shards = [example.key.split(":")[0] for example in ShardStream(seven, StreamSettings(epochs=1), mixed=7)]
    assert len([group for group, _ in itertools.groupby(shards)]) > 14  # of 28 in random order
    assert captions(ShardStream(seven, ONCE, mixed=2)) == ALL


def test_bad_samples_of_a_whole_shard(tmp_path: Path) -> None:
    members = [
        ("good.png", PIXEL),
        ("good.txt", b"x"),
        ("far.txt", b"its image comes later"),
        ("silent.png", PIXEL),
        ("blind.txt", b"x"),
        ("twice.png", PIXEL),
        ("twice.txt", b"first"),
        ("twice.txt", b"second"),
        ("two.png", PIXEL),
        ("two.jpg", encoded(0, "JPEG")),
        ("two.txt", b"x"),
        ("latin.png", PIXEL),
        ("latin.txt", b"caf\xe9"),
        ("json.png", PIXEL),
        ("json.json", b"{"),
        ("empty.png", PIXEL),
        ("empty.txt", b"\n"),
        ("caf\udce9.png", PIXEL),
        (".png", PIXEL),
        ("far.png", PIXEL),
    ]
    path = write_tar(tmp_path / "a.tar", members, tarfile.GNU_FORMAT)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    stream = ShardStream([path], ONCE)
    assert captions(stream) == ["x", "its image comes later", "first", "x"]
    assert stream.skipped.counts == {
        Reason.NO_TEXT: 1,
        Reason.NO_IMAGE: 1,
        Reason.DUPLICATE: 2,
        Reason.NOT_UTF8: 2,
        Reason.BAD_RECORD: 2,
        Reason.EMPTY_CAPTION: 1,
        Reason.BROKEN_SHARD: 1,
    }
    with pytest.raises(BadSample, match=r"a.tar:silent: record has no text"):
        list(ShardStream([path], StreamSettings(epochs=1, shuffle=False, strict=True)))


def test_a_damaged_header_costs_its_own_sample(tmp_path: Path) -> None:
    """tarfile itself would stop there without a word."""
    path = numbered(tmp_path / "a.tar", range(10))
    data = bytearray(path.read_bytes())
    third = data.index(b"0003.png")
    data[third] ^= 1
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        assert len(tar.getnames()) == 6
    stream = ShardStream([path], ONCE)
    assert captions(stream) == [str(i) for i in range(10) if i != 3]
    assert stream.skipped.counts == {Reason.BROKEN_SHARD: 1, Reason.NO_IMAGE: 1}
    assert f"bytes {third} to " in stream.skipped.examples[Reason.BROKEN_SHARD][0]


def test_a_shard_that_is_cut_off(tmp_path: Path) -> None:
    whole = numbered(tmp_path / "whole.tar", range(4)).read_bytes()
    ends = {i: 2048 * (i + 1) for i in range(4)}  # header and content of two members, 512 bytes each
    assert captions(ShardStream([tmp_path / "whole.tar"], ONCE)) == ["0", "1", "2", "3"]
    for length in range(0, ends[3] + 1, 97):
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:length])
        stream = ShardStream([path], ONCE)
        complete = [str(i) for i, end in ends.items() if end - 511 <= length]  # all but the zeros behind the text
        if complete:
            assert captions(stream) == [c for c in complete if ends[int(c)] - 512 < length], length
        else:
            with pytest.raises(TooManySkipped, match="shard is damaged"):
                list(ShardStream([path], StreamSettings(epochs=1, shuffle=False)))
        assert Reason.BROKEN_SHARD in stream.skipped.counts or not complete
    (tmp_path / "cut.tar").write_bytes(whole[: ends[3] + 512])
    assert captions(ShardStream([tmp_path / "cut.tar"], StreamSettings(epochs=1, shuffle=False, strict=True))) == list("0123")


def test_no_damage_is_fatal_or_goes_unnoticed(tmp_path: Path) -> None:
    """Bits flipped anywhere in a shard of PNGs: what arrives is right, and what does not is reported."""
    rng, whole = random.Random(0), numbered(tmp_path / "a.tar", range(6)).read_bytes()
    intact = 0
    for _ in range(150):
        path = tmp_path / "flipped.tar"
        path.write_bytes(flipped(whole, rng, rng.choice([1, 10])))
        stream = ShardStream([path], ONCE)
        try:
            found = captions(stream)
        except TooManySkipped:
            continue
        lost = {str(i) for i in range(6)} - set(found)
        intact += not lost
        assert len(found) <= 6
        assert not lost or stream.skipped.total or len(found) == 6  # a flipped caption is another caption
    assert 0 < intact < 150


def test_files_that_are_no_tars(tmp_path: Path) -> None:
    compressed = io.BytesIO()
    with tarfile.open(fileobj=compressed, mode="w:gz"):
        pass
    contents: dict[str, bytes] = {
        "empty": b"",
        "short": b"x",
        "text": b"<html>" * 500,
        "noise": random.Random(0).randbytes(5000),
        "zeros": bytes(10240),
        "gzip": compressed.getvalue(),
        "image": PHOTOGRAPHS[0].read_bytes()[:20000],
    }
    for name, data in contents.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(data)
        found = index_shard(path)
        assert found, name
        assert all(isinstance(item, BadSample) and item.reason is Reason.BROKEN_SHARD for item in found), name
    folder = tmp_path / "only_a_folder.tar"
    with tarfile.open(folder, "w") as tar:
        info = tarfile.TarInfo("x")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    with pytest.raises(TooManySkipped, match="must hold at least one sample"):
        list(ShardStream([folder], StreamSettings(epochs=1)))
    with pytest.raises(TooManySkipped):  # and without end
        next(iter(ShardStream([folder], StreamSettings(limit=SkipLimit(window=10)))))


def test_headers_that_lead_in_circles_or_to_the_moon(tmp_path: Path) -> None:
    """A negative size sends tarfile back (CVE-2025-8194), an enormous one past the end."""
    for size in (-1024, -(2**40), 2**40, 2**62):
        header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT))
        header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        path = tmp_path / "a.tar"
        for members in ([], [("0.png", PIXEL), ("0.txt", b"0")]):
            write_tar(path, members)
            before = path.read_bytes()[: 1024 * len(members)]
            path.write_bytes(before + bytes(header) + bytes(1024))
            items = index_shard(path)
            assert sum(not isinstance(item, BadSample) for item in items) == len(members) // 2
            assert any(isinstance(item, BadSample) and item.reason is Reason.BROKEN_SHARD for item in items)


def test_two_tars_in_one_file(tmp_path: Path) -> None:
    first, second = (numbered(tmp_path / f"{i}.tar", range(3 * i, 3 * i + 3)) for i in range(2))
    (tmp_path / "both.tar").write_bytes(first.read_bytes() + second.read_bytes())
    stream = ShardStream([tmp_path / "both.tar"], ONCE)
    assert captions(stream) == list("012345")
    assert stream.skipped.total == 0


def test_a_shard_that_vanishes_or_shrinks_while_it_is_read(tmp_path: Path) -> None:
    paths = [numbered(tmp_path / f"{i}.tar", range(100 * i, 100 * i + 20)) for i in range(3)]
    stream = ShardStream(paths, ONCE, mixed=1)
    examples = iter(stream)
    assert next(examples).caption == "0"
    paths[0].write_bytes(paths[0].read_bytes()[:20_000])  # of 2048 bytes per sample; some are in a buffer
    paths[1].unlink()
    rest = captions(examples)
    read = rest.index("200")
    assert rest == [*map(str, range(1, read + 1)), *map(str, range(200, 220))]
    assert read < 19
    assert stream.skipped.counts == {Reason.BROKEN_SHARD: 19 - read + 1}
    assert stream.skipped.delivered == 1 + len(rest)


def test_names_of_shards(tmp_path: Path, seven: list[Path]) -> None:
    assert expand_shards("a/{008..011}.tar") == [Path(f"a/{i:03d}.tar") for i in range(8, 12)]
    assert expand_shards("{0..1}-{00..01}.tar") == [Path(f"{i}-{j:02d}.tar") for i in range(2) for j in range(2)]
    assert expand_shards(str(seven[0].parent / "[1-3].tar")) == seven[1:4]
    assert expand_shards("a.tar") == [Path("a.tar")]
    for pattern in ("{a,b}.tar", "{0..}.tar", "{0..3.tar", "0..3}.tar"):
        with pytest.raises(ValueError, match="must be ranges of numbers"):
            expand_shards(pattern)
    with pytest.raises(ValueError, match="must go upwards"):
        expand_shards("{3..0}.tar")
    with pytest.raises(FileNotFoundError, match="must match at least one file"):
        expand_shards(str(tmp_path / "*.tar"))
    with pytest.raises(FileNotFoundError, match=r"shards must be files, got 2 that are not: .*7.tar, .*8.tar"):
        ShardStream(str(seven[0].parent / "{6..8}.tar"))
    with pytest.raises(ValueError, match=r"must have different names, got 0.tar twice"):
        ShardStream([seven[0], seven[0]])
    with pytest.raises(ValueError, match="at least one"):
        ShardStream([])


def test_a_state_of_other_shards_is_refused(tmp_path: Path, seven: list[Path]) -> None:
    stream: Any = ShardStream(seven)
    list(itertools.islice(stream, 3))
    state = stream.state_dict()
    for other in (ShardStream(seven[:6]), ShardStream(seven, mixed=2), ShardStream(seven, StreamSettings(seed=1))):
        with pytest.raises(ValueError, match="a stream must be what it was when its state was taken"):
            other.load_state_dict(state)
