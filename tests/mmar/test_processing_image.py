"""Images to pixels and back: exact where the size is right, refused where a value would be changed without a word."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor

from mmar.config import ImageTokensConfig
from mmar.processing import MMARImageProcessor
from mmar.processing.image_processor import pixel_channels

ORIENTATION = 0x0112


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pixels(image: object, size: int = 8, **options: object) -> torch.Tensor:
    return MMARImageProcessor(size, **options)(image)["pixel_values"]


# -- exactness --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]), st.booleans())
def test_an_8_bit_image_of_the_right_size_comes_back_bit_for_bit(seed: int, channels: int, resizes: bool) -> None:
    values = noise(8, 8, channels, seed=seed)
    image = Image.fromarray(values.squeeze(-1) if channels == 1 else values)
    (back,) = MMARImageProcessor.to_pil(pixels(image, channels=channels, do_resize=resizes))
    assert back.mode == image.mode
    assert back.tobytes() == image.tobytes()


def test_every_8_bit_value_comes_back_and_truncation_would_lose_some() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    x = pixels(Image.fromarray(ramp), 16, channels=1)
    assert x.dtype is torch.float32
    assert x.shape == (1, 1, 16, 16)
    assert (x.min().item(), x.max().item()) == (-1.0, 1.0)
    assert np.array_equal(np.asarray(MMARImageProcessor.to_pil(x)[0]), ramp)
    truncated = ((x + 1) * 127.5).to(torch.uint8)[0, 0].numpy()
    assert not np.array_equal(truncated, ramp)  # the control


def test_all_kinds_of_input_give_the_same_pixels(tmp_path: Path) -> None:
    values = noise(8, 8, 3)
    image = Image.fromarray(values)
    image.save(tmp_path / "image.png")
    wanted = pixels(image)
    first = values.transpose(2, 0, 1)
    exact = (values, first, torch.from_numpy(first.copy()), str(tmp_path / "image.png"), tmp_path / "image.png", first[None])
    for given_ in exact:
        assert torch.equal(pixels(given_), wanted)
    # Floats are values / 255, known to 2^-24: 2 x - 1 is known to a few 2^-24.
    for given_ in (first / np.float32(255), first / 255.0, torch.from_numpy(first / np.float32(255))):
        assert torch.allclose(pixels(given_), wanted, rtol=0, atol=4 * 2.0**-24)
    assert torch.allclose(pixels(torch.from_numpy(first / 255.0).bfloat16()), wanted, rtol=0, atol=2 * 2.0**-9)


def test_grey_arrays_have_two_axes_or_one_channel() -> None:
    grey = noise(8, 8)
    wanted = pixels(Image.fromarray(grey), channels=1)
    for given_ in (grey, grey[None], grey[..., None], torch.from_numpy(grey)):
        assert torch.equal(pixels(given_, channels=1), wanted)
    assert torch.equal(pixels(grey), wanted.expand(-1, 3, -1, -1))  # grey as RGB: three equal planes
    floats = grey / np.float32(255)
    for given_ in (floats, Image.fromarray(floats)):
        assert torch.allclose(pixels(given_, channels=1), wanted, rtol=0, atol=4 * 2.0**-24)


def test_images_stay_in_order_through_lists_and_batches() -> None:
    batch = noise(4, 3, 8, 8)
    wanted = torch.cat([pixels(image) for image in batch])
    for given_ in (batch, list(batch), [list(batch[:1]), list(batch[1:])], torch.from_numpy(batch), [batch[:2], batch[2:]]):
        assert torch.equal(pixels(given_), wanted)
    assert isinstance(MMARImageProcessor(8)(batch, return_tensors="np")["pixel_values"], np.ndarray)


# -- modes, transparency, orientation ---------------------------------------------------------------------------------


def test_transparency_shows_white_whatever_lies_below(tmp_path: Path) -> None:
    values = noise(8, 8, 4)
    values[..., 3] = 0
    values[0, 0] = 10, 20, 30, 255
    Image.fromarray(values).save(tmp_path / "image.png")
    wanted = np.full((8, 8, 3), 255, dtype=np.uint8)
    wanted[0, 0] = 10, 20, 30
    for given_ in (Image.fromarray(values), values, values / 255.0, tmp_path / "image.png"):
        assert np.array_equal(np.asarray(MMARImageProcessor.to_pil(pixels(given_))[0]), wanted)
    assert pixels(Image.fromarray(values), channels=1)[0, 0, 1:].min() == 1
    assert pixels(values / 255.0, channels=1)[0, 0, 1:].min() == pytest.approx(1, abs=2.0**-22)  # the weights of luma add to 1


def test_half_transparent_is_half_white() -> None:
    values = np.full((8, 8, 4), (0, 0, 0, 128), dtype=np.uint8)
    grey = (1 - 128 / 255) * 2 - 1
    assert pixels(Image.fromarray(values)).unique().item() == pytest.approx(grey, abs=1 / 127.5)  # one of 256 values
    assert pixels(values / 255.0).unique().tolist() == pytest.approx([grey], abs=1e-6)


def test_a_transparent_colour_of_a_palette_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "image.png", transparency=0)
    assert pixels(tmp_path / "image.png").unique().tolist() == [1.0]
    assert pixels(image)[0, :, 0, 0].tolist() == pytest.approx([v / 127.5 - 1 for v in (10, 20, 30)], abs=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_8_bit_mode_is_read(mode: str, channels: int) -> None:
    white = Image.new("RGB", (8, 8), "white")
    image = white.convert("L").convert(mode) if mode in ("LA", "PA") else white.convert(mode)
    x = pixels(image, channels=channels)
    assert x.shape == (1, channels, 8, 8)
    assert x.min() > 0.98  # white: exact but for the ways to CMYK and YCbCr and back


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_file_is_turned_upright_by_its_tag(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{suffix}"
    values = noise(8, 8, 3)
    tag = Image.Exif()
    tag[ORIENTATION] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(values).save(path, exif=tag)
    upright = pixels(np.ascontiguousarray(np.rot90(values, -1)))
    assert torch.equal(pixels(path), upright)
    with Image.open(path) as image:
        assert torch.equal(pixels(image), upright)
    assert not torch.equal(pixels(values), upright)  # the control


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resample", ["bicubic", "lanczos"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 40), (33, 16), (5, 7), (1, 1), (8, 100)])
def test_any_size_becomes_a_square_of_its_centre(height: int, width: int, resample: str) -> None:
    """A ramp along the longer side: a centred crop has the mean of the whole, and its slope tells the scale."""
    ramp = np.linspace(0, 1, max(height, width), dtype=np.float32)
    image = np.broadcast_to(ramp if width >= height else ramp[:, None], (height, width))
    x = (pixels(image, channels=1, resample=resample)[0, 0] + 1) / 2
    assert x.shape == (8, 8)
    assert x.mean().item() == pytest.approx(ramp.mean(), abs=0.02)
    along = x if width >= height else x.T
    assert along.std(0).max().item() < 1e-3  # nothing varies across
    if min(height, width) > 8:  # steps of the ramp, away from the borders, where the filters see an end
        step = min(height, width) / 8 / (max(height, width) - 1)
        assert along[0].diff()[2:-2].tolist() == pytest.approx([step] * 3, rel=0.05)


def test_8_bit_and_float_images_are_scaled_alike() -> None:
    values = noise(31, 20, 3)
    eight, floats = pixels(values), pixels(values / 255.0)
    # Pillow rounds 8-bit results once per axis: an error of 1 / 255 at most each, twice that in [-1, 1].
    assert (eight - floats).abs().max().item() < 2 * 2.2 / 255
    assert floats.abs().max() <= 1


def test_overshoot_of_the_filter_is_clipped_as_in_8_bits() -> None:
    edge = np.zeros((32, 32), dtype=np.float32)
    edge[:, 16:] = 1
    raw = np.asarray(Image.fromarray(edge).resize((8, 8), Image.Resampling.LANCZOS))
    assert raw.min() < 0 and raw.max() > 1  # noqa: PT018 - the control
    x = pixels(edge, channels=1, resample="lanczos")
    assert (x.min().item(), x.max().item()) == (-1.0, 1.0)


def test_another_size_is_an_error_where_resizing_is_off() -> None:
    with pytest.raises(
        ValueError, match=r"images\[1\]: images must be 8 x 8 pixels where do_resize is False, got 9 x 8; resize"
    ):
        pixels([noise(8, 8, 3), noise(8, 9, 3)], do_resize=False)


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)), "mode of an image must be .* got I;16; scale it"),
        (Image.new("I", (8, 8)), "got I; scale"),
        (Image.new("F", (8, 8), 3.0), r"must lie in \[0, 1\] without NaN, got 3 to 3; divide"),
        (Image.new("L", (0, 8)), "at least one pixel, got 0 x 8"),
        (np.full((8, 8), np.nan), "without NaN, got nan to nan"),
        (np.linspace(-1, 1, 64).reshape(8, 8), r"got -1 to 1; .* map \[-1, 1\] by"),
        (np.full((8, 8, 3), 255.0), "got 255 to 255; divide 8-bit values by 255"),
        (np.zeros((0, 8), dtype=np.uint8), r"at least one pixel, got shape \(0, 8\)"),
        (np.zeros((8, 0, 3), dtype=np.uint8), r"at least one pixel, got shape \(8, 0, 3\)"),
        (np.zeros(8, dtype=np.uint8), "an image must have 2 or 3 axes"),
        (np.zeros((1, 1, 3, 8, 8), dtype=np.uint8), r"batch 4, got shape \(1, 1, 3, 8, 8\)"),
        (np.zeros((8, 8, 2), dtype=np.uint8), r"must have 1, 3 or 4 channels first or last, got \(8, 8, 2\)"),
        (np.zeros((3, 8, 3), dtype=np.uint8), r"input_data_format must say where the channels of shape \(3, 8, 3\) are"),
        ([], "images must hold at least one image, got none"),
        ([[], []], "at least one image"),
        ("https://example.org/a.png", "a path must lead to a local file"),
    ],
)
def test_what_would_be_changed_without_a_word_is_refused(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pixels(image)


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3), dtype=np.int64), torch.zeros(8, 8, 3, dtype=torch.bool), 7, None, [None]]
)
def test_other_types_are_refused(image: object) -> None:
    with pytest.raises(TypeError, match="must be"):
        pixels(image)


def test_files_that_are_none_or_no_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a path must lead to an image file, got .*none\.png"):
        pixels(tmp_path / "none.png")
    with pytest.raises(FileNotFoundError, match="got 'AAAA"):
        pixels("A" * 10_000)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"an image that Pillow reads, got .*text\.png"):
        pixels(tmp_path / "text.png")


def test_the_place_of_the_channels_can_be_said() -> None:
    values = noise(3, 4, 3)
    processor = MMARImageProcessor(8)
    first = processor(values, input_data_format="channels_first")["pixel_values"]
    last = processor(values, input_data_format="channels_last")["pixel_values"]
    assert torch.equal(last, processor(Image.fromarray(values))["pixel_values"])
    assert not torch.equal(first, last)
    with pytest.raises(ValueError, match="input_data_format must be channels_first, channels_last or None, got 'CHW'"):
        processor(values, input_data_format="CHW")
    with pytest.raises(ValueError, match=r"got \(8, 8, 3\) \(channels_first\)"):
        processor(noise(8, 8, 3), input_data_format="channels_first")


# -- back to images ---------------------------------------------------------------------------------------------------


def test_pixels_are_rounded_to_the_nearest_and_clamped() -> None:
    x = torch.tensor([-1.5, -1, -1 + 0.9 / 127.5, 0.4 / 127.5, 1, 1.5]).view(1, 1, 1, 6)
    (image,) = MMARImageProcessor.to_pil(x)
    assert list(np.asarray(image).ravel()) == [0, 0, 1, 128, 255, 255]  # 127.5 + 0.4 is nearest to 128
    assert MMARImageProcessor.to_pil(x.bfloat16().expand(2, 3, 1, 6))[1].mode == "RGB"
    assert MMARImageProcessor.to_pil(x.double().numpy())[0].size == (6, 1)
    assert MMARImageProcessor.to_pil(torch.zeros(0, 3, 8, 8)) == []


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 8, 8), ValueError, r"shape \(B, 1 or 3, H, W\), got \(3, 8, 8\)"),
        (torch.zeros(1, 8, 8, 3), ValueError, r"got \(1, 8, 8, 3\)"),
        (torch.zeros(1, 3, 0, 8), ValueError, r"got \(1, 3, 0, 8\)"),
        (torch.full((1, 3, 8, 8), torch.nan), ValueError, "finite, got NaN or infinity"),
        (torch.full((1, 3, 8, 8), torch.inf), ValueError, "finite"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, r"floating point in \[-1, 1\], got torch.uint8"),
    ],
)
def test_pixels_that_are_none_are_refused(x: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MMARImageProcessor.to_pil(x)


# -- options, save and load -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size must be at least 1 pixel, got 0"),
        ({"channels": 4}, r"channels must be 3 \(RGB\) or 1 \(grey\), got 4"),
        ({"resample": "nearest"}, "resample must be one of bicubic, lanczos, got 'nearest'"),
        ({"do_rescale": False}, "options must be among image_size, channels, do_resize, resample, got do_rescale"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MMARImageProcessor(**options)
    with pytest.raises(TypeError, match="do_rescale"):
        MMARImageProcessor(8)(noise(8, 8, 3), do_rescale=False)


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    processor = MMARImageProcessor(24, 1, do_resize=False, resample="lanczos")
    processor.save_pretrained(tmp_path)
    for loaded in (MMARImageProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is MMARImageProcessor
        assert loaded.to_dict() == processor.to_dict()
    changed = MMARImageProcessor.from_pretrained(tmp_path, image_size=8, do_resize=True)
    assert (changed.image_size, changed.do_resize, changed.channels, changed.resample) == (8, True, 1, "lanczos")
    with pytest.raises(ValueError, match="image_size must be at least 1"):
        MMARImageProcessor.from_pretrained(tmp_path, image_size=0)


def test_colours_follow_from_the_image_tokens() -> None:
    assert pixel_channels(ImageTokensConfig()) == 3  # kl-16: the channels of a token are no colours
    assert pixel_channels(ImageTokensConfig(tokenizer="patches", image_size=8, grid=4, channels=4)) == 1
    assert pixel_channels(ImageTokensConfig(tokenizer="patches", image_size=8, grid=4, channels=12)) == 3
    with pytest.raises(ValueError, match=r"must be 4 \(grey\) or 12 \(RGB\) for patches, got 5"):
        pixel_channels(ImageTokensConfig(tokenizer="patches", image_size=8, grid=4, channels=5))
