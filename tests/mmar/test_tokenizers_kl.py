"""AutoencoderKL as a tokenizer: the posterior, the scale of a folder, the published size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from tiny_tokenizers import BLOCKS, kl, photographs, seeded
from torch import Tensor

from mmar.config import ImageTokensConfig
from mmar.tokenizers import KL16_CONFIG, MAR_KL16_STD, ImageTokenizer, KLTokenizer, LatentScale, load_image_tokenizer


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return photographs(32)


@pytest.fixture(scope="module")
def tokenizer() -> KLTokenizer:
    return kl()


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moments(tokenizer: KLTokenizer, pixels: Tensor) -> Tensor:
    """Mean and log-variance of the posterior ``(B, 2, N, C)``, straight from the network."""
    h = tokenizer.network.quant_conv(tokenizer.network.encoder(pixels))  # (B, 2 C, g, g)
    return h.unflatten(1, (2, tokenizer.channels)).flatten(3).transpose(2, 3)


def test_without_sampling_tokens_are_the_mode_in_raster_order(tokenizer: KLTokenizer, photos: Tensor) -> None:
    z = tokenizer.network.encode(photos).latent_dist.mode()
    tokens = tokenizer.encode(photos)
    assert all(tokens[:, 8 * row + column].equal(z[:, :, row, column]) for row in range(8) for column in range(8))


def test_decoding_is_the_networks(tokenizer: KLTokenizer, photos: Tensor) -> None:
    z = tokenizer.network.encode(photos).latent_dist.mode().contiguous()  # another layout sums in another order
    with torch.no_grad():
        assert tokenizer.decode(tokenizer.encode(photos)).equal(tokenizer.network.decode(z).sample)


def test_nothing_is_clipped(tokenizer: KLTokenizer) -> None:
    assert tokenizer.decode(100 * torch.randn(2, 64, 4, generator=draws(0))).abs().max() > 1


def test_samples_have_the_moments_of_the_posterior(tokenizer: KLTokenizer, photos: Tensor) -> None:
    mean, log_variance = moments(tokenizer, photos[:1]).unbind(1)
    sampled = tokenizer.encode(photos[:1].expand(400, -1, -1, -1), sample=True, generator=draws(1))
    standard = (sampled - mean) / (log_variance / 2).exp()  # (400, N, C)
    numbers = standard.numel()
    assert abs(standard.mean()) < 5 / math.sqrt(numbers)
    assert abs(standard.std() - 1) < 5 / math.sqrt(2 * numbers)
    assert (sampled.std(0) > 0).all()
    assert tokenizer.encode(photos[:1], sample=False).equal(mean)


def test_a_generator_decides_the_draw(tokenizer: KLTokenizer, photos: Tensor) -> None:
    first, again, other = (tokenizer.encode(photos, sample=True, generator=draws(seed)) for seed in (2, 2, 3))
    assert first.equal(again)
    assert not first.equal(other)
    state = torch.get_rng_state()
    tokenizer.encode(photos, sample=True, generator=draws(4))
    assert torch.get_rng_state().equal(state)  # the global source is left alone


def test_a_generator_for_each_image_makes_draws_independent_of_the_batch(tokenizer: KLTokenizer, photos: Tensor) -> None:
    together = tokenizer.encode(photos, sample=True, generator=[draws(seed) for seed in range(4)])
    for i in range(4):
        alone = tokenizer.encode(photos[i : i + 1], sample=True, generator=[draws(i)])
        assert torch.allclose(together[i : i + 1], alone, rtol=0, atol=1e-5)
    whole = tokenizer.encode(photos, sample=True, generator=draws(0))
    alone = tokenizer.encode(photos[1:2], sample=True, generator=draws(0))
    assert not torch.allclose(whole[1:2], alone, rtol=0, atol=1e-2)  # the control: one source for the batch


def test_a_draw_in_bf16_keeps_a_float32_draw(tokenizer: KLTokenizer, photos: Tensor) -> None:
    tokens = tokenizer.encode(photos, sample=True, generator=draws(5), dtype=torch.bfloat16)
    assert (tokens != tokens.bfloat16().float()).double().mean() > 0.9  # not on the grid of bf16
    exact = tokenizer.encode(photos, sample=True, generator=draws(5))
    assert (tokens - exact).norm() / exact.norm() < 0.05  # the same draw


# -- the scale --------------------------------------------------------------------------------------------------------


def test_a_scaling_factor_in_a_folder_is_used(tmp_path: Path, photos: Tensor) -> None:
    model = seeded(lambda: AutoencoderKL(**BLOCKS, latent_channels=4, scaling_factor=0.18215, shift_factor=0.1))
    model.save_pretrained(tmp_path)
    for loaded in (KLTokenizer.from_pretrained(tmp_path), load_image_tokenizer(tmp_path)):
        assert isinstance(loaded, KLTokenizer)
        # As diffusers' pipelines: (z - shift) * factor. The division by 1 / factor costs two roundings more.
        wanted = (model.encode(photos).latent_dist.mode() - 0.1) * 0.18215
        assert torch.allclose(loaded.encode(photos), wanted.flatten(2).mT, rtol=4 * 2.0**-24, atol=1e-7)
    renamed = KLTokenizer.from_pretrained(tmp_path, name="mine", image_size=64, scale=LatentScale(3.0))
    assert (renamed.name, renamed.image_size, renamed.grid, renamed.latent_std) == ("mine", 64, 16, 3.0)
    renamed.save_pretrained(tmp_path)
    again = KLTokenizer.from_pretrained(tmp_path, image_size=32)
    assert (again.name, again.image_size, again.latent_std) == ("mine", 32, 3.0)
    assert AutoencoderKL.from_pretrained(tmp_path).config["latent_channels"] == 4  # still a folder of diffusers


def test_a_scaling_factor_that_nobody_chose_is_not_used() -> None:
    """diffusers' default, 0.18215, is that of one published model."""
    model = AutoencoderKL(**BLOCKS, latent_channels=4)
    assert model.config["scaling_factor"] == 0.18215
    assert KLTokenizer(model).latent_std == 1
    assert KLTokenizer(AutoencoderKL(**BLOCKS, latent_channels=4, scaling_factor=0.18215)).latent_std == 1 / 0.18215


def test_half_precision_files_are_read_in_float32(tmp_path: Path) -> None:
    kl().network.half().save_pretrained(tmp_path)
    assert {p.dtype for p in KLTokenizer.from_pretrained(tmp_path).parameters()} == {torch.float32}


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    """diffusers warns, and goes on with random ones."""
    kl().network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"layers_per_block": 2}, {"use_quant_conv": False}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=r"^weights in .* must be exactly those of its config.json, got "):
            KLTokenizer.from_pretrained(tmp_path)


# -- sizes ------------------------------------------------------------------------------------------------------------


def test_kl_16_is_the_published_size() -> None:
    with torch.device("meta"):
        model = AutoencoderKL(**KL16_CONFIG)
        assert sum(p.numel() for p in model.parameters()) == 69_610_963
        # LDM's kl-f16 (ch 128, mult 1 1 2 2 4): attention at 16 x 16 only, beside that in the middle.
        assert [len(getattr(b, "attentions", ())) for b in model.encoder.down_blocks] == [0, 0, 0, 0, 2]
        assert [len(getattr(b, "attentions", ())) for b in model.decoder.up_blocks] == [3, 0, 0, 0, 0]
        assert model.encode(torch.zeros(1, 3, 256, 256)).latent_dist.mode().shape == (1, 16, 16, 16)
    tokenizer = KLTokenizer(model, scale=LatentScale(MAR_KL16_STD))
    assert tokenizer.image_tokens_config().to_dict() == ImageTokensConfig().to_dict()  # the paper's, and the default
    assert pytest.approx(4.3011, abs=1e-4) == MAR_KL16_STD


def test_any_multiple_of_the_downsampling_will_do(photos: Tensor) -> None:
    assert kl(image_size=64).encode(photographs(64)).shape == (4, 256, 4)
    for size in (30, 0):
        with pytest.raises(ValueError, match=f"^image_size must be a multiple of 4, the network's downsampling, got {size}"):
            kl(image_size=size)


def test_the_base_class_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ImageTokenizer(None, name="x", image_size=8, grid=2, channels=4)  # type: ignore[abstract]
