"""LDM's checkpoints against LDM's architecture, written down once more here: same weights, same images."""

from __future__ import annotations

import os
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from tiny_tokenizers import photographs
from torch import Tensor
from torch.nn import functional

from mmar.tokenizers import KL16_CONFIG, VQ16_CONFIG, KLTokenizer, LatentScale, VQTokenizer, load_image_tokenizer
from mmar.tokenizers.ldm_checkpoint import diffusers_state, ldm_config
from mmar.tokenizers.ldm_file import read_ldm_file

Weights = dict[str, Tensor]
ONE = LatentScale()


@dataclass(frozen=True)
class LDM:
    """The autoencoder of latent diffusion (Rombach et al. 2022, appendix; Esser et al. 2021, table 7), weights by LDM's names.

    Levels are counted from the pixels. A residual block is GroupNorm(32), SiLU, 3 x 3, twice, around a skip that is a 1 x 1
    convolution where the width changes. Attention has one head and 1 x 1 convolutions. Downsampling pads below and to the
    right; upsampling repeats pixels. The decoder has one residual block more at each level.
    """

    width: int = 32
    multiples: tuple[int, ...] = (1, 2, 2)
    blocks: int = 1
    attention: tuple[int, ...] = (2,)
    decoder_attention: tuple[int, ...] = (2,)
    z: int = 4
    moments: int = 2
    codes: int | None = None

    @property
    def widths(self) -> list[int]:
        return [self.width * multiple for multiple in self.multiples]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        last, out = self.widths[-1], self.moments * self.z
        shapes: dict[str, tuple[int, ...]] = {}
        for side, convolutions in (
            ("encoder", [("conv_in", 3, self.width, 3), ("conv_out", last, out, 3)]),
            ("decoder", [("conv_in", self.z, last, 3), ("conv_out", self.width, 3, 3)]),
        ):
            for name, wide, to, kernel in convolutions:
                shapes |= _convolution(f"{side}.{name}", wide, to, kernel)
            shapes |= _norm(f"{side}.norm_out", last if side == "encoder" else self.width)
            shapes |= _attention(f"{side}.mid.attn_1", last)
            for block in ("block_1", "block_2"):
                shapes |= _residual(f"{side}.mid.{block}", last, last)
        for side, level, block, wide, to in self._residuals():
            shapes |= _residual(f"{side}.{level}.block.{block}", wide, to)
            if int(level.split(".")[1]) in (self.attention if side == "encoder" else self.decoder_attention):
                shapes |= _attention(f"{side}.{level}.attn.{block}", to)
        for i, to in enumerate(self.widths):
            if i < len(self.widths) - 1:
                shapes |= _convolution(f"encoder.down.{i}.downsample.conv", to, to, 3)
            if i > 0:
                shapes |= _convolution(f"decoder.up.{i}.upsample.conv", to, to, 3)
        shapes |= _convolution("quant_conv", out, out, 1) | _convolution("post_quant_conv", self.z, self.z, 1)
        return shapes | ({"quantize.embedding.weight": (self.codes, self.z)} if self.codes else {})

    def _residuals(self) -> Iterator[tuple[str, str, int, int, int]]:
        wide = self.width
        for i, to in enumerate(self.widths):
            for block in range(self.blocks):
                yield "encoder", f"down.{i}", block, wide, to
                wide = to
        for i, to in reversed(list(enumerate(self.widths))):
            for block in range(self.blocks + 1):
                yield "decoder", f"up.{i}", block, wide, to
                wide = to

    def weights(self, seed: int = 0) -> Weights:
        g = torch.Generator().manual_seed(seed)
        weights = {}
        for name, shape in self.shapes().items():
            fan_in = max(1, torch.Size(shape[1:]).numel())
            weights[name] = torch.randn(shape, generator=g) / (fan_in**0.5 if len(shape) > 1 else 3)
            if re.search(r"norm\w*\.weight$", name):
                weights[name] += 1
        return weights

    def encode(self, w: Weights, x: Tensor) -> Tensor:
        h = _conv(w, "encoder.conv_in", x)
        for i in range(len(self.widths)):
            for block in range(self.blocks):
                h = _res(w, f"encoder.down.{i}.block.{block}", h)
                h = _attend(w, f"encoder.down.{i}.attn.{block}", h)
            if i < len(self.widths) - 1:
                below = functional.pad(h, (0, 1, 0, 1))
                h = functional.conv2d(below, *_pair(w, f"encoder.down.{i}.downsample.conv"), stride=2)
        h = _ends(w, "encoder", _middle(w, "encoder", h))
        return _conv(w, "quant_conv", h)

    def decode(self, w: Weights, z: Tensor) -> Tensor:
        h = _conv(w, "decoder.conv_in", _conv(w, "post_quant_conv", z))
        h = _middle(w, "decoder", h)
        for i in reversed(range(len(self.widths))):
            for block in range(self.blocks + 1):
                h = _res(w, f"decoder.up.{i}.block.{block}", h)
                h = _attend(w, f"decoder.up.{i}.attn.{block}", h)
            if i > 0:
                h = _conv(w, f"decoder.up.{i}.upsample.conv", h.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return _ends(w, "decoder", h)


def _convolution(name: str, wide: int, to: int, kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (to, wide, kernel, kernel), f"{name}.bias": (to,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _residual(name: str, wide: int, to: int) -> dict[str, tuple[int, ...]]:
    shapes = _norm(f"{name}.norm1", wide) | _convolution(f"{name}.conv1", wide, to, 3)
    shapes |= _norm(f"{name}.norm2", to) | _convolution(f"{name}.conv2", to, to, 3)
    return shapes | (_convolution(f"{name}.nin_shortcut", wide, to, 1) if wide != to else {})


def _attention(name: str, width: int) -> dict[str, tuple[int, ...]]:
    shapes = _norm(f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= _convolution(f"{name}.{part}", width, width, 1)
    return shapes


def _pair(w: Weights, name: str) -> tuple[Tensor, Tensor]:
    return w[f"{name}.weight"], w[f"{name}.bias"]


def _conv(w: Weights, name: str, x: Tensor) -> Tensor:
    weight, bias = _pair(w, name)
    return functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def _group(w: Weights, name: str, x: Tensor) -> Tensor:
    return functional.group_norm(x, 32, *_pair(w, name), eps=1e-6)


def _res(w: Weights, name: str, x: Tensor) -> Tensor:
    h = _conv(w, f"{name}.conv1", functional.silu(_group(w, f"{name}.norm1", x)))
    h = _conv(w, f"{name}.conv2", functional.silu(_group(w, f"{name}.norm2", h)))
    return h + (_conv(w, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in w else x)


def _attend(w: Weights, name: str, x: Tensor) -> Tensor:
    if f"{name}.q.weight" not in w:
        return x
    h = _group(w, f"{name}.norm", x)
    q, k, v = (_conv(w, f"{name}.{part}", h).flatten(2) for part in "qkv")  # (B, C, HW)
    attention = (torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5).softmax(-1)
    return x + _conv(w, f"{name}.proj_out", torch.einsum("bij,bcj->bci", attention, v).view_as(x))


def _middle(w: Weights, side: str, h: Tensor) -> Tensor:
    h = _attend(w, f"{side}.mid.attn_1", _res(w, f"{side}.mid.block_1", h))
    return _res(w, f"{side}.mid.block_2", h)


def _ends(w: Weights, side: str, h: Tensor) -> Tensor:
    return _conv(w, f"{side}.conv_out", functional.silu(_group(w, f"{side}.norm_out", h)))


TINY = LDM()
TINY_VQ = LDM(moments=1, codes=40)
SIZES = {
    "attention at the last level": TINY,
    "no attention in the decoder's blocks, as MAR": replace(TINY, decoder_attention=()),
    "attention at two levels, two blocks": replace(TINY, attention=(1, 2), decoder_attention=(1, 2), blocks=2),
    "four levels, no attention": replace(TINY, multiples=(1, 1, 2, 3), attention=(), decoder_attention=()),
}


def saved(path: Path, weights: object) -> Path:
    torch.save(weights, path)
    return path


def close(got: Tensor, wanted: Tensor) -> bool:
    """Sums of up to 9 * 96 terms, some 20 layers of them: errors of 1e-6 of the largest, tenfold for safety."""
    return torch.allclose(got, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return photographs(32)


@pytest.mark.parametrize("size", SIZES)
def test_kl_weights_compute_what_ldm_computes(size: str, photos: Tensor, tmp_path: Path) -> None:
    ldm, weights = SIZES[size], SIZES[size].weights()
    tokenizer = KLTokenizer.from_ldm_checkpoint(
        saved(tmp_path / "model.ckpt", {"state_dict": weights}), scale=ONE, image_size=32
    )
    moments = ldm.encode(weights, photos)  # (B, 2 z, g, g)
    mean, log_variance = moments.chunk(2, 1)
    assert close(tokenizer.encode(photos), mean.flatten(2).mT)
    network = tokenizer.network.encode(photos).latent_dist
    assert close(network.logvar, log_variance.clamp(-30, 20))
    assert close(tokenizer.decode(mean.flatten(2).mT), ldm.decode(weights, mean))


def test_vq_weights_compute_what_ldm_computes(photos: Tensor, tmp_path: Path) -> None:
    weights = TINY_VQ.weights()
    tokenizer = VQTokenizer.from_ldm_checkpoint(saved(tmp_path / "model.ckpt", weights), image_size=32)
    z, entries = TINY_VQ.encode(weights, photos), weights["quantize.embedding.weight"]
    codes = (z.flatten(2).mT[:, :, None] - entries).square().sum(-1).argmin(-1)  # (B, N)
    assert len(codes.unique()) > 3
    assert tokenizer.encode_codes(photos).equal(codes)
    vectors = entries[codes].mT.unflatten(2, (8, 8))
    assert close(tokenizer.decode_codes(codes), TINY_VQ.decode(weights, vectors))


@pytest.mark.parametrize("pair", [("q", "k"), ("v", "proj_out")])
@pytest.mark.parametrize("place", ["encoder.down.2.attn.0", "decoder.up.2.attn.1"])
def test_the_comparison_sees_a_swapped_attention(pair: tuple[str, str], place: str, photos: Tensor, tmp_path: Path) -> None:
    """The control: these have the same shapes, so only the outputs can tell."""
    weights = TINY.weights()
    a, b = (f"{place}.{part}.weight" for part in pair)
    swapped = {**weights, a: weights[b], b: weights[a]}
    tokenizer = KLTokenizer.from_ldm_checkpoint(saved(tmp_path / "a.ckpt", swapped), scale=ONE, image_size=32)
    mean = TINY.encode(weights, photos).chunk(2, 1)[0]
    same_tokens = close(tokenizer.encode(photos), mean.flatten(2).mT)
    same_pixels = close(tokenizer.decode(mean.flatten(2).mT), TINY.decode(weights, mean))
    assert (same_tokens, same_pixels) == ((False, True) if place.startswith("encoder") else (True, False))


def test_the_scale_of_the_latents_is_asked_for(tmp_path: Path) -> None:
    """It belongs to the weights and is not in the file."""
    path = saved(tmp_path / "model.ckpt", TINY.weights())
    with pytest.raises(TypeError, match="scale"):
        KLTokenizer.from_ldm_checkpoint(path)  # type: ignore[call-arg]
    tokenizer = KLTokenizer.from_ldm_checkpoint(path, scale=LatentScale(2.0), image_size=32)
    assert (tokenizer.latent_std, tokenizer.name, tokenizer.grid) == (2.0, "kl-4", 8)
    tokenizer.save_pretrained(tmp_path)  # from here on a folder of diffusers
    assert load_image_tokenizer(tmp_path).identity == tokenizer.identity


# -- the published sizes ----------------------------------------------------------------------------------------------

F16 = LDM(width=128, multiples=(1, 1, 2, 2, 4), blocks=2, attention=(4,), decoder_attention=(4,), z=16)
"""kl-f16's config.yaml: ch 128, ch_mult 1 1 2 2 4, 2 residual blocks, attention at 16 x 16, 16 channels."""


def meta(ldm: LDM) -> Weights:
    return {name: torch.empty(shape, device="meta") for name, shape in ldm.shapes().items()}


def test_the_shapes_of_kl_f16_give_the_published_configuration() -> None:
    weights = meta(F16)
    assert sum(w.numel() for w in weights.values()) == 69_610_963
    assert len(weights) == 342
    config = ldm_config(weights, codebook=False)
    assert {**config, "sample_size": 256} == KL16_CONFIG
    with torch.device("meta"):
        model = AutoencoderKL(**KL16_CONFIG)
    assert set(diffusers_state(weights, model)) == set(model.state_dict())


def test_the_shapes_of_vq_f16_give_the_published_configuration() -> None:
    config = ldm_config(meta(replace(F16, z=8, moments=1, codes=16384)), codebook=True)
    assert {**config, "sample_size": 256} == VQ16_CONFIG


def test_mars_weights_are_another_architecture() -> None:
    """Its code has attention at 16 x 16 in the encoder, and in the decoder in the middle only."""
    config = ldm_config(meta(replace(F16, decoder_attention=())), codebook=False)
    assert config["up_block_types"] == ("UpDecoderBlock2D",) * 5
    assert config["down_block_types"] == KL16_CONFIG["down_block_types"]


# -- strictness -------------------------------------------------------------------------------------------------------


def load(tmp_path: Path, weights: object) -> KLTokenizer:
    return KLTokenizer.from_ldm_checkpoint(saved(tmp_path / "model.ckpt", weights), scale=ONE, image_size=32)


OTHERS = ("model_ema.decay", "encoder.lossy.weight", "decoder.up.7.block.0.conv1.weight", "encoder.down.0.block.0.temb.bias")


def test_the_loss_network_is_dropped_and_nothing_else(tmp_path: Path) -> None:
    weights = TINY.weights()
    loss = {"loss.discriminator.main.0.weight": torch.zeros(1), "loss.logvar": torch.zeros(())}
    assert load(tmp_path, {**weights, **loss}).identity == load(tmp_path, weights).identity
    for name in OTHERS:
        with pytest.raises(ValueError, match=rf"exactly those of AutoencoderKL, but left over in the file: {re.escape(name)}$"):
            load(tmp_path, {**weights, name: torch.zeros(3)})


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    weights = TINY.weights()
    for name in ("decoder.mid.attn_1.k.bias", "encoder.down.2.attn.0.v.weight", "post_quant_conv.bias"):
        with pytest.raises(ValueError, match=r"^the checkpoint's weights must be .*, but missing in the file: [\w.]+$"):
            load(tmp_path, {k: v for k, v in weights.items() if k != name})


def test_other_shapes_are_named(tmp_path: Path) -> None:
    weights = TINY.weights()
    name = "decoder.up.2.block.0.conv2.weight"
    message = r"of another shape: decoder.up_blocks.0.resnets.0.conv2.weight \(64, 64, 1, 1\) instead of \(64, 64, 3, 3\)$"
    with pytest.raises(ValueError, match=message):
        load(tmp_path, {**weights, name: torch.zeros(64, 64, 1, 1)})


def test_all_that_is_wrong_is_in_one_short_message(tmp_path: Path) -> None:
    weights = {k: v for k, v in TINY.weights().items() if ".mid." not in k or "encoder" in k}
    weights |= {f"unet.{i}.weight": torch.zeros(1) for i in range(500)}
    with pytest.raises(ValueError, match=r"unet.0.weight, .*, ... \(500 in all\); missing in the file: decoder.m") as caught:
        load(tmp_path, weights)
    assert len(str(caught.value)) < 600


def test_kl_and_vq_are_not_mixed_up(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a VQ autoencoder .*'quantize.embedding.weight' is missing"):
        VQTokenizer.from_ldm_checkpoint(saved(tmp_path / "kl.ckpt", TINY.weights()))
    with pytest.raises(ValueError, match=r"left over in the file: quantize\.embedding\.weight"):
        load(tmp_path, TINY_VQ.weights())


def test_weights_of_diffusers_are_recognised_as_such(tmp_path: Path) -> None:
    state = load(tmp_path, TINY.weights()).network.state_dict()
    with pytest.raises(ValueError, match=r"names of LDM's code, but .* is missing; .* is read by from_pretrained"):
        load(tmp_path, state)


# -- files ------------------------------------------------------------------------------------------------------------


def test_all_containers_give_the_same(tmp_path: Path) -> None:
    weights = TINY.weights()
    save_file(weights, tmp_path / "a.safetensors")
    paths = [saved(tmp_path / f"{i}.pt", w) for i, w in enumerate((weights, {"state_dict": weights}, {"model": weights}))]
    torch.save(weights, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    for path in [*paths, tmp_path / "a.safetensors", tmp_path / "old.ckpt"]:
        read = read_ldm_file(path)
        assert all(read[name].equal(weight) for name, weight in weights.items())


def test_objects_of_a_library_that_is_not_there_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LDM's files hold Lightning's callbacks, as keys and as objects."""
    module = types.ModuleType("pytorch_lightning_of_2021")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    one = callback()
    one.best = {"score": 0.5}
    path = saved(tmp_path / "model.ckpt", {"callbacks": {callback: one}, "epoch": 3, "state_dict": TINY.weights()})
    monkeypatch.delitem(sys.modules, module.__name__)
    with pytest.raises(Exception, match="Unsupported global"):  # the control: this is why
        torch.load(path, weights_only=True)
    assert len(read_ldm_file(path)) == len(TINY.shapes())
    assert module.__name__ not in str(torch.serialization.get_safe_globals())  # nothing stays allowed


class Call:
    """Code in a checkpoint."""

    def __init__(self, function: Callable, *arguments: str) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.call


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("x")
    bomb = Call(shutil.copyfile, str(source), str(target))
    path = saved(tmp_path / "model.ckpt", {"bomb": bomb, "state_dict": TINY.weights()})
    assert len(read_ldm_file(path)) == len(TINY.shapes())
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists()  # the control


def test_what_is_refused_altogether_comes_without_advice_to_run_it(tmp_path: Path) -> None:
    """torch lets nothing through that calls the system."""
    path = saved(tmp_path / "model.ckpt", {"bomb": Call(os.mkdir, str(tmp_path / "made")), "state_dict": TINY.weights()})
    with pytest.raises(ValueError, match=r"cannot be read: .*mkdir.* blocked.*; fetch the file again, or keep only") as caught:
        read_ldm_file(path)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half an archive"])
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_files_that_are_none_are_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^path must be a checkpoint of LDM's code, but .*: .+; fetch the file"):
        read_ldm_file(path)


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    for content in ({"epoch": 3}, [1, 2], {}, {"state_dict": {}}):
        with pytest.raises(ValueError, match=r"^path must hold weights by name, at the top or under state_dict or model"):
            read_ldm_file(saved(tmp_path / "model.ckpt", content))
    with pytest.raises(FileNotFoundError, match=r"^path must be an existing file, got '.*nowhere.ckpt'; unpack kl-f16.zip"):
        read_ldm_file(tmp_path / "nowhere.ckpt")
