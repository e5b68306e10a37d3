r"""Does MMAR learn to draw and read handwritten digits, from words and scans alone?

``mmar-digits`` with v-prediction in bf16 through all three stages: words, masks on [0.7, 1], masks on (0, 1]. Then every
digit is drawn from captions, and a classifier trained on real scans says what it sees; test scans give its ceiling. Every
test scan is asked about in each family of questions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.command import run_command
from experiments.paper_study.measure import digit_captions, draw_digits
from experiments.pictures import packed
from experiments.training_runs import train_stages
from mmar.data.digits import DIGIT_CHANCE, DIGIT_FAMILIES, DigitDataset
from mmar.evaluation.digits import DigitReader
from mmar.evaluation.understanding import Accuracy, ask, by_family
from mmar.generation.settings import ImageGenerationConfig
from mmar.pipeline import MMARPipeline
from mmar.training.pictures import grid

STAGES = ("digits-text", "digits-stage1", "digits")


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        overrides: Words for the trainer by stage; "" for all stages.
        drawn: Pictures of each digit and way of drawing, over its captions in turn.
        settings: Ways of drawing: options of ImageGenerationConfig by name.
        asked: Test scans.
        processes: That train together; ``batch_size`` is that of each.
        threads: Of torch; None as torch chooses.
        seed: Of training and drawing.
        device: Where it runs.
    """

    overrides: tuple[tuple[str, tuple[str, ...]], ...] = ()
    drawn: int = 40
    settings: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = (
        ("paper: 16 x 100 DDPM", (("head_steps", 100),)),
        ("8 x 10 DPM-Solver++", (("ar_steps", 8), ("solver", "dpm_solver"), ("head_steps", 10))),
    )
    asked: int = 445
    processes: int = 1
    threads: int | None = None
    seed: int = 0
    device: str = "cpu"


_FEW = (("", ("steps=2", "batch_size=4", "saving.samples_every=0")),)
PRESETS = {
    "smoke": Config(overrides=_FEW, drawn=1, settings=(("2 x 2", (("ar_steps", 2), ("head_steps", 2))),), asked=2, threads=1),
    "quick": Config(
        overrides=(("digits-text", ("steps=150",)), ("digits-stage1", ("steps=300",)), ("digits", ("steps=150",))), drawn=10
    ),
    "cpu": Config(overrides=(("", ("batch_size=32",)),), processes=2),
    "gpu": Config(overrides=(("", ("batch_size=256",)),), device="cuda"),
}


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """Train, draw, ask."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    words = {name: list(given) for name, given in dict(config.overrides).items()}
    words[""] = [*words.get("", []), f"seed={config.seed}"]
    stages = train_stages(STAGES, words, folder=folder, resume=resume, processes=config.processes)
    pipeline = MMARPipeline.from_pretrained(folder / "digits" / "final", device=config.device)
    reader = DigitReader()
    return {
        "stages": stages,
        "drawing": {name: _draw(pipeline, reader, config, dict(options), folder) for name, options in config.settings},
        "classifier_on_test_scans": reader.ceiling(),
        "reading": _read(pipeline, config),
    }


def show(record: dict[str, Any]) -> str:
    """Stages, drawing, reading."""
    found = record["results"]
    lines = [f"{name:16}{s['steps']:6d} steps {s['training_s']:7.0f} s" for name, s in found["stages"].items()]
    for name, drawing in found["drawing"].items():
        lines.append(f"drawn, {name:24}{drawing['recognised']:8.1%} of {drawing['drawn']} recognised")
    lines.append(f"{'real test scans':31}{found['classifier_on_test_scans']:8.1%}")
    for family, one in found["reading"].items():
        lines.append(f"read, {family:25}{one['right'] / one['asked']:8.1%} of {one['asked']} (chance {one['chance']:.0%})")
    return "\n".join(lines)


def _draw(pipeline: MMARPipeline, reader: DigitReader, config: Config, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    settings = ImageGenerationConfig(**options)
    pictures, wanted, _ = draw_digits(pipeline, settings, config.drawn, seed=config.seed)
    texts = digit_captions(config.drawn)[1]
    seen = reader.read(pictures).tolist()
    right = [a == b for a, b in zip(seen, wanted, strict=True)]
    columns = min(8, config.drawn)
    first = [pictures[digit * config.drawn + i] for digit in range(10) for i in range(columns)]
    grid(first, columns=columns, side=64).save(folder / f"drawn-{len(options)}.png")
    per_digit = [sum(right[d * config.drawn : (d + 1) * config.drawn]) / config.drawn for d in range(10)]
    shown = [{"caption": texts[d * config.drawn], "picture": packed(pictures[d * config.drawn])} for d in range(10)]
    found = {"recognised": sum(right) / len(right), "drawn": len(right), "per_digit": per_digit, "pictures": shown}
    return {**found, "settings": settings.to_dict()}


def _read(pipeline: MMARPipeline, config: Config) -> dict[str, dict[str, Any]]:
    """Each family is asked once about each test scan."""
    found: dict[str, dict[str, Any]] = {}
    for family in DIGIT_FAMILIES:
        scans = DigitDataset("test", questions=1, families=[family])
        some = [scans[i] for i in range(min(config.asked, len(scans)))]
        accuracy: Accuracy = by_family(ask(pipeline, some))[family]
        found[family] = {**asdict(accuracy), "standard_error": accuracy.standard_error, "chance": DIGIT_CHANCE[family]}
    return found


def main() -> None:
    run_command("mmar_digits", __doc__.splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
