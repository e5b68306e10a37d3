"""Training on a folder in which hundreds of files and records are bad: all are counted, none ends the run."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from bad_image_files import bad_files, encoded, to_bytes
from PIL import Image

from mmar import train as command
from mmar.data.folder import FolderDataset
from mmar.data.order import permutation
from mmar.data.skipped import BadSample, Reason

GOOD, BATCH = 330, 10
BAD_RECORDS = {
    b'{"file_name": "N.jpg", "text": "': Reason.BAD_RECORD,
    b'{"file_name": "N.jpg", "text": 7}': Reason.BAD_RECORD,
    b'["N.jpg", "a list"]': Reason.BAD_RECORD,
    b'{"file_name": "N.jpg", "text": "\xff\xfe"}': Reason.NOT_UTF8,
    b'{"file_name": "N.jpg", "text": "  "}': Reason.EMPTY_CAPTION,
    b'{"file_name": "N.jpg"}': Reason.NO_TEXT,
    b'{"text": "no name"}': Reason.NO_IMAGE,
    b'{"file_name": "../N.jpg", "text": "x"}': Reason.PATH_LEAVES_FOLDER,
    b'{"file_name": "N.jpg", "conversations": [{"from": "human", "value": "alone"}]}': Reason.BAD_CONVERSATION,
    b'{"file_name": "N.jpg", "text": "a <|im_end|> b"}': Reason.MARKER_IN_TEXT,
    b'{"file_name": "good_000.jpg", "text": "again"}': Reason.DUPLICATE,
}
"""Lines of a list, where N is a number of its own, and why each is left out."""
COPIES = 4


def bombs() -> dict[str, bytes]:
    """Some kilobytes that are 72 million pixels and more."""
    return {f"bomb_{i}.png": to_bytes(Image.new("1", (9000, 8000 + i)), "PNG") for i in range(2)}


def bad_records() -> list[bytes]:
    """Each kind some times."""
    return [line.replace(b"N.jpg", b"record_%d.jpg" % i) for i, line in enumerate(list(BAD_RECORDS) * COPIES)]


@cache
def bad_images() -> dict[str, tuple[bytes | None, set[Reason]]]:
    """Contents of files, None where there is no file, and the reasons that fit."""
    made = {name: bad for name, bad in bad_files(each=14).items() if not name.startswith("bomb")}  # those are small
    return {
        **made,
        **{name: (data, {Reason.TOO_LARGE}) for name, data in bombs().items()},
        **{f"missing_{i}.jpg": (None, {Reason.MISSING_FILE}) for i in range(8)},
    }


def write_folder(folder: Path, good: int, bad: dict[str, tuple[bytes | None, set[Reason]]], records: list[bytes]) -> None:
    """Images with captions, good and bad ones in turns, and records as they come."""
    folder.mkdir()
    contents = {f"good_{i:03d}.jpg": encoded(i, "JPEG") for i in range(good)} | {name: data for name, (data, _) in bad.items()}
    for name, data in contents.items():
        if data is not None:
            (folder / name).write_bytes(data)
    lines = [json.dumps({"file_name": name, "text": f"a picture called {name[:4]}"}).encode() for name in contents]
    (folder / "metadata.jsonl").write_bytes(b"".join(line + b"\n" for line in lines[::2] + records + lines[1::2]))


def config(place: Path, steps: int, batch_size: int = BATCH) -> str:
    path = place / "run.yaml"
    path.write_text(
        f"output: {place / 'run'}\nmodel: {{preset: mmar-tiny}}\ndata: [{{kind: folder, path: {place / 'images'}}}]\n"
        f"batch_size: {batch_size}\nsteps: {steps}\nthreads: 1\nsaving: {{every: 1000, log_every: 1}}\n"
    )
    return str(path)


def seed_that_ends_in_a_good_one(data: FolderDataset) -> int:
    """Of the first epoch's order: its last batch then ends with the epoch, and what is counted is the epoch."""
    for seed in range(100):
        try:
            data[int(permutation(len(data), seed, 0)[-1])]
        except BadSample:
            continue
        return seed
    raise AssertionError("one of 100 orders should end in a good file")


def reported(said: str) -> tuple[int, int, Counter[str]]:
    """Left out, seen, and counts by reason, of the report at the end of a run."""
    found = re.search(r"data: (\d+) of (\d+) samples left out\n((?:  .*\n)*)", said)
    assert found is not None, said[-2000:]
    counts = re.findall(r"^ +(\d+)  (\S.*)$", found[3], re.MULTILINE)
    return int(found[1]), int(found[2]), Counter({reason: int(count) for count, reason in counts})


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """206 bad files, 44 bad records and 8 files without one among 330 good ones."""
    place = tmp_path_factory.mktemp("mixed")
    alone = [f"alone_{i}.jpg" for i in range(8)]
    write_folder(place / "images", GOOD, bad_images(), bad_records())
    for name in alone:
        (place / "images" / name).write_bytes(encoded(0, "JPEG"))
    return place


@pytest.fixture(scope="module")
def trained(mixed: Path) -> tuple[str, FolderDataset]:
    """One epoch of training with a reader of its own: what it said at the end, and the data set as it is."""
    data = FolderDataset.from_folder(mixed / "images")
    words = [config(mixed, GOOD // BATCH), f"seed={seed_that_ends_in_a_good_one(data)}", "workers=1"]
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("mmar.training.log.RunLog.say", lambda self, text: said.append(text))
        assert command.main(words) == 0
    return "\n".join(said) + "\n", data


def test_a_run_meets_hundreds_of_bad_files_and_counts_each(mixed: Path, trained: tuple[str, FolderDataset]) -> None:
    left_out, seen, counts = reported(trained[0])
    bad = bad_images()
    assert len(bad) >= 200
    assert (left_out, seen) == (len(bad), GOOD + len(bad))
    assert counts.total() == left_out
    assert set(counts) <= {str(reason) for _, reasons in bad.values() for reason in reasons}
    for reason in (Reason.MISSING_FILE, Reason.EMPTY_FILE, Reason.PIXEL_FORMAT):  # kinds that have but one reason
        at_least = sum(reasons == {reason} for _, reasons in bad.values())
        assert counts[reason] >= at_least > 0
    assert len((mixed / "run" / "log.jsonl").read_text().splitlines()) == GOOD // BATCH
    assert (mixed / "run" / "final").is_dir()


def test_good_and_left_out_are_all_there_are(trained: tuple[str, FolderDataset]) -> None:
    """Records, and files that no record names."""
    (left_out, seen, _), data = reported(trained[0]), trained[1]
    expected = Counter({str(Reason.NO_METADATA): 8})
    for reason in BAD_RECORDS.values():
        expected[reason] += COPIES
    assert data.skipped.counts == expected
    assert GOOD + left_out + data.skipped.total == GOOD + len(bad_images()) + len(bad_records()) + 8
    assert seen == len(data)


def test_the_report_names_bad_records_too(trained: tuple[str, FolderDataset]) -> None:
    said, data = trained
    assert [reason for reason in data.skipped.counts if reason not in said] == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_strict_run_ends_at_the_first_bad_file(workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "images", 5, {"page.jpg": (b"<html>", set()), "empty.jpg": (b"", set())}, [])
    data = FolderDataset.from_folder(tmp_path / "images")
    names = [data._records[int(i)][0] for i in permutation(len(data), 0, 0)]
    first = next(name for name in names if not name.startswith("good"))
    assert command.main([config(tmp_path, 50, batch_size=1), "strict=true", f"workers={workers}"]) == 2
    assert first in capsys.readouterr().err.strip().splitlines()[-1]
    steps = len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) if (tmp_path / "run" / "log.jsonl").exists() else 0
    assert steps == names.index(first)
    assert not (tmp_path / "run" / "final").exists()


def test_a_strict_run_ends_at_the_first_bad_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "images", 4, {}, [b'{"file_name": "x.jpg", "text": ""}', b"{"])
    assert command.main([config(tmp_path, 3, batch_size=2), "strict=true"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"metadata.jsonl:3: {Reason.EMPTY_CAPTION}" in said
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_too_many_bad_records_end_a_run_with_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "images", 2, {}, [b"{"] * 5)
    assert command.main([config(tmp_path, 3, batch_size=2)]) in (1, 2)
    assert f"5  {Reason.BAD_RECORD}" in capsys.readouterr().err


def test_a_row_that_is_too_long_does_not_end_a_run_of_small_batches(tmp_path: Path) -> None:
    """One of four captions is longer than a row; a batch is one row."""
    write_folder(tmp_path / "images", 3, {}, [b'{"file_name": "long.jpg", "text": "%s"}' % (b"long " * 2000)])
    (tmp_path / "images" / "long.jpg").write_bytes(encoded(0, "JPEG"))
    assert command.main([config(tmp_path, 8, batch_size=1)]) == 0


def test_limits_of_images_can_be_set_in_the_configuration(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", 4, {}, [])
    path = Path(config(tmp_path, 2, batch_size=2))
    path.write_text(path.read_text().replace("{kind: folder", "{kind: folder, options: {limits: {max_pixels: 10000}}"))
    assert command.main([str(path)]) == 0
