"""Injected errors: their size is what they say, their law is what they say, and zero is nothing."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch

from diffparam import FORMATS, AdditiveError, ErrorModel, RelativeError, RoundingError, UnknownName, round_to
from diffparam.error_model import LAWS
from diffparam.errors import NonFiniteError
from diffparam.rounding import MODES

COUNT = 200_000
KURTOSIS = {"constant": 1.0, "rademacher": 1.0, "uniform": 9 / 5, "gaussian": 3.0}
"""E[xi^4] of each law, all of mean square 1: xi^2 has variance kurtosis - 1."""
MODELS = [
    *(RelativeError(0.01, law) for law in LAWS),
    *(RoundingError("bfloat16", mode) for mode in MODES),
    AdditiveError(0.01),
]


def drawn(law: str, generator: torch.Generator) -> torch.Tensor:
    """The xi of a relative error, read off values of both signs and all sizes."""
    value = torch.randn(COUNT, dtype=torch.float64, generator=generator) + 0.1
    return (RelativeError(0.5, law).apply(value, generator) / value - 1) / 0.5


@pytest.mark.parametrize("law", LAWS)
def test_every_law_has_mean_square_one(law: str, generator: torch.Generator) -> None:
    # Mean of N draws of xi^2: standard error sqrt((kurtosis - 1) / N); a part in 10^12 for the division that recovers xi.
    tolerance = 5 * math.sqrt((KURTOSIS[law] - 1) / COUNT) + 1e-9
    assert drawn(law, generator).square().mean().item() == pytest.approx(1.0, abs=tolerance)


@pytest.mark.parametrize("law", [law for law in LAWS if law != "constant"])
def test_every_random_law_has_mean_zero_and_its_own_fourth_moment(law: str, generator: torch.Generator) -> None:
    xi = drawn(law, generator)
    assert abs(xi.mean().item()) < 5 / math.sqrt(COUNT)
    # E[xi^8] is 105 for the Gaussian: the mean of xi^4 has a standard error of at most sqrt(105 - 9) / sqrt(N).
    assert xi.pow(4).mean().item() == pytest.approx(KURTOSIS[law], abs=5 * math.sqrt(96 / COUNT))
    others = [k for name, k in KURTOSIS.items() if name not in ("constant", law)]
    assert all(abs(k - KURTOSIS[law]) > 10 * math.sqrt(96 / COUNT) for k in others)  # the laws can be told apart


def test_laws_have_their_support(generator: torch.Generator) -> None:
    # xi is recovered to about 2^-52 |value (1 + delta xi)| / (delta |value|): a few 1e-16 times 2.
    assert drawn("rademacher", generator).abs().sub(1).abs().max() < 1e-12
    assert drawn("constant", generator).sub(1).abs().max() < 1e-12
    largest = drawn("uniform", generator).abs().max().item()
    # The largest of N uniform draws falls short of the end by an exponential of mean (end / N).
    assert math.sqrt(3) * (1 - 20 / COUNT) < largest < math.sqrt(3) + 1e-12


def test_the_papers_error_is_a_factor(generator: torch.Generator) -> None:
    value = torch.randn(100, dtype=torch.float64, generator=generator)
    assert torch.equal(RelativeError("machine_epsilon").apply(value), value * (1 + 1 / 128))


@pytest.mark.parametrize("name", ["machine_epsilon", "unit_roundoff", "rms"])
def test_a_named_delta_is_that_of_its_format(name: str) -> None:
    for fmt in FORMATS:
        assert RelativeError(name, fmt=fmt).rms == getattr(FORMATS[fmt], name)
    assert RelativeError(name) == RelativeError(getattr(FORMATS["bfloat16"], name))


@pytest.mark.parametrize("mode", MODES)
def test_a_rounding_error_is_the_rounding(mode: str, generator: torch.Generator) -> None:
    value = torch.randn(1000, dtype=torch.float64, generator=generator)
    seeds = (torch.Generator().manual_seed(7) for _ in range(2))
    got = RoundingError("float16", mode).apply(value, next(seeds))
    assert torch.equal(got, round_to(value, "float16", mode=mode, generator=next(seeds)))
    assert RoundingError("float16", mode).rms == FORMATS["float16"].rms_of(mode)


def test_a_rounding_error_saturates_on_request() -> None:
    value = torch.tensor([1e6])
    assert RoundingError("e4m3").apply(value).isnan().all()
    assert RoundingError("e4m3", saturate=True).apply(value).item() == 448.0


def test_an_additive_error_does_not_depend_on_the_value(generator: torch.Generator) -> None:
    value = torch.randn(COUNT, dtype=torch.float64, generator=generator) * 100
    error = AdditiveError(0.25).apply(value, generator) - value
    assert abs(error.mean().item()) < 5 * 0.25 / math.sqrt(COUNT)
    assert error.std().item() == pytest.approx(0.25, rel=5 / math.sqrt(2 * COUNT))
    correlation = torch.corrcoef(torch.stack([error, value]))[0, 1].item()
    assert abs(correlation) < 5 / math.sqrt(COUNT)
    relative = RelativeError(0.25, "gaussian").apply(value, generator) - value
    assert torch.corrcoef(torch.stack([relative.abs(), value.abs()]))[0, 1].item() > 0.3  # the control does


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_shape_and_dtype_are_kept(model: ErrorModel, dtype: torch.dtype, generator: torch.Generator) -> None:
    value = torch.randn(3, 1, 5, generator=generator).to(dtype)
    kept = value.clone()
    got = model.apply(value, generator)
    assert (got.shape, got.dtype) == (value.shape, dtype)
    assert torch.equal(value, kept)  # the argument is not written to


@pytest.mark.parametrize("model", [RelativeError(0.0, law) for law in LAWS] + [AdditiveError(0.0)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_zero_error_changes_no_bit(model: ErrorModel, dtype: torch.dtype, generator: torch.Generator) -> None:
    value = torch.randn(1000, generator=generator).to(dtype)
    assert torch.equal(model.apply(value, generator), value)


def test_a_bf16_value_is_perturbed_in_float32_and_rounded_once(generator: torch.Generator) -> None:
    # delta = 1/401 is a third of bf16's epsilon: 1 + delta is 1 in bf16, so a product formed there would change nothing.
    value = torch.rand(1000, generator=generator).add(1).bfloat16()
    got = RelativeError(1 / 401).apply(value)
    assert torch.equal(got, (value.double() * (1 + 1 / 401)).float().bfloat16())
    assert 0.2 < (got != value).double().mean() < 0.9
    assert torch.equal(value * torch.tensor(1 + 1 / 401).bfloat16(), value)


@pytest.mark.parametrize("model", [m for m in MODELS if "constant" not in repr(m) and "nearest" not in repr(m)], ids=repr)
def test_random_errors_follow_their_generator_and_no_other(model: ErrorModel) -> None:
    value = torch.linspace(1.0, 2.0, 1000)
    state = torch.random.get_rng_state()
    first, again, other = (model.apply(value, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert torch.equal(state, torch.random.get_rng_state())
    if "toward_zero" not in repr(model):
        assert not torch.equal(first, other)


def test_models_are_values_and_satisfy_the_protocol() -> None:
    for model in MODELS:
        assert isinstance(model, ErrorModel)
        twin = copy.deepcopy(model)
        assert (twin, hash(twin)) == (model, hash(model))
        assert [other for other in MODELS if other == model] == [model]
        with pytest.raises(dataclasses.FrozenInstanceError):
            model.delta = 0.5
    assert not isinstance(object(), ErrorModel)


def test_what_cannot_be_an_error_is_refused() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'gaussian'"):
        RelativeError(0.1, "gausian")
    with pytest.raises(UnknownName, match="machine_epsilon"):
        RelativeError("machine_eps")
    with pytest.raises(ValueError, match="delta"):
        RelativeError(-0.1)
    with pytest.raises(NonFiniteError, match="delta"):
        RelativeError(math.nan)
    with pytest.raises(ValueError, match="scale"):
        AdditiveError(-1.0)
    with pytest.raises(UnknownName, match="mode"):
        RoundingError("bf16", "up")
    with pytest.raises(UnknownName, match="format"):
        RoundingError("bf17")
