"""What the image expert costs, as ratios to the same decoder with an ordinary LoRA of peft.

    python tests/benchmarks/plora_speed.py [--quick] [--out experiments/records/plora_speed-cpu.json]

A frozen Qwen2, one thread. Competitors take turns and medians are compared. Three batches: text around images, images alone
(as in the autoregressive steps, where the text is cached), and text alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from interleaved import medians, one_thread, run_benchmark
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from tqdm import tqdm
from transformers import Qwen2Config

from mmar.config import PLoRAConfig
from mmar.language_model import MMARTextModel
from mmar.plora import TARGETS, merged_image_expert
from mmar.precision import native_bf16_matmul

REFERENCE = "lora"
PRECISIONS = {
    "float32": (torch.float32, torch.float32, False),
    "autocast": (torch.float32, torch.float32, True),
    "autocast, bf16 base": (torch.bfloat16, torch.float32, True),
    "bf16": (torch.bfloat16, torch.bfloat16, False),
}
"""Dtypes of the frozen and of the trained parameters, and whether autocast to bf16 is on."""


@dataclass(frozen=True)
class Config:
    """What is timed, and how often.

    Attributes:
        turns: Turns of every competitor.
        width: Of the decoder; the MLP has 5.4 times as much, heads have 64, as in Qwen2-0.5B.
        layers: Of the decoder.
        rank: Of the expert: 4/7 of the width, as in MMAR-0.5B.
        rows: Sequences of a batch.
        text: Text tokens of a sequence.
        image: Image tokens of a sequence.
        peft: Version compared with.
        native_bf16: Whether the processor multiplies bf16 matrices.
    """

    turns: int = 15
    width: int = 448
    layers: int = 3
    rank: int = 256
    rows: int = 4
    text: int = 64
    image: int = 64
    peft: str = version("peft")
    native_bf16: bool = native_bf16_matmul()


FULL = Config()
QUICK = replace(FULL, turns=1, width=64, layers=1, rank=32, rows=1, text=4, image=4)


def text_config(config: Config) -> Qwen2Config:
    """A slice of Qwen2-0.5B."""
    return Qwen2Config(
        vocab_size=64,
        hidden_size=config.width,
        intermediate_size=config.width * 38 // 7,
        num_hidden_layers=config.layers,
        num_attention_heads=config.width // 64,
        num_key_value_heads=1,
    )


def build(name: str, config: Config, base: torch.dtype, adapter: torch.dtype) -> MMARTextModel:
    """A competitor: base (no expert), lora (peft's, on all tokens), gather or mask; ``lora_B`` is not zero."""
    torch.manual_seed(0)
    with_expert = name in ("gather", "mask", "merged")
    implementation = "mask" if name == "mask" else "gather"
    expert = PLoRAConfig(rank=config.rank, implementation=implementation) if with_expert else None
    model = MMARTextModel(text_config(config), expert)
    if name == REFERENCE:
        inject_adapter_in_model(LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=list(TARGETS)), model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.02)
        parameter.data = parameter.data.to(adapter if parameter.requires_grad else base)
    return model


def batches(config: Config, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """Arguments of the model by kind of batch."""
    length = config.text + config.image
    draws = torch.Generator().manual_seed(0)
    embeds = torch.randn(config.rows, length, config.width, generator=draws).to(dtype)
    mask = torch.zeros(config.rows, length, dtype=torch.bool)
    mask[:, config.text // 2 : config.text // 2 + config.image] = True

    def arguments(part: slice, image_token_mask: Tensor | None) -> dict[str, Any]:
        size = embeds[:, part].shape[1]
        attend = torch.ones(config.rows, 1, size, size, dtype=torch.bool).tril()
        return {
            "inputs_embeds": embeds[:, part],
            "attention_mask": {"full_attention": attend},
            "image_token_mask": image_token_mask,
            "use_cache": False,
        }

    return {
        "text and images": arguments(slice(None), mask),
        "images": arguments(slice(config.image), torch.ones_like(mask[:, : config.image])),
        "text": arguments(slice(config.text), None),
    }


def call(model: MMARTextModel, arguments: dict[str, Any], *, train: bool, autocast: bool) -> None:
    """One forward pass, or one with its backward pass."""
    if train:  # gradients reach the embeddings, as they do from the image tokens' projector
        arguments = {**arguments, "inputs_embeds": arguments["inputs_embeds"].detach().requires_grad_()}
    with torch.set_grad_enabled(train):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(**arguments).last_hidden_state
        if train:
            out.float().sum().backward()


@contextlib.contextmanager
def ready(models: dict[str, MMARTextModel], *, autocast: bool) -> Iterator[None]:
    """Merge the one that is to be merged."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        merging = merged_image_expert(models["merged"]) if "merged" in models else contextlib.nullcontext()
        merging.__enter__()
    try:
        yield
    finally:
        merging.__exit__(None, None, None)


def ratios(config: Config, precision: str, bar: tqdm) -> dict[str, dict[str, float]]:
    """By batch and pass, times over that of the ordinary LoRA, and its seconds."""
    base, adapter, autocast = PRECISIONS[precision]
    models = {name: build(name, config, base, adapter) for name in ("base", REFERENCE, "gather", "mask", "merged")}
    found = {}
    with ready(models, autocast=autocast):
        for batch, arguments in batches(config, adapter).items():
            for train in (False, True):
                if train and batch == "text":
                    continue  # nothing to train
                names = [name for name in models if name != "merged" or (batch == "images" and not train)]
                calls = {name: caller(models[name], arguments, train=train, autocast=autocast) for name in names}
                seconds = medians(calls, config.turns, bar)
                key = f"{batch}, {'forward and backward' if train else 'forward'}"
                found[key] = {f"{name}_over_{REFERENCE}": value / seconds[REFERENCE] for name, value in seconds.items()}
                found[key] = {**found[key], f"{REFERENCE}_s": seconds[REFERENCE]}
    return found


def caller(model: MMARTextModel, arguments: dict[str, Any], *, train: bool, autocast: bool) -> Callable[[], None]:
    """Bind a call."""
    return lambda: call(model, arguments, train=train, autocast=autocast)


def run(config: Config) -> dict[str, Any]:
    """All ratios by precision, on one thread."""
    with one_thread(), tqdm(total=len(PRECISIONS) * 5 * config.turns, unit="turn") as bar:
        return {precision: ratios(config, precision, bar) for precision in PRECISIONS}


def show(results: dict[str, Any]) -> str:
    """A line per batch, pass and precision."""
    names = ("base", "gather", "mask", "merged")
    heads = "".join(f"{name:>9}" for name in names)
    lines = [f"{'time over that of an ordinary LoRA':<58}{heads}  LoRA, ms"]
    for precision, rows in results.items():
        for key, row in rows.items():
            cells = [row.get(f"{name}_over_{REFERENCE}") for name in names]
            shown = "".join(f"{'' if x is None else f'{x:.2f}':>9}" for x in cells)
            lines.append(f"{precision + ': ' + key:<58}{shown}{1e3 * row[f'{REFERENCE}_s']:>10.0f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write a record if asked to."""
    run_benchmark("plora_speed", "What the image expert costs beside an ordinary LoRA", FULL, QUICK, run, show, argv)


if __name__ == "__main__":
    main()
