"""``mmar latent-statistics FOLDER --tokenizer TOKENIZER``: measure the scale of an image tokenizer, save one with it."""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mmar.commands.running import CommandParser, run_command, say, whole_number
from mmar.processing.image_processor import MMARImageProcessor
from mmar.tokenizers.base import ImageTokenizer
from mmar.tokenizers.latent_statistics import LatentStatistics
from mmar.tokenizers.measure import measure_latents
from mmar.tokenizers.registry import load_image_tokenizer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_UNREADABLE = (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError)
"""What Pillow and the processor raise for files that are no images, broken or of a mode that has no 8 bits."""


def image_files(folder: Path, limit: int | None, seed: int) -> list[Path]:
    """Files in the folder and below whose suffix Pillow knows; ``limit`` of them at random, for folders are sorted by class."""
    if not folder.is_dir():
        raise FileNotFoundError(f"FOLDER must be an existing folder, got {str(folder)!r}")
    known = Image.registered_extensions()
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
    if not files:
        raise FileNotFoundError(f"FOLDER must hold image files (jpg, png, webp, ...), got none in {str(folder)!r}")
    return files if limit is None or limit >= len(files) else random.Random(seed).sample(files, limit)


def batches(files: Sequence[Path], processor: MMARImageProcessor, size: int, skipped: Counter[str]) -> Iterator[Tensor]:
    """Pixels ``(up to size, C, H, W)`` of the files that can be read; counts the others by reason."""
    waiting: list[Tensor] = []
    for path in tqdm(files, unit="image", file=sys.stderr):
        try:
            waiting.append(processor.preprocess(path)["pixel_values"])  # (1, C, H, W)
        except _UNREADABLE as error:
            skipped[_reason(error)] += 1
        if len(waiting) == size:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def _reason(error: BaseException) -> str:
    """The rule that was broken, without the file's own numbers."""
    return re.sub(r"\s*\(.*?\)", "", str(error).split(", got")[0].split("\n")[0])


def report(statistics: LatentStatistics) -> str:
    """What a person wants to know."""
    lines = [
        f"images              {statistics.count}",
        f"mean                {statistics.mean:.6g}{_plus_minus(statistics.mean_standard_error)}",
        f"std                 {statistics.std:.6g}{_plus_minus(statistics.std_standard_error)}",
        f"1 / std             {1 / statistics.std:.6g}",
        f"std of channels     {min(statistics.channel_std):.6g} to {max(statistics.channel_std):.6g}",
        f"mean of channels    {min(statistics.channel_mean):.6g} to {max(statistics.channel_mean):.6g}",
    ]
    return "\n".join(lines + [f"skipped             {count}: {reason}" for reason, count in statistics.skipped.items()])


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f" ± {error:.2g}"


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="mmar latent-statistics",
        description="Measure the scale of an image tokenizer's latents, and save one that has it.",
    )
    parser.add_argument("folder", type=Path, help="images, in folders below it too")
    parser.add_argument("--tokenizer", required=True, help="folder of save_pretrained or of diffusers")
    parser.add_argument("--output", type=Path, default=Path("latent_statistics.json"), help="JSON to write (%(default)s)")
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FOLDER",
        help="also write the tokenizer with this scale, for tokenizers.image of a training",
    )
    parser.add_argument("--per-channel", action="store_true", help="with --save: a scale for each channel (the paper has one)")
    parser.add_argument("--center", action="store_true", help="with --save: subtract the mean too (the paper does not)")
    parser.add_argument("--limit", type=whole_number(1), metavar="N", help="measure this many images, drawn at random")
    parser.add_argument("--batch-size", type=whole_number(1), default=16, metavar="N", help="images at a time (%(default)s)")
    parser.add_argument("--mode", action="store_true", help="the mode of the posterior instead of a draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (%(default)s)")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="what the tokenizer computes in (%(default)s)")
    parser.add_argument("--device", default="cpu", help="where the tokenizer computes (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(_parser(), arguments, _run)


def _run(options: argparse.Namespace) -> None:
    if options.save is None and (options.per_channel or options.center):
        raise ValueError("--per-channel and --center must come with --save, which writes a scale; the JSON holds all moments")
    files = image_files(options.folder, options.limit, options.seed)
    tokenizer = load_image_tokenizer(options.tokenizer)
    statistics = _measure(options, files, tokenizer.to(options.device))
    statistics.save(options.output)
    say(f"{report(statistics)}\nwritten to          {options.output}")
    if options.save is not None:
        scaled = tokenizer.with_statistics(statistics, per_channel=options.per_channel, center=options.center)
        scaled.save_pretrained(options.save)
        say(f"scaled tokenizer    {options.save}")


def _measure(options: argparse.Namespace, files: Sequence[Path], tokenizer: ImageTokenizer) -> LatentStatistics:
    processor = MMARImageProcessor(tokenizer.image_size, tokenizer.image_channels)
    unreadable: Counter[str] = Counter()
    images = (batch.to(options.device) for batch in batches(files, processor, options.batch_size, unreadable))
    measured = measure_latents(
        tokenizer,
        images,
        sample=not options.mode,
        generator=torch.Generator().manual_seed(options.seed),
        dtype=_DTYPES[options.dtype],
        non_finite="skip",
    )
    return replace(measured, skipped={**measured.skipped, **unreadable})


if __name__ == "__main__":
    sys.exit(main())
