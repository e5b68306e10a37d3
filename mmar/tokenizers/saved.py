"""What stands beside the weights in a saved image tokenizer: its kind, its settings, its scale and a digest of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mmar.tokenizers.scale import LatentScale

FILE_NAME = "image_tokenizer.json"
_VERSION = 1


def digest(*, state: Mapping[str, Tensor] | None = None, settings: Mapping[str, Any] | None = None) -> str:
    """SHA-256 of tensors (names, dtypes, shapes, bits; wherever they lie) and of JSON settings."""
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted((state or {}).items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def existing_folder(folder: str | Path) -> Path:
    """The folder as a path, or a FileNotFoundError: a misspelt name must not be looked up on the network."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"folder must be an existing folder, got {str(folder)!r}; "
            "fetch a published one with huggingface_hub.snapshot_download first"
        )
    return Path(folder)


@dataclass(frozen=True)
class SavedTokenizer:
    """The contents of ``image_tokenizer.json``.

    Attributes:
        kind: Key of the class in the registry.
        settings: Arguments of the class, JSON values.
        scale: Of its latents.
        weights_digest: Of its weights, checked when they are read.
    """

    kind: str
    settings: dict[str, Any]
    scale: LatentScale
    weights_digest: str

    def write(self, folder: Path) -> None:
        """Write ``image_tokenizer.json`` into the folder."""
        record = {
            "format": _VERSION,
            "kind": self.kind,
            **self.settings,
            "latent_mean": self.scale.mean,
            "latent_std": self.scale.std,
            "weights_sha256": self.weights_digest,
        }
        (folder / FILE_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read it from the folder.

        Raises:
            FileNotFoundError: If there is no folder, or no such file in it.
            ValueError: If the file is not one of ours.
        """
        path = existing_folder(folder) / FILE_NAME
        if not path.is_file():
            raise FileNotFoundError(f"folder must hold {FILE_NAME}, written by save_pretrained; {str(folder)!r} does not")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            version, kind, weights = record.pop("format"), record.pop("kind"), record.pop("weights_sha256")
            scale = LatentScale(std=record.pop("latent_std"), mean=record.pop("latent_mean"))
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} must be as save_pretrained writes it: {type(error).__name__}: {error}") from error
        if version != _VERSION:
            raise ValueError(f"format of {path} must be {_VERSION}, got {version!r}; it was written by another release")
        return cls(kind, record, scale, weights)
