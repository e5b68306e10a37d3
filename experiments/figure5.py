r"""Figure 5 of the paper in small: holes in drawn digits after stage 1 alone, and after stage 2 with three mask densities.

A hole is a patch that the rest of the picture makes surprising; real test scans have one patch in a hundred. All arms are
trained for as many steps; stage 1 alone goes on with masks on [0.7, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.command import run_command
from experiments.head_study.decompose import over_seeds
from experiments.paper_study.arms import ARMS, MASKS
from experiments.paper_study.measure import Amount, draw_digits, scans_of, ways_of
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
    percent,
    reference,
    run_study,
)
from experiments.pictures import packed
from mmar.evaluation.patch_surprise import PatchSurprise


@dataclass(frozen=True)
class Config(Study):
    """One preset.

    Attributes:
        arms: Names.
        shown: Pictures of each digit in the record, of the first seed.
    """

    arms: tuple[str, ...] = tuple(MASKS)
    shown: int = 4


PRESETS = {
    "smoke": Config((0,), TINY, Amount(2, 1, 3), arms=("stage1_only", "v_mixed"), shown=1, workers=0),
    "quick": Config((0,), QUICK, Amount(50, 10, 25), arms=("stage1_only", "v_mixed")),
    "cpu": Config((0,)),  # further seeds are trained beside this one
    "gpu": Config(recipe=GPU, workers=0, device="cuda"),
}


def job(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One arm with one seed: asked and drawn; the holes in what was drawn."""
    arm, seed = parse_key(key)
    found, pipeline = measure_arm(config, arm, seed, tick), load_arm(config, arm, seed)
    settings = ways_of(pipeline, config.amount.head_steps)["last"]
    pictures, _, _ = draw_digits(pipeline, settings, config.amount.drawn, seed=seed)
    found["holes"] = float(_surprise().holes(pictures).mean())
    first = [pictures[digit * config.amount.drawn + i] for i in range(config.shown) for digit in range(10)]
    found["pictures"] = [packed(picture) for picture in first]
    tick(1)
    return found


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All arms and seeds."""
    jobs = run_study(job, config, arm_keys(config.arms, config.seeds), units=UNITS, folder=folder, resume=resume)
    by_arm = {name: [jobs[f"{name}-seed{seed}"] for seed in config.seeds] for name in config.arms}
    holes = {name: [one["holes"] for one in seeds] for name, seeds in by_arm.items()}
    return {
        "reference": reference(config),
        "holes": {name: {**over_seeds(values), "seeds": values} for name, values in holes.items()},
        "holes_in_test_scans": float(_surprise().holes(scans_of("test")).mean()),
        "pictures": {name: seeds[0]["pictures"] for name, seeds in by_arm.items()},
        "arms": {name: over_seeds_of(seeds) for name, seeds in by_arm.items()},
    }


def show(record: dict[str, Any]) -> str:
    """Holes, then everything else."""
    found, seeds = record["results"], len(record["config"]["seeds"])
    lines = [f"{ARMS[name].label:36}{percent(cell, seeds):>14} of patches" for name, cell in found["holes"].items()]
    lines.append(f"{'real test scans':36}{found['holes_in_test_scans']:14.1%}")
    return "\n".join([*lines, "", arm_table(found, seeds)])


def _surprise() -> PatchSurprise:
    return PatchSurprise.fit(scans_of("train"), scans_of("test"))


def main() -> None:
    run_command("figure5", (__doc__ or "").splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
