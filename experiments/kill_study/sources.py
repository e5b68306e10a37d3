"""The code that is run, which nobody may edit while runs of many processes are compared: each process reads it anew."""

from __future__ import annotations

import hashlib
from pathlib import Path

import diffparam
import mmar


class SourceGuard:
    """Remembers the sources of both packages as they are."""

    def __init__(self) -> None:
        self.before = _digest()

    def check(self) -> None:
        """Raise a RuntimeError if they are others now."""
        if _digest() != self.before:
            raise RuntimeError("mmar and diffparam must stay as they are while runs are compared, got edited files; run again")


def _digest() -> str:
    files = sorted(path for package in (diffparam, mmar) for path in Path(package.__path__[0]).rglob("*.py"))
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()
