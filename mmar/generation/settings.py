"""How an image is drawn: one checked set of options for every image objective."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from mmar.config import MMARConfig

FILE_NAME = "image_generation_config.json"
CHOICES = {
    "order": (None, "random", "raster"),
    "tokens_schedule": ("cosine", "linear", "constant"),
    "solver": ("ddpm", "ddim", "dpm_solver", "heun"),
    "guidance_schedule": ("constant", "linear"),
    "sampler_dtype": ("float32", "bfloat16"),
}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "fast": {"ar_steps": 0.125, "solver": "ddim", "head_steps": 10},
}
"""paper: one token per step, 100 DDPM steps each (section 4.2). fast: the best way of ``experiments/speed_quality.py``, eight
tokens a step and 80 times fewer calls of the head, as good there on digits of 16 tokens."""


@dataclass(frozen=True)
class ImageGenerationConfig:
    """Options of :func:`mmar.generation.generate_image_tokens`. The defaults are the paper's inference without guidance.

    Attributes:
        ar_steps: Autoregressive steps at most, never more than there are tokens to draw; between 0 and 1 their share in the
            tokens to draw; None: one token per step. Causal objectives draw one token per step and refuse fewer;
            whole_image_diffusion has no such steps.
        order: random (a permutation of its own for each image) or raster; None: random where the objective can, else raster.
        tokens_schedule: Tokens per autoregressive step: cosine (few, then many), linear (in proportion to the step), constant.
        solver: Of the diffusion: ddpm (ancestral, posterior variance), ddim, dpm_solver (DPM-Solver++ 2M), heun (two network
            calls per step). Codes have no diffusion.
        head_steps: Diffusion steps of each token; for whole_image_diffusion, steps of the language model.
        head_steps_end: Diffusion steps at the last autoregressive step, with a straight line between: late tokens are nearly
            certain. None: as many as at the first.
        guidance_scale: omega of classifier-free guidance; 1 is none and needs no unconditional prompts.
        guidance_schedule: constant, or linear: omega grows with the share of known tokens, from 1 (MAR).
        temperature: Factor on the noise of each diffusion step, not on the first noise (MAR); for codes, divisor of the logits,
            and 0 takes the most probable.
        eta: Noise of ddim: 0 is deterministic, 1 as much as ddpm.
        top_k: Codes only: draw among the k most probable.
        top_p: Codes only: draw among the most probable that make up this share.
        max_timestep: Timestep to start from at most; "safe": the largest at which one bf16 rounding of the output costs at
            most 1 % of the v-space energy (:func:`diffparam.largest_safe_timestep`); None: the schedule's last.
        sampler_dtype: float32; bfloat16 puts state, guidance and solver arithmetic in bf16, for experiments on what it costs.
    """

    ar_steps: int | float | None = None
    order: Literal["random", "raster"] | None = None
    tokens_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    solver: Literal["ddpm", "ddim", "dpm_solver", "heun"] = "ddpm"
    head_steps: int = 100
    head_steps_end: int | None = None
    guidance_scale: float = 1.0
    guidance_schedule: Literal["constant", "linear"] = "constant"
    temperature: float = 1.0
    eta: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    max_timestep: int | float | Literal["safe"] | None = None
    sampler_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {getattr(self, name)!r}")
        if not (isinstance(self.ar_steps, float) and 0 < self.ar_steps < 1):
            _check_count("ar_steps", self.ar_steps, optional=True, besides=" or a share between 0 and 1")
        for name in ("head_steps", "head_steps_end", "top_k"):
            _check_count(name, getattr(self, name), optional=name != "head_steps")
        for name in ("guidance_scale", "temperature", "eta"):
            _check_number(name, getattr(self, name))
        if self.eta > 1 or (self.eta and self.solver != "ddim"):
            raise ValueError(f"eta must be 0, or at most 1 for ddim, got {self.eta} for {self.solver}; ddpm is noisy by itself")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.max_timestep != "safe" and self.max_timestep is not None:
            _check_number("max_timestep", self.max_timestep)

    @classmethod
    def preset(cls, name: str, **options: Any) -> Self:
        """Named options, paper or fast, some of them replaced."""
        if name not in PRESETS:
            raise ValueError(f"name must be one of {', '.join(PRESETS)}, got {name!r}")
        return cls.from_dict({**PRESETS[name], **options})

    @classmethod
    def default_for(cls, config: MMARConfig) -> Self:
        """How a pipeline draws unless it is told otherwise: fast for masked diffusion; the paper's way for other objectives."""
        return cls.preset("fast" if config.image_objective == "masked_diffusion" else "paper")

    # -- what an autoregressive step needs --------------------------------------------------------------------------------

    @property
    def is_guided(self) -> bool:
        """Whether the unconditional prompts are read."""
        return self.guidance_scale != 1

    def ar_steps_for(self, tokens: int) -> int:
        """Autoregressive steps in which that many tokens are drawn by a masked objective."""
        if self.ar_steps is None:
            return tokens
        return min(tokens, self.ar_steps if isinstance(self.ar_steps, int) else max(1, round(self.ar_steps * tokens)))

    def guidance_at(self, known_share: float) -> float:
        """Guidance scale of the step after which this share of the tokens is known."""
        share = known_share if self.guidance_schedule == "linear" else 1.0
        return 1.0 + (self.guidance_scale - 1.0) * share

    def head_steps_at(self, index: int, total: int) -> int:
        """Diffusion steps of autoregressive step ``index`` of ``total``, counted from 0."""
        end = self.head_steps if self.head_steps_end is None else self.head_steps_end
        return round(self.head_steps + (end - self.head_steps) * index / max(1, total - 1))

    def check_for(self, config: MMARConfig) -> None:
        """Refuse options that a model of ``config`` cannot honour.

        Raises:
            ValueError: Naming the option and what to do.
        """
        objective = config.image_objective
        if objective == "understanding_only":
            raise ValueError("image_objective must be one that models images, got 'understanding_only'; it only reads them")
        if config.is_causal and self.order == "random":
            raise ValueError(f"order must be raster or None for {objective!r}, got 'random'; masked objectives have any order")
        if config.is_causal and self.ar_steps_for(config.image_config.count) < config.image_config.count:
            raise ValueError(
                f"ar_steps must be None for {objective!r}, which draws one token per step, got {self.ar_steps} for "
                f"{config.image_config.count} tokens; masked objectives draw several at once"
            )
        if not config.has_codes and (self.top_k is not None or self.top_p is not None):
            raise ValueError(
                f"top_k and top_p must be None for {objective!r}, got {self.top_k} and {self.top_p}; they are for codes"
            )
        if objective == "whole_image_diffusion" and (self.head_steps_end is not None or self.guidance_schedule != "constant"):
            raise ValueError(
                f"head_steps_end must be None and guidance_schedule constant for {objective!r}, which draws all tokens at "
                f"once, got {self.head_steps_end} and {self.guidance_schedule!r}"
            )

    # -- files ------------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """All options."""
        return asdict(self)

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> Self:
        """From some options; the others as by default.

        Raises:
            ValueError: If an option is unknown.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(f"options must be among {', '.join(known)}; got {', '.join(unknown)}")
        return cls(**options)

    def save(self, folder: str | Path) -> None:
        """Write ``image_generation_config.json`` beside a model."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / FILE_NAME).write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: If the folder has no such file.
        """
        return cls.from_dict(json.loads((Path(folder) / FILE_NAME).read_text()))


def _check_count(name: str, value: Any, *, optional: bool, besides: str = "") -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1{besides}{' or None' if optional else ''}, got {value!r}")


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
