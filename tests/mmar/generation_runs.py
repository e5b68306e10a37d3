"""Prompts and runs for the tests of image generation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_model import BLOCK, rows, tiny_model
from torch import Tensor, nn

from mmar.generation import ImageGenerationConfig, generate_image_tokens
from mmar.generation.token_sampler import ArStep, CodeSampler, DiffusionTokenSampler
from mmar.model import MMARForConditionalGeneration

DRAWING = ["mmar", "epsilon", "vq", "transfusion", "transfusion-vit", "raster", "chameleon"]
"""The systems that draw."""
MASKED, CAUSAL = ["mmar", "vq"], ["raster", "chameleon"]
FAMILIES = [*MASKED, *CAUSAL, "transfusion-vit"]
"""One system for each image objective."""
PROMPTS = ([1, 20, 21, 2], [1, 30, 2], [1, 40, 41, 42, 43, 2])
EMPTY = torch.tensor([[1, 2, *BLOCK]])
"""The unconditional prompt."""


TOLERANCE = 2e-4
"""Derived in test_image_generation.py."""


@functools.cache
def lively_model(name: str = "mmar", positions: str = "shared") -> MMARForConditionalGeneration:
    """A tiny model that listens: with weights of standard deviation 0.02 the prompt moves an image by a thousandth.

    Matrices of 64 columns and standard deviation 0.1 pass on most of their input; at 0.3 rounding grows a thousandfold over the
    steps of an image. Not to be changed.
    """
    model = tiny_model(name, image_positions=positions)
    with torch.no_grad():
        for layer in model.language_model.layers.modules():
            if isinstance(layer, nn.Linear):
                layer.weight *= 0.1 / model.config.text_config.initializer_range
        if model.config.has_codes:
            model.image_model.head.out.weight *= 20.0
    return model


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def prompts(*contents: list[int], side: str = "right") -> tuple[Tensor, Tensor]:
    """Padded rows that end in the image to draw."""
    return rows(*([*content, *BLOCK] for content in contents), side=side)


def quick(name: str, **options: Any) -> ImageGenerationConfig:
    """A few steps of everything; the epsilon heads of these models are untrained, so they start where 1/cos(phi) is 2."""
    defaults: dict[str, Any] = {"head_steps": 2 if name in CAUSAL else 3, "max_timestep": 650}
    if name in [*MASKED, "epsilon"]:
        defaults["ar_steps"] = 5
    return ImageGenerationConfig(**{**defaults, **options})


def generate(
    model: MMARForConditionalGeneration,
    settings: ImageGenerationConfig,
    batch: tuple[Tensor, Tensor | None] | None = None,
    seeds: Sequence[int] = (1, 2, 3),
    **options: Any,
) -> Tensor:
    """Images of the three prompts, or of others."""
    ids, mask = prompts(*PROMPTS) if batch is None else batch
    if settings.is_guided:
        options.setdefault("uncond_input_ids", EMPTY)
    return generate_image_tokens(model, ids, mask, settings=settings, generator=seeded(*seeds[: len(ids)]), **options)


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference beside the largest number; 0 or 1 for codes."""
    if not a.is_floating_point():
        return float(not torch.equal(a, b))
    return float((a - b).abs().max() / b.abs().max().clamp_min(1.0))


def record_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, ArStep]]:
    """The z ``(branches, rows, n, H)`` and the step of every call of a token sampler."""
    seen: list[tuple[Tensor, ArStep]] = []
    for sampler in (DiffusionTokenSampler, CodeSampler):

        def call(self: Any, z: Tensor, step: ArStep, sources: Any, original: Any = sampler.__call__) -> Tensor:
            seen.append((z, step))
            return original(self, z, step, sources)

        monkeypatch.setattr(sampler, "__call__", call)
    return seen
