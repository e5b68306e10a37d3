"""Whether two runs are one and the same: log lines to the last printed digit, tensors to the bit, files to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmar.training.checkpoint_folder import load_latest
from mmar.training.loop import FINAL

EXACT = ("step", "loss", "text_loss", "image_loss", "grad_norm", "lr", "text_tokens", "image_tokens")
"""Of a log line; the others are times."""
GROUPS = ("model", "ema", "optimizer", "statistics")


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """What a run logged, without times."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [{name: line[name] for name in EXACT} for line in lines]


def equal_parts(one: Path, other: Path) -> dict[str, bool]:
    """Of two finished runs, what is equal.

    The lines of the shorter log are compared with the last ones of the longer.
    """
    lines = [log_lines(folder) for folder in (one, other)]
    count = min(map(len, lines))
    first, second = (load_latest(folder)[0] for folder in (one, other))
    if first is None or second is None:
        raise ValueError(f"both runs must have a whole checkpoint, got {first} in {one} and {second} in {other}")
    states = [{name: value for name, value in found.state.items() if name != "config"} for found in (first, second)]
    return {
        "log": lines[0][-count:] == lines[1][-count:],
        **{name: same_bits(first.tensors[name], second.tensors[name]) for name in GROUPS},
        "state": first.step == second.step and states[0] == states[1],
        "final": _files(one / FINAL) == _files(other / FINAL),
    }


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """The same names with the same dtypes, shapes and bits: 0 is not -0, and NaN is itself."""
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype
        and value.shape == other[name].shape
        and torch.equal(_bytes(value), _bytes(other[name]))
        for name, value in one.items()
    )


def numbers(folder: Path) -> int:
    """In the tensors of the newest checkpoint."""
    found = load_latest(folder)[0]
    return 0 if found is None else sum(value.numel() for name in GROUPS for value in found.tensors[name].values())


def _bytes(value: Tensor) -> Tensor:
    return value.contiguous().reshape(-1).view(torch.uint8)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
