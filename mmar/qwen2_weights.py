"""The weights of a plain Qwen2 for a text model with an image expert."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, Qwen2Config, Qwen2ForCausalLM

from mmar.language_model import MMARTextModel
from mmar.weight_files import TensorSource, copy_strictly

LM_HEAD = "lm_head.weight"

_NUMBERS_THAT_WEIGHTS_DO_NOT_SHOW = (
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "layer_types",
)


def qwen2_key_map(text_model: MMARTextModel) -> dict[str, str]:
    """From the names of ``Qwen2Model`` to those of the text model, without the expert.

    ``layers.0.mlp.up_proj.weight`` becomes ``layers.0.mlp.up_proj.base_layer.weight``, ``norm.weight`` stays. A checkpoint of
    ``Qwen2ForCausalLM`` has ``model.`` before each name, and ``lm_head.weight``.
    """
    names = (name for name in text_model.state_dict() if ".lora_" not in name)
    return {name.replace(".base_layer.", "."): name for name in names}


def load_qwen2_weights(text_model: MMARTextModel, source: Mapping[str, Tensor] | str | Path) -> Tensor | None:
    """Copy the weights of a plain Qwen2 into the text model, one tensor at a time; the expert stays as it is.

    Args:
        text_model: Changed in place, all or nothing; its dtype is kept.
        source: State dict of a ``Qwen2Model`` or ``Qwen2ForCausalLM``, or a folder as transformers saves it, in one safetensors
            file or several.

    Returns:
        The weight of the language model head, ``(vocab, hidden)``; None where the source has none. Then it is tied: use that of
        ``embed_tokens``.

    Raises:
        ValueError: If weights are missing, left over or of another shape, or the ``config.json`` of a folder asks for other
            arithmetic than the text model's.
        FileNotFoundError: If a file is not there.
    """
    if not isinstance(source, Mapping) and (Path(source) / "config.json").is_file():
        _check_config(text_model.config, AutoConfig.from_pretrained(source))
    tensors = TensorSource.of(source)
    prefix = "model." if any(name.startswith("model.") for name in tensors.shapes) else ""
    names = {prefix + plain: own for plain, own in qwen2_key_map(text_model).items()}
    body = TensorSource(tensors.origin, {n: s for n, s in tensors.shapes.items() if n != LM_HEAD}, tensors.read)
    targets = {own: tensor for own, tensor in text_model.state_dict().items() if ".lora_" not in own}
    copy_strictly(body.renamed(names), targets, remedy="build the model with the text_config of this checkpoint")
    return tensors.read(LM_HEAD) if LM_HEAD in tensors.shapes else None


def qwen2_fields(config: Qwen2Config) -> dict[str, Any]:
    """What only a ``Qwen2Config`` knows, without what every configuration of transformers has."""
    own = {field.name for field in dataclasses.fields(Qwen2Config)} - {f.name for f in dataclasses.fields(PreTrainedConfig)}
    return {name: getattr(config, name) for name in sorted(own)}


def save_qwen2(text_model: MMARTextModel, folder: str | Path, *, lm_head: Tensor | None = None) -> None:
    """Write the frozen language model, without the expert, as transformers writes a Qwen2: what a new model can start from.

    Args:
        text_model: Whose base weights are written, in their dtype.
        folder: Made where it is not there.
        lm_head: ``(vocab, hidden)`` where the configuration does not tie it to the embedding.

    Raises:
        ValueError: If the configuration unties the head and there is none.
    """
    config = text_model.config
    if lm_head is None and not config.tie_word_embeddings:
        raise ValueError("lm_head must be given where tie_word_embeddings is False, got None; pass model.lm_head.weight")
    state, weight = text_model.state_dict(), text_model.embed_tokens.weight
    with torch.device("meta"):
        plain = Qwen2ForCausalLM(Qwen2Config(**qwen2_fields(config)))
    tensors = {f"model.{name}": state[own].clone() for name, own in qwen2_key_map(text_model).items()}
    tensors[LM_HEAD] = tensors["model.embed_tokens.weight"] if lm_head is None else lm_head.detach()
    plain.load_state_dict(tensors, assign=True)
    plain.tie_weights()
    plain.to(weight.dtype).save_pretrained(folder)


def _check_config(ours: Qwen2Config, theirs: Qwen2Config) -> None:
    if theirs.model_type != "qwen2":
        raise ValueError(f"the checkpoint must be a Qwen2, got model_type {theirs.model_type!r}; use a folder of plain Qwen2")
    pairs = {name: (getattr(ours, name), getattr(theirs, name)) for name in _NUMBERS_THAT_WEIGHTS_DO_NOT_SHOW}
    different = [f"{name} {theirs} instead of {ours}" for name, (ours, theirs) in pairs.items() if ours != theirs]
    if different:
        raise ValueError(
            f"text_config must be that of the checkpoint, got {'; '.join(different)}; build the model with the checkpoint's"
        )
