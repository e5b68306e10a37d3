r"""Table 3 of the paper in small, on digit scans: v, epsilon, VQ and transfusion-like, and what tells the causes apart.

All arms share a frozen language model, the data, the steps and one autoencoder architecture. v and epsilon are also trained
in float32 and in pure bf16, and epsilon with the loss of v: is the paper's gap precision, weighting or conditioning? Pictures
are drawn from t = 999 and from the largest t that one bf16 rounding leaves safe for epsilon. The errors of the heads at each
noise level make figure 3A, measured in MMAR itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffparam import Schedule
from experiments import command
from experiments.command import run_command
from experiments.head_study import arms as head_arms
from experiments.head_study.decompose import evaluation_timesteps, over_seeds
from experiments.head_study.summary import summarise
from experiments.head_study.tables import head_tables
from experiments.jobs import run_jobs
from experiments.paper_study.arms import ARMS, Arm, Recipe, Runs
from experiments.paper_study.measure import (
    Amount,
    DigitJudge,
    draw_digits,
    head_curves,
    read_digits,
    training_loss,
    ways_of,
)
from experiments.training_runs import stage_summary
from mmar.pipeline import MMARPipeline
from mmar.training.loop import FINAL

UNITS = 3
"""Of the progress bar for an arm: each stage, and what is measured."""


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        seeds: Fixed before anything was seen; all are reported.
        arms: Names.
        recipe: Shared by all arms.
        amount: How much is asked and drawn.
        stride: Distance of the timesteps at which the heads are measured, below 950.
        scans: On which they are measured, of each split; None: all.
        workers: Arms at a time, one thread each; 0: one at a time with all threads.
        folder: Of the runs; other experiments take up the same arms.
        device: Where it runs.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = tuple(ARMS)
    recipe: Recipe = field(default_factory=Recipe)
    amount: Amount = field(default_factory=Amount)
    stride: int = 20
    scans: int | None = None
    workers: int = 2
    folder: str = "paper_study"
    device: str = "cpu"


_HEADS = tuple(head_arms.ARMS)
_TINY = Recipe(text_steps=2, stage1_steps=2, stage2_steps=2, batch_size=4, words=("saving.log_every=1", "questions=1"))
PRESETS = {
    "smoke": Config((0,), (*_HEADS, "vq", "transfusion"), _TINY, Amount(asked=2, drawn=1), stride=500, scans=4, workers=0),
    "quick": Config((0,), ("v_mixed", "eps_mixed"), Recipe(400, 200, 100), Amount(asked=100, drawn=10), stride=100, scans=100),
    "cpu": Config(),
    "gpu": Config(recipe=Recipe(2000, 3000, 3000, batch_size=512), workers=0, device="cuda"),
}


def run_arm(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One job: train an arm with a seed, then ask, draw, and measure its head."""
    arm, seed = _parts(key)
    stages: dict[str, Path] = {}
    for stage, path in _runs(config).train(arm, seed):
        stages[stage] = path
        tick(1)
    pipeline = MMARPipeline.from_pretrained(stages["stage2"] / FINAL, device=config.device)
    judge, drawing = DigitJudge(), {}
    for way, settings in ways_of(pipeline).items():
        pictures, wanted, seconds = draw_digits(pipeline, settings, config.amount.drawn, seed=seed)
        drawing[way] = {**judge.judge(pictures, wanted), "seconds": seconds, "settings": settings.to_dict()}
    found = {
        "training_s": {stage: stage_summary(path / "log.jsonl")["training_s"] for stage, path in stages.items()},
        "reading": read_digits(pipeline, config.amount.asked),
        "drawing": drawing,
    }
    if arm.has_head:
        timesteps = evaluation_timesteps(config.stride)
        found["head"] = head_curves(pipeline, arm.name, timesteps, draws=1, seed=seed, limit=config.scans)
        found["loss_in_stage2"] = training_loss(stages["stage2"], pipeline)
    tick(1)
    return found


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All arms and seeds, and what follows from them."""
    keys = [f"{name}-seed{seed}" for seed in config.seeds for name in config.arms]
    if not resume:
        for key in keys:
            shutil.rmtree(_runs(config).arm_folder(*_parts(key)), ignore_errors=True)
    if config.workers:
        _runs(config).language_model()  # before several would train it
        os.environ["TQDM_DISABLE"] = "1"  # in the workers, whose bars would run into one another
    jobs = run_jobs(run_arm, config, keys, units_per_job=UNITS, folder=folder, workers=config.workers, resume=resume)
    return {
        "starts": {"safe": _safe_start(jobs)},
        "reference": DigitJudge().reference(10 * config.amount.drawn),
        "arms": {name: _of_all([jobs[f"{name}-seed{seed}"] for seed in config.seeds]) for name in config.arms},
        "head": _heads(config, jobs),
    }


def show(record: dict[str, Any]) -> str:
    """Understanding and generation by arm, means over seeds and half their range; then the head's losses."""
    found, seeds = record["results"], len(record["config"]["seeds"])
    safe = found["starts"]["safe"]
    columns = ["read", "drawn, t=999", "Frechet", f"drawn, t={safe:g}", "Frechet", "training s"]
    lines = [f"{'digits':34}" + "".join(f"{column:>15}" for column in columns)]
    for name, one in found["arms"].items():
        last = one["drawing"]["last"]
        start = one["drawing"].get("safe", {"recognised": _NONE, "frechet": _NONE})
        cells = [_percent(one["reading"], seeds), _percent(last["recognised"], seeds), _number(last["frechet"], seeds)]
        cells += [_percent(start["recognised"], seeds), _number(start["frechet"], seeds), _number(one["training_s"], seeds)]
        lines.append(f"{ARMS[name].label:34}" + "".join(f"{cell:>15}" for cell in cells))
    ceiling = found["reference"]
    cells = ["", f"{ceiling['recognised']:.1%}", f"{ceiling.get('frechet', float('nan')):.3g}"]
    lines.append(f"{'real scans':34}" + "".join(f"{cell:>15}" for cell in cells))
    if found["head"] is None:
        return "\n".join(lines)
    return "\n\n".join(["\n".join(lines), *head_tables(found["head"], seeds)])


_NONE = {"mean": None, "min": None, "max": None}


def _percent(cell: Mapping[str, Any], seeds: int) -> str:
    mean = cell["mean"]
    if mean is None:
        return "-"
    return f"{mean:.1%}" if seeds == 1 else f"{mean:.1%} ±{50 * (cell['max'] - cell['min']):.1f}"


def _number(cell: Mapping[str, Any], seeds: int) -> str:
    mean = cell["mean"]
    if mean is None:
        return "-"
    return f"{mean:.3g}" if seeds == 1 else f"{mean:.3g} ±{(cell['max'] - cell['min']) / 2:.1g}"


def _parts(key: str) -> tuple[Arm, int]:
    name, _, seed = key.rpartition("-seed")
    return ARMS[name], int(seed)


def _runs(config: Config) -> Runs:
    return Runs(command.RUNS / config.folder, config.recipe)


def _safe_start(jobs: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Where the pictures "from a safe t" start, the same for all arms."""
    starts = {job["drawing"]["safe"]["settings"]["max_timestep"] for job in jobs.values() if "safe" in job["drawing"]}
    return min(starts, default=None)


def _of_all(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of one arm over its seeds: mean, smallest, largest, and each."""

    def over(values: Sequence[float | None]) -> dict[str, Any]:
        return {**over_seeds(values), "seeds": list(values)}

    families = {f: over([s["reading"]["families"][f]["right"] / s["reading"]["families"][f]["asked"] for s in seeds])
                for f in seeds[0]["reading"]["families"]}  # fmt: skip
    names = ("recognised", "frechet", "kernel", "precision", "recall", "seconds")
    return {
        "reading": over([seed["reading"]["mean"] for seed in seeds]),
        "families": families,
        "drawing": {
            way: {name: over([seed["drawing"][way].get(name) for seed in seeds]) for name in names}
            for way in seeds[0]["drawing"]
        },
        "training_s": over([sum(seed["training_s"].values()) for seed in seeds]),
        **{key: [seed[key] for seed in seeds] for key in ("loss_in_stage2",) if key in seeds[0]},
    }


def _heads(config: Config, jobs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """What ``eps_vs_v`` makes of its heads, of those of these models; None where an arm is missing."""
    if not set(head_arms.ARMS) <= set(config.arms):
        return None
    measured = {key: {**job["head"], "samples": []} for key, job in jobs.items() if "head" in job}
    found = summarise(measured, Schedule.cosine(1000), evaluation_timesteps(config.stride), config.seeds)
    del found["samples"]
    return found


def main() -> None:
    run_command("table3", (__doc__ or "").splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
