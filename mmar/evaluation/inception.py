"""``python -m mmar.evaluation.inception --real FOLDER --generated FOLDER``: FID as published, by Inception's features.

Inception's weights are not ours to give out: torch-fidelity's file has to lie on disk. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from mmar.commands.loading import add_device, existing_device
from mmar.commands.running import CommandParser, run_command, whole_number
from mmar.data.folder import IMAGE_SUFFIXES
from mmar.data.images import ImageLimits, read_image_file

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
"""As torch-fidelity names them: the network of the first FID paper, converted."""

FEATURES = 2048


def inception_fid(
    real: str | Path,
    generated: str | Path,
    *,
    weights: str | Path | None = None,
    image_size: int = 256,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
) -> float:
    """FID of a folder of generated pictures against one of real ones.

    Every picture is scaled to a shorter side of ``image_size`` (bicubic, antialiased), its centre is cut out, and Inception
    scales it to 299 pixels. The paper does not say what it did; published numbers differ by this alone, and by the number
    of pictures: FID-30K takes 30000.

    Args:
        real: Folder; pictures of its sub-folders count.
        generated: Likewise.
        weights: File of :data:`WEIGHTS`; by default where torch-fidelity keeps it.
        image_size: Pixels.
        batch_size: Pictures at a time.
        device: Where to compute.

    Raises:
        ImportError: If torch-fidelity or torchmetrics is missing.
        FileNotFoundError: If the weights or a folder are missing.
        ValueError: If a folder holds less than two pictures.
    """
    found = [picture_files(folder) for folder in (real, generated)]
    metric = _metric(existing_weights(weights)).to(device)
    return fid_of_files(metric, *found, image_size=image_size, batch_size=batch_size, device=device)


def fid_of_files(
    metric: Any,
    real: Sequence[Path],
    generated: Sequence[Path],
    *,
    image_size: int,
    batch_size: int,
    device: str | torch.device = "cpu",
) -> float:
    """Fill a ``FrechetInceptionDistance`` that takes floats in [0, 1], and read it."""
    with tqdm(total=len(real) + len(generated), unit="picture", file=sys.stderr) as bar:
        for files, is_real in ((real, True), (generated, False)):
            for pixels in _batches(files, image_size, batch_size):
                metric.update(pixels.to(device), real=is_real)
                bar.update(len(pixels))
    return float(metric.compute())


def existing_weights(path: str | Path | None = None) -> Path:
    """The file of Inception's weights.

    Raises:
        ImportError: If torch-fidelity is missing.
        FileNotFoundError: If the file is.
    """
    if find_spec("torch_fidelity") is None:
        raise ImportError("torch-fidelity must be installed: it has the network of FID; pip install torch-fidelity")
    file = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS if path is None else Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"Inception's weights must lie in {str(file)!r}, got no such file; take {WEIGHTS} from the releases of "
            "torch-fidelity and put it there, or name its place with --weights"
        )
    return file


def picture_files(folder: str | Path) -> list[Path]:
    """The pictures of a folder and its sub-folders, in order of their names.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds less than two: one has no covariance.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"a folder of pictures must exist, got {str(folder)!r}")
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if len(found) < 2:
        raise ValueError(f"{str(folder)!r} must hold at least two pictures, got {len(found)}")
    return found


def _batches(files: Sequence[Path], image_size: int, batch_size: int) -> Iterator[Tensor]:
    """``(b, 3, S, S)`` float32 in [0, 1]."""
    for start in range(0, len(files), batch_size):
        pictures = [_squared(file, image_size) for file in files[start : start + batch_size]]
        yield torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255.0


def _squared(file: Path, size: int) -> np.ndarray:
    picture = read_image_file(file, "FID", ImageLimits()).convert("RGB")
    return np.asarray(ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def _metric(weights: Path) -> Any:
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise ImportError("torchmetrics must be installed: it has FID; pip install 'diffparam[mmar]'") from error
    return FrechetInceptionDistance(FEATURES, normalize=True, feature_extractor_weights_path=str(weights))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(_parser(), argv, _measure)


def _measure(options: argparse.Namespace) -> None:
    distance = inception_fid(
        options.real,
        options.generated,
        weights=options.weights,
        image_size=options.image_size,
        batch_size=options.batch_size,
        device=existing_device(options.device),
    )
    count = len(picture_files(options.generated))
    print(f"FID of {count} pictures at {options.image_size} pixels: {distance:.3f}")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m mmar.evaluation.inception", description="FID of two folders of pictures.")
    add = parser.add_argument
    add("--real", required=True, type=Path, metavar="FOLDER", help="real pictures")
    add("--generated", required=True, type=Path, metavar="FOLDER", help="drawn pictures")
    add("--weights", type=Path, metavar="FILE", help=f"{WEIGHTS} (where torch-fidelity keeps it)")
    add("--image-size", type=whole_number(1), default=256, metavar="N", help="side that both are brought to (%(default)s)")
    add("--batch-size", type=whole_number(1), default=64, metavar="N", help="pictures at a time (%(default)s)")
    add_device(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
