"""What the headers of safetensors files say of a checkpoint, without its weights."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmar.weight_files import weight_files

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
SAMPLED = 64
"""Bytes of each tensor that a fingerprint looks at: a training step changes the first numbers of every trained tensor."""


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a file.

    Attributes:
        name: Of the parameter.
        dtype: As torch spells it.
        size: Number of elements.
        file: Where it is.
        start: First byte in the file.
        stop: Behind its last byte.
    """

    name: str
    dtype: str
    size: int
    file: Path
    start: int
    stop: int


def tensor_headers(folder: Path) -> list[TensorHeader]:
    """All tensors of a saved model, by name.

    Raises:
        FileNotFoundError: If a file of weights is missing.
        ValueError: If one is no safetensors file, or is cut off.
    """
    found: list[TensorHeader] = []
    for file in weight_files(folder):
        if not file.is_file():
            raise FileNotFoundError(
                f"a model must have its weights in safetensors, got no {str(file)!r}; copy the folder again"
            )
        found += _of_file(file)
    return sorted(found, key=lambda header: header.name)


def fingerprint(folder: Path) -> str:
    """16 hex digits that tell checkpoints of one run apart: of ``config.json``, the headers and some bytes of each tensor.

    It reads a few bytes per tensor whatever the size of the model, so it is no proof against tampering.
    """
    sha = hashlib.sha256((folder / "config.json").read_bytes())
    for header in tensor_headers(folder):
        sha.update(f"{header.name} {header.dtype} {header.size}".encode())
        with header.file.open("rb") as file:
            file.seek(header.start)
            sha.update(file.read(min(SAMPLED, header.stop - header.start)))
    return sha.hexdigest()[:16]


def _of_file(file: Path) -> Iterator[TensorHeader]:
    """Format: 8 bytes with the length of the header, the header in JSON, the tensors."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        content = opened.read(length) if length <= file.stat().st_size else b""
    base = 8 + length
    for name, entry in _parsed(content, file).items():
        start, stop = (base + offset for offset in entry["data_offsets"])
        if stop > file.stat().st_size:
            raise ValueError(f"{str(file)!r} must hold {stop} bytes, got {file.stat().st_size}; it is cut off, copy it again")
        dtype = DTYPES.get(entry["dtype"], entry["dtype"])
        yield TensorHeader(name, dtype, math.prod(entry["shape"]), file, start, stop)


def _parsed(content: bytes, file: Path) -> dict[str, Any]:
    try:
        entries: dict[str, Any] = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{str(file)!r} must be a safetensors file, got {error}; copy it again") from error
    return {name: entry for name, entry in entries.items() if name != "__metadata__"}
