"""Files to images: whole ones as Pillow decodes them, all others refused for a reason."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bad_image_files import ENCODINGS, PHOTOGRAPHS, bad_files, encoded, flipped, odd_files, photograph
from PIL import Image, ImageFile, ImageOps

from mmar.data.images import MODES, ImageLimits, decode_image, read_image_file
from mmar.data.skipped import BadSample, Reason
from mmar.processing.image_processor import MMARImageProcessor

LIMITS = ImageLimits(max_pixels=10**6)


@pytest.fixture(scope="module")
def processor() -> MMARImageProcessor:
    return MMARImageProcessor(image_size=16)


@pytest.fixture
def padded_with_grey() -> Iterator[None]:
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    yield
    ImageFile.LOAD_TRUNCATED_IMAGES = False


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.name)
def test_photographs_are_what_pillow_decodes(path: Path) -> None:
    image = read_image_file(path, "here", ImageLimits())
    with Image.open(path) as expected:
        assert image.size == (640, 427)
        assert np.array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels_back(form: str) -> None:
    assert decode_image(encoded(0, form), "here", LIMITS).tobytes() == photograph(0).tobytes()


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about EXIF tags
@pytest.mark.parametrize("name", odd_files())
def test_unusual_files_are_read_and_can_be_processed(name: str, processor: MMARImageProcessor) -> None:
    image = decode_image(odd_files()[name], name, LIMITS)
    assert image.mode in MODES
    pixels = processor(image)["pixel_values"]
    copied = pickle.loads(pickle.dumps(image))  # as workers send it
    assert pixels.equal(processor(copied)["pixel_values"])


def test_the_processor_turns_nothing_a_second_time(processor: MMARImageProcessor) -> None:
    files = odd_files()
    for name in ("turned.jpg", "turned.tif"):
        image = decode_image(files[name], name, LIMITS)
        assert image.size == (40, 60)  # 60 x 40 in the file, lying on its side
        assert processor.fetch_images(image).size == ImageOps.exif_transpose(image).size == (40, 60)
    upright = photograph(0).transpose(Image.Transpose.ROTATE_270)
    assert decode_image(files["turned.tif"], "", LIMITS).tobytes() == upright.tobytes()


def test_of_an_animation_the_first_frame_counts() -> None:
    image = decode_image(odd_files()["animated.gif"], "here", LIMITS).convert("RGB")
    first, second = (np.abs(np.asarray(image, float) - np.asarray(photograph(i), float)).mean() for i in range(2))
    assert first < 10 < second  # 256 colours of a palette are near, another photograph is not


@pytest.mark.parametrize("kind", ["cut", "png_flip", "swapped_header", "huge", "no_pixels", "deep", "noise", "program"])
def test_the_generated_files_are_bad_in_pillows_eyes_too_or_refused_by_our_rules(kind: str) -> None:
    made = {name: content for name, content in bad_files(20).items() if name.startswith(f"{kind}_0")}
    assert len(made) == 20
    for name, (data, reasons) in made.items():
        with pytest.raises(BadSample) as caught:
            decode_image(data, name, LIMITS)
        assert caught.value.reason in reasons, caught.value
        assert str(caught.value).startswith(f"{name}: {caught.value.reason}")
        assert " at 0x" not in str(caught.value)  # Pillow's message about a file in memory; reports should be comparable


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ENCODINGS)
def test_any_flipped_bits_give_an_image_or_a_reason(form: str, processor: MMARImageProcessor) -> None:
    rng, delivered, reasons = random.Random(0), 0, set()
    for _ in range(40):
        data = flipped(encoded(1, form), rng, rng.choice([1, 3, 30]))
        try:
            image = decode_image(data, "here", LIMITS)
        except BadSample as bad:
            reasons.add(bad.reason)
        else:
            delivered += 1
            assert processor(image)["pixel_values"].isfinite().all()
    assert reasons <= {Reason.BROKEN_IMAGE, Reason.NOT_AN_IMAGE, Reason.TOO_LARGE, Reason.PIXEL_FORMAT}
    assert (delivered == 0) == (form == "PNG")  # the only format with checksums


def test_a_png_is_delivered_unchanged_or_not_at_all() -> None:
    """Without a look at all checksums two of these 400 are delivered with other pixels."""
    rng, delivered = random.Random(0), []
    for _ in range(400):
        try:
            delivered.append(decode_image(flipped(encoded(0, "PNG"), rng, 1), "here", LIMITS))
        except BadSample:
            continue
    assert all(image.tobytes() == photograph(0).tobytes() for image in delivered)


@pytest.mark.parametrize("form", ENCODINGS)
def test_a_file_without_its_last_pixels_is_refused(form: str) -> None:
    data, rng = encoded(0, form), random.Random(1)
    for length in [0, 1, len(data) - 16, *(rng.randrange(len(data) - 16) for _ in range(20))]:
        with pytest.raises(BadSample):
            decode_image(data[:length], "here", LIMITS)


def test_limits_hold_before_anything_is_decoded() -> None:
    small = encoded(0, "PNG")
    for limits, where in (
        (ImageLimits(max_pixels=2399), "at most 2399 pixels, got 60 x 40"),
        (ImageLimits(max_bytes=100), f"at most 100 bytes, got {len(small)}"),
    ):
        with pytest.raises(BadSample, match=where) as caught:
            decode_image(small, "here", limits)
        assert caught.value.reason is Reason.TOO_LARGE
    with pytest.raises(BadSample, match="at least 41 pixels, got 60 x 40") as caught:
        decode_image(small, "here", ImageLimits(min_side=41))
    assert caught.value.reason is Reason.TOO_SMALL
    decode_image(small, "here", ImageLimits(max_pixels=2400, max_bytes=len(small), min_side=40))


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="max_pixels must be at least 1, got 0"):
        ImageLimits(max_pixels=0)
    with pytest.raises(ValueError, match="max_pixels must be at most 89478485, Pillow's own limit"):
        ImageLimits(max_pixels=10**9)


@pytest.mark.usefixtures("padded_with_grey")
def test_images_filled_up_with_grey_do_not_pass() -> None:
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES must be False"):
        decode_image(encoded(0, "JPEG")[:-400], "here", LIMITS)


def test_things_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")  # opening one would wait for ever
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "file").write_bytes(b"")
    expected = {
        "folder.jpg": Reason.UNREADABLE_FILE,
        "pipe.jpg": Reason.UNREADABLE_FILE,
        "loop.jpg": Reason.UNREADABLE_FILE,
        "missing.jpg": Reason.MISSING_FILE,
        "file/below.jpg": Reason.MISSING_FILE,
        "zero\0byte.jpg": Reason.UNREADABLE_FILE,
        "long" * 100: Reason.UNREADABLE_FILE,
        "file": Reason.EMPTY_FILE,
    }
    if os.path.exists("/dev/zero"):
        (tmp_path / "endless.jpg").symlink_to("/dev/zero")
        expected["endless.jpg"] = Reason.UNREADABLE_FILE
    for name, reason in expected.items():
        with pytest.raises(BadSample) as caught:
            read_image_file(tmp_path / name, "list:7", LIMITS)
        assert caught.value.reason is reason, name
        assert str(caught.value).startswith(f"list:7: {tmp_path / name}: {reason}")


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link.jpg").symlink_to(PHOTOGRAPHS[0])  # Hugging Face's cache consists of links
    assert read_image_file(tmp_path / "link.jpg", "here", LIMITS).size == (640, 427)
