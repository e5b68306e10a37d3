"""Captions of MSCOCO for zero-shot drawing: which of them are drawn, the same on every machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any


@dataclass(frozen=True)
class CocoCaption:
    """A caption to draw.

    Attributes:
        image_id: Of the photograph that it describes.
        caption_id: Its own.
        caption: The text, without white space around it.
        seed: Of the picture.
    """

    image_id: int
    caption_id: int
    caption: str
    seed: int

    @property
    def file_name(self) -> str:
        """Of the picture, with as many digits as MSCOCO's own."""
        return f"{self.image_id:012d}.png"


def read_captions(path: str | Path) -> dict[int, list[tuple[int, str]]]:
    """Captions of each image, ``{image_id: [(caption_id, caption), ...]}``, in order of their numbers.

    Args:
        path: JSON as MSCOCO has it, ``{"annotations": [{"image_id": 1, "id": 2, "caption": "a cat"}, ...]}``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is none of that kind.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"captions must be a file such as captions_val2014.json, got {str(path)!r}")
    try:
        annotations = json.loads(Path(path).read_text("utf-8"))["annotations"]
        found = [_caption(one) for one in annotations]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} must be captions in MSCOCO's format, a list annotations of image_id, id and caption; "
            f"got {type(error).__name__}: {error}"
        ) from error
    captions: dict[int, list[tuple[int, str]]] = {}
    for image_id, caption_id, caption in sorted(found):
        if caption:
            captions.setdefault(image_id, []).append((caption_id, caption))
    return captions


def choose_captions(captions: dict[int, list[tuple[int, str]]], count: int, *, seed: int = 0) -> list[CocoCaption]:
    """One caption of each of ``count`` images, both drawn at random.

    The first n of a choice are the choice of n, so 1000 pictures are the first of 30000. The order of the file plays no part.

    Args:
        captions: Of :func:`read_captions`.
        count: Number; the paper's FID takes 30000 of the 40504 images of val2014.
        seed: Of the choice, and of the pictures.

    Raises:
        ValueError: If there are fewer images with captions.
    """
    if not 1 <= count <= len(captions):
        raise ValueError(f"count must lie in 1 .. {len(captions)}, the images with captions, got {count}")
    rng = Random(seed)
    order = sorted(captions)
    for i in range(len(order) - 1, 0, -1):  # Fisher and Yates, by random() alone: it is the same in every Python
        j = int(rng.random() * (i + 1))
        order[i], order[j] = order[j], order[i]
    chosen: list[CocoCaption] = []
    for image_id in order:
        caption_id, caption = captions[image_id][int(rng.random() * len(captions[image_id]))]
        chosen.append(CocoCaption(image_id, caption_id, caption, seed + len(chosen)))
    return chosen[:count]


def _caption(annotation: dict[str, Any]) -> tuple[int, int, str]:
    image_id, caption_id, caption = annotation["image_id"], annotation["id"], annotation["caption"]
    if not (isinstance(image_id, int) and isinstance(caption_id, int) and isinstance(caption, str)):
        raise TypeError(f"image_id and id must be integers and caption a string, got {annotation!r}")
    return image_id, caption_id, " ".join(caption.split())
