"""The strict door to checkpoints: what is loaded is what was saved, with the meaning it was saved with.

transformers re-initialises what a checkpoint lacks, drops what it has too much, and takes the configuration that it is given,
each with a line in the log. Here each is an error.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from diffparam.report.errors import NotARescaling
from diffparam.report.rescaling import constant_factor
from mmar.config import MMARConfig
from mmar.qwen2_start import config_on_qwen2, fill_from_qwen2, take_end_tokens

_FREE = {
    "": {"image_loss_weight", "initializer_range"},
    "text_config": {"initializer_range", "use_cache", "attention_dropout", "max_position_embeddings"}
    | {"bos_token_id", "eos_token_id", "pad_token_id"},
    "diffusion_head_config": {"timesteps_per_token", "loss_space"},
    "schedule_config": {"image_first_timesteps"},
    "plora_config": {"implementation"},
}
"""Options of training or speed: the same weights compute the same function under any of them."""

_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
"""Options of transformers that say where a checkpoint is."""

_LAST_LAYER = {"whole_image_diffusion": "image_model.head.out"}
"""What gives the diffusion output; in all other objectives that of the diffusion MLP."""


class CheckpointMismatch(ValueError):
    """A checkpoint is not what the model or the caller expects."""


class CheckpointedModel(PreTrainedModel):
    """A model that loads strictly, or starts from a Qwen2."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str] | None,
        *model_args: Any,
        prediction_type: str | None = None,
        sigma_data: float | None = None,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As in transformers, but strict.

        Args:
            pretrained_model_name_or_path: Folder or name.
            *model_args: As in transformers.
            prediction_type: What the caller takes the diffusion output for; another one than the checkpoint's is refused.
            sigma_data: Where the prediction type needs it.
            output_loading_info: Return the report as well.
            ignore_mismatched_sizes: Refused.
            **kwargs: As in transformers. Options of training and speed may differ from the checkpoint's, nothing else.

        Raises:
            CheckpointMismatch: If tensors are missing, left over or of another shape, or the configuration asked for gives the
                weights another meaning, such as another prediction type.
        """
        if ignore_mismatched_sizes:
            raise ValueError("ignore_mismatched_sizes must be False, got True; build a new model and copy what you need")
        stored = None  # a state dict comes without
        if pretrained_model_name_or_path is not None:
            stored = stored_config(pretrained_model_name_or_path, **{n: kwargs[n] for n in _WHERE if n in kwargs})
        if stored is not None and prediction_type is not None:
            check_same_function(stored, _as_prediction_type(stored, prediction_type, sigma_data))
        model, report = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        if stored is not None:
            check_same_function(stored, model.config)
        _check_tensors(str(pretrained_model_name_or_path), report)
        return (model, report) if output_loading_info else model

    @classmethod
    def from_qwen2(
        cls, folder: str | Path, *, preset: str | None = None, dtype: torch.dtype = torch.float32, **options: Any
    ) -> Self:
        """A new model on a trained Qwen2: text weights from the folder, everything else as at the start of training.

        End and padding tokens of text come from the folder too, sampling options of the chat model do not.

        Args:
            folder: As transformers saves it: ``config.json`` and safetensors; with or without a tokenizer.
            preset: See :func:`mmar.qwen2_start.config_on_qwen2`.
            dtype: Of all parameters; float32 to train.
            **options: Fields of the configuration to replace.

        Raises:
            FileNotFoundError: If a file is not there.
            ValueError: If the folder holds another model than a Qwen2, a quantized one, or weights that do not fit.
        """
        model: Self = cls._from_config(config_on_qwen2(folder, preset, **options), dtype=dtype)
        fill_from_qwen2(model.language_model, model.lm_head, folder)
        take_end_tokens(model.generation_config, folder)
        return model.eval()


def stored_config(path: str | PathLike[str], **where: Any) -> MMARConfig:
    """The configuration beside a checkpoint.

    Args:
        path: Folder or name.
        **where: subfolder, revision and the like, as in transformers.

    Raises:
        FileNotFoundError: If a folder has no ``config.json``: beside a processor, transformers makes one up of defaults.
    """
    folder = Path(path, where.get("subfolder", ""))
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"folder must hold config.json, written by save_pretrained; {str(folder)!r} does not")
    config: MMARConfig = MMARConfig.from_pretrained(path, **where)
    return config


def check_same_function(stored: MMARConfig, asked: MMARConfig) -> None:
    """Raise unless the weights of one configuration compute the same under the other.

    Options of training and of speed may differ.

    Raises:
        CheckpointMismatch: Names every difference; for the prediction type with the way to convert.
    """
    wrong = _differences("", stored, asked)
    for part in MMARConfig.sub_configs_defaults:
        wrong += _differences(part, getattr(stored, part), getattr(asked, part))
    remedy = "leave these out, or build a new model with them"
    factor = _constant_factor(stored, asked)
    if factor != 1:
        wrong.insert(0, f"prediction_type {asked.param.name} instead of {stored.param.name}")
        remedy = _conversion(stored, asked, factor)
    if wrong:
        raise CheckpointMismatch(f"config must be that of the checkpoint, got {'; '.join(wrong)}; {remedy}")


def _differences(part: str, stored: PreTrainedConfig, asked: PreTrainedConfig) -> list[str]:
    names = {field.name for field in dataclasses.fields(stored)} - {
        field.name for field in dataclasses.fields(PreTrainedConfig)
    }
    names -= _FREE.get(part, set()) | set(MMARConfig.sub_configs_defaults)
    if part == "diffusion_head_config":
        names -= {"prediction_type", "sigma_data"}  # compared by what they mean
    where = f"{part}." if part else ""
    pairs = {name: (getattr(stored, name), getattr(asked, name)) for name in sorted(names)}
    return [f"{where}{name} {ours!r} instead of {theirs!r}" for name, (theirs, ours) in pairs.items() if theirs != ours]


def _constant_factor(stored: MMARConfig, asked: MMARConfig) -> float | None:
    """What the stored output is to be multiplied by to be the one asked for; None where no number does it."""
    try:
        return constant_factor(stored.param, asked.param)
    except NotARescaling:
        return None


def _conversion(stored: MMARConfig, asked: MMARConfig, factor: float | None) -> str:
    """A head that learned v gives v, whatever it is called: sampled as epsilon it draws noise without a word."""
    source, target = stored.diffusion_head_config, asked.diffusion_head_config
    if factor is None:
        return (
            f"the head gives {stored.param.name}, and no change of its weights makes it give {asked.param.name}, for which it "
            "would need x_t: leave prediction_type out and sample with the checkpoint's own; diffparam.convert turns its "
            f"outputs into {asked.param.name} wherever they are used"
        )
    layer = _LAST_LAYER.get(stored.image_objective, "image_model.head.head.token_out")
    sigma_data = next((f" --sigma-data {head.sigma_data:g}" for head in (target, source) if head.sigma_data is not None), "")
    return (
        f"{asked.param.name} is {factor:g} times {stored.param.name}, so the weights can be converted: diffparam convert "
        f"model.safetensors new.safetensors --layer {layer} --source {source.prediction_type} --target {target.prediction_type}"
        f"{sigma_data}; then write the new prediction_type and sigma_data into config.json"
    )


def _as_prediction_type(stored: MMARConfig, name: str, sigma_data: float | None) -> MMARConfig:
    asked = copy.deepcopy(stored)
    asked.diffusion_head_config.prediction_type, asked.diffusion_head_config.sigma_data = name, sigma_data
    return asked


def _check_tensors(path: str, report: dict[str, Any]) -> None:
    wrong = [f"{name} {tuple(found)} instead of {tuple(wanted)}" for name, found, wanted in report["mismatched_keys"]]
    missing = set(report["missing_keys"]) - {name for name, _, _ in report["mismatched_keys"]}
    found = {"missing": missing, "surplus": report["unexpected_keys"], "of wrong shape": wrong}
    misfits = [f"{len(names)} {what} ({_some(names)})" for what, names in found.items() if names]
    if misfits:
        raise CheckpointMismatch(
            f"the checkpoint {path!r} must hold the tensors of the model and no others, got {', '.join(misfits)}; its weights "
            "and its config.json belong to different models, or a file is incomplete"
        )


def _some(names: Iterable[str], most: int = 20) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
