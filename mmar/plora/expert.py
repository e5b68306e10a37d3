"""The image expert of a language model: PLoRA on every linear layer of every decoder layer (paper section 3.3.2)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import Qwen2Model
from transformers import initialization as init

from mmar.config import PLoRAConfig
from mmar.plora.linear import PLoRALinear
from mmar.plora.rows import RowsInbox
from mmar.precision import compute_dtype

ADAPTER = "default"
"""Its name in peft, and in the keys of a checkpoint."""

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All linear layers of a decoder layer."""


def add_image_expert(model: Qwen2Model, config: PLoRAConfig) -> None:
    """Put a PLoRA on every linear layer of every decoder layer; everything else stops requiring gradients.

    Parameters keep their values under new names: ``q_proj.weight`` becomes ``q_proj.base_layer.weight``. The expert starts as
    peft starts LoRA, with ``lora_B`` zero.

    Args:
        model: Changed in place.
        config: Rank, alpha and implementation.

    Raises:
        ValueError: If the model has an expert already, or its decoder layers have other linear layers than Qwen2's.
    """
    if any(image_expert_layers(model)):
        raise ValueError("model must not have an image expert yet, got one; build it anew or load other adapter weights")
    inject_adapter_in_model(_lora_config(config), model, ADAPTER)
    for layer in model.layers:
        inbox = RowsInbox()
        cast(nn.Module, layer.self_attn).register_forward_pre_hook(inbox.take, with_kwargs=True)
        for linear in image_expert_layers(layer):
            linear.inbox, linear.implementation = inbox, config.implementation
            for leaf, start in zip(linear.factors(ADAPTER), ("kaiming", "zeros"), strict=True):
                cast(Any, leaf).adapter_start = start
    found, wanted = sum(1 for _ in image_expert_layers(model)), len(TARGETS) * len(model.layers)
    if found != wanted:
        raise ValueError(
            f"model must have the linear layers {', '.join(TARGETS)} in each decoder layer, got {found} of {wanted}"
        )


def start_adapter(module: nn.Module) -> bool:
    """Initialise a leaf of the expert, ``lora_A`` as peft does and ``lora_B`` at zero; False for any other module.

    For ``_init_weights``: transformers' own rule makes both normal, and rules for the layers that hold them never run, for
    those have no parameters of their own.
    """
    start = getattr(module, "adapter_start", None)
    if start is None:
        return False
    weight = cast(nn.Linear, module).weight
    if start == "zeros":
        init.zeros_(weight)
    else:
        init.kaiming_uniform_(weight, a=math.sqrt(5))
    return True


def image_expert_layers(model: nn.Module) -> Iterator[PLoRALinear]:
    """The adapted layers of a model, in its order."""
    return (module for module in model.modules() if isinstance(module, PLoRALinear))


def image_expert_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of the expert, ``lora_A`` and ``lora_B`` of each layer in turn."""
    for layer in image_expert_layers(model):
        yield from (cast(nn.Parameter, factor.weight) for factor in layer.factors(ADAPTER))


@contextlib.contextmanager
def merged_image_expert(model: nn.Module, *, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Within it, calls without gradients in which all tokens are image tokens use ``W + alpha / r * B A`` as one weight.

    Meant for drawing images, where the prefix of text is cached and every further call feeds image tokens alone. All other
    calls go the usual way, and the base weights are never written, so that they are the same bits afterwards. The price is a
    second copy of the decoder's weights. Weights must not change within.

    Args:
        model: Any model with an image expert.
        dtype: Of the second weights: by default that of autocast where it is on, else that of the base.
    """
    layers = list(image_expert_layers(model))
    try:
        for layer in layers:
            layer.keep_merged_weight(compute_dtype(layer.base.weight) if dtype is None else dtype)
        yield
    finally:
        for layer in layers:
            layer.drop_merged_weight()


def _lora_config(config: PLoRAConfig) -> LoraConfig:
    alpha = config.rank if config.alpha is None else config.alpha
    whole = int(alpha)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=whole if whole == alpha else cast(Any, alpha),  # peft computes with any number, and writes whole ones
        target_modules=list(TARGETS),
        lora_dropout=0.0,
        bias="none",
    )
    lora._register_custom_module({nn.Linear: PLoRALinear})
    return lora
