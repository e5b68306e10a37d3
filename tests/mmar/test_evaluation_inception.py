"""FID of folders: what is missing is said first; from files to the distance with a small network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from mmar.evaluation import inception


class Means(nn.Module):
    """Mean colours of the halves of a picture."""

    num_features = 6

    def forward(self, pixels: Tensor) -> Tensor:
        assert pixels.dtype == torch.float32
        assert 0.0 <= float(pixels.min()) <= float(pixels.max()) <= 1.0
        return torch.cat([half.mean((2, 3)) for half in pixels.chunk(2, dim=3)], 1)


def folder(path: Path, count: int, seed: int, bright: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    (path / "sub").mkdir(parents=True)
    for i in range(count):
        level = rng.integers(0, 200, 3) + bright
        pixels = np.broadcast_to(level, (12 + i, 10 + 2 * i, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path / ("sub" if i % 2 else "") / f"{i}.png")
    (path / "manifest.json").write_text("{}")
    return path


def test_files_are_squared_and_compared(tmp_path: Path) -> None:
    real, same = folder(tmp_path / "real", 9, 0), folder(tmp_path / "same", 9, 0)
    brighter = folder(tmp_path / "brighter", 9, 0, bright=51)

    def distance(a: Path, b: Path, batch_size: int = 4) -> float:
        metric = FrechetInceptionDistance(Means(), normalize=True)
        files = inception.picture_files(a), inception.picture_files(b)
        return inception.fid_of_files(metric, *files, image_size=16, batch_size=batch_size)

    assert distance(real, same) == pytest.approx(0.0, abs=1e-6)
    assert distance(real, brighter) == pytest.approx(6 * 0.2**2, rel=1e-4)  # the means alone differ, 51 / 255 in six numbers
    assert distance(real, brighter, 2) == pytest.approx(distance(real, brighter), rel=1e-5)


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, generated = folder(tmp_path / "real", 2, 0), folder(tmp_path / "generated", 2, 1)
    monkeypatch.setattr(inception, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"torch-fidelity must be installed.*pip install torch-fidelity"):
        inception.inception_fid(real, generated)
    monkeypatch.setattr(inception, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError, match=f"must lie in .*{inception.WEIGHTS}.*releases of torch-fidelity.*--weights"):
        inception.inception_fid(real, generated)
    with pytest.raises(FileNotFoundError, match=r"own\.pth"):
        inception.inception_fid(real, generated, weights=tmp_path / "own.pth")
    with pytest.raises(FileNotFoundError, match="a folder of pictures must exist, got 'nowhere'"):
        inception.inception_fid("nowhere", generated)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must hold at least two pictures, got 0"):
        inception.inception_fid(real, tmp_path / "empty")


def test_the_weights_that_are_there_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, generated = folder(tmp_path / "real", 3, 0), folder(tmp_path / "generated", 4, 1)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / inception.WEIGHTS).write_bytes(b"weights")
    used: list[Path] = []

    def metric(weights: Path) -> FrechetInceptionDistance:
        used.append(weights)
        return FrechetInceptionDistance(Means(), normalize=True)

    monkeypatch.setattr(inception, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(inception, "_metric", metric)
    assert inception.inception_fid(real, generated, image_size=16) > 0
    assert used == [tmp_path / "checkpoints" / inception.WEIGHTS]


def test_the_command_complains_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inception.main(["--real", "nowhere", "--generated", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m mmar.evaluation.inception: ")
    assert error.count("\n") == 1
