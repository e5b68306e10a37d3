"""What stands beside the parts of a saved pipeline, so that they find together again as they were."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from mmar.tokenizers import ImageTokenizer

FILE_NAME = "mmar_pipeline.json"


@dataclass(frozen=True)
class PipelineRecord:
    """The contents of ``mmar_pipeline.json``.

    Attributes:
        compute_dtype: What the model computes in.
        image_tokenizer: Identity of the image tokenizer whose tokens the model knows.
    """

    compute_dtype: torch.dtype
    image_tokenizer: str

    def write(self, folder: Path) -> None:
        """Write it into the folder."""
        record = {"compute_dtype": str(self.compute_dtype).removeprefix("torch."), "image_tokenizer": self.image_tokenizer}
        (folder / FILE_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read it from the folder.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is not as :meth:`write` leaves it.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"folder must hold {FILE_NAME}, written by MMARPipeline.save_pretrained; {str(folder)!r} does not. "
                "A model alone loads by MMARForConditionalGeneration.from_pretrained"
            )
        record = json.loads(path.read_text(encoding="utf-8"))
        dtype, identity = getattr(torch, str(record.get("compute_dtype")), None), record.get("image_tokenizer")
        if not isinstance(dtype, torch.dtype) or not isinstance(identity, str):
            raise ValueError(f"{path} must name a compute_dtype and an image_tokenizer, got {record}; save the pipeline again")
        return cls(dtype, identity)

    def check(self, image_tokenizer: ImageTokenizer) -> None:
        """Raise unless it is the one whose tokens the model knows: another of the same shape would give nonsense silently."""
        identity = image_tokenizer.identity
        if identity != self.image_tokenizer:
            raise ValueError(
                f"image_tokenizer must be the one that the model was saved with, {self.image_tokenizer}, got {identity}: other "
                "weights or another scale give other tokens; copy the folder again, or build the pipeline from its parts"
            )
