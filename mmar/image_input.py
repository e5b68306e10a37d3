"""Image tokens to what the language model reads in their place (paper section 3.3; appendix A.1)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from diffparam import Schedule
from mmar.config import MMARConfig
from mmar.embedding_vit import EmbeddingViT
from mmar.image_batch import ImageBatch
from mmar.layers import LearnedTable, ScaledLinear
from mmar.noise_draws import Generators, draw_image_noise
from mmar.projectors import Projector


class KnownTokensInput(nn.Module):
    """EmbeddingViT on known tokens, mask token elsewhere, second position table, VisProjector.

    Under the one RoPE position of an image that second table is the masked tokens' only position signal. Codes enter as the
    vectors of the image tokenizer's codebook (:meth:`load_codebook`; random before), frozen, so that w/ VQ shares every part.
    """

    def __init__(self, config: MMARConfig) -> None:
        super().__init__()
        image, width = config.image_config, config.embedding_vit_config.hidden_size
        self.codebook = LearnedTable(image.codebook_size, image.channels) if config.has_codes else None
        self.embedding_vit = EmbeddingViT(config.embedding_vit_config, image.channels, image.count, causal=config.is_causal)
        self.mask_token = LearnedTable(1, width)
        self.position = LearnedTable(image.count, width)
        self.projector = Projector(width, config.text_config.hidden_size, config.projector_config.vis_blocks)

    @torch.no_grad()
    def load_codebook(self, entries: Tensor) -> None:
        """Take over the ``(K, C)`` entries of the image tokenizer.

        Raises:
            ValueError: If they do not fit.
        """
        own = torch.empty(0) if self.codebook is None else self.codebook.weight
        if entries.shape != own.shape or not bool(entries.isfinite().all()):
            raise ValueError(
                f"entries must be finite and of shape {tuple(own.shape)}, got {tuple(entries.shape)}; take "
                "ImageTokenizer.codebook of the image tokenizer that the model was made for"
            )
        own.copy_(entries)

    def forward(self, tokens: Tensor, known: Tensor) -> Tensor:
        """Features for the language model.

        Args:
            tokens: ``(n, N, C)`` values or ``(n, N)`` codes; what stands at unknown places has no influence.
            known: ``(n, N)`` bool.

        Returns:
            ``(n, N, H)``.
        """
        if self.codebook is not None:
            tokens = self.codebook(tokens.masked_fill(~known, 0))  # (n, N, C)
        tokens = tokens.to(self.position.weight.dtype).masked_fill(~known[..., None], 0.0)  # NaN * 0 would be NaN
        seen = self.embedding_vit(tokens, known)  # (n, N, D)
        h = torch.where(known[..., None], seen, self.mask_token.weight.to(seen.dtype))  # (n, N, D)
        return self.projector(h + self.position.weight)  # (n, N, H)


class ContextNoise(nn.Module):
    """What MMAR's clean context is compared with: images are read noised, each at a level of its own below
    ``image_first_timesteps``, as a transfusion-like model reads them (appendix A.1); all else is MMAR. The level is not told.
    """

    def __init__(self, config: MMARConfig) -> None:
        super().__init__()
        self.config = config.schedule_config

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The training schedule."""
        return self.config.build()

    def forward(self, images: ImageBatch, generator: Generators = None) -> Tensor:
        """``(n, N, C)`` noised tokens, at the timesteps that the images were given or at random ones."""
        uniform, eps = draw_image_noise(images.tokens.shape, generator)
        drawn = self.schedule.timesteps[(uniform * self.config.image_first_timesteps).long()]  # (n,)
        timesteps = drawn if images.timesteps is None else images.timesteps.cpu()
        return self.schedule.add_noise(images.tokens.float(), eps.to(images.tokens.device), timesteps)


class NoisyTokensInput(nn.Module):
    """All tokens at one noise level per image: EmbeddingViT or none, one Linear, learned time table (transfusion-like).

    The paper's baseline has the Linear and the time table. The position table is ours: under one RoPE position for all tokens
    of an image they could not be told apart without it.
    """

    def __init__(self, config: MMARConfig) -> None:
        super().__init__()
        image, vit = config.image_config, config.embedding_vit_config
        width, inner = config.text_config.hidden_size, vit.hidden_size if vit.enabled else image.channels
        self.embedding_vit = EmbeddingViT(vit, image.channels, image.count) if vit.enabled else None
        self.projector = ScaledLinear(inner, width, std=inner**-0.5)  # unit tokens to unit features
        self.position = LearnedTable(image.count, width)
        self.time = LearnedTable(config.schedule_config.num_train_timesteps, width, std=config.initializer_range)

    def forward(self, x_t: Tensor, steps: Tensor) -> Tensor:
        """``(n, N, C)`` noisy tokens at ``(n,)`` positions in the noise schedule to ``(n, N, H)``."""
        x_t = x_t.to(self.position.weight.dtype)
        if self.embedding_vit is not None:
            everything = torch.ones(x_t.shape[:2], dtype=torch.bool, device=x_t.device)
            x_t = self.embedding_vit(x_t, everything)  # (n, N, D)
        return self.projector(x_t) + self.position.weight + self.time(steps)[:, None]  # (n, N, H)


class ClearTokensInput(nn.Module):
    """Features of a frozen vision encoder (of unit scale) and a position table, projected: LLaVA-like."""

    def __init__(self, config: MMARConfig) -> None:
        super().__init__()
        image, width = config.image_config, config.text_config.hidden_size
        self.projector = Projector(image.channels, width, config.projector_config.vis_blocks)
        self.position = LearnedTable(image.count, image.channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(n, N, C)`` to ``(n, N, H)``."""
        return self.projector(tokens.to(self.position.weight.dtype) + self.position.weight)  # (n, N, H)
