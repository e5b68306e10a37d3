"""The files of a latent cache.

``tokens-RANK-NUMBER.safetensors`` holds ``mean (n, N, C)`` and, where the tokenizer has a posterior, ``std``; or it holds
``codes (n, N)``. ``texts-RANK-NUMBER.jsonl`` has a line for each of the n images. ``rank-RANK.json`` is written when a rank is
done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmar.data.example import Example

FORMAT = 1
_HEADER = "mmar"


@dataclass(frozen=True)
class ShardFiles:
    """The two files of a shard.

    Attributes:
        folder: Of the cache.
        rank: Who wrote it.
        number: From 0 on.
    """

    folder: Path
    rank: int
    number: int

    @property
    def tokens(self) -> Path:
        """Written last: a shard is there if this file is."""
        return self.folder / f"tokens-{self.rank:03d}-{self.number:05d}.safetensors"

    @property
    def texts(self) -> Path:
        """JSON lines."""
        return self.folder / f"texts-{self.rank:03d}-{self.number:05d}.jsonl"

    def write(self, tensors: Mapping[str, Tensor], texts: Sequence[Mapping[str, Any]], header: Mapping[str, Any]) -> None:
        """Write both, so that whatever interrupts it leaves a whole shard or none."""
        lines = "".join(json.dumps(text) + "\n" for text in texts)
        write_atomically(self.texts, lines.encode("utf-8"))
        described = {_HEADER: json.dumps({"format": FORMAT, **header})}
        write_atomically(self.tokens, save({name: t.contiguous() for name, t in tensors.items()}, described))

    def header(self) -> dict[str, Any]:
        """What :meth:`write` was told.

        Raises:
            ValueError: If the file is damaged, or not of this format.
        """
        try:
            with safe_open(self.tokens, framework="pt") as file:
                header: dict[str, Any] = json.loads((file.metadata() or {})[_HEADER])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{self.tokens} must be a shard of a latent cache, got {type(error).__name__}: {error}; "
                "remove it and those after it, and encode again"
            ) from error
        _check_format(header, self.tokens)
        return header


@dataclass(frozen=True)
class RankRecord:
    """What a rank writes down when it is done.

    Attributes:
        described: The tokenizer, the pixels and the number of ranks.
        shards: How many it wrote.
        skipped: Its report, as a state.
    """

    described: dict[str, Any]
    shards: int
    skipped: dict[str, Any]

    @staticmethod
    def path(folder: Path, rank: int) -> Path:
        """Of the file."""
        return folder / f"rank-{rank:03d}.json"

    def write(self, folder: Path, rank: int) -> None:
        """Write it."""
        record = {"format": FORMAT, "described": self.described, "shards": self.shards, "skipped": self.skipped}
        write_atomically(self.path(folder, rank), (json.dumps(record, indent=2) + "\n").encode("utf-8"))

    @classmethod
    def read(cls, folder: Path, rank: int) -> Self | None:
        """Read it; None if the rank is not done.

        Raises:
            ValueError: If it is damaged, or not of this format.
        """
        path = cls.path(folder, rank)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            _check_format(record, path)
            return cls(record["described"], record["shards"], record["skipped"])
        except FileNotFoundError:
            return None
        except (KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} must be as cache_latents writes it, got {type(error).__name__}: {error}") from error


def _check_format(record: Mapping[str, Any], path: Path) -> None:
    """Raise a ValueError for files of another release."""
    if record.get("format") != FORMAT:
        raise ValueError(f"format of {path} must be {FORMAT}, got {record.get('format')!r}; encode again")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is there as a whole or not at all, also after a power cut."""
    temporary = path.with_name(f"{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def text_record(example: Example) -> dict[str, Any]:
    """An example without its image, as JSON values."""
    return {
        "key": example.key,
        "caption": example.caption,
        "turns": example.turns,
        "captions": example.captions,
        "meta": dict(example.meta),
    }


def example_of(record: Mapping[str, Any]) -> Example:
    """The inverse of :func:`text_record`."""
    turns = tuple((question, answer) for question, answer in record["turns"])
    return Example(record["key"], None, record["caption"], turns, tuple(record["captions"]), record["meta"])
