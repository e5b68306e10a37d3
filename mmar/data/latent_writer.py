"""Shards of a latent cache, and where to go on after an interruption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmar.data.latent_files import RankRecord, ShardFiles
from mmar.data.loader import StreamLoader
from mmar.data.skipped import BadSample, Reason, Skipped


class LatentWriter:
    """What a rank writes.

    Args:
        folder: Of the cache.
        rank: Of this process.
        described: What must be the same where an interrupted cache is continued, as JSON values.
    """

    def __init__(self, folder: Path, rank: int, described: Mapping[str, Any]) -> None:
        self.folder, self.rank, self.described = folder, rank, dict(described)
        self._number = 0
        self._tensors: list[Mapping[str, Tensor]] = []
        self._texts: list[Mapping[str, Any]] = []
        self._not_finite = Skipped()
        self._state: dict[str, Any] = {}

    @property
    def waiting(self) -> int:
        """Images that are not written yet."""
        return len(self._texts)

    def finished(self) -> Skipped | None:
        """The report, if this rank was done already.

        Raises:
            ValueError: If the cache is another one.
        """
        record = RankRecord.read(self.folder, self.rank)
        if record is None:
            return None
        self._check(record.described)
        return Skipped.from_state(record.skipped)

    def resume(self) -> dict[str, Any] | None:
        """Go behind the last shard.

        Returns:
            The state of the loader there; None at the beginning.

        Raises:
            ValueError: If the cache is another one.
        """
        while ShardFiles(self.folder, self.rank, self._number).tokens.is_file():
            self._number += 1
        if not self._number:
            return None
        header = ShardFiles(self.folder, self.rank, self._number - 1).header()
        self._check(header["described"])
        self._not_finite, self._state = Skipped.from_state(header["not_finite"]), header["loader"]
        return self._state

    def add(
        self,
        tensors: Mapping[str, Tensor],
        texts: Sequence[Mapping[str, Any]],
        kept: Sequence[int],
        loader: StreamLoader[Any, Any],
    ) -> None:
        """Add a batch, of which the images ``kept`` could be encoded, and remember where the loader is."""
        if kept:
            self._tensors.append(tensors)
            self._texts += [texts[i] for i in kept]
        for i in sorted(set(range(len(texts))) - set(kept)):
            self._not_finite.add(BadSample.of(Reason.NOT_FINITE, texts[i]["key"]))
        self._state = loader.state_dict()  # now: after the last batch it is that of the beginning again

    def write_shard(self) -> None:
        """Write what is waiting."""
        tensors = {name: torch.cat([batch[name] for batch in self._tensors]) for name in self._tensors[0]}
        header = {
            "described": self.described,
            "count": len(self._texts),
            "loader": self._state,
            "not_finite": self._not_finite.state_dict(),
        }
        ShardFiles(self.folder, self.rank, self._number).write(tensors, self._texts, header)
        self._number, self._tensors, self._texts = self._number + 1, [], []

    def finish(self, loader: StreamLoader[Any, Any]) -> Skipped:
        """Write the rest, and that this rank is done.

        Returns:
            The report of all its shards.
        """
        if self._texts:
            self.write_shard()
        report = Skipped.merged([loader.skipped, self._not_finite])
        report.delivered -= self._not_finite.total  # the stream did deliver them
        RankRecord(self.described, self._number, report.state_dict()).write(self.folder, self.rank)
        return report

    def _check(self, there: Mapping[str, Any]) -> None:
        keys = [key for key in self.described if self.described[key] != there.get(key)]
        if keys:
            different = ", ".join(f"{key} {self.described[key]} (cache: {there.get(key)})" for key in keys)
            raise ValueError(f"a cache must be continued as it was begun, got {different}; choose another folder")
