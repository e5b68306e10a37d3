"""Moments of the latents of an image tokenizer, with what they were measured on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from mmar.tokenizers.scale import LatentScale


@dataclass(frozen=True)
class LatentStatistics:
    """What :func:`mmar.tokenizers.measure_latents` found, in units of the unscaled latents.

    The standard errors treat images, not tokens, as the independent draws: tokens of one image resemble each other.

    Attributes:
        count: Images measured.
        skipped: Images left out, by reason.
        mean: Over all numbers of all tokens.
        std: As ``mean``; the root of the mean squared deviation from ``mean``.
        mean_standard_error: Of ``mean``; None for one image.
        std_standard_error: Of ``std``; None for one image.
        channel_mean: For each channel.
        channel_std: For each channel, from the mean of that channel.
        sampled: Whether the latents were drawn from the posterior, as generation targets are.
        tokenizer: ``identity`` of the tokenizer that was measured, without its scale.
    """

    count: int
    skipped: dict[str, int]
    mean: float
    std: float
    mean_standard_error: float | None
    std_standard_error: float | None
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    sampled: bool
    tokenizer: str

    def scale(self, *, per_channel: bool = False, center: bool = False) -> LatentScale:
        """The scale that gives unit variance.

        Args:
            per_channel: One number for each channel instead of one for all.
            center: Also subtract the mean; the paper and MAR do not.
        """
        std = self.channel_std if per_channel else self.std
        mean = self.channel_mean if per_channel else self.mean
        return LatentScale(std=std, mean=mean if center else 0.0)

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote; a ValueError if it is something else."""
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            for name in ("channel_mean", "channel_std"):
                record[name] = tuple(record[name])
            return cls(**record)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} must be latent statistics as LatentStatistics.save writes them: {error}") from error
