"""Image files, good, odd and bad, made from photographs that this project did not write."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import sklearn.datasets
from PIL import Image

from mmar.data.skipped import Reason

PHOTOGRAPHS = [Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")]
"""640 x 427 pixels, JPEG, as their photographers published them."""

ENCODINGS: dict[str, dict[str, object]] = {
    "JPEG": {},
    "PNG": {},
    "WEBP": {"lossless": True},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
    "PPM": {},
}
CUT = {Reason.BROKEN_IMAGE, Reason.NOT_AN_IMAGE, Reason.EMPTY_FILE}
DAMAGED = {Reason.BROKEN_IMAGE, Reason.NOT_AN_IMAGE}


@cache
def photograph(which: int) -> Image.Image:
    with Image.open(PHOTOGRAPHS[which % 2]) as image:
        return image.resize((60, 40)).convert("RGB")


@cache
def encoded(which: int, form: str) -> bytes:
    return to_bytes(photograph(which), form, **ENCODINGS[form])


def to_bytes(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG, with its length and the right checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_declared_size(width: int, height: int) -> bytes:
    """A header of any size with the right checksum, and a few rows of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def flipped(data: bytes, rng: random.Random, flips: int) -> bytes:
    out = bytearray(data)
    for _ in range(flips):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(rng: random.Random) -> bytes:
    data = encoded(rng.randrange(2), rng.choice(list(ENCODINGS)))
    return data[: rng.randrange(len(data))]


def swapped_header(rng: random.Random) -> bytes:
    first, second = rng.sample(["JPEG", "PNG", "WEBP", "GIF"], 2)
    return encoded(0, first)[:24] + encoded(1, second)[24:]


def gif_of_declared_size(rng: random.Random) -> bytes:
    data = bytearray(encoded(0, "GIF"))
    data[6:10] = struct.pack("<HH", rng.randrange(40000, 65536), rng.randrange(40000, 65536))
    return bytes(data)


def deep(rng: random.Random) -> bytes:
    levels = np.arange(2400, dtype=np.uint16).reshape(40, 60) * rng.randrange(1, 27)
    if rng.random() < 0.5:
        return to_bytes(Image.fromarray(levels), rng.choice(["PNG", "TIFF"]))
    return to_bytes(Image.fromarray(levels.astype(np.int32)), "TIFF")


def floats(rng: random.Random) -> bytes:
    return to_bytes(Image.fromarray(np.full((4, 4), rng.uniform(-9, 9), dtype=np.float32)), "TIFF")


BAD: dict[str, tuple[Callable[[random.Random], bytes], set[Reason]]] = {
    "cut": (cut, CUT),
    "png_flip": (lambda rng: flipped(encoded(rng.randrange(2), "PNG"), rng, rng.choice([1, 20])), DAMAGED | {Reason.TOO_LARGE}),
    "swapped_header": (swapped_header, DAMAGED),
    "huge": (lambda rng: png_of_declared_size(rng.randrange(2**14, 2**31), rng.randrange(2**14, 2**31)), {Reason.TOO_LARGE}),
    "huge_gif": (gif_of_declared_size, {Reason.TOO_LARGE}),
    "cut_rows": (lambda rng: png_of_declared_size(rng.randrange(101, 999), rng.randrange(101, 999)), DAMAGED),
    "no_pixels": (lambda rng: png_of_declared_size(*rng.sample([0, rng.randrange(9)], 2)), DAMAGED | {Reason.TOO_SMALL}),
    "bomb": (lambda rng: to_bytes(Image.new("1", (rng.randrange(1100, 2000), 1000)), "PNG"), {Reason.TOO_LARGE}),
    "deep": (deep, {Reason.PIXEL_FORMAT}),
    "floats": (floats, {Reason.PIXEL_FORMAT}),
    "noise": (lambda rng: rng.randbytes(rng.randrange(1, 5000)), DAMAGED),
    "zeros": (lambda rng: bytes(rng.randrange(1, 5000)), DAMAGED),
    "web_page": (lambda rng: b"<!DOCTYPE html><html><body>404" + b" " * rng.randrange(9), {Reason.NOT_AN_IMAGE}),
    "program": (lambda rng: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" + rng.randbytes(9), {Reason.NOT_AN_IMAGE}),
    "empty": (lambda rng: b"", {Reason.EMPTY_FILE}),
}
"""Contents of files that must be left out where ``max_pixels`` is 10⁶, and the reasons that fit."""


def odd_files() -> dict[str, bytes]:
    """Unusual, and good."""
    image, turned = photograph(0), Image.Exif()
    turned[0x0112] = 6
    palette, sheer = image.quantize(16), image.copy()
    sheer.putalpha(image.convert("L"))
    return {
        "palette.png": to_bytes(palette, "PNG"),
        "transparent_palette.png": to_bytes(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "transparent_colour.png": to_bytes(image, "PNG", transparency=(0, 0, 0)),
        "transparent.png": to_bytes(sheer, "PNG"),
        "transparent.webp": to_bytes(sheer, "WEBP", lossless=True),
        "grey.png": to_bytes(image.convert("L"), "PNG"),
        "grey_transparent.png": to_bytes(sheer.convert("LA"), "PNG"),
        "two_colours.png": to_bytes(image.convert("1"), "PNG"),
        "cmyk.jpg": to_bytes(image.convert("CMYK"), "JPEG"),
        "progressive.jpg": to_bytes(image, "JPEG", progressive=True),
        "turned.jpg": to_bytes(image, "JPEG", exif=turned),
        "turned.tif": to_bytes(image, "TIFF", exif=turned),
        "broken_exif.jpg": to_bytes(image, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
        "animated.gif": to_bytes(image, "GIF", save_all=True, append_images=[photograph(1)]),
        "animated.webp": to_bytes(image, "WEBP", save_all=True, append_images=[photograph(1)]),
        "several.jpg": to_bytes(image, "MPO", save_all=True, append_images=[photograph(1)]),
        "png_called.jpg": encoded(0, "PNG"),
        "jpeg_called.png": encoded(0, "JPEG"),
        "one_pixel.png": to_bytes(image.resize((1, 1)), "PNG"),
        "line.png": to_bytes(image.resize((500, 1)), "PNG"),
        "more_behind.jpg": encoded(0, "JPEG") + b"\0" * 100,
    }


def bad_files(each: int, seed: int = 0) -> dict[str, tuple[bytes, set[Reason]]]:
    """``each`` files of every kind."""
    rng = random.Random(seed)
    made = {}
    for kind, (make, reasons) in BAD.items():
        for i in range(each):
            made[f"{kind}_{i:03d}.{rng.choice(['jpg', 'png', 'webp'])}"] = (make(rng), reasons)
    return made
