"""The language model behind fixed prompts: features of an image in, states out, the text read once (notes in the class)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from mmar.generation.prompts import Prompts

if TYPE_CHECKING:
    from mmar.model import MMARForConditionalGeneration


class PromptedModel:
    """The language model with its prompts in a cache, or recomputed at each call.

    No text before an image depends on it, so keys and values of the prompt are exact at every step, while those of the image
    change with each token that becomes known: they are dropped after each call, by putting the prompt's back. Only where
    image tokens see none but those before them (:meth:`extend`) do they stay.

    Args:
        model: The model.
        prompts: R rows.
        use_cache: Read the prompts once.
    """

    def __init__(self, model: MMARForConditionalGeneration, prompts: Prompts, *, use_cache: bool = True) -> None:
        self._model, self._prompts = model, prompts
        self.is_cached = use_cache
        self._cache: DynamicCache | None = None
        if use_cache:
            self._cache = DynamicCache(config=model.config.text_config)
            self._begin = self._run(prompts.embeds, 0)[:, -1:]  # (R, 1, H)
            self._prefix = [(layer.keys, layer.values) for layer in self._cache.layers]

    def states(self, features: Tensor) -> Tensor:
        """States of begin-of-image and of the first m image tokens, ``(R, 1 + m, H)`` of features ``(R, m, H)``."""
        start = self._prompts.embeds.shape[1]
        if self._cache is None:
            everything = torch.cat([self._prompts.embeds, features.to(self._prompts.embeds.dtype)], 1)  # (R, P + m, H)
            return self._run(everything, 0)[:, start - 1 :]
        hidden = self._run(features, start)  # (R, m, H)
        for layer, (keys, values) in zip(self._cache.layers, self._prefix, strict=True):
            layer.keys, layer.values = keys, values
        return torch.cat([self._begin, hidden], 1)

    def extend(self, features: Tensor) -> Tensor:
        """States ``(R, m, H)`` of m more image tokens, which stay in the cache.

        Raises:
            RuntimeError: Without a cache.
        """
        if self._cache is None:
            raise RuntimeError("extend must have a cache to put the tokens in, got use_cache=False; use states")
        return self._run(features, self._cache.get_seq_length())

    @property
    def rows(self) -> int:
        """R."""
        return len(self._prompts.embeds)

    @property
    def begin(self) -> Tensor:
        """State of begin-of-image ``(R, 1, H)``, from the cache."""
        return self._begin

    def _run(self, embeds: Tensor, start: int) -> Tensor:
        """States of the columns ``start .. start + m`` given their inputs ``(R, m, H)``."""
        prompts, end = self._prompts, start + embeds.shape[1]
        hidden: Tensor = self._model.language_model(
            inputs_embeds=embeds.to(prompts.embeds.dtype),
            attention_mask={"full_attention": prompts.attend[:, :, start:end, :end]},
            position_ids=prompts.position_ids[:, start:end],
            past_key_values=self._cache,
            use_cache=self._cache is not None,
            image_token_mask=prompts.is_image[:, start:end],
        ).last_hidden_state
        return hidden
