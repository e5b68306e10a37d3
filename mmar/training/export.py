"""A pipeline from a checkpoint in the middle of a run: to try what a model can do before it is finished."""

from __future__ import annotations

from pathlib import Path

import torch

from mmar.pipeline import MMARPipeline
from mmar.training.build import build_parts
from mmar.training.checkpoint_folder import load_checkpoint
from mmar.training.config import load_config


def checkpoint_pipeline(checkpoint: str | Path) -> MMARPipeline:
    """The model of a checkpoint, with averaged weights where the run averages, and what surrounds it.

    Args:
        checkpoint: ``checkpoint-STEP`` in the folder of a run, which holds its ``config.yaml``. Runs of one process, or of
            several with all of the model in each.

    Raises:
        FileNotFoundError: If the run has no configuration, or what it started from is gone.
        ValueError: If the checkpoint holds parts of a sharded run: go on with the run and take its ``final``.
    """
    path = Path(checkpoint)
    config = load_config(path.parent / "config.yaml")
    tensors = load_checkpoint(path).tensors
    if "model" not in tensors:
        raise ValueError(
            f"checkpoint must hold a whole model, got the shards {path}; take the folder final of the finished run"
        )
    parts = build_parts(config)
    named = dict(parts.model.named_parameters())
    with torch.no_grad():
        for name, value in (tensors.get("ema") or tensors["model"]).items():
            named[name].copy_(value)
    dtype = torch.float32 if config.precision == "float32" else torch.bfloat16
    return MMARPipeline(parts.model.eval(), parts.processor, parts.image_tokenizer, compute_dtype=dtype)
