r"""Does a training run that is killed again and again end as one that was left alone?

A tiny run as a process group is ended by SIGKILL at random moments: while it starts, between steps and, in every third case,
aimed at a checkpoint that is being written. It is resumed each time, and at the end compared with a run without interruption:
log lines to the last printed digit, weights, average, optimizer and statistics to the bit. The control resumes once from a
checkpoint whose first moments of the optimizer were set to zero, which the comparison must see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch

from experiments.command import run_command
from experiments.jobs import run_jobs
from experiments.kill_study.equality import equal_parts, log_lines, numbers
from experiments.kill_study.process import Kill, Run, draw_moment
from experiments.kill_study.sources import SourceGuard
from mmar.training.checkpoint_folder import list_checkpoints, load_checkpoint, save_checkpoint
from mmar.training.config import DataSource, ModelSource, TrainingConfig


@dataclass(frozen=True)
class Config:
    """One preset.

    Attributes:
        kills: Of the run.
        aim_every: Every so many kills one is aimed at a checkpoint, beginning with the first.
        every: Steps between checkpoints.
        most: Steps of a process before it is killed, at most; twice ``every`` at least.
        steps: Of the whole run; more than ``kills * most``, so that it cannot end before the last kill.
        readers: Processes that read data; they are killed too.
        batch_size: Samples of a step.
        start_s: Seconds of a start, about: what delays are drawn from.
        write_s: Of writing a checkpoint, about.
        step_s: Of a step, about.
        seeds: One run each; the moments are drawn from it.
        workers: Runs at the same time; 0: one, here.
        device: Where it runs.
    """

    kills: int = 20
    aim_every: int = 3
    every: int = 4
    most: int = 8
    steps: int = 180
    readers: int = 1
    batch_size: int = 2
    start_s: float = 5.0
    write_s: float = 0.03
    step_s: float = 0.1
    seeds: tuple[int, ...] = (0,)
    workers: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.most < 2 * self.every or self.steps <= self.kills * self.most:
            raise ValueError(
                f"most must be at least 2 every, and steps more than kills * most, got {self.most} of {self.every} and "
                f"{self.steps} of {self.kills} * {self.most}"
            )


PRESETS = {
    "smoke": Config(kills=2, aim_every=2, every=2, most=4, steps=9, readers=0, start_s=1.0),
    "quick": Config(kills=5, steps=50),
    "cpu": Config(),
    "gpu": Config(device="cuda"),
}


def job(config: Config, key: str, tick: Callable[[int], None]) -> dict[str, Any]:
    """One run with its kills, one without, and the control."""
    seed, guard = int(key.removeprefix("seed ")), SourceGuard()
    with TemporaryDirectory() as place:
        whole, killed, control = (Run(training(config, Path(place) / name), device=config.device) for name in NAMES)
        whole.finish()
        tick(1)
        kills = []
        for number in range(config.kills):
            moment = draw_moment(
                Random(f"kill {seed} {number}"),
                aimed=number % config.aim_every == 0,
                most=config.most,
                start_s=config.start_s,
                write_s=config.write_s,
                step_s=config.step_s,
            )
            kills.append(killed.kill(moment))
            guard.check()
            tick(1)
        killed.finish()
        tick(1)
        forget(whole.folder, control.folder)
        control.finish()
        guard.check()
        tick(1)
        return {
            **summary(kills),
            "equal": equal_parts(whole.folder, killed.folder),
            "control_equal": equal_parts(whole.folder, control.folder),
            "log_lines": len(log_lines(killed.folder)),
            "numbers": numbers(killed.folder),
            "each_kill": [{**asdict(kill), "lost": kill.lost} for kill in kills],
        }


NAMES = ("whole", "killed", "control")


def training(config: Config, output: Path) -> TrainingConfig:
    """The run: a tiny model on digits."""
    made = TrainingConfig(output=str(output), model=ModelSource(preset="mmar-tiny"), data=[DataSource(kind="digits")])
    made.batch_size, made.steps, made.workers, made.threads = config.batch_size, config.steps, config.readers, 1
    made.optimizer = replace(made.optimizer, warmup=10)
    made.saving = replace(made.saving, every=config.every, log_every=1)
    return made


def forget(source: Path, target: Path) -> None:
    """The oldest checkpoint that is left, without the optimizer's first moments."""
    checkpoint = load_checkpoint(list_checkpoints(source)[0])
    moments = checkpoint.tensors["optimizer"]
    forgotten = {name: torch.zeros_like(value) if name.endswith("/exp_avg") else value for name, value in moments.items()}
    save_checkpoint(target, checkpoint.step, {**checkpoint.tensors, "optimizer": forgotten}, checkpoint.state, keep=1)


def summary(kills: list[Kill]) -> dict[str, Any]:
    """What the list of kills says."""
    return {
        "kills": len(kills),
        "at_steps": [kill.step for kill in kills],
        "aimed_at_a_checkpoint": sum(kill.aimed for kill in kills),
        "hit_a_checkpoint_being_written": sum(kill.writing for kill in kills),
        "left_a_broken_checkpoint": sum(kill.broken > 0 for kill in kills),
        "steps_lost_at_most": max(kill.lost for kill in kills),
        "steps_lost": sum(kill.lost for kill in kills),
    }


def run(config: Config, *, folder: Path, resume: bool) -> dict[str, Any]:
    """All runs."""
    keys = [f"seed {seed}" for seed in config.seeds]
    return run_jobs(job, config, keys, units_per_job=config.kills + 3, folder=folder, workers=config.workers, resume=resume)


def show(record: Mapping[str, Any]) -> str:
    """A paragraph per run."""
    lines = []
    for key, result in record["results"].items():
        lines.append(
            f"{key}: {result['kills']} kills, {result['hit_a_checkpoint_being_written']} while a checkpoint was written, "
            f"{result['left_a_broken_checkpoint']} left a broken one; at most {result['steps_lost_at_most']} steps lost"
        )
        lines.append(f"  at steps {', '.join(map(str, result['at_steps']))}")
        lines.append(f"  {result['log_lines']} log lines and {result['numbers']} numbers compared")
        for name, equal in result["equal"].items():
            control = "equal" if result["control_equal"][name] else "differs"
            lines.append(f"  {name:12}{'equal' if equal else 'DIFFERS':10}control: {control}")
    return "\n".join(lines)


def main() -> None:
    run_command("kill_and_resume", __doc__.splitlines()[0], PRESETS, run, show)


if __name__ == "__main__":
    main()
