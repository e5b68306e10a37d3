"""How large are the paper's models, and does MMAR-0.5B take a training step on one CPU machine?

Parameters are counted on the meta device, where nothing is allocated. Then a real forward and backward of a preset at batch 1:
an image to draw and an image to read, bf16 under autocast with float32 trained parameters over a frozen bf16 language model.
Weights are random: sizes, memory and time do not depend on their values.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.command import run_command
from mmar.config import MMARConfig
from mmar.masking import draw_known
from mmar.model import MMARForConditionalGeneration
from mmar.parameter_parts import part_sizes
from mmar.precision import autocast

PAPER = {"mmar-0.5b": {"plora": 281.5, "embedding_vit": 201.5, "head": 46.4}, "mmar-7b": {"plora": 3229.6, "head": 272.0}}
"""Millions, counted by hand from section 3.3.2: ranks 512 and 1280 on every linear layer, 16 x 1024 ViT, 8 x 1024 and 12 x 2048
heads. The paper prints the sizes, not the counts."""


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        counted: Presets of MMARConfig to count.
        run: The one to run.
        steps: Training steps; the first one allocates.
        text: Text tokens of each row.
        seed: Of weights and batch.
        device: Where it runs.
    """

    counted: tuple[str, ...] = ("mmar-0.5b", "mmar-7b")
    run: str = "mmar-0.5b"
    steps: int = 2
    text: int = 64
    seed: int = 0
    device: str = "cpu"


PRESETS = {
    "smoke": Config(("mmar-tiny",), "mmar-tiny"),
    "quick": Config(("mmar-tiny", "mmar-digits", "mmar-scenes", "mmar-0.5b", "mmar-7b"), "mmar-scenes"),
    "cpu": Config(("mmar-tiny", "mmar-digits", "mmar-scenes", "mmar-0.5b", "mmar-7b")),
    "gpu": Config(("mmar-0.5b", "mmar-7b"), "mmar-7b", device="cuda"),
}


def count_parameters(name: str) -> dict[str, float]:
    """Millions of parameters of each part of a preset, without allocating any."""
    with torch.device("meta"):
        model = MMARForConditionalGeneration(MMARConfig.preset(name))
    parts = part_sizes((key, parameter.numel()) for key, parameter in model.named_parameters())
    counts = {key: part.parameters for key, part in parts.items()}
    counts["trained"] = sum(part.trained for part in parts.values())
    return {key: value / 1e6 for key, value in counts.items()}


def make_model(config: Config) -> MMARForConditionalGeneration:
    """Random weights, the frozen ones in bf16."""
    torch.manual_seed(config.seed)
    with torch.device(config.device):
        model = MMARForConditionalGeneration(MMARConfig.preset(config.run))
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model.train()


def make_batch(model: MMARForConditionalGeneration, config: Config) -> dict[str, Any]:
    """A caption with an image to draw, and an image with a question and an answer."""
    g = torch.Generator().manual_seed(config.seed)
    image, ids = model.config.image_config, model.image_ids
    block = torch.tensor([ids.boi, *[ids.image] * image.count, ids.eoi])
    text = torch.randint(10, model.config.text_config.vocab_size // 2, (2, config.text), generator=g)
    input_ids = torch.stack([torch.cat([text[0], block]), torch.cat([block, text[1]])])
    labels = torch.full_like(input_ids, -100)
    labels[1, -config.text // 2 :] = input_ids[1, -config.text // 2 :]
    known = draw_known(2, image.count, 0.85, g)
    known[1] = True
    tokens = torch.randn(2, image.count, image.channels, generator=g)
    batch = {"input_ids": input_ids, "labels": labels, "image_tokens": tokens, "known": known}
    return {key: value.to(config.device) for key, value in batch.items()}


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """Count, then step."""
    counts = {name: count_parameters(name) for name in config.counted}
    model = make_model(config)
    batch, steps = make_batch(model, config), []
    for _ in tqdm(range(config.steps), unit="step"):
        start = time.perf_counter()
        with autocast(config.device, torch.bfloat16):
            output = model(**batch, generator=torch.Generator().manual_seed(config.seed))
        middle = time.perf_counter()
        output.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        end = time.perf_counter()
        steps.append({"forward_s": middle - start, "backward_s": end - middle, "loss": output.loss.item(), "norm": norm.item()})
        model.zero_grad()
    return {"parameters_millions": counts, "steps": steps, "peak_gib": _peak_gib(config.device)}


def show(record: dict[str, Any]) -> str:
    """Tables of parts, then the step."""
    results = record["results"]
    counts = results["parameters_millions"]
    parts = list(next(iter(counts.values())))
    lines = ["millions of parameters", f"{'':24}" + "".join(f"{name:>13}" for name in counts)]
    lines += [f"{part:24}" + "".join(f"{counts[name][part]:13.1f}" for name in counts) for part in parts]
    last = results["steps"][-1]
    lines.append(f"\n{record['config']['run']}: forward {last['forward_s']:.1f} s, backward {last['backward_s']:.1f} s,")
    lines.append(f"peak memory {results['peak_gib']:.1f} GiB, loss {last['loss']:.3f}")
    return "\n".join(lines)


def _peak_gib(device: str) -> float:
    """Of this process, or of the accelerator."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


def main() -> None:
    run_command("model_size", __doc__.splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
