"""A Qwen2 of two layers, with an image expert that does something, and its twins from transformers and peft."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model

from mmar.config import PLoRAConfig
from mmar.language_model import MMARTextModel
from mmar.plora import TARGETS, image_expert_parameters

WIDTH, RANK, ALPHA = 32, 6, 9.0  # scale 1.5: one that a forgotten factor would show
BATCH, LENGTH = 3, 10


@dataclass(frozen=True)
class Precision:
    """What parameters are stored in, and whether autocast is on."""

    name: str
    base: torch.dtype = torch.float32
    adapter: torch.dtype = torch.float32
    autocast: bool = False

    @property
    def compute(self) -> torch.dtype:
        """Of activations."""
        return torch.bfloat16 if self.autocast else self.base

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            yield


PRECISIONS = (
    Precision("float32"),
    Precision("bf16", torch.bfloat16, torch.bfloat16),
    Precision("autocast", autocast=True),
    Precision("bf16 base", torch.bfloat16),
    Precision("bf16 base, autocast", torch.bfloat16, autocast=True),
)


def tiny_config(**options: Any) -> Qwen2Config:
    sizes = {"vocab_size": 64, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2}
    return Qwen2Config(**{**sizes, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, **options})


def tiny_model(
    precision: Precision = PRECISIONS[0],
    implementation: str = "gather",
    *,
    seed: int = 0,
    rank: int = RANK,
    alpha: float = ALPHA,
) -> MMARTextModel:
    """Weights of order 1 / sqrt(width) and ``lora_B`` away from zero: base and expert matter alike."""
    torch.manual_seed(seed)
    model = MMARTextModel(tiny_config(), PLoRAConfig(rank=rank, alpha=alpha, implementation=implementation))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        elif parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.2)  # biases
    model.to(precision.base)
    for parameter in image_expert_parameters(model):
        parameter.data = parameter.data.to(precision.adapter)
    return model.eval()


def bare_twin(model: MMARTextModel) -> Qwen2Model:
    """Plain Qwen2 with the base weights of ``model``."""
    weights = {k.replace(".base_layer.", "."): v for k, v in model.state_dict().items() if ".lora_" not in k}
    twin = Qwen2Model(model.config).to(model.dtype)
    twin.load_state_dict(weights, strict=True)
    twin.rotary_emb = copy.deepcopy(model.rotary_emb)  # Qwen2Model.to rounds RoPE's frequencies, from_pretrained does not
    return twin.eval()


def peft_twin(model: MMARTextModel, **options: Any) -> PeftModel:
    """An ordinary LoRA of peft with all weights of ``model``."""
    lora = LoraConfig(r=model.plora_config.rank, lora_alpha=model.plora_config.alpha, target_modules=list(TARGETS), **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft 0.21 beside transformers 5.23
        twin = PeftModel(bare_twin(model), lora, autocast_adapter_dtype=False)
    adapters = dict(twin.named_parameters())
    for name, value in model.named_parameters():
        parameter = adapters["base_model.model." + name]
        parameter.data = value.detach().clone()
    return twin.eval()


def embeddings(precision: Precision = PRECISIONS[0], seed: int = 1) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, LENGTH, WIDTH, generator=draws).to(precision.base)


def causal_mask(length: int = LENGTH) -> dict[str, Tensor]:
    """Everybody sees what stands before: how image tokens see one another is no matter of this module."""
    return {"full_attention": torch.ones(BATCH, 1, length, length, dtype=torch.bool).tril()}


def scattered(seed: int = 2) -> Tensor:
    """An image token mask without order."""
    return torch.rand(BATCH, LENGTH, generator=torch.Generator().manual_seed(seed)) < 0.5


def suffix(count: int) -> Tensor:
    """[text | image] in every row."""
    mask = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    mask[:, LENGTH - count :] = True
    return mask


def states(
    model: Any, embeds: Tensor, mask: Tensor | None = None, precision: Precision = PRECISIONS[0], **options: Any
) -> Tensor:
    """Last hidden states under a causal mask; ``mask`` goes to our model only."""
    if mask is not None:
        options["image_token_mask"] = mask
    with precision.on():
        out = model(inputs_embeds=embeds, attention_mask=causal_mask(embeds.shape[1]), use_cache=False, **options)
    return out.last_hidden_state


def loss(out: Tensor) -> Tensor:
    """Any that is not blind to the final norm, behind which the squares of a state have a constant sum."""
    return (out.float() * embeddings(seed=7)).sum()
