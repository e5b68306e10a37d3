"""What the page offers for a model: the fields that mean something for it, with their first values."""

from __future__ import annotations

from typing import Any

from mmar.generation.settings import CHOICES
from mmar.pipeline import MMARPipeline

WHAT = {
    "masked_diffusion": "masked autoregression with a diffusion head",
    "causal_diffusion": "causal autoregression with a diffusion head",
    "masked_codes": "masked autoregression over codes",
    "causal_codes": "causal autoregression over codes",
    "whole_image_diffusion": "diffusion of the whole image",
    "understanding_only": "reads images, draws none",
}


def page_options(pipeline: MMARPipeline) -> dict[str, Any]:
    """JSON values.

    Returns:
        ``model``, a line about it; ``draws``, whether it can; ``fields``, the texts that the fields start with, without those
        that the model has no use for; ``solvers``, to choose from; ``image_size``, side of its pictures in pixels.
    """
    config = pipeline.model.config
    image, objective = config.image_config, config.image_objective
    what = WHAT.get(objective, objective)
    return {
        "model": f"{what} · {image.count} tokens · {image.image_size} pixels a side",
        "draws": objective != "understanding_only",
        "fields": _fields(pipeline),
        "solvers": list(CHOICES["solver"]),
        "image_size": image.image_size,
    }


def _fields(pipeline: MMARPipeline) -> dict[str, str]:
    config, settings = pipeline.model.config, pipeline.settings
    fields = {"guidance": f"{settings.guidance_scale:g}", "seed": ""}
    if not config.is_causal and config.image_objective != "whole_image_diffusion":
        fields["ar_steps"] = "" if settings.ar_steps is None else str(settings.ar_steps_for(config.image_config.count))
    if not config.has_codes:
        fields |= {"head_steps": str(settings.head_steps), "solver": settings.solver}
    return fields
