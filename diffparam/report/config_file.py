"""Find and read a ``scheduler_config.json`` from anywhere: strict JSON, of bounded size, and nothing else."""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffparam.report.errors import BadInput

FILE_NAME = "scheduler_config.json"
MAX_BYTES = 4 * 2**20
"""A config takes a few hundred bytes; a million betas would be the largest reasonable content."""


def find_config(path: str | Path) -> Path:
    """The config file behind a path: the file itself, or ``scheduler_config.json`` in a scheduler's or a pipeline's folder.

    Raises:
        BadInput: If there is none, or it is not a regular file.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            return _regular(path)
        for candidate in (path / FILE_NAME, path / "scheduler" / FILE_NAME):
            if os.path.lexists(candidate):
                return _regular(candidate)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise BadInput(f"config must be a file that can be read, but {shown(path)} is not: {_reason(error)}") from None
    raise BadInput(f"config must be a folder with {FILE_NAME} or scheduler/{FILE_NAME}, and {shown(path)} has neither")


def read_config(path: str | Path) -> dict[str, Any]:
    """The mapping in a JSON config file; see :func:`find_config` for what ``path`` may be.

    Raises:
        BadInput: If the file is missing, too large, no UTF-8, no JSON, no mapping, nested too deeply, or holds a key twice, NaN
            or an infinity.
    """
    path = find_config(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadInput(f"config must be a file that can be read, but {shown(path)} is not: {_reason(error)}") from None
    if len(raw) > MAX_BYTES:
        raise BadInput(f"config must be at most {MAX_BYTES // 2**20} MiB, and {shown(path)} is larger; is it a checkpoint?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"config must be UTF-8 text, and {shown(path)} is not at byte {error.start}; is it a checkpoint?"
        ) from None
    config = parse_json(text, shown(path))
    if not isinstance(config, dict):
        raise BadInput(f"config must be a JSON object, and {shown(path)} holds a {type(config).__name__}")
    return config


def parse_json(text: str, where: str) -> Any:
    """Strict JSON: what Python's reader lets pass beyond the standard, and what would overflow, is refused.

    Raises:
        BadInput: With ``where`` in the message.
    """
    try:
        read = json.loads(text, object_pairs_hook=_unique, parse_constant=_Constant, parse_float=_finite)
    except RecursionError:
        raise BadInput(f"config must not be nested this deeply, got {where}; a scheduler's config is flat") from None
    except BadInput as error:
        raise BadInput(f"config must be plain JSON, and {where} is not: {error}") from None
    except ValueError as error:  # JSONDecodeError, and an integer of thousands of digits
        raise BadInput(f"config must be JSON, and {where} is not: {error}") from None
    return _without_constants(read, where)


def shown(path: str | Path) -> str:
    """A path as it may stand in a message."""
    text = repr(str(path))
    return text if len(text) <= 200 else f"{text[:197]}..."


def _regular(path: Path) -> Path:
    mode = path.stat().st_mode  # follows links; a loop of them is an OSError
    if not stat.S_ISREG(mode):
        raise BadInput(f"config must be a regular file, and {shown(path)} is not (a folder, a pipe or a device)")
    return path


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise BadInput(f"the key {key!r} is there twice")
        out[key] = value
    return out


@dataclass(frozen=True)
class _Constant:
    """A number that JSON has not: NaN, Infinity, -Infinity."""

    name: str


def _without_constants(read: Any, where: str) -> Any:
    """What was read, after a look at every value. diffusers writes one infinity, where a clip is off."""
    if isinstance(read, dict) and read.get(_CLIP) == _Constant("-Infinity"):
        read[_CLIP] = -math.inf
    waiting = [read]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _Constant):
            raise BadInput(f"config must hold finite numbers, and {where} holds {value.name}; only {_CLIP} may be -Infinity")
        if isinstance(value, (list, dict)):
            waiting += value.values() if isinstance(value, dict) else value
    return read


_CLIP = "lambda_min_clipped"


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadInput(f"{text[:40]} is beyond every double")
    return value
