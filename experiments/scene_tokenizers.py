r"""Small image tokenizers for drawn scenes: a KL autoencoder and a VQ autoencoder, and how well their pictures can be read.

Both are frozen parts of the ``mmar-scenes`` models, like the paper's KL-16 and VQ-16. They are trained on training scenes and
measured on test scenes: peak signal-to-noise ratio, and what an exact detector reads in the reconstruction, beside what it
reads in the scene itself.
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
from mmar.data.scenes import Scene, SceneDataset, average, detect, score
from mmar.processing import MMARImageProcessor
from mmar.tokenizers import ImageTokenizer, LatentStatistics, measure_latents
from mmar.tokenizers.fit import FitSettings, fit_kl, fit_vq

WEIGHTS = Path(__file__).parent / "weights"
"""Committed folders of the frozen parts, made by the preset ``cpu``."""


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        kinds: kl, vq.
        widths: Channels of the levels; each level but the first halves the side.
        channels: Numbers per token.
        entries: Of the codebook.
        steps: Optimizer steps.
        batch: Scenes a step.
        tested: Test scenes that are reconstructed and read.
        measured: Training scenes on which the scale of the latents is measured.
        folder: Where the trained tokenizers are put.
        seed: Of weights and draws.
        workers: Processes; 0 runs here.
        device: Where it runs.
    """

    kinds: tuple[str, ...] = ("kl", "vq")
    widths: tuple[int, ...] = (32, 64, 64)
    channels: int = 8
    entries: int = 1024
    steps: int = 4000
    batch: int = 16
    tested: int = 500
    measured: int = 2000
    folder: str = str(WEIGHTS)
    seed: int = 0
    workers: int = 1
    device: str = "cpu"


RUNS = str(WEIGHTS.parents[1] / "runs" / "scene_tokenizers")
PRESETS = {
    "smoke": Config(widths=(8, 8, 8), entries=16, steps=4, batch=2, tested=2, measured=4, folder=f"{RUNS}/smoke", workers=0),
    "quick": Config(steps=200, tested=100, folder=f"{RUNS}/quick"),
    "cpu": Config(),
    "gpu": Config(widths=(64, 128, 128), steps=10_000, batch=256, folder=f"{RUNS}/gpu", workers=0, device="cuda"),
}


def job(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """Train, measure the scale, save, reconstruct."""
    torch.manual_seed(config.seed)
    settings = FitSettings(steps=config.steps, seed=config.seed)
    losses: list[dict[str, float]] = []

    def on_step(step: int, terms: dict[str, float]) -> None:
        losses.append(terms)
        tick(1)

    model, tokenizer_class = autoencoder(key, size=32, widths=config.widths, channels=config.channels, entries=config.entries)
    fit: Callable[..., None] = fit_kl if key == "kl" else fit_vq
    fit(model.to(config.device), pixels(config.batch, config.seed), settings, on_step)
    tokenizer: ImageTokenizer = tokenizer_class(model, name=f"{key}-scenes", image_size=32)
    statistics = _statistics(tokenizer, config)
    if key == "kl":
        tokenizer = tokenizer.with_scale(statistics.scale())
    folder = Path(config.folder) / f"{key}-scenes"
    tokenizer.to("cpu").save_pretrained(folder)
    last = losses[-max(1, len(losses) // 20) :]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "losses": {name: sum(terms[name] for terms in last) / len(last) for name in last[-1]},
        "latent_std": statistics.std,
        "latent_mean": statistics.mean,
        "channel_std": list(statistics.channel_std),
        **_reconstruct(tokenizer, config),
    }


def pixels(batch: int, seed: int, split: str = "train") -> Iterator[Tensor]:
    """Endless batches ``(batch, 3, 32, 32)`` of scenes."""
    scenes = SceneDataset(split, 2**31, seed=seed, caption_only=True)  # type: ignore[arg-type]
    processor = MMARImageProcessor(32, 3)
    index = 0
    while True:
        yield processor([scenes[index + i].image for i in range(batch)])["pixel_values"]
        index += batch


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """Both kinds."""
    keys = list(config.kinds)
    return run_jobs(job, config, keys, units_per_job=config.steps, folder=folder, workers=config.workers, resume=resume)


def show(record: dict[str, Any]) -> str:
    """A line per tokenizer."""
    names = ("count", "pair", "position", "exact")
    lines = [f"{'':14}{'parameters':>12}{'MB':>6}{'std':>8}{'PSNR dB':>9}" + "".join(f"{name:>10}" for name in names)]
    for key, result in record["results"].items():
        sizes = f"{result['parameters']:12d}{result['bytes'] / 1e6:6.1f}{result['latent_std']:8.3f}{result['psnr']:9.1f}"
        for name, shares in ((f"{key:14}{sizes}", result["read"]), (f"{'  the scene':49}", result["read_in_scene"])):
            lines.append(name + "".join(f"{shares[n]:10.1%}" for n in names))
    return "\n".join(lines)


def _statistics(tokenizer: ImageTokenizer, config: Config) -> LatentStatistics:
    stream = pixels(min(100, config.measured), config.seed + 1)
    parts = (next(stream).to(config.device) for _ in range(max(1, config.measured // 100)))
    return measure_latents(tokenizer, parts, sample=True, generator=torch.Generator().manual_seed(config.seed))


def _reconstruct(tokenizer: ImageTokenizer, config: Config) -> dict[str, Any]:
    """What is lost, on test scenes."""
    scenes = SceneDataset("test", config.tested, caption_only=True)
    processor = MMARImageProcessor(32, 3)
    squares, drawn, plain, codes = [], [], [], set()
    for example in scenes:
        before = processor([example.image])["pixel_values"]
        tokens = tokenizer.encode(before)
        if tokenizer.codebook_size:
            codes |= set(tokenizer.encode_codes(before).flatten().tolist())
        after = tokenizer.decode(tokens).clamp(-1, 1)
        squares.append(float((after - before).square().mean()) / 4)  # of pixels in [0, 1]
        scene = Scene.from_dict(example.meta["scene"])
        drawn.append(score(detect(processor.to_pil(after)[0]), scene))
        plain.append(score(detect(example.image), scene))
    psnr = -10 * torch.tensor(squares).mean().log10()
    found: dict[str, Any] = {"psnr": float(psnr), "read": average(drawn), "read_in_scene": average(plain)}
    return {**found, "codes_used": len(codes)} if tokenizer.codebook_size else found


def main() -> None:
    run_command("scene_tokenizers", __doc__.splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
