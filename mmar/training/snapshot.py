"""What is saved of a run and taken up again: trained parameters, optimizer, average; on any number of ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmar.training.checkpoint_folder import (
    Checkpoint,
    begin_checkpoint,
    finish_checkpoint,
    load_checkpoint,
    load_latest,
)
from mmar.training.ema import ExponentialMovingAverage
from mmar.training.optimizer import load_optimizer_tensors, optimizer_tensors
from mmar.training.parallel import Processes
from mmar.training.sharded_checkpoint import SHARDS, read_shards, write_shards
from mmar.training.sharding import like

Groups = dict[str, dict[str, Tensor]]


def trained_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, ema: ExponentialMovingAverage | None) -> Groups:
    """Everything that training changes, by group and name."""
    groups: Groups = {"model": _trained(model), "optimizer": optimizer_tensors(optimizer, model)}
    if ema is not None:
        groups["ema"] = ema.shadow
    return groups


def save(
    folder: Path,
    step: int,
    trained: Groups,
    others: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int,
    processes: Processes,
    is_sharded: bool,
) -> Path:
    """Write a checkpoint; every rank has to call.

    Args:
        folder: Of the run.
        step: Optimizer steps done.
        trained: From :func:`trained_tensors`, whole on rank 0 or as shards on all.
        others: Groups of whole tensors.
        state: JSON.
        keep: Checkpoints to keep.
        processes: Of the run.
        is_sharded: Whether ``trained`` are shards.

    Raises:
        OSError: On all ranks, if it cannot be written.
    """
    if not is_sharded:
        whole = {**trained, **others}
        return processes.on_main(lambda: finish_checkpoint(begin_checkpoint(folder, step), step, whole, state, keep=keep))
    temporary = processes.on_main(lambda: begin_checkpoint(folder, step))
    digests = write_shards(temporary, trained, processes)
    return processes.on_main(lambda: finish_checkpoint(temporary, step, others, state, keep=keep, digests=digests))


def newest(folder: Path, processes: Processes) -> Checkpoint | None:
    """The newest whole checkpoint of a run, looked for and checked by rank 0; says which were broken."""

    def find() -> tuple[Path | None, list[str]]:
        found, complaints = load_latest(folder)
        return None if found is None else found.path, complaints

    path, complaints = processes.on_main(find)
    for complaint in complaints:
        processes.say(f"skipped a broken checkpoint: {complaint}")
    return None if path is None else load_checkpoint(path, check=False)


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, ema: ExponentialMovingAverage | None
) -> None:
    """Take up parameters, optimizer and average, held as the model is held now.

    Raises:
        ValueError: If the checkpoint is of other parameters.
    """
    parameters = _trained(model)
    tensors = checkpoint.tensors
    if (checkpoint.path / SHARDS).is_dir():
        tensors = {**tensors, **read_shards(checkpoint.path, parameters)}
    if set(parameters) != set(tensors["model"]):
        different = sorted(set(parameters) ^ set(tensors["model"]))
        raise ValueError(f"{checkpoint.path} must be of this model, got differences: {', '.join(different[:4])}")
    for name, parameter in parameters.items():
        found = tensors["model"][name].shape
        if found != parameter.shape:
            raise ValueError(
                f"{checkpoint.path} must be of this model, got {name} of shape {tuple(found)} for {tuple(parameter.shape)}; "
                "resume with the sizes of the run, or choose another output folder"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(like(parameter, tensors["model"][name]))
    load_optimizer_tensors(optimizer, model, tensors["optimizer"])
    if ema is not None:
        ema.load(tensors["ema"], checkpoint.state["ema_updates"])


def frozen_digest(model: nn.Module) -> str:
    """SHA-256 of names, shapes and first numbers of what training does not change, which no checkpoint holds.

    In bfloat16, so that the dtype they are held in does not matter. Of a whole model, not of shards.
    """
    sha = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            first = parameter.detach().flatten()[:_FIRST].to("cpu", torch.bfloat16).contiguous()
            sha.update(f"{name} {tuple(parameter.shape)}".encode())
            sha.update(first.view(torch.uint8).numpy().data)
    return sha.hexdigest()


_FIRST = 1024


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
