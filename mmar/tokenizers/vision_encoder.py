"""Patch features of a frozen vision tower (CLIP, SigLIP, DINOv2, ViT) for the understanding-only baseline (LLaVA-like)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from mmar.tokenizers.base import Generators, ImageTokenizer
from mmar.tokenizers.saved import FILE_NAME, existing_folder
from mmar.tokenizers.scale import LatentScale

_PREPROCESSOR = "preprocessor_config.json"
_ARCHITECTURE = ("patch_size", "num_attention_heads", "hidden_act", "layer_norm_eps")
"""What the shapes of the weights do not say."""


@final
class VisionEncoder(ImageTokenizer):
    """Hidden states of the patches in one layer; class and register tokens, which come first, are left out. It cannot decode.

    Args:
        model: A transformers vision model whose hidden states are token sequences; frozen in place.
        image_mean: Per channel, of pixels in [0, 1]: what the tower was trained with.
        image_std: As ``image_mean``.
        layer: Index into the hidden states, of which the first is the embedding; LLaVA takes -2, the last but one.
        name: Compared with ``image_config.tokenizer`` of a model.
        scale: Of the features; 1 by default.
    """

    kind: ClassVar[str] = "vision-encoder"
    can_decode: bool = False
    network: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        layer: int = -2,
        name: str = "vision-encoder",
        scale: LatentScale | None = None,
    ) -> None:
        config = _checked_config(model)
        states = config.num_hidden_layers + 1
        if not -states <= layer < states:
            raise ValueError(f"layer must lie in [{-states}, {states}) for {config.num_hidden_layers} layers, got {layer}")
        if not len(image_mean) == len(image_std) == config.num_channels:
            raise ValueError(
                f"image_mean and image_std must have one number for each of {config.num_channels} channels, "
                f"got {list(image_mean)} and {list(image_std)}"
            )
        if not min(image_std) > 0:
            raise ValueError(f"image_std must be positive, got {list(image_std)}; they are those of pixels in [0, 1]")
        super().__init__(
            model,
            name=name,
            image_size=config.image_size,
            grid=config.image_size // config.patch_size,
            channels=config.hidden_size,
            image_channels=config.num_channels,
            scale=scale,
        )
        self.layer, self._mean, self._std = layer, tuple(map(float, image_mean)), tuple(map(float, image_std))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        layer: int | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        name: str | None = None,
        scale: LatentScale | None = None,
    ) -> Self:
        """Read a folder of transformers (a vision model, or a CLIP or SigLIP with one in it), or of :meth:`save_pretrained`.

        Args:
            folder: Holds ``config.json`` and the weights.
            layer: In place of the stored one; -2 by default.
            image_mean: In place of that in ``preprocessor_config.json``.
            image_std: As ``image_mean``.
            name: In place of the stored one; vision-encoder by default.
            scale: In place of the stored one; 1 by default.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If it is not a vision model with all its weights, or the mean and std of its pixels are not known.
        """
        given: dict[str, Any] = {"layer": layer, "image_mean": image_mean, "image_std": image_std, "name": name, "scale": scale}
        given = {key: value for key, value in given.items() if value is not None}
        if (existing_folder(folder) / FILE_NAME).is_file():
            saved = super().from_pretrained(folder)
            return cls(saved.network, **{**saved.settings(), "scale": saved.scale, **given})
        given = {**_pixel_moments(Path(folder)), **given}
        if not {"image_mean", "image_std"} <= set(given):
            raise ValueError(
                f"image_mean and image_std must be given where there is no {_PREPROCESSOR} in the folder, got {sorted(given)}; "
                "they are those of the pixels, in [0, 1], that the tower was trained with"
            )
        return cls(_tower(Path(folder)), **given)

    def settings(self) -> dict[str, Any]:
        """Arguments of the class."""
        return {"name": self.name, "layer": self.layer, "image_mean": list(self._mean), "image_std": list(self._std)}

    def _architecture(self) -> dict[str, Any]:
        config = self.network.config
        return {"model": type(self.network).__name__, **{key: getattr(config, key, None) for key in _ARCHITECTURE}}

    def _encode(self, pixels: Tensor, *, sample: bool, generator: Generators | None) -> Tensor:
        mean, std = (pixels.new_tensor(moment).view(1, -1, 1, 1) for moment in (self._mean, self._std))
        pixels = (pixels / 2 + 0.5 - mean) / std  # (B, 3, H, W)
        output = self.network(pixel_values=pixels, output_hidden_states=True)
        features = output.hidden_states[self.layer]  # (B, prefix + N, C)
        if features.ndim != 3 or features.shape[1] < self.grid**2:
            raise ValueError(
                f"hidden states of {type(self.network).__name__} must be sequences of at least {self.grid**2} tokens, "
                f"got shape {tuple(features.shape)}; use a plain vision transformer"
            )
        return features[:, -(self.grid**2) :]  # (B, N, C)

    def _write(self, folder: Path) -> None:
        self.network.save_pretrained(folder)

    @classmethod
    def _read(cls, folder: Path, settings: dict[str, Any], scale: LatentScale) -> Self:
        return cls(_tower(folder), scale=scale, **settings)


def _checked_config(model: PreTrainedModel) -> Any:
    needed = ("image_size", "patch_size", "hidden_size", "num_channels", "num_hidden_layers")
    values = {key: getattr(model.config, key, None) for key in needed}
    if not all(isinstance(value, int) for value in values.values()):
        raise ValueError(
            f"model must be a vision transformer on square images, got {type(model).__name__} with {values}; "
            "use CLIPVisionModel, SiglipVisionModel, Dinov2Model or ViTModel"
        )
    return model.config


def _tower(folder: Path) -> PreTrainedModel:
    model, info = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True, output_loading_info=True)
    missing = {key for key in info["missing_keys"] if not key.startswith("pooler.")}
    if missing or info["mismatched_keys"]:
        raise ValueError(f"weights in {str(folder)!r} must be those of its config.json, but are missing: {sorted(missing)[:4]}")
    model = model.vision_model if hasattr(model.config, "vision_config") else model
    if info[
        "missing_keys"
    ]:  # some towers are published without; what it was initialised to must not become part of the identity
        model.pooler = None
    return model


def _pixel_moments(folder: Path) -> dict[str, Any]:
    path = folder / _PREPROCESSOR
    if not path.is_file():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    return {key: record[key] for key in ("image_mean", "image_std") if key in record}
