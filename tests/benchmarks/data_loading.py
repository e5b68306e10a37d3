"""What reading the data costs a training run: samples per second and the share of the time that a step waits for its batch.

    python tests/benchmarks/data_loading.py [--quick] [--out experiments/records/data_loading-cpu.json]

One model, one text tokenizer and one image tokenizer for all sources: digits in memory, scenes drawn on the fly, a folder of
JPEG files, and a latent cache of that folder. Sources take turns of some steps each, on one thread; readers are processes of
their own and go on between the turns, by two batches each at most. The share holds making the batch too: tokens of images,
rows of text.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sklearn.datasets
from interleaved import medians, one_thread, run_benchmark
from PIL import Image
from tqdm import tqdm

from mmar.data.folder import FolderDataset
from mmar.data.latents import cache_latents
from mmar.data.order import StreamSettings
from mmar.data.stream import ExampleStream
from mmar.processing import ChatFormat, train_tokenizer
from mmar.tokenizers import LatentScale, PatchTokenizer
from mmar.training.config import DataSource, ModelSource, TrainingConfig
from mmar.training.log import Throughput
from mmar.training.loop import Trainer
from mmar.training.sources import make_stream, texts_of

REFERENCE = "latents, 0 readers"
"""The least that a step can wait: what the others are compared with."""


@dataclass(frozen=True)
class Config:
    """What is timed.

    Attributes:
        preset: Of the model, on patches of ``size`` x ``size`` pixels in colour.
        size: Pixels of the images that the model sees.
        grid: Tokens of a side.
        files: JPEG files in the folder.
        file_size: Their pixels of a side, 256 as in the paper; they are cut from photographs of 640 x 427.
        batch_size: Samples of a step.
        steps: Of a turn.
        turns: Of every source.
        readers: Numbers of processes that read.
    """

    preset: str = "mmar-digits"
    size: int = 32
    grid: int = 8
    files: int = 512
    file_size: int = 256
    batch_size: int = 16
    steps: int = 20
    turns: int = 7
    readers: tuple[int, ...] = (0, 1)


FULL = Config()
QUICK = Config("mmar-tiny", size=8, grid=4, files=8, file_size=64, batch_size=2, steps=1, turns=1)


class Contender:
    """A run of its own, some steps at a time.

    Args:
        config: Of the run.
        steps: Of a call.
    """

    def __init__(self, config: TrainingConfig, steps: int) -> None:
        self.trainer, self.steps = Trainer(config), steps
        self.items = iter(self.trainer.loader)
        self.shares: list[float] = []

    def __call__(self) -> None:
        """Train for a while."""
        meter = Throughput()
        for _ in range(self.steps):
            self.trainer._step(self.items, meter)
        self.shares.append(meter.read(None)["data_share"])


@contextlib.contextmanager
def contenders(config: Config) -> Iterator[dict[str, Contender]]:
    """One for each source and number of readers."""
    with TemporaryDirectory() as name:
        place = Path(name)
        sources = _sources(config, place)
        made: dict[str, Contender] = {}
        try:
            for kind, source in sources.items():
                for readers in config.readers:
                    run = _run(config, place, source, readers, output=f"{kind}-{readers}")
                    made[f"{kind}, {readers} {'reader' if readers == 1 else 'readers'}"] = Contender(run, config.steps)
            yield made
        finally:
            for contender in made.values():
                contender.items.close()  # ends its readers
                contender.trainer.close()


def _run(config: Config, place: Path, source: DataSource, readers: int, output: str) -> TrainingConfig:
    image = {"tokenizer": "patches", "image_size": config.size, "grid": config.grid, "channels": _channels(config)}
    run = TrainingConfig(
        output=str(place / output),
        model=ModelSource(preset=config.preset, options={"image_config": image}),
        data=[source],
        tasks={"understanding": 1.0, "generation": 1.0},
        batch_size=config.batch_size,
        workers=readers,
    )
    run.tokenizers.text, run.tokenizers.image = str(place / "text"), str(place / "image")
    return run


def _sources(config: Config, place: Path) -> dict[str, DataSource]:
    """Captions alone, so that rows are of like length; and the tokenizers that all share."""
    _write_folder(config, place / "folder")
    sources = {
        "digits": DataSource(kind="digits", options={"caption_only": True}),
        "scenes": DataSource(kind="scenes", options={"caption_only": True}),
        "folder": DataSource(kind="folder", path=str(place / "folder")),
    }
    texts = (
        text
        for source in sources.values()
        for text in texts_of(make_stream([source], StreamSettings(epochs=1)), ChatFormat(system_prompt=None), limit=500)
    )
    train_tokenizer(texts, 512).save_pretrained(place / "text")
    patches = PatchTokenizer(config.size, config.size // config.grid, image_channels=3).with_scale(LatentScale(std=0.5))
    patches.save_pretrained(place / "image")
    stream = ExampleStream(FolderDataset.from_folder(place / "folder"), StreamSettings(epochs=1))
    cache_latents(stream, patches, place / "latents")
    return {**sources, "latents": DataSource(kind="latents", path=str(place / "latents"))}


def _write_folder(config: Config, folder: Path) -> None:
    """Cuts of two photographs, each at a place of its own."""
    folder.mkdir()
    names = []
    for i in range(config.files):
        photograph = Path(sklearn.datasets.__file__).parent / "images" / ("china.jpg", "flower.jpg")[i % 2]
        with Image.open(photograph) as image:
            left, top = i * 7 % (image.width - config.file_size), i * 5 % (image.height - config.file_size)
            cut = image.crop((left, top, left + config.file_size, top + config.file_size))
        cut.save(folder / f"{i:04d}.jpg", quality=90)
        names.append(f"{i:04d}.jpg")
    rows = "\n".join(f"{name},a part of a photograph of {('a temple', 'a flower')[i % 2]}" for i, name in enumerate(names))
    (folder / "metadata.csv").write_text(f"file_name,text\n{rows}\n")


def _channels(config: Config) -> int:
    return 3 * (config.size // config.grid) ** 2


def run(config: Config) -> dict[str, Any]:
    """Rates, shares, and rates beside that of the reference."""
    with one_thread(), tqdm(total=config.turns, unit="turn") as bar, contenders(config) as made:
        calls: dict[str, Callable[[], Any]] = dict(made)
        seconds = medians(calls, config.turns, bar)
        shares = {name: statistics.median(contender.shares[1:]) for name, contender in made.items()}
    samples = config.batch_size * config.steps
    return {
        name: {
            "samples_per_s": samples / seconds[name],
            "data_share": shares[name],
            "rate_over_latents": seconds[REFERENCE] / seconds[name],
        }
        for name in made
    }


def show(results: dict[str, Any]) -> str:
    """A line per source and number of readers."""
    lines = [f"{'source':24}{'samples/s':>12}{'share of data':>16}{'rate / latents':>16}"]
    for name, row in results.items():
        lines.append(f"{name:24}{row['samples_per_s']:12.1f}{row['data_share']:16.3f}{row['rate_over_latents']:16.2f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write a record if asked to."""
    run_benchmark("data_loading", "What reading the data costs a training run", FULL, QUICK, run, show, argv)


if __name__ == "__main__":
    main()
