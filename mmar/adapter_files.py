"""The image expert on disk, in peft's format: ``adapter_config.json`` and ``adapter_model.safetensors``.

Tensors have the names and layout that peft gives an ordinary LoRA on ``Qwen2ForCausalLM``. Only ``peft_type`` differs: peft
would load the folder as an ordinary LoRA, which adapts text as well, and say nothing. With this ``peft_type`` it refuses, and
its message shows the text of :data:`PEFT_TYPE`.

To read the folder as an ordinary LoRA on purpose, set ``"peft_type": "LORA"`` in a copy of ``adapter_config.json``. Every token
is adapted then, which is right for sequences of image tokens alone. The other way round is :func:`load_adapter` with
``convert=True``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from mmar.language_model import MMARTextModel
from mmar.plora import ADAPTER, TARGETS, image_expert_layers
from mmar.weight_files import TensorSource, copy_strictly

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""File names of peft."""

PEFT_TYPE = "PLORA: a LoRA for image tokens only, which peft cannot apply; load it with mmar.adapter_files.load_adapter"
"""Value of ``peft_type``. peft knows none such and raises ``KeyError`` with this text; what counts is before the colon."""

PREFIX = "base_model.model.model."
"""Before each name: what peft and ``Qwen2ForCausalLM`` wrap around the decoder."""

_COMPARED = {"peft_type", "r", "lora_alpha", "target_modules"}
_ABOUT_THE_FILE = {"peft_version", "task_type", "base_model_name_or_path", "revision", "auto_mapping", "inference_mode"}
_OF_TRAINING = {"lora_dropout"}
"""Options that are looked at one by one, or change nothing in what a LoRA computes."""


def save_adapter(model: MMARTextModel, folder: str | Path) -> None:
    """Write the image expert.

    Args:
        model: A text model with an expert.
        folder: Made if it is not there.

    Raises:
        ValueError: If the model has no expert.
    """
    config = _adapter_config(model)
    tensors = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    Path(folder).mkdir(parents=True, exist_ok=True)
    named = {PREFIX + name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(named, Path(folder) / WEIGHTS, metadata={"format": "pt"})
    options = config.to_dict() | {
        "peft_type": PEFT_TYPE,
        "target_modules": sorted(config.target_modules),
        "inference_mode": True,
    }
    (Path(folder) / CONFIG).write_text(json.dumps(options, indent=2, sort_keys=True) + "\n")


def load_adapter(model: MMARTextModel, folder: str | Path, *, convert: bool = False) -> None:
    """Read the image expert into a model that has one of the same rank; all or nothing.

    Args:
        model: Changed in place; its dtype is kept.
        folder: As :func:`save_adapter` writes it.
        convert: Take an ordinary LoRA of peft, for all seven linear layers, and apply it to image tokens only.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If the folder holds another method, rank, scale or set of layers than the model, or its tensors do not fit.
    """
    config = _adapter_config(model)
    path = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{folder} must hold {CONFIG} and {WEIGHTS}, got no {name}; save_adapter writes both")
    options = json.loads((path / CONFIG).read_text())
    _check_method(options, convert)
    _check_options(options, config)
    tensors = TensorSource.of(path / WEIGHTS)
    copy_strictly(_unprefixed(tensors), _targets(model), remedy="load it into the model that it was trained in")


def _adapter_config(model: MMARTextModel) -> LoraConfig:
    if not any(image_expert_layers(model)):
        raise ValueError("model must have an image expert, got none; build MMARTextModel with a PLoRAConfig")
    return cast(LoraConfig, model.peft_config[ADAPTER])


def _targets(model: MMARTextModel) -> dict[str, Tensor]:
    own = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name}
    return {name.replace(f".{ADAPTER}.", "."): tensor for name, tensor in own.items()}


def _unprefixed(tensors: TensorSource) -> TensorSource:
    """A LoRA of ``Qwen2Model`` alone has a shorter prefix."""
    prefix = PREFIX if all(name.startswith(PREFIX) for name in tensors.shapes) else PREFIX.removesuffix("model.")
    return tensors.renamed({name: name.removeprefix(prefix) for name in tensors.shapes})


def _check_method(options: dict[str, Any], convert: bool) -> None:
    method = str(options.get("peft_type")).partition(":")[0]
    if method == "LORA" and not convert:
        raise ValueError(
            "peft_type must be PLORA, got 'LORA': an ordinary LoRA, which adapts text as well; load_adapter(..., convert=True) "
            "takes it and applies it to image tokens only"
        )
    if method not in ("PLORA", "LORA"):
        raise ValueError(
            f"peft_type must be PLORA, or LORA with convert=True, got {method!r}; other methods cannot be converted"
        )


def _check_options(options: dict[str, Any], config: LoraConfig) -> None:
    targets = options.get("target_modules")
    found = {"r": options.get("r"), "lora_alpha": options.get("lora_alpha"), "target_modules": _as_set(targets)}
    wanted = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": set(TARGETS)}
    for name, value in wanted.items():
        if found[name] != value:
            raise ValueError(
                f"{name} must be {_shown(value)}, as in the model, got {_shown(found[name])}; build the model with the rank "
                f"and alpha of the adapter, which covers {', '.join(TARGETS)}"
            )
    plain = LoraConfig().to_dict()
    others = options.keys() - _COMPARED - _ABOUT_THE_FILE - _OF_TRAINING
    strange = sorted(name for name in others if not _is_plain(name, options[name], plain))
    if strange:
        found_text = ", ".join(f"{name}={options[name]!r}" for name in strange)
        raise ValueError(
            f"the adapter must be plain LoRA, got {found_text}; these change what it computes, or are unknown to this peft"
        )


def _is_plain(name: str, value: Any, plain: dict[str, Any]) -> bool:
    """Whether an option is as in an ordinary LoRA; how random weights were drawn does not matter."""
    if name == "init_lora_weights":
        return value in (True, False, "gaussian")
    return (value or None) == (plain.get(name) or None)


def _as_set(targets: Any) -> set[str] | str | None:
    return set(targets) if isinstance(targets, list) else targets


def _shown(value: Any) -> str:
    return ", ".join(sorted(value)) if isinstance(value, set) else repr(value)
