"""Training of small autoencoders: they get better, a codebook is used, and what cannot work is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat

import pytest
import torch
from diffusers.models import AutoencoderKL, VQModel
from torch import Tensor

from mmar.data.scenes import SceneDataset
from mmar.processing import MMARImageProcessor
from mmar.tokenizers import KLTokenizer, VQTokenizer
from mmar.tokenizers.fit import FitSettings, fit_kl, fit_vq

SHARED = {
    "sample_size": 32,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "mid_block_add_attention": False,
}
SETTINGS = FitSettings(steps=60, lr=1e-2, revive_every=4)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    scenes = SceneDataset("train", 2, caption_only=True)
    return MMARImageProcessor(32, 3)([scenes[i].image for i in range(2)])["pixel_values"]


def kl(seed: int = 0) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(**SHARED)


def vq() -> VQModel:
    torch.manual_seed(0)
    return VQModel(**SHARED, num_vq_embeddings=64, vq_embed_dim=4)


def error(tokenizer: KLTokenizer | VQTokenizer, pixels: Tensor) -> float:
    return float((tokenizer.decode(tokenizer.encode(pixels)) - pixels).square().mean())


def test_a_kl_autoencoder_learns_its_pictures(pixels: Tensor) -> None:
    model, told = kl(), []
    before = error(KLTokenizer(kl()), pixels)
    fit_kl(model, repeat(pixels), SETTINGS, lambda step, terms: told.append((step, terms)))
    assert error(KLTokenizer(model), pixels) < 0.5 * before
    assert [step for step, _ in told] == list(range(1, 61))
    assert set(told[0][1]) == {"squared", "absolute", "kl"}
    assert not model.training


def test_the_divergence_shrinks_the_posterior_means_as_its_weight_grows(pixels: Tensor) -> None:
    sizes = []
    for weight in (0.0, 1.0):
        model = kl()
        fit_kl(model, repeat(pixels), replace(SETTINGS, kl_weight=weight))
        sizes.append(float(KLTokenizer(model).encode(pixels).square().mean()))
    assert sizes[1] < sizes[0]


def test_the_same_seed_gives_the_same_weights(pixels: Tensor) -> None:
    short = replace(SETTINGS, steps=3)
    runs = []
    for seed in (0, 0, 1):
        model = kl()
        fit_kl(model, repeat(pixels), replace(short, seed=seed))
        runs.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_a_codebook_is_learned_and_used(pixels: Tensor) -> None:
    """As it is initialised, within 1/64 of zero, all tokens would share few entries."""
    model, fresh = vq(), VQTokenizer(vq())
    fit_vq(model, repeat(pixels), SETTINGS)
    trained = VQTokenizer(model)
    used = [len(t.encode_codes(pixels).unique()) for t in (fresh, trained)]
    assert used[1] > max(8, 2 * used[0])
    assert error(trained, pixels) < 0.5 * error(fresh, pixels)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    def broken() -> Iterator[Tensor]:
        yield torch.full((1, 3, 32, 32), torch.nan)

    with pytest.raises(FloatingPointError, match=r"finite, got nan at step 0; lower lr"):
        fit_kl(kl(), broken(), SETTINGS)


@pytest.mark.parametrize(("option", "value"), [("steps", 0), ("lr", 0.0), ("free_steps", 1.0)])
def test_settings_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option} must"):
        FitSettings(**{option: value})
