"""What all image tokenizers promise."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import MAKERS, encoder_only, kl, patches, photographs, vision, vq
from torch import Tensor, nn

import mmar.tokenizers
from diffparam import UnknownName
from mmar.config import MMARConfig
from mmar.tokenizers import ImageTokenizer, LatentScale, LatentStatistics, NonFiniteImages, load_image_tokenizer
from mmar.tokenizers.registry import KINDS

EPS = 2.0**-24
"""Unit roundoff of float32."""


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return photographs(32)


@pytest.fixture(params=MAKERS, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> ImageTokenizer:
    return MAKERS[request.param]()


def test_every_kind_is_tested() -> None:
    assert set(MAKERS) == set(KINDS)


def test_names_that_are_loaded_late_are_all_there() -> None:
    assert all(getattr(mmar.tokenizers, name) is not None for name in mmar.tokenizers.__all__)
    with pytest.raises(AttributeError, match="no attribute 'KLTokeniser'"):
        mmar.tokenizers.KLTokeniser  # noqa: B018


def test_tokens_are_float32_in_the_promised_shape(tokenizer: ImageTokenizer, photos: Tensor) -> None:
    tokens = tokenizer.encode(photos)
    assert tokens.shape == (4, tokenizer.grid**2, tokenizer.channels)
    assert tokens.dtype is torch.float32
    assert tokens.std(dim=0).min() > 0  # they depend on the image
    assert tokenizer(photos).equal(tokens)
    assert tokenizer.encode(photos.double()).equal(tokens)


def test_images_come_back_in_the_promised_shape(tokenizer: ImageTokenizer, photos: Tensor) -> None:
    tokens = tokenizer.encode(photos)
    if not tokenizer.can_decode:
        with pytest.raises(NotImplementedError, match="must not be asked to decode: it is an encoder only"):
            tokenizer.decode(tokens)
        return
    pixels = tokenizer.decode(tokens)
    assert pixels.shape == photos.shape
    assert pixels.dtype is torch.float32


def test_an_empty_batch_stays_empty(tokenizer: ImageTokenizer) -> None:
    tokens = tokenizer.encode(torch.zeros(0, 3, 32, 32))
    assert tokens.shape == (0, tokenizer.grid**2, tokenizer.channels)
    if tokenizer.can_decode:
        assert tokenizer.decode(tokens).shape == (0, 3, 32, 32)


def test_nothing_is_trained(tokenizer: ImageTokenizer, photos: Tensor) -> None:
    before, weights = tokenizer.encode(photos), tokenizer.weights_digest
    parent = nn.ModuleDict({"tokenizer": tokenizer}).train()
    assert not any(module.training for module in tokenizer.modules())
    assert parent.training
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    assert not tokenizer.encode(photos.clone().requires_grad_()).requires_grad
    assert tokenizer.encode(photos).equal(before)
    assert tokenizer.weights_digest == weights  # running statistics of norms too


def test_an_image_does_not_see_its_neighbours(tokenizer: ImageTokenizer, photos: Tensor) -> None:
    together = tokenizer.encode(photos)
    alone = torch.cat([tokenizer.encode(photo[None]) for photo in photos])
    # The same sums of at most a thousand terms in another order, some ten layers deep, values of order 1 to 10.
    assert torch.allclose(together, alone, rtol=0, atol=1e-5 * together.abs().max().item())
    if tokenizer.can_decode:
        together, alone = tokenizer.decode(together), torch.cat([tokenizer.decode(t[None]) for t in alone])
        assert torch.allclose(together, alone, rtol=0, atol=1e-4 * together.abs().max().item())


def test_float32_is_the_same_each_time_under_any_autocast(tokenizer: ImageTokenizer, photos: Tensor) -> None:
    tokens = tokenizer.encode(photos)
    assert tokenizer.encode(photos).equal(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tokenizer.encode(photos).equal(tokens)
        assert tokenizer.encode(photos, dtype=torch.float32).equal(tokens)
    if tokenizer.can_decode:
        pixels = tokenizer.decode(tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert tokenizer.decode(tokens).equal(pixels)


def test_bf16_is_close_and_returns_float32(tokenizer: ImageTokenizer, photos: Tensor) -> None:
    exact, rounded = tokenizer.encode(photos), tokenizer.encode(photos, dtype=torch.bfloat16)
    assert rounded.dtype is torch.float32
    if tokenizer.kind == "patches":  # nothing is computed
        assert rounded.equal(exact)
        return
    wrong = ((rounded - exact).norm() / exact.norm()).item()
    # Some 20 roundings of 2^-8, independent: 2%. A code that flips to the neighbouring entry costs more.
    assert 0 < wrong < (0.5 if tokenizer.kind == "vq" else 0.05)
    if tokenizer.can_decode:
        decoded = tokenizer.decode(exact)
        wrong = ((tokenizer.decode(exact, dtype=torch.bfloat16) - decoded).norm() / decoded.norm()).item()
        assert 1e-6 < wrong < 0.05


def test_casting_the_weights_does_not_round_the_scale(photos: Tensor) -> None:
    third = LatentScale(std=1 / 3)
    for make in (kl, patches):
        tokenizer = make(scale=third).bfloat16()
        assert tokenizer.latent_std == 1 / 3  # bf16 has 0.334
        assert tokenizer.encode(photos).dtype is torch.float32
    with pytest.raises(ValueError, match=r"^dtype must be torch.bfloat16 \(that of the weights\).* got torch.float32; "):
        kl().bfloat16().encode(photos, dtype=torch.float32)


# -- scale ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [LatentScale(4.0, 0.5), LatentScale((3.0, 2.0, 1.0, 0.25), (1.0, 0.0, -1.0, 2.0))])
def test_tokens_are_centred_and_divided(scale: LatentScale, photos: Tensor) -> None:
    plain = kl(scale=LatentScale())
    scaled = plain.with_scale(scale)
    z, tokens = plain.encode(photos), scaled.encode(photos)
    mean, std = torch.tensor(scale.mean), torch.tensor(scale.std)
    assert torch.allclose(tokens, (z - mean) / std, rtol=4 * EPS, atol=0)
    # decode undoes it: one rounding of z, of order 10, through a network of gain about 1.
    assert torch.allclose(scaled.decode(tokens), plain.decode(z), rtol=0, atol=1e-4)
    assert not torch.allclose(plain.decode(tokens), plain.decode(z), rtol=0, atol=1e-2)  # the control
    assert scaled.network is plain.network
    assert plain.latent_std == 1  # untouched
    assert (scaled.latent_std, scaled.latent_mean) == (scale.std, scale.mean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": 0.0}, "latent std must be positive, got 0.0; "),
        ({"std": (1.0, -1.0)}, r"latent std must be positive, got \(1.0, -1.0\)"),
        ({"std": float("nan")}, "latent std must be finite, got nan"),
        ({"mean": float("inf")}, "latent mean must be finite, got inf"),
        ({"std": torch.ones(2, 2)}, r"must be one number or one for each channel, got shape \(2, 2\)"),
    ],
)
def test_impossible_scales_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatentScale(**options)


def test_a_scale_of_other_channels_is_refused() -> None:
    for use in (lambda scale: patches(scale=scale), patches().with_scale):
        with pytest.raises(ValueError, match="latent std must be one number or one for each of 48 channels, got 3"):
            use(LatentScale((1.0, 2.0, 3.0)))


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=5), st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_the_scale_can_be_undone(values: list[float], std: float, mean: float) -> None:
    z, scale = torch.tensor(values), LatentScale(std, mean)
    # Four roundings, of numbers no larger than |z| + |mean|.
    assert torch.allclose(scale.denormalize(scale.normalize(z)), z, rtol=0, atol=8 * EPS * (100 + 10))


# -- identity and folders ---------------------------------------------------------------------------------------------


def test_what_is_saved_comes_back(tokenizer: ImageTokenizer, photos: Tensor, tmp_path: Path) -> None:
    mine = tokenizer.with_scale(LatentScale(std=2.5, mean=0.5))
    mine.name = "mine"
    mine.save_pretrained(tmp_path)
    loaded = load_image_tokenizer(tmp_path)
    assert type(loaded) is type(tokenizer)
    assert loaded.identity == mine.identity
    assert loaded.encode(photos).equal(mine.encode(photos))
    assert loaded.scale == mine.scale
    assert loaded.image_tokens_config().to_dict() == mine.image_tokens_config().to_dict()
    assert type(tokenizer).from_pretrained(tmp_path).identity == mine.identity
    assert not list(tmp_path.rglob("*.bin"))  # no pickles


def test_identity_is_that_of_weights_and_scale(tokenizer: ImageTokenizer) -> None:
    again = MAKERS[tokenizer.kind](name="another name")
    assert again.identity == tokenizer.identity == copy.deepcopy(tokenizer).identity
    assert tokenizer.identity.startswith(tokenizer.kind)
    assert tokenizer.with_scale(LatentScale(2.0)).identity != tokenizer.with_scale(LatentScale(2.5)).identity
    assert tokenizer.with_scale(LatentScale(2.0)).identity != tokenizer.with_scale(LatentScale(2.0, 1e-3)).identity
    for parameter in list(again.parameters())[:1]:
        with torch.no_grad():
            parameter.flatten()[0] += 1e-6
        assert again.identity != tokenizer.identity


def test_identity_knows_what_shapes_do_not_tell() -> None:
    assert len({vision(layer=layer).identity for layer in (-1, -2, 0)}) == 3
    assert kl(image_size=64).identity != kl().identity
    assert kl().bfloat16().identity != kl().identity
    assert encoder_only().identity != kl().identity
    other = kl()
    other.network.register_to_config(norm_num_groups=2)
    assert other.identity != kl().identity


def test_identity_does_not_depend_on_options_of_a_later_diffusers() -> None:
    later = kl()
    later.network.register_to_config(an_option_of_tomorrow=True)
    assert later.identity == kl().identity


def test_changed_weights_are_noticed(tmp_path: Path) -> None:
    kl().save_pretrained(tmp_path)
    other = kl().network
    with torch.no_grad():
        other.encoder.conv_in.weight[0, 0, 0, 0] += 1
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^weights in .* must be those that were saved, got .*; copy the folder again"):
        load_image_tokenizer(tmp_path)


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^folder must be an existing folder, got 'owner/it'; .*snapshot_download"):
        load_image_tokenizer("owner/it")
    with pytest.raises(FileNotFoundError, match=r"^folder must hold image_tokenizer.json, written by save_pretrained"):
        load_image_tokenizer(tmp_path)
    patches().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^folder must hold a tokenizer of kind 'kl', got 'patches'; use load_"):
        type(kl()).from_pretrained(tmp_path)
    record = tmp_path / "image_tokenizer.json"
    text = record.read_text()
    record.write_text(text.replace('"patches"', '"patchs"'))
    with pytest.raises(UnknownName, match=r"must be one of patches, .*; got 'patchs'\. Did you mean 'patches'\?"):
        load_image_tokenizer(tmp_path)
    record.write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match=r"format of .* must be 1, got 2; it was written by another release"):
        load_image_tokenizer(tmp_path)
    for broken in ("{", "[]", "{}"):
        record.write_text(broken)
        with pytest.raises(ValueError, match="must be as save_pretrained writes it"):
            load_image_tokenizer(tmp_path)


class Grey(ImageTokenizer):
    """A tokenizer of somebody's own: the mean of each quarter."""

    kind = "grey"
    can_decode = False

    def __init__(self, scale: LatentScale | None = None) -> None:
        super().__init__(None, name="grey", image_size=32, grid=2, channels=1, scale=scale)

    def settings(self) -> dict:
        return {}

    def _encode(self, pixels: Tensor, *, sample: bool, generator: object) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(pixels, 2).mean(1).flatten(1)[..., None]

    @classmethod
    def _read(cls, folder: Path, settings: dict, scale: LatentScale) -> Grey:
        return cls(scale=scale)


def test_a_tokenizer_of_your_own_loads_by_its_kind(tmp_path: Path, photos: Tensor) -> None:
    Grey(LatentScale(0.5)).save_pretrained(tmp_path)
    assert load_image_tokenizer(tmp_path, own={"grey": Grey}).encode(photos).shape == (4, 4, 1)
    with pytest.raises(UnknownName, match=r"Pass own=\{kind: class\}"):
        load_image_tokenizer(tmp_path)


# -- agreement with a model -------------------------------------------------------------------------------------------


def model_config(made_for: ImageTokenizer, **changes: object) -> MMARConfig:
    image = made_for.image_tokens_config().to_dict()
    image = {k: image[k] for k in ("tokenizer", "image_size", "grid", "channels", "codebook_size")}
    objective = "understanding_only" if not made_for.can_decode else "masked_codes" if made_for.codebook_size else None
    options = {} if objective is None else {"image_objective": objective}
    return MMARConfig.preset("mmar-tiny", image_config={**image, **changes}, **options)


def test_a_model_made_for_the_tokenizer_agrees(tokenizer: ImageTokenizer) -> None:
    tokenizer.check_config(model_config(tokenizer))


@pytest.mark.parametrize(
    ("field", "value"), [("tokenizer", "other"), ("image_size", 64), ("grid", 4), ("channels", 3), ("codebook_size", 128)]
)
def test_each_difference_is_named(field: str, value: object) -> None:
    tokenizer = vq()
    with pytest.raises(ValueError, match=rf"^image_config must agree .* has {field} \S+ \(model: {value!r}\); build the model"):
        tokenizer.check_config(model_config(tokenizer, **{field: value}))


def test_all_differences_are_in_one_message() -> None:
    with pytest.raises(ValueError, match=r"tokenizer 'kl-4' .*, grid 8 .*, channels 4 "):
        kl().check_config(MMARConfig.preset("mmar-tiny"))


def test_a_generating_model_is_not_given_an_encoder() -> None:
    tokenizer = encoder_only()
    config = model_config(tokenizer)
    config.image_objective = "masked_diffusion"
    with pytest.raises(ValueError, match=r"^image_objective must be 'understanding_only' for 'vision-encoder', which"):
        tokenizer.check_config(config)


# -- bad input --------------------------------------------------------------------------------------------------------

BAD_PIXELS: list[tuple[Callable[[Tensor], object], type[Exception], str]] = [
    (lambda x: x[0], ValueError, r"^pixels must have shape \(batch, 3, 32, 32\), got \(3, 32, 32\); .* batch axis"),
    (lambda x: x[:, :1], ValueError, r"got \(4, 1, 32, 32\); .* convert grey to RGB"),
    (lambda x: x[..., :16], ValueError, r"got \(4, 3, 32, 16\); resize and crop"),
    (lambda x: x.permute(0, 2, 3, 1), ValueError, r"got \(4, 32, 32, 3\)"),
    (lambda x: ((x + 1) * 127.5).byte(), TypeError, r"^pixels must be floating point, got torch.uint8; .*x / 127.5 - 1"),
    (lambda x: (x + 1) * 127.5, ValueError, r"^pixels must lie in \[-1, 1\], got \[0, 255\]; .*x / 127.5 - 1"),
    (lambda x: x.clamp(max=0) - 1e-5, ValueError, r"^pixels must lie in \[-1, 1\], got \[-1.00001, "),
    (lambda x: x.numpy(), TypeError, r"^pixels must be a torch.Tensor, got ndarray"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_PIXELS)
def test_bad_pixels_are_refused(change: Callable, error: type[Exception], message: str, photos: Tensor) -> None:
    photos = photos.clone()
    photos[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    for method in (patches().encode, vq().encode_codes):
        with pytest.raises(error, match=message):
            method(change(photos))


def test_a_few_units_of_roundoff_beyond_one_are_allowed(photos: Tensor) -> None:
    patches().encode(torch.full_like(photos, 1 + 2 * 2.0**-23))
    patches().encode(torch.full_like(photos, 1 + 2.0**-7).bfloat16())


def test_images_that_are_not_finite_are_named(photos: Tensor) -> None:
    for value in (float("nan"), float("inf")):
        bad = photos.clone()
        bad[1, 0, 3, 3] = bad[3, 2, 0, 0] = value
        with pytest.raises(NonFiniteImages, match=r"^pixels must be finite, .* in 2 of .* \(index 1, 3\)") as caught:
            patches().encode(bad)
        assert caught.value.images == (1, 3)
        assert pickle.loads(pickle.dumps(caught.value)).images == (1, 3)


def test_networks_that_overflow_do_not_pass_it_on(photos: Tensor) -> None:
    broken = kl()
    with torch.no_grad():
        broken.network.quant_conv.bias[0] = float("inf")
        broken.network.decoder.conv_out.bias[0] = float("nan")
    with pytest.raises(NonFiniteImages, match=r"^tokens must be finite"):
        broken.encode(photos)
    with pytest.raises(NonFiniteImages, match=r"^decoded pixels must be finite"):
        broken.decode(torch.zeros(1, 64, 4))


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (torch.zeros(2, 63, 48), ValueError, r"^tokens must have shape \(batch, 64, 48\), got \(2, 63, 48\)"),
        (torch.zeros(64, 48), ValueError, r"got \(64, 48\)"),
        (torch.zeros(2, 64, 12), ValueError, r"got \(2, 64, 12\)"),
        (
            torch.zeros(2, 64, dtype=torch.long),
            TypeError,
            r"^tokens must be floating point, .*; codes are decoded by",
        ),
        (torch.full((2, 64, 48), float("nan")), NonFiniteImages, r"^tokens must be finite"),
    ],
)
def test_bad_tokens_are_refused(tokens: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        patches().decode(tokens)


def test_continuous_tokenizers_have_no_codes(photos: Tensor) -> None:
    for use in (lambda: kl().encode_codes(photos), lambda: kl().codebook, lambda: kl().decode_codes(torch.zeros(1, 64).long())):
        with pytest.raises(NotImplementedError, match=r"'kl-4' must have a codebook to give codes, .*; use vq-16"):
            use()


def test_statistics_of_another_tokenizer_are_refused() -> None:
    other = LatentStatistics(2, {}, 0.0, 2.0, 0.1, 0.1, (0.0,) * 4, (2.0,) * 4, True, kl().identity)
    assert kl().with_statistics(other).latent_std == 2
    with pytest.raises(ValueError, match=r"statistics must be those of this tokenizer, kl-.* measure again"):
        kl().with_statistics(dataclasses.replace(other, tokenizer="kl-0"))


def test_rounded_weights_are_not_saved_as_if_they_were_the_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^weights must be float32 to be saved, got torch.bfloat16; save before casting"):
        kl().bfloat16().save_pretrained(tmp_path)


def test_the_name_of_a_tokenizer_says_what_it_is() -> None:
    assert "name='kl-4', image_size=32, grid=8, channels=4" in repr(kl())
    assert "codebook_size=64" in repr(vq())
