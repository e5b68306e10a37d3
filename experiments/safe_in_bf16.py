"""Is my sampler safe in bf16? What `diffparam report` says from the configuration, and what a trained head then does.

For a v and an eps head on digit tokens, cosine schedule, DDIM: the report's prediction (one rounding of the output, Gaussian
data), the prediction for this very head (traced, and with the error of its bf16 arithmetic calibrated on the training
scans), and the measured difference between samples in bf16 and in float32, from the same noise with the same weights. "All in
bf16" rounds the weights once and for all: that error is much the same at every call, so the sum of independent errors, the
control, is too small and that of equal ones too large; the calibration measures how errors correlate from call to call. Then
the sampler's state, coefficients and sums are in bf16 too, as written and as increments of the state.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffparam import (
    ErrorModel,
    NonFiniteError,
    Plan,
    RoundingError,
    Schedule,
    Sensitivity,
    plan_ddim,
    predict_error,
    sample,
    trace_sensitivity,
)
from diffparam.calibration import calibrate
from diffparam.report.document import report_run
from diffparam.report.run import Run
from experiments.command import run_command
from experiments.head_study.arms import ARMS, Recipe, train
from experiments.jobs import run_jobs
from experiments.tokens import TokenSet, digits
from mmar.diffusion_head import DiffusionHead

SCHEDULE = Schedule.cosine(1000)
BF16 = RoundingError("bfloat16")
KINDS = ("output", "network", "everything", "increments")
"""What is in bf16: the output; the network; the network and the sampler; the same with updates as increments of the state."""
STARTS = (999, 948)
"""The last timestep, and the largest that is safe for eps at delta = 1/128 and 1 % (see eps_vs_v)."""


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        recipe: Training of both heads, in float32.
        steps: DDIM steps.
        draws: Noise draws per training scan and calibrated timestep.
        seeds: One pair of heads per seed.
        workers: Processes of one thread each; 0 for one job at a time.
        device: Where it runs.
    """

    recipe: Recipe = field(default_factory=lambda: Recipe(width=128, depth=3, steps=1000))
    steps: int = 50
    draws: int = 1
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int = 2
    device: str = "cpu"


PRESETS = {
    "smoke": Config(Recipe(width=16, depth=1, steps=5, warmup=1), steps=5, seeds=(0,), workers=0),
    "quick": Config(Recipe(width=64, depth=2, steps=500), seeds=(0,)),
    "cpu": Config(),
    "gpu": Config(Recipe(width=1024, depth=8, steps=4000, learning_rate=3e-4), workers=0, device="cuda"),
}


def run_head(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One job: train a head, predict, measure."""
    name, _, seed = key.rpartition("-seed")
    train_set, held_out = digits()
    arm = ARMS[f"{name}_float32"]
    head = train(arm, config.recipe, train_set, SCHEDULE, seed=int(seed), device=config.device, tick=tick).cpu()
    wide, low = copy.deepcopy(head).double(), copy.deepcopy(head).bfloat16()
    z = held_out.z
    draws = torch.Generator().manual_seed(4_000_000 + int(seed))
    noise = torch.randn(held_out.tokens.shape, generator=draws)
    rows = []
    for start in STARTS:
        grid = SCHEDULE.up_to(start).respace(config.steps)
        plan = plan_ddim(grid, param=arm.param)
        said = report_run(Run(SCHEDULE, grid, arm.param))
        traced = trace_sensitivity(
            _network(wide, z, torch.float64), plan, noise.double(), generator=draws, emulate_arithmetic=BF16.fmt
        )
        calibrated = calibrate(head, _batches(train_set, plan, config.draws, draws), correlated=True).at(plan)
        exact = sample(_network(head, z, torch.float32), noise, plan)
        solver = {"arithmetic": BF16.fmt, "state_error": BF16}
        found = {
            "output": (
                _predicted(plan, traced, BF16),
                _difference(exact, noise, plan, _network(head, z, torch.float32), output_error=BF16),
            ),
            "network": (
                _predicted(plan, traced, calibrated),
                _difference(exact, noise, plan, _network(low, z, torch.bfloat16)),
            ),
            "everything": (
                _predicted(plan, traced, calibrated, arithmetic=BF16.fmt, state=BF16),
                _difference(exact, noise, plan, _network(low, z, torch.bfloat16), **solver),
            ),
            "increments": (
                _predicted(plan, traced, calibrated, arithmetic=BF16.fmt, state=BF16, increments=True),
                _difference(exact, noise, plan, _network(low, z, torch.bfloat16), **solver, increments=True),
            ),
        }
        rows.append(
            {
                "start": start,
                "report": {"relative": said.row.error, "safe": said.safe},
                "rms": _rms(exact),
                **{kind: {**predicted, "measured": measured} for kind, (predicted, measured) in found.items()},
            }
        )
    return {"rows": rows}


def _network(head: DiffusionHead, z: Tensor, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    """The head as a sampler calls it, in its present precision."""
    return lambda x, t: head(x, t, z, dtype=dtype)


def _batches(data: TokenSet, plan: Plan, draws: int, generator: torch.Generator) -> Any:
    """The same noised training scans at every timestep of the plan, each as often as there are draws."""
    tokens, z = (torch.cat([rows] * draws) for rows in (data.tokens, data.z))
    eps = torch.randn(tokens.shape, generator=generator)
    for t in plan.timestep.tolist():
        yield SCHEDULE.add_noise(tokens, eps, t), torch.full((len(tokens),), t), z


def _predicted(plan: Plan, sizes: Sensitivity, error: ErrorModel, **solver: Any) -> dict[str, float]:
    budget = predict_error(plan, sizes, output=error, timestep=None, **{"arithmetic": None, "state": None, **solver})
    return {"predicted": budget.rms, "independent": budget.independent, "correlated": budget.correlated}


def _difference(exact: Tensor, noise: Tensor, plan: Plan, model: Any, **options: Any) -> float | None:
    try:
        with torch.no_grad():
            return _rms(sample(model, noise, plan, **options) - exact)
    except NonFiniteError:
        return None


def _rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """Both heads for every seed."""
    keys = [f"{name}-seed{seed}" for seed in config.seeds for name in ("v", "eps")]
    jobs = run_jobs(
        run_head, config, keys, units_per_job=config.recipe.steps, folder=folder, workers=config.workers, resume=resume
    )
    rows = []
    for name in ("v", "eps"):
        for index, start in enumerate(STARTS):
            seeds = [jobs[f"{name}-seed{seed}"]["rows"][index] for seed in config.seeds]
            rows.append({"head": name, "start": start, **_over_seeds(seeds)})
    return {"steps": config.steps, "rows": rows}


def _over_seeds(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Geometric means of errors relative to the sample, and of their ratios with the range."""
    out: dict[str, Any] = {"report": seeds[0]["report"]}
    for kind in KINDS:
        good = [s for s in seeds if s[kind]["measured"]]
        names = ("predicted", "independent", "correlated", "measured")
        out[kind] = {name: _geometric([s[kind][name] / s["rms"] for s in good]) for name in names}
        ratios = [s[kind]["measured"] / s[kind]["predicted"] for s in good]
        out[kind]["ratio"] = {"mean": _geometric(ratios), "min": min(ratios, default=None), "max": max(ratios, default=None)}
    return out


def _geometric(values: Sequence[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def tables(record: dict[str, Any]) -> str:
    """What the report says, what is predicted for the head, what is measured."""
    titles = (
        "one rounding: predicted, measured, ratio",
        "bf16 network: the same",
        "bf16 network and sampler",
        "with increments",
    )
    lines = [f"{'head, start':<14}{'report':>16}" + "".join(f"{title:>44}" for title in titles)]
    for row in record["results"]["rows"]:
        cells = [f"{row['head']}, t = {row['start']}".ljust(14)]
        cells.append(f"{row['report']['relative']:.2g} {'safe' if row['report']['safe'] else 'UNSAFE'}".rjust(16))
        for kind in KINDS:
            part = row[kind]
            numbers = [part["predicted"], part["measured"], part["ratio"]["mean"]]
            cells.append("  ".join("-" if n is None else f"{n:.3g}" for n in numbers).rjust(44))
        lines.append("".join(cells))
    return "Rms error of the final sample, relative to the sample\n" + "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_command("safe_in_bf16", (__doc__ or "").splitlines()[0], PRESETS, run, tables, argv)


if __name__ == "__main__":
    main()
