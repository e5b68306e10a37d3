r"""What does MMAR learn of drawn scenes: which questions can it answer, and which attributes can it draw?

``mmar-scenes`` (32 x 32 pixels, 16 tokens of four latents of a small KL autoencoder, v-prediction, bf16) on the frozen language
model of ``scene_words``: a lesson with questions alone, one with captions of one object, then stages 1 and 2. EmbeddingViT and
the diffusion head come from ``scene_sight`` and ``scene_hand``.
Questions of eight families about test scenes and about scenes with pairs of colour and shape that training never meets;
captions drawn by the paper's recipe in small and by a fast one, read by an exact detector. Its accuracy on real scenes, and on
their reconstructions, stands beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.command import run_command
from experiments.pictures import packed
from experiments.scene_words import read_captions
from experiments.training_runs import train_stages
from mmar.data.example import Example
from mmar.data.scenes import FAMILIES, SceneDataset, average
from mmar.data.scenes.vocabulary import Split
from mmar.evaluation.scenes import Drawn, ask_scenes, draw_scenes, read
from mmar.generation.settings import ImageGenerationConfig
from mmar.pipeline import MMARPipeline
from mmar.training.pictures import grid

STAGES = ("scenes-look", "scenes-draw", "scenes-stage1", "scenes")
SPLITS: tuple[Split, ...] = ("test", "held_out")


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        overrides: Words for the trainer by stage; "" for all stages.
        drawn: Scenes drawn of each split and way of drawing.
        settings: Ways of drawing: options of ImageGenerationConfig by name.
        asked: Questions of each family and split.
        shown: Scenes on the sheets in the folder of the run (above the scene, below what was drawn), and in the record.
        processes: That train together; ``batch_size`` is that of each.
        threads: Of torch; None as torch chooses.
        seed: Of training and drawing.
        device: Where it runs.
    """

    overrides: tuple[tuple[str, tuple[str, ...]], ...] = ()
    drawn: int = 100
    settings: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = (
        ("16 x 25 DDPM", (("ar_steps", 16), ("head_steps", 25))),
        ("16 x 10 DPM-Solver++", (("ar_steps", 16), ("solver", "dpm_solver"), ("head_steps", 10))),
        ("the same, guided by 2", (("ar_steps", 16), ("solver", "dpm_solver"), ("head_steps", 10), ("guidance_scale", 2.0))),
    )
    asked: int = 250
    shown: int = 24
    processes: int = 1
    threads: int | None = None
    seed: int = 0
    device: str = "cpu"


_FEW = (("", ("steps=2", "batch_size=4", "saving.samples_every=0")),)
PRESETS = {
    "smoke": Config(_FEW, drawn=2, settings=(("2 x 2", (("ar_steps", 2), ("head_steps", 2))),), asked=2, shown=2, threads=1),
    "quick": Config(tuple((stage, ("steps=100",)) for stage in STAGES), drawn=40, asked=50),
    "cpu": Config((("", ("batch_size=16",)), ("scenes-draw", ("batch_size=32",))), asked=400, drawn=200, processes=2),
    "gpu": Config((("", ("batch_size=256",)),), drawn=1000, asked=1000, device="cuda"),
}


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """Train, ask, draw."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    words = {name: list(given) for name, given in dict(config.overrides).items()}
    words[""] = [*words.get("", []), f"seed={config.seed}"]
    stages = train_stages(STAGES, words, folder=folder, resume=resume, processes=config.processes)
    pipeline = MMARPipeline.from_pretrained(folder / "scenes" / "final", device=config.device)
    return {
        "stages": stages,
        "reading": {split: _read(pipeline, config, split) for split in SPLITS},
        "reading_captions": {split: read_captions(pipeline, config.asked, split) for split in SPLITS},
        **_draw_all(pipeline, config, folder),
    }


def show(record: dict[str, Any]) -> str:
    """Stages, reading, drawing."""
    found = record["results"]
    lines = [f"{name:16}{s['steps']:6d} steps {s['training_s'] / 60:6.1f} min" for name, s in found["stages"].items()]
    lines.append(f"\n{'read':24}" + "".join(f"{name:>12}" for name in (*SPLITS, "chance", "captions", "held out")))
    for family in found["reading"]["test"]["families"]:
        shares = [found["reading"][split]["families"][family] for split in SPLITS]
        right = "".join(f"{one['right'] / one['asked']:12.1%}" for one in shares)
        texts = [found["reading_captions"][split]["families"][family] for split in SPLITS]
        told = "".join(f"{one['right'] / one['asked']:12.1%}" for one in texts)
        lines.append(f"{family:24}{right}{shares[0]['chance']:12.0%}{told}")
    lines.append(f"{'mean':24}" + "".join(f"{found['reading'][split]['mean']:12.1%}" for split in SPLITS))
    for split in SPLITS:
        columns = ("count", "colour", "shape", "size", "position", "pair", "glyph", "exact")
        lines.append(f"\n{'drawn, ' + split:32}" + "".join(f"{column:>10}" for column in columns))
        for name, shares in found["drawing"][split].items():
            lines.append(f"{name:32}" + "".join(f"{shares[column]:10.1%}" for column in columns))
    return "\n".join(lines)


def _read(pipeline: MMARPipeline, config: Config, split: Split) -> dict[str, Any]:
    with tqdm(total=len(FAMILIES), desc=f"questions, {split}") as bar:
        return ask_scenes(pipeline, split, config.asked, tick=bar.update)


def _draw_all(pipeline: MMARPipeline, config: Config, folder: Path) -> dict[str, Any]:
    """What was drawn of both splits, and the first pictures of the first, in the last way of drawing, with their captions."""
    found, pictures = {}, []
    for split in SPLITS:
        found[split], drawn = _draw(pipeline, config, split, folder)
        if split == SPLITS[0]:
            pictures = [{"caption": one.caption, "picture": packed(one.image)} for one in drawn[: config.shown]]
    return {"drawing": found, "pictures": pictures}


def _draw(
    pipeline: MMARPipeline, config: Config, split: Split, folder: Path
) -> tuple[dict[str, dict[str, float]], list[Drawn]]:
    """Attributes of drawn scenes, of the scenes themselves, and of their reconstructions; what was drawn last."""
    scenes = _all(SceneDataset(split, config.drawn, caption_only=True))
    found = {
        "the scenes themselves": average([read(scene.image, scene) for scene in scenes if scene.image]),
        "their reconstructions": average([read(pipeline.reconstruct(scene.image), scene) for scene in scenes]),
    }
    drawn: list[Drawn] = []
    for name, options in tqdm(config.settings, desc=f"drawing, {split}"):
        drawn = draw_scenes(pipeline, scenes, settings=ImageGenerationConfig(**dict(options)), seed=config.seed)
        found[name] = average([one.score for one in drawn])
        _sheet(scenes[: config.shown], drawn[: config.shown], folder / f"{split}-{len(found) - 2}.png")
    return found, drawn


def _sheet(scenes: Sequence[Example], drawn: Sequence[Drawn], path: Path) -> None:
    """Eight scenes a line, each above its picture."""
    rows: list[Any] = []
    for start in range(0, len(scenes), 8):
        rows += [scene.image for scene in scenes[start : start + 8]] + [one.image for one in drawn[start : start + 8]]
    grid(rows, columns=min(8, len(scenes)), side=96).save(path)


def _all(scenes: SceneDataset) -> list[Example]:
    return [scenes[i] for i in range(len(scenes))]


def main() -> None:
    run_command("mmar_scenes", __doc__.splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
