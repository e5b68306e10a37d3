"""Files to Pillow images: decoded completely, upright, and with nothing that could fail later.

Size, crop and colours are the image processor's. A JPEG has no checksum: bytes that are wrong and decode are not noticed.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from mmar.data.skipped import BadSample, Reason

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is read, by content: the suffix of a file plays no part. Pillow's others include one that runs a program (EPS)."""
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""8 bits and less. Of 16 bits nobody says whether 12, 14 or 16 are used: scale such files beforehand."""


@dataclass(frozen=True)
class ImageLimits:
    """What an image file may cost.

    Attributes:
        max_pixels: Width times height at most; at most Pillow's own limit. 2²⁶ pixels are 201 MB in RGB.
        max_bytes: Of the file.
        min_side: Pixels of the shorter side at least.
    """

    max_pixels: int = 2**26
    max_bytes: int = 2**28
    min_side: int = 1

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_bytes", "min_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if Image.MAX_IMAGE_PIXELS is not None and self.max_pixels > Image.MAX_IMAGE_PIXELS:
            raise ValueError(
                f"max_pixels must be at most {Image.MAX_IMAGE_PIXELS}, Pillow's own limit, got {self.max_pixels}; "
                "raise PIL.Image.MAX_IMAGE_PIXELS first"
            )


def read_image_file(path: Path, where: str, limits: ImageLimits) -> Image.Image:
    """Read and decode a file.

    Args:
        path: Of the file.
        where: Who names it, for messages.
        limits: On the file and the image.

    Raises:
        BadSample: If it cannot be used.
    """
    where = f"{where}: {path}"
    try:
        with open(path, "rb", opener=_open_quickly) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadSample.of(Reason.UNREADABLE_FILE, where, "it must be a regular file")
            check_bytes(status.st_size, where, limits)
            data = file.read(limits.max_bytes + 1)  # it may grow meanwhile
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadSample.of(Reason.MISSING_FILE, where) from error
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError, and so is BadSample
        if isinstance(error, BadSample):
            raise
        raise BadSample.of(Reason.UNREADABLE_FILE, where, f"{type(error).__name__}: {error}") from error
    return decode_image(data, where, limits)


def check_bytes(size: int, where: str, limits: ImageLimits) -> None:
    """Raise a BadSample if a file is too long to be read."""
    if size > limits.max_bytes:
        raise BadSample.of(Reason.TOO_LARGE, where, f"a file must have at most {limits.max_bytes} bytes, got {size}")


def decode_image(data: bytes, where: str, limits: ImageLimits) -> Image.Image:
    """Decode all pixels of the first frame.

    Args:
        data: Contents of a file.
        where: What it is, for messages.
        limits: On the image.

    Returns:
        An image in memory in one of :data:`MODES`, turned upright by its EXIF tag, with no other tag than transparency.

    Raises:
        BadSample: If it cannot be used, whatever is wrong with it.
        RuntimeError: If Pillow is set to fill up truncated images with grey.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES must be False, got True; cut-off images would pass as whole")
    check_bytes(len(data), where, limits)
    if not data:
        raise BadSample.of(Reason.EMPTY_FILE, where)
    try:
        image = _opened(data, where, limits)
        image.load()
        upright = ImageOps.exif_transpose(image)
        upright.info = {key: value for key, value in image.info.items() if key == "transparency"}
    except BadSample:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSample.of(Reason.TOO_LARGE, where, str(error)) from error
    except UnidentifiedImageError as error:
        raise BadSample.of(Reason.NOT_AN_IMAGE, where, f"it must be one of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow raises ten other types for damaged files
        raise BadSample.of(Reason.BROKEN_IMAGE, where, f"{type(error).__name__}: {error}") from error
    return upright


def _open_quickly(path: str, flags: int) -> int:
    """Opening a pipe waits for somebody to write into it, unless told not to."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _opened(data: bytes, where: str, limits: ImageLimits) -> Image.Image:
    """Header read and checked, pixels not yet."""
    image = Image.open(BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > limits.max_pixels:
        detail = f"an image must have at most {limits.max_pixels} pixels, got {width} x {height}"
        raise BadSample.of(Reason.TOO_LARGE, where, detail)
    if min(width, height) < limits.min_side:
        detail = f"the shorter side must have at least {limits.min_side} pixels, got {width} x {height}"
        raise BadSample.of(Reason.TOO_SMALL, where, detail)
    if image.mode not in MODES:
        raise BadSample.of(Reason.PIXEL_FORMAT, where, f"the mode must be one of {', '.join(MODES)}, got {image.mode}")
    if image.format == "PNG":  # loading does not look at all checksums
        image.verify()
        image = Image.open(BytesIO(data), formats=FORMATS)
    return image
