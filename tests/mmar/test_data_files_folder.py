"""Folders of images with metadata, and LLaVA's list."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_image_files import PHOTOGRAPHS, bad_files, encoded, odd_files
from PIL import Image

from mmar.data.folder import FolderDataset
from mmar.data.images import ImageLimits
from mmar.data.order import StreamSettings
from mmar.data.skipped import BadSample, Reason, SkipLimit, TooManySkipped
from mmar.data.stream import ExampleStream
from mmar.processing.image_processor import MMARImageProcessor

LIMITS = ImageLimits(max_pixels=10**6)
ANY = SkipLimit(max_share=1.0)


def write_lines(path: Path, records: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two photographs, one of them in a sub-folder, with captions and questions."""
    (tmp_path / "flowers").mkdir()
    shutil.copy(PHOTOGRAPHS[0], tmp_path)
    shutil.copy(PHOTOGRAPHS[1], tmp_path / "flowers")
    records = [
        {"file_name": "china.jpg", "text": "A Chinese temple."},
        {"file_name": "flowers/flower.jpg", "text": ["A dahlia.", "A flower."], "conversations": talk("Colour?", "Orange.")},
    ]
    write_lines(tmp_path / "metadata.jsonl", records)
    return tmp_path


def test_photographs_with_their_texts(photographs: Path) -> None:
    data = FolderDataset.from_folder(photographs)
    china, flower = data[0], data[1]
    assert [china.key, flower.key] == ["china.jpg", "flowers/flower.jpg"]
    assert (china.caption, china.turns, china.captions) == ("A Chinese temple.", (), ())
    assert (flower.caption, flower.turns, flower.captions) == ("A dahlia.", (("Colour?", "Orange."),), ("A flower.",))
    assert flower.meta == {"source": "metadata.jsonl:2"}
    assert china.drawing().caption == "A Chinese temple."
    assert flower.reading().turns == (("Colour?", "Orange."),)
    with Image.open(PHOTOGRAPHS[1]) as expected:
        assert np.array_equal(np.asarray(flower.image), np.asarray(expected))
    assert len(data) == 2
    assert data.skipped.total == 0


def test_metadata_as_a_table_and_in_sub_folders_say_the_same(photographs: Path, tmp_path: Path) -> None:
    expected = [FolderDataset.from_folder(photographs)[i] for i in range(2)]
    (photographs / "metadata.jsonl").unlink()
    with (photographs / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "file_name"], ["A Chinese temple.", "china.jpg"]])
    with (photographs / "flowers" / "metadata.csv").open("w", newline="") as file:
        row = ["flower.jpg", "A dahlia.", json.dumps(talk("Colour?", "Orange."))]
        csv.writer(file).writerows([["file_name", "text", "conversations"], row])
    data = FolderDataset.from_folder(photographs)
    for i, example in enumerate(expected):
        assert (data[i].key, data[i].caption, data[i].turns) == (example.key, example.caption, example.turns)
        assert data[i].image == example.image


def test_llavas_list_with_several_records_of_an_image(photographs: Path) -> None:
    file = photographs / "llava.json"
    records = [
        {"id": "1", "image": "china.jpg", "conversations": talk("What?", "A temple.")},
        {"id": "1", "image": "china.jpg", "conversations": talk("Where?", "In China.")},
        {"id": "2", "image": "flowers/flower.jpg", "conversations": talk("What?", "A flower.")},
        {"id": "1", "image": "china.jpg", "conversations": talk("What?", "A temple.")},
        {"id": "3", "conversations": talk("Text only?", "Yes.")[:1]},
    ]
    file.write_text(json.dumps(records))
    data = FolderDataset.from_llava(file, photographs)
    assert [data[i].key for i in range(len(data))] == ["china.jpg", "china.jpg#1", "flowers/flower.jpg"]
    assert data[1].turns == (("Where?", "In China."),)
    assert data.skipped.counts == {Reason.DUPLICATE: 1, Reason.NO_IMAGE: 1}
    write_lines(photographs / "llava.jsonl", records)
    assert FolderDataset.from_llava(photographs / "llava.jsonl", photographs)[1].key == "china.jpg#1"
    with pytest.raises(FileNotFoundError, match="file must be a list"):
        FolderDataset.from_llava(photographs / "none.json", photographs)


def test_hundreds_of_bad_files_among_good_ones(tmp_path: Path) -> None:
    """All good ones arrive, every bad one is counted, under a reason that fits."""
    bad = bad_files(each=16)
    good = {f"good_{i}.jpg": encoded(i, "JPEG") for i in range(40)}
    odd = {name: data for name, data in odd_files().items() if name != "broken_exif.jpg"}  # Pillow warns
    contents = {**{name: data for name, (data, _) in bad.items()}, **good, **odd}
    assert len(bad) == 240
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    write_lines(tmp_path / "metadata.jsonl", [{"file_name": name, "text": name} for name in contents])
    data = FolderDataset.from_folder(tmp_path, limits=LIMITS)
    assert len(data) == len(contents)
    stream = ExampleStream(data, StreamSettings(epochs=1, limit=ANY))
    processor = MMARImageProcessor(8)
    delivered = {}
    for example in stream:
        assert processor(example.image)["pixel_values"].isfinite().all()
        assert example.key not in delivered
        delivered[example.key] = example
    assert set(delivered) == {*good, *odd}
    assert all(example.caption == key for key, example in delivered.items())
    found = {}
    for i in range(len(data)):
        try:
            data[i]
        except BadSample as error:
            name = str(error).split(": ")[1].rsplit("/", 1)[1]
            found[name] = error.reason
    assert set(found) == set(bad)
    assert [name for name, (_, reasons) in bad.items() if found[name] not in reasons] == []
    for reason, count in stream.skipped.counts.items():
        assert count == sum(1 for r in found.values() if r == reason)
    assert stream.skipped.total == 240
    report = str(stream.skipped)
    assert report.startswith(f"240 of {len(contents)} samples left out")
    assert all(reason in report for reason in set(found.values()))


def test_the_same_files_stop_a_strict_stream_and_a_limited_one(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(20)]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(encoded(0, "PNG") if i % 4 == 0 else b"<html>")
    write_lines(tmp_path / "metadata.jsonl", [{"file_name": name, "text": "x"} for name in names])
    data = FolderDataset.from_folder(tmp_path)
    with pytest.raises(BadSample, match=r"metadata.jsonl:2: .*1.png: file is not an image"):
        list(ExampleStream(data, StreamSettings(shuffle=False, epochs=1, strict=True)))
    endless = ExampleStream(data, StreamSettings(limit=SkipLimit(max_share=0.7, window=100)))
    with pytest.raises(TooManySkipped, match=r"at most 70% of 100 samples in a row must be left out, got 75") as caught:
        for _ in endless:
            pass
    assert "file is not an image" in str(caught.value)
    enough = ExampleStream(data, StreamSettings(epochs=9, limit=SkipLimit(max_share=0.75, window=20)))
    assert sum(1 for _ in enough) == 45


def test_records_that_are_left_out(photographs: Path) -> None:
    (photographs / "alone.png").write_bytes(encoded(0, "PNG"))
    (photographs / "flowers" / "ALONE.JPG").write_bytes(encoded(0, "JPEG"))
    (photographs / ".cache").mkdir()
    (photographs / ".cache" / "hidden.png").write_bytes(encoded(0, "PNG"))
    (photographs / "notes.txt").write_text("no image")
    with (photographs / "metadata.jsonl").open("ab") as file:
        for line in (
            b'{"file_name": "china.jpg", "text": "again"}',
            b'{"file_name": "./flowers//flower.jpg", "text": "again"}',
            b'{"file_name": "../china.jpg", "text": "x"}',
            b'{"file_name": "\\ud800.jpg", "text": "x"}',
            b'{"text": "x"}',
            b"{",
            b'{"file_name": "y.jpg", "text": "caf\xe9"}',
            b'{"file_name": "y.jpg", "text": " "}',
        ):
            file.write(line + b"\n")
    data = FolderDataset.from_folder(photographs, max_share=0.9)
    assert len(data) == data.skipped.delivered == 2
    assert data.skipped.counts == {
        Reason.DUPLICATE: 2,
        Reason.PATH_LEAVES_FOLDER: 1,
        Reason.NO_IMAGE: 1,
        Reason.BAD_RECORD: 1,
        Reason.NOT_UTF8: 2,
        Reason.EMPTY_CAPTION: 1,
        Reason.NO_METADATA: 2,
    }
    assert any(text.startswith("flowers/ALONE.JPG") for text in data.skipped.examples[Reason.NO_METADATA])
    with pytest.raises(TooManySkipped, match="at most 50% of the samples must be left out, got 10 of 12"):
        FolderDataset.from_folder(photographs)
    with pytest.raises(BadSample, match=r"metadata.jsonl:3: key occurs twice: 'china.jpg' must be named once"):
        FolderDataset.from_folder(photographs, strict=True)


def test_an_image_that_is_gone_is_found_missing_when_it_is_read(photographs: Path) -> None:
    (photographs / "china.jpg").unlink()
    data = FolderDataset.from_folder(photographs)
    with pytest.raises(BadSample, match=r"metadata.jsonl:1: .*china.jpg: file is missing"):
        data[0]


def test_folders_without_data(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must be an existing folder"):
        FolderDataset.from_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"must hold metadata.jsonl or metadata.csv, .* a line is"):
        FolderDataset.from_folder(tmp_path)
    write_lines(tmp_path / "metadata.jsonl", [])
    with pytest.raises(ValueError, match="must hold at least one image with a text, got none"):
        FolderDataset.from_folder(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(ValueError, match="got both"):
        FolderDataset.from_folder(tmp_path)


def test_names_of_folders_that_are_not_utf8(photographs: Path) -> None:
    strange = os.fsencode(photographs) + b"/caf\xe9"
    try:
        os.mkdir(strange)
    except OSError:
        pytest.skip("this file system has names in UTF-8 only")
    write_lines(Path(os.fsdecode(strange)) / "metadata.jsonl", [{"file_name": "a.jpg", "text": "x"}])
    data = FolderDataset.from_folder(photographs)
    assert len(data) == 2
    assert data.skipped.counts == {Reason.NOT_UTF8: 1}
    str(data.skipped).encode("utf-8")


def test_a_copy_for_a_worker_reads_the_same(photographs: Path) -> None:
    data = FolderDataset.from_folder(photographs)
    copied = pickle.loads(pickle.dumps(data))
    assert copied[1] == data[1]
    assert copied.fingerprint == data.fingerprint
    shutil.copytree(photographs, photographs / "elsewhere", ignore=shutil.ignore_patterns("elsewhere"))
    assert FolderDataset.from_folder(photographs / "elsewhere").fingerprint == data.fingerprint
    write_lines(photographs / "metadata.jsonl", [{"file_name": "china.jpg", "text": "Another caption."}])
    assert FolderDataset.from_folder(photographs).fingerprint != data.fingerprint
