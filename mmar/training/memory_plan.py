"""Will it fit, and how fast could it be: ``python -m mmar.training.memory_plan CONFIG --gpus 64``.

Weights, optimizer, average and gradients are counted tensor by tensor from the model itself, on the meta device, and are exact.
Activations and speed are estimates from the formulas below and from assumptions that are printed with them.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mmar.checkpoint import stored_config
from mmar.config import MMARConfig
from mmar.model import MMARForConditionalGeneration
from mmar.training.build import choose_trained
from mmar.training.config import SHARDINGS, TrainingConfig, load_config

GIB, STEP_BYTES, FLOAT32_BYTES, BF16_BYTES = 2**30, 4, 4, 2
CUDA_CONTEXT = GIB
"""Assumed for libraries and communication buffers."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one rank, the first, which holds the most.

    Attributes:
        frozen: Frozen weights and buffers.
        trained: Trained weights, in the dtype they are kept in.
        optimizer: AdamW's two moments of each trained number, and a count of steps for each tensor.
        average: The float32 shadow.
        gradients: Of all trained weights while the optimizer steps.
        gathered: FSDP: weights and gradients that are whole for a while, namely everything outside the decoder and two decoder
            layers. DDP: the buckets that gradients are reduced in. 0 on one rank.
        activations: Estimate; see :func:`activation_bytes`.
    """

    frozen: int
    trained: int
    optimizer: int
    average: int
    gradients: int
    gathered: int
    activations: int

    @property
    def total(self) -> int:
        """Sum."""
        return sum(getattr(self, field.name) for field in fields(self))


def plan_memory(config: TrainingConfig, ranks: int, *, text_tokens: int = 64) -> MemoryPlan:
    """Bytes of a run on each of ``ranks``.

    Args:
        config: With a preset, a Qwen2 with ``size``, or a checkpoint that is there; its ``sharding`` counts.
        ranks: How many.
        text_tokens: Of a row, beside its image.

    Raises:
        ValueError: If ``ranks`` is below 1, or the sizes of the model are not known.
    """
    if ranks < 1:
        raise ValueError(f"ranks must be at least 1, got {ranks}")
    model = empty_model(config)
    parts = ranks if config.sharding == "fsdp" else 1
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    moments = sum(2 * shard_bytes(p, parts) + STEP_BYTES for p in trained)
    return MemoryPlan(
        frozen=_bytes(frozen, parts) + _bytes(model.buffers()),
        trained=_bytes(trained, parts),
        optimizer=moments,
        average=sum(shard_bytes(p, parts) // p.element_size() * FLOAT32_BYTES for p in trained) if config.ema else 0,
        gradients=_bytes(trained, parts),
        gathered=_gathered(model, config, ranks),
        activations=activation_bytes(config, model.config, text_tokens=text_tokens),
    )


def empty_model(config: TrainingConfig) -> MMARForConditionalGeneration:
    """The model of a run without memory, with its dtypes and what is trained.

    Raises:
        ValueError: If its sizes are not known.
    """
    source = config.model
    if source.checkpoint is not None:
        sizes = stored_config(source.checkpoint)
    elif source.preset or source.size:
        sizes = MMARConfig.preset(source.preset or source.size or "", **source.options)
    else:
        raise ValueError("model.size must name a preset where model.qwen2 is a folder, got None; for example mmar-7b")
    with torch.device("meta"):
        model = MMARForConditionalGeneration(sizes)
        model.tie_weights()
    choose_trained(model, config)
    return model


def shard_bytes(tensor: Tensor, parts: int) -> int:
    """Of the first of ``parts`` shards: rows are dealt out in equal numbers, rounded up."""
    rows = tensor.shape[0] if tensor.ndim else 1
    return -(-rows // parts) * (tensor.numel() // max(1, rows)) * tensor.element_size()


def activation_bytes(config: TrainingConfig, model: MMARConfig, *, text_tokens: int) -> int:
    r"""Estimate of what a micro-batch keeps for its backward pass, bf16, with checkpointing:

    .. math:: 2 T H L + 2 T (8 H + 4 I + 7 r) + 2 \cdot 10\, R\, W D + (2 + 4 + 4)\, A V

    inputs of the ``L`` decoder layers of width ``H`` for ``T`` tokens, the inside of one of them (``I`` MLP width, ``r``
    rank), the ``D`` blocks of width ``W`` of the head for ``R`` rows (K noise levels of every image token of a drawn image),
    and logits over ``V`` words of ``A`` text tokens. Without checkpointing the second term is there for each layer.
    EmbeddingViT adds the same two terms, in float32, for its own width.
    """
    text, vit, head = model.text_config, model.embedding_vit_config, model.diffusion_head_config
    rank = model.plora_config.rank if model.plora_config else 0
    tokens = config.batch_size * (text_tokens + model.image_config.count + 2)
    image_tokens = config.batch_size * model.image_config.count
    layers = text.num_hidden_layers
    inside = BF16_BYTES * tokens * (8 * text.hidden_size + 4 * text.intermediate_size + 7 * rank)
    decoder = BF16_BYTES * tokens * text.hidden_size * layers + inside * (1 if config.gradient_checkpointing else layers)
    inner = vit.intermediate_size or 4 * vit.hidden_size
    vit_inside = FLOAT32_BYTES * image_tokens * (8 * vit.hidden_size + 2 * inner)
    blocks = vit.num_hidden_layers
    encoder = FLOAT32_BYTES * image_tokens * vit.hidden_size * blocks
    encoder += vit_inside * (1 if config.gradient_checkpointing else blocks)
    rows = math.ceil(image_tokens * drawn_share(config)) * config.timesteps_per_token
    logits = (BF16_BYTES + 2 * FLOAT32_BYTES) * config.batch_size * text_tokens * text.vocab_size
    return decoder + encoder + BF16_BYTES * 10 * rows * head.width * head.depth + logits


def flops_per_sample(config: TrainingConfig, model: MMARForConditionalGeneration, *, text_tokens: int) -> float:
    r"""Model floating-point operations of a row, forward and backward, recomputation not counted.

    .. math:: 4 P T + 6 P_a N + 12\, T^2 H L + 6 P_h R + 6 P_o N

    A frozen weight costs 2 forward and 2 backward (no gradient of its own) per token, a trained one 6; ``P`` are the frozen
    weights of the decoder, ``P_a`` its adapters, ``P_h`` the head, ``P_o`` EmbeddingViT and projectors; ``T`` tokens of a row,
    ``N`` of its image, ``R`` rows of the head. That masked tokens skip EmbeddingViT is not counted.
    """
    decoder = [(n, p.numel()) for n, p in model.language_model.named_parameters() if n.startswith("layers.")]
    frozen = sum(size for name, size in decoder if "lora_" not in name)
    adapters = sum(size for name, size in decoder if "lora_" in name)
    image_parts = {"head": 0, "other": 0}
    for name, parameter in model.image_model.named_parameters():
        image_parts["head" if ".blocks." in name and name.startswith("head.") else "other"] += parameter.numel()
    text, count = model.config.text_config, model.config.image_config.count
    tokens = text_tokens + count + 2
    rows = count * drawn_share(config) * config.timesteps_per_token
    attention = 12.0 * tokens**2 * text.hidden_size * text.num_hidden_layers
    weights = 4.0 * frozen * tokens + 6.0 * (adapters + image_parts["other"]) * count
    return weights + attention + 6.0 * image_parts["head"] * rows


def drawn_share(config: TrainingConfig) -> float:
    """Share of the samples whose image is drawn."""
    drawn = sum(weight for task, weight in config.tasks.items() if task in ("generation", "unconditional"))
    return drawn / sum(config.tasks.values())


def _gathered(model: MMARForConditionalGeneration, config: TrainingConfig, ranks: int) -> int:
    if ranks == 1:
        return 0
    if config.sharding == "ddp":
        return _bytes(p for p in model.parameters() if p.requires_grad)
    layers = list(model.language_model.layers)
    inside = {id(p) for layer in layers for p in layer.parameters()}
    outside = [p for p in model.parameters() if id(p) not in inside]
    size = BF16_BYTES if config.precision == "bf16" and config.stage != "text" else None
    layer = [
        p.numel() * (size if size and p.requires_grad else p.element_size()) * (1 + p.requires_grad) for p in _all(layers[0])
    ]
    return _bytes(outside) + _bytes(p for p in outside if p.requires_grad) + min(2, len(layers)) * sum(layer)


def _all(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    return list(module.parameters())


def _bytes(tensors: Iterable[Tensor], parts: int = 1) -> int:
    return sum(shard_bytes(tensor, parts) for tensor in tensors)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan of a configuration for every sharding."""
    parser = argparse.ArgumentParser(
        prog="mmar memory plan", description="Memory of each rank of a training run, and its speed."
    )
    parser.add_argument("config", help="YAML file; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--gpus", type=int, default=8, help="ranks (default: 8)")
    parser.add_argument("--memory", type=float, default=80.0, help="GB of each (default: 80)")
    parser.add_argument("--text-tokens", type=int, default=64, help="of a row beside its image; assumed (default: 64)")
    parser.add_argument("--mfu", type=float, default=0.35, help="model FLOPs over peak FLOPs; assumed (default: 0.35)")
    parser.add_argument("--peak-tflops", type=float, default=312.0, help="of each, dense bf16 (default: 312)")
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = load_config(arguments.config, arguments.overrides)
        print(report(config, arguments))
    except (ValueError, FileNotFoundError) as error:
        print(f"mmar memory plan: {error}", file=sys.stderr)
        return 2
    return 0


def report(config: TrainingConfig, arguments: argparse.Namespace) -> str:
    """The plan as a table in GB (1e9 bytes), one column per sharding, and the speed."""
    plans = {}
    for sharding in SHARDINGS:
        config.sharding = sharding
        plans[sharding] = plan_memory(config, arguments.gpus, text_tokens=arguments.text_tokens)
    rows = [f"{'GB on each of ' + str(arguments.gpus):24}" + "".join(f"{name:>10}" for name in plans)]
    for name in [field.name for field in fields(MemoryPlan)] + ["total"]:
        label = f"{name} (estimate)" if name == "activations" else name
        rows.append(f"{label:24}" + "".join(f"{getattr(plan, name) / 1e9:10.2f}" for plan in plans.values()))
    fits = [p.total + CUDA_CONTEXT <= arguments.memory * 1e9 for p in plans.values()]
    rows.append(f"{'fits':24}" + "".join(f"{'yes' if fit else 'no':>10}" for fit in fits))
    model = empty_model(config)
    flops = flops_per_sample(config, model, text_tokens=arguments.text_tokens)
    samples = arguments.mfu * arguments.peak_tflops * 1e12 * arguments.gpus / flops
    tokens = samples * (arguments.text_tokens + model.config.image_config.count + 2)
    batch = config.batch_size * config.accumulation * arguments.gpus
    rows.append(
        f"batch {batch}; {flops / 1e12:.2f} model TFLOPs a sample; at an assumed MFU of {arguments.mfu:g} of "
        f"{arguments.peak_tflops:g} TFLOPS: {samples:.0f} samples/s, {tokens:.0f} tokens/s, "
        f"{config.steps * batch / samples / 86400:.1f} days for {config.steps} steps"
    )
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
