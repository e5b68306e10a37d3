"""What the language model reads in place of image tokens, against a slow definition: one image and one head at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_model import BLOCK, COUNT, some_known, some_tokens, tiny_model
from torch import Tensor, nn
from torch.nn import functional

from mmar.config import EmbeddingViTConfig
from mmar.embedding_vit import EmbeddingViT
from mmar.image_input import KnownTokensInput
from mmar.projectors import Projector

TOLERANCE = 2e-5
"""Of numbers of order 1 through two blocks and three layers; derived in test_model.py."""


def slow_vit(vit: EmbeddingViT, tokens: Tensor, places: list[int]) -> Tensor:
    """Features of the tokens of one image that stand at ``places``."""
    h = tokens @ vit.token_in.weight.T + vit.token_in.bias + torch.stack([vit.position.weight[place] for place in places])
    for block in vit.blocks:
        x = functional.layer_norm(h, h.shape[-1:], block.attention_norm.weight, block.attention_norm.bias, 1e-6)
        heads, width = block.attention.heads, h.shape[-1] // block.attention.heads
        q, k, v = (x @ block.attention.qkv.weight.T + block.attention.qkv.bias).split(h.shape[-1], dim=-1)
        seen = torch.zeros_like(h)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = q[:, part] @ k[:, part].T / math.sqrt(width)
            if vit.causal:
                scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
            seen[:, part] = scores.softmax(-1) @ v[:, part]
        h = h + seen @ block.attention.out.weight.T + block.attention.out.bias
        x = functional.layer_norm(h, h.shape[-1:], block.mlp_norm.weight, block.mlp_norm.bias, 1e-6)
        up = functional.gelu(x @ block.up.weight.T + block.up.bias)
        h = h + up @ block.down.weight.T + block.down.bias
    return functional.layer_norm(h, h.shape[-1:], vit.norm.weight, vit.norm.bias, 1e-6)


def slow_projector(projector: Projector, x: Tensor, blocks: int) -> Tensor:
    """A Linear, then blocks of (activation, Linear)."""
    assert len(projector.blocks) == blocks
    h = x @ projector.first.weight.T + projector.first.bias
    for layer in projector.blocks:
        h = functional.gelu(h) @ layer.weight.T + layer.bias
    return h


def different_norms(module: nn.Module) -> None:
    """Norms start as the identity, and could be left out unseen."""
    g = torch.Generator().manual_seed(4)
    for norm in (m for m in module.modules() if isinstance(m, nn.LayerNorm)):
        norm.weight.data += 0.3 * torch.randn(norm.weight.shape, generator=g)
        norm.bias.data += 0.3 * torch.randn(norm.bias.shape, generator=g)


def entry(name: str, **options: Any) -> Any:
    """The input of a model, all of whose parameters matter."""
    model = tiny_model(name, **options)
    different_norms(model.image_model.input)
    return model.image_model.input


def known_numbers() -> Tensor:
    """Four images of which no, one, all and seven tokens are known."""
    known = some_known(4, masked=COUNT - 7)
    known[0], known[1], known[2] = False, torch.arange(COUNT) == 5, True
    return known


@torch.no_grad()
@pytest.mark.parametrize("name", ["mmar", "vq", "vq-projector", "raster", "chameleon"])
def test_known_tokens_go_through_the_vit_and_mask_tokens_do_not(name: str) -> None:
    model = tiny_model(name)
    image_input: KnownTokensInput = model.image_model.input
    different_norms(image_input)
    tokens = some_tokens(model, 4)
    known = known_numbers() if model.config.is_masked else torch.ones(4, COUNT, dtype=torch.bool)
    found = image_input(tokens, known)
    for i in range(4):
        places = known[i].nonzero()[:, 0].tolist()
        h = image_input.mask_token.weight.expand(COUNT, -1).clone()
        if places:
            values = tokens[i, places] if image_input.codebook is None else image_input.codebook.weight[tokens[i, places]]
            h[places] = slow_vit(image_input.embedding_vit, values, places)
        wanted = slow_projector(image_input.projector, h + image_input.position.weight, blocks=2)
        assert (found[i] - wanted).abs().max() <= TOLERANCE * max(1.0, float(wanted.abs().max()))
    assert image_input.embedding_vit.causal is model.config.is_causal
    assert len(image_input.embedding_vit.blocks) == (0 if name == "vq-projector" else 2)


@torch.no_grad()
@pytest.mark.parametrize("name", ["transfusion", "transfusion-vit"])
def test_noisy_tokens_carry_position_and_time(name: str) -> None:
    image_input = entry(name)
    x_t, steps = torch.randn(3, COUNT, 12, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 999, 20])
    found = image_input(x_t, steps)
    for i in range(3):
        h = x_t[i] if name == "transfusion" else slow_vit(image_input.embedding_vit, x_t[i], list(range(COUNT)))
        linear = h @ image_input.projector.weight.T + image_input.projector.bias
        wanted = linear + image_input.position.weight + image_input.time.weight[steps[i]]
        assert (found[i] - wanted).abs().max() <= TOLERANCE * float(wanted.abs().max())
    assert (image_input.embedding_vit is None) is (name == "transfusion")


@torch.no_grad()
def test_features_of_an_encoder_carry_their_position() -> None:
    image_input = entry("understanding-only")
    tokens = torch.randn(2, COUNT, 12, generator=torch.Generator().manual_seed(1))
    wanted = slow_projector(image_input.projector, tokens + image_input.position.weight, blocks=2)
    assert (image_input(tokens) - wanted).abs().max() <= TOLERANCE * float(wanted.abs().max())


@pytest.mark.parametrize("name", ["mmar", "vq"])
def test_what_stands_at_unknown_places_has_no_influence(name: str) -> None:
    """Not even where it is no number: NaN * 0 would be NaN in a gradient, and no code of a codebook is -1."""
    model, known = tiny_model(name), some_known(3)
    tokens = some_tokens(model, 3)
    nothing = torch.full_like(tokens, -1) if model.config.has_codes else torch.full_like(tokens, torch.nan)
    spoilt = torch.where(known if model.config.has_codes else known[..., None], tokens, nothing)
    found = model.image_model.input(spoilt, known)
    assert torch.equal(found, model.image_model.input(tokens, known))
    found.sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.image_model.input.parameters())


@pytest.mark.parametrize("name", ["mmar", "raster"])
def test_a_recomputed_vit_is_the_same_vit(name: str) -> None:
    model = tiny_model(name).train()
    vit, tokens = model.image_model.input.embedding_vit, some_tokens(model, 2)
    known = some_known(2) if name == "mmar" else torch.ones(2, COUNT, dtype=torch.bool)
    plain = vit(tokens, known)
    vit.gradient_checkpointing = True
    recomputed = vit(tokens, known)
    assert torch.equal(plain, recomputed)
    for a, b in zip(*(torch.autograd.grad(h.square().sum(), list(vit.parameters())) for h in (plain, recomputed)), strict=True):
        assert torch.equal(a, b)


def test_gradients_reach_every_part_and_no_unknown_token() -> None:
    image_input, known = entry("mmar"), some_known(2)
    tokens = some_tokens(tiny_model(), 2).requires_grad_()
    image_input(tokens, known).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in image_input.parameters())
    assert tokens.grad is not None
    assert (tokens.grad.abs().sum(-1) > 0).equal(known)


def test_bf16_weights_and_autocast_give_what_float32_gives_rounded() -> None:
    """20 layers of 2^-8, as in test_model.py; the features come out in the dtype of their computation."""
    image_input, tokens, known = entry("mmar"), some_tokens(tiny_model(), 2), some_known(2)
    with torch.no_grad():
        wanted = image_input(tokens, known)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = image_input(tokens, known)
        low = image_input.to(torch.bfloat16)(tokens, known)
    for found in (autocast, low):
        assert found.dtype is torch.bfloat16
        assert (found.float() - wanted).abs().max() <= 0.08 * float(wanted.abs().max())
        assert not torch.equal(found.float(), wanted)


@torch.no_grad()
@pytest.mark.parametrize("channels", [4, 256])
def test_a_fresh_vit_adds_features_and_positions_of_one_scale(channels: int) -> None:
    """Tokens of unit scale to features of unit scale, whatever the number of channels."""
    torch.manual_seed(0)
    vit = EmbeddingViT(EmbeddingViTConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=4), channels, 100)
    features = vit.token_in(torch.randn(50, 100, channels))
    # Of 64 columns, each the sum over `channels` weights: a relative error of the mean variance of sqrt(2 / (64 channels)).
    assert float(features.std()) == pytest.approx(1.0, abs=5 * math.sqrt(2 / (64 * channels)))
    assert float(vit.position.weight.std()) == pytest.approx(1.0, abs=5 / math.sqrt(2 * 6400))


# -- the codebook ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["vq", "chameleon"])
def test_codes_enter_as_the_vectors_of_the_image_tokenizer(name: str) -> None:
    model, entries = tiny_model(name), torch.randn(32, 8, generator=torch.Generator().manual_seed(7))
    codes, seen = some_tokens(model, 2), []
    model.image_model.input.embedding_vit.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    known = torch.ones(2, COUNT, dtype=torch.bool)
    model(torch.tensor([BLOCK] * 2), image_tokens=codes, known=known)
    model.load_codebook(entries)
    model(torch.tensor([BLOCK] * 2), image_tokens=codes, known=known)
    assert torch.equal(seen[1], entries[codes])
    assert not torch.equal(seen[0], seen[1])  # random before
    assert not model.image_model.input.codebook.weight.requires_grad
    entries.zero_()
    assert model.image_model.input.codebook.weight.any()  # its own copy


def test_a_codebook_that_does_not_fit_is_refused() -> None:
    for entries in (torch.zeros(31, 8), torch.zeros(32, 12), torch.full((32, 8), torch.nan)):
        with pytest.raises(ValueError, match=r"entries must be finite and of shape \(32, 8\)"):
            tiny_model("vq").load_codebook(entries)
    for name in ("mmar", "transfusion", "understanding-only"):
        with pytest.raises(ValueError, match="image_objective must be masked_codes or causal_codes"):
            tiny_model(name).load_codebook(torch.zeros(32, 8))


def test_blocks_may_start_as_the_identity() -> None:
    config = EmbeddingViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, zero_init_residual=True)
    vit, tokens, known = EmbeddingViT(config, 3, 4), torch.randn(2, 4, 3), torch.ones(2, 4, dtype=torch.bool)
    plain = functional.layer_norm(vit.token_in(tokens) + vit.position.weight, (16,), eps=1e-6)
    assert vit(tokens, known).allclose(plain, atol=1e-6)
    vit(tokens, known).square().sum().backward()
    assert all(block.down.weight.grad.any() and block.attention.out.weight.grad.any() for block in vit.blocks)


STEM = EmbeddingViTConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, stem_layers=2, stem_width=8, stem_patch_size=2
)


def test_a_stem_sees_latents_where_the_packed_tokenizer_put_them() -> None:
    """Moving an image by a whole latent moves what the convolutions see, across the borders of tokens too."""
    latents = torch.zeros(1, 8, 8, 3)
    latents[0, 3:5, 2:4] = torch.randn(2, 2, 3)
    seen = []
    stem = EmbeddingViT(STEM, 12, 16).stem
    assert stem is not None
    stem.out.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for shift in (0, 1):
        moved = latents.roll(shift, dims=2)
        tokens = moved.view(1, 4, 2, 4, 2, 3).transpose(2, 3).reshape(1, 16, 12)
        stem(tokens, torch.ones(1, 16, dtype=torch.bool))
    inside = (slice(None), slice(None), slice(2, 6))  # away from borders, where padding is seen
    assert seen[1][inside][..., 3:6].allclose(seen[0][inside][..., 2:5], atol=1e-6)
    assert not seen[1][inside][..., 3:6].allclose(seen[0][inside][..., 3:6], atol=1e-2)


def test_what_stands_at_unknown_places_has_no_influence_on_a_stem() -> None:
    vit, tokens, known = EmbeddingViT(STEM, 12, 16), torch.randn(2, 16, 12), torch.rand(2, 16) < 0.5
    other = torch.where(known[..., None], tokens, torch.full_like(tokens, torch.nan))
    assert torch.equal(vit(tokens, known)[known], vit(other, known)[known])


def test_a_stem_that_does_not_fit_is_refused() -> None:
    fits = {"stem_layers": 1, "stem_patch_size": 2}
    assert tiny_model("mmar", embedding_vit_config=fits).image_model.input.embedding_vit.stem is not None
    with pytest.raises(ValueError, match=r"stem_patch_size must be .* got 3"):
        tiny_model("mmar", embedding_vit_config={"stem_layers": 1, "stem_patch_size": 3})
    with pytest.raises(ValueError, match=r"stem_layers must be 0 for 'causal_diffusion', got 1"):
        tiny_model("raster", embedding_vit_config={"stem_layers": 1})
    with pytest.raises(ValueError, match=r"stem_layers must be at least 0, got -1"):
        EmbeddingViTConfig(stem_layers=-1)
