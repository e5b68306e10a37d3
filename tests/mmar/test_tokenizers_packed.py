"""Several latents to one token, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_tokenizers import encoder_only, kl, packed, photographs, vq

from mmar.tokenizers import LatentScale, PackedTokenizer, load_image_tokenizer

PIXELS = photographs(32)


def test_a_token_is_a_square_of_latents_in_raster_order() -> None:
    inner = kl(scale=LatentScale(3.0, 0.5))
    tokenizer = PackedTokenizer(inner, 2)
    grid, channels = inner.grid, inner.channels
    assert (tokenizer.name, tokenizer.grid, tokenizer.channels) == (inner.name, grid // 2, 4 * channels)
    z, tokens = inner.encode(PIXELS), tokenizer.encode(PIXELS)
    for row in range(grid):
        for column in range(grid):
            token = tokens[:, row // 2 * (grid // 2) + column // 2]
            place = (row % 2 * 2 + column % 2) * channels
            assert token[:, place : place + channels].equal(z[:, row * grid + column])


def test_nothing_is_lost() -> None:
    inner = kl(scale=LatentScale(3.0, 0.5))
    tokenizer = PackedTokenizer(inner, 2)
    assert torch.allclose(tokenizer.decode(tokenizer.encode(PIXELS)), inner.decode(inner.encode(PIXELS)), atol=1e-6)


def test_the_posterior_is_that_of_the_latents() -> None:
    inner = kl(scale=LatentScale(3.0, 0.5))
    tokenizer = PackedTokenizer(inner, 2, scale=LatentScale(0.5, 1.0))
    mean, std = tokenizer.encode_posterior(PIXELS)
    inner_mean, inner_std = inner.encode_posterior(PIXELS)
    assert std is not None
    assert inner_std is not None
    assert mean.equal(tokenizer.encode(PIXELS))
    assert torch.allclose(mean.flatten().sort().values, (2 * (inner_mean - 1)).flatten().sort().values, atol=1e-5)
    assert torch.allclose(std.flatten().sort().values, (2 * inner_std).flatten().sort().values, atol=1e-6)


def test_a_draw_is_that_of_the_latents() -> None:
    seed = torch.Generator().manual_seed
    drawn = [one.encode(PIXELS, sample=True, generator=seed(0)) for one in (packed(), kl())]
    assert drawn[0].flatten().sort().values.equal(drawn[1].flatten().sort().values)


def test_it_is_found_again_with_both_scales(tmp_path: Path) -> None:
    tokenizer = PackedTokenizer(kl(scale=LatentScale(3.0)), 2, name="mine", scale=LatentScale(2.0))
    tokenizer.save_pretrained(tmp_path)
    loaded = load_image_tokenizer(tmp_path)
    assert loaded.identity == tokenizer.identity != packed().identity
    assert loaded.encode(PIXELS).equal(tokenizer.encode(PIXELS))
    assert PackedTokenizer(kl(), 4).identity != packed().identity


def test_an_encoder_alone_stays_one() -> None:
    tokenizer = PackedTokenizer(encoder_only(), 2)
    with pytest.raises(NotImplementedError, match="only"):
        tokenizer.decode(tokenizer.encode(PIXELS))


@pytest.mark.parametrize("patch_size", [0, 3])
def test_squares_must_fill_the_grid(patch_size: int) -> None:
    with pytest.raises(ValueError, match=f"patch_size must divide the grid of .*, got {patch_size}"):
        PackedTokenizer(kl(), patch_size)


def test_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="continuous"):
        PackedTokenizer(vq(), 2)
