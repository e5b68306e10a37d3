"""What stands between people's images and texts and the model's rows of tokens.

Importing it tells transformers' ``AutoConfig``, ``AutoProcessor`` and ``AutoImageProcessor`` about the classes.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor

from mmar.config import MMARConfig
from mmar.processing.chat import ChatFormat, GenerationSample, UnderstandingSample, chat_template
from mmar.processing.errors import TruncatedCaption
from mmar.processing.image_processor import MMARImageProcessor
from mmar.processing.processor import MMARProcessor
from mmar.processing.text_tokenizer import add_image_tokens, check_tokenizer, train_tokenizer

AutoConfig.register(MMARConfig.model_type, MMARConfig, exist_ok=True)
AutoImageProcessor.register(MMARConfig, image_processor_classes={"pil": MMARImageProcessor}, exist_ok=True)
AutoProcessor.register(MMARConfig, MMARProcessor, exist_ok=True)

__all__ = [
    "ChatFormat",
    "GenerationSample",
    "MMARImageProcessor",
    "MMARProcessor",
    "TruncatedCaption",
    "UnderstandingSample",
    "add_image_tokens",
    "chat_template",
    "check_tokenizer",
    "train_tokenizer",
]
