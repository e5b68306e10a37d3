"""The interface of frozen image tokenizers: images to tokens and back, outside the model and never trained with it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mmar.config import ImageTokensConfig, MMARConfig
from mmar.tokenizers.checks import check_codes, check_finite, check_pixels, check_tokens
from mmar.tokenizers.frozen import FrozenModule
from mmar.tokenizers.latent_statistics import LatentStatistics
from mmar.tokenizers.saved import SavedTokenizer, digest, existing_folder
from mmar.tokenizers.scale import LatentScale, Moment

Generators = torch.Generator | list[torch.Generator]
"""A source of random numbers for the batch, or one for each image."""


class ImageTokenizer(FrozenModule, ABC):
    """Images ``(batch, image_channels, image_size, image_size)`` in [-1, 1] to tokens ``(batch, grid * grid, channels)``.

    A subclass says how latents are computed; checks, scale and saving are here. Everything is frozen and without gradient.

    Args:
        network: The weights, or None; frozen in place, so pass a copy of a network that is still trained.
        name: Compared with ``image_config.tokenizer`` of a model.
        image_size: Side of the square image, pixels.
        grid: Tokens per side.
        channels: Numbers per token.
        image_channels: 3, or 1 for grey images.
        codebook_size: Entries of the codebook; None for continuous tokens.
        scale: Of the latents.
    """

    kind: ClassVar[str]
    can_decode: bool = True

    def __init__(
        self,
        network: nn.Module | None,
        *,
        name: str,
        image_size: int,
        grid: int,
        channels: int,
        image_channels: int = 3,
        codebook_size: int | None = None,
        scale: LatentScale | None = None,
    ) -> None:
        super().__init__(network)
        self.name, self.image_size, self.grid, self.channels = name, image_size, grid, channels
        self.image_channels, self.codebook_size = image_channels, codebook_size
        self.scale = LatentScale() if scale is None else scale
        self.scale.check_channels(channels)

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What ``_read`` needs beside weights and scale, as JSON values."""

    def _architecture(self) -> dict[str, Any]:
        """What the function of the weights depends on beside ``settings``, as JSON values."""
        return {}

    @abstractmethod
    def _encode(self, pixels: Tensor, *, sample: bool, generator: Generators | None) -> Tensor:
        """Unscaled latents ``(B, N, channels)``, any dtype."""

    def _posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and std of unscaled latents, ``(B, N, channels)`` each, any dtype; no std where there is no posterior."""
        return self._encode(pixels, sample=False, generator=None), None

    def _decode(self, latents: Tensor) -> Tensor:
        """Pixels of unscaled latents ``(B, N, channels)``, if ``can_decode``."""
        raise NotImplementedError

    def _encode_codes(self, pixels: Tensor) -> Tensor:
        """Codes ``(B, N)``, if there is a codebook."""
        raise NotImplementedError

    def _codebook(self) -> Tensor:
        """Unscaled entries ``(K, channels)``, if there is a codebook."""
        raise NotImplementedError

    def _write(self, folder: Path) -> None:
        """Write the weights; nothing by default."""

    @classmethod
    @abstractmethod
    def _read(cls, folder: Path, settings: dict[str, Any], scale: LatentScale) -> Self:
        """The tokenizer that ``_write`` and ``settings`` describe."""

    @torch.no_grad()
    def encode(
        self,
        pixels: Tensor,
        *,
        sample: bool = False,
        generator: Generators | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Images to tokens.

        Args:
            pixels: ``(batch, image_channels, image_size, image_size)``, floats in [-1, 1].
            sample: Draw from the posterior (targets of generation) instead of its mode (understanding). Without effect where
                there is no posterior.
            generator: Source of that draw, on the CPU or the device of the pixels; a list gives each image its own, so that the
                draw does not depend on the batch.
            dtype: What the network computes in, whatever autocast surrounds the call; by default the dtype of its weights.

        Returns:
            ``(batch, grid * grid, channels)`` float32, in raster order, divided by ``latent_std``.

        Raises:
            TypeError: If pixels are not a floating-point tensor.
            ValueError: If their shape or range is wrong.
            NonFiniteImages: If pixels or tokens are not finite; names the images.
        """
        check_pixels(pixels, self.image_channels, self.image_size)
        if not len(pixels):
            return pixels.new_zeros(0, self.grid**2, self.channels, dtype=torch.float32)
        with self._precision(dtype, pixels.device):
            z = self._encode(self._as_weights(pixels), sample=sample, generator=generator)  # (B, N, C)
        tokens = self.scale.normalize(z.float())  # (B, N, C)
        check_finite("tokens", tokens)
        return tokens

    @torch.no_grad()
    def encode_posterior(self, pixels: Tensor, *, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
        """Images to what :meth:`encode` draws from: ``mean + std * noise`` is a sample, and any number can be drawn later.

        Args:
            pixels: As in :meth:`encode`, and so the errors.
            dtype: As above.

        Returns:
            ``encode(pixels)``, and the standard deviation of each of its numbers, ``(batch, grid * grid, channels)`` float32;
            None in place of the second where there is no posterior.
        """
        check_pixels(pixels, self.image_channels, self.image_size)
        if not len(pixels):
            return self.encode(pixels), None
        with self._precision(dtype, pixels.device):
            mean, std = self._posterior(self._as_weights(pixels))  # (B, N, C)
        mean = self.scale.normalize(mean.float())  # (B, N, C)
        check_finite("tokens", mean)
        if std is not None:
            std = LatentScale(self.scale.std).normalize(std.float())  # (B, N, C)
            check_finite("standard deviations of tokens", std)
        return mean, std

    @torch.no_grad()
    def decode(self, tokens: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Tokens to images.

        Args:
            tokens: ``(batch, grid * grid, channels)``, as :meth:`encode` returns them.
            dtype: As in :meth:`encode`.

        Returns:
            ``(batch, image_channels, image_size, image_size)`` float32, nominally in [-1, 1]. Networks overshoot a little, and
            nothing is clipped here.

        Raises:
            NotImplementedError: If this tokenizer only encodes.
            TypeError: If tokens are not a floating-point tensor.
            ValueError: If their shape is wrong.
            NonFiniteImages: If tokens or pixels are not finite; names the images.
        """
        if not self.can_decode:
            raise NotImplementedError(
                f"image tokenizer {self.name!r} must not be asked to decode: it is an encoder only, for understanding; "
                "generate with kl-16, vq-16, dc-ae or patches"
            )
        check_tokens(tokens, self.grid**2, self.channels)
        if not len(tokens):
            return tokens.new_zeros(0, self.image_channels, self.image_size, self.image_size, dtype=torch.float32)
        with self._precision(dtype, tokens.device):
            pixels = self._decode(self._as_weights(self.scale.denormalize(tokens.float()))).float()  # (B, C, H, W)
        check_finite("decoded pixels", pixels)
        return pixels

    @torch.no_grad()
    def encode_codes(self, pixels: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Images to codes ``(batch, grid * grid)`` int64; arguments and errors as :meth:`encode`."""
        self._require_codebook()
        check_pixels(pixels, self.image_channels, self.image_size)
        if not len(pixels):
            return pixels.new_zeros(0, self.grid**2, dtype=torch.long)
        with self._precision(dtype, pixels.device):
            return self._encode_codes(self._as_weights(pixels))  # (B, N)

    def decode_codes(self, codes: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Codes to images: ``decode(codebook[codes])``."""
        codebook = self.codebook  # (K, C)
        check_codes(codes, self.grid**2, len(codebook))
        return self.decode(codebook[codes], dtype=dtype)

    @property
    def codebook(self) -> Tensor:
        """The entries ``(codebook_size, channels)`` float32, scaled: ``encode(x) == codebook[encode_codes(x)]`` to the bit."""
        self._require_codebook()
        return self.scale.normalize(self._codebook().detach().float())  # (K, C)

    @property
    def latent_std(self) -> Moment:
        """What latents are divided by: one number, or one for each channel."""
        return self.scale.std

    @property
    def latent_mean(self) -> Moment:
        """What is subtracted from latents before: 0 unless asked for."""
        return self.scale.mean

    @property
    def identity(self) -> str:
        """Text that two tokenizers share only if they give the same tokens: kind, weights, settings other than the name, scale.

        Keep it beside cached tokens. Weights cast to another dtype are others, weights on another device are not. Computed at
        each call.
        """
        settings = {k: v for k, v in self.settings().items() if k != "name"}
        scale = {"latent_mean": self.scale.mean, "latent_std": self.scale.std}
        described = {**settings, **scale, "architecture": self._architecture()}
        return f"{self.kind}-{digest(state=self.state_dict(), settings=described)[:32]}"

    def image_tokens_config(self) -> ImageTokensConfig:
        """The part of a model's configuration that this tokenizer decides."""
        return ImageTokensConfig(**self._described())

    def check_config(self, config: MMARConfig) -> None:
        """Raise one ValueError that lists all differences unless the model was made for images as they are here."""
        image = config.image_config
        different = [
            f"{name} {value!r} (model: {getattr(image, name)!r})"
            for name, value in self._described().items()
            if value != getattr(image, name)
        ]
        if different:
            raise ValueError(
                f"image_config must agree with the image tokenizer, but the tokenizer has {', '.join(different)}; "
                "build the model with image_config=tokenizer.image_tokens_config(), or load the tokenizer that it was made for"
            )
        if not self.can_decode and config.image_objective != "understanding_only":
            raise ValueError(
                f"image_objective must be 'understanding_only' for {self.name!r}, which cannot decode, "
                f"got {config.image_objective!r}; generate with kl-16, vq-16, dc-ae or patches"
            )

    def with_scale(self, scale: LatentScale) -> Self:
        """The same tokenizer, sharing its weights, with another scale."""
        scale.check_channels(self.channels)
        other = copy.copy(self)
        other.scale = scale
        return other

    def with_statistics(self, statistics: LatentStatistics, *, per_channel: bool = False, center: bool = False) -> Self:
        """The same tokenizer with a measured scale; options as :meth:`LatentStatistics.scale`.

        Raises:
            ValueError: If they were measured with other weights or settings.
        """
        unscaled = self.with_scale(LatentScale()).identity
        if statistics.tokenizer != unscaled:
            raise ValueError(
                f"statistics must be those of this tokenizer, {unscaled}, got those of {statistics.tokenizer}; "
                "measure again with measure_latents"
            )
        return self.with_scale(statistics.scale(per_channel=per_channel, center=center))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``image_tokenizer.json`` and the float32 weights, in the layout of the library that the network is from."""
        if self._weights_dtype() is not torch.float32:
            raise ValueError(f"weights must be float32 to be saved, got {self._weights_dtype()}; save before casting")
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._write(Path(folder))
        SavedTokenizer(self.kind, self.settings(), self.scale, self.weights_digest).write(Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read what :meth:`save_pretrained` wrote.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is of another kind, or its weights have changed.
        """
        saved = SavedTokenizer.read(folder)
        if saved.kind != cls.kind:
            raise ValueError(f"folder must hold a tokenizer of kind {cls.kind!r}, got {saved.kind!r}; use load_image_tokenizer")
        tokenizer = cls._read(existing_folder(folder), saved.settings, saved.scale)
        if tokenizer.weights_digest != saved.weights_digest:
            raise ValueError(
                f"weights in {str(folder)!r} must be those that were saved, got {tokenizer.weights_digest[:12]} "
                f"instead of {saved.weights_digest[:12]}; copy the folder again"
            )
        return tokenizer

    def forward(self, pixels: Tensor) -> Tensor:
        """:meth:`encode`."""
        return self.encode(pixels)

    def extra_repr(self) -> str:
        """Name, shapes and scale."""
        codes = "" if self.codebook_size is None else f", codebook_size={self.codebook_size}"
        return (
            f"name={self.name!r}, image_size={self.image_size}, grid={self.grid}, channels={self.channels}{codes}, "
            f"latent_std={self.latent_std}"
        )

    def _described(self) -> dict[str, Any]:
        return {
            "tokenizer": self.name,
            "image_size": self.image_size,
            "grid": self.grid,
            "channels": self.channels,
            "codebook_size": self.codebook_size,
        }

    def _require_codebook(self) -> None:
        if self.codebook_size is None:
            raise NotImplementedError(
                f"image tokenizer {self.name!r} must have a codebook to give codes, but its tokens are continuous; use vq-16"
            )
