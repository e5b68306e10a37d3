"""Cross entropy on answers (the second sum of paper eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

IGNORED = -100
"""Label of a token that is not to be predicted."""


def text_loss(hidden: Tensor, labels: Tensor, lm_head: nn.Module) -> tuple[Tensor | None, int]:
    """Mean cross entropy of the labelled tokens, each predicted from the state before it.

    The head runs on those states only: with 151936 words the logits of all tokens would be the largest tensor of the model.

    Args:
        hidden: ``(B, L, H)``.
        labels: ``(B, L)`` long, :data:`IGNORED` where nothing is to be predicted.
        lm_head: States to logits.

    Returns:
        The mean (float32, nats; None without labelled tokens) and their count.
    """
    if labels.shape != hidden.shape[:2]:
        raise ValueError(f"labels must have the shape of input_ids {tuple(hidden.shape[:2])}, got {tuple(labels.shape)}")
    wanted = labels[:, 1:] != IGNORED  # (B, L - 1)
    count = int(wanted.sum())
    if not count:
        return None, 0
    logits: Tensor = lm_head(hidden[:, :-1][wanted])  # (M, V)
    with torch.autocast(logits.device.type, enabled=False):
        return functional.cross_entropy(logits.float(), labels[:, 1:][wanted]), count
