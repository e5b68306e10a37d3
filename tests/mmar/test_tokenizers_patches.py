"""Patches lose nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import digits, photographs

from mmar.config import MMARConfig
from mmar.tokenizers import PatchTokenizer


@given(st.sampled_from([(8, 2), (8, 1), (8, 8), (6, 3)]), st.integers(1, 5), st.integers(0, 2**31))
def test_decode_inverts_encode_to_the_bit(sizes: tuple[int, int], image_channels: int, seed: int) -> None:
    tokenizer = PatchTokenizer(*sizes, image_channels=image_channels)
    pixels = torch.rand(2, image_channels, sizes[0], sizes[0], generator=torch.Generator().manual_seed(seed)) * 2 - 1
    pixels[0, 0, 0, 0] = -0.0
    back = tokenizer.decode(tokenizer.encode(pixels))
    assert back.view(torch.int32).equal(pixels.view(torch.int32))  # the sign of zero too


def test_digits_and_photographs_survive() -> None:
    for images, tokenizer in (
        (digits(), PatchTokenizer(8, 2, image_channels=1)),
        (photographs(32), PatchTokenizer(32, 4)),
    ):
        assert tokenizer.decode(tokenizer.encode(images)).equal(images)


def test_a_token_is_a_patch_in_raster_order() -> None:
    tokenizer = PatchTokenizer(8, 2, image_channels=3)
    pixels = torch.zeros(1, 3, 8, 8)
    pixels[:, :, 2:4, 6:8] = torch.arange(12.0).view(3, 2, 2) / 12  # second row of patches, last column
    tokens = tokenizer.encode(pixels)
    assert tokens[0, 1 * 4 + 3].equal(torch.arange(12.0) / 12)  # channels, then rows, then columns
    assert tokens.count_nonzero() == 11


def test_low_precision_pixels_and_arithmetic_change_nothing() -> None:
    tokenizer = PatchTokenizer(8, 2, image_channels=1)
    images = digits()[:4].bfloat16()  # 17 grey levels: exact in bf16
    assert tokenizer.encode(images, dtype=torch.bfloat16).equal(tokenizer.encode(images.float()))


@pytest.mark.parametrize(("preset", "image_channels"), [("mmar-tiny", 3), ("mmar-digits", 1)])
def test_the_presets_are_made_for_it(preset: str, image_channels: int) -> None:
    PatchTokenizer(8, 2, image_channels=image_channels).check_config(MMARConfig.preset(preset))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 3), "^patch_size must divide image_size, got 3 and 8"),
        ((8, 0), "^patch_size must be at least 1, got 0"),
        ((0, 2), "^image_size must be at least 1, got 0"),
    ],
)
def test_impossible_sizes_are_refused(arguments: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchTokenizer(*arguments)
