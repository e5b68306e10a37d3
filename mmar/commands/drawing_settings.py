"""The options of ``mmar generate`` that say how a picture is drawn, put over the settings stored with the model."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from mmar.checkpoint import stored_config
from mmar.commands.running import assignments, number
from mmar.generation.settings import CHOICES, PRESETS, ImageGenerationConfig


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("--preset", metavar="NAME", help=f"start from {' or '.join(PRESETS)} instead of the settings stored with the model")
    add("--guidance", type=number, metavar="OMEGA", help="classifier-free guidance scale; 1 is none")
    add("--steps", type=_steps, metavar="AxD", help="autoregressive x diffusion steps, as 16x25; x25: one token per step")
    add("--solver", metavar="NAME", help=", ".join(map(str, CHOICES["solver"])))
    add("--temperature", type=number, metavar="TAU", help="factor on the noise of each diffusion step")
    add(
        "--max-timestep",
        type=_timestep,
        metavar="T|safe",
        help="timestep to start from; safe: the largest that is safe in bf16",
    )
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any other setting, as order=raster; may be repeated")


def drawing_settings(options: argparse.Namespace, folder: Path) -> ImageGenerationConfig:
    """The settings, checked for the model in the folder before its weights are read.

    Raises:
        ValueError: If a setting is out of range, unknown, or not for this model.
        FileNotFoundError: If the folder holds no pipeline.
    """
    config = stored_config(folder)
    stored = ImageGenerationConfig.load(folder)
    base = stored if options.preset is None else ImageGenerationConfig.preset(options.preset)
    settings = ImageGenerationConfig.from_dict({**base.to_dict(), **_changes(options)})
    settings.check_for(config)
    return settings


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    named = {
        "guidance_scale": options.guidance,
        "solver": options.solver,
        "temperature": options.temperature,
        "max_timestep": options.max_timestep,
    }
    changes = {name: value for name, value in named.items() if value is not None}
    return {**changes, **(options.steps or {}), **assignments(options.set)}


def _steps(text: str) -> dict[str, Any]:
    """``16x25``; without the first number one token per step."""
    match = re.fullmatch(r"(\d*)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be like 16x25, or x25 for one token per step, got {text[:40]!r}")
    return {"ar_steps": int(match[1]) if match[1] else None, "head_steps": int(match[2]), "head_steps_end": None}


def _timestep(text: str) -> int | float | str:
    if text == "safe":
        return text
    value = number(text)
    return int(value) if value.is_integer() else value
