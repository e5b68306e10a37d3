"""Drawing the image at the end of each prompt, whatever the image objective (paper section 3.3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmar.config import MMARConfig
from mmar.generation.causal import CausalDrawer
from mmar.generation.drawing import Drawer, Drawing
from mmar.generation.masked import MaskedDrawer
from mmar.generation.prefix import PromptedModel
from mmar.generation.prompts import embed_prompts
from mmar.generation.randomness import Generators, row_generators
from mmar.generation.settings import ImageGenerationConfig
from mmar.generation.token_sampler import CodeSampler, DiffusionTokenSampler, TokenSampler
from mmar.generation.whole_image import WholeImageDrawer
from mmar.image_head import CodebookHead
from mmar.image_model import TokenModel, WholeImageModel

if TYPE_CHECKING:
    from mmar.model import MMARForConditionalGeneration

OnStep = Callable[[int, int, Tensor], None]
"""``on_step(done, total, tokens)`` with the tokens of all rows so far, ``(B, N, ...)``."""


@torch.no_grad()
def generate_image_tokens(
    model: MMARForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    settings: ImageGenerationConfig,
    uncond_input_ids: Tensor | None = None,
    uncond_attention_mask: Tensor | None = None,
    image_tokens: Tensor | None = None,
    known_tokens: Tensor | None = None,
    known: Tensor | None = None,
    generator: Generators = None,
    use_prefix_cache: bool = True,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draw the last image block of each row.

    Text after that block is not read. Tokens, noise, guidance and solver are float32 whatever the model computes in: float32,
    bf16 under autocast, or bf16 weights.

    Args:
        model: In evaluation mode.
        input_ids: ``(B, L)``; the last block boi, N placeholders, eoi of each row is drawn, those before it are read.
        attention_mask: ``(B, L)``, 0 on padding, left or right.
        settings: See :class:`ImageGenerationConfig`.
        uncond_input_ids: ``(B, L')`` or ``(1, L')``: prompts of the unconditional branch, where ``guidance_scale`` is not 1.
            A row of them reads the same images as its row of ``input_ids``, or none.
        uncond_attention_mask: As ``attention_mask``.
        image_tokens: The images that are read, all blocks but the last of each row: ``(n, N, C)`` or codes ``(n, N)``, row by
            row. Whole-image models read them clean.
        known_tokens: ``(B, N, C)`` or ``(B, N)``: tokens of the images to draw that are given (in- and outpainting).
        known: ``(B, N)`` bool: which of them. They come back as they were.
        generator: Source of all random numbers: one per row; or one, which seeds one for each row in turn; None: torch's
            default. A row with its own generator gets the same image in every batch, up to rounding.
        use_prefix_cache: Read the prompts once; exact. False recomputes them at every step.
        on_step: Called after each step; whole-image models report the clean tokens that each output implies.

    Returns:
        ``(B, N, C)`` float32 of unit scale, or codes ``(B, N)``: what the image tokenizer decodes.

    Raises:
        ValueError: If the prompts, images or settings do not fit the model.
        TypeError: If a dtype does not.
    """
    if model.training:
        raise ValueError("model must be in evaluation mode to draw images, got training mode; call model.eval()")
    settings.check_for(model.config)
    unconditional = None
    if settings.is_guided:
        if uncond_input_ids is None:
            raise ValueError(
                f"uncond_input_ids must be given for guidance_scale {settings.guidance_scale:g}, got None; they are prompts "
                "of an empty caption. A scale of 1 needs none"
            )
        unconditional = (uncond_input_ids, uncond_attention_mask)
    drawer = _drawer(model, settings)
    prompts = embed_prompts(model, (input_ids, attention_mask), unconditional, image_tokens)
    tokens, known = _start(model.config, len(input_ids), known_tokens, known, input_ids.device)
    sources = row_generators(generator, len(tokens))
    groups = _groups(known)
    progress = _Progress(on_step, sum(drawer.steps(unknown) for unknown in groups), tokens)
    for rows in groups.values():
        branches = [rows + branch * len(tokens) for branch in range(len(prompts.embeds) // len(tokens))]
        prompted = PromptedModel(model, prompts.take(torch.cat(branches)), use_cache=use_prefix_cache)
        drawing = Drawing(prompted, tokens[rows], known[rows], [sources[row] for row in rows.tolist()])
        progress.tokens[rows] = drawer.draw(drawing, progress.of(rows))
    return progress.tokens


class _Progress:
    """The tokens of the batch, filled by groups of rows."""

    def __init__(self, on_step: OnStep | None, total: int, tokens: Tensor) -> None:
        self.on_step, self.total, self.tokens, self.done = on_step, total, tokens.clone(), 0

    def of(self, rows: Tensor) -> Callable[[Tensor], None]:
        """The callback of a group."""

        def report(tokens: Tensor) -> None:
            self.done += 1
            if self.on_step is not None:
                self.tokens[rows] = tokens
                self.on_step(self.done, self.total, self.tokens.clone())

        return report


def _drawer(model: MMARForConditionalGeneration, settings: ImageGenerationConfig) -> Drawer:
    config, images = model.config, model.image_model
    if isinstance(images, WholeImageModel):
        return WholeImageDrawer(images.input, images.head, settings, config.param)
    if not isinstance(images, TokenModel):
        raise ValueError(f"model must draw images, got {config.image_objective!r}")
    sampler: TokenSampler
    if isinstance(images.head, CodebookHead):
        sampler = CodeSampler(images.head, settings)
    else:
        sampler = DiffusionTokenSampler(images.head, settings, config.param, config.image_config.channels)
    if config.is_causal:
        return CausalDrawer(images.input, sampler, config.image_config.count)
    return MaskedDrawer(images.input, sampler, settings)


def _start(
    config: MMARConfig, rows: int, known_tokens: Tensor | None, known: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Tokens, zero where unknown, and which are known."""
    image = config.image_config
    shape = (rows, image.count) if config.has_codes else (rows, image.count, image.channels)
    dtype = torch.int64 if config.has_codes else torch.float32
    if (known is None) != (known_tokens is None):
        raise ValueError(
            "known and known_tokens must come together, got one of them: known says which tokens of known_tokens to keep"
        )
    if known is None or known_tokens is None:
        return torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape[:2], dtype=torch.bool, device=device)
    if known.shape != shape[:2] or known.dtype is not torch.bool:
        raise ValueError(f"known must be bool of shape {shape[:2]}, got {known.dtype} of shape {tuple(known.shape)}")
    _check_known_tokens(config, known_tokens, known, shape)
    known = known.to(device)
    unknown = ~known if config.has_codes else ~known[..., None]
    return known_tokens.to(device, dtype).masked_fill(unknown, 0), known


def _check_known_tokens(config: MMARConfig, tokens: Tensor, known: Tensor, shape: tuple[int, ...]) -> None:
    if tokens.shape != shape or tokens.is_floating_point() is config.has_codes:
        kind = "codes (int64)" if config.has_codes else "floating point"
        raise ValueError(f"known_tokens must be {kind} of shape {shape}, got {tokens.dtype} of shape {tuple(tokens.shape)}")
    given, size = tokens[known.to(tokens.device)], config.image_config.codebook_size
    if config.has_codes and bool(((given < 0) | (given >= size)).any()):
        raise ValueError(f"known_tokens must lie in 0..{size - 1} where known, got {int(given.min())}..{int(given.max())}")
    if not bool(given.isfinite().all()):
        raise ValueError("known_tokens must be finite where known, got NaN or infinity")


def _groups(known: Tensor) -> dict[int, Tensor]:
    """Rows by their number of unknown tokens: those of a group take the same steps. Rows without any are in none."""
    unknown = (~known).sum(-1)  # (B,)
    return {count: (unknown == count).nonzero()[:, 0] for count in unknown.unique().tolist() if count}
