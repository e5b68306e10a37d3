"""Where a new model begins: a trained Qwen2 in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig, Qwen2Config

from mmar.config import MMARConfig
from mmar.language_model import MMARTextModel
from mmar.processing.text_tokenizer import add_image_tokens
from mmar.qwen2_weights import load_qwen2_weights, qwen2_fields

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")


def config_on_qwen2(folder: str | Path, preset: str | None = None, **options: Any) -> MMARConfig:
    """The configuration of a model on a Qwen2.

    Args:
        folder: A Qwen2 as transformers saves it. ``text_config`` is its ``config.json``, as far as Qwen2 knows the keys; where
            it has a tokenizer, ids of images are those that :func:`add_image_tokens` gives or finds there.
        preset: Takes the other parts from a preset, such as mmar-0.5b; None: the defaults of :class:`MMARConfig`.
        **options: Fields to replace, as in :meth:`MMARConfig.preset`.

    Raises:
        FileNotFoundError: If there is no ``config.json``.
        ValueError: If it is that of another model than a Qwen2, or of a quantized one.
    """
    text = _qwen2_fields(Path(folder))
    fields = {**_image_ids(Path(folder), text["vocab_size"]), **options}
    fields["text_config"] = Qwen2Config(**{**text, **fields.get("text_config", {})})
    return MMARConfig(**fields) if preset is None else MMARConfig.preset(preset, **fields)


@torch.no_grad()
def fill_from_qwen2(text: MMARTextModel, lm_head: nn.Linear, folder: str | Path) -> None:
    """Copy the weights of a Qwen2 into the text model and the language model head.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If weights are missing, left over or of another shape, or the head is not what ``tie_word_embeddings`` says.
    """
    head: Tensor | None = load_qwen2_weights(text, folder)
    if text.config.tie_word_embeddings:
        if head is not None and not torch.equal(head.to(lm_head.weight.dtype), lm_head.weight):
            raise ValueError(
                f"lm_head.weight in {str(folder)!r} must be the embedding, as tie_word_embeddings says, got other numbers; "
                'write "tie_word_embeddings": false into its config.json'
            )
    elif head is None:
        raise ValueError(f"{str(folder)!r} must hold lm_head.weight, for tie_word_embeddings is false; fetch the whole folder")
    else:
        lm_head.weight.copy_(head)


def take_end_tokens(generation: GenerationConfig, folder: str | Path) -> None:
    """Take begin, end and padding of text from the folder's ``generation_config.json``, if it has one.

    Its sampling options stay behind: temperature and repetition penalty of a chat model would change answers about images.
    """
    if not (Path(folder) / "generation_config.json").is_file():
        return
    written = GenerationConfig.from_pretrained(folder)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(written, name) is not None:
            setattr(generation, name, getattr(written, name))


def _qwen2_fields(folder: Path) -> dict[str, Any]:
    """What ``Qwen2Config`` knows. Other keys, of old releases or other programs, it would keep without using them."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"folder must hold config.json and the weights of a Qwen2, got {str(folder)!r} without it")
    written = json.loads(path.read_text(encoding="utf-8"))
    if written.get("model_type") != "qwen2":
        raise ValueError(f"model_type in {path} must be qwen2, got {written.get('model_type')!r}; use a folder of plain Qwen2")
    if written.get("quantization_config") is not None:
        raise ValueError(f"{path} must be that of unquantized weights, got a quantization_config; use the folder in bf16")
    return qwen2_fields(Qwen2Config.from_dict(written))


def _image_ids(folder: Path, vocab_size: int) -> dict[str, int]:
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return {}
    return add_image_tokens(AutoTokenizer.from_pretrained(folder), vocab_size)
