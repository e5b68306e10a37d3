"""Continuous tokens of a KL-regularised autoencoder: the paper's KL-16, and any other AutoencoderKL of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self, final

from diffusers.models import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from mmar.tokenizers.base import Generators
from mmar.tokenizers.diffusers_tokenizer import DiffusersTokenizer
from mmar.tokenizers.ldm_checkpoint import diffusers_state, ldm_config
from mmar.tokenizers.ldm_file import read_ldm_file
from mmar.tokenizers.raster import to_features, to_tokens
from mmar.tokenizers.scale import LatentScale

KL16_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "sample_size": 256,
    "latent_channels": 16,
    "layers_per_block": 2,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "block_out_channels": (128, 128, 256, 256, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
    "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "scaling_factor": 1.0,
    "force_upcast": False,
}
"""LDM's kl-f16 (Rombach et al. 2022) as arguments of ``AutoencoderKL``: 69.6 M parameters, 256² pixels to 256 tokens of 16."""


@final
class KLTokenizer(DiffusersTokenizer):
    """Frozen ``AutoencoderKL``.

    Args:
        model: The network; frozen in place.
        name: Of the tokenizer; kl- and the downsampling by default.
        image_size: Side of the image; the configuration's ``sample_size`` by default.
        scale: Of the latents; by default the configuration's ``scaling_factor`` and ``shift_factor``.
    """

    kind: ClassVar[str] = "kl"
    model_class = AutoencoderKL
    architecture_keys = tuple(KL16_CONFIG)

    def __init__(
        self,
        model: AutoencoderKL,
        *,
        name: str | None = None,
        image_size: int | None = None,
        scale: LatentScale | None = None,
    ) -> None:
        downsampling = 2 ** (len(model.config["block_out_channels"]) - 1)
        super().__init__(
            model,
            name=f"kl-{downsampling}" if name is None else name,
            image_size=model.config["sample_size"] if image_size is None else image_size,
            downsampling=downsampling,
            channels=model.config["latent_channels"],
            scale=scale,
        )

    @classmethod
    def from_ldm_checkpoint(
        cls, path: str | Path, *, scale: LatentScale, name: str | None = None, image_size: int = 256
    ) -> Self:
        """Read an autoencoder in the names of LDM's code: kl-f16's ``model.ckpt``, MAR's ``kl16.ckpt``, any other size.

        The architecture is read from the shapes of the weights: MAR's code, other than LDM's, has no attention in the blocks
        of the decoder.

        Args:
            path: A torch pickle (.ckpt, .pt, .pth; loaded without running code in it) or .safetensors.
            scale: Of the latents. It belongs to the weights and is not in the file: ``LatentScale(MAR_KL16_STD)`` for MAR's
                file, measured for others.
            name: Of the tokenizer; kl- and the downsampling by default.
            image_size: Side of the image.

        Raises:
            ValueError: If the file is not such an autoencoder, or has too many or too few weights.
        """
        state = read_ldm_file(path)
        model = AutoencoderKL(**ldm_config(state, codebook=False), sample_size=image_size)
        model.load_state_dict(diffusers_state(state, model))
        return cls(model, name=name, image_size=image_size, scale=scale)

    def _encode(self, pixels: Tensor, *, sample: bool, generator: Generators | None) -> Tensor:
        posterior = self._distribution(pixels)
        return to_tokens(posterior.sample(generator) if sample else posterior.mode())  # (B, N, C)

    def _posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        posterior = self._distribution(pixels)
        return to_tokens(posterior.mode()), to_tokens(posterior.std)  # (B, N, C)

    def _distribution(self, pixels: Tensor) -> Any:
        moments = self.network.encode(pixels).latent_dist.parameters  # (B, 2 C, g, g)
        return DiagonalGaussianDistribution(moments.float())  # exponential and draw in float32

    def _decode(self, latents: Tensor) -> Tensor:
        return self.network.decode(to_features(latents)).sample  # (B, 3, H, W)
