r"""The families of table 1 in small, and scaling: one language model, one data set, one budget, on digit scans.

MMAR against causal codes (Chameleon-like), masked codes (Show-o-like), whole-image diffusion (transfusion-like) and a model
that reads only (LLaVA-like, on the latents of the same autoencoder: no pretrained encoder is at hand). Then MMAR at three
sizes, all at the learning rates of the middle one, and again at rates that fall with the width. Their language models, each
trained for its size, are asked about captions in the place of images: the control of what they can answer at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.command import run_command
from experiments.head_study.decompose import over_seeds
from experiments.head_study.tables import number
from experiments.paper_study.arms import TABLE1
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
    measure_captions,
    over_seeds_of,
    parse_key,
    percent,
    reference,
    run_study,
)


@dataclass(frozen=True)
class Config(Study):
    """One preset.

    Attributes:
        arms: Names.
        sizes: Presets of MMAR, the smallest first, and, after " x", a factor of all learning rates; the base size is that of
            the arms.
    """

    arms: tuple[str, ...] = tuple(TABLE1)
    sizes: tuple[str, ...] = (
        "mmar-digits-small",
        "mmar-digits",
        "mmar-digits-large",
        "mmar-digits-small x2",
        "mmar-digits-large x0.5",
    )


PRESETS = {
    "smoke": Config(
        (0,),
        TINY,
        Amount(2, 1, 4),
        arms=("chameleon", "understanding_only"),
        sizes=("mmar-digits", "mmar-digits-small x2"),
        workers=0,
    ),
    "quick": Config((0,), QUICK, Amount(100, 10), arms=("v_mixed", "chameleon"), sizes=("mmar-digits-small", "mmar-digits")),
    "cpu": Config((0,)),
    "gpu": Config(recipe=GPU, workers=0, device="cuda"),
}


def job(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One arm, or MMAR at one size, with one seed."""
    size, _, key = key.rpartition(" ")
    if size:
        config = _sized(config, size)
    found = measure_arm(config, *parse_key(key), tick)
    if size:
        found |= measure_arm(config, *parse_key(key), lambda _: None, measure_captions)
    tick(1)
    return found


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All arms, sizes and seeds."""
    keys = arm_keys(config.arms, config.seeds)
    sized = {size: [f"{size} {key}" for key in arm_keys(("v_mixed",), config.seeds)] for size in config.sizes}
    for size in config.sizes if config.workers else ():
        _sized(config, size).runs.language_model()  # one, before several would train it
    everything = [*keys, *(key for part in sized.values() for key in part)]
    jobs = run_study(job, config, everything, units=UNITS, folder=folder, resume=resume)
    return {
        "reference": reference(config),
        "arms": {name: over_seeds_of([jobs[f"{name}-seed{seed}"] for seed in config.seeds]) for name in config.arms},
        "sizes": {size: _size([jobs[key] for key in part]) for size, part in sized.items()},
    }


def show(record: dict[str, Any]) -> str:
    """The families, then the sizes."""
    found, seeds = record["results"], len(record["config"]["seeds"])
    lines = [arm_table(found, seeds), "", f"{'MMAR':24}{'trained':>12}{'read':>14}{'captions':>14}{'drawn':>14}{'Frechet':>14}"]
    for size, one in found["sizes"].items():
        last = one["drawing"]["last"]
        cells = [percent(cell, seeds) for cell in (one["reading"], one["reading_captions"], last["recognised"])]
        cells.append(number(last["frechet"], seeds))
        lines.append(f"{size:24}{one['trained_parameters']:12,d}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def _size(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One size over its seeds."""
    captions = [seed["reading_captions"]["mean"] for seed in seeds]
    return {**over_seeds_of(seeds), "reading_captions": {**over_seeds(captions), "seeds": captions}}


def _sized(config: Config, size: str) -> Config:
    preset, _, rate = size.partition(" x")
    return replace(config, recipe=replace(config.recipe, preset=preset, rate=float(rate or 1)))


def main() -> None:
    run_command("table1", (__doc__ or "").splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
