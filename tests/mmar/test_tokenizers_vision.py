"""Frozen encoders for understanding: vision towers of transformers, and another tokenizer's encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_tokenizers import VISION, encoder_only, kl, photographs, seeded, vision, vq
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from mmar.tokenizers import EncoderOnly, LatentScale, VisionEncoder, load_image_tokenizer

HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}
TOWERS: dict[str, tuple[Callable[[], PreTrainedModel], int]] = {
    "clip": (lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)), 1),
    "siglip": (lambda: SiglipVisionModel(SiglipVisionConfig(**VISION)), 0),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**VISION)), 1),
    "dinov2 with registers": (lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VISION, num_register_tokens=4)), 5),
    "vit": (lambda: ViTModel(ViTConfig(**VISION)), 1),
}
"""And how many tokens that are no patches come first."""


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return photographs(32)


def block_outputs(model: PreTrainedModel, pixels: Tensor) -> list[Tensor]:
    """What each transformer block returns, caught by hooks."""
    found: list[Tensor] = []
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    assert len(blocks) == VISION["num_hidden_layers"]
    hooks = [b.register_forward_hook(lambda m, i, o: found.append(o[0] if isinstance(o, tuple) else o)) for b in blocks]
    with torch.no_grad():
        model(pixel_values=pixels)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("layer", [-1, -2, 2])
def test_tokens_are_the_patches_of_a_layer(name: str, layer: int, photos: Tensor) -> None:
    make, prefix = TOWERS[name]
    model = seeded(make)
    tokens = VisionEncoder(model, **HALF, layer=layer).encode(photos)
    assert tokens.shape == (4, 16, 16)
    states = [None, *block_outputs(model, photos)]  # the first hidden state is the embedding
    assert states[layer].shape[1] == 16 + prefix
    # Mean and std of a half: (x / 2 + 1/2 - 1/2) * 2 is x but for a rounding of 2^-24, and four layers.
    assert torch.allclose(tokens, states[layer][:, prefix:], rtol=0, atol=1e-5)
    if prefix:
        assert not torch.allclose(tokens, states[layer][:, :16], rtol=0, atol=1e-2)  # the control


def test_pixels_are_normalised_as_the_tower_was_trained(photos: Tensor) -> None:
    mean, std = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
    shape = (1, 3, 1, 1)
    wanted = (((photos + 1) * 127.5).round() / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    encoder = vision(layer=-1)
    states = block_outputs(encoder.network, wanted)
    assert torch.allclose(encoder.encode(photos), states[-1][:, 1:], rtol=0, atol=1e-5)
    assert not torch.allclose(encoder.encode(photos), block_outputs(encoder.network, photos)[-1][:, 1:], rtol=0, atol=1e-2)


def with_preprocessor(folder: Path) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "size": 32}))
    return folder


@pytest.mark.parametrize("name", TOWERS)
def test_folders_of_transformers_load(name: str, photos: Tensor, tmp_path: Path) -> None:
    model = seeded(TOWERS[name][0])
    model.save_pretrained(with_preprocessor(tmp_path))
    loaded = VisionEncoder.from_pretrained(tmp_path)
    wanted = VisionEncoder(model, image_mean=[0.1] * 3, image_std=[0.2] * 3)
    assert loaded.layer == -2
    assert loaded.encode(photos).equal(wanted.encode(photos))
    again = VisionEncoder.from_pretrained(tmp_path, layer=1, name="mine", scale=LatentScale(2.0), **HALF)
    assert (again.layer, again.name, again.latent_std) == (1, "mine", 2.0)
    again.save_pretrained(tmp_path / "saved")
    assert load_image_tokenizer(tmp_path / "saved").identity == again.identity
    other = VisionEncoder.from_pretrained(tmp_path / "saved", layer=-1)
    assert (other.layer, other.name, other.latent_std) == (-1, "mine", 2.0)


@pytest.mark.parametrize(
    ("config", "model_class"),
    [
        (CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8), CLIPModel),
        (SiglipConfig(text_config=TEXT, vision_config=VISION), SiglipModel),
    ],
)
def test_the_tower_of_a_two_tower_model_is_taken(
    config: CLIPConfig, model_class: type[PreTrainedModel], photos: Tensor, tmp_path: Path
) -> None:
    model = seeded(lambda: model_class(config))
    model.save_pretrained(with_preprocessor(tmp_path))
    loaded = VisionEncoder.from_pretrained(tmp_path)
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in model.parameters())
    alone = VisionEncoder(model.vision_model, image_mean=[0.1] * 3, image_std=[0.2] * 3)
    assert loaded.encode(photos).equal(alone.encode(photos))
    loaded.save_pretrained(tmp_path / "saved")
    assert load_image_tokenizer(tmp_path / "saved").identity == loaded.identity


def test_a_pooler_that_was_never_saved_is_left_out(photos: Tensor, tmp_path: Path) -> None:
    seeded(lambda: ViTModel(ViTConfig(**VISION), add_pooling_layer=False)).save_pretrained(tmp_path)
    first, second = (VisionEncoder.from_pretrained(tmp_path, **HALF) for _ in range(2))
    assert first.identity == second.identity  # no random numbers in it
    assert first.encode(photos).equal(second.encode(photos))


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    """transformers warns, and goes on with random ones."""
    vision().network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(ValueError, match=r"^weights in .* must be those of its config.json, but are missing: \['enc"):
        VisionEncoder.from_pretrained(tmp_path, **HALF)


def test_the_moments_of_the_pixels_must_be_known(tmp_path: Path) -> None:
    vision().network.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^image_mean and image_std must be given where there is no preprocessor_config.json"):
        VisionEncoder.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^folder must be an existing folder, got 'openai/clip'"):
        VisionEncoder.from_pretrained("openai/clip")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": -5}, r"^layer must lie in \[-4, 4\) for 3 layers, got -5"),
        ({"layer": 4}, r"^layer must lie in \[-4, 4\) for 3 layers, got 4"),
        ({"image_mean": [0.5]}, r"^image_mean and image_std must have one number for each of 3 channels"),
        ({"image_std": [0.5, 0.0, 0.5]}, r"^image_std must be positive, got \[0.5, 0.0, 0.5\]"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisionEncoder(TOWERS["clip"][0](), **{**HALF, **options})


def test_models_that_are_no_vision_transformers_are_refused() -> None:
    text = CLIPTextModel(CLIPConfig(text_config=TEXT, vision_config=VISION).text_config)
    for model in (text, ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))):
        with pytest.raises(ValueError, match=r"^model must be a vision transformer on square images, got "):
            VisionEncoder(model, **HALF)


# -- another tokenizer's encoder --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [kl, vq])
def test_it_sees_what_the_other_sees(make: Callable, photos: Tensor, tmp_path: Path) -> None:
    inner = make(scale=LatentScale(3.0, 0.5))
    encoder = EncoderOnly(inner)
    assert encoder.encode(photos).equal(inner.encode(photos))
    assert encoder.encode(photos, dtype=torch.bfloat16).equal(inner.encode(photos, dtype=torch.bfloat16))
    assert encoder.codebook_size is None
    doubled = encoder.with_scale(LatentScale(0.5))
    assert torch.allclose(doubled.encode(photos), 2 * inner.encode(photos), rtol=1e-6, atol=0)
    doubled.save_pretrained(tmp_path)
    loaded = load_image_tokenizer(tmp_path)
    assert loaded.identity == doubled.identity
    assert loaded.encode(photos).equal(doubled.encode(photos))


def test_its_identity_is_that_of_the_inner_scale_too() -> None:
    assert EncoderOnly(kl(scale=LatentScale(3.0))).identity != encoder_only().identity


def test_a_draw_is_passed_on(photos: Tensor) -> None:
    seed = torch.Generator().manual_seed
    drawn = [tokenizer.encode(photos, sample=True, generator=seed(0)) for tokenizer in (encoder_only(), kl())]
    assert drawn[0].equal(drawn[1])
