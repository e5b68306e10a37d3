"""Does kappa say which parameterization trains and samples best, in bf16 and in float32? Five outputs, one budget.

eps, the clean sample, v, flow and EDM's F, each trained in both precisions and with two loss weightings on the same scans,
draws and steps. The loss floor that kappa predicts for bf16 is set beside the measured rounding, the v-space loss and the
samples; what it orders in float32 too is not a matter of rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffparam import EPSILON, Schedule, largest_safe_timestep
from experiments.command import run_command
from experiments.field_study.race_arms import ARMS, SIGMA_DATA, scaled_digits
from experiments.field_study.race_tables import tables
from experiments.field_study.ranking import predict, rank, summarise
from experiments.head_study.arms import Recipe, train
from experiments.head_study.decompose import evaluation_timesteps
from experiments.head_study.measure import measure
from experiments.head_study.quality import reference_quality, sample_quality
from experiments.jobs import run_jobs
from experiments.tokens import digits

SCHEDULE = Schedule.cosine(1000)


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        seeds: One run of every arm per seed.
        recipe: Training of every arm.
        stride: Distance of the evaluated timesteps below t = 950.
        draws: Noise draws per scan and evaluated timestep.
        step_counts: DDIM steps of the sampling test.
        repeats: Samples per held-out scan.
        workers: Processes of one thread each; 0 for one job at a time with all threads.
        device: Where the heads run.
    """

    seeds: tuple[int, ...]
    recipe: Recipe
    stride: int = 50
    draws: int = 2
    step_counts: tuple[int, ...] = (10, 25, 100)
    repeats: int = 1
    workers: int = 2
    device: str = "cpu"


PRESETS = {
    "smoke": Config((0,), Recipe(width=16, depth=1, steps=10, warmup=5), 100, 1, (4,), workers=0),
    "quick": Config((0,), Recipe(width=128, depth=2, steps=400, timesteps_per_token=2)),
    "cpu": Config((0, 1, 2), Recipe(width=128, depth=2, steps=1000, timesteps_per_token=2)),
    "gpu": Config((0, 1, 2), Recipe(width=1024, depth=8, steps=5000, learning_rate=3e-4), repeats=2, workers=0, device="cuda"),
}


def starts() -> dict[str, int]:
    """Where sampling starts: the last timestep, and the largest at which bf16's machine epsilon costs eps at most 1 %."""
    safe = largest_safe_timestep(SCHEDULE, param=EPSILON, delta="machine_epsilon")
    return {"last": len(SCHEDULE) - 1, "safe": int(safe or 0)}


def run_arm(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One job: train an arm with a seed, measure it on held-out scans, sample from it."""
    name, _, seed_text = key.rpartition("-seed")
    arm, seed = ARMS[name], int(seed_text)
    train_set, held_out = scaled_digits()
    head = train(arm, config.recipe, train_set, SCHEDULE, seed=seed, device=config.device, tick=tick)
    with torch.inference_mode():
        curves = measure(
            head, arm, held_out, SCHEDULE, evaluation_timesteps(config.stride),
            draws=config.draws, seed=1_000_000 + seed, device=config.device,
        )  # fmt: skip
        samples = sample_quality(
            head, arm, held_out, SCHEDULE,
            starts=starts(), step_counts=config.step_counts, repeats=config.repeats, seed=seed, device=config.device,
        )  # fmt: skip
    return {"curves": curves, "samples": [_in_units_of_the_data(row) for row in samples]}


def _in_units_of_the_data(row: dict[str, Any]) -> dict[str, Any]:
    """Frechet distance over the data's variance and rms over its standard deviation."""
    units = {"frechet": SIGMA_DATA**2, "rms": SIGMA_DATA}
    return {k: v / units[k] if k in units and v is not None else v for k, v in row.items()}


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All arms and seeds, and what follows from them."""
    keys = [f"{arm}-seed{seed}" for seed in config.seeds for arm in ARMS]
    jobs = run_jobs(
        run_arm, config, keys,
        units_per_job=config.recipe.steps, folder=folder, workers=config.workers, resume=resume,
    )  # fmt: skip
    timesteps = evaluation_timesteps(config.stride)
    predicted = predict(SCHEDULE, timesteps, starts(), config.step_counts)
    return {
        "sigma_data": SIGMA_DATA,
        "starts": starts(),
        "timesteps": timesteps,
        "reference": reference_quality(*digits()),
        "predicted": predicted,
        **summarise(jobs, timesteps, config.seeds),
        "ranks": rank(jobs, predicted, timesteps, config.seeds),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_command("parameterization_race", (__doc__ or "").splitlines()[0], PRESETS, run, tables, argv)


if __name__ == "__main__":
    main()
