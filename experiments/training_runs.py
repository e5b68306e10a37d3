"""Runs of the trainer inside an experiment: stages by their configuration files, resumed where they were cut off."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmar.training.config import TrainingConfig, load_config, save_config
from mmar.training.loop import FINAL, train

CONFIGS = Path(__file__).parent.parent / "configs"


def train_stages(
    names: Sequence[str], overrides: Mapping[str, Sequence[str]], *, folder: Path, resume: bool, processes: int = 1
) -> dict[str, dict[str, Any]]:
    """Train stage after stage.

    Args:
        names: Of files in ``configs``, in order; what they call ``runs/NAME`` is put into ``folder/NAME``.
        overrides: ``key=value`` words by name; those of "" for every stage.
        folder: Of the runs.
        resume: Go on from what is there; without it all begins anew.
        processes: That share each step, of one thread each where there are several; ``batch_size`` is that of each.

    Returns:
        :func:`stage_summary` of each, its configuration and processes.

    Raises:
        KeyboardInterrupt: If a signal ended the training; what is done is kept.
        ValueError: If a finished stage was trained with other settings.
    """
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        words = [*overrides.get("", ()), *overrides.get(name, ())]
        config = _moved(load_config(CONFIGS / f"{name}.yaml", words), folder)
        final = Path(config.output) / FINAL
        if final.is_dir():
            _check_same(config)
        else:
            if processes == 1:
                train(config, resume=True)
            else:
                _train_on(processes, config)
        if not final.is_dir():
            raise KeyboardInterrupt
        found[name] = {
            **stage_summary(folder / name / "log.jsonl"),
            "processes": processes,
            "config": asdict(load_config(CONFIGS / f"{name}.yaml", words)),
        }
    return found


def _check_same(config: TrainingConfig) -> None:
    """A stage that is there must be the one that is wanted: presets share their folder."""
    path = Path(config.output) / "config.yaml"
    there, wanted = (asdict(one) for one in (load_config(path), config))
    names = [name for name in wanted if name not in _MAY_DIFFER and there[name] != wanted[name]]
    if names:
        told = "; ".join(f"{name} {there[name]} where {wanted[name]} is wanted" for name in names)
        raise ValueError(f"{config.output} must hold the stage that is wanted, got {told}; run it without --resume")


_MAY_DIFFER = ("output", "needs", "saving", "threads", "workers")
"""Of a training configuration: what changes nothing of what is learnt."""


def stage_summary(log: Path) -> dict[str, Any]:
    """Steps, seconds, rates and last losses of a stage.

    Args:
        log: ``log.jsonl`` of the run.
    """
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [line["step"] for line in lines]
    spans = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    seconds = [line["step_s"] * span for line, span in zip(lines, spans, strict=True)]
    total, last = max(1e-9, sum(seconds)), lines[-1]
    return {
        "steps": last["step"],
        "training_s": total,
        "data_share": sum(line["data_share"] * s for line, s in zip(lines, seconds, strict=True)) / total,
        "memory_gib": last["memory_gib"],
        "text_loss": last["text_loss"],
        "image_loss": last["image_loss"],
    }


def _train_on(processes: int, config: TrainingConfig) -> None:
    """``torchrun -m mmar.train`` on this machine."""
    path = Path(config.output) / "torchrun.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    config.needs = None
    save_config(config, path)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, "-m", "mmar.train", str(path), "--resume"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=CONFIGS.parent)


def _moved(config: TrainingConfig, folder: Path) -> TrainingConfig:
    """Everything below ``runs`` below ``folder`` instead."""

    def moved(path: str | None) -> str | None:
        return path if path is None or not path.startswith("runs/") else str(folder / path.removeprefix("runs/"))

    config.output = moved(config.output) or config.output
    config.model.checkpoint, config.model.language_model = moved(config.model.checkpoint), moved(config.model.language_model)
    config.tokenizers.text, config.tokenizers.image = moved(config.tokenizers.text), moved(config.tokenizers.image)
    return config
