"""What the tokenizers share whose network is an autoencoder of diffusers: folders, scale, architecture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.models import ModelMixin

from mmar.tokenizers.base import ImageTokenizer
from mmar.tokenizers.saved import FILE_NAME, existing_folder
from mmar.tokenizers.scale import LatentScale

_NOT_ARCHITECTURE = {"sample_size", "scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast"}


class DiffusersTokenizer(ImageTokenizer):
    """A frozen diffusers autoencoder.

    Args:
        model: The network; frozen in place.
        name: Compared with ``image_config.tokenizer`` of a model.
        image_size: Side of the image, pixels; a multiple of the network's downsampling.
        downsampling: Pixels per token side.
        channels: Numbers per token.
        codebook_size: Entries of the codebook, or None.
        scale: Of the latents; by default what the model's configuration was given (``scaling_factor``, ``shift_factor``), or 1.
    """

    model_class: ClassVar[type[ModelMixin]]
    architecture_keys: ClassVar[Iterable[str]]
    network: Any

    def __init__(
        self,
        model: ModelMixin,
        *,
        name: str,
        image_size: int,
        downsampling: int,
        channels: int,
        codebook_size: int | None = None,
        scale: LatentScale | None = None,
    ) -> None:
        if image_size < 1 or image_size % downsampling:
            raise ValueError(f"image_size must be a multiple of {downsampling}, the network's downsampling, got {image_size}")
        super().__init__(
            model,
            name=name,
            image_size=image_size,
            grid=image_size // downsampling,
            channels=channels,
            image_channels=model.config["in_channels"],
            codebook_size=codebook_size,
            scale=_scale_of(model) if scale is None else scale,
        )

    def settings(self) -> dict[str, Any]:
        """Arguments of the class."""
        return {"name": self.name, "image_size": self.image_size}

    def _architecture(self) -> dict[str, Any]:
        """The keys of today's published configuration: a key that a later diffusers adds must not change an identity."""
        return {k: self.network.config.get(k) for k in self.architecture_keys if k not in _NOT_ARCHITECTURE}

    def _write(self, folder: Path) -> None:
        self.network.save_pretrained(folder)

    @classmethod
    def _read(cls, folder: Path, settings: dict[str, Any], scale: LatentScale) -> Self:
        return cls._of(cls._load_model(folder), scale=scale, **settings)

    @classmethod
    def _of(cls, model: ModelMixin, *, name: str | None, image_size: int | None, scale: LatentScale | None) -> Self:
        return cls(model, name=name, image_size=image_size, scale=scale)  # type: ignore[call-arg, arg-type]

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        name: str | None = None,
        image_size: int | None = None,
        scale: LatentScale | None = None,
    ) -> Self:
        """Read a folder that diffusers wrote, or one of :meth:`save_pretrained`, in float32.

        Args:
            folder: Holds ``config.json`` and the weights.
            name: In place of the stored or the usual one.
            image_size: In place of the stored one, or of the configuration's ``sample_size``.
            scale: In place of the stored one, or of the configuration's ``scaling_factor``.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If its weights are not exactly those of the configuration.
        """
        if not (existing_folder(folder) / FILE_NAME).is_file():
            return cls._of(cls._load_model(Path(folder)), name=name, image_size=image_size, scale=scale)
        saved = super().from_pretrained(folder)
        return cls._of(
            saved.network,
            name=saved.name if name is None else name,
            image_size=saved.image_size if image_size is None else image_size,
            scale=saved.scale if scale is None else scale,
        )

    @classmethod
    def _load_model(cls, folder: Path) -> ModelMixin:
        loaded: Any = cls.model_class.from_pretrained(
            str(folder), torch_dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        model, info = loaded
        wrong = {key: value for key, value in info.items() if value}
        if wrong:  # diffusers warns only, and leaves missing weights as they were initialised
            raise ValueError(f"weights in {str(folder)!r} must be exactly those of its config.json, got {wrong}")
        return model


def _scale_of(model: ModelMixin) -> LatentScale:
    """``(z - shift) * scaling_factor``, as diffusers' pipelines have it; 1 if nobody chose the factor.

    The default of ``AutoencoderKL``, 0.18215, belongs to the weights of Stable Diffusion.
    """
    if "scaling_factor" in model.config.get("_use_default_values", ()):
        return LatentScale()
    shift = model.config.get("shift_factor")
    return LatentScale(std=1 / model.config["scaling_factor"], mean=0.0 if shift is None else shift)
