"""``mmar generate CAPTION ... --model FOLDER --out FILE``: draw pictures, or paint over one."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mmar.commands.drawing_settings import add_settings, drawing_settings
from mmar.commands.loading import add_model, existing_pipeline, load_pipeline
from mmar.commands.picture_files import picture_paths, write_picture
from mmar.commands.running import CommandParser, run_command, whole_number
from mmar.commands.weight_headers import fingerprint
from mmar.generation.settings import ImageGenerationConfig
from mmar.pipeline import MMARPipeline
from mmar.processing import MMARImageProcessor


@dataclass(frozen=True)
class Order:
    """A picture to draw.

    Attributes:
        caption: An empty one is unconditional.
        seed: Of this picture alone: the same seed and caption give it again, whatever else is drawn.
        path: Where it goes.
    """

    caption: str
    seed: int
    path: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(_parser(), argv, _generate)


def _generate(options: argparse.Namespace) -> None:
    orders = _orders(options)
    settings = drawing_settings(options, existing_pipeline(options.model))
    kept = _kept(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)  # an error now, not after an hour of drawing
    pipe = load_pipeline(options)
    facts = _facts(options, pipe, settings)
    parts = [orders[start : start + options.batch_size] for start in range(0, len(orders), options.batch_size)]
    with tqdm(unit="step", file=sys.stderr) as bar:
        for part in parts:
            for order, picture in zip(part, _draw(pipe, part, settings, kept, bar, len(parts)), strict=True):
                write_picture(picture, order.path, {"caption": order.caption, "seed": str(order.seed), **facts})
                tqdm.write(str(order.path))


def _draw(
    pipe: MMARPipeline, part: Sequence[Order], settings: ImageGenerationConfig, kept: dict[str, Any], bar: tqdm, parts: int
) -> list[Any]:
    def advance(done: int, total: int, tokens: Tensor) -> None:
        bar.total = total * parts
        bar.update()

    captions, seeds = [order.caption for order in part], [order.seed for order in part]
    return pipe.draw(captions, settings=settings, seed=seeds, on_step=advance, **kept)


# -- what is asked for ----------------------------------------------------------------------------------------------------


def _orders(options: argparse.Namespace) -> list[Order]:
    """Captions one after the other, each ``--count`` times; seeds count up from ``--seed``."""
    captions = list(options.captions)
    if options.captions_file is not None:
        captions += [line.strip() for line in options.captions_file.read_text("utf-8").splitlines() if line.strip()]
    if not captions:
        raise ValueError('captions must be given as words or in --captions-file, got none; "" draws without a caption')
    repeated = [caption for caption in captions for _ in range(options.count)]
    paths = picture_paths(options.out, len(repeated))
    return [Order(caption, options.seed + i, path) for i, (caption, path) in enumerate(zip(repeated, paths, strict=True))]


def _kept(options: argparse.Namespace) -> dict[str, Any]:
    """The picture to paint over and its mask, opened before the model is."""
    if (options.inpaint is None) != (options.mask is None):
        raise ValueError("--inpaint and --mask must come together, got one of them; white in the mask is drawn anew")
    if options.inpaint is None:
        return {}
    image, mask = MMARImageProcessor().fetch_images([options.inpaint, options.mask])
    return {"image": image, "mask": mask}


def _facts(options: argparse.Namespace, pipe: MMARPipeline, settings: ImageGenerationConfig) -> dict[str, str]:
    """What gives the picture again, beside its caption and seed; no more of the path than the last two folders."""
    name = "/".join(options.model.resolve().parts[-2:])
    dtype = str(pipe.compute_dtype).removeprefix("torch.")
    facts = {
        "settings": json.dumps(settings.to_dict()),
        "checkpoint": f"{name} {fingerprint(options.model)}",
        "computed": f"{dtype} on {pipe.device.type}, batch size {options.batch_size}",
        "software": f"mmar {version('diffparam')}, torch {torch.__version__}",
    }
    if options.inpaint is None:
        return facts
    inpainted = {"image": options.inpaint, "mask": options.mask}
    return facts | {f"inpaint_{name}_sha256": hashlib.sha256(path.read_bytes()).hexdigest() for name, path in inpainted.items()}


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="mmar generate", description="Draw pictures from captions, or paint over a picture.")
    add = parser.add_argument
    add("captions", nargs="*", metavar="CAPTION", help='what to draw; "" for anything')
    add("--captions-file", type=Path, metavar="FILE", help="more captions, one per line")
    add_model(parser)
    add("--out", required=True, type=Path, metavar="FILE", help="PNG to write; several pictures get numbers behind its name")
    add("--count", type=whole_number(1), default=1, metavar="N", help="pictures of each caption (%(default)s)")
    add("--seed", type=whole_number(0), default=0, help="of the first picture; the others count up (%(default)s)")
    add(
        "--batch-size",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="pictures at a time; changes them by rounding (%(default)s)",
    )
    add_settings(parser)
    add("--inpaint", type=Path, metavar="IMAGE", help="picture to paint over")
    add("--mask", type=Path, metavar="IMAGE", help="of its size, white where to paint anew")
    return parser


if __name__ == "__main__":
    sys.exit(main())
