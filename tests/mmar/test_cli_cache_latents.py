"""``mmar cache-latents``: every kind of data, and going on after an interruption."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from test_pipeline import picture

from mmar.cli import main
from mmar.data.latent_dataset import LatentDataset
from mmar.data.scenes import SceneDataset
from mmar.processing import MMARImageProcessor
from mmar.tokenizers import PatchTokenizer

COUNT = 5
TOKENIZER = PatchTokenizer(8, 2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save_pretrained(folder)
    return folder


def cache(data: object, tokenizer: Path, output: Path, *words: str) -> int:
    return main(["cache-latents", str(data), "--tokenizer", str(tokenizer), "--output", str(output), *words])


def test_scenes(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--split", "test", "--set", f"length={COUNT}", "--set", "seed=3", "--batch-size", "2"]
    assert cache("scenes", tokenizer, tmp_path, *words) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"{COUNT} images in {tmp_path}\n0 of {COUNT} samples left out")
    assert f"{COUNT}/{COUNT}" in told.err
    scenes, cached = SceneDataset("test", COUNT, seed=3), LatentDataset(tmp_path, TOKENIZER)
    pixels = MMARImageProcessor(8, 3)([scene.image for scene in scenes_of(scenes)])["pixel_values"]
    wanted = TOKENIZER.encode(pixels)
    assert len(cached) == COUNT
    for i, scene in enumerate(scenes_of(scenes)):  # in the order of the data
        image, example = cached[i]
        assert torch.equal(image.tokens(), wanted[i])
        assert (example.key, example.caption, example.turns) == (scene.key, scene.caption, scene.turns)


def scenes_of(dataset: SceneDataset) -> list:
    return [dataset[i] for i in range(len(dataset))]


def test_a_folder_and_shards_and_a_list(tokenizer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    rows, listed = [], []
    with tarfile.open(tmp_path / "part-0.tar", "w") as tar:
        for i in range(3):
            picture(i).save(folder / f"{i}.png")
            rows.append(json.dumps({"file_name": f"{i}.png", "text": f"caption {i}"}))
            turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": f"answer {i}"}]
            listed.append({"id": str(i), "image": f"{i}.png", "conversations": turns})
            tar.add(folder / f"{i}.png", f"{i}.png")
            text = f"caption {i}".encode()
            member = tarfile.TarInfo(f"{i}.txt")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    (tmp_path / "list.json").write_text(json.dumps(listed))
    assert cache(folder, tokenizer, tmp_path / "a") == 0
    assert cache(tmp_path / "part-*.tar", tokenizer, tmp_path / "b") == 0
    assert cache(tmp_path / "list.json", tokenizer, tmp_path / "c", "--images", str(folder)) == 0
    caches = [LatentDataset(tmp_path / name, TOKENIZER) for name in "abc"]
    assert [len(one) for one in caches] == [3, 3, 3]
    values = [np.stack([one[i][0].values.numpy() for i in range(3)]) for one in caches]
    assert (values[0] == values[1]).all()
    assert (values[0] == values[2]).all()
    assert [caches[1][i][1].caption for i in range(3)] == [f"caption {i}" for i in range(3)]
    assert caches[2][2][1].turns == (("what?", "answer 2"),)


def test_an_interrupted_cache_goes_on(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", f"length={COUNT}", "--batch-size", "1", "--images-per-shard", "2"]
    for name in ("whole", "cut"):
        assert cache("scenes", tokenizer, tmp_path / name, *words) == 0
    whole = {path.name: path.read_bytes() for path in sorted((tmp_path / "whole").iterdir())}
    kept = (tmp_path / "cut" / "tokens-000-00000.safetensors").stat().st_mtime_ns
    for name in ("rank-000.json", "tokens-000-00001.safetensors", "tokens-000-00002.safetensors"):
        (tmp_path / "cut" / name).unlink()
    assert cache("scenes", tokenizer, tmp_path / "cut", *words) == 0
    assert {path.name: path.read_bytes() for path in sorted((tmp_path / "cut").iterdir())} == whole
    assert (tmp_path / "cut" / "tokens-000-00000.safetensors").stat().st_mtime_ns == kept  # it was not encoded again
    capsys.readouterr()
    assert cache("scenes", tokenizer, tmp_path / "cut", "--set", "length=4") == 2  # other data
    assert "a cache must be continued as it was begun" in capsys.readouterr().err


def test_ranks_share_the_work(tokenizer: Path, tmp_path: Path) -> None:
    for rank in ("0", "1"):
        words = ["--set", f"length={COUNT}", "--rank", rank, "--world-size", "2"]
        assert cache("scenes", tokenizer, tmp_path, *words) == 0
    assert len(LatentDataset(tmp_path, TOKENIZER)) == COUNT


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "DATA must be a folder, tar files, a list in JSON, digits or scenes, got 'nowhere'"),
        (["list.json"], "--images must be given for llava and for it alone, got None for llava"),
        (["scenes", "--images", "x"], "--images must be given for llava and for it alone, got x for scenes"),
        (["scenes", "--split", "dev"], "split must be one of"),
        (["scenes", "--set", "lenght=3"], "lenght"),
        (["train-*.tar"], "shards must match at least one file, got 'train-*.tar'"),
        (["scenes", "--rank", "2"], "rank must lie in [0, world_size), got 2 of 1"),
        (["scenes", "--batch-size", "0"], "must be a whole number of at least 1, got '0'"),
        (["scenes", "--tokenizer", "nowhere"], "folder must be an existing folder, got 'nowhere'"),
    ],
)
def test_bad_input(words: list[str], message: str, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, *more = words
    assert cache(data, tokenizer, tmp_path, *more) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("mmar cache-latents: ")
    assert message in error
