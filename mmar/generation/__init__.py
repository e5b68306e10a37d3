"""Drawing images and answering in text."""

from mmar.generation.image import generate_image_tokens
from mmar.generation.settings import ImageGenerationConfig

__all__ = ["ImageGenerationConfig", "generate_image_tokens"]
