"""How long the error budget, the report and the sampler's own work take, beside what they are used with.

Run it on an otherwise idle machine: ``python tests/benchmarks/prediction_speed.py --out
experiments/records/prediction_speed-cpu.json``. One thread; medians of interleaved turns.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from interleaved import medians, one_thread, run_benchmark
from tqdm import tqdm

from diffparam import EPSILON, FLOW, X0, AngularParam, Schedule, V, plan_ddim, predict_error, sample
from mmar.diffusion_head import DiffusionHead

PARAMS = (EPSILON, X0, V, FLOW, AngularParam.optimal(0.5))


@dataclass(frozen=True)
class Config:
    """What is timed, and how often.

    Attributes:
        turns: Turns of the predictions and of the sampler.
        shell_turns: Turns of the commands.
        steps: Of the predicted runs.
        width: Of the head.
        depth: Its blocks.
        batch: Its rows.
        sampler_steps: Network calls of a timed run.
    """

    turns: int = 15
    shell_turns: int = 5
    steps: int = 1000
    width: int = 256
    depth: int = 3
    batch: int = 1024
    sampler_steps: int = 10


FULL = Config()
QUICK = Config(turns=1, shell_turns=1, steps=50, width=32, batch=32, sampler_steps=2)


def predictions(config: Config, bar: tqdm) -> dict[str, float]:
    """Five parameterizations, the plans made beforehand or with them."""
    schedule = Schedule.cosine(1000).up_to(980).respace(min(config.steps, 981))
    plans = [plan_ddim(schedule, param=param) for param in PARAMS]
    return medians(
        {
            "predict_error": lambda: [predict_error(plan, 0.5) for plan in plans],
            "plan_and_predict": lambda: [predict_error(plan_ddim(schedule, param=param), 0.5) for param in PARAMS],
        },
        config.turns,
        bar,
    )


def sampler(config: Config, bar: tqdm) -> dict[str, float]:
    """A run against its network calls alone."""
    head = DiffusionHead(16, 16, config.width, config.depth).requires_grad_(False)
    x, z = torch.randn(config.batch, 16), torch.randn(config.batch, 16)
    t = torch.full((config.batch,), 500)
    plan = plan_ddim(Schedule.cosine(1000).respace(config.sampler_steps), param=V)
    found = medians(
        {
            "network": lambda: [head(x, t, z) for _ in range(config.sampler_steps)],
            "sample": lambda: sample(lambda x_t, s: head(x_t, s, z), x, plan),
        },
        config.turns,
        bar,
    )
    return {**found, "sample_over_network": found["sample"] / found["network"]}


def commands(config: Config, bar: tqdm) -> dict[str, float]:
    """``diffparam report`` from the shell, and importing torch alone."""

    def run(*arguments: str) -> Callable[[], None]:
        return lambda: subprocess.run([sys.executable, *arguments], capture_output=True, check=False) and None

    report = ("-m", "diffparam.report.cli", "report", "--schedule", "cosine", "--steps", "50", "--prediction", "v")
    return medians({"report": run(*report), "import_torch": run("-c", "import torch")}, config.shell_turns, bar)


def run(config: Config) -> dict[str, Any]:
    """All three, in seconds."""
    with one_thread(), tqdm(total=2 * config.turns + config.shell_turns, unit="turn") as bar:
        return {
            "predictions_s": predictions(config, bar),
            "sampler_s": sampler(config, bar),
            "commands_s": commands(config, bar),
        }


def show(results: dict[str, Any]) -> str:
    """A line per measurement."""
    lines = [
        f"{section[:-2]}: {name}".ljust(40) + f"{value:8.3f}"
        for section, part in results.items()
        for name, value in part.items()
    ]
    return "\n".join(["seconds, and one ratio".ljust(40), *lines])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write a record if asked to."""
    run_benchmark(
        "prediction_speed", "How long predictions, the report and the sampler's own work take", FULL, QUICK, run, show, argv
    )


if __name__ == "__main__":
    main()
