r"""Can MMAR overfit four images, both ways, and what does epsilon-prediction do there?

Four digit scans with captions and questions. A small Qwen2 learns the text alone, is frozen, and the rest is trained on drawing
and reading the four images, in bf16. Then each image is drawn from its caption and every question is asked. A model that cannot
do this has a fault; with epsilon-prediction the sampler's start decides: from t = 999 and from the largest timestep that
``largest_safe_timestep`` allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.command import run_command
from experiments.jobs import run_jobs
from experiments.overfit.pairs import Pairs, make_pairs
from experiments.overfit.training import build, teach_images, teach_text
from mmar.generation import ImageGenerationConfig, generate_image_tokens
from mmar.model import MMARForConditionalGeneration
from mmar.precision import autocast

STARTS: dict[str, int | str | None] = {"from 999": None, "from safe t": "safe"}


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        predictions: Prediction types of the head.
        text_steps: Steps of the language model on text.
        steps: Steps of everything else on images.
        copies: How often each image is drawn in a step, with other masks.
        timesteps_per_token: K.
        lr: Peak learning rate.
        head_steps: Diffusion steps per token.
        seeds: One run each.
        workers: Processes; 0 runs here.
        device: Where it runs.
    """

    predictions: tuple[str, ...] = ("v_prediction", "epsilon")
    text_steps: int = 200
    steps: int = 1000
    copies: int = 4
    timesteps_per_token: int = 16
    lr: float = 1e-3
    head_steps: int = 100
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int = 2
    device: str = "cpu"


PRESETS = {
    "smoke": Config(text_steps=2, steps=3, copies=1, timesteps_per_token=1, head_steps=2, seeds=(0,), workers=0),
    "quick": Config(steps=600, seeds=(0,)),
    "cpu": Config(),
    "gpu": Config(workers=4, seeds=(0, 1, 2, 3, 4)),
}


def job(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One prediction type and seed."""
    prediction, _, seed = key.partition(" ")
    model = build(prediction, timesteps_per_token=config.timesteps_per_token, seed=int(seed))
    pairs = make_pairs(model.config)
    text = teach_text(model, pairs, config.text_steps, tick)
    losses = teach_images(model, pairs, steps=config.steps, copies=config.copies, lr=config.lr, seed=int(seed), tick=tick)
    model.eval()
    errors = {start: _error(_draw(model, pairs, config, limit), pairs.tokens) for start, limit in STARTS.items()}
    right, asked = _answer(model, pairs)
    last = max(1, config.steps // 20)
    return {
        "drawing_error": errors,
        "right": right,
        "asked": asked,
        "text_only_loss": text,
        "text_loss": sum(losses["text"][-last:]) / last,
        "image_loss": sum(losses["image"][-last:]) / last,
    }


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All jobs."""
    keys = [f"{prediction} {seed}" for prediction in config.predictions for seed in config.seeds]
    units = config.text_steps + config.steps
    return run_jobs(job, config, keys, units_per_job=units, folder=folder, workers=config.workers, resume=resume)


def show(record: dict[str, Any]) -> str:
    """A line per run."""
    lines = [f"{'':18}{'error of a drawn token / std':>32}{'answers':>12}{'image loss':>12}"]
    lines.append(f"{'':18}" + "".join(f"{start:>16}" for start in STARTS))
    for key, result in record["results"].items():
        errors = "".join(f"{_shown(result['drawing_error'][start]):>16}" for start in STARTS)
        lines.append(f"{key:18}{errors}{result['right']:>6} of {result['asked']}{result['image_loss']:12.4f}")
    return "\n".join(lines)


def _draw(model: MMARForConditionalGeneration, pairs: Pairs, config: Config, limit: int | str | None) -> Tensor:
    prompts = pairs.processor.for_generation(pairs.captions)
    settings = ImageGenerationConfig(head_steps=config.head_steps, max_timestep=limit)  # one token per step, DDPM: the paper's
    generator = torch.Generator().manual_seed(0)
    with autocast("cpu", torch.bfloat16):
        return generate_image_tokens(
            model, prompts["input_ids"], prompts["attention_mask"], settings=settings, generator=generator
        )


def _error(drawn: Tensor, wanted: Tensor) -> float:
    """Rms error of a token's channels over the standard deviation of all tokens, which is 1 by the tokenizer's scale."""
    return float((drawn.double() - wanted.double()).square().mean().sqrt())


def _answer(model: MMARForConditionalGeneration, pairs: Pairs) -> tuple[int, int]:
    """Questions answered right, each asked in a prompt of its own, and questions."""
    asked = [(i, question, answer) for i, turns in enumerate(pairs.questions) for question, answer in turns]
    prompts = pairs.processor.for_understanding([None] * len(asked), [question for _, question, _ in asked])
    with autocast("cpu", torch.bfloat16):
        ids = model.generate(
            prompts["input_ids"],
            attention_mask=prompts["attention_mask"],
            image_tokens=pairs.tokens[[i for i, _, _ in asked]],
            max_new_tokens=8,
            do_sample=False,
        )
    said = pairs.processor.batch_decode(ids[:, prompts["input_ids"].shape[1] :])
    return sum(text.strip() == answer for text, (_, _, answer) in zip(said, asked, strict=True)), len(asked)


def _shown(error: float) -> str:
    return f"{error:.3f}" if error < 1000 else f"{error:.1e}"


def main() -> None:
    run_command("overfit_four", __doc__.splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
