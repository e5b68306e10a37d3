"""Pixels as they are: a token is a patch. Lossless, without weights, for small images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self, final

from torch import Tensor
from torch.nn import functional

from mmar.tokenizers.base import Generators, ImageTokenizer
from mmar.tokenizers.raster import to_features, to_tokens
from mmar.tokenizers.scale import LatentScale


@final
class PatchTokenizer(ImageTokenizer):
    """Patches of ``patch_size ** 2 * image_channels`` pixels. With the default scale, ``decode`` inverts ``encode`` to the bit.

    Args:
        image_size: Side of the image, pixels.
        patch_size: Side of a patch, pixels; a divisor of ``image_size``.
        image_channels: 3, or 1 for grey images, or any other number.
        name: Compared with ``image_config.tokenizer`` of a model.
        scale: Of the pixels; they are left as they are by default.
    """

    kind: ClassVar[str] = "patches"

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        *,
        image_channels: int = 3,
        name: str = "patches",
        scale: LatentScale | None = None,
    ) -> None:
        for key, value in (("image_size", image_size), ("patch_size", patch_size), ("image_channels", image_channels)):
            if value < 1:
                raise ValueError(f"{key} must be at least 1, got {value}")
        if image_size % patch_size:
            raise ValueError(f"patch_size must divide image_size, got {patch_size} and {image_size}; resize the images")
        super().__init__(
            None,
            name=name,
            image_size=image_size,
            grid=image_size // patch_size,
            channels=patch_size**2 * image_channels,
            image_channels=image_channels,
            scale=scale,
        )
        self.patch_size = patch_size

    def settings(self) -> dict[str, Any]:
        """Arguments of the class."""
        return {
            "name": self.name,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "image_channels": self.image_channels,
        }

    def _encode(self, pixels: Tensor, *, sample: bool, generator: Generators | None) -> Tensor:
        return to_tokens(functional.pixel_unshuffle(pixels, self.patch_size))  # (B, N, C p p)

    def _decode(self, latents: Tensor) -> Tensor:
        return functional.pixel_shuffle(to_features(latents), self.patch_size)  # (B, C, H, W)

    @classmethod
    def _read(cls, folder: Path, settings: dict[str, Any], scale: LatentScale) -> Self:
        return cls(**settings, scale=scale)
