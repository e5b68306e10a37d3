"""Image tokenizers of a few thousand random weights, and real images to feed them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn

from mmar.tokenizers import (
    DCTokenizer,
    EncoderOnly,
    ImageTokenizer,
    KLTokenizer,
    PackedTokenizer,
    PatchTokenizer,
    VisionEncoder,
    VQTokenizer,
)

BLOCKS = {
    "block_out_channels": (8, 8, 16),
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 32,
}
DC = {
    "latent_channels": 8,
    "attention_head_dim": 4,
    "encoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
    "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
    "encoder_block_out_channels": (8, 8, 16),
    "decoder_block_out_channels": (8, 8, 16),
    "encoder_layers_per_block": (0, 1, 1),
    "decoder_layers_per_block": (0, 1, 1),
    "encoder_qkv_multiscales": ((), (), ()),
    "decoder_qkv_multiscales": ((), (), ()),
    "decoder_norm_types": ("batch_norm", "batch_norm", "rms_norm"),
    "decoder_act_fns": ("relu", "relu", "silu"),
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Random weights, the same each time; those that start at zero or one are moved off it."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape)
    return model


def kl(**options: object) -> KLTokenizer:
    from diffusers import AutoencoderKL

    return KLTokenizer(seeded(lambda: AutoencoderKL(**BLOCKS, latent_channels=4)), **options)


def vq(**options: object) -> VQTokenizer:
    from diffusers import VQModel

    model = seeded(lambda: VQModel(**BLOCKS, latent_channels=4, vq_embed_dim=4, num_vq_embeddings=64))
    # Entries where the latents are, so that more than one of them is used.
    entries = model.quantize.embedding.weight
    with torch.no_grad():
        z = model.encode(photographs(32)).latents
        entries.copy_(z.mean((0, 2, 3)) + z.std((0, 2, 3)) * torch.randn(entries.shape))
    return VQTokenizer(model, **options)


def dc(**options: object) -> DCTokenizer:
    from diffusers import AutoencoderDC

    return DCTokenizer(seeded(lambda: AutoencoderDC(**DC)), image_size=32, **options)


def vision(**options: object) -> VisionEncoder:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    model = seeded(lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)))
    return VisionEncoder(model, image_mean=[0.48, 0.46, 0.41], image_std=[0.27, 0.26, 0.28], **options)


def patches(**options: object) -> PatchTokenizer:
    return PatchTokenizer(32, 4, **options)


def encoder_only(**options: object) -> EncoderOnly:
    return EncoderOnly(kl(), **options)


def packed(**options: object) -> PackedTokenizer:
    return PackedTokenizer(kl(), 2, **options)


MAKERS: dict[str, Callable[..., ImageTokenizer]] = {
    "patches": patches,
    "kl": kl,
    "vq": vq,
    "dc": dc,
    "vision-encoder": vision,
    "encoder-only": encoder_only,
    "packed": packed,
}
"""By kind; all take (3, 32, 32)."""


def photographs(size: int) -> Tensor:
    """``(4, 3, size, size)``: two quarters of each of two photographs, in [-1, 1]."""
    crops = [photo[y : y + 400, x : x + 320] for photo in load_sample_images().images for y, x in ((0, 0), (27, 320))]
    arrays = [np.asarray(Image.fromarray(crop).resize((size, size))) for crop in crops]
    return torch.tensor(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def digits() -> Tensor:
    """``(1797, 1, 8, 8)`` in [-1, 1]."""
    return torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
