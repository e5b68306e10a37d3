"""Checkpoints that are there whole or not at all: written beside, synced, renamed; checked on load; the last few kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

PREFIX, UNFINISHED, DAMAGED, MANIFEST = "checkpoint-", "unfinished-", "damaged-", "manifest.json"


class BrokenCheckpoint(ValueError):
    """A checkpoint that is not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved at a step.

    Attributes:
        path: Its folder.
        step: Optimizer steps done.
        tensors: Named groups of named tensors: model, ema, optimizer, random, ...
        state: Everything else, as JSON.
    """

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, keep: int
) -> Path:
    """Write ``folder/checkpoint-STEP`` and remove all but the last ``keep``.

    A reader sees the folder whole or not at all, after a power cut too: files and folders are synced before the rename.

    Args:
        folder: Of the run.
        step: Optimizer steps done.
        tensors: Groups, one safetensors file each.
        state: JSON.
        keep: Checkpoints to keep, at least 1.

    Raises:
        OSError: If it cannot be written (full disk, no permission); what was there before is untouched.
    """
    temporary = begin_checkpoint(folder, step)
    return finish_checkpoint(temporary, step, tensors, state, keep=keep)


def begin_checkpoint(folder: Path, step: int) -> Path:
    """An empty folder that is no checkpoint yet; files may be put there before :func:`finish_checkpoint`.

    Raises:
        OSError: If it cannot be made.
    """
    temporary = folder / f"{UNFINISHED}{step:09d}"
    shutil.rmtree(temporary, ignore_errors=True)
    with explained(temporary):
        temporary.mkdir(parents=True)
    return temporary


def finish_checkpoint(
    temporary: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int,
    digests: Mapping[str, str] | None = None,
) -> Path:
    """Add tensors, state and manifest to what :func:`begin_checkpoint` gave, and rename it; see :func:`save_checkpoint`.

    Args:
        temporary: The folder.
        step: Optimizer steps done.
        tensors: Groups, one safetensors file each.
        state: JSON.
        keep: Checkpoints to keep, at least 1.
        digests: Of files that others put there and synced, by path in the folder.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}; a run without a checkpoint cannot be resumed")
    folder, known = temporary.parent, dict(digests or {})
    final = folder / f"{PREFIX}{step:09d}"
    with explained(temporary):
        for name, group in tensors.items():
            save_file(
                {key: value.detach().contiguous().cpu() for key, value in group.items()}, temporary / f"{name}.safetensors"
            )
        (temporary / "state.json").write_text(json.dumps({"step": step, **state}, allow_nan=False))
        found = sorted(path for path in temporary.rglob("*") if path.is_file())
        names = [path.relative_to(temporary).as_posix() for path in found]
        files = {name: known.get(name) or digest(path) for name, path in zip(names, found, strict=True)}
        (temporary / MANIFEST).write_text(json.dumps({"files": files}, indent=1))
        for path in temporary.rglob("*"):
            _sync(path)
        _sync(temporary)
        if final.exists():
            shutil.rmtree(final)
        temporary.replace(final)
        _sync(folder)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


@contextlib.contextmanager
def explained(temporary: Path) -> Iterator[None]:
    """An error in writing removes what is there of the checkpoint, and says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        name = temporary.name.replace(UNFINISHED, PREFIX)
        raise OSError(
            f"checkpoint {name} could not be written to {temporary.parent}: {error}; the one before is untouched. Free space "
            "or choose another output folder, then run again with --resume"
        ) from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a folder beside ``path``, sync it and give it the name: what stands there is whole.

    Raises:
        OSError: If it cannot be written.
    """
    temporary = path.with_name(f"{UNFINISHED}{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        write(temporary)
        for part in (*temporary.rglob("*"), temporary):
            _sync(part)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(
            f"{path} could not be written: {error}; the last checkpoint is untouched. Free space or choose another output "
            "folder, then run again with --resume"
        ) from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def load_checkpoint(path: Path, *, check: bool = True) -> Checkpoint:
    """Read one checkpoint.

    Args:
        path: Of its folder.
        check: Compare every file with the manifest; False where another process just did.

    Raises:
        BrokenCheckpoint: If a file is missing, changed or unreadable.
    """
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        if not isinstance(files, dict) or "state.json" not in files:
            raise BrokenCheckpoint(f"{path / MANIFEST} must list the files of a checkpoint, got {files!s:.60}")
        for name, expected in files.items():
            if check and digest(path / name) != expected:
                raise BrokenCheckpoint(f"{path / name} must be what was saved, got other contents; it is damaged")
        state = json.loads((path / "state.json").read_text())
        tensors = {Path(name).stem: load_file(path / name) for name in files if name.endswith(".safetensors")}
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        if isinstance(error, BrokenCheckpoint):
            raise
        raise BrokenCheckpoint(f"{path} must be a whole checkpoint, got: {error}") from error
    return Checkpoint(path, state.pop("step"), tensors, state)


def load_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of a run, and what was wrong with newer ones.

    Newer ones are renamed to ``damaged-...`` where there is a whole one: they are no checkpoints, and are not lost.

    Raises:
        BrokenCheckpoint: If there are checkpoints and none is whole; nothing is changed.
    """
    broken: dict[Path, str] = {}
    for path in reversed(list_checkpoints(folder)):
        try:
            found = load_checkpoint(path)
        except BrokenCheckpoint as error:
            broken[path] = str(error)
            continue
        for damaged in broken:
            shutil.rmtree(damaged.with_name(f"{DAMAGED}{damaged.name}"), ignore_errors=True)
            damaged.replace(damaged.with_name(f"{DAMAGED}{damaged.name}"))
        return found, list(broken.values())
    if broken:
        raise BrokenCheckpoint(
            f"{folder} must hold a whole checkpoint to go on from, got damaged ones alone: {'; '.join(broken.values())}. "
            "Repair them, or move them away to start anew"
        )
    return None, []


def check_writable(folder: Path) -> None:
    """Refuse an output folder before hours are spent on it.

    Raises:
        OSError: If nothing can be written there.
    """
    probe = folder / f"{UNFINISHED}probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        probe.unlink()
    except OSError as error:
        raise OSError(f"output must be a folder that can be written to, got {folder}: {error}; choose another") from error


def remove_unfinished(folder: Path) -> None:
    """What a kill left half written."""
    for path in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
