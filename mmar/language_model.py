"""The frozen language model with its image expert: Qwen2 whose decoder layers carry PLoRA (paper section 3.3.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from mmar.config import PLoRAConfig
from mmar.plora import KEYWORD, ImageRows, add_image_expert, image_expert_parameters, start_adapter


class MMARTextModel(Qwen2Model):
    """Qwen2 with an image expert, or without.

    Without image tokens it is Qwen2 to the bit. Weights of a plain Qwen2 come in by
    :func:`mmar.qwen2_weights.load_qwen2_weights`: their names differ.

    Args:
        config: Qwen2's.
        plora: The expert's; None for the bare model, which then treats image tokens like text.
    """

    def __init__(self, config: Qwen2Config, plora: PLoRAConfig | None) -> None:
        super().__init__(config)
        self.plora_config = plora
        if plora is not None:
            add_image_expert(self, plora)  # after post_init, which would draw lora_B; _init_weights knows it from now on
        self.freeze_base()

    def freeze_base(self) -> None:
        """Leave the expert trainable and nothing else. Checkpoints do not hold this: ``from_pretrained`` undoes it."""
        self.requires_grad_(False)
        for parameter in image_expert_parameters(self):
            parameter.requires_grad_(True)

    def cast_base(self, dtype: torch.dtype) -> None:
        """Store the frozen weights in another dtype; the expert keeps its own.

        With the base in bf16, in which Qwen2 is published, and a float32 expert, autocast to bf16 computes the same as with a
        float32 base that it casts in every call, in half the memory.
        """
        expert = set(image_expert_parameters(self))
        for parameter in self.parameters():
            if parameter not in expert:
                parameter.data = parameter.data.to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As in torch, but RoPE's frequencies stay float32, as ``from_pretrained`` leaves them.

        ``model.bfloat16()`` would round them: off by 2^-9, they turn a token at position 500 by up to a radian too far.
        """
        kept = dict(self.rotary_emb.named_buffers())
        super()._apply(fn, recurse)
        for name, exact in kept.items():
            moved = getattr(self.rotary_emb, name)
            if moved.dtype is not exact.dtype:
                setattr(self.rotary_emb, name, exact.to(moved.device))
        return self

    def _init_weights(self, module: nn.Module) -> None:
        if not start_adapter(module):
            super()._init_weights(module)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        image_token_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: ``(B, L)``, or
            inputs_embeds: ``(B, L, H)``.
            attention_mask: ``{"full_attention": (B, 1, L, past + L) bool}``, True where a token may look; or as for Qwen2.
            position_ids: ``(B, L)``.
            past_key_values: A cache.
            use_cache: Fill the cache and return it.
            image_token_mask: ``(B, L)`` bool, True where the token is one of an image and meets the expert; None for text.
            **kwargs: What else Qwen2 takes, such as ``output_hidden_states``.

        Raises:
            ValueError: If ``image_token_mask`` has another shape or dtype, or the attention mask would be misread.
        """
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        rows = None if image_token_mask is None else self._image_rows(image_token_mask, tokens)
        self._check_attention(attention_mask, position_ids, image_token_mask)
        if rows is not None:
            kwargs[KEYWORD] = rows
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )

    def _image_rows(self, mask: Tensor, tokens: Tensor | None) -> ImageRows | None:
        shape = None if tokens is None else tuple(tokens.shape[:2])
        if tuple(mask.shape) != shape or mask.dtype is not torch.bool:
            raise ValueError(
                f"image_token_mask must be bool of shape {shape}, one entry per token of this call, got {mask.dtype} of shape "
                f"{tuple(mask.shape)}; with a cache it covers the new tokens only"
            )
        if self.plora_config is None:
            return None
        rows = ImageRows.from_mask(mask)
        has_work = rows.count > 0 or torch.is_grad_enabled()  # gradients of an unused expert are zero, not None
        return rows if has_work else None

    def _check_attention(
        self, mask: Tensor | dict[str, Tensor] | None, position_ids: Tensor | None, image_token_mask: Tensor | None
    ) -> None:
        if mask is None and image_token_mask is not None and position_ids is not None:
            raise ValueError(
                "attention_mask must be given with image_token_mask and position_ids, got None: transformers would take "
                "repeated positions for packed sequences, and an image token would see itself only; pass sequence_layout's"
            )
        masks = mask.values() if isinstance(mask, dict) else [mask]
        is_bool = any(isinstance(m, Tensor) and m.ndim == 4 and m.dtype is torch.bool for m in masks)
        if is_bool and self.config._attn_implementation != "sdpa":
            raise ValueError(
                "attn_implementation must be sdpa for a bool attention_mask, got "
                f"{self.config._attn_implementation}; eager would add 0 and 1 to the scores, others have no such mask"
            )
