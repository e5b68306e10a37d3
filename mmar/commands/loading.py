"""The options that say which model computes, and where; and the pipeline that they name."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from mmar.pipeline import MMARPipeline
from mmar.pipeline_record import PipelineRecord

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def add_model(parser: argparse.ArgumentParser) -> None:
    """``--model``, ``--device`` and ``--compute-dtype``."""
    parser.add_argument(
        "--model", required=True, type=Path, metavar="FOLDER", help="a saved pipeline, as RUN/final of a training"
    )
    add_device(parser)
    parser.add_argument("--compute-dtype", choices=DTYPES, help="what the model computes in (as saved)")


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``."""
    parser.add_argument("--device", default="cpu", help="where to compute: cpu, cuda, cuda:1 (%(default)s)")


def existing_model(folder: Path) -> Path:
    """The folder, or a FileNotFoundError: before seconds are spent on weights, or a name is looked up on the network."""
    if not folder.is_dir():
        raise FileNotFoundError(f"a model must be an existing folder, got {str(folder)!r}; mmar train writes RUN/final")
    final = folder / "final"
    if not (folder / "config.json").is_file() and (final / "config.json").is_file():
        raise FileNotFoundError(
            f"a model must be the folder of a pipeline, got that of a run, {str(folder)!r}; take {str(final)!r}"
        )
    return folder


def existing_pipeline(folder: Path) -> Path:
    """The folder, or an error unless it is a whole pipeline's."""
    PipelineRecord.read(existing_model(folder))
    return folder


def existing_device(name: str) -> torch.device:
    """The device, or a ValueError where there is none of that name."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device).add_(1)  # to name one is not to have one
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device must be one that this machine has, got {name!r} ({reason}); cpu always is") from error
    return device


def load_pipeline(options: argparse.Namespace) -> MMARPipeline:
    """The pipeline that the options of :func:`add_model` name."""
    device = existing_device(options.device)
    compute_dtype = None if options.compute_dtype is None else DTYPES[options.compute_dtype]
    return MMARPipeline.from_pretrained(existing_pipeline(options.model), compute_dtype=compute_dtype, device=device)
