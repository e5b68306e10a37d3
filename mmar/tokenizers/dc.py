"""Few, wide tokens of a deep compression autoencoder (Chen et al. 2024, arXiv 2410.10733): AutoencoderDC of diffusers."""

from __future__ import annotations

from typing import Any, ClassVar, final

from diffusers.models import AutoencoderDC
from torch import Tensor

from mmar.tokenizers.base import Generators
from mmar.tokenizers.diffusers_tokenizer import DiffusersTokenizer
from mmar.tokenizers.raster import to_features, to_tokens
from mmar.tokenizers.scale import LatentScale

DC_F128C512_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 512,
    "attention_head_dim": 32,
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 5,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 5,
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024, 2048, 2048),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024, 2048, 2048),
    "encoder_layers_per_block": (0, 4, 8, 2, 2, 2, 2, 2),
    "decoder_layers_per_block": (0, 5, 10, 2, 2, 2, 2, 2),
    "encoder_qkv_multiscales": ((),) * 8,
    "decoder_qkv_multiscales": ((),) * 8,
    "downsample_block_type": "pixel_unshuffle",
    "upsample_block_type": "pixel_shuffle",
    "decoder_norm_types": ("batch_norm",) * 3 + ("rms_norm",) * 5,
    "decoder_act_fns": ("relu",) * 3 + ("silu",) * 5,
    "encoder_out_shortcut": True,
    "decoder_in_shortcut": True,
    "decoder_conv_act_fn": "relu",
    "scaling_factor": 1.0,
}
"""The published dc-ae-f128c512-mix-1.0 (and -in-1.0) as arguments of ``AutoencoderDC``: 512² pixels to 16 tokens of 512.

From diffusers' conversion script, which gives no ``scaling_factor``: measure the scale.
"""


@final
class DCTokenizer(DiffusersTokenizer):
    """Frozen ``AutoencoderDC``; deterministic, so ``sample`` changes nothing.

    Args:
        model: The network; frozen in place.
        name: Of the tokenizer.
        image_size: Side of the image; 512 by default, what the f128 networks were refined on.
        scale: Of the latents; by default the configuration's ``scaling_factor``.
    """

    kind: ClassVar[str] = "dc"
    model_class = AutoencoderDC
    architecture_keys = tuple(DC_F128C512_CONFIG)

    def __init__(
        self,
        model: AutoencoderDC,
        *,
        name: str | None = None,
        image_size: int | None = None,
        scale: LatentScale | None = None,
    ) -> None:
        super().__init__(
            model,
            name="dc-ae" if name is None else name,
            image_size=512 if image_size is None else image_size,
            downsampling=model.spatial_compression_ratio,
            channels=model.config["latent_channels"],
            scale=scale,
        )

    def _encode(self, pixels: Tensor, *, sample: bool, generator: Generators | None) -> Tensor:
        return to_tokens(self.network.encode(pixels).latent)  # (B, N, C)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.network.decode(to_features(latents)).sample  # (B, 3, H, W)
