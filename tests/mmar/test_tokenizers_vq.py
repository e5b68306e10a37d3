"""VQModel as a tokenizer: codes, their vectors, the nearest entry."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import BLOCKS, photographs, vq
from torch import Tensor

from mmar.tokenizers import VQ16_CONFIG, LatentScale, NonFiniteImages, VQTokenizer, load_image_tokenizer
from mmar.tokenizers.vq import nearest


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return photographs(32)


@pytest.fixture(scope="module", params=[LatentScale(), LatentScale(0.3, 0.2), LatentScale((0.3, 1.0, 2.0, 5.0))])
def tokenizer(request: pytest.FixtureRequest) -> VQTokenizer:
    return vq(scale=request.param)


def test_codes_vectors_and_images_go_round_exactly(tokenizer: VQTokenizer, photos: Tensor) -> None:
    codes = tokenizer.encode_codes(photos)
    assert codes.shape == (4, 64)
    assert codes.dtype is torch.long
    assert len(codes.unique()) > 8  # or the test would say little
    tokens = tokenizer.encode(photos)
    assert tokenizer.codebook[codes].equal(tokens)
    assert tokenizer.decode_codes(codes).equal(tokenizer.decode(tokens))
    assert tokenizer.codebook.shape == (64, 4)
    found = nearest(tokenizer.codebook, tokenizer.codebook)
    assert found.equal(torch.arange(64))


def test_codes_are_those_of_the_network(photos: Tensor) -> None:
    """diffusers' own quantiser, and the sum of squares in float64."""
    tokenizer = vq()
    network = tokenizer.network
    with torch.no_grad():
        z = network.encode(photos).latents
        theirs = network.quantize(z)[2][2].view(4, 64)
        decoded = network.decode(network.quantize(z)[0], force_not_quantize=True).sample
    distance = (z.flatten(2).mT.double()[:, :, None] - network.quantize.embedding.weight.double()).square().sum(-1)
    codes = tokenizer.encode_codes(photos)
    assert codes.equal(distance.argmin(-1))
    assert codes.equal(theirs)
    # The straight-through sum z + (q - z) of diffusers rounds; q of order 1 to 10.
    assert torch.allclose(tokenizer.decode_codes(codes), decoded, rtol=0, atol=1e-4)


def test_codes_do_not_depend_on_the_scale(photos: Tensor) -> None:
    assert vq().encode_codes(photos).equal(vq(scale=LatentScale(7.0)).encode_codes(photos))


def test_any_vectors_are_decoded_as_they_are() -> None:
    tokenizer = vq()
    between = tokenizer.codebook[torch.zeros(1, 64).long()] * 0.9
    with torch.no_grad():
        quantised = tokenizer.decode(tokenizer.codebook[nearest(between[0], tokenizer.codebook)][None])
    assert not torch.allclose(tokenizer.decode(between), quantised, rtol=0, atol=1e-3)


@given(st.integers(1, 60), st.integers(0, 2**31), st.floats(0, 1e4))
def test_nearest_is_the_nearest(rows: int, seed: int, offset: float) -> None:
    g = torch.Generator().manual_seed(seed)
    codebook = torch.randn(50, 8, generator=g) + offset
    vectors = codebook[torch.randint(50, (rows,), generator=g)] + 0.01 * torch.randn(rows, 8, generator=g)
    wanted = (vectors.double()[:, None] - codebook.double()).square().sum(-1).argmin(1)
    assert nearest(vectors, codebook).equal(wanted)


def test_the_expanded_square_would_not_do() -> None:
    """The control: what ``torch.cdist`` does by itself from 26 rows on loses all digits far from the origin."""
    g = torch.Generator().manual_seed(0)
    codebook = torch.randn(50, 8, generator=g) + 1e4
    vectors = codebook[torch.arange(50)]
    assert (torch.cdist(vectors, codebook).argmin(1) != torch.arange(50)).any()
    assert nearest(vectors, codebook).equal(torch.arange(50))


def test_many_rows_are_compared_in_parts() -> None:
    g = torch.Generator().manual_seed(1)
    vectors, codebook = torch.randn(9000, 2, generator=g), torch.randn(5, 2, generator=g)
    assert nearest(vectors, codebook).equal(torch.cat([nearest(v, codebook) for v in vectors.split(1000)]))


def test_nan_has_no_nearest_entry(photos: Tensor) -> None:
    broken = vq()
    with torch.no_grad():
        broken.network.quant_conv.bias[0] = math.nan
    for method in (broken.encode_codes, broken.encode):
        with pytest.raises(NonFiniteImages, match=r"^latents must be finite"):
            method(photos)


@pytest.mark.parametrize(
    ("codes", "error", "message"),
    [
        (torch.full((1, 64), 64), ValueError, r"^codes must lie in \[0, 64\), got \[64, 64\]; is a mask token among them"),
        (torch.full((1, 64), -1), ValueError, r"^codes must lie in \[0, 64\), got \[-1, -1\]"),
        (torch.zeros(1, 63).long(), ValueError, r"^codes must have shape \(batch, 64\), got \(1, 63\)"),
        (torch.zeros(64).long(), ValueError, r"got \(64,\)"),
        (torch.zeros(1, 64), TypeError, r"^codes must be int64, got torch.float32; vectors are decoded by decode"),
        (torch.zeros(1, 64).int(), TypeError, r"^codes must be int64, got torch.int32"),
    ],
)
def test_bad_codes_are_refused(codes: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        vq().decode_codes(codes)


def test_empty_batches_of_codes(photos: Tensor) -> None:
    assert vq().encode_codes(photos[:0]).shape == (0, 64)
    assert vq().decode_codes(torch.zeros(0, 64).long()).shape == (0, 3, 32, 32)


def test_folders_of_diffusers_load(tmp_path: Path, photos: Tensor) -> None:
    vq().network.save_pretrained(tmp_path)
    loaded = load_image_tokenizer(tmp_path)
    assert isinstance(loaded, VQTokenizer)
    assert loaded.encode_codes(photos).equal(vq().encode_codes(photos))
    assert loaded.latent_std == 1  # and not 1 / 0.18215, VQModel's default


def test_the_lookup_inside_the_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^lookup_from_codebook of the model must be False, got True"):
        VQTokenizer(VQModel(**BLOCKS, lookup_from_codebook=True))


def test_vq_16_is_the_published_size() -> None:
    with torch.device("meta"):
        model = VQModel(**VQ16_CONFIG)
    assert sum(p.numel() for p in model.parameters()) == 69_593_371
    tokenizer = VQTokenizer(model)
    described = tokenizer.image_tokens_config()
    assert (tokenizer.name, described.count, described.channels, described.codebook_size) == ("vq-16", 256, 8, 16384)
