"""The kinds of image tokenizers, and loading any of them from a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from diffparam import UnknownName
from mmar.tokenizers.base import ImageTokenizer
from mmar.tokenizers.saved import FILE_NAME, SavedTokenizer, existing_folder

KINDS = {
    "patches": "mmar.tokenizers.patches:PatchTokenizer",
    "kl": "mmar.tokenizers.kl:KLTokenizer",
    "vq": "mmar.tokenizers.vq:VQTokenizer",
    "dc": "mmar.tokenizers.dc:DCTokenizer",
    "vision-encoder": "mmar.tokenizers.vision_encoder:VisionEncoder",
    "encoder-only": "mmar.tokenizers.encoder_only:EncoderOnly",
    "packed": "mmar.tokenizers.packed:PackedTokenizer",
}
"""Where each kind is; imported when it is needed."""

_DIFFUSERS = {"AutoencoderKL": "kl", "VQModel": "vq", "AutoencoderDC": "dc"}


def load_image_tokenizer(folder: str | Path, *, own: Mapping[str, type[ImageTokenizer]] | None = None) -> ImageTokenizer:
    """Read an image tokenizer of any kind.

    Args:
        folder: Written by ``save_pretrained``, or by diffusers (AutoencoderKL, VQModel, AutoencoderDC).
        own: Classes of your own, by their ``kind``.

    Raises:
        FileNotFoundError: If the folder is not there, or is no tokenizer's.
        UnknownName: If its kind is not known.
        ValueError: If its weights are not those that were saved.
    """
    kind = _kind(existing_folder(folder))
    if own is not None and kind in own:
        return own[kind].from_pretrained(folder)
    if kind not in KINDS:
        raise UnknownName("kind of image tokenizer", kind, (*KINDS, *(own or {})), "Pass own={kind: class} for one of yours.")
    module, _, name = KINDS[kind].partition(":")
    tokenizer: ImageTokenizer = getattr(import_module(module), name).from_pretrained(folder)
    return tokenizer


def _kind(folder: Path) -> str:
    config = folder / "config.json"
    if not (folder / FILE_NAME).is_file() and config.is_file():
        foreign = json.loads(config.read_text(encoding="utf-8")).get("_class_name")
        if foreign in _DIFFUSERS:
            return _DIFFUSERS[foreign]
    return SavedTokenizer.read(folder).kind
