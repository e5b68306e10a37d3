"""What a saved model is, from its configuration and the headers of its weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from diffparam.report import Report, report
from mmar.checkpoint import stored_config
from mmar.commands.weight_headers import fingerprint, tensor_headers
from mmar.config import MMARConfig
from mmar.generation.settings import FILE_NAME as SETTINGS_FILE
from mmar.generation.settings import ImageGenerationConfig
from mmar.generation.solver import starting_schedule
from mmar.parameter_parts import part_sizes
from mmar.pipeline import IMAGE_TOKENIZER_FOLDER
from mmar.pipeline_record import FILE_NAME as RECORD_FILE
from mmar.pipeline_record import PipelineRecord
from mmar.tokenizers.saved import SavedTokenizer


def checkpoint_facts(folder: Path) -> dict[str, Any]:
    """JSON values; what a model without its pipeline lacks is None.

    Args:
        folder: Of a pipeline, or of a model alone.
    """
    config, settings = stored_config(folder), stored_settings(folder)
    return {
        "folder": str(folder),
        "fingerprint": fingerprint(folder),
        "objective": config.image_objective,
        "images": _images(config),
        **_weights(folder),
        **_diffusion(config),
        "image_tokenizer": _image_tokenizer(folder),
        "compute_dtype": _compute_dtype(folder),
        "drawing": None if settings is None else settings.to_dict(),
    }


def stored_settings(folder: Path) -> ImageGenerationConfig | None:
    """How images are drawn unless one says otherwise."""
    return ImageGenerationConfig.load(folder) if (folder / SETTINGS_FILE).is_file() else None


def has_diffusion(config: MMARConfig) -> bool:
    """Whether tokens come out of a diffusion sampler."""
    return not config.has_codes and config.image_objective != "understanding_only"


def sampler_report(config: MMARConfig, settings: ImageGenerationConfig) -> Report:
    """What ``diffparam report`` says of the sampler of a model whose output is rounded to bf16.

    Raises:
        ValueError: If the settings cannot be run.
    """
    coarse = settings.sampler_dtype == "bfloat16"
    rounded = "bfloat16" if coarse else "float32"
    return report(
        starting_schedule(settings, config.schedule_config.build(), config.param),
        config.param,
        steps=settings.head_steps,
        solver=settings.solver,
        eta=settings.eta,
        guidance=settings.guidance_scale,
        sigma_data=config.diffusion_head_config.sigma_data,
        output="bfloat16",
        arithmetic=rounded,
        state=rounded,
        increments=coarse,
    )


def _images(config: MMARConfig) -> dict[str, Any]:
    image = config.image_config
    names = ("tokenizer", "image_size", "grid", "channels", "codebook_size")
    return {**{name: getattr(image, name) for name in names}, "tokens": image.count}


def _weights(folder: Path) -> dict[str, Any]:
    headers = tensor_headers(folder)
    dtypes: Counter[str] = Counter()
    for header in headers:
        dtypes[header.dtype] += header.size
    parts = part_sizes((header.name, header.size) for header in headers)
    return {
        "parts": {name: {"parameters": part.parameters, "trained": part.trained} for name, part in parts.items()},
        "parameters": sum(part.parameters for part in parts.values()),
        "trained": sum(part.trained for part in parts.values()),
        "stored_as": dict(dtypes),
        "bytes": sum(header.stop - header.start for header in headers),
    }


def _diffusion(config: MMARConfig) -> dict[str, Any]:
    if not has_diffusion(config):
        return {"parameterization": None, "schedule": None}
    head, schedule = config.diffusion_head_config, config.schedule_config
    return {
        "parameterization": {
            "prediction_type": head.prediction_type,
            "sigma_data": head.sigma_data,
            "loss_space": head.loss_space,
        },
        "schedule": {
            "name": schedule.name,
            "train_timesteps": schedule.num_train_timesteps,
            "zero_terminal_snr": schedule.zero_terminal_snr,
        },
    }


def _image_tokenizer(folder: Path) -> dict[str, Any] | None:
    if not (folder / IMAGE_TOKENIZER_FOLDER).is_dir():
        return None
    saved = SavedTokenizer.read(folder / IMAGE_TOKENIZER_FOLDER)
    return {"kind": saved.kind, **saved.settings, "latent_std": saved.scale.std, "latent_mean": saved.scale.mean}


def _compute_dtype(folder: Path) -> str | None:
    if not (folder / RECORD_FILE).is_file():
        return None
    return str(PipelineRecord.read(folder).compute_dtype).removeprefix("torch.")
