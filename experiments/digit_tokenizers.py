r"""Small image tokenizers for digit scans: a KL and a VQ autoencoder of one architecture, 16 tokens of 4 numbers each.

They stand for the paper's KL-16 and VQ-16 in the experiments on digits. Trained on training scans and measured on test scans:
squared error, and what a classifier trained on real scans reads in the reconstruction, beside what it reads in the scan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.autoencoders import autoencoder
from experiments.command import run_command
from experiments.jobs import run_jobs
from mmar.data.digits import load_scans, split_scans, to_image
from mmar.evaluation.digits import DigitReader
from mmar.processing import MMARImageProcessor
from mmar.tokenizers import ImageTokenizer, measure_latents
from mmar.tokenizers.fit import FitSettings, fit_kl, fit_vq

WEIGHTS = Path(__file__).parent / "weights"
"""Committed folders of the frozen parts, made by the preset ``cpu``."""


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        kinds: kl, vq.
        widths: Channels of the two levels; the second has half the side.
        channels: Numbers per token.
        entries: Of the codebook.
        steps: Optimizer steps.
        batch: Scans a step.
        folder: Where the trained tokenizers are put.
        seed: Of weights and draws.
        workers: Processes; 0 runs here.
        device: Where it runs.
    """

    kinds: tuple[str, ...] = ("kl", "vq")
    widths: tuple[int, ...] = (16, 32)
    channels: int = 4
    entries: int = 256
    steps: int = 3000
    batch: int = 64
    folder: str = str(WEIGHTS)
    seed: int = 0
    workers: int = 1
    device: str = "cpu"


RUNS = str(WEIGHTS.parents[1] / "runs" / "digit_tokenizers")
PRESETS = {
    "smoke": Config(widths=(8, 8), entries=16, steps=4, batch=4, folder=f"{RUNS}/smoke", workers=0),
    "quick": Config(steps=300, folder=f"{RUNS}/quick"),
    "cpu": Config(),
    "gpu": Config(steps=10_000, batch=256, folder=f"{RUNS}/gpu", workers=0, device="cuda"),
}


def job(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """Train, measure the scale, save, reconstruct."""
    torch.manual_seed(config.seed)
    network = {"widths": config.widths, "channels": config.channels, "entries": config.entries}
    model, tokenizer_class = autoencoder(key, size=8, image_channels=1, **network)
    fit: Callable[..., None] = fit_kl if key == "kl" else fit_vq
    settings = FitSettings(steps=config.steps, seed=config.seed)
    fit(model.to(config.device), _batches(config), settings, lambda step, terms: tick(1))
    tokenizer: ImageTokenizer = tokenizer_class(model, name=f"{key}-digits", image_size=8).to("cpu")
    source = torch.Generator().manual_seed(config.seed)
    statistics = measure_latents(tokenizer, iter([_scans("train")[0]]), sample=True, generator=source)
    if key == "kl":
        tokenizer = tokenizer.with_scale(statistics.scale())
    folder = Path(config.folder) / f"{key}-digits"
    tokenizer.save_pretrained(folder)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "latent_std": statistics.std,
        **_reconstruct(tokenizer),
    }


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """Both kinds."""
    keys = list(config.kinds)
    return run_jobs(job, config, keys, units_per_job=config.steps, folder=folder, workers=config.workers, resume=resume)


def show(record: dict[str, Any]) -> str:
    """A line per tokenizer."""
    lines = [f"{'':6}{'parameters':>12}{'MB':>6}{'std':>8}{'PSNR dB':>9}{'read right':>12}{'the scans':>11}{'codes':>7}"]
    for key, one in record["results"].items():
        numbers = f"{one['parameters']:12d}{one['bytes'] / 1e6:6.2f}{one['latent_std']:8.3f}{one['psnr']:9.1f}"
        lines.append(f"{key:6}{numbers}{one['read']:12.1%}{one['read_in_scan']:11.1%}{one.get('codes_used', 0):7d}")
    return "\n".join(lines)


def _scans(split: str) -> tuple[Tensor, Tensor]:
    """Pixels ``(n, 1, 8, 8)`` in [-1, 1], and digits ``(n,)``."""
    levels, digits = load_scans()
    chosen = split_scans(digits, split)  # type: ignore[arg-type]
    pixels = MMARImageProcessor(8, 1)([to_image(scan) for scan in levels[chosen]])["pixel_values"]
    return pixels, torch.from_numpy(digits[chosen])


def _batches(config: Config) -> Iterator[Tensor]:
    """Training scans, each epoch in another order."""
    pixels, source = _scans("train")[0], torch.Generator().manual_seed(config.seed)
    while True:
        yield from pixels[torch.randperm(len(pixels), generator=source)].split(config.batch)


def _reconstruct(tokenizer: ImageTokenizer) -> dict[str, Any]:
    """What is lost, on test scans."""
    before, digits = _scans("test")
    with torch.no_grad():
        after = tokenizer.decode(tokenizer.encode(before)).clamp(-1, 1)
    reader, processor = DigitReader(), MMARImageProcessor(8, 1)
    seen = torch.from_numpy(reader.read(processor.to_pil(after)))
    square = (after - before).square().mean() / 4  # of pixels in [0, 1]
    found = {
        "psnr": float(-10 * square.log10()),
        "read": float((seen == digits).float().mean()),
        "read_in_scan": reader.ceiling(),
    }
    if tokenizer.codebook_size is None:
        return found
    return {**found, "codes_used": int(tokenizer.encode_codes(before).unique().numel())}


def main() -> None:
    run_command("digit_tokenizers", __doc__.splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
