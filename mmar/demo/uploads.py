"""Uploaded bytes to an image."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

MOST_BYTES = 64 * 1024 * 1024


def uploaded_image(content: bytes) -> Image.Image:
    """The image in a file of any format that Pillow reads, whole.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    if not content:
        raise ValueError("image must be chosen before a question is asked, got none; choose a file above the question")
    if len(content) > MOST_BYTES:
        raise ValueError(f"image must have at most {MOST_BYTES >> 20} MB, got {len(content) >> 20}; make it smaller")
    try:
        image = Image.open(BytesIO(content))
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises for bad files
        raise ValueError(
            f"image must be a picture, as PNG or JPEG, got a file that cannot be read ({_reason(error)})"
        ) from error
    return image


def _reason(error: BaseException) -> str:
    """Without the address of the bytes in memory."""
    return "of no known format" if "BytesIO" in str(error) else str(error)
