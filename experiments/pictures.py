"""Small pictures inside records, so that a figure needs nothing but its record."""

from __future__ import annotations

import base64
import io

from PIL import Image


def packed(picture: Image.Image) -> str:
    """A picture as base64 of a PNG; the same pixels give the same text."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def unpacked(text: str) -> Image.Image:
    """What :func:`packed` was given."""
    picture = Image.open(io.BytesIO(base64.b64decode(text)))
    picture.load()
    return picture
