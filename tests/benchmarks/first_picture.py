"""How long it takes from the start of a process to the first picture, and what takes it: start, imports, loading, drawing.

    python tests/benchmarks/first_picture.py [--quick] [--out experiments/records/first_picture-cpu.json]

Untrained models on one thread, each in a process of its own that loads a saved pipeline and draws once; processes take turns.
Files are read from the system's cache, so loading is that of the second time on a machine.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from interleaved import one_thread, run_benchmark
from tqdm import tqdm

from mmar.config import MMARConfig
from mmar.model import MMARForConditionalGeneration
from mmar.pipeline import MMARPipeline
from mmar.processing import MMARProcessor, train_tokenizer
from mmar.tokenizers import LatentScale, PatchTokenizer

PARTS = ("start", "import", "load", "draw")
CHILD = """
import sys, time
times = [time.time()]
import torch
from mmar.generation import ImageGenerationConfig
from mmar.pipeline import MMARPipeline
torch.set_num_threads(1)
times.append(time.time())
pipe = MMARPipeline.from_pretrained(sys.argv[1])
times.append(time.time())
pipe.draw("a picture", settings=ImageGenerationConfig.preset(sys.argv[2]), seed=0)[0].save(sys.argv[3])
times.append(time.time())
print(times)
"""
"""What a person would write, with the clock between its lines."""


@dataclass(frozen=True)
class Config:
    """What is timed.

    Attributes:
        models: Presets of models on patches.
        settings: Presets of drawing.
        turns: Processes of each pair.
    """

    models: tuple[str, ...] = ("mmar-tiny", "mmar-digits")
    settings: tuple[str, ...] = ("paper", "fast")
    turns: int = 7


FULL = Config()
QUICK = Config(("mmar-tiny",), ("fast",), turns=1)


def save_pipeline(preset: str, folder: Path) -> None:
    """Untrained: speed does not depend on what has been learned."""
    torch.manual_seed(0)
    model = MMARForConditionalGeneration(MMARConfig.preset(preset)).eval()
    image: Any = model.config.image_config
    patch = image.image_size // image.grid
    patches = PatchTokenizer(image.image_size, patch, image_channels=image.channels // patch**2)
    tokenizer = train_tokenizer(["a picture"], model.config.text_config.vocab_size)
    processor = MMARProcessor.from_config(model.config, tokenizer, channels=patches.image_channels)
    MMARPipeline(model, processor, patches.with_scale(LatentScale(std=0.5))).save_pretrained(folder)


def seconds_of_a_process(folder: Path, settings: str) -> dict[str, float]:
    """Of each part; ``start`` is the interpreter's."""
    picture = folder / "picture.png"
    picture.unlink(missing_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), settings, str(picture)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    times = [start, *json.loads(done.stdout.splitlines()[-1])]
    if not picture.is_file():
        raise RuntimeError(f"a process must leave a picture, got none at {picture}")
    return {part: after - before for part, before, after in zip(PARTS, times, times[1:], strict=False)}


def run(config: Config) -> dict[str, Any]:
    """Median seconds of each part, their sum, and each part's share of it."""
    pairs = [(model, settings) for model in config.models for settings in config.settings]
    found: dict[str, list[dict[str, float]]] = {f"{model}, {settings}": [] for model, settings in pairs}
    with TemporaryDirectory() as place, one_thread(), tqdm(total=config.turns * len(pairs), unit="process") as bar:
        for model in config.models:
            save_pipeline(model, Path(place) / model)
        seconds_of_a_process(Path(place) / config.models[0], config.settings[-1])  # fills the system's cache
        for _ in range(config.turns):
            for model, settings in pairs:
                found[f"{model}, {settings}"].append(seconds_of_a_process(Path(place) / model, settings))
                bar.update(1)
    results = {}
    for name, rows in found.items():
        seconds = {part: statistics.median(row[part] for row in rows) for part in PARTS}
        total = sum(seconds.values())
        shares = {f"{part}_share": value / total for part, value in seconds.items()}
        results[name] = {**{f"{part}_s": value for part, value in seconds.items()}, "total_s": total, **shares}
    return results


def show(results: dict[str, Any]) -> str:
    """A line per model and setting."""
    lines = [f"{'seconds':24}" + "".join(f"{part:>10}" for part in (*PARTS, "total"))]
    for name, row in results.items():
        lines.append(f"{name:24}" + "".join(f"{row[f'{part}_s']:10.2f}" for part in (*PARTS, "total")))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write a record if asked to."""
    run_benchmark("first_picture", "How long it takes to the first picture", FULL, QUICK, run, show, argv)


if __name__ == "__main__":
    main()
