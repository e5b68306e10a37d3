"""What the experiments on digit arms have in common: a configuration, jobs on arms, numbers over seeds, a table."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import command
from experiments.head_study.decompose import over_seeds
from experiments.head_study.tables import number
from experiments.jobs import Job, run_jobs
from experiments.paper_study.arms import ARMS, Arm
from experiments.paper_study.kept import file_name, take_up
from experiments.paper_study.measure import Amount, DigitJudge, draw_digits, read_digits, ways_of
from experiments.paper_study.runs import Recipe, Runs
from experiments.record import describe_device, write_json
from experiments.training_runs import stage_summary
from mmar.pipeline import MMARPipeline
from mmar.training.loop import FINAL

_IN_KEYS = ("seeds", "arms", "noised", "lengths", "sizes", "models", "workers")
"""Fields of configurations that say which jobs there are, or how many at a time, and nothing of what a job does."""
_STAGES = 2
UNITS = _STAGES + 1
"""Of the progress bar for an arm: each stage, and what is measured."""
TINY = Recipe(
    "mmar-digits-small", text_steps=2, stage1_steps=2, stage2_steps=2, batch_size=4, words=("saving.log_every=1", "questions=1")
)
"""For smoke tests."""
QUICK = Recipe(400, 200, 100)
"""For a newcomer: a minute or two an arm."""
GPU = Recipe(2000, 3000, 3000, batch_size=512)
"""For an accelerator."""


@dataclass(frozen=True)
class Study:
    """One preset of an experiment on arms.

    Attributes:
        seeds: Fixed before anything was seen; all are reported.
        recipe: Of the training, shared by all arms.
        amount: How much is asked and drawn.
        workers: Arms at a time, one thread each; 0: one at a time with all threads.
        folder: Of the trained arms, below that of all runs: experiments share it, and so their arms.
        device: Where they run.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    recipe: Recipe = field(default_factory=Recipe)
    amount: Amount = field(default_factory=Amount)
    workers: int = 2
    folder: str = "paper_study"
    device: str = "cpu"

    @property
    def runs(self) -> Runs:
        """The arms of this preset."""
        return Runs(command.RUNS / self.folder, self.recipe)


def run_study(
    job: Job, config: Study, keys: Sequence[str], *, units: int, folder: Path, resume: bool, anew: Iterable[Path] = ()
) -> dict[str, dict[str, Any]]:
    """Run a job for each key; the language model that all arms share is trained before.

    Args:
        job: ``job(config, key, tick)``, a function of a module.
        config: Of the experiment.
        keys: One a job.
        units: Of the progress bar, a job.
        folder: Of finished jobs.
        resume: Use the finished jobs of an earlier run, and what is kept of arms with the records.
        anew: Folders of arms that are removed first, unless ``resume``; those of other experiments are taken up as they are.
    """
    if not resume:
        for path in anew:
            shutil.rmtree(path, ignore_errors=True)
    else:
        take_up(config.runs.folder)
    if config.workers:
        config.runs.language_model()
        os.environ["TQDM_DISABLE"] = "1"  # in the workers, whose bars would run into one another
    options = {"units_per_job": units, "folder": folder, "workers": config.workers, "resume": resume}
    return run_jobs(job, config, list(keys), in_keys=_IN_KEYS, **options)


def arm_keys(arms: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """A key for each arm and seed; all arms of a seed before the next."""
    return [f"{name}-seed{seed}" for seed in seeds for name in arms]


def parse_key(key: str) -> tuple[Arm, int]:
    """Arm and seed of a key."""
    name, _, seed = key.rpartition("-seed")
    return ARMS[name], int(seed)


def trained(runs: Runs, arm: Arm, seed: int, tick: Callable[[int], None]) -> dict[str, Path]:
    """Folders of both stages of an arm; ticks after each."""
    stages: dict[str, Path] = {}
    for stage, path in runs.train(arm, seed):
        stages[stage] = path
        tick(1)
    return stages


def measure_digits(pipeline: MMARPipeline, amount: Amount, seed: int) -> dict[str, Any]:
    """Questions about test scans; digits drawn in every way that the model can."""
    judge, drawing = DigitJudge(), {}
    for way, settings in ways_of(pipeline, amount.head_steps).items():
        pictures, wanted, seconds = draw_digits(pipeline, settings, amount.drawn, seed=seed)
        drawing[way] = {**judge.judge(pictures, wanted), "seconds": seconds, "settings": settings.to_dict()}
    return {"reading": read_digits(pipeline, amount.asked), "drawing": drawing}


def measure_captions(pipeline: MMARPipeline, amount: Amount, seed: int) -> dict[str, Any]:
    """The same questions about captions in the place of scans: what the language model can answer at all."""
    return {"reading_captions": read_digits(pipeline, amount.asked, of_captions=True)}


Measure = Callable[[MMARPipeline, Amount, int], dict[str, Any]]
"""``measure_WHAT(pipeline, amount, seed)``; its results are kept under the name WHAT."""


def measure_arm(
    config: Study, arm: Arm, seed: int, tick: Callable[[int], None], measure: Measure = measure_digits
) -> dict[str, Any]:
    """What was found of an arm; it is trained where that is not known yet.

    What was found is kept with the arm, for other experiments that measure it as much. It names the ``device``.
    """
    kept = config.runs.arm_folder(arm, seed) / file_name(measure.__name__.removeprefix("measure_"), config.amount)
    if kept.exists():
        tick(_STAGES)
        return json.loads(kept.read_text())
    stages = trained(config.runs, arm, seed, tick)
    pipeline = MMARPipeline.from_pretrained(stages["stage2"] / FINAL, device=config.device)
    found = {
        "device": describe_device(config.device),
        "parameters": sum(p.numel() for p in pipeline.model.parameters() if p.requires_grad),
        "training_s": sum(stage_summary(path / "log.jsonl")["training_s"] for path in stages.values()),
        **measure(pipeline, config.amount, seed),
    }
    write_json(found, kept)
    return found


def load_arm(config: Study, arm: Arm, seed: int, tick: Callable[[int], None] = lambda _: None) -> MMARPipeline:
    """The model of an arm, trained where it is not yet; ticks after each stage."""
    return MMARPipeline.from_pretrained(trained(config.runs, arm, seed, tick)["stage2"] / FINAL, device=config.device)


def over_seeds_of(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of one arm over its seeds: mean, smallest and largest, and each."""

    def over(values: Sequence[float | None]) -> dict[str, Any]:
        return {**over_seeds(values), "seeds": list(values)}

    first = seeds[0]
    shares = [{f: one["right"] / one["asked"] for f, one in seed["reading"]["families"].items()} for seed in seeds]
    names = ("recognised", "frechet", "kernel", "precision", "recall", "seconds")
    return {
        "reading": over([seed["reading"]["mean"] for seed in seeds]),
        "families": {family: over([share[family] for share in shares]) for family in shares[0]},
        "drawing": {
            way: {name: over([seed["drawing"][way].get(name) for seed in seeds]) for name in names} for way in first["drawing"]
        },
        "training_s": over([seed["training_s"] for seed in seeds]),
        "trained_parameters": first["parameters"],
        "devices": [seed["device"] for seed in seeds],
    }


def reference(config: Study) -> dict[str, Any]:
    """What real scans score, as many as are drawn."""
    return DigitJudge().reference(10 * config.amount.drawn)


def arm_table(results: Mapping[str, Any], seeds: int) -> str:
    """Understanding and generation by arm: means over seeds and half their range."""
    columns = ("read", "drawn", "Frechet", "from safe t", "Frechet", "training s")
    lines = [f"{'':36}" + "".join(f"{column:>14}" for column in columns)]
    for name, one in results["arms"].items():
        cells = [percent(one["reading"], seeds)]
        for way in ("last", "safe"):
            way = one["drawing"].get(way, {"recognised": NOTHING, "frechet": NOTHING})
            cells += [percent(way["recognised"], seeds), number(way["frechet"], seeds)]
        cells.append(number(one["training_s"], seeds))
        lines.append(f"{ARMS[name].label:36}" + "".join(f"{cell:>14}" for cell in cells))
    real = results["reference"]
    frechet = "-" if real.get("frechet") is None else f"{real['frechet']:.3g}"
    lines.append(f"{'real scans':36}{'':14}{real['recognised']:14.1%}{frechet:>14}")
    return "\n".join(lines)


NOTHING = {"mean": None, "min": None, "max": None}


def percent(cell: Mapping[str, Any], seeds: int) -> str:
    """A share over seeds."""
    mean = cell["mean"]
    if mean is None:
        return "-"
    return f"{mean:.1%}" if seeds == 1 else f"{mean:.1%} ±{50 * (cell['max'] - cell['min']):.1f}"
