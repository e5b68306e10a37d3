r"""What does the small language model that ``mmar-scenes`` freezes find in a description? Stage 0 alone, and its control.

The questions of all families about test scenes, with the fullest caption in the place of the image. What it does not find there
it cannot be expected to find in an image. The presets, and the folder of the runs, are those of ``mmar_scenes``, which goes on
from here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from experiments.command import run_command
from experiments.mmar_scenes import PRESETS, TEXT, Config, read_captions, train_text
from mmar.data.scenes import CHANCE
from mmar.pipeline import MMARPipeline
from mmar.training.loop import FINAL


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """Train stage 0, ask about captions."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    runs = folder.parent / "mmar_scenes"
    stages = train_text(config, runs, resume=resume)
    pipeline = MMARPipeline.from_pretrained(runs / TEXT[-1] / FINAL, device=config.device)
    return {"stages": stages, "reading_captions": read_captions(pipeline, config)}


def show(record: dict[str, Any]) -> str:
    """Stages, then families."""
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
