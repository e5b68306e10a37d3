"""AutoencoderDC as a tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC
from tiny_tokenizers import DC, dc, photographs
from torch import nn

from mmar.tokenizers import DC_F128C512_CONFIG, DCTokenizer, load_image_tokenizer


def test_it_is_the_network_and_deterministic() -> None:
    photos, tokenizer = photographs(32), dc()
    z = tokenizer.network.encode(photos).latent.detach()
    tokens = tokenizer.encode(photos)
    assert tokens.equal(z.flatten(2).mT)
    assert tokenizer.encode(photos, sample=True, generator=torch.Generator().manual_seed(0)).equal(tokens)
    with torch.no_grad():  # some processors choose another convolution where gradients are kept
        assert tokenizer.decode(tokens).equal(tokenizer.network.decode(z.contiguous()).sample)


def test_batch_norms_do_not_learn_from_what_is_decoded() -> None:
    """The published decoders have batch norms: in training mode they would, and would let images see each other."""
    tokenizer = dc()
    assert any(isinstance(module, nn.BatchNorm2d) for module in tokenizer.modules())
    tokens = tokenizer.encode(photographs(32))
    before = tokenizer.decode(tokens)
    tokenizer.train()
    assert tokenizer.decode(tokens).equal(before)
    learning = AutoencoderDC(**DC)
    learning.load_state_dict(tokenizer.network.state_dict())
    with torch.no_grad():  # the control
        assert not torch.allclose(learning.train().decode(tokens.mT.unflatten(2, (8, 8))).sample, before, rtol=0, atol=1e-2)


def test_folders_of_diffusers_load(tmp_path: Path) -> None:
    AutoencoderDC(**DC, scaling_factor=0.41407).save_pretrained(tmp_path)
    loaded = DCTokenizer.from_pretrained(tmp_path, image_size=32)
    assert loaded.latent_std == 1 / 0.41407
    assert load_image_tokenizer(tmp_path).image_size == 512


def test_f128c512_makes_sixteen_tokens_of_a_large_image() -> None:
    with torch.device("meta"):
        model = AutoencoderDC(**DC_F128C512_CONFIG)
        latent = model.encode(torch.zeros(1, 3, 512, 512)).latent
        assert latent.shape == (1, 512, 4, 4)
        assert model.decode(latent).sample.shape == (1, 3, 512, 512)
    described = DCTokenizer(model).image_tokens_config()
    assert (described.tokenizer, described.image_size, described.count, described.channels) == ("dc-ae", 512, 16, 512)


@pytest.mark.parametrize("size", [100, 127])
def test_other_sizes_are_refused(size: int) -> None:
    with torch.device("meta"):
        model = AutoencoderDC(**DC_F128C512_CONFIG)
    with pytest.raises(ValueError, match=f"^image_size must be a multiple of 128, the network's downsampling, got {size}"):
        DCTokenizer(model, image_size=size)
