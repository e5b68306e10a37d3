"""Training a small autoencoder for images of your own: what becomes the frozen image tokenizer.

Squared and absolute error of the pixels, and for a KL autoencoder the divergence from a unit normal. The perceptual and
adversarial terms of LDM's recipe need pretrained networks and are not here: pictures of photographs come out soft, drawn ones
sharp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models import AutoencoderKL, VQModel
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from mmar.precision import autocast
from mmar.tokenizers.raster import to_tokens
from mmar.tokenizers.vq import nearest

OnStep = Callable[[int, dict[str, float]], None]
"""``on_step(steps done, losses)``."""


@dataclass(frozen=True)
class FitSettings:
    """How an autoencoder is trained.

    Attributes:
        steps: Optimizer steps.
        lr: Peak learning rate: 5 % warm-up, then a cosine.
        kl_weight: Of the divergence, nats a number of the latents, against errors a number of the pixels.
        free_steps: A codebook enters after this share of the steps, at the means of clusters of what the encoder then gives.
        revive_every: Steps between revivals of entries that nothing was near to, until half of the steps are done.
        commitment: Weight of the codebook's terms.
        seed: Of draws from the posterior and of revivals.
        dtype: Of the forward pass, under autocast.
    """

    steps: int = 1000
    lr: float = 1e-3
    kl_weight: float = 1e-4
    free_steps: float = 0.2
    revive_every: int = 25
    commitment: float = 1.0
    seed: int = 0
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.free_steps < 1:
            raise ValueError(f"free_steps must lie in [0, 1), a share of the steps, got {self.free_steps}")


def fit_kl(model: AutoencoderKL, batches: Iterator[Tensor], settings: FitSettings, on_step: OnStep | None = None) -> None:
    """Train a KL autoencoder in place.

    Args:
        model: On the device of training.
        batches: Pixels ``(batch, channels, size, size)`` in [-1, 1], one for each step.
        settings: See :class:`FitSettings`.
        on_step: Told the losses.

    Raises:
        FloatingPointError: If a loss is not finite.
    """
    source = torch.Generator().manual_seed(settings.seed)

    def losses(pixels: Tensor, step: int) -> dict[str, Tensor]:
        posterior: Any = model.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=source).to(pixels.device)
        picture = model.decode(posterior.mean + posterior.std * noise).sample
        divergence = (posterior.mean.float().square() + posterior.var.float() - 1.0 - posterior.logvar.float()).mean() / 2
        return {**_errors(picture, pixels), "kl": settings.kl_weight * divergence}

    _descend(model, batches, settings, losses, on_step)


def fit_vq(model: VQModel, batches: Iterator[Tensor], settings: FitSettings, on_step: OnStep | None = None) -> None:
    """Train a VQ autoencoder in place.

    A codebook that starts at random uses a few of its entries for ever; here it starts at the means of clusters, and entries
    that are not used are put where the encoder is.

    Args:
        model: On the device of training.
        batches: As in :func:`fit_kl`.
        settings: See :class:`FitSettings`.
        on_step: As in :func:`fit_kl`.

    Raises:
        FloatingPointError: If a loss is not finite.
    """
    free = round(settings.free_steps * settings.steps)
    entries = model.quantize.embedding.weight
    used = torch.zeros(len(entries), dtype=torch.bool, device=entries.device)
    source = torch.Generator().manual_seed(settings.seed)

    def losses(pixels: Tensor, step: int) -> dict[str, Tensor]:
        latents = model.encode(pixels).latents.float()  # (B, C, g, g)
        tokens = to_tokens(latents).flatten(0, 1)  # (B N, C)
        if step == free:
            entries.data.copy_(_clusters(tokens, len(entries), settings.seed))
        if step < free:
            picture = model.decode(latents, force_not_quantize=True).sample
            return _errors(picture, pixels)
        used[nearest(tokens.detach(), entries.detach())] = True
        if (step - free) % settings.revive_every == settings.revive_every - 1:
            if step < settings.steps // 2:
                _revive(entries, used, tokens.detach(), source)
            used.zero_()
        decoded: Any = model.decode(latents)
        return {**_errors(decoded.sample, pixels), "codebook": settings.commitment * decoded.commit_loss.mean()}

    _descend(model, batches, settings, losses, on_step)


def _descend(
    model: nn.Module,
    batches: Iterator[Tensor],
    settings: FitSettings,
    losses: Callable[[Tensor, int], dict[str, Tensor]],
    on_step: OnStep | None,
) -> None:
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.0)
    rate = OneCycleLR(optimizer, settings.lr, total_steps=settings.steps + 1, pct_start=0.05)
    model.train()
    for step in range(settings.steps):
        pixels = next(batches).to(device)
        with autocast(device, settings.dtype, enabled=settings.dtype is not torch.float32):
            terms = losses(pixels, step)
        total = torch.stack(list(terms.values())).sum()
        loss = float(total.detach())
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss must be finite, got {loss} at step {step}; lower lr = {settings.lr:g}")
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        if on_step is not None:
            on_step(step + 1, {name: float(term.detach()) for name, term in terms.items()})
    model.eval()


def _errors(picture: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    difference = picture.float() - pixels.float()
    return {"squared": difference.square().mean(), "absolute": 0.25 * difference.abs().mean()}


def _clusters(tokens: Tensor, count: int, seed: int) -> Tensor:
    """Means ``(count, C)`` of clusters of ``tokens (rows, C)``; where there are fewer rows than clusters, rows again."""
    rows = tokens.detach().cpu().double().numpy()
    if len(rows) < count:
        rows = rows[np.random.default_rng(seed).integers(0, len(rows), count)]
    means, _ = kmeans2(rows, count, iter=5, minit="points", rng=np.random.default_rng(seed), missing="warn")
    return torch.from_numpy(means).to(tokens.device, tokens.dtype)


def _revive(entries: Tensor, used: Tensor, tokens: Tensor, source: torch.Generator) -> None:
    """Put entries that were not used on tokens drawn at random."""
    dead = (~used).nonzero()[:, 0]
    chosen = torch.randint(0, len(tokens), (len(dead),), generator=source).to(tokens.device)
    entries.data[dead] = tokens[chosen].to(entries.dtype)
