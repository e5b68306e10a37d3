"""What drawing an image costs: the cached prompt, the steps of both loops, the batch, and who takes the time.

    python tests/benchmarks/generation_speed.py [--quick] [--image-tokenizer FOLDER] [--out FILE]

An untrained model of the size of mmar-scenes (64 tokens), one thread. Competitors take turns and medians are compared, so
ratios travel between machines; times do not. Speed does not depend on what has been learned.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from interleaved import medians, one_thread
from torch import Tensor, nn
from tqdm import tqdm

from experiments.record import make_record, write_json
from mmar.config import MMARConfig
from mmar.generation import ImageGenerationConfig, generate_image_tokens
from mmar.model import MMARForConditionalGeneration
from mmar.precision import native_bf16_matmul
from mmar.tokenizers import load_image_tokenizer


@dataclass(frozen=True)
class Config:
    """What is timed, and how often.

    Attributes:
        preset: Of the model.
        turns: Turns of every competitor.
        ar_steps: Of the slow and the fast run.
        head_steps: Likewise.
        batches: Images at once.
        prompt_lengths: Text tokens before the image, for the cache.
        cache_steps: Autoregressive steps of the runs with and without a cache.
        prompt: Text tokens before the image in the other runs.
        guidance_scale: All runs are guided: two prompts per image.
        bf16: Whether the forward pass is bf16 under autocast: where the processor multiplies bf16 matrices.
    """

    preset: str = "mmar-scenes"
    turns: int = 3
    ar_steps: tuple[int, int] = (64, 16)
    head_steps: tuple[int, int] = (100, 10)
    batches: tuple[int, ...] = (1, 8)
    prompt_lengths: tuple[int, ...] = (16, 64, 256)
    cache_steps: int = 8
    prompt: int = 24
    guidance_scale: float = 3.0
    bf16: bool = native_bf16_matmul()


FULL = Config()
QUICK = replace(
    FULL, preset="mmar-tiny", turns=1, ar_steps=(4, 2), head_steps=(4, 2), batches=(1,), prompt_lengths=(4, 32), cache_steps=2
)


class Drawing:
    """A model and prompts for it."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(0)
        self.config = config
        self.model = MMARForConditionalGeneration(MMARConfig.preset(config.preset)).eval()
        self.block = [
            self.model.image_ids.boi,
            *[self.model.image_ids.image] * self.model.image_ids.count,
            self.model.image_ids.eoi,
        ]

    def run(self, *, batch: int = 1, prompt: int | None = None, use_prefix_cache: bool = True, **options: Any) -> Tensor:
        """Draw a batch."""
        text = [10] * (self.config.prompt if prompt is None else prompt)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
            return generate_image_tokens(
                self.model,
                torch.tensor([[*text, *self.block]] * batch),
                settings=ImageGenerationConfig(guidance_scale=self.config.guidance_scale, **options),
                uncond_input_ids=torch.tensor([[10, *self.block]]),
                generator=torch.Generator().manual_seed(0),
                use_prefix_cache=use_prefix_cache,
            )


def cache_ratios(drawing: Drawing, bar: tqdm) -> dict[str, dict[str, float]]:
    """Recomputing the prompt at each step, beside reading it once, by its length; few diffusion steps, the same for both."""
    config, found = drawing.config, {}
    for length in config.prompt_lengths:
        seconds = medians(
            {
                name: lambda use=use, length=length: drawing.run(
                    prompt=length, use_prefix_cache=use, ar_steps=config.cache_steps, head_steps=2
                )
                for name, use in (("cached", True), ("recomputed", False))
            },
            config.turns,
            bar,
        )
        found[str(length)] = {
            **{f"{name}_s": value for name, value in seconds.items()},
            "recomputed_over_cached": seconds["recomputed"] / seconds["cached"],
        }
    return found


def step_ratios(drawing: Drawing, bar: tqdm) -> dict[str, dict[str, float]]:
    """Images per second by steps and batch, beside the slowest run of the same batch."""
    config = drawing.config
    runs = {
        f"{ar} x {head}, batch {batch}": (ar, head, batch)
        for batch in config.batches
        for ar in config.ar_steps
        for head in config.head_steps
    }
    seconds = medians(
        {
            name: lambda ar=ar, head=head, batch=batch: drawing.run(ar_steps=ar, head_steps=head, batch=batch)
            for name, (ar, head, batch) in runs.items()
        },
        config.turns,
        bar,
    )
    slowest = {batch: seconds[f"{config.ar_steps[0]} x {config.head_steps[0]}, batch {batch}"] for batch in config.batches}
    return {
        name: {"images_per_s": batch / seconds[name], "faster_than_slowest": slowest[batch] / seconds[name]}
        for name, (_, _, batch) in runs.items()
    }


@contextlib.contextmanager
def timed(modules: dict[str, nn.Module]) -> Iterator[dict[str, float]]:
    """Seconds spent in modules that do not contain each other."""
    spent: dict[str, float] = defaultdict(float)
    handles = []
    for name, module in modules.items():

        def before(*_: Any, name: str = name) -> None:
            spent[name] -= time.perf_counter()

        def after(*_: Any, name: str = name) -> None:
            spent[name] += time.perf_counter()

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def shares(drawing: Drawing, folder: Path | None, bar: tqdm) -> dict[str, dict[str, float]]:
    """Share of the time of each part, in the slow and the fast run, by batch; the rest is solver, noise and bookkeeping."""
    model, config, found = drawing.model, drawing.config, {}
    images = model.image_model
    parts = {
        "backbone": model.language_model,
        "embedding_vit": images.input.embedding_vit,
        "vis_projector": images.input.projector,
        "post_projector": images.head.projector,
        "head": images.head.head,
    }
    tokenizer = None if folder is None else load_image_tokenizer(folder)
    for batch in config.batches:
        for ar, head in zip(config.ar_steps, config.head_steps, strict=True):
            with timed(parts) as spent:
                start = time.perf_counter()
                tokens = drawing.run(ar_steps=ar, head_steps=head, batch=batch)
                total = time.perf_counter() - start
            row = {name: spent[name] / total for name in parts}
            row["rest"] = 1.0 - sum(row.values())
            if tokenizer is not None:
                start = time.perf_counter()
                tokenizer.decode(tokens)
                row["image_tokenizer_beside_all_of_these"] = (time.perf_counter() - start) / total
            found[f"{ar} x {head}, batch {batch}"] = row
            bar.update(1)
    return found


def run(config: Config, folder: Path | None = None) -> dict[str, Any]:
    """All three, on one thread."""
    turns = config.turns * (len(config.prompt_lengths) + 1) + 2 * len(config.batches)
    with one_thread(), tqdm(total=turns, unit="turn") as bar:
        drawing = Drawing(config)
        return {
            "prefix_cache": cache_ratios(drawing, bar),
            "ar_steps x head_steps": step_ratios(drawing, bar),
            "shares": shares(drawing, folder, bar),
        }


def show(results: dict[str, Any]) -> str:
    """The tables printed on stdout."""
    lines = [f"{'text tokens in the prompt':<28} recomputed / cached"]
    lines += [f"{length:<28} {row['recomputed_over_cached']:>8.2f}" for length, row in results["prefix_cache"].items()]
    lines += ["", f"{'AR steps x head steps':<28} images/s   times the slowest"]
    lines += [
        f"{name:<28} {row['images_per_s']:>8.3f} {row['faster_than_slowest']:>10.1f}"
        for name, row in results["ar_steps x head_steps"].items()
    ]
    lines += ["", "share of the time"]
    for name, row in results["shares"].items():
        lines.append(f"{name:<28} " + ", ".join(f"{part} {100 * share:.0f} %" for part, share in row.items()))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write a record if asked to."""
    parser = argparse.ArgumentParser(description="What drawing an image costs")
    parser.add_argument("--quick", action="store_true", help="one turn of a tiny model: shows that it runs, measures little")
    parser.add_argument(
        "--image-tokenizer", type=Path, help="folder of an image tokenizer for this model, to time its decoder too"
    )
    parser.add_argument("--out", type=Path, help="write a JSON record there (experiments/records/generation_speed-cpu.json)")
    arguments = parser.parse_args(argv)
    config = QUICK if arguments.quick else FULL
    start = time.monotonic()
    results = run(config, arguments.image_tokenizer)
    print(show(results))
    if arguments.out:
        record = make_record("generation_speed", config, results, duration_s=time.monotonic() - start, device="cpu")
        write_json(record, arguments.out)


if __name__ == "__main__":
    main()
