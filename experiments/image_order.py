r"""Is a random order of tokens, as the paper has it, worse than raster order, and why? On digit scans of 16 tokens.

MMAR learns every conditional that masks can ask for; a causal raster model of the same size learns one for each token. With
as many steps the latter draws closer to real scans (``ablations``). Is it the order at inference, the training, or its length?
MMAR is drawn in random and in raster order; the causal model is trained for as many steps as MMAR, and, with the first seed,
for half as many. One token a step and 100 DDPM steps each throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.command import run_command
from experiments.head_study.decompose import over_seeds
from experiments.head_study.tables import number
from experiments.paper_study.arms import ARMS
from experiments.paper_study.measure import Amount, DigitJudge, draw_digits
from experiments.paper_study.study import (
    GPU,
    QUICK,
    TINY,
    UNITS,
    Study,
    load_arm,
    measure_arm,
    percent,
    reference,
    run_study,
)
from mmar.generation.settings import ImageGenerationConfig

LABELS = {
    "random": "random masks, drawn in random order",
    "random, in raster order": "the same models, drawn in raster order",
    "raster": "raster order with causal attention",
    "raster, half the steps": "the same, half the steps of training",
}
"""Trainings and orders of drawing, as tables print them."""
MEASURES = ("recognised", "frechet", "recall", "precision")


HALF = "raster, half the steps"
PRESETS = {
    "smoke": Study((0,), TINY, Amount(2, 1, 3), workers=0),
    "quick": Study((0,), QUICK, Amount(100, 10, 25)),
    "cpu": Study((0, 1)),  # further seeds are trained beside these
    "gpu": Study(recipe=GPU, workers=0, device="cuda"),
}


def job(config: Study, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One model: what it reads, and what it draws in each order that it can."""
    training, _, seed = key.rpartition("-seed")
    if training == HALF:
        recipe = config.recipe
        recipe = replace(recipe, stage1_steps=recipe.stage1_steps // 2, stage2_steps=recipe.stage2_steps // 2)
        config = replace(config, recipe=recipe)
    arm = ARMS["v_mixed" if training == "random" else "raster"]
    found = measure_arm(config, arm, int(seed), tick)
    drawing = {training: found["drawing"]["last"]}
    if training == "random":
        settings = ImageGenerationConfig(head_steps=config.amount.head_steps, order="raster")
        pipeline = load_arm(config, arm, int(seed))
        pictures, wanted, _ = draw_digits(pipeline, settings, config.amount.drawn, seed=int(seed))
        drawing[f"{training}, in raster order"] = DigitJudge().judge(pictures, wanted)
    tick(1)
    return {"reading": found["reading"]["mean"], "drawing": drawing}


def run(config: Study, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All trainings and seeds."""
    seeds = {"random": config.seeds, "raster": config.seeds, HALF: config.seeds[:1]}
    keys = {training: [f"{training}-seed{seed}" for seed in some] for training, some in seeds.items()}
    jobs = run_study(job, config, [key for some in keys.values() for key in some], units=UNITS, folder=folder, resume=resume)
    ways: dict[str, Any] = {}
    for way in LABELS:
        of = [jobs[key] for key in keys[way.removesuffix(", in raster order")]]
        ways[way] = {
            "seeds": len(of),
            "reading": over_seeds([one["reading"] for one in of]),
            **{name: over_seeds([one["drawing"][way].get(name) for one in of]) for name in MEASURES},
        }
    return {"reference": reference(config), "ways": ways}


def show(record: dict[str, Any]) -> str:
    """A line for each training and order."""
    found = record["results"]
    lines = [f"{'':42}" + "".join(f"{column:>14}" for column in ("seeds", "read", "recognised", "Frechet", "recall"))]
    for way, one in found["ways"].items():
        seeds = one["seeds"]
        cells = [str(seeds), percent(one["reading"], seeds), percent(one["recognised"], seeds)]
        cells += [number(one["frechet"], seeds), number(one["recall"], seeds)]
        lines.append(f"{LABELS[way]:42}" + "".join(f"{cell:>14}" for cell in cells))
    real = found["reference"]
    if "frechet" in real:
        lines.append(f"{'real scans':42}{'':28}{real['recognised']:14.1%}{real['frechet']:14.3g}")
    return "\n".join(lines)


def main() -> None:
    run_command("image_order", (__doc__ or "").splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
