"""``python -m mmar.evaluation.coco --model FOLDER --captions captions_val2014.json --out FOLDER``: pictures for FID-30K.

Several processes share the work by ``--rank`` and ``--world-size``. Each picture has a seed of its own, so that it does not
depend on who draws it; pictures drawn in batches differ by rounding. A run that is cut off goes on where it was: pictures
that are whole stay, and a file is put into its place only when it is complete.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from mmar.commands.drawing_settings import add_settings, drawing_settings
from mmar.commands.loading import add_model, existing_pipeline, load_pipeline
from mmar.commands.picture_files import write_picture
from mmar.commands.running import CommandParser, run_command, whole_number
from mmar.commands.weight_headers import fingerprint
from mmar.data.images import ImageLimits, read_image_file
from mmar.data.skipped import BadSample
from mmar.evaluation.coco_captions import CocoCaption, choose_captions, read_captions
from mmar.generation.settings import ImageGenerationConfig
from mmar.pipeline import MMARPipeline

MANIFEST = "manifest.json"
IMAGES = "images"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(_parser(), argv, _draw_share)


def _draw_share(options: argparse.Namespace) -> None:
    if not options.rank < options.world_size:
        raise ValueError(f"--rank must be less than --world-size {options.world_size}, got {options.rank}")
    settings = drawing_settings(options, existing_pipeline(options.model))
    chosen = choose_captions(read_captions(options.captions), options.count, seed=options.seed)
    put_manifest(options.out, _manifest(options, settings, chosen))
    missing = missing_pictures(options.out, chosen[options.rank :: options.world_size])
    if missing:
        draw_pictures(load_pipeline(options), missing, options.out, settings=settings, batch_size=options.batch_size)
    left = len(missing_pictures(options.out, chosen))
    print(f"{options.out / IMAGES}: {len(chosen) - left} of {len(chosen)} pictures")


def draw_pictures(
    pipeline: MMARPipeline,
    captions: Sequence[CocoCaption],
    out: Path,
    *,
    settings: ImageGenerationConfig | None = None,
    batch_size: int = 1,
) -> None:
    """Draw captions into ``out/images``, whatever is there.

    Args:
        pipeline: Draws.
        captions: What to draw.
        out: Folder; it is made.
        settings: How; those of the pipeline by default.
        batch_size: Pictures at a time.
    """
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(captions), unit="picture", file=sys.stderr) as bar:
        for start in range(0, len(captions), batch_size):
            part = captions[start : start + batch_size]
            pictures = pipeline.draw([one.caption for one in part], settings=settings, seed=[one.seed for one in part])
            for one, picture in zip(part, pictures, strict=True):
                _write_whole(picture, out / IMAGES / one.file_name, {"caption": one.caption, "seed": str(one.seed)})
                bar.update()


def missing_pictures(out: Path, captions: Sequence[CocoCaption]) -> list[CocoCaption]:
    """Those whose picture is not there, or not whole."""
    return [one for one in captions if not _is_whole(out / IMAGES / one.file_name)]


def put_manifest(out: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``out/manifest.json``, or see that the one that is there says the same, but for pictures that are added to it.

    Args:
        out: Folder; it is made.
        manifest: Plain values; ``pictures`` is a list.

    Raises:
        ValueError: If the folder holds pictures of another run.
    """
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(manifest, indent=1) + "\n"
    path = out / MANIFEST
    if not path.exists() or _is_beginning(path, manifest):
        with _replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    elif path.read_text("utf-8") != text:
        raise ValueError(
            f"{str(out)!r} must be empty or hold this very run, got {MANIFEST} with other {_difference(path, manifest)}; "
            "choose another folder"
        )


def _manifest(options: argparse.Namespace, settings: ImageGenerationConfig, chosen: Sequence[CocoCaption]) -> dict[str, Any]:
    """What makes the pictures; not where things are, nor who draws which."""
    return {
        "captions_sha256": hashlib.sha256(options.captions.read_bytes()).hexdigest(),
        "checkpoint": fingerprint(options.model),
        "settings": settings.to_dict(),
        "compute_dtype": options.compute_dtype or "as saved",
        "batch_size": options.batch_size,
        "seed": options.seed,
        "count": len(chosen),
        "pictures": [{"file": f"{IMAGES}/{one.file_name}", **asdict(one)} for one in chosen],
    }


def _is_beginning(path: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the file is of the same run with fewer pictures: the first of its choice."""
    try:
        there, ours = json.loads(path.read_text("utf-8")), json.loads(json.dumps(manifest))
        count = len(there["pictures"])
        ours |= {"count": count, "pictures": ours["pictures"][:count]}
        return bool(count < len(manifest["pictures"]) and there == ours)
    except (ValueError, TypeError, KeyError):
        return False


def _difference(path: Path, manifest: Mapping[str, Any]) -> str:
    try:
        there = json.loads(path.read_text("utf-8"))
        return ", ".join(name for name in manifest if there.get(name) != manifest[name]) or "contents"
    except (ValueError, AttributeError):
        return "contents"


def _is_whole(path: Path) -> bool:
    """With checksums: Pillow alone takes a file without its end for whole."""
    try:
        read_image_file(path, "picture", ImageLimits())
    except BadSample:
        return False
    return True


def _write_whole(picture: Image.Image, path: Path, facts: Mapping[str, str]) -> None:
    with _replacing(path) as temporary:
        write_picture(picture, temporary, facts)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path``, put into its place once it is written; another process may write the same."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m mmar.evaluation.coco", description="Draw captions of MSCOCO, for FID-30K.")
    add = parser.add_argument
    add_model(parser)
    add("--captions", required=True, type=Path, metavar="FILE", help="captions_val2014.json of MSCOCO")
    add("--out", required=True, type=Path, metavar="FOLDER", help="pictures go into its sub-folder images")
    add("--count", type=whole_number(1), default=30000, metavar="N", help="pictures, each of another image (%(default)s)")
    add("--seed", type=whole_number(0), default=0, help="of the choice and of the pictures (%(default)s)")
    add("--rank", type=whole_number(0), default=0, metavar="R", help="which share this process draws (%(default)s)")
    add("--world-size", type=whole_number(1), default=1, metavar="W", help="number of shares (%(default)s)")
    add("--batch-size", type=whole_number(1), default=1, metavar="N", help="pictures at a time (%(default)s)")
    add_settings(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
