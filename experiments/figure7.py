r"""Figure 7 of the paper in small: what noise on its input costs a transfusion-like model that reads digit scans.

The model is trained to read images noised below half of the schedule, and asked about test scans at several noise levels;
MMAR, which reads clean tokens, stands beside it and, in the preset ``gpu``, an MMAR whose context is noised in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.command import run_command
from experiments.head_study.decompose import over_seeds
from experiments.paper_study.arms import ARMS
from experiments.paper_study.measure import Amount, read_digits
from experiments.paper_study.study import GPU, QUICK, TINY, Study, arm_keys, load_arm, parse_key, percent, run_study
from mmar.data.digits import DIGIT_CHANCE, DIGIT_FAMILIES

CLEAN = "v_mixed"
"""The arm that reads clean tokens."""


@dataclass(frozen=True)
class Config(Study):
    """One preset.

    Attributes:
        noised: Arms that read noised images.
        timesteps: Of their input.
    """

    noised: tuple[str, ...] = ("transfusion", "transfusion_vit", "noised_context")
    timesteps: tuple[int, ...] = (0, 125, 250, 375, 500, 750)


PRESETS = {
    "smoke": Config((0,), TINY, Amount(asked=2), noised=("transfusion",), timesteps=(0, 750), workers=0),
    "quick": Config((0,), QUICK, Amount(asked=100), noised=("transfusion",)),
    "cpu": Config((0, 1), noised=("transfusion", "transfusion_vit")),  # noised_context: one seed trained, not measured yet
    "gpu": Config(recipe=GPU, workers=0, device="cuda"),
}


def job(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One arm with one seed, asked at each noise level; MMAR once."""
    arm, seed = parse_key(key)
    pipeline = load_arm(config, arm, seed)
    tick(1)
    if arm.name == CLEAN:
        return {"clean": read_digits(pipeline, config.amount.asked)}
    found = {}
    for t in config.timesteps:
        found[str(t)] = read_digits(pipeline, config.amount.asked, timestep=t)
        tick(1)
    return found


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All arms and seeds."""
    names = (CLEAN, *config.noised)
    jobs = run_study(
        job, config, arm_keys(names, config.seeds), units=1 + len(config.timesteps), folder=folder, resume=resume
    )  # fmt: skip
    by_arm = {name: [jobs[f"{name}-seed{seed}"] for seed in config.seeds] for name in names}
    return {
        "chance": {**DIGIT_CHANCE, "mean": sum(DIGIT_CHANCE.values()) / len(DIGIT_CHANCE)},
        "arms": {name: {level: _over([one[level] for one in seeds]) for level in seeds[0]} for name, seeds in by_arm.items()},
    }


def _over(readings: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy of each family and their mean, over seeds."""
    shares = {
        family: [one["families"][family]["right"] / one["families"][family]["asked"] for one in readings]
        for family in DIGIT_FAMILIES
    }
    return {
        **{family: over_seeds(values) for family, values in shares.items()},
        "mean": over_seeds([r["mean"] for r in readings]),
    }


def show(record: dict[str, Any]) -> str:
    """A line a noise level, a column a family."""
    found, seeds = record["results"], len(record["config"]["seeds"])
    families = list(found["chance"])
    lines = [f"{'':42}" + "".join(f"{family:>15}" for family in families)]
    for name, levels in found["arms"].items():
        for level, one in levels.items():
            title = f"{ARMS[name].label}, {level if level == 'clean' else 't = ' + level}"
            lines.append(f"{title:42}" + "".join(f"{percent(one[family], seeds):>15}" for family in families))
    lines.append(f"{'chance':42}" + "".join(f"{found['chance'][family]:15.1%}" for family in families))
    return "\n".join(lines)


def main() -> None:
    run_command("figure7", (__doc__ or "").splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
