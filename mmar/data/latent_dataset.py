"""Reading a latent cache: tokens and texts by index, without images and without the encoder's work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset

from mmar.data.example import Example
from mmar.data.latent_files import RankRecord, ShardFiles, example_of
from mmar.data.metadata import read_rows
from mmar.data.packed import PackedRecords
from mmar.data.skipped import BadSample, Skipped
from mmar.tokenizers.base import ImageTokenizer


@dataclass(frozen=True)
class CachedImage:
    """What is kept of an image.

    Attributes:
        values: Tokens ``(N, C)`` float32, the mode of the posterior if there is one; or codes ``(N,)`` int64.
        std: Of the posterior, ``(N, C)`` float32.
    """

    values: Tensor
    std: Tensor | None = None

    def tokens(self, *, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """What ``tokenizer.encode(pixels, sample=..., generator=[generator])`` gives for this image; codes where it has codes.

        Args:
            sample: Draw from the posterior, as targets of generation are drawn. Without effect where there is none.
            generator: Source of that draw.

        Returns:
            ``(N, C)`` float32 or ``(N,)`` int64.
        """
        if self.std is None or not sample:
            return self.values
        noise = torch.randn(self.std.shape[::-1], generator=generator)  # (C, N): the encoder draws channel by channel
        return self.values + self.std * noise.T  # (N, C)


class LatentDataset(Dataset[tuple[CachedImage, Example]]):
    """Pairs of a :class:`CachedImage` and an :class:`Example` without image.

    Attributes:
        skipped: What was left out when it was encoded.

    Args:
        folder: Of the cache.
        tokenizer: Whose tokens these must be.

    Raises:
        FileNotFoundError: If there is no cache.
        ValueError: If it is not complete, damaged, or of another tokenizer.
    """

    def __init__(self, folder: str | Path, tokenizer: ImageTokenizer) -> None:
        self.folder = Path(folder)
        records = _records(self.folder)
        identity, here = tokenizer.identity, records[0].described["identity"]
        if here != identity:
            raise ValueError(
                f"tokenizer must be the one that {str(self.folder)!r} was encoded with, {here}, got {identity}; "
                "load that one, or encode again (another scale makes it another tokenizer)"
            )
        self.skipped = Skipped.merged(Skipped.from_state(record.skipped) for record in records)
        self._shards = [ShardFiles(self.folder, rank, k) for rank, record in enumerate(records) for k in range(record.shards)]
        counts: list[int] = []
        self._texts = PackedRecords(_texts(self._shards, records[0].described, counts))
        self._ends = np.cumsum([0, *counts])
        self._files: dict[int, Any] = {}
        self.fingerprint = hashlib.sha256(f"{identity} {counts} {self._texts.fingerprint}".encode()).hexdigest()[:32]

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> tuple[CachedImage, Example]:
        """Read one.

        Raises:
            IndexError: If there is no such index.
        """
        example = example_of(self._texts[index])
        shard = int(np.searchsorted(self._ends, index, side="right")) - 1
        file, row = self._file(shard), index - int(self._ends[shard])
        names = file.keys()
        if "codes" in names:
            return CachedImage(file.get_slice("codes")[row].long()), example
        std = file.get_slice("std")[row] if "std" in names else None
        return CachedImage(file.get_slice("mean")[row], std), example

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # a worker opens its own

    def _file(self, shard: int) -> Any:
        if shard not in self._files:
            self._files[shard] = safe_open(self._shards[shard].tokens, framework="pt")
        return self._files[shard]


def _records(folder: Path) -> list[RankRecord]:
    """Of all ranks."""
    first = RankRecord.read(folder, 0)
    if first is None:
        raise FileNotFoundError(
            f"folder must hold a complete latent cache, got no {RankRecord.path(folder, 0)}; cache_latents writes it"
        )
    found = [RankRecord.read(folder, rank) for rank in range(first.described["world_size"])]
    records = [record for record in found if record is not None]
    if len(records) < len(found):
        raise ValueError(
            f"a cache must be complete, got {len(records)} of {len(found)} ranks; run the others again, they go on"
        )
    if any(record.described != first.described for record in records):
        raise ValueError(f"all ranks of {str(folder)!r} must have encoded with the same tokenizer; encode again")
    return records


def _texts(shards: Sequence[ShardFiles], described: dict[str, Any], counts: list[int]) -> Iterator[dict[str, Any]]:
    """The texts of all shards; appends how many each has, which must be as many as tokens."""
    for shard in shards:
        try:
            header, rows = shard.header(), [record for _, record in read_rows(shard.texts, shard.texts.name)]
        except OSError as error:
            raise ValueError(f"a cache must have all its files, got {error}; encode again") from error
        texts = [row for row in rows if not isinstance(row, BadSample)]
        if len(texts) != header["count"] or len(rows) != len(texts):
            raise ValueError(f"{shard.texts} must have {header['count']} records, got {len(texts)}; encode again")
        if header["described"] != described:
            raise ValueError(f"{shard.tokens} must be of this cache, got one of {header['described']}; encode again")
        counts.append(len(texts))
        yield from texts
