"""Another tokenizer's latents, several on a side to one token: fewer tokens of more numbers, and nothing lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self, final

from torch import Tensor

from mmar.tokenizers.base import Generators, ImageTokenizer
from mmar.tokenizers.registry import load_image_tokenizer
from mmar.tokenizers.scale import LatentScale

_FOLDER = "packed"


@final
class PackedTokenizer(ImageTokenizer):
    """The latents of ``tokenizer`` in squares of ``patch_size`` on a side (the patch size of DiT and MAR).

    A quarter of the tokens at 2, for a small or hurried model: each token costs the language model the same, however many
    numbers it holds.

    Args:
        tokenizer: With continuous tokens; it keeps its own scale.
        patch_size: Latents on a side of a token; divides the grid.
        name: By default that of ``tokenizer``.
        scale: On top of that of ``tokenizer``; 1 by default.

    Raises:
        ValueError: If the tokenizer has a codebook, or the grid is no multiple of ``patch_size``.
    """

    kind: ClassVar[str] = "packed"
    network: ImageTokenizer

    def __init__(
        self, tokenizer: ImageTokenizer, patch_size: int, *, name: str | None = None, scale: LatentScale | None = None
    ) -> None:
        if tokenizer.codebook_size is not None:
            raise ValueError(f"tokenizer must have continuous tokens to be packed, got {tokenizer.name!r} with a codebook")
        if patch_size < 1 or tokenizer.grid % patch_size:
            raise ValueError(f"patch_size must divide the grid of {tokenizer.grid}, got {patch_size}")
        self.patch_size = patch_size
        super().__init__(
            tokenizer,
            name=name or tokenizer.name,
            image_size=tokenizer.image_size,
            grid=tokenizer.grid // patch_size,
            channels=tokenizer.channels * patch_size**2,
            image_channels=tokenizer.image_channels,
            scale=scale,
        )
        self.can_decode = tokenizer.can_decode

    def settings(self) -> dict[str, Any]:
        """Arguments of the class."""
        return {"name": self.name, "patch_size": self.patch_size}

    def _architecture(self) -> dict[str, Any]:
        return {"tokenizer": self.network.identity}

    def _encode(self, pixels: Tensor, *, sample: bool, generator: Generators | None) -> Tensor:
        z = self.network._encode(pixels, sample=sample, generator=generator)  # (B, n, c)
        return self._pack(self.network.scale.normalize(z.float()))  # (B, N, C)

    def _posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        mean, std = self.network._posterior(pixels)  # (B, n, c) each
        scale = self.network.scale
        spread = None if std is None else self._pack(LatentScale(scale.std).normalize(std.float()))
        return self._pack(scale.normalize(mean.float())), spread

    def _decode(self, latents: Tensor) -> Tensor:
        z = self.network.scale.denormalize(self._unpack(latents).float())
        return self.network._decode(self._as_weights(z))  # (B, C, H, W)

    def _pack(self, z: Tensor) -> Tensor:
        """``(B, n, c)`` in raster order to ``(B, N, p * p * c)``: raster order within a token too."""
        p = self.patch_size
        squares = z.unflatten(1, (self.grid, p, self.grid, p)).transpose(2, 3)  # (B, g, g, p, p, c)
        return squares.flatten(3).flatten(1, 2)

    def _unpack(self, tokens: Tensor) -> Tensor:
        p = self.patch_size
        squares = tokens.unflatten(1, (self.grid, self.grid)).unflatten(3, (p, p, -1))  # (B, g, g, p, p, c)
        return squares.transpose(2, 3).flatten(1, 4)

    def _write(self, folder: Path) -> None:
        self.network.save_pretrained(folder / _FOLDER)

    @classmethod
    def _read(cls, folder: Path, settings: dict[str, Any], scale: LatentScale) -> Self:
        return cls(load_image_tokenizer(folder / _FOLDER), scale=scale, **settings)
