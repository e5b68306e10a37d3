"""Model, processor and image tokenizer of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mmar.compatibility import check_compatibility
from mmar.config import MMARConfig
from mmar.data.order import StreamSettings
from mmar.image_head import DiffusionTokenHead
from mmar.model import MMARForConditionalGeneration
from mmar.pipeline import IMAGE_TOKENIZER_FOLDER
from mmar.processing import ChatFormat, MMARImageProcessor, MMARProcessor, add_image_tokens, train_tokenizer
from mmar.tokenizers import ImageTokenizer, LatentScale, PackedTokenizer, PatchTokenizer, load_image_tokenizer
from mmar.training.config import ModelSource, TrainingConfig
from mmar.training.sources import make_stream, texts_of
from mmar.weight_files import TensorSource, copy_strictly

SCALE_IMAGES = 2000
"""Images on which the scale of patches is measured."""
TEXT_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
)
"""What gives the weights of a language model their meaning."""


@dataclass(frozen=True)
class Parts:
    """What is trained, and what surrounds it.

    Attributes:
        model: With its trainable parameters marked.
        processor: Text and images to rows and pixels.
        image_tokenizer: Frozen.
    """

    model: MMARForConditionalGeneration
    processor: MMARProcessor
    image_tokenizer: ImageTokenizer


def build_parts(config: TrainingConfig) -> Parts:
    """Build or load everything that a run needs.

    Raises:
        ValueError: If the parts do not belong together, or an option is of another kind.
        FileNotFoundError: If a folder is not there.
    """
    torch.manual_seed(config.seed)
    model = _model(config)
    image_tokenizer = _image_tokenizer(config, model.config)
    processor = _processor(config, model.config, image_tokenizer)
    check_compatibility(model.config, processor, image_tokenizer)
    if model.config.has_codes and config.model.checkpoint is None:
        model.load_codebook(image_tokenizer.codebook)
    choose_trained(model, config)
    return Parts(model, processor, image_tokenizer)


def _model(config: TrainingConfig) -> MMARForConditionalGeneration:
    source = config.model
    for name in ("checkpoint", "qwen2", "embedding_vit", "diffusion_head", "language_model"):
        folder = getattr(source, name)
        if folder is not None and not Path(folder).is_dir():
            raise FileNotFoundError(f"model.{name} must be an existing folder, got {folder}; fetch or train it first")
    try:
        model = _started(source)
    except (StrictDataclassError, TypeError) as error:
        if not source.options:
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"model.options must be options of MMARConfig, got {source.options}: {reason}") from error
    if source.embedding_vit is not None:
        _load_embedding_vit(model, source.embedding_vit)
    if source.diffusion_head is not None:
        _load_diffusion_head(model, source.diffusion_head)
    return model


def _started(source: ModelSource) -> MMARForConditionalGeneration:
    """From a checkpoint, around a Qwen2, or new."""
    options = dict(source.options)
    if source.checkpoint is not None:
        # without dtype all would have that of the first parameter, which is frozen and in bfloat16: masters need float32
        return MMARForConditionalGeneration.from_pretrained(source.checkpoint, dtype=torch.float32, **options)
    if source.qwen2 is not None:
        return MMARForConditionalGeneration.from_qwen2(source.qwen2, preset=source.size, **options)
    model = MMARForConditionalGeneration(MMARConfig.preset(source.preset or "", **options))
    if source.language_model is not None:
        _load_language_model(model, source.language_model)
    return model


def _load_embedding_vit(model: MMARForConditionalGeneration, folder: str) -> None:
    """Weights to start from, all of them."""
    vit = getattr(model.image_model.input, "embedding_vit", None)
    if vit is None:
        raise ValueError(f"model.embedding_vit must be null for a model without EmbeddingViT, got {folder}")
    remedy = "sizes must be those of the model: see model.options.embedding_vit_config and image_config"
    copy_strictly(TensorSource.of(folder), dict(vit.named_parameters()), remedy=remedy)


def _load_diffusion_head(model: MMARForConditionalGeneration, folder: str) -> None:
    """Weights to start from, all of them."""
    head = getattr(model.image_model, "head", None)
    if not isinstance(head, DiffusionTokenHead):
        raise ValueError(f"model.diffusion_head must be null for a model without a diffusion head, got {folder}")
    remedy = "sizes must be those of the model: see model.options.diffusion_head_config and image_config"
    copy_strictly(TensorSource.of(folder), dict(head.named_parameters()), remedy=remedy)


def _load_language_model(model: MMARForConditionalGeneration, folder: str) -> None:
    """The frozen weights of another run's language model."""
    theirs = MMARForConditionalGeneration.from_pretrained(folder)
    for name in TEXT_SIZES:
        here, there = (getattr(m.config.text_config, name) for m in (model, theirs))
        if here != there:
            raise ValueError(f"model.language_model must have the preset's {name} {here}, got {there} in {folder}; train it so")
    frozen = {name: p for name, p in theirs.named_parameters() if name.startswith("language_model.") and "lora_" not in name}
    missing = model.load_state_dict(frozen, strict=False)
    if missing.unexpected_keys:
        raise ValueError(f"model.language_model must fit the model, got surplus {', '.join(missing.unexpected_keys[:4])}")
    model.tie_weights()


def _image_tokenizer(config: TrainingConfig, model_config: MMARConfig) -> ImageTokenizer:
    folder, patch_size = config.tokenizers.image, config.tokenizers.image_patch_size
    if patch_size != 1 and folder is None:
        raise ValueError(f"tokenizers.image_patch_size must be 1 without tokenizers.image, got {patch_size}; patches have grid")
    if folder is None and config.model.checkpoint is not None:
        folder = str(Path(config.model.checkpoint) / IMAGE_TOKENIZER_FOLDER)
    if folder is not None:
        loaded = load_image_tokenizer(folder)
        return loaded if patch_size == 1 else PackedTokenizer(loaded, patch_size)
    image: Any = model_config.image_config
    if image.tokenizer != "patches":
        raise ValueError(f"tokenizers.image must be a folder for {image.tokenizer!r} tokens, got None")
    patch = image.image_size // image.grid
    plain = PatchTokenizer(image.image_size, patch, image_channels=image.channels // patch**2)
    return plain.with_scale(LatentScale(std=_pixel_std(config, plain)))


def _pixel_std(config: TrainingConfig, tokenizer: PatchTokenizer) -> float:
    """Standard deviation of the pixels of the first images of the data."""
    pixels, processor = [], MMARImageProcessor(tokenizer.image_size, tokenizer.image_channels)
    for count, example in enumerate(make_stream(config.data, StreamSettings(seed=config.seed, epochs=1)).read()):
        pixels.append(processor([example.image])["pixel_values"])
        if count + 1 >= SCALE_IMAGES:
            break
    return float(torch.cat(pixels).double().std())


def _processor(config: TrainingConfig, model_config: MMARConfig, image_tokenizer: ImageTokenizer) -> MMARProcessor:
    folder = config.tokenizers.text
    if folder is None and config.model.checkpoint is not None:
        return MMARProcessor.from_pretrained(config.model.checkpoint)
    chat = ChatFormat(system_prompt=config.tokenizers.system_prompt or None)
    tokenizer: PreTrainedTokenizerBase
    if folder is not None and not Path(folder).is_dir():
        raise FileNotFoundError(f"tokenizers.text must be an existing folder, got {folder}; fetch or train it first")
    if folder is not None or config.model.qwen2 is not None:
        tokenizer = AutoTokenizer.from_pretrained(folder or config.model.qwen2)
        add_image_tokens(tokenizer, model_config.text_config.vocab_size)  # Qwen2's own has none
    else:
        words = make_stream(config.data, StreamSettings(seed=config.seed, epochs=1), image_tokenizer)
        tokenizer = train_tokenizer(texts_of(words, chat), model_config.text_config.vocab_size)
    return MMARProcessor.from_config(model_config, tokenizer, chat=chat, channels=image_tokenizer.image_channels)


def choose_trained(model: MMARForConditionalGeneration, config: TrainingConfig) -> None:
    """Stage text trains the language model and nothing else; the others everything but it."""
    if config.stage == "text":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("language_model.") and "lora_" not in name)
    if config.precision == "pure_bf16":
        model.to(torch.bfloat16)
    elif config.precision == "bf16":
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
