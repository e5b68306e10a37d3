"""Two public reports of diverging diffusion training and sampling: what the configuration alone says, and what is measured.

Each is answered by the library before anything runs, then reproduced small on digit scans in bf16 and in float32, with the
cures that people tried and those that the prediction suggests. The exact network of the data separates rounding from training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.command import run_command
from experiments.field_study.exact import ExactNetwork, rounding_loss
from experiments.field_study.guards import NoGuard
from experiments.field_study.missing import without_nan
from experiments.field_study.predictions import start_by_own_error
from experiments.field_study.reports import OWN_ERROR, REPORTS, Report, Run
from experiments.field_study.sampling import PRECISIONS, sample_runs
from experiments.field_study.summary import summarise
from experiments.field_study.tables import tables
from experiments.field_study.training import train_watched
from experiments.head_study.arms import Recipe
from experiments.head_study.measure import measure
from experiments.head_study.quality import reference_quality
from experiments.jobs import run_jobs
from experiments.tokens import TokenSet, digits


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        seeds: One run of every head per seed.
        recipe: Training of every head.
        draws: Noise draws per scan and measured timestep.
        steps: DDIM steps; both threads use 50.
        exact_scans: Held-out scans whose classes the exact network samples.
        workers: Processes of one thread each; 0 for one job at a time with all threads.
        device: Where the heads run.
    """

    seeds: tuple[int, ...]
    recipe: Recipe
    draws: int = 2
    steps: int = 50
    exact_scans: int = 600
    workers: int = 2
    device: str = "cpu"


PRESETS = {
    "smoke": Config((0,), Recipe(width=32, depth=1, steps=20, warmup=5), draws=1, steps=4, exact_scans=50, workers=0),
    "quick": Config((0,), Recipe(width=128, depth=2, steps=800, timesteps_per_token=2)),
    "cpu": Config((0, 1, 2), Recipe(width=128, depth=2, steps=2000, timesteps_per_token=2)),
    "gpu": Config((0, 1, 2), Recipe(width=1024, depth=8, steps=10000, learning_rate=3e-4), workers=0, device="cuda"),
}


def run_job(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One job: train a head of a report with a seed, measure it and sample from it; or sample from the exact network."""
    report_name, _, rest = key.partition("-")
    report = REPORTS[report_name]
    if rest == "exact":
        result = _run_exact(config, report)
        tick(config.recipe.steps)
        return result
    name, _, seed_text = rest.rpartition("-seed")
    head, seed = report.heads[name], int(seed_text)
    train_set, held_out = digits()
    network, training = train_watched(head, report, config.recipe, train_set, seed=seed, device=config.device, tick=tick)
    param = head.arm.param
    with torch.inference_mode():
        curves = measure(
            network, head.arm, held_out, report.schedule, list(report.timesteps),
            draws=config.draws, seed=1_000_000 + seed, device=config.device,
        )  # fmt: skip
        runs = dict(report.runs[param.name])
        if param == report.limited:
            loss = curves["loss_float32"][report.timesteps.index(report.end)]
            runs["own_error"] = Run(OWN_ERROR, start_by_own_error(report, param, loss))
        samples = sample_runs(network, param, report, runs, held_out, steps=config.steps, seed=seed, device=config.device)
    return without_nan({"training": training, "curves": curves, "samples": samples})


def _run_exact(config: Config, report: Report) -> dict[str, Any]:
    """Samples of every unguarded run, and the energy of one rounding of the output at each measured timestep, by output."""
    train_set, held_out = digits()
    some = _first(held_out, config.exact_scans)
    results: dict[str, Any] = {}
    for head in report.heads.values():
        param = head.arm.param
        if param.name in results:
            continue
        network = ExactNetwork(train_set, report.schedule, param)
        runs = {name: run for name, run in report.runs[param.name].items() if type(run.guard) is NoGuard}
        results[param.name] = {
            "samples": sample_runs(network, param, report, runs, some, steps=config.steps, seed=0, device=config.device),
            "rounding": {
                precision: [rounding_loss(network, some, t, dtype, seed=t) for t in report.timesteps]
                for precision, dtype in PRECISIONS.items()
            },
        }
    return results


def _first(data: TokenSet, count: int) -> TokenSet:
    """Its first scans; the split is shuffled, so every class is among them."""
    return replace(data, tokens=data.tokens[:count], z=data.z[:count], labels=data.labels[:count])


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All heads of both reports and all seeds, and what follows from them."""
    keys = [f"{name}-exact" for name in REPORTS]
    keys += [f"{name}-{head}-seed{seed}" for seed in config.seeds for name, report in REPORTS.items() for head in report.heads]
    jobs = run_jobs(
        run_job, config, keys,
        units_per_job=config.recipe.steps, folder=folder, workers=config.workers, resume=resume,
    )  # fmt: skip
    return {"reference": reference_quality(*digits()), "reports": summarise(jobs, config.seeds, config.steps)}


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_command("field_reports", (__doc__ or "").splitlines()[0], PRESETS, run, tables, argv)


if __name__ == "__main__":
    main()
