"""Tensors that no rank holds whole, through torch's distributed checkpoints: written by many ranks, read by any number.

Their index is a pickle, as torch writes it: load only what a run of your own wrote.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mmar.training.checkpoint_folder import digest, explained
from mmar.training.parallel import Processes

SHARDS = "shards"
"""Folder in that of a checkpoint."""


def write_shards(temporary: Path, tensors: Mapping[str, Mapping[str, Tensor]], processes: Processes) -> dict[str, str]:
    """Write the parts of all ranks; every rank has to call, on one file system.

    Args:
        temporary: From :func:`mmar.training.checkpoint_folder.begin_checkpoint`.
        tensors: Groups of named shards.
        processes: That hold them.

    Returns:
        Digests of the files by path in the folder, each taken by the rank that wrote it.

    Raises:
        OSError: On all ranks, if one cannot write.
    """
    folder = temporary / SHARDS
    flat = {f"{group}/{name}": tensor.detach() for group, named in tensors.items() for name, tensor in named.items()}
    with explained(temporary):
        try:
            dcp.save(flat, storage_writer=dcp.FileSystemWriter(folder))  # syncs its files
        except CheckpointException as error:
            raise OSError(f"ranks {sorted(error.failures)}: {next(iter(error.failures.values()))[0]}") from error
        own = {f"{SHARDS}/{path.name}": digest(path) for path in folder.glob(f"__{processes.rank}_*")}
    return {name: value for digests in processes.gather(own) for name, value in digests.items()}


def read_shards(path: Path, parameters: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Read what :func:`write_shards` wrote, each tensor held as the parameter of its name is held now, whole or as a shard.

    Args:
        path: Of the checkpoint.
        parameters: Of the model, by name.

    Raises:
        ValueError: If a tensor is of no parameter.
    """
    reader = dcp.FileSystemReader(path / SHARDS)
    described = reader.read_metadata().state_dict_metadata
    flat = {key: _place(key, found, parameters) for key, found in described.items() if isinstance(found, TensorStorageMetadata)}
    with warnings.catch_warnings():  # that there is one process
        warnings.filterwarnings("ignore", message="torch.distributed is")
        dcp.load(flat, storage_reader=reader)
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups


def _place(key: str, found: TensorStorageMetadata, parameters: Mapping[str, Tensor]) -> Tensor:
    """Where a tensor is read to: shaped and held like its parameter, or small and whole as an optimizer's count of steps."""
    name = key.split("/")[1]
    if name not in parameters:
        raise ValueError(f"the checkpoint must be of this model, got {name}, which it does not train")
    parameter = parameters[name]
    if found.size != parameter.shape:
        return torch.empty(found.size, dtype=found.properties.dtype)
    return torch.empty_like(parameter.detach(), dtype=found.properties.dtype)
