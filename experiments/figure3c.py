r"""Figure 3C of the paper in small: understanding against training steps through both stages, on digit scans.

At each checkpoint test scans are asked about, as the model is and after a short tuning on questions alone, as the paper does.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.command import run_command
from experiments.head_study.decompose import over_seeds
from experiments.paper_study.arms import ARMS
from experiments.paper_study.measure import Amount, read_digits
from experiments.paper_study.runs import Runs
from experiments.paper_study.study import GPU, QUICK, TINY, Study, percent, run_study, trained
from experiments.training_runs import CONFIGS
from mmar.pipeline import MMARPipeline
from mmar.training.checkpoint_folder import list_checkpoints
from mmar.training.config import load_config
from mmar.training.export import checkpoint_pipeline
from mmar.training.loop import train


@dataclass(frozen=True)
class Config(Study):
    """One preset.

    Attributes:
        every: Steps between checkpoints.
        tuning_steps: On questions alone, at each.
        tuning_lr: Its peak rate.
    """

    every: int = 100
    tuning_steps: int = 40
    tuning_lr: float = 3e-4

    @property
    def runs(self) -> Runs:
        """Arms that keep their checkpoints: runs of their own."""
        kept = ("saving.keep=1000", f"saving.every={self.every}")
        return replace(super().runs, recipe=replace(self.recipe, words=(*self.recipe.words, *kept)))

    @property
    def points(self) -> list[tuple[str, int]]:
        """Stage and step of each checkpoint."""
        steps = {"stage1": self.recipe.stage1_steps, "stage2": self.recipe.stage2_steps}
        return [(stage, step) for stage, last in steps.items() for step in range(self.every, last + 1, self.every)]


PRESETS = {
    "smoke": Config((0,), TINY, Amount(asked=2), every=1, tuning_steps=1, workers=0),
    "quick": Config((0,), QUICK, Amount(asked=100), tuning_steps=20),
    "cpu": Config((0,)),
    "gpu": Config(recipe=GPU, every=750, tuning_steps=200, workers=0, device="cuda"),
}


def job(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One seed: trained, then asked at each checkpoint, before and after tuning."""
    seed = int(key.removeprefix("seed"))
    stages = trained(config.runs, ARMS["v_mixed"], seed, tick)
    found: dict[str, Any] = {"plain": [], "tuned": []}
    for stage, step in config.points:
        path = next(path for path in list_checkpoints(stages[stage]) if int(path.name.rpartition("-")[2]) == step)
        pipeline = checkpoint_pipeline(path).to(config.device)
        found["plain"].append(read_digits(pipeline, config.amount.asked))
        found["tuned"].append(read_digits(_tuned(pipeline, config, path.parent / "tuning", seed), config.amount.asked))
        tick(1)
    return found


def _tuned(pipeline: MMARPipeline, config: Config, folder: Path, seed: int) -> MMARPipeline:
    """After a short training on questions alone."""
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder / "start")
    words = (
        "needs=null", "stage=instruction", f"output={folder / 'run'}", f"model.checkpoint={folder / 'start'}",
        "tasks={understanding: 1, generation: 0, unconditional: 0}", f"steps={config.tuning_steps}",
        f"optimizer.lr={config.tuning_lr}", "optimizer.warmup=5", f"optimizer.decay={max(1, config.tuning_steps // 2)}",
        f"batch_size={config.recipe.batch_size}", "saving.keep=1", "saving.samples_every=0", "ema=0.9", f"seed={1000 + seed}",
    )  # fmt: skip
    final = train(load_config(CONFIGS / "digits.yaml", [*words, *config.recipe.words]))
    return MMARPipeline.from_pretrained(final, device=config.device)


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All seeds."""
    keys, points = [f"seed{seed}" for seed in config.seeds], config.points
    jobs = run_study(job, config, keys, units=2 + len(points), folder=folder, resume=resume)
    curves = {
        kind: [over_seeds([jobs[key][kind][i]["mean"] for key in keys]) for i in range(len(points))]
        for kind in ("plain", "tuned")
    }
    families = {
        family: [over_seeds([_share(jobs[key]["tuned"][i]["families"][family]) for key in keys]) for i in range(len(points))]
        for family in jobs[keys[0]]["tuned"][0]["families"]
    }
    return {"points": [{"stage": stage, "step": step} for stage, step in points], **curves, "families_tuned": families}


def _share(one: dict[str, int]) -> float:
    return one["right"] / one["asked"]


def show(record: dict[str, Any]) -> str:
    """A line a checkpoint."""
    found, seeds = record["results"], len(record["config"]["seeds"])
    lines = [f"{'':20}{'as it is':>16}{'after tuning':>16}"]
    for point, plain, tuned in zip(found["points"], found["plain"], found["tuned"], strict=True):
        lines.append(f"{point['stage']:8}{point['step']:12d}{percent(plain, seeds):>16}{percent(tuned, seeds):>16}")
    return "\n".join(lines)


def main() -> None:
    run_command("figure3c", (__doc__ or "").splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
