r"""One thing changed at a time: heads, orders, positions, numbers of tokens and switches of precision, against MMAR on digits.

Flow, EDM and clean-token heads in the place of v; raster order with causal attention in the place of a random order; a RoPE
position for each image token in the place of one for all; a noised context in the place of a clean one; 4, 16 and 64 tokens an
image at equal steps; and the two stages in different precisions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.command import run_command
from experiments.paper_study.arms import ABLATIONS
from experiments.paper_study.measure import Amount
from experiments.paper_study.study import (
    GPU,
    QUICK,
    TINY,
    UNITS,
    Study,
    arm_keys,
    arm_table,
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
    """

    arms: tuple[str, ...] = tuple(ABLATIONS)


PRESETS = {
    "smoke": Config((0,), TINY, Amount(2, 1, 4), arms=("edm", "sequential", "bf16_then_float32", "patches_4"), workers=0),
    "quick": Config((0,), QUICK, Amount(100, 10), arms=("v_mixed", "flow", "sequential")),
    "cpu": Config((0,)),
    "gpu": Config(recipe=GPU, workers=0, device="cuda"),
}


def job(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One arm with one seed."""
    found = measure_arm(config, *parse_key(key), tick)
    tick(1)
    return found


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All arms and seeds."""
    jobs = run_study(job, config, arm_keys(config.arms, config.seeds), units=UNITS, folder=folder, resume=resume)
    return {
        "reference": reference(config),
        "arms": {name: over_seeds_of([jobs[f"{name}-seed{seed}"] for seed in config.seeds]) for name in config.arms},
    }


def show(record: dict[str, Any]) -> str:
    """A line an arm."""
    return arm_table(record["results"], len(record["config"]["seeds"]))


def main() -> None:
    run_command("ablations", (__doc__ or "").splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
