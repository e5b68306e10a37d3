"""Pictures as PNG files that say how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo


def picture_paths(out: Path, count: int) -> list[Path]:
    """The path itself for one picture, numbered ones for several: ``img-01.png`` to ``img-12.png``.

    Raises:
        ValueError: If it is no PNG.
    """
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out must end in .png, got {str(out)!r}; a PNG holds caption and seed beside the picture")
    if count == 1:
        return [out]
    width = len(str(count))
    return [out.with_name(f"{out.stem}-{i:0{width}}{out.suffix}") for i in range(1, count + 1)]


def write_picture(image: Image.Image, path: Path, facts: Mapping[str, str]) -> None:
    """Write a PNG with a text entry for each fact; ``Image.open(path).text`` reads them."""
    info = PngInfo()
    for name, value in facts.items():
        info.add_text(name, value)
    image.save(path, format="PNG", pnginfo=info)
