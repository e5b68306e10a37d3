"""MMAR: a frozen language model that reads and draws image tokens (paper section 3.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from mmar.checkpoint import CheckpointedModel
from mmar.config import MMARConfig
from mmar.generation.text import TextGenerationMixin
from mmar.image_batch import image_batch
from mmar.image_head import ImageLoss
from mmar.image_model import TokenModel, build_image_model
from mmar.language_model import MMARTextModel
from mmar.layers import LearnedTable, initialize_leaf
from mmar.layout import ImageIds, SequenceLayout, sequence_layout
from mmar.noise_draws import Generators, check_generators
from mmar.output import MMAROutput
from mmar.parameter_parts import is_frozen
from mmar.text_loss import text_loss


class MMARForConditionalGeneration(TextGenerationMixin, CheckpointedModel):
    """Text and image tokens in, losses or logits and states z out.

    Args:
        config: Sizes, objective, parameterization.

    The language model is frozen but for its adapters.
    """

    config_class = MMARConfig
    main_input_name = "input_ids"
    input_modalities = ("text", "image")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ("Qwen2DecoderLayer", "Block", "AdaLNBlock")
    _tied_weights_keys = {"lm_head.weight": "language_model.embed_tokens.weight"}  # noqa: RUF012 - as transformers spells it

    def __init__(self, config: MMARConfig) -> None:
        super().__init__(config)
        width = config.text_config.hidden_size
        self.language_model = MMARTextModel(config.text_config, config.plora_config)
        self.lm_head = nn.Linear(width, config.text_config.vocab_size, bias=False)
        self.boundary = LearnedTable(2, width, std=config.initializer_range)  # begin and end of image
        self.image_model = build_image_model(config)
        self.image_ids = ImageIds(config.image_token_id, config.boi_token_id, config.eoi_token_id, config.image_config.count)
        self.post_init()
        self.freeze()

    # -- what is trained --------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Leave trainable: adapters, image model, begin and end of image. Checkpoints do not hold this: done on every load."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not is_frozen(name))

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; then :meth:`freeze`."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze()
        return loaded

    def load_codebook(self, entries: Tensor) -> None:
        """Take over the entries ``(K, C)`` of the image tokenizer (``ImageTokenizer.codebook``); a new model's are random.

        Raises:
            ValueError: If image tokens are not codes, or the entries do not fit.
        """
        if not (self.config.has_codes and isinstance(self.image_model, TokenModel)):
            raise ValueError(f"image_objective must be masked_codes or causal_codes, got {self.config.image_objective!r}")
        self.image_model.input.load_codebook(entries)

    def _init_weights(self, module: nn.Module) -> None:
        if not initialize_leaf(module):
            super()._init_weights(module)

    # -- what transformers asks for ---------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        """The frozen embedding of text."""
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding of text."""
        self.language_model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """The frozen language model head."""
        return self.lm_head

    # -- the parts of a forward pass --------------------------------------------------------------------------------------

    def layout(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SequenceLayout:
        """Blocks, positions and attention of ``(B, L)`` rows; see :func:`mmar.layout.sequence_layout`."""
        return sequence_layout(
            input_ids,
            attention_mask,
            ids=self.image_ids,
            shared_positions=self.config.image_positions == "shared",
            causal_images=self.config.is_causal,
        )

    def embed_text(self, input_ids: Tensor) -> Tensor:
        """``(B, L)`` ids to ``(B, L, H)``; boi and eoi from their own table, image placeholders as zeros."""
        is_boi, is_eoi = input_ids == self.image_ids.boi, input_ids == self.image_ids.eoi
        is_image = input_ids == self.image_ids.image
        embeds = self.language_model.embed_tokens(input_ids.masked_fill(is_boi | is_eoi | is_image, 0))  # (B, L, H)
        boundary = self.boundary(is_eoi.long()).to(embeds.dtype)  # (B, L, H)
        embeds = torch.where((is_boi | is_eoi)[..., None], boundary, embeds)
        return embeds.masked_fill(is_image[..., None], 0.0)

    def image_states(self, hidden: Tensor, is_image: Tensor) -> Tensor:
        """States z of the image tokens, ``(n, N, H)`` of ``(B, L, H)``: at their own places; one before if causal."""
        where = is_image.roll(-1, dims=1) if self.config.is_causal else is_image  # (B, L); column 0 is never an image token
        return hidden[where].view(-1, self.image_ids.count, hidden.shape[-1])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        image_tokens: Tensor | None = None,
        known: Tensor | None = None,
        image_targets: Tensor | None = None,
        image_timesteps: Tensor | None = None,
        labels: Tensor | None = None,
        timesteps_per_token: int | None = None,
        loss_weights: tuple[float, float] = (1.0, 1.0),
        generator: Generators = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        output_image_states: bool = False,
        return_dict: bool | None = None,
    ) -> MMAROutput:
        """Run a batch.

        Args:
            input_ids: ``(B, L)``, each image a block boi, N placeholders, eoi.
            attention_mask: ``(B, L)``, 0 on padding; with a cache ``(B, past + L)``.
            position_ids: ``(B, L)``; by default those of :meth:`layout`. Needed with a filled cache.
            past_key_values: A cache; images come with the call that starts it.
            image_tokens: ``(n, N, C)`` latents of unit scale, or ``(n, N)`` codes; also grouped by row ``(B, I, N, ...)``.
            known: ``(n, N)`` bool, the tokens that may be read; None: all.
            image_targets: ``(n,)`` bool, the images that are drawn; None: those with unknown tokens.
            image_timesteps: ``(n,)`` noise levels, for models that read noised images.
            labels: ``(B, L)`` text to predict, -100 elsewhere; begin and end of image are no text.
            timesteps_per_token: K; as configured by default.
            loss_weights: Factors on the text and the image loss in their sum, for means over more than this batch.
            generator: CPU source of timesteps and noise; or one per image, which then meets the same noise in every batch.
            use_cache: Fill a cache and return it.
            logits_to_keep: Last positions that need logits; 0: all.
            output_image_states: Return z of every image token.
            return_dict: Accepted for transformers; the answer is always an :class:`MMAROutput`.
        """
        images, layout = None, None
        if image_tokens is not None or bool((input_ids == self.image_ids.image).any()):
            layout = self.layout(input_ids, attention_mask)
            per_row = layout.block.amax(-1)  # (B,)
            images = image_batch(self.config, per_row, image_tokens, known, image_targets, image_timesteps)
        image, z = None, None
        if images is None or layout is None:
            out = self._run_text(input_ids, attention_mask, position_ids, past_key_values, use_cache)
        else:
            check_generators(generator, len(images))
            encoded = self.image_model.encode(images, generator)
            features = encoded.features
            out = self._run_images(input_ids, layout, features, position_ids, past_key_values, use_cache)
            z = self.image_states(out.last_hidden_state, layout.is_image)  # (n, N, H)
            image = self.image_model.loss(images, encoded, z, timesteps_per_token, generator)
        output = MMAROutput(past_key_values=out.past_key_values, image_states=z if output_image_states else None)
        self._put_text(output, out.last_hidden_state, labels, logits_to_keep)
        self._put_image(output, image)
        output.loss = self._total(output, loss_weights)
        return output

    def _run_text(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
        use_cache: bool | None,
    ) -> BaseModelOutputWithPast:
        """Text alone goes the way of plain Qwen2, bit for bit."""
        if position_ids is None and cache is not None and cache.get_seq_length():
            raise ValueError(
                "position_ids must be given with a filled cache, got None: an image takes one position, so that the length of "
                "the cache does not tell where the text goes on; count from the last position of what is cached"
            )
        return self.language_model(
            inputs_embeds=self.embed_text(input_ids),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=bool(use_cache),
        )

    def _run_images(
        self,
        input_ids: Tensor,
        layout: SequenceLayout,
        features: Tensor,
        position_ids: Tensor | None,
        cache: Cache | None,
        use_cache: bool | None,
    ) -> BaseModelOutputWithPast:
        """Text with the features ``(n, N, H)`` of its images in place."""
        if cache is not None and cache.get_seq_length():
            raise ValueError("image_tokens must come with the call that starts the cache, got a filled cache; start a new one")
        embeds = self.embed_text(input_ids)
        return self.language_model(
            inputs_embeds=embeds.masked_scatter(layout.is_image[..., None], features.to(embeds.dtype)),  # (B, L, H)
            attention_mask={"full_attention": layout.attend},
            position_ids=layout.position_ids if position_ids is None else position_ids,
            past_key_values=cache,
            use_cache=bool(use_cache),
            image_token_mask=layout.is_image,
        )

    def _put_text(self, output: MMAROutput, hidden: Tensor, labels: Tensor | None, logits_to_keep: int) -> None:
        """Logits, or the loss where there are labels."""
        if labels is None:
            output.logits = self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)  # (B, L, V)
        else:
            self._check_labels(labels)
            output.text_loss, output.text_count = text_loss(hidden, labels, self.lm_head)

    def _check_labels(self, labels: Tensor) -> None:
        """Labels copied from ``input_ids`` would train the answers on the placeholders of images."""
        ids = self.image_ids
        if bool(((labels == ids.image) | (labels == ids.boi) | (labels == ids.eoi)).any()):
            raise ValueError(
                f"labels must be -100 on image tokens, begin and end of image, got one of {ids.image}, {ids.boi}, {ids.eoi}; "
                "the processor labels answers only"
            )

    def _put_image(self, output: MMAROutput, image: ImageLoss | None) -> None:
        if image is not None:
            output.image_loss, output.image_count = image.mean, image.tokens
            output.image_rows, output.image_timesteps = image.per_row, image.timesteps

    def _total(self, output: MMAROutput, weights: tuple[float, float]) -> Tensor | None:
        """``text + lambda image``; in training every parameter takes part, with weight 0, so that all ranks reduce the same.

        Shards, which FSDP has let go of by now, take part in their own layers.
        """
        losses = (output.text_loss, output.image_loss)
        factors = (weights[0], weights[1] * self.config.image_loss_weight)
        parts = [factor * loss for factor, loss in zip(factors, losses, strict=True) if loss is not None]
        if self.training:
            whole = (p for p in self.parameters() if p.requires_grad and not hasattr(p, "device_mesh"))
            parts += [p.flatten()[:1].float().sum() * 0.0 for p in whole]
        return torch.stack(parts).sum() if parts else None
