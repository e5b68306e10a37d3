"""Codes of a vector-quantised autoencoder: the VQ-16 of the paper's "w/ VQ" ablation, and any other VQModel of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch
from diffusers.models import VQModel
from torch import Tensor

from mmar.tokenizers.base import Generators
from mmar.tokenizers.checks import check_finite
from mmar.tokenizers.diffusers_tokenizer import DiffusersTokenizer
from mmar.tokenizers.ldm_checkpoint import diffusers_state, ldm_config
from mmar.tokenizers.ldm_file import read_ldm_file
from mmar.tokenizers.raster import to_features, to_tokens
from mmar.tokenizers.scale import LatentScale

VQ16_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "sample_size": 256,
    "latent_channels": 8,
    "layers_per_block": 2,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_type": "group",
    "block_out_channels": (128, 128, 256, 256, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
    "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
    "mid_block_add_attention": True,
    "vq_embed_dim": 8,
    "num_vq_embeddings": 16384,
    "scaling_factor": 1.0,
    "force_upcast": False,
}
"""LDM's vq-f16 (Rombach et al. 2022) as arguments of ``VQModel``: 69.6 M parameters, 16384 codes of 8 numbers."""

_ROWS = 4096
"""Vectors compared with the codebook at a time: 268 MB of distances for 16384 entries."""


@final
class VQTokenizer(DiffusersTokenizer):
    """Frozen ``VQModel``. Its tokens are codebook entries, so that ``encode(x) == codebook[encode_codes(x)]`` to the bit.

    ``decode`` takes vectors as they are, entries or not.

    Args:
        model: The network; frozen in place.
        name: Of the tokenizer; vq- and the downsampling by default.
        image_size: Side of the image; the configuration's ``sample_size`` by default.
        scale: Of the entries; 1 by default, for codes need none. VQModel's ``scaling_factor`` is not used: its default is that
            of another model.
    """

    kind: ClassVar[str] = "vq"
    model_class = VQModel
    architecture_keys = tuple(VQ16_CONFIG)

    def __init__(
        self,
        model: VQModel,
        *,
        name: str | None = None,
        image_size: int | None = None,
        scale: LatentScale | None = None,
    ) -> None:
        if model.config["lookup_from_codebook"]:
            raise ValueError("lookup_from_codebook of the model must be False, got True; the lookup is done here")
        downsampling = 2 ** (len(model.config["block_out_channels"]) - 1)
        entries = model.quantize.embedding.weight  # (K, C)
        super().__init__(
            model,
            name=f"vq-{downsampling}" if name is None else name,
            image_size=model.config["sample_size"] if image_size is None else image_size,
            downsampling=downsampling,
            channels=entries.shape[1],
            codebook_size=entries.shape[0],
            scale=LatentScale() if scale is None else scale,
        )

    @classmethod
    def from_ldm_checkpoint(
        cls,
        path: str | Path,
        *,
        scale: LatentScale | None = None,
        name: str | None = None,
        image_size: int = 256,
    ) -> Self:
        """Read an autoencoder in the names of LDM's code, vq-f16's ``model.ckpt`` or any other size.

        Args:
            path: A torch pickle (.ckpt, .pt, .pth; loaded without running code in it) or .safetensors.
            scale: Of the entries; 1 by default.
            name: Of the tokenizer; vq- and the downsampling by default.
            image_size: Side of the image.

        Raises:
            ValueError: If the file is not such an autoencoder, or has too many or too few weights.
        """
        state = read_ldm_file(path)
        model = VQModel(**ldm_config(state, codebook=True), sample_size=image_size)
        model.load_state_dict(diffusers_state(state, model))
        return cls(model, name=name, image_size=image_size, scale=scale)

    def _codebook(self) -> Tensor:
        return self.network.quantize.embedding.weight  # (K, C)

    def _encode_codes(self, pixels: Tensor) -> Tensor:
        latents = to_tokens(self.network.encode(pixels).latents).float()  # (B, N, C)
        check_finite("latents", latents)  # NaN has a nearest entry too: the first
        return nearest(latents.flatten(0, 1), self._codebook().float()).view(latents.shape[:2])  # (B, N)

    def _encode(self, pixels: Tensor, *, sample: bool, generator: Generators | None) -> Tensor:
        return self._codebook()[self._encode_codes(pixels)]  # (B, N, C)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.network.decode(to_features(latents), force_not_quantize=True).sample  # (B, 3, H, W)


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index ``(rows,)`` of the entry of ``codebook (K, D)`` nearest to each of ``vectors (rows, D)``; the first of equals.

    Distances are sums of squared differences. The expansion ``|z|² - 2 z·e + |e|²``, to which ``torch.cdist`` turns by itself
    from 26 rows on, cancels, and would make a code depend on the size of the batch.
    """
    exact = "donot_use_mm_for_euclid_dist"
    parts = [torch.cdist(rows, codebook, compute_mode=exact).argmin(1) for rows in vectors.split(_ROWS)]
    return torch.cat(parts)  # (rows,)
