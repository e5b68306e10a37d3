"""Frozen image tokenizers: images to tokens and back, outside the model.

Names are loaded when they are first used: diffusers takes seconds to import, and patches do not need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from mmar.tokenizers.base import ImageTokenizer
from mmar.tokenizers.checks import NonFiniteImages
from mmar.tokenizers.latent_statistics import LatentStatistics
from mmar.tokenizers.measure import measure_latents
from mmar.tokenizers.patches import PatchTokenizer
from mmar.tokenizers.registry import load_image_tokenizer
from mmar.tokenizers.scale import MAR_KL16_STD, LatentScale

if TYPE_CHECKING:
    from mmar.tokenizers.dc import DC_F128C512_CONFIG, DCTokenizer
    from mmar.tokenizers.encoder_only import EncoderOnly
    from mmar.tokenizers.kl import KL16_CONFIG, KLTokenizer
    from mmar.tokenizers.packed import PackedTokenizer
    from mmar.tokenizers.vision_encoder import VisionEncoder
    from mmar.tokenizers.vq import VQ16_CONFIG, VQTokenizer

_MODULES = {
    "DC_F128C512_CONFIG": "dc",
    "DCTokenizer": "dc",
    "EncoderOnly": "encoder_only",
    "KL16_CONFIG": "kl",
    "KLTokenizer": "kl",
    "PackedTokenizer": "packed",
    "VQ16_CONFIG": "vq",
    "VQTokenizer": "vq",
    "VisionEncoder": "vision_encoder",
}

__all__ = [
    "DC_F128C512_CONFIG",
    "KL16_CONFIG",
    "MAR_KL16_STD",
    "VQ16_CONFIG",
    "DCTokenizer",
    "EncoderOnly",
    "ImageTokenizer",
    "KLTokenizer",
    "LatentScale",
    "LatentStatistics",
    "NonFiniteImages",
    "PackedTokenizer",
    "PatchTokenizer",
    "VQTokenizer",
    "VisionEncoder",
    "load_image_tokenizer",
    "measure_latents",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
