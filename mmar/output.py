"""What a forward pass returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput


@dataclass
class MMAROutput(ModelOutput):
    """Losses of a batch (paper eq. 4), or logits.

    Attributes:
        loss: ``text_loss + lambda image_loss``, scalar float32; a part without tokens is left out.
        text_loss: Mean cross entropy over answer tokens, nats.
        image_loss: Mean over image tokens and noise levels.
        text_count: Answer tokens.
        image_count: Image tokens, before they are repeated for K noise levels.
        logits: ``(B, L, V)``, only without ``labels``.
        image_states: ``(n, N, H)``: z of every image token, on request.
        image_rows: ``(rows,)`` float32, detached: loss of each image token at each noise level.
        image_timesteps: ``(rows,)``: timestep of each, for statistics over timesteps; None for codes.
        past_key_values: The cache.
    """

    loss: Tensor | None = None
    text_loss: Tensor | None = None
    image_loss: Tensor | None = None
    text_count: int | None = None
    image_count: int | None = None
    logits: Tensor | None = None
    image_states: Tensor | None = None
    image_rows: Tensor | None = None
    image_timesteps: Tensor | None = None
    past_key_values: Cache | None = None
