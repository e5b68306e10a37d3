"""``mmar reconstruct IMAGE --model FOLDER --out FILE``: the best that a drawn picture can look like. Reads no model weights."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmar.checkpoint import stored_config
from mmar.commands.loading import add_device, existing_device, existing_model
from mmar.commands.running import CommandParser, run_command
from mmar.compatibility import check_compatibility
from mmar.picture_codec import PictureCodec
from mmar.pipeline import IMAGE_TOKENIZER_FOLDER
from mmar.pipeline_record import PipelineRecord
from mmar.processing import MMARProcessor
from mmar.tokenizers import load_image_tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(_parser(), argv, _reconstruct)


def _reconstruct(options: argparse.Namespace) -> None:
    device = existing_device(options.device)
    codec = _codec(existing_model(options.model), device)
    before = codec.image_processor.to_pil(codec.image_processor(options.image)["pixel_values"])[0]  # cropped and scaled
    after = codec.decode(codec.encode([before], device))[0]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    side_by_side(before, after).save(options.out)
    print(f"{options.out}: before | after, PSNR {psnr(before, after):.2f} dB")


def _codec(folder: Path, device: torch.device) -> PictureCodec:
    """The parts of a pipeline that images need, checked as a pipeline is."""
    record, config = PipelineRecord.read(folder), stored_config(folder)
    tokenizer, processor = load_image_tokenizer(folder / IMAGE_TOKENIZER_FOLDER), MMARProcessor.from_pretrained(folder)
    check_compatibility(config, processor, tokenizer)
    record.check(tokenizer)
    return PictureCodec(processor.image_processor, tokenizer.to(device), config.has_codes)


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures of one size, ``10 log10(255^2 / mean squared difference)`` in dB.

    Infinite for equal pictures.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    error = float(np.mean(difference**2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures of one size and mode."""
    both = Image.new(left.mode, (left.width + right.width, left.height))
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="mmar reconstruct", description="A picture before and after the image tokenizer of a model.")
    parser.add_argument("image", metavar="IMAGE", help="a picture")
    parser.add_argument("--model", required=True, type=Path, metavar="FOLDER", help="a saved pipeline")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="picture to write: before | after")
    add_device(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
