"""Small KL and VQ autoencoders of one architecture: what the paper's KL-16 and VQ-16 are at the size of these experiments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers.models import AutoencoderKL, VQModel

from mmar.tokenizers import KLTokenizer, VQTokenizer


def autoencoder(
    kind: str, *, size: int, widths: Sequence[int], channels: int, entries: int, image_channels: int = 3
) -> tuple[Any, Any]:
    """A network with random weights, and the class of its tokenizer.

    Args:
        kind: kl or vq.
        size: Side of the images, pixels.
        widths: Channels of the levels; each level but the first halves the side.
        channels: Numbers per token, of latents or of the entries of the codebook.
        entries: Of the codebook; nothing to kl.
        image_channels: 3 for colours, 1 for grey.
    """
    shared = {
        "sample_size": size,
        "in_channels": image_channels,
        "out_channels": image_channels,
        "latent_channels": channels,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "block_out_channels": tuple(widths),
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "mid_block_add_attention": False,
        "scaling_factor": 1.0,
    }
    if kind == "kl":
        return AutoencoderKL(**shared), KLTokenizer
    if kind == "vq":
        return VQModel(**shared, num_vq_embeddings=entries, vq_embed_dim=channels), VQTokenizer
    raise ValueError(f"kind must be kl or vq, got {kind!r}")
