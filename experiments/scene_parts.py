"""What :mod:`experiments.scene_sight` and :mod:`experiments.scene_hand` share: training one part of a model of scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from experiments.training_runs import CONFIGS
from mmar.config import MMARConfig
from mmar.data.draws import stream
from mmar.data.scenes import Scene
from mmar.data.scenes.drawing import draw
from mmar.data.scenes.sampling import sample_scene
from mmar.data.scenes.vocabulary import UNITS, Split
from mmar.processing import MMARImageProcessor
from mmar.tokenizers import ImageTokenizer, PackedTokenizer, load_image_tokenizer
from mmar.training.config import load_config
from mmar.weight_files import SINGLE

WEIGHTS = Path(__file__).parent / "weights"
FIRST_LESSON = "scenes-look"
"""The configuration that the parts fit: its sizes and its image tokenizer are theirs."""


class EncodedScenes(IterableDataset[tuple[Tensor, ...]]):
    """Endless batches of tokens ``(batch, N, C)`` and what is said of each scene, ``(batch, ...)``.

    Args:
        tokenizer: Encodes the scenes.
        describe: What to say of a scene; picklable.
        split: Of the scenes.
        batch: Scenes in each.
        seed: Names of the stream of scenes: others, other scenes.
    """

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        describe: Callable[[Scene], tuple[Tensor, ...]],
        split: Split,
        batch: int,
        seed: tuple[str, int],
    ) -> None:
        self.tokenizer, self.describe, self.split, self.batch, self.seed = tokenizer, describe, split, batch, seed

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        worker = get_worker_info()
        rng = stream(*self.seed, self.split, 0 if worker is None else worker.id)
        processor = MMARImageProcessor(UNITS, 3)
        while True:
            scenes = [sample_scene(rng, self.split).scene for _ in range(self.batch)]
            tokens = self.tokenizer.encode(processor([draw(scene) for scene in scenes])["pixel_values"])
            yield tokens, *(torch.stack(said) for said in zip(*map(self.describe, scenes), strict=True))


def train_part(
    part: nn.Module,
    loss_of: Callable[..., Tensor],
    scenes: EncodedScenes,
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    workers: int,
    device: str,
    tick: Callable[[int], None],
) -> list[float]:
    """AdamW with a peak rate after 2 % of the steps, then a cosine.

    Args:
        part: On its device.
        loss_of: A batch of ``scenes``, on that device, to a scalar.
        scenes: Endless.
        steps: Optimizer steps.
        lr: Peak rate.
        weight_decay: Of AdamW.
        workers: Processes; with 0 nothing is read beside the training.
        device: Of ``part``.
        tick: Told of each step.

    Returns:
        Mean losses of ten parts of the training, the last ones perhaps shorter.

    Raises:
        FloatingPointError: If a loss is not finite.
    """
    parameters = list(part.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay)
    rate = OneCycleLR(optimizer, lr, total_steps=max(2, steps), pct_start=0.02, cycle_momentum=False)
    loaders = 8 if device == "cuda" else min(1, workers)  # they draw and encode
    batches = iter(DataLoader(scenes, batch_size=None, num_workers=loaders, prefetch_factor=4 if loaders else None))
    losses: list[float] = []
    for step in range(steps):
        loss = loss_of(*(tensor.to(device) for tensor in next(batches)))
        if not loss.isfinite():
            raise FloatingPointError(f"loss must be finite, got {loss.item()} at step {step}; lower lr")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate.step()
        losses.append(loss.item())
        tick(1)
    size = max(1, len(losses) // 10)
    tenths = [losses[start : start + size] for start in range(0, len(losses), size)]
    return [sum(tenth) / len(tenth) for tenth in tenths]


def first_model_config() -> MMARConfig:
    """The model of the first lesson."""
    config = load_config(CONFIGS / f"{FIRST_LESSON}.yaml")
    return MMARConfig.preset(config.model.size or "", **config.model.options)


def first_tokenizer() -> ImageTokenizer:
    """The image tokenizer of the first lesson."""
    chosen = load_config(CONFIGS / f"{FIRST_LESSON}.yaml").tokenizers
    return PackedTokenizer(load_image_tokenizer(chosen.image or ""), chosen.image_patch_size)


def save_part(part: nn.Module, folder: Path) -> dict[str, int]:
    """Write weights in bf16 as ``model.embedding_vit`` and ``model.diffusion_head`` of a training configuration take them.

    Returns:
        The number of ``parameters``, and ``bytes`` of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach().to("cpu", torch.bfloat16).contiguous() for name, p in part.named_parameters()}
    save_file(weights, folder / SINGLE, metadata={"format": "pt"})
    return {"parameters": sum(p.numel() for p in part.parameters()), "bytes": (folder / SINGLE).stat().st_size}
