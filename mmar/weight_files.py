"""Strict copying of named tensors into a model: all of them, of the right shape, and nothing left over."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""What transformers calls the one file of a model, and the list of several."""


@dataclass(frozen=True)
class TensorSource:
    """Tensors by name, read one at a time.

    Attributes:
        origin: Where they come from, for messages.
        shapes: Of all of them.
        read: Returns one.
    """

    origin: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]

    @classmethod
    def of(cls, source: Mapping[str, Tensor] | str | Path) -> TensorSource:
        """A state dict, a safetensors file, or a folder as transformers saves a model, in one file or several.

        Raises:
            FileNotFoundError: If the path, or one of the files that an index names, is not there.
        """
        if isinstance(source, Mapping):
            return cls("the state dict", {name: tuple(t.shape) for name, t in source.items()}, source.__getitem__)
        path = Path(source)
        files = weight_files(path) if path.is_dir() else [path]
        lost = [str(file) for file in files if not file.is_file()]
        if lost:
            raise FileNotFoundError(
                f"weights must be safetensors, got no {', '.join(lost)}; fetch the whole folder, or save the "
                "model anew with save_pretrained"
            )
        opened = [safe_open(file, framework="pt") for file in files]
        holder = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - not a mapping
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in holder.items()}
        return cls(str(path), shapes, functools.partial(_read, holder))

    def renamed(self, names: Mapping[str, str]) -> TensorSource:
        """The same under other names; names that the map lacks stay."""
        old = {names.get(name, name): name for name in self.shapes}
        shapes = {new: self.shapes[name] for new, name in old.items()}
        return TensorSource(self.origin, shapes, lambda new: self.read(old[new]))


def copy_strictly(source: TensorSource, targets: Mapping[str, Tensor], *, remedy: str) -> None:
    """Copy every tensor into the target of its name, cast to its dtype. Nothing is written unless everything fits.

    Args:
        source: What to copy; one tensor is in memory at a time.
        targets: Parameters by name.
        remedy: What to do about a misfit, for the message.

    Raises:
        ValueError: If names are missing or left over, shapes differ, or a target has no memory (meta device).
    """
    wanted = {name: tuple(target.shape) for name, target in targets.items()}
    missing, surplus = wanted.keys() - source.shapes.keys(), source.shapes.keys() - wanted.keys()
    wrong = [name for name in wanted.keys() & source.shapes.keys() if wanted[name] != source.shapes[name]]
    details = [f"{name} of shape {source.shapes[name]} instead of {wanted[name]}" for name in sorted(wrong)]
    found = {"missing": sorted(missing), "surplus": sorted(surplus), "of wrong shape": details}
    misfits = [f"{len(names)} {what} ({_some(names)})" for what, names in found.items() if names]
    if misfits:
        raise ValueError(
            f"{source.origin} must hold the {len(wanted)} tensors of the model, got {', '.join(misfits)}; {remedy}"
        )
    if any(target.is_meta for target in targets.values()):
        raise ValueError("the model must have memory to load into, got parameters on the meta device; build it on a real one")
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(source.read(name))


def weight_files(folder: Path) -> list[Path]:
    """The files of a model, one or several; whether they are there is not looked at."""
    index = folder / INDEX
    if not index.is_file():
        return [folder / SINGLE]
    return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def _read(holder: Mapping[str, safe_open], name: str) -> Tensor:
    tensor: Tensor = holder[name].get_tensor(name)
    return tensor


def _some(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
