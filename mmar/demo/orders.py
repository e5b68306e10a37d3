"""What people type into the page, as checked options: every complaint says the rule, the value and the remedy."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmar.config import MMARConfig
from mmar.generation.settings import ImageGenerationConfig

LONGEST_TEXT = 2000
"""Characters of a caption or question."""
MOST_STEPS = 10_000
SEEDS = 2**32
FIELDS = ("caption", "guidance", "ar_steps", "head_steps", "solver", "seed")


@dataclass(frozen=True)
class DrawingOrder:
    """One picture to draw.

    Attributes:
        caption: An empty one is unconditional.
        settings: Options, checked for the model.
        seed: The same order with the same seed gives the same picture.
    """

    caption: str
    settings: ImageGenerationConfig
    seed: int


def drawing_order(fields: Any, settings: ImageGenerationConfig, config: MMARConfig) -> DrawingOrder:
    """The order that the fields of the page make.

    Args:
        fields: The texts of some of :data:`FIELDS`. A field that is left out is as in ``settings``.
        settings: How pictures are drawn unless a field says otherwise.
        config: Of the model.

    Raises:
        ValueError: If a field is out of range, or not for this model.
    """
    fields = _texts(fields)
    changed = replace(settings, **_changes(fields, settings))
    changed.check_for(config)
    seed = fields.get("seed", "")
    return DrawingOrder(
        short_text("caption", fields.get("caption", "")),
        changed,
        _whole_number("seed", seed, 0, SEEDS - 1) if seed else secrets.randbelow(SEEDS),
    )


def question_text(text: str) -> str:
    """A question that can be asked.

    Raises:
        ValueError: If it is empty or too long.
    """
    text = short_text("question", text.strip())
    if not text:
        raise ValueError("question must have some words, got none; type them below the image")
    return text


def short_text(name: str, text: str) -> str:
    """The text itself, or a ValueError where it is too long to be meant."""
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"{name} must have at most {LONGEST_TEXT} characters, got {len(text)}; shorten it")
    return text


def _texts(fields: Any) -> dict[str, str]:
    if not isinstance(fields, Mapping) or not all(isinstance(value, str) for value in fields.values()):
        raise ValueError(f"fields must be an object of texts, got {str(fields)[:60]!r}; reload the page")
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        raise ValueError(f"fields must be among {', '.join(FIELDS)}, got {', '.join(unknown)[:60]}; reload the page")
    return {name: value.strip() for name, value in fields.items()}


def _changes(fields: dict[str, str], settings: ImageGenerationConfig) -> dict[str, Any]:
    """Options other than those of the model; what belongs to a replaced option goes with it."""
    changes: dict[str, Any] = {}
    if "guidance" in fields:
        changes["guidance_scale"] = _number("guidance", fields["guidance"])
    if "ar_steps" in fields:
        text = fields["ar_steps"]
        changes["ar_steps"] = _whole_number("autoregressive steps", text, 1, MOST_STEPS) if text else None
    if "head_steps" in fields:
        changes["head_steps"] = _whole_number("head steps", fields["head_steps"], 1, MOST_STEPS)
        if changes["head_steps"] != settings.head_steps:
            changes["head_steps_end"] = None
    if fields.get("solver", settings.solver) != settings.solver:
        changes |= {"solver": fields["solver"], "eta": 0.0}
    return changes


def _whole_number(name: str, text: str, least: int, most: int) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or not least <= int(text) <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {_shown(text)}")
    return int(text)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number such as 2.5, got {_shown(text)}") from None


def _shown(text: str) -> str:
    return repr(text[:40]) if text else "nothing"
