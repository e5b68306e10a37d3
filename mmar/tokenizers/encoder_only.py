"""Another tokenizer's encoder as the frozen eye of an understanding-only model, its decoder locked away."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self, final

from torch import Tensor

from mmar.tokenizers.base import Generators, ImageTokenizer
from mmar.tokenizers.registry import load_image_tokenizer
from mmar.tokenizers.scale import LatentScale

_FOLDER = "encoder"


@final
class EncoderOnly(ImageTokenizer):
    """The continuous tokens of ``tokenizer``, for reading only.

    The baseline without generation then sees exactly what the full model sees.

    Args:
        tokenizer: Whose encoder; it keeps its own scale.
        name: vision-encoder, or one of your own.
        scale: On top of that of ``tokenizer``; 1 by default.
    """

    kind: ClassVar[str] = "encoder-only"
    can_decode: bool = False
    network: ImageTokenizer

    def __init__(self, tokenizer: ImageTokenizer, *, name: str = "vision-encoder", scale: LatentScale | None = None) -> None:
        super().__init__(
            tokenizer,
            name=name,
            image_size=tokenizer.image_size,
            grid=tokenizer.grid,
            channels=tokenizer.channels,
            image_channels=tokenizer.image_channels,
            scale=scale,
        )

    def settings(self) -> dict[str, Any]:
        """Arguments of the class."""
        return {"name": self.name}

    def _architecture(self) -> dict[str, Any]:
        return {"encoder": self.network.identity}

    def _encode(self, pixels: Tensor, *, sample: bool, generator: Generators | None) -> Tensor:
        z = self.network._encode(pixels, sample=sample, generator=generator)  # (B, N, C)
        return self.network.scale.normalize(z.float())  # (B, N, C)

    def _write(self, folder: Path) -> None:
        self.network.save_pretrained(folder / _FOLDER)

    @classmethod
    def _read(cls, folder: Path, settings: dict[str, Any], scale: LatentScale) -> Self:
        return cls(load_image_tokenizer(folder / _FOLDER), scale=scale, **settings)
