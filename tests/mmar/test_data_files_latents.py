"""The latent cache: what the tokenizer gives, once, whole or not at all, and for no other tokenizer."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_image_files import PHOTOGRAPHS, encoded
from tiny_tokenizers import kl, patches, vq
from torch import Tensor
from torch.utils.data import Subset

from mmar.data.folder import FolderDataset
from mmar.data.latent_dataset import CachedImage, LatentDataset
from mmar.data.latents import cache_latents
from mmar.data.order import StreamSettings
from mmar.data.skipped import Reason, SkipLimit
from mmar.data.stream import ExampleStream
from mmar.processing.image_processor import MMARImageProcessor
from mmar.tokenizers import ImageTokenizer, LatentScale, PatchTokenizer

EPS = 2.0**-24
"""Unit roundoff of float32."""
BATCH = {"batch_size": 3, "images_per_shard": 5}  # shards of 6


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 good images, two bad ones, captions, one conversation."""
    folder = tmp_path_factory.mktemp("images")
    for path in PHOTOGRAPHS:
        shutil.copy(path, folder)
    for i in range(14):
        (folder / f"{i:02d}.png").write_bytes(encoded(i, "PNG") if i not in (4, 13) else b"<html>")
    names = sorted(path.name for path in folder.iterdir())
    records: list[dict[str, Any]] = [{"file_name": name, "text": [f"This is {name}.", "Picture."]} for name in names]
    records[1]["conversations"] = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A 猫"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def stream(images: Path, **options: Any) -> ExampleStream[Any]:
    return ExampleStream(FolderDataset.from_folder(images), StreamSettings(**{"epochs": 1, "shuffle": False, **options}))


def pixels_of(images: Path, key: str) -> Tensor:
    pixels: Tensor = MMARImageProcessor(32)(images / key)["pixel_values"]
    return pixels


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("make", [kl, vq, patches])
def test_cached_tokens_are_those_of_the_tokenizer(make: Any, images: Path, tmp_path: Path) -> None:
    tokenizer: ImageTokenizer = make(scale=LatentScale(std=2.0, mean=0.5))
    seen: list[int] = []
    report = cache_latents(stream(images), tokenizer, tmp_path, **BATCH, progress=seen.append)
    assert report.counts == {Reason.NOT_AN_IMAGE: 2}
    assert report.delivered == sum(seen) == 14
    data = LatentDataset(tmp_path, tokenizer)
    assert data.skipped == report
    assert len(data) == 14
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    expected = {example.key: example for example in stream(images)}
    for cached, example in (data[i] for i in range(len(data))):
        same = expected.pop(example.key)
        assert example.image is None
        assert (example.caption, example.captions, example.turns, example.meta) == (
            same.caption,
            same.captions,
            same.turns,
            same.meta,
        )
        assert example.drawing().image is None
        pixels = pixels_of(images, example.key)
        if tokenizer.codebook_size is not None:
            assert cached.tokens().equal(tokenizer.encode_codes(pixels)[0])
            continue
        # Batches of 3 and of 1 add up in another order: a few roundings through some ten layers of values of order 1.
        torch.testing.assert_close(cached.tokens(), tokenizer.encode(pixels)[0], atol=1000 * EPS, rtol=0)
        drawn = tokenizer.encode(pixels, sample=True, generator=[torch.Generator().manual_seed(3)])[0]
        mine = cached.tokens(sample=True, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(mine, drawn, atol=1000 * EPS, rtol=0)
        assert mine.equal(cached.values) == (make is patches)  # no posterior, no draw
    assert not expected


def test_the_posterior_is_that_of_the_tokenizer(images: Path) -> None:
    tokenizer = kl(scale=LatentScale(std=(1.0, 2.0, 3.0, 4.0), mean=0.5))
    pixels = pixels_of(images, "china.jpg")
    mean, std = tokenizer.encode_posterior(pixels)
    assert mean.equal(tokenizer.encode(pixels))
    draws = tokenizer.encode(pixels.expand(400, -1, -1, -1), sample=True, generator=torch.Generator().manual_seed(0))
    # The std of 400 draws has a relative error of 1/sqrt(800) = 3.5 %; over 256 numbers the largest is below 5 of these.
    assert float((draws.std(0) / std[0] - 1).abs().max()) < 5 / 800**0.5
    assert patches().encode_posterior(pixels)[1] is None
    assert tokenizer.encode_posterior(pixels[:0])[0].shape == (0, 64, 4)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning", "ignore:.*fork:DeprecationWarning")
def test_an_interrupted_cache_is_continued_to_the_same_bytes(
    num_workers: int, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = patches()
    options = {**BATCH, "num_workers": num_workers}
    cache_latents(stream(images), tokenizer, tmp_path / "whole", **options)
    whole = files(tmp_path / "whole")
    encode = type(tokenizer).encode_posterior
    for stop in range(1, 5):
        calls = iter(range(stop))

        def interrupted(self: Any, *args: Any, calls: Any = calls, **kwargs: Any) -> Any:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return encode(self, *args, **kwargs)

        folder = tmp_path / f"stopped{stop}"
        with monkeypatch.context() as patched:
            patched.setattr(type(tokenizer), "encode_posterior", interrupted)
            with pytest.raises(KeyboardInterrupt):
                cache_latents(stream(images), tokenizer, folder, **options)
        assert len(list(folder.glob("*.safetensors"))) == stop // 2
        with pytest.raises(FileNotFoundError, match="must hold a complete latent cache"):
            LatentDataset(folder, tokenizer)
        (folder / f"tokens-000-{stop // 2:05d}.safetensors.partial").write_bytes(b"the half of a shard")
        cache_latents(stream(images), tokenizer, folder, **options)
        assert files(folder) == whole


def test_a_cache_that_is_done_is_left_alone(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = patches()
    report = cache_latents(stream(images), tokenizer, tmp_path, **BATCH)
    monkeypatch.setattr(PatchTokenizer, "encode_posterior", None)
    assert cache_latents(stream(images), tokenizer, tmp_path, **BATCH) == report
    fewer = ExampleStream(Subset(FolderDataset.from_folder(images), range(9)), StreamSettings(epochs=1, shuffle=False))
    with pytest.raises(ValueError, match=r"a cache must be continued as it was begun, got data .*'length': 9"):
        cache_latents(fewer, tokenizer, tmp_path, **BATCH)


def test_a_stop_between_the_last_shard_and_the_end(images: Path, tmp_path: Path) -> None:
    tokenizer = patches()
    cache_latents(stream(images), tokenizer, tmp_path, **BATCH)
    before = files(tmp_path)
    (tmp_path / "rank-000.json").unlink()
    cache_latents(stream(images), tokenizer, tmp_path, **BATCH)
    assert files(tmp_path) == before


def test_ranks_write_side_by_side(images: Path, tmp_path: Path) -> None:
    tokenizer = patches()
    cache_latents(stream(images, rank=0, world_size=2), tokenizer, tmp_path, **BATCH)
    with pytest.raises(ValueError, match="must be complete, got 1 of 2 ranks"):
        LatentDataset(tmp_path, tokenizer)
    cache_latents(stream(images, rank=1, world_size=2), tokenizer, tmp_path, **BATCH)
    data = LatentDataset(tmp_path, tokenizer)
    assert sorted(data[i][1].key for i in range(len(data))) == sorted(example.key for example in stream(images))


def test_another_tokenizer_is_refused(images: Path, tmp_path: Path) -> None:
    tokenizer = patches()
    cache_latents(stream(images), tokenizer, tmp_path, **BATCH)
    for other in (patches(scale=LatentScale(std=2.0)), PatchTokenizer(32, 8), kl()):
        with pytest.raises(ValueError, match=r"tokenizer must be the one that .* was encoded with, patches-"):
            LatentDataset(tmp_path, other)
        with pytest.raises(ValueError, match="a cache must be continued as it was begun, got identity"):
            cache_latents(stream(images), other, tmp_path, **BATCH)
    processor = MMARImageProcessor(32, resample="lanczos")
    with pytest.raises(ValueError, match=r"got pixels .*lanczos"):
        cache_latents(stream(images), tokenizer, tmp_path, image_processor=processor, **BATCH)
    (tmp_path / "rank-000.json").unlink()
    with pytest.raises(ValueError, match="a stream must be what it was when its state was taken, got shuffle True"):
        cache_latents(stream(images, shuffle=True), tokenizer, tmp_path, **BATCH)


def test_images_whose_tokens_are_not_finite_are_counted(images: Path, tmp_path: Path) -> None:
    tokenizer = patches()
    encode = type(tokenizer)._encode

    class Overflowing(PatchTokenizer):
        def _encode(self, pixels: Tensor, **options: Any) -> Tensor:
            tokens = encode(self, pixels, **options)
            return torch.where(tokens.mean((1, 2), keepdim=True) > 0, torch.inf, tokens)

    tokenizer.__class__ = Overflowing
    report = cache_latents(stream(images, limit=SkipLimit(1.0)), tokenizer, tmp_path, **BATCH)
    data = LatentDataset(tmp_path, tokenizer)
    assert report.counts[Reason.NOT_FINITE] + report.counts[Reason.NOT_AN_IMAGE] + len(data) == 16
    assert 0 < report.counts[Reason.NOT_FINITE] < 14
    assert report.delivered == len(data)
    assert all(data[i][0].values.mean() <= 0 for i in range(len(data)))


def test_a_cache_is_a_data_set_like_any_other(images: Path, tmp_path: Path) -> None:
    tokenizer = vq()
    cache_latents(stream(images), tokenizer, tmp_path, **BATCH)
    data = LatentDataset(tmp_path, tokenizer)
    keys = [example.key for _, example in ExampleStream(data, StreamSettings(epochs=1, seed=1))]
    assert len(set(keys)) == 14
    copied = pickle.loads(pickle.dumps(data))
    assert copied.fingerprint == data.fingerprint
    assert copied[7][0].values.equal(data[7][0].values)
    assert data[7][0].values.dtype is torch.int64
    with pytest.raises(IndexError):
        data[14]


def test_damage_is_named(images: Path, tmp_path: Path) -> None:
    tokenizer = patches()
    cache_latents(stream(images), tokenizer, tmp_path / "good", **BATCH)

    def damaged(name: str, content: bytes | None) -> Path:
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "good", folder)
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        return folder

    tokens = (tmp_path / "good" / "tokens-000-00001.safetensors").read_bytes()
    texts = (tmp_path / "good" / "texts-000-00001.jsonl").read_bytes()
    for name, content, message in (
        ("tokens-000-00001.safetensors", tokens[:-1], "must be a shard of a latent cache, got SafetensorError"),
        ("tokens-000-00001.safetensors", None, "a cache must have all its files"),
        ("texts-000-00001.jsonl", texts[:-9], "must have 6 records, got 5"),
        ("texts-000-00001.jsonl", None, "a cache must have all its files"),
        ("rank-000.json", b"{", "must be as cache_latents writes it"),
        ("rank-000.json", b'{"format": 2}', "format of .* must be 1, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            LatentDataset(damaged(name, content), tokenizer)


def test_arguments(images: Path, tmp_path: Path) -> None:
    for epochs in (None, 2):
        with pytest.raises(ValueError, match="stream must have one epoch to be cached"):
            cache_latents(stream(images, epochs=epochs), patches(), tmp_path)
    with pytest.raises(ValueError, match="images_per_shard must be at least 1"):
        cache_latents(stream(images), patches(), tmp_path, images_per_shard=0)
    with pytest.raises(FileNotFoundError, match="must hold a complete latent cache"):
        LatentDataset(tmp_path, patches())
    assert CachedImage(torch.arange(4)).tokens(sample=True).tolist() == [0, 1, 2, 3]
