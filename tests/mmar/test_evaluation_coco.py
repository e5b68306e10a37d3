"""Pictures for FID-30K: the choice of captions, shares, resuming, and the whole command on a tiny pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image
from test_pipeline import SIDE, pipeline

from mmar.evaluation.coco import MANIFEST, main
from mmar.evaluation.coco_captions import choose_captions, read_captions


def annotations(images: int = 12, each: int = 3) -> list[dict[str, object]]:
    return [
        {"image_id": 100 + i, "id": 10 * i + j, "caption": f" a red\n square {i} {j} "}
        for i in range(images)
        for j in range(each)
    ]


def caption_file(path: Path, found: list[dict[str, object]]) -> Path:
    path.write_text(json.dumps({"info": {}, "images": [], "annotations": found}))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    pipeline().save_pretrained(folder)
    return folder


# -- which captions ----------------------------------------------------------------------------------------------------------


def test_the_choice_is_the_same_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    found = annotations()
    chosen = choose_captions(read_captions(caption_file(tmp_path / "a.json", found)), 5)
    Random(1).shuffle(found)
    again = choose_captions(read_captions(caption_file(tmp_path / "b.json", found)), 5)
    assert chosen == again
    assert len({one.image_id for one in chosen}) == 5
    assert chosen == choose_captions(read_captions(tmp_path / "a.json"), 12)[:5]
    assert [one.seed for one in chosen] == [0, 1, 2, 3, 4]
    assert chosen[0].caption.startswith("a red square")
    assert chosen[0].file_name == f"{chosen[0].image_id:012d}.png"
    other = choose_captions(read_captions(tmp_path / "a.json"), 5, seed=1)
    assert [one.image_id for one in other] != [one.image_id for one in chosen]  # the control


def test_images_and_captions_are_drawn_evenly() -> None:
    """Each of 12 images is first in 1200 / 12 of the choices, each of 3 captions in a third: within 5 standard deviations."""
    captions = {i: [(3 * i + j, "x") for j in range(3)] for i in range(12)}
    first = [choose_captions(captions, 1, seed=seed)[0] for seed in range(1200)]
    images = np.bincount([one.image_id for one in first], minlength=12)
    which = np.bincount([one.caption_id % 3 for one in first], minlength=3)
    assert np.abs(images - 100).max() < 5 * 100**0.5
    assert np.abs(which - 400).max() < 5 * (1200 * 2 / 9) ** 0.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "a list annotations of image_id, id and caption; got KeyError"),
        ("not JSON", "got JSONDecodeError"),
        ('{"annotations": [{"image_id": 1, "id": 2}]}', "got KeyError: 'caption'"),
        ('{"annotations": [{"image_id": "1", "id": 2, "caption": "a"}]}', "image_id and id must be integers"),
        ('{"annotations": 3}', "got TypeError"),
    ],
)
def test_other_files_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_captions(tmp_path / "captions.json")


def test_empty_captions_and_too_few_images(tmp_path: Path) -> None:
    captions = read_captions(caption_file(tmp_path / "a.json", [*annotations(2), {"image_id": 7, "id": 1, "caption": "  "}]))
    assert list(captions) == [100, 101]
    with pytest.raises(ValueError, match=r"count must lie in 1 \.\. 2, the images with captions, got 3"):
        choose_captions(captions, 3)
    with pytest.raises(FileNotFoundError, match=r"got 'nowhere\.json'"):
        read_captions("nowhere.json")


# -- the command -------------------------------------------------------------------------------------------------------------


def run(model: Path, captions: Path, out: Path, *words: str) -> int:
    return main(["--model", str(model), "--captions", str(captions), "--out", str(out), "--count", "5", *words])


def pictures(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "images").iterdir())}


def test_shares_make_the_whole_and_a_run_is_resumed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = caption_file(tmp_path / "captions.json", annotations())
    assert run(model, captions, tmp_path / "whole") == 0
    assert "images: 5 of 5 pictures" in capsys.readouterr().out
    for rank in ("1", "0"):
        assert run(model, captions, tmp_path / "shared", "--rank", rank, "--world-size", "2") == 0
    whole, shared = pictures(tmp_path / "whole"), pictures(tmp_path / "shared")
    assert whole == shared
    assert len(set(whole.values())) == 5
    assert (tmp_path / "whole" / MANIFEST).read_text() == (tmp_path / "shared" / MANIFEST).read_text()
    manifest = json.loads((tmp_path / "whole" / MANIFEST).read_text())
    assert [Path(one["file"]).name for one in manifest["pictures"]] == [
        one.file_name for one in choose_captions(read_captions(captions), 5)
    ]
    assert str(tmp_path) not in json.dumps(manifest)
    first = tmp_path / "whole" / manifest["pictures"][0]["file"]
    with Image.open(first) as picture:
        assert picture.text == {"caption": manifest["pictures"][0]["caption"], "seed": "0"}
        assert picture.size == (SIDE, SIDE)

    # one is lost and one cut off: both are drawn again, the others stay
    names = sorted(whole)
    kept = tmp_path / "whole" / "images" / names[2]
    (tmp_path / "whole" / "images" / names[0]).unlink()
    broken = tmp_path / "whole" / "images" / names[1]
    broken.write_bytes(broken.read_bytes()[:-20])
    before = kept.stat().st_mtime_ns
    assert run(model, captions, tmp_path / "whole") == 0
    assert pictures(tmp_path / "whole") == whole
    assert kept.stat().st_mtime_ns == before

    def no_model(options: object) -> None:
        raise AssertionError("nothing is left to draw")

    monkeypatch.setattr("mmar.evaluation.coco.load_pipeline", no_model)
    assert run(model, captions, tmp_path / "whole") == 0


def test_a_folder_of_another_run_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = caption_file(tmp_path / "captions.json", annotations(5, 1))
    assert run(model, captions, tmp_path / "out", "--count", "1") == 0
    assert run(model, captions, tmp_path / "out", "--count", "1", "--guidance", "3") == 2
    assert "got manifest.json with other settings; choose another folder" in capsys.readouterr().err
    assert run(model, captions, tmp_path / "out", "--count", "1", "--seed", "5") == 2
    assert run(model, captions, tmp_path / "out", "--count", "2") == 0  # the first of the same choice, and one more
    assert len(pictures(tmp_path / "out")) == len(json.loads((tmp_path / "out" / MANIFEST).read_text())["pictures"]) == 2
    assert run(model, captions, tmp_path / "out", "--count", "3", "--seed", "5") == 2
    assert run(model, captions, tmp_path / "out", "--count", "1") == 2
    (tmp_path / "out" / MANIFEST).write_text("cut o")
    assert run(model, captions, tmp_path / "out", "--count", "1") == 2
    assert "with other contents" in capsys.readouterr().err


def test_a_picture_that_fails_leaves_no_half_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = caption_file(tmp_path / "captions.json", annotations())

    def fails(picture: Image.Image, path: Path, facts: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("mmar.evaluation.coco.write_picture", fails)
    assert run(model, captions, tmp_path / "out") == 1
    assert "no space left" in capsys.readouterr().err
    assert list((tmp_path / "out" / "images").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rank", "2", "--world-size", "2"], "--rank must be less than --world-size 2, got 2"),
        (["--count", "13"], "count must lie in 1 .. 12"),
        (["--model", "nowhere"], "a model must be an existing folder"),
        (["--captions", "nowhere.json"], "captions must be a file such as captions_val2014.json"),
        (["--solver", "euler"], "solver must be one of"),
    ],
)
def test_bad_input_is_found_first(
    model: Path, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = caption_file(tmp_path / "captions.json", annotations())
    assert run(model, captions, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
