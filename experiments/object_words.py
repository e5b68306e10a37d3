r"""The small language model that all arms of ``table3_scenes`` freeze, and what it finds in descriptions of one object.

Stage 0 alone. It is kept as a Qwen2 folder, ``experiments/weights/lm-objects``, so that arms which are trained at other times
or on other machines share it. Questions about test captions, and about captions with pairs that training never meets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.command import RUNS, run_command
from experiments.paper_study.objects import FAMILIES, SPLITS
from experiments.paper_study.runs import SUBJECTS, WEIGHTS
from experiments.scene_words import read_captions, save_as_qwen2
from experiments.training_runs import train_stages
from mmar.data.scenes import CHANCE
from mmar.pipeline import MMARPipeline
from mmar.training.loop import FINAL

STAGE = "objects-text"


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        words: For the trainer.
        asked: Captions of each family and split.
        folder: Of the Qwen2 that is written.
        threads: Of torch; None as torch chooses.
        seed: Of training.
        device: Where it runs.
    """

    words: tuple[str, ...] = ()
    asked: int = 400
    folder: str = str(RUNS / "object_words" / "lm-objects")
    threads: int | None = None
    seed: int = 0
    device: str = "cpu"


PRESETS = {
    "smoke": Config(("steps=2", "batch_size=4", "saving.log_every=1"), asked=2, folder=str(RUNS / "smoke"), threads=1),
    "quick": Config(("steps=100", "optimizer.decay=50"), asked=100, folder=str(RUNS / "quick")),
    "cpu": Config(folder=str(WEIGHTS / str(SUBJECTS["objects"].language))),
    "gpu": Config(("batch_size=512",), device="cuda"),
}


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """Train stage 0, keep it as a Qwen2, ask about captions."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    stages = train_stages((STAGE,), {"": (*config.words, f"seed={config.seed}")}, folder=folder, resume=resume)
    pipeline = MMARPipeline.from_pretrained(folder / STAGE / FINAL).to(config.device)
    save_as_qwen2(pipeline, config.folder)
    return {
        "stages": stages,
        "reading_captions": {
            split: read_captions(pipeline, config.asked, split, families=FAMILIES, max_objects=1) for split in SPLITS
        },
    }


def show(record: Mapping[str, Any]) -> str:
    """The stage, then families."""
    found = record["results"]
    lines = [f"{name:20}{s['steps']:6d} steps {s['training_s'] / 60:6.1f} min" for name, s in found["stages"].items()]
    lines.append(f"\n{'captions':20}" + "".join(f"{name:>12}" for name in (*SPLITS, "chance")))
    for family in FAMILIES:
        ones = [found["reading_captions"][split]["families"][family] for split in SPLITS]
        lines.append(
            f"{family:20}" + "".join(f"{one['right'] / one['asked']:12.1%}" for one in ones) + f"{CHANCE[family]:12.0%}"
        )
    return "\n".join(lines)


def main() -> None:
    run_command("object_words", (__doc__ or "").splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
