r"""An EmbeddingViT that has seen scenes before: it learns to name what stands where, and models of scenes start from it.

The paper's EmbeddingViT learns from 145 million images, one answer at a time, through the language model. In trials with a
hundred thousand scenes that taught places and colours and left shapes and characters in doubt; told the shape of one object by
itself, without a language model, it was as slow. So here it is told of every thing in a scene at once, which is far more to
learn from an image, and cheap without the rest of the model. The heads that it answers with are thrown away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.command import run_command
from experiments.jobs import run_jobs
from experiments.scene_labels import ATTRIBUTES, NOT_ASKED, NOTHING, labels
from experiments.scene_parts import WEIGHTS, EncodedScenes, first_model_config, first_tokenizer, save_part, train_part
from mmar.config import MMARConfig
from mmar.data.scenes import Scene
from mmar.data.scenes.vocabulary import SHAPES, Split
from mmar.embedding_vit import EmbeddingViT
from mmar.precision import autocast
from mmar.tokenizers import ImageTokenizer
from mmar.training.attention import attention_kernel

_WEIGHTS = {"kind": 2.0, "colour": 1.0, "size": 0.5, "position": 1.0}


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        steps: Optimizer steps.
        batch: Scenes a step.
        lr: Peak rate: 2 % warm-up, then a cosine.
        masked: Share of steps in which some tokens are unknown, as in drawing.
        tested: Scenes of each split.
        folder: Where the weights are put.
        seed: Of weights, scenes and masks.
        workers: Processes; 0 runs here.
        device: Where it runs.
    """

    steps: int = 4000
    batch: int = 64
    lr: float = 2e-3
    masked: float = 0.25
    tested: int = 2000
    folder: str = str(WEIGHTS / "vit-scenes")
    seed: int = 0
    workers: int = 1
    device: str = "cpu"


RUNS = str(WEIGHTS.parents[1] / "runs" / "scene_sight")
PRESETS = {
    "smoke": Config(steps=3, batch=4, tested=8, folder=f"{RUNS}/smoke", workers=0),
    "quick": Config(steps=600, tested=500, folder=f"{RUNS}/quick"),
    "cpu": Config(),
    "gpu": Config(steps=20_000, batch=512, folder=f"{RUNS}/gpu", workers=0, device="cuda"),
}


class Sight(nn.Module):
    """EmbeddingViT and a linear layer for what each token is asked.

    Args:
        config: Of the model that will start from it.
    """

    def __init__(self, config: MMARConfig) -> None:
        super().__init__()
        vit, image = config.embedding_vit_config, config.image_config
        self.embedding_vit = EmbeddingViT(vit, image.channels, image.count)
        self.heads = nn.ModuleDict({name: nn.Linear(vit.hidden_size, len(words)) for name, words in ATTRIBUTES.items()})

    def forward(self, tokens: Tensor, known: Tensor) -> dict[str, Tensor]:
        """``(n, N, C)``, ``(n, N)`` to ``(n, N, words)`` by attribute."""
        seen = self.embedding_vit(tokens, known)  # (n, N, D)
        return {name: head(seen) for name, head in self.heads.items()}


def job(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """Train, save, name what is in test scenes."""
    torch.manual_seed(config.seed)
    sight, tokenizer = Sight(first_model_config()).to(config.device), first_tokenizer()
    rng = Random(config.seed)

    def loss_of(tokens: Tensor, wanted: Tensor) -> Tensor:
        known = _known(rng, wanted.shape[:2], config.masked).to(config.device)
        return _loss(_named(sight, tokens, known), wanted.masked_fill(~known[..., None], NOT_ASKED))

    scenes = _scenes(tokenizer, "train", config.batch, config.seed)
    losses = train_part(
        sight,
        loss_of,
        scenes,
        steps=config.steps,
        lr=config.lr,
        weight_decay=0.02,
        workers=config.workers,
        device=config.device,
        tick=tick,
    )
    return {
        **save_part(sight.embedding_vit, Path(config.folder)),
        "losses": losses,
        "right": {split: _right(sight.eval(), tokenizer, config, split) for split in ("test", "held_out")},
    }


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """One training."""
    key = "embedding_vit"
    jobs = run_jobs(job, config, [key], units_per_job=config.steps, folder=folder, workers=config.workers, resume=resume)
    return jobs[key]


def show(record: dict[str, Any]) -> str:
    """A line a split."""
    found = record["results"]
    names = list(found["right"]["test"])
    lines = [
        f"{found['parameters']:,d} parameters, {found['bytes'] / 1e6:.1f} MB",
        f"{'named right':14}" + "".join(f"{n:>12}" for n in names),
    ]
    for split, shares in found["right"].items():
        lines.append(f"{split:14}" + "".join(f"{shares[name]['right'] / max(1, shares[name]['of']):12.1%}" for name in names))
    return "\n".join(lines)


def _scenes(tokenizer: ImageTokenizer, split: Split, batch: int, seed: int) -> EncodedScenes:
    """With the labels of their tokens."""
    return EncodedScenes(tokenizer, partial(_labelled, grid=tokenizer.grid), split, batch, ("sight", seed))


def _labelled(scene: Scene, grid: int) -> tuple[Tensor]:
    return (labels(scene, grid),)


def _named(sight: Sight, tokens: Tensor, known: Tensor) -> dict[str, Tensor]:
    with autocast(tokens.device, torch.bfloat16), attention_kernel(tokens.device, torch.bfloat16):
        found: dict[str, Tensor] = sight(tokens, known)
    return found


def _loss(named: Mapping[str, Tensor], wanted: Tensor) -> Tensor:
    """Weighted cross-entropies, each a mean over the tokens that are asked; none asked is nothing."""
    terms = []
    for column, (name, scores) in enumerate(named.items()):
        target = wanted[..., column].flatten()
        total = functional.cross_entropy(scores.flatten(0, 1).float(), target, ignore_index=NOT_ASKED, reduction="sum")
        terms.append(_WEIGHTS[name] * total / (target != NOT_ASKED).sum().clamp(min=1))
    return torch.stack(terms).sum()


def _known(rng: Random, shape: torch.Size, masked: float) -> Tensor:
    """All tokens, or as many in each image of the batch, at random places."""
    if rng.random() >= masked:
        return torch.ones(shape, dtype=torch.bool)
    count = rng.randrange(1, shape[1])
    return torch.rand(shape).argsort(-1) < count


def _right(sight: Sight, tokenizer: ImageTokenizer, config: Config, split: Split) -> dict[str, dict[str, int]]:
    """Of scenes seen whole: what is named right, by attribute; kinds apart for nothing, shapes and characters."""
    right: Counter[str] = Counter()
    of: Counter[str] = Counter()
    batch = min(config.batch, config.tested)
    scenes = iter(_scenes(tokenizer, split, batch, config.seed))
    for _ in range(config.tested // batch):
        tokens, wanted = (part.to(config.device) for part in next(scenes))
        with torch.inference_mode():
            named = _named(sight, tokens, torch.ones(wanted.shape[:2], dtype=torch.bool, device=tokens.device))
        for column, (name, scores) in enumerate(named.items()):
            target = wanted[..., column]
            agrees = scores.argmax(-1) == target
            for part, is_part in _parts(name, target).items():
                right[part] += int((agrees & is_part).sum())
                of[part] += int(is_part.sum())
    return {part: {"right": right[part], "of": of[part]} for part in of}


def _parts(name: str, target: Tensor) -> dict[str, Tensor]:
    if name != "kind":
        return {name: target != NOT_ASKED}
    return {NOTHING: target == 0, "shape": (target > 0) & (target <= len(SHAPES)), "character": target > len(SHAPES)}


def main() -> None:
    run_command("scene_sight", __doc__.splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
