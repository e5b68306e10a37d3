"""Running a model to use it, in the middle of whatever its caller does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from mmar.precision import autocast


def check_compute_dtype(model: PreTrainedModel, compute_dtype: torch.dtype) -> None:
    """Raise a ValueError unless a model with these weights can compute in that dtype."""
    if compute_dtype not in (model.dtype, torch.bfloat16, torch.float16):
        raise ValueError(
            f"compute_dtype must be {model.dtype} (that of the weights), torch.bfloat16 or torch.float16, got {compute_dtype}; "
            "for float32, load the weights in float32"
        )


@contextlib.contextmanager
def inference(model: PreTrainedModel, compute_dtype: torch.dtype) -> Iterator[None]:
    """Evaluation mode for the while, no gradients, and this compute dtype whatever autocast surrounds the call.

    Args:
        model: Left as it was.
        compute_dtype: Under autocast where the weights are of another dtype.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(model.device, compute_dtype, enabled=compute_dtype is not model.dtype):
            yield
    finally:
        model.train(was_training)
