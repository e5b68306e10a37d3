"""How many steps can a state in bf16 take? Round-to-nearest, stochastic and compensated states against their predictions.

A run whose state is stored in a low-precision format is compared with the same run in float64, over step counts, for exact
denoisers. Predictions are made before the measurement: independent roundings with the flags of ``predict_error``, and what
does without independence (``experiments/state_study/recursion.py``). The distance to the exact probability flow tells where
more steps stop helping.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffparam import (
    CompensatedRounding,
    ErrorModel,
    FloatFormat,
    GaussianMixture,
    Plan,
    RoundingError,
    Schedule,
    Sensitivity,
    V,
    exact_gaussian_flow,
    gaussian_sensitivity,
    plan_ddim,
    plan_ddpm,
    plan_heun,
    predict_error,
    sample,
    trace_sensitivity,
)
from experiments.command import run_command
from experiments.jobs import run_jobs
from experiments.state_study.recursion import lost_share, on_grid_error, traced_error, transported
from experiments.state_study.summary import summarise, tables

SCHEDULE = Schedule.cosine(1000)
SIGMAS = {"gaussian-0.5": 0.5, "gaussian-1": 1.0, "gaussian-2": 2.0}
MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.4], [0.9, -0.2]], dtype=torch.float64), torch.tensor([0.3, 0.6], dtype=torch.float64)
)
DATA = {**{name: GaussianMixture.gaussian(sigma) for name, sigma in SIGMAS.items()}, "mixture": MIXTURE}
SOLVERS: dict[str, Callable[..., Plan]] = {"ddim": plan_ddim, "ddpm": plan_ddpm}
MODES: dict[str, Callable[[str], ErrorModel]] = {
    "nearest": RoundingError,
    "stochastic": lambda fmt: RoundingError(fmt, mode="stochastic"),
    "compensated": CompensatedRounding,
}
_EXACT_DRAWS = RoundingError(FloatFormat("52 bits", 52, -1022, 1e308), mode="stochastic")
"""Rounds nothing, but draws as many numbers as a stochastic state does: with it the reference meets the same noise."""


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        count: Samples.
        trace: Samples of a reverse pass, for data without a linear network.
        per_octave: Quadrature nodes of the recursion per factor of two.
        data: Names in ``DATA``.
        step_counts: Steps of each run.
        formats: Of the state.
        seed: Of everything.
        device: Where the runs are.
    """

    count: int = 2048
    trace: int = 1024
    per_octave: int = 512
    data: tuple[str, ...] = tuple(DATA)
    step_counts: tuple[int, ...] = (10, 25, 50, 100, 250, 500, 1000)
    formats: tuple[str, ...] = ("bfloat16", "float8_e4m3")
    seed: int = 0
    device: str = "cpu"


PRESETS = {
    "smoke": Config(1024, 64, 128, ("gaussian-2", "mixture"), (5, 25)),
    "quick": Config(1024, 512, 256, step_counts=(10, 25, 100)),
    "cpu": Config(),
    "gpu": Config(1 << 17, 1 << 13, 2048, device="cuda"),
}


def run_case(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One job: all step counts, formats and modes of one data set and solver; lists have one entry per step count."""
    name, _, solver = key.rpartition("-")
    noise = torch.Generator().manual_seed(config.seed)
    x_init = torch.randn(config.count, DATA[name].means.shape[1], dtype=torch.float64, generator=noise).to(config.device)
    flow = exact_flow(name, x_init) if solver == "ddim" else None
    columns: dict[str, Any] = {"steps": list(config.step_counts), "float64_total": []}
    for steps in config.step_counts:
        schedule = SCHEDULE.respace(steps)
        plan, model = SOLVERS[solver](schedule, param=V), DATA[name].model(schedule, V)
        rows = predictions(config, name, plan, x_init)

        def final(error: ErrorModel | None, plan: Plan = plan, model: Any = model) -> Tensor:
            return sample(model, x_init, plan, generator=_generator(config), state_error=error)

        exact = final(None)
        same_noise = final(_EXACT_DRAWS) if plan.is_stochastic else exact
        columns["float64_total"].append(None if flow is None else _rms(exact - flow))
        for (fmt, mode), row in rows.items():
            got = final(MODES[mode](fmt))
            row["measured"] = _rms(got - (same_noise if mode == "stochastic" else exact))
            row["total"] = None if flow is None else _rms(got - flow)
            cell = columns.setdefault(fmt, {}).setdefault(mode, {})
            for label, value in row.items():
                cell.setdefault(label, []).append(value)
        tick(1)
    return columns


def predictions(config: Config, name: str, plan: Plan, x_init: Tensor) -> dict[tuple[str, str], dict[str, Any]]:
    """What is said of every format and mode before it is measured.

    ``refined`` is the recursion for Gaussian data without noise, roundings of updates from the grid where noise or stochastic
    rounding makes them independent, and the trace for the mixture.
    """
    wanted = {(fmt, mode): MODES[mode](fmt) for fmt in config.formats for mode in MODES}
    model, few = DATA[name].model(SCHEDULE, V), x_init[: config.trace]
    traced: list[float | None] = [None] * len(wanted)
    if name in SIGMAS:
        sizes = gaussian_sensitivity(plan, SIGMAS[name])
    else:
        sizes = trace_sensitivity(model, plan, few, generator=_generator(config))
        traced = [*traced_error(model, plan, few, [*wanted.values()], _generator(config))]
    rows = {}
    for (key, error), by_trace in zip(wanted.items(), traced, strict=True):
        budget = predict_error(plan, sizes, output=None, arithmetic=None, state=error, timestep=None)
        rows[key] = {
            "independent": budget.rms,
            "refined": by_trace,
            "refined_total": None,
            "flags": sorted({flag.kind for flag in budget.flags}),
            "useful_steps": budget.useful_steps if key[1] == "nearest" else None,
            "lost": lost_share(sizes, key[0]),
        }
        if name in SIGMAS:
            rows[key] |= _refined(plan, sizes, error, exact_flow(name, _ONE).item(), config.per_octave)
    return rows


_ONE = torch.ones(1, 1, dtype=torch.float64)


def _refined(plan: Plan, sizes: Sensitivity, error: ErrorModel, end: float, nodes: int) -> dict[str, float | None]:
    """Of Gaussian data: the error of the rounding, and the distance to the exact flow, which ends at ``end`` z."""
    if plan.is_stochastic:
        return {"refined": on_grid_error(sizes, error)}
    if isinstance(error, RoundingError) and error.mode == "stochastic":
        alone = on_grid_error(sizes, error)
        return {"refined": alone, "refined_total": math.hypot(alone, math.sqrt(sizes.final_sq) - end)}
    ends = transported(plan, sizes, error, per_octave=nodes)
    return {"refined": ends.rms_error(), "refined_total": ends.rms_error(end)}


def exact_flow(name: str, x: Tensor) -> Tensor:
    """Where the probability-flow ODE takes ``x``: in closed form, or by Heun's method on the whole schedule (to 1e-4)."""
    if name in SIGMAS:
        return exact_gaussian_flow(x, float(SCHEDULE.phi[-1]), 0.0, sigma_data=SIGMAS[name])
    return sample(DATA[name].model(SCHEDULE, V), x, plan_heun(SCHEDULE, param=V))


def _generator(config: Config) -> torch.Generator:
    return torch.Generator(config.device).manual_seed(config.seed + 1)


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All data sets and solvers, and what follows from them."""
    keys = [f"{name}-{solver}" for name in config.data for solver in SOLVERS]
    units = len(config.step_counts)
    cases = run_jobs(run_case, config, keys, units_per_job=units, folder=folder, workers=0, resume=resume)
    return {"cases": cases, **summarise(cases)}


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_command("low_precision_state", (__doc__ or "").splitlines()[0], PRESETS, run, tables, argv)


if __name__ == "__main__":
    main()
