"""Between people's images and the tokens of a model: the image processor and the image tokenizer as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmar.processing import MMARImageProcessor
from mmar.tokenizers import ImageTokenizer


@dataclass(frozen=True)
class PictureCodec:
    """Images to tokens and back.

    Attributes:
        image_processor: Images to pixels and back.
        image_tokenizer: Pixels to tokens and back.
        has_codes: Whether the model's tokens are entries of a codebook.
    """

    image_processor: MMARImageProcessor
    image_tokenizer: ImageTokenizer
    has_codes: bool

    def encode(self, images: Sequence[Any], device: torch.device) -> Tensor:
        """Tokens ``(n, N, C)`` float32, or codes ``(n, N)``, of images as the image processor takes them."""
        pixels = self.image_processor(list(images))["pixel_values"].to(self._device(device))  # (n, C, H, W)
        tokenizer = self.image_tokenizer
        tokens = tokenizer.encode_codes(pixels) if self.has_codes else tokenizer.encode(pixels)
        return tokens.to(device)

    def decode(self, tokens: Tensor) -> list[Image.Image]:
        """Pictures of tokens as :meth:`encode` returns them."""
        tokens, tokenizer = tokens.to(self._device(tokens.device)), self.image_tokenizer
        return self.image_processor.to_pil(tokenizer.decode_codes(tokens) if self.has_codes else tokenizer.decode(tokens))

    def _device(self, otherwise: torch.device) -> torch.device:
        """Where the weights of the tokenizer are; one without weights computes where its input is."""
        return next((parameter.device for parameter in self.image_tokenizer.parameters()), otherwise)
