r"""Table 3 of the paper in small, on digit scans: v, epsilon, VQ and transfusion-like, and what tells the causes apart.

All arms share a frozen language model, the data, the steps and one autoencoder architecture. v and epsilon are also trained
in float32 and in pure bf16, and epsilon with the loss of v: is the paper's gap precision, weighting or conditioning? Pictures
are drawn from t = 999 and from the largest t that one bf16 rounding leaves safe for epsilon. The errors of the heads at each
noise level make figure 3A, measured in MMAR itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffparam import Schedule
from experiments.command import run_command
from experiments.head_study import arms as head_arms
from experiments.head_study.decompose import evaluation_timesteps
from experiments.head_study.summary import summarise
from experiments.head_study.tables import head_tables
from experiments.paper_study.arms import TABLE3
from experiments.paper_study.measure import Amount, head_curves, training_loss
from experiments.paper_study.study import (
    GPU,
    QUICK,
    TINY,
    UNITS,
    Study,
    arm_keys,
    arm_table,
    load_arm,
    measure_arm,
    over_seeds_of,
    parse_key,
    reference,
    run_study,
)


@dataclass(frozen=True)
class Config(Study):
    """One preset.

    Attributes:
        arms: Names.
        stride: Distance of the timesteps at which the heads are measured, below 950.
        scans: On which they are measured, of each split; None: all.
    """

    arms: tuple[str, ...] = tuple(TABLE3)
    stride: int = 20
    scans: int | None = None


PRESETS = {
    "smoke": Config((0,), TINY, Amount(2, 1, 4), arms=(*head_arms.ARMS, "vq", "transfusion"), stride=500, scans=4, workers=0),
    "quick": Config((0,), QUICK, Amount(100, 10), arms=("v_mixed", "eps_mixed"), stride=100, scans=100),
    "cpu": Config((0, 1)),
    "gpu": Config(recipe=GPU, workers=0, device="cuda"),
}


def run_arm(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One job: train an arm with a seed, then ask, draw, and measure its head."""
    arm, seed = parse_key(key)
    found = measure_arm(config, arm, seed, tick)
    if arm.has_head:
        pipeline = load_arm(config, arm, seed)
        timesteps = evaluation_timesteps(config.stride)
        found["head"] = head_curves(pipeline, arm.name, timesteps, draws=1, seed=seed, limit=config.scans)
        found["loss_in_stage2"] = training_loss(config.runs.arm_folder(arm, seed) / "stage2", pipeline)
    tick(1)
    return found


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All arms and seeds, and what follows from them."""
    keys = arm_keys(config.arms, config.seeds)
    anew = [config.runs.arm_folder(*parse_key(key)) for key in keys]
    jobs = run_study(run_arm, config, keys, units=UNITS, folder=folder, resume=resume, anew=anew)
    return {
        "safe_start": _safe_start(jobs),
        "reference": reference(config),
        "arms": {name: over_seeds_of([jobs[f"{name}-seed{seed}"] for seed in config.seeds]) for name in config.arms},
        "loss_in_stage2": {key: job["loss_in_stage2"] for key, job in jobs.items() if "loss_in_stage2" in job},
        "head": _heads(config, jobs),
    }


def show(record: dict[str, Any]) -> str:
    """Understanding and generation by arm; then the losses of the heads."""
    found, seeds = record["results"], len(record["config"]["seeds"])
    parts = [f"safe t for epsilon: {found['safe_start']:g}", arm_table(found, seeds)]
    return "\n\n".join(parts if found["head"] is None else [*parts, *head_tables(found["head"], seeds)])


def _safe_start(jobs: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Where the pictures "from a safe t" start, the same for all arms."""
    starts = {job["drawing"]["safe"]["settings"]["max_timestep"] for job in jobs.values() if "safe" in job["drawing"]}
    return min(starts, default=None)


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
