"""Named sizes: the paper's two models (section 3.3.2) and those that a CPU trains."""

from __future__ import annotations

from typing import Any

_QWEN2 = {
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "max_position_embeddings": 32768,
}
_SMALL_IDS = {"image_token_id": 4, "boi_token_id": 5, "eoi_token_id": 6}
"""Of the small tokenizers: <|endoftext|> <|im_start|> <|im_end|> then a reserved one, then the three of images."""


def _small_text(width: int, layers: int, heads: int, vocab_size: int = 512) -> dict[str, Any]:
    """A Qwen2 that is trained from nothing on short texts.

    Weights start at about ``width ** -0.5``, and RoPE turns as in texts of some hundred tokens. With Qwen2's own 0.02 and 1e6
    the smallest ones do not learn to look an answer up in a description: after 160 steps on digits the loss of answers was
    0.70, about what guessing costs, and 0.22 with these (one seed of a trial that is not kept, both changed together).
    """
    return {
        **_QWEN2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "initializer_range": 0.06,
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _digits(width: int, layers: int) -> dict[str, Any]:
    """Grey scans of 8 x 8 pixels, 16 tokens; everything but the tokens grows with the language model."""
    return {
        "text_config": _small_text(width, layers, 4),
        "image_config": {"tokenizer": "patches", "image_size": 8, "grid": 4, "channels": 4},
        "embedding_vit_config": {"hidden_size": width, "num_hidden_layers": layers - 1, "num_attention_heads": 4},
        "diffusion_head_config": {"width": 2 * width, "depth": 3},
        "plora_config": {"rank": width // 2},
        **_SMALL_IDS,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "mmar-0.5b": {
        "text_config": {
            **_QWEN2,
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "pad_token_id": 151643,
        },
        "plora_config": {"rank": 512},
        "diffusion_head_config": {"width": 1024, "depth": 8},
    },
    "mmar-7b": {
        "text_config": {
            **_QWEN2,
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "pad_token_id": 151643,
        },
        "plora_config": {"rank": 1280},
        "diffusion_head_config": {"width": 2048, "depth": 12},
    },
    "mmar-tiny": {
        "text_config": _small_text(64, 2, 4),
        "image_config": {"tokenizer": "patches", "image_size": 8, "grid": 4, "channels": 12},
        "embedding_vit_config": {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
        "diffusion_head_config": {"width": 48, "depth": 2},
        "plora_config": {"rank": 8},
        **_SMALL_IDS,
    },
    "mmar-digits-small": _digits(64, 3),
    "mmar-digits": _digits(128, 4),
    "mmar-digits-large": _digits(256, 5),
    "mmar-scenes": {
        "text_config": _small_text(192, 6, 6),
        "image_config": {"tokenizer": "kl-scenes", "image_size": 32, "grid": 8, "channels": 8},
        "embedding_vit_config": {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6},
        "diffusion_head_config": {"width": 256, "depth": 3},
        "plora_config": {"rank": 96},
        **_SMALL_IDS,
    },
}
