"""The systems the paper compares with (tables 1 and 3), as configurations: same backbone and parts, one thing changed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from mmar.config import ImageTokensConfig, MMARConfig


@dataclass(frozen=True)
class Baseline:
    """One change to an MMAR configuration.

    Attributes:
        description: What it stands for.
        options: Fields of :class:`mmar.config.MMARConfig` that differ; entries of its parts where a dict.
        needs_codes: Whether its image tokenizer has a codebook.
    """

    description: str
    options: dict[str, Any]
    needs_codes: bool = False


BASELINES: dict[str, Baseline] = {
    "mmar": Baseline("MMAR, the full method", {}),
    "epsilon": Baseline("w/ epsilon-prediction (table 3)", {"diffusion_head_config": {"prediction_type": "epsilon"}}),
    "vq": Baseline("w/ VQ (table 3): masked codes; also Show-o-like", {"image_objective": "masked_codes"}, needs_codes=True),
    "vq-projector": Baseline(
        "w/ VQ as appendix A.1 has it: no EmbeddingViT",
        {"image_objective": "masked_codes", "embedding_vit_config": {"enabled": False}},
        needs_codes=True,
    ),
    "transfusion": Baseline(
        "transfusion-like (table 3, appendix A.1): one Linear in, one out, epsilon",
        {
            "image_objective": "whole_image_diffusion",
            "diffusion_head_config": {"prediction_type": "epsilon"},
            "embedding_vit_config": {"enabled": False},
        },
    ),
    "transfusion-vit": Baseline(
        "transfusion-like with EmbeddingViT, so that it has as many parameters to train",
        {"image_objective": "whole_image_diffusion", "diffusion_head_config": {"prediction_type": "epsilon"}},
    ),
    "raster": Baseline("raster order with causal image attention, continuous", {"image_objective": "causal_diffusion"}),
    "chameleon": Baseline("causal discrete autoregression (table 1)", {"image_objective": "causal_codes"}, needs_codes=True),
    "understanding-only": Baseline(
        "frozen vision encoder, no image model (table 1, LLaVA-like)", {"image_objective": "understanding_only"}
    ),
}
"""By name."""


def baseline_config(config: MMARConfig, name: str, *, image_config: ImageTokensConfig | None = None) -> MMARConfig:
    """The configuration of a baseline at the size of ``config``.

    Args:
        config: An MMAR.
        name: Key of :data:`BASELINES`.
        image_config: Image tokens where they are not those of ``config``: with a codebook for the discrete ones, features of
            the frozen encoder for understanding-only.

    Raises:
        ValueError: If the name is unknown, or a codebook is needed and not given.
    """
    if name not in BASELINES:
        raise ValueError(f"name must be one of {', '.join(BASELINES)}, got {name!r}")
    baseline = BASELINES[name]
    image = config.image_config if image_config is None else image_config
    if baseline.needs_codes and image.codebook_size is None:
        raise ValueError(f"image_config must have a codebook_size for {name!r}, got None; take that of a VQ image tokenizer")
    fields = {"image_config": image.to_dict()}
    return _replaced(config, {**fields, **baseline.options})


def _replaced(config: MMARConfig, options: dict[str, Any]) -> MMARConfig:
    fields = copy.deepcopy(config.to_dict())
    for key, value in options.items():
        fields[key] = {**fields[key], **value} if isinstance(value, dict) else value
    return type(config)(**fields)
