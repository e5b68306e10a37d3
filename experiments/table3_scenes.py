r"""Table 3 of the paper in small, on drawn scenes: v, epsilon, VQ and transfusion-like at equal budget.

One object in each scene, in colour, 32 x 32 pixels: where it lies, what it is, what colour it has. All arms share a frozen
language model, the data, the steps and one autoencoder architecture, and learn to see and to draw from nothing. MMAR and the
transfusion-like models have 16 tokens of four latents, VQ has 64 codes. What a diffusion head draws token by token is drawn in
float32 too: is it rounding that makes epsilon fail? Scenes with pairs of colour and shape that training never meets are asked
about too; what the autoencoder alone makes of test scenes stands beside what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.command import run_command
from experiments.head_study.tables import number
from experiments.paper_study.arms import ARMS
from experiments.paper_study.measure import Amount
from experiments.paper_study.objects import (
    ATTRIBUTES,
    FAMILIES,
    measure_float32,
    measure_objects,
    over_seeds_of_objects,
    references,
)
from experiments.paper_study.runs import Recipe
from experiments.paper_study.study import (
    GPU,
    QUICK,
    TINY,
    UNITS,
    Study,
    arm_keys,
    measure_arm,
    parse_key,
    percent,
    run_study,
)
from mmar.data.scenes import CHANCE

WAYS = {
    "last": "Fréchet",
    "last_float32": "in float32",
    "safe": "from a safe t",
    "safe_float32": "in float32",
}
"""Of drawing, and what the columns of their distances are called."""


@dataclass(frozen=True)
class Config(Study):
    """One preset.

    Attributes:
        arms: Names.
    """

    arms: tuple[str, ...] = ("v_mixed", "eps_mixed", "vq", "transfusion", "transfusion_vit")


OBJECTS = Recipe(subject="objects")
_TINY = replace(TINY, preset="mmar-digits", subject="objects")
PRESETS = {
    "smoke": Config((0,), _TINY, Amount(2, 2, 2), arms=("v_mixed", "vq", "transfusion"), workers=0),
    "quick": Config((0,), replace(QUICK, subject="objects"), Amount(100, 50, 25), arms=("v_mixed", "eps_mixed")),
    "cpu": Config((0, 1, 2), OBJECTS, Amount(400, 200)),
    "gpu": Config(recipe=replace(GPU, subject="objects"), amount=Amount(1000, 1000), workers=0, device="cuda"),
}


def job(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One arm with one seed."""
    arm, seed = parse_key(key)
    found = measure_arm(config, arm, seed, tick, measure_objects)
    if arm.has_head:
        exact = measure_arm(config, arm, seed, lambda _: None, measure_float32)
        found = {**found, "drawing": {**found["drawing"], **exact["drawing"]}}
    tick(1)
    return found


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All arms and seeds."""
    keys = arm_keys(config.arms, config.seeds)
    anew = [config.runs.arm_folder(*parse_key(key)) for key in keys]
    jobs = run_study(job, config, keys, units=UNITS, folder=folder, resume=resume, anew=anew)
    return {
        "chance": {**{family: CHANCE[family] for family in FAMILIES}, "mean": sum(CHANCE[f] for f in FAMILIES) / len(FAMILIES)},
        "references": references(config.amount),
        "arms": {name: over_seeds_of_objects([jobs[f"{name}-seed{seed}"] for seed in config.seeds]) for name in config.arms},
    }


def show(record: dict[str, Any]) -> str:
    """What is read, of test scenes and of pairs never met; what is drawn."""
    found, seeds = record["results"], len(record["config"]["seeds"])
    lines = [f"{'read, test scenes':40}" + "".join(f"{column:>14}" for column in (*FAMILIES, "mean", "held out"))]
    for name, one in found["arms"].items():
        cells = [*(one["reading"]["test"][column] for column in (*FAMILIES, "mean")), one["reading"]["held_out"]["mean"]]
        lines.append(f"{ARMS[name].label:40}" + "".join(f"{percent(cell, seeds):>14}" for cell in cells))
    lines.append(f"{'chance':40}" + "".join(f"{found['chance'][column]:14.1%}" for column in (*FAMILIES, "mean")))
    lines += ["", f"{'drawn, from t = 999':40}" + "".join(f"{column:>14}" for column in (*ATTRIBUTES, *WAYS.values()))]
    for name, one in found["arms"].items():
        last = one["drawing"]["last"]
        cells = [percent(last[column], seeds) for column in ATTRIBUTES]
        cells += [number(one["drawing"][way]["frechet"], seeds) if way in one["drawing"] else "" for way in WAYS]
        lines.append(f"{ARMS[name].label:40}" + "".join(f"{cell:>14}" for cell in cells))
    for name, one in found["references"].items():
        frechet = "-" if one.get("frechet") is None else f"{one['frechet']:.3g}"
        lines.append(f"{name:40}" + "".join(f"{one[column]:14.1%}" for column in ATTRIBUTES) + f"{frechet:>14}")
    return "\n".join(lines)


def main() -> None:
    run_command("table3_scenes", (__doc__ or "").splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
