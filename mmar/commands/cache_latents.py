"""``mmar cache-latents DATA --tokenizer FOLDER --output FOLDER``: encode the pictures of a data set once; resumable."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmar.commands.loading import DTYPES, add_device, existing_device
from mmar.commands.running import CommandParser, assignments, run_command, whole_number
from mmar.data.latents import cache_latents
from mmar.data.order import StreamSettings
from mmar.data.stream import ExampleStream, Stream
from mmar.tokenizers import load_image_tokenizer
from mmar.training.config import DataSource
from mmar.training.sources import make_stream

MADE = ("digits", "scenes")
"""Data that no file holds."""
KINDS = (*MADE, "folder", "llava", "shards")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(_parser(), argv, _cache)


def _cache(options: argparse.Namespace) -> None:
    stream = make_stream([_source(options)], _stream_settings(options))
    tokenizer = load_image_tokenizer(options.tokenizer)
    with tqdm(total=_length(stream), unit="image", file=sys.stderr) as bar:
        report = cache_latents(
            stream,
            tokenizer,
            options.output,
            batch_size=options.batch_size,
            images_per_shard=options.images_per_shard,
            num_workers=options.workers,
            dtype=DTYPES[options.dtype],
            device=existing_device(options.device),
            progress=bar.update,
        )
    print(f"{report.delivered} images in {options.output}\n{report}")


def _source(options: argparse.Namespace) -> DataSource:
    kind = _kind(options.data) if options.kind is None else options.kind
    if (kind == "llava") != (options.images is not None):
        raise ValueError(f"--images must be given for llava and for it alone, got {options.images} for {kind}")
    own = {} if options.images is None else {"folder": str(options.images)}
    path = None if kind in MADE else options.data
    return DataSource(kind=kind, path=path, split=options.split, options={**own, **assignments(options.set)})


def _kind(data: str) -> str:
    """What the words on the command line name."""
    if Path(data).is_dir():
        return "folder"
    if data in MADE:
        return data
    if data.endswith((".json", ".jsonl")):
        return "llava"
    if data.endswith(".tar"):
        return "shards"
    raise ValueError(f"DATA must be a folder, tar files, a list in JSON, {' or '.join(MADE)}, got {data!r}; or say --kind")


def _stream_settings(options: argparse.Namespace) -> StreamSettings:
    return StreamSettings(shuffle=False, epochs=1, rank=options.rank, world_size=options.world_size, strict=options.strict)


def _length(stream: Stream[Any]) -> int | None:
    """Images of this rank, where they are counted before they are read."""
    return math.ceil(len(stream.dataset) / stream.settings.world_size) if isinstance(stream, ExampleStream) else None


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="mmar cache-latents",
        description="Encode the pictures of a data set once. The same command goes on where it was cut off.",
    )
    add = parser.add_argument
    add("data", metavar="DATA", help="a folder with metadata, shards as train-{000..012}.tar, LLaVA's list, scenes or digits")
    add("--tokenizer", required=True, metavar="FOLDER", help="of save_pretrained or of diffusers; PIPELINE/image_tokenizer")
    add("--output", required=True, type=Path, metavar="FOLDER", help="of the cache")
    add("--kind", choices=KINDS, help="of the data, where its name does not tell")
    add("--split", default="train", metavar="NAME", help="of scenes and digits (%(default)s)")
    add("--images", type=Path, metavar="FOLDER", help="of the pictures of LLaVA's list")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the data set, as length=1000; may be repeated",
    )
    add("--strict", action="store_true", help="stop at the first bad sample instead of leaving it out")
    add("--batch-size", type=whole_number(1), default=16, metavar="N", help="images at a time (%(default)s)")
    add("--images-per-shard", type=whole_number(1), default=2048, metavar="N", help="images in a file (%(default)s)")
    add("--workers", type=whole_number(0), default=0, metavar="N", help="processes that decode images (%(default)s)")
    add("--rank", type=whole_number(0), default=0, help="number of this process, where several share the work (%(default)s)")
    add("--world-size", type=whole_number(1), default=1, metavar="N", help="how many share it (%(default)s)")
    add("--dtype", choices=DTYPES, default="float32", help="what the tokenizer computes in (%(default)s)")
    add_device(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
