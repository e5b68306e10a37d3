"""mmar: the reference model of the paper, built on diffparam.

The names below are loaded when they are first used: the diffusion head alone needs torch, not transformers. The first of them
also tells transformers' Auto classes about MMAR (:mod:`mmar.auto`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmar.config import MMARConfig
    from mmar.generation.image import generate_image_tokens
    from mmar.generation.settings import ImageGenerationConfig
    from mmar.generation.text import answer_questions
    from mmar.model import MMARForConditionalGeneration
    from mmar.pipeline import MMARPipeline
    from mmar.processing import MMARProcessor
    from mmar.tokenizers import ImageTokenizer, load_image_tokenizer

_MODULES = {
    "ImageGenerationConfig": "generation.settings",
    "ImageTokenizer": "tokenizers",
    "MMARConfig": "config",
    "MMARForConditionalGeneration": "model",
    "MMARPipeline": "pipeline",
    "MMARProcessor": "processing",
    "answer_questions": "generation.text",
    "generate_image_tokens": "generation.image",
    "load_image_tokenizer": "tokenizers",
}

__all__ = [
    "ImageGenerationConfig",
    "ImageTokenizer",
    "MMARConfig",
    "MMARForConditionalGeneration",
    "MMARPipeline",
    "MMARProcessor",
    "answer_questions",
    "generate_image_tokens",
    "load_image_tokenizer",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module("mmar.auto")
    return getattr(import_module(f"mmar.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
