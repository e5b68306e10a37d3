"""Whether a model, a processor and an image tokenizer belong together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmar.config import MMARConfig
from mmar.processing import MMARProcessor, check_tokenizer
from mmar.tokenizers import ImageTokenizer


def check_compatibility(config: MMARConfig, processor: MMARProcessor, image_tokenizer: ImageTokenizer) -> None:
    """Raise one error that names everything in which the three differ.

    Raises:
        ValueError: If the text tokenizer or the image tokenizer does not fit the configuration, or the processor makes other
            images or another number of placeholders than the others expect.
    """
    wrong = [
        *_refused(lambda: image_tokenizer.check_config(config)),
        *_refused(lambda: check_tokenizer(processor.tokenizer, config)),
        *_pixels(config, processor, image_tokenizer),
    ]
    if wrong:
        listed = "; ".join(f"({i}) {message}" for i, message in enumerate(wrong, start=1))
        raise ValueError(f"model, processor and image tokenizer must belong together, but {listed}")


def _pixels(config: MMARConfig, processor: MMARProcessor, image_tokenizer: ImageTokenizer) -> list[str]:
    images: Any = processor.image_processor
    count = config.image_config.count
    rows = [
        ("tokens_per_image", processor.tokens_per_image, count, "the model"),
        ("image_size", images.image_size, image_tokenizer.image_size, "the image tokenizer"),
        ("channels", images.channels, image_tokenizer.image_channels, "the image tokenizer"),
    ]
    remedy = "make the processor by MMARProcessor.from_config"
    return [
        f"{name} of the processor must be {wanted}, that of {whose}, got {has}; {remedy}"
        for name, has, wanted, whose in rows
        if has != wanted
    ]


def _refused(check: Callable[[], None]) -> list[str]:
    try:
        check()
    except ValueError as error:
        return [str(error)]
    return []
