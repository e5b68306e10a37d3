r"""What does the small language model that ``mmar-scenes`` freezes find in a description? Stage 0 alone, and its control.

Questions of all families about test scenes, with the fullest caption in the place of the image. What it does not find there it
cannot be expected to find in an image. It is kept as a Qwen2 folder, from which ``mmar_scenes`` starts as from a real one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.command import run_command
from experiments.training_runs import train_stages
from mmar.data.scenes import CHANCE, FAMILIES
from mmar.data.scenes.vocabulary import MAX_OBJECTS, Split
from mmar.evaluation.reading_text import ask_caption
from mmar.evaluation.scenes import ask_scenes
from mmar.pipeline import MMARPipeline
from mmar.qwen2_weights import save_qwen2
from mmar.training.loop import FINAL

STAGES = ("scenes-text", "scenes-repeats", "scenes-terse", "scenes-words")
"""Questions; random words said again; terse descriptions told again; all questions, about descriptions in both wordings."""
WEIGHTS = Path(__file__).parent / "weights" / "lm-scenes"
RUNS = Path(__file__).parents[1] / "runs" / "scene_words"


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        words: For the trainer by stage; "" for all stages.
        asked: Captions of each family.
        folder: Of the Qwen2 that is written.
        processes: That train together; ``batch_size`` is that of each.
        threads: Of torch; None as torch chooses.
        seed: Of training.
        device: Where it runs.
    """

    words: tuple[tuple[str, tuple[str, ...]], ...] = ()
    asked: int = 400
    folder: str = str(RUNS / "lm-scenes")
    processes: int = 1
    threads: int | None = None
    seed: int = 0
    device: str = "cpu"


PRESETS = {
    "smoke": Config((("", ("steps=2", "batch_size=4", "saving.log_every=1")),), asked=2, folder=str(RUNS / "smoke"), threads=1),
    "quick": Config((("", ("steps=60", "batch_size=32", "saving.log_every=10")),), asked=50, folder=str(RUNS / "quick")),
    "cpu": Config(
        (("", ("batch_size=64",)), ("scenes-repeats", ("batch_size=32",))),
        processes=2,
    ),
    "gpu": Config((("", ("workers=1",)),), folder=str(WEIGHTS), device="cuda"),
}


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """Train stage 0, keep it as a Qwen2, ask about captions."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    words = dict(config.words)
    words[""] = (*words.get("", ()), f"seed={config.seed}")
    stages = train_stages(STAGES, words, folder=folder, resume=resume, processes=config.processes)
    pipeline = MMARPipeline.from_pretrained(folder / STAGES[-1] / FINAL)
    save_as_qwen2(pipeline, config.folder)
    return {"stages": stages, "reading_captions": read_captions(pipeline.to(config.device), config.asked)}


def save_as_qwen2(pipeline: MMARPipeline, folder: str) -> None:
    """The language model and its tokenizer alone, as a Qwen2 is published."""
    save_qwen2(pipeline.model.language_model, folder)
    pipeline.processor.tokenizer.save_pretrained(folder)


def read_captions(
    pipeline: MMARPipeline,
    asked: int,
    split: Split = "test",
    *,
    families: Sequence[str] = tuple(FAMILIES),
    max_objects: int = MAX_OBJECTS,
) -> dict[str, Any]:
    """What a frozen language model finds in the fullest caption, which stands in the place of the image."""
    with tqdm(total=len(families), desc=f"questions about captions, {split}") as bar:
        return ask_scenes(
            pipeline, split, asked, families=families, max_objects=max_objects, asker=ask_caption, tick=bar.update
        )


def show(record: Mapping[str, Any]) -> str:
    """The stage, then families."""
    found = record["results"]
    lines = [f"{name:20}{s['steps']:6d} steps {s['training_s'] / 60:6.1f} min" for name, s in found["stages"].items()]
    lines.append(f"\n{'captions':20}{'right':>8}{'chance':>8}")
    for family, one in found["reading_captions"]["families"].items():
        lines.append(f"{family:20}{one['right'] / one['asked']:8.1%}{CHANCE[family]:8.0%}")
    lines.append(f"{'mean':20}{found['reading_captions']['mean']:8.1%}")
    return "\n".join(lines)


def main() -> None:
    run_command("scene_words", (__doc__ or "").splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
