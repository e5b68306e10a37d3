"""Why does an eps head have a higher v-space loss than a v head? Figure 3A of the paper on real images, with its controls.

Trains the same diffusion head seven times on scikit-learn's digit scans: {v, eps} x {float32, bf16 forward, pure bf16} and eps
with a v-weighted loss. Takes the gap apart into approximation, rounding and training, sets three predictions of the rounding
part beside its measurement, and samples from every arm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffparam import EPSILON, Schedule, largest_safe_timestep
from experiments.command import run_command
from experiments.head_study.arms import ARMS, Recipe, train
from experiments.head_study.decompose import evaluation_timesteps
from experiments.head_study.measure import measure
from experiments.head_study.quality import reference_quality, sample_quality
from experiments.head_study.summary import summarise
from experiments.head_study.tables import tables
from experiments.jobs import run_jobs
from experiments.tokens import digits

TRAINING_SCHEDULE = Schedule.cosine(1000)


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        seeds: One run of every arm per seed.
        recipe: Training of every arm.
        stride: Distance of the evaluated timesteps below t = 950.
        draws: Noise draws per image and evaluated timestep.
        step_counts: DDIM steps of the sampling test.
        repeats: Samples per held-out scan.
        workers: Processes of one thread each; 0 for one job at a time with all threads.
        device: Where the head runs.
    """

    seeds: tuple[int, ...]
    recipe: Recipe
    stride: int = 20
    draws: int = 2
    step_counts: tuple[int, ...] = (10, 25, 100)
    repeats: int = 2
    workers: int = 2
    device: str = "cpu"


PRESETS = {
    "smoke": Config((0,), Recipe(width=32, depth=1, steps=20, warmup=5), 100, 1, (4,), 1, workers=0),
    "quick": Config((0,), Recipe(width=128, depth=3, steps=700)),
    "cpu": Config((0, 1, 2), Recipe(width=192, depth=3, steps=1500)),
    "gpu": Config((0,), Recipe(width=1024, depth=8, steps=5000, learning_rate=3e-4), workers=0, device="cuda"),
}


def starts() -> dict[str, int]:
    """Where sampling starts, by why: the last timestep, and the largest that the predictions call safe for eps.

    Safe: rounding adds at most 1 % of the target's energy to the v-space loss, with delta the rms of one rounding or the
    machine epsilon. A prediction: no measurement enters. ``between`` is halfway between those two on a scale of 1/alpha_bar.
    """
    rms, epsilon = (
        int(largest_safe_timestep(TRAINING_SCHEDULE, param=EPSILON, delta=delta) or 0) for delta in ("rms", "machine_epsilon")
    )
    log_alpha_bar = TRAINING_SCHEDULE.alpha_bar.log()
    between = int((log_alpha_bar - (log_alpha_bar[rms] + log_alpha_bar[epsilon]) / 2).abs().argmin())
    return {"last": len(TRAINING_SCHEDULE) - 1, "safe_rms": rms, "between": between, "safe_machine_epsilon": epsilon}


def run_arm(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One job: train an arm with a seed, measure it on held-out and on training scans, sample from it."""
    name, _, seed_text = key.rpartition("-seed")
    arm, seed = ARMS[name], int(seed_text)
    train_set, held_out = digits()
    head = train(arm, config.recipe, train_set, TRAINING_SCHEDULE, seed=seed, device=config.device, tick=tick)
    timesteps = evaluation_timesteps(config.stride)
    with torch.inference_mode():
        curves = {
            split: measure(
                head, arm, data, TRAINING_SCHEDULE, timesteps, draws=config.draws, seed=offset + seed, device=config.device
            )
            for split, data, offset in (("held_out", held_out, 1_000_000), ("calibration", train_set, 2_000_000))
        }
        samples = sample_quality(
            head, arm, held_out, TRAINING_SCHEDULE,
            starts=starts(), step_counts=config.step_counts, repeats=config.repeats, seed=seed, device=config.device,
        )  # fmt: skip
    return {**curves, "samples": samples}


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All arms and seeds, and what follows from them."""
    keys = [f"{arm}-seed{seed}" for seed in config.seeds for arm in ARMS]
    jobs = run_jobs(
        run_arm, config, keys,
        units_per_job=config.recipe.steps, folder=folder, workers=config.workers, resume=resume,
        in_keys=("seeds", "workers"),
    )  # fmt: skip
    return {
        "starts": starts(),
        "reference": reference_quality(*digits()),
        **summarise(jobs, TRAINING_SCHEDULE, evaluation_timesteps(config.stride), config.seeds),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_command("eps_vs_v", (__doc__ or "").splitlines()[0], PRESETS, run, tables, argv)


if __name__ == "__main__":
    main()
