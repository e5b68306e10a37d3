"""Does the predicted error of a sampler meet the measured one, and where it does not, did the prediction say so?

Over parameterization x schedule x solver x steps x format x data x guidance: the error of one call and of the final sample,
with the output rounded as given and everything else exact, so that one thing is tested at a time. Exact denoisers for
Gaussian, two-point and mixture data; a trained head for digit tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from diffparam import GaussianMixture, RoundingError, guidance_error_gain, predict_error, sample
from experiments.command import run_command
from experiments.head_study.arms import ARMS, Recipe, train
from experiments.jobs import run_jobs
from experiments.prediction_study.cases import FORMATS, SCHEDULES, SOLVERS, START, Case, gaussian_cases, params
from experiments.prediction_study.measure import LinearNetwork, gaussian_rows, predicted, rms, traced_rows
from experiments.prediction_study.tables import summarise, tables
from experiments.tokens import digits


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        steps: Sampler steps of the Gaussian cases.
        sigmas: Standard deviations of Gaussian data.
        traced_steps: Steps for data without a linear network.
        count: Samples per Gaussian case.
        traced_count: Samples per traced case.
        trace: Samples of a reverse pass.
        guidance: Scales omega.
        head: Training of the digit head.
        workers: Processes of one thread each; 0 for one job at a time.
        seed: Of everything.
        device: Where it runs.
    """

    steps: tuple[int, ...] = (10, 25, 50, 100, 1000)
    sigmas: tuple[float, ...] = (0.5, 1.0, 2.0)
    traced_steps: tuple[int, ...] = (10, 50)
    count: int = 8192
    traced_count: int = 4096
    trace: int = 512
    guidance: tuple[float, ...] = (1.0, 3.0, 7.5)
    head: Recipe = field(default_factory=lambda: Recipe(width=64, depth=2, steps=600))
    workers: int = 2
    seed: int = 0
    device: str = "cpu"


PRESETS = {
    "smoke": Config((10,), (0.5,), (5,), 512, 256, 64, (1.0, 3.0), Recipe(16, 1, 5, warmup=1), workers=0),
    "quick": Config((10, 50), (0.5, 1.0), (10,), 4096, 1024, 256, head=Recipe(width=64, depth=2, steps=200)),
    "cpu": Config(),
    "gpu": Config(count=65536, traced_count=16384, trace=2048, workers=0),
}
MIXTURES = {
    "two_point": GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)),
    "mixture": GaussianMixture(
        torch.tensor([[1.0, 0.5], [-1.2, 0.3], [0.1, -1.0]], dtype=torch.float64),
        torch.tensor([0.3, 0.2, 0.5], dtype=torch.float64),
    ),
}


def run_part(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One job: the Gaussian cases of one schedule and solver, the cases of one mixture, guidance, or the digit head."""
    kind, _, rest = key.partition("-")
    if kind == "gaussian":
        return {"rows": _gaussian(config, *rest.split("-"), tick)}
    if kind == "guidance":
        return {"rows": _guidance(config, tick)}
    rows = _digits(config) if kind == "digits" else _mixture(config, rest)
    tick(100)
    return {"rows": rows}


def _gaussian(config: Config, schedule: str, solver: str, tick: Callable[[int], None]) -> list[dict[str, Any]]:
    cases = [c for c in gaussian_cases(config.steps, config.sigmas) if (c.schedule, c.solver) == (schedule, solver)]
    rows, done = [], 0
    for number, case in enumerate(cases, start=1):
        found = gaussian_rows(case.plan(), case.sigma_data, FORMATS, config.count, config.seed)
        rows += [{"data": f"gaussian({case.sigma_data:g})", "omega": 1.0, **_labels(case), **row} for row in found]
        tick(100 * number // len(cases) - done)
        done = 100 * number // len(cases)
    return rows


def _guidance(config: Config, tick: Callable[[int], None]) -> list[dict[str, Any]]:
    """Two branches that agree in value and err on their own: roundings of the same number, stochastically."""
    rows = []
    for param in params(1.0):
        case = Case("cosine", "ddim", param, 25, 0.5)
        plan = case.plan()
        noise = torch.randn(config.count, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(config.seed))
        exact = sample(LinearNetwork(plan, case.sigma_data), noise, plan)
        for omega in config.guidance:
            for fmt in FORMATS:
                error = RoundingError(fmt, mode="stochastic")
                draws = torch.Generator().manual_seed(config.seed + 3)
                network = LinearNetwork(plan, case.sigma_data)

                def guided(
                    x: torch.Tensor, t: torch.Tensor, network=network, error=error, draws=draws, omega=omega
                ) -> torch.Tensor:
                    u = network(x, t)
                    uncond, cond = error.apply(u, draws), error.apply(u, draws)
                    return uncond + omega * (cond - uncond)

                budget = predict_error(
                    plan, case.sigma_data, output=error, arithmetic=None, state=None, timestep=None, guidance=omega
                )
                measured = rms(sample(guided, noise, plan) - exact)
                rows.append(
                    {
                        "data": "gaussian(0.5), guided",
                        "omega": omega,
                        **_labels(case),
                        "format": fmt,
                        **predicted(budget),
                        "measured": measured,
                        "gain": guidance_error_gain(omega),
                    }
                )
    tick(100)
    return rows


def _mixture(config: Config, name: str) -> list[dict[str, Any]]:
    data, rows = MIXTURES[name], []
    noise = torch.randn(
        config.traced_count, data.means.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(config.seed)
    )
    schedule = SCHEDULES["cosine"]()
    for param_name, param in params(1.0).items():
        for solver in SOLVERS:
            for steps in config.traced_steps:
                plan = SOLVERS[solver](schedule.up_to(START).respace(steps), param=param)
                labels = {"schedule": "cosine", "solver": solver, "param": param_name, "steps": steps}
                found = traced_rows(data.model(schedule, param), plan, noise, FORMATS, config.seed, config.trace)
                rows += [{"data": name, "omega": 1.0, **labels, **row} for row in found]
    return rows


def _digits(config: Config) -> list[dict[str, Any]]:
    """A v head on digit tokens, trained in float32 and run in float64 but for the rounding of its output."""
    train_set, held_out = digits()
    schedule = SCHEDULES["cosine"]()
    head = train(
        ARMS["v_float32"], config.head, train_set, schedule, seed=config.seed, device=config.device, tick=lambda _: None
    ).double()
    rows = []
    for name in ("ddim", "dpm_solver"):
        for steps in config.traced_steps:
            plan = SOLVERS[name](schedule.up_to(START).respace(steps), param=params(1.0)["v"])
            noise = torch.randn(
                min(config.trace, len(held_out)),
                held_out.tokens.shape[1],
                dtype=torch.float64,
                generator=torch.Generator().manual_seed(config.seed),
            )
            z = held_out.z[: len(noise)].double()
            found = traced_rows(lambda x, t, z=z: head(x, t, z), plan, noise, FORMATS, config.seed, len(noise))
            rows += [
                {"data": "digits", "omega": 1.0, "schedule": "cosine", "solver": name, "param": "v", "steps": steps, **row}
                for row in found
            ]
    return rows


def _labels(case: Case) -> dict[str, Any]:
    return {key: value for key, value in asdict(case).items() if key != "sigma_data"}


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All parts, and what follows from them."""
    keys = ["digits", *(f"mixture-{m}" for m in MIXTURES), "guidance"]
    keys += [f"gaussian-{schedule}-{solver}" for schedule in SCHEDULES for solver in SOLVERS]
    jobs = run_jobs(run_part, config, keys, units_per_job=100, folder=folder, workers=config.workers, resume=resume)
    return summarise([row for key in keys for row in jobs[key]["rows"]])


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_command("prediction_check", (__doc__ or "").splitlines()[0], PRESETS, run, tables, argv)


if __name__ == "__main__":
    main()
