"""What a training step of each system costs, and what running the head on masked tokens alone saves; ratios of one run.

    python tests/benchmarks/mmar_training_speed.py [--quick] [--out experiments/records/mmar_training_speed-cpu.json]

One thread, medians of interleaved turns. A step is forward, backward and AdamW on images to draw and images to read, half each,
in bf16 under autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from interleaved import medians, one_thread, run_benchmark
from torch import Tensor
from tqdm import tqdm

from mmar.baselines import BASELINES, baseline_config
from mmar.config import ImageTokensConfig, MMARConfig
from mmar.image_head import DiffusionTokenHead
from mmar.masking import draw_known
from mmar.model import MMARForConditionalGeneration
from mmar.precision import native_bf16_matmul


@dataclass(frozen=True)
class Config:
    """What is timed.

    Attributes:
        preset: Size.
        systems: Keys of BASELINES.
        images: Per step; half are drawn.
        text: Text tokens of each row.
        mask_ratio: Share of masked tokens of the drawn ones, the mean of stage 1.
        turns: Of every competitor.
        native_bf16: Whether the processor multiplies bf16 matrices.
    """

    preset: str = "mmar-scenes"
    systems: tuple[str, ...] = (
        "mmar",
        "epsilon",
        "vq",
        "vq-projector",
        "transfusion",
        "transfusion-vit",
        "raster",
        "chameleon",
    )
    images: int = 16
    text: int = 32
    mask_ratio: float = 0.867
    turns: int = 9
    native_bf16: bool = native_bf16_matmul()


FULL = Config()
QUICK = Config("mmar-tiny", ("mmar", "vq", "transfusion"), 2, 4, turns=1)


def training_step(config: Config, name: str) -> Callable[[], None]:
    """One step of a system, on the same images and text."""
    base = MMARConfig.preset(config.preset)
    image = base.image_config
    codes = ImageTokensConfig(**{**image.to_dict(), "tokenizer": "vq", "codebook_size": 512})
    torch.manual_seed(0)
    model = MMARForConditionalGeneration(
        baseline_config(base, name, image_config=codes if BASELINES[name].needs_codes else None)
    )
    optimizer = torch.optim.AdamW((p for p in model.train().parameters() if p.requires_grad), lr=1e-4)
    batch = _batch(model, config)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch, generator=torch.Generator().manual_seed(0)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _batch(model: MMARForConditionalGeneration, config: Config) -> dict[str, Tensor]:
    g, image, ids = torch.Generator().manual_seed(1), model.config.image_config, model.image_ids
    half, n = config.images // 2, config.images
    block = torch.tensor([ids.boi, *[ids.image] * image.count, ids.eoi]).expand(half, -1)
    text = torch.randint(10, 200, (n, config.text), generator=g)
    input_ids = torch.cat([torch.cat([text[:half], block], 1), torch.cat([block, text[half:]], 1)])
    labels = torch.full_like(input_ids, -100)
    labels[half:, -config.text // 2 :] = input_ids[half:, -config.text // 2 :]
    shape = (n, image.count) if model.config.has_codes else (n, image.count, image.channels)
    tokens = torch.randint(512, shape, generator=g) if model.config.has_codes else torch.randn(shape, generator=g)
    targets = torch.arange(n) < half
    batch = {"input_ids": input_ids, "labels": labels, "image_tokens": tokens, "image_targets": targets}
    if model.config.is_masked:
        known = draw_known(n, image.count, config.mask_ratio, g)
        batch["known"] = known | ~targets[:, None]
    return batch


def head_steps(config: Config) -> dict[str, Callable[[], None]]:
    """Forward and backward of the diffusion head: masked tokens gathered first, or all tokens with the loss masked after."""
    model_config = MMARConfig.preset(config.preset)
    image, width = model_config.image_config, model_config.text_config.hidden_size
    head = DiffusionTokenHead(model_config)
    z, tokens = torch.randn(config.images, image.count, width), torch.randn(config.images, image.count, image.channels)
    masked = ~draw_known(config.images, image.count, config.mask_ratio)

    def run(z: Tensor, tokens: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = head.loss(z, tokens).mean
        loss.backward()

    return {
        "gathered": lambda: run(z[masked], tokens[masked]),
        "all_tokens": lambda: run(z.flatten(0, 1), tokens.flatten(0, 1)),
    }


def run(config: Config) -> dict[str, Any]:
    """Seconds, and ratios to MMAR and to the gathered head."""
    with one_thread(), tqdm(total=2 * config.turns, unit="turn") as bar:
        systems = medians({name: training_step(config, name) for name in config.systems}, config.turns, bar)
        head = medians(head_steps(config), config.turns, bar)
    return {
        "step_s": systems,
        "step_over_mmar": {name: value / systems["mmar"] for name, value in systems.items()},
        "head_s": head,
        "all_tokens_over_gathered": head["all_tokens"] / head["gathered"],
    }


def show(results: dict[str, Any]) -> str:
    """A line per system, then the head."""
    lines = [f"{'training step':20}{'seconds':>10}{'/ mmar':>10}"]
    lines += [f"{name:20}{value:10.3f}{results['step_over_mmar'][name]:10.2f}" for name, value in results["step_s"].items()]
    lines.append(f"head on all tokens over head on masked tokens: {results['all_tokens_over_gathered']:.2f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write a record if asked to."""
    run_benchmark("mmar_training_speed", "What a training step of each system costs", FULL, QUICK, run, show, argv)


if __name__ == "__main__":
    main()
