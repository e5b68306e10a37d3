r"""A diffusion head that has drawn scenes before: it is told what lies in a token and draws it; models of scenes start from it.

The paper's head learns what things look like from 145 million images, through the language model. In trials with a hundred
thousand captions places and colours were drawn and shapes were blobs. Told directly what lies in each token, the same head
draws shapes within minutes: it meets far more tokens in that time. It is told by a sum of one vector per word, so that
states of a language model can come to say the same; words are left out now and then, as a language model may not know them yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.command import run_command
from experiments.jobs import run_jobs
from experiments.scene_parts import WEIGHTS, EncodedScenes, first_model_config, first_tokenizer, save_part, train_part
from experiments.scene_things import EVERYTHING, Share, Teller, background, things
from mmar.data.scenes import Scene, SceneDataset, average
from mmar.data.scenes.vocabulary import UNITS, Split
from mmar.evaluation.scenes import read
from mmar.generation.settings import ImageGenerationConfig
from mmar.generation.token_sampler import ArStep, DiffusionTokenSampler
from mmar.image_head import DiffusionTokenHead
from mmar.picture_codec import PictureCodec
from mmar.precision import autocast
from mmar.processing import MMARImageProcessor
from mmar.tokenizers import ImageTokenizer


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        steps: Optimizer steps.
        batch: Scenes a step.
        timesteps_per_token: Noise levels of each token.
        lr: Peak rate: 2 % warm-up, then a cosine.
        share: What is told.
        tested: Scenes of each split that are drawn with everything told.
        folder: Where the weights are put.
        seed: Of weights, scenes, noise and what is told.
        workers: Processes; 0 runs here.
        device: Where it runs.
    """

    steps: int = 6000
    batch: int = 32
    timesteps_per_token: int = 2
    lr: float = 3e-3
    share: Share = field(default_factory=Share)
    tested: int = 200
    folder: str = str(WEIGHTS / "head-scenes")
    seed: int = 0
    workers: int = 1
    device: str = "cpu"


RUNS = str(WEIGHTS.parents[1] / "runs" / "scene_hand")
PRESETS = {
    "smoke": Config(steps=3, batch=4, tested=2, folder=f"{RUNS}/smoke", workers=0),
    "quick": Config(steps=1000, tested=50, folder=f"{RUNS}/quick"),
    "cpu": Config(),
    "gpu": Config(steps=20_000, batch=256, tested=1000, folder=f"{RUNS}/gpu", workers=0, device="cuda"),
}


def job(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """Train, save, draw test scenes that are told in full."""
    torch.manual_seed(config.seed)
    tokenizer, model = first_tokenizer(), first_model_config()
    head, teller = DiffusionTokenHead(model), Teller(model.text_config.hidden_size, tokenizer.grid)
    both = nn.ModuleList([head, teller]).to(config.device)

    def loss_of(tokens: Tensor, told: Tensor, ground: Tensor) -> Tensor:
        with autocast(tokens.device, torch.bfloat16):
            z = teller(told, ground, config.share).flatten(0, 1)  # (n N, W)
            return head.loss(z, tokens.flatten(0, 1), timesteps_per_token=config.timesteps_per_token).mean

    scenes = EncodedScenes(tokenizer, _told, "train", config.batch, ("hand", config.seed))
    losses = train_part(
        both,
        loss_of,
        scenes,
        steps=config.steps,
        lr=config.lr,
        weight_decay=0.0,
        workers=config.workers,
        device=config.device,
        tick=tick,
    )
    return {
        **save_part(head, Path(config.folder)),
        "losses": losses,
        "drawn": {split: _drawn(head, teller, tokenizer, config, split) for split in ("test", "held_out")},
    }


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """One training."""
    key = "diffusion_head"
    jobs = run_jobs(job, config, [key], units_per_job=config.steps, folder=folder, workers=config.workers, resume=resume)
    return jobs[key]


def show(record: dict[str, Any]) -> str:
    """A line a split."""
    found = record["results"]
    columns = ("count", "colour", "shape", "size", "position", "pair", "glyph", "exact")
    lines = [
        f"{found['parameters']:,d} parameters, {found['bytes'] / 1e6:.1f} MB",
        f"{'drawn as told':14}" + "".join(f"{name:>10}" for name in columns),
    ]
    for split, shares in found["drawn"].items():
        lines.append(f"{split:14}" + "".join(f"{shares[name]:10.1%}" for name in columns))
    return "\n".join(lines)


def _told(scene: Scene) -> tuple[Tensor, Tensor]:
    return things(scene), background(scene)


@torch.inference_mode()
def _drawn(
    head: DiffusionTokenHead, teller: Teller, tokenizer: ImageTokenizer, config: Config, split: Split
) -> dict[str, float]:
    """Scenes told in full, each token drawn by itself: what the exact detector reads."""
    scenes = SceneDataset(split, config.tested, caption_only=True)
    examples = [scenes[i] for i in range(config.tested)]
    said = [_told(Scene.from_dict(example.meta["scene"])) for example in examples]
    told, grounds = (torch.stack(part).to(config.device) for part in zip(*said, strict=True))
    z = teller(told, grounds, EVERYTHING)  # (n, N, W)
    model = head.config
    settings = ImageGenerationConfig(ar_steps=1, solver="dpm_solver", head_steps=25)
    sampler = DiffusionTokenSampler(head, settings, model.diffusion_head_config.param, model.image_config.channels)
    sources = [torch.Generator().manual_seed(config.seed + i) for i in range(len(z))]
    codec = PictureCodec(MMARImageProcessor(UNITS, 3), tokenizer, has_codes=False)
    pictures = codec.decode(sampler(z[None], ArStep(0, 1, 1.0), sources))
    return average([read(picture, example) for picture, example in zip(pictures, examples, strict=True)])


def main() -> None:
    run_command("scene_hand", __doc__.splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
