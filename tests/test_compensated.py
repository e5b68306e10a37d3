"""Error models as their users meet them: the compensated state is exact where it should be, energies are met, bounds hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffparam import FORMATS, AdditiveError, ErrorModel, RelativeError, RoundingError, round_to
from diffparam.error_model import CompensatedRounding
from diffparam.rounding import MODES
from diffparam.rounding_energy import rounding_energy

NAMES = ("bfloat16", "float16", "float8_e4m3", "float8_e5m2")
COUNT = 400_000
RELATIVE_SE = math.sqrt(2 / COUNT)
"""Standard error of a mean of squares of kurtosis 3 and, nearly, of anything bounded."""


def normal(std: float, seed: int = 0) -> Tensor:
    return torch.randn(COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * std


def mean_square(x: Tensor) -> float:
    return float(x.square().mean())


# -- the compensated state --------------------------------------------------------------------------------------------


@given(st.integers(2**15, 2**17 - 1), st.integers(-100, 100), st.booleans())
def test_twice_the_bits_and_one_are_exact_in_two_numbers(significand: int, exponent: int, negative: bool) -> None:
    """bf16, p = 8: rounding leaves at most half a spacing, 2^p units of a value of 2p + 1 = 17 bits, which p bits hold."""
    value = torch.tensor(math.ldexp(-significand if negative else significand, exponent), dtype=torch.float64)
    assert CompensatedRounding("bf16").apply(value).item() == value.item()


def test_two_bits_more_than_twice_are_not_always_exact() -> None:
    """2p + 2 = 18 bits: some need a ninth bit in the second number. A single bf16 keeps one value in 2^10."""
    value = torch.arange(2**17, 2**18, dtype=torch.float64)
    lost = (CompensatedRounding("bf16").apply(value) != value).double().mean().item()
    assert 0.1 < lost < 0.9
    assert (round_to(value, "bf16") == value).double().mean().item() < 1.01 * 2.0**-10


def test_every_bf16_value_is_a_state_already() -> None:
    codes = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).double()
    codes = codes[codes.isfinite()]
    assert torch.equal(CompensatedRounding("bf16").apply(codes), codes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("std", [0.3, 1.0, 3.0, 20.0])
def test_compensated_energy_is_what_is_measured(name: str, std: float) -> None:
    """fp16 and e4m3 have subnormal remainders already at unit size."""
    error, value = CompensatedRounding(name), normal(std)
    seen = mean_square(error.apply(value) - value)
    # five standard errors are 1.1%; e5m2's four cells to a binade are not of one density
    assert 0.97 < error.energy(std**2) / seen < 1.03
    assert 0.97 < error.energy(np.array([std**2, 0.0]))[0] / seen < 1.03
    assert error.energy(0.0) == 0.0


def test_the_remainder_is_uniform_and_not_log_uniform() -> None:
    """The negative control: eps^2 ln 2 / 18, the law of a significand, misses the second's eps^2 / 28 by 8 per cent."""
    value, fmt = normal(1.0), FORMATS["bfloat16"]
    ratio = mean_square(CompensatedRounding("bf16").apply(value) - value) / rounding_energy(fmt, 1.0) / fmt.machine_epsilon**2
    assert ratio == pytest.approx(1 / 28, rel=0.02)
    assert math.log(2) / 18 > 1.05 * ratio
    assert CompensatedRounding("bf16").rms == pytest.approx(fmt.rms * fmt.machine_epsilon / math.sqrt(28))


def test_below_the_subnormals_two_numbers_are_no_better_than_one() -> None:
    std = 2.0**-26  # float16's smallest subnormal is 2^-24
    assert CompensatedRounding("fp16").energy(std**2) == pytest.approx(rounding_energy("fp16", std**2))


def test_overflow_of_the_first_number_is_an_infinity_and_not_the_difference_of_two() -> None:
    value = torch.tensor([3.4e38, -math.inf, 1.0], dtype=torch.float64)
    assert CompensatedRounding("bf16").apply(value).tolist() == [math.inf, -math.inf, 1.0]
    assert CompensatedRounding("e4m3").apply(torch.tensor([500.0])).isnan().all()  # a format without infinities


def test_a_bf16_state_that_stagnates_does_not_when_compensated() -> None:
    """1 + 1000 x 2^-10: each update is a quarter of bf16's half-spacing above 1, and a plain bf16 state loses every one."""
    step, plain, kept = 2.0**-10, torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    error = CompensatedRounding("bf16")
    for _ in range(1000):
        plain = round_to(plain + step, "bf16")
        kept = error.apply(kept + step)
    assert plain.item() == 1.0
    assert kept.item() == 1.0 + 1000 * step  # at most 12 bits: exact


def test_a_compensated_state_stays_within_the_sum_of_its_bounds() -> None:
    steps, error, start = 100, CompensatedRounding("bf16"), normal(1.0)[: COUNT // 20]
    exact, state, budget = start, start, 0.0
    for k in range(steps):
        update = 0.01 * start.roll(k + 1)
        exact, state = exact + update, error.apply(state + update)
        budget += error.bound(mean_square(exact)) * 1.01  # the state differs from the exact one by far less than 1%
    drift = math.sqrt(mean_square(state - exact))
    assert drift < budget
    assert 0.9 < drift / math.sqrt(steps * error.energy(1.0)) < 1.1  # independent errors of nearly unit values
    assert drift < 0.01 * math.sqrt(steps * RoundingError("bf16").energy(1.0))


# -- energies and bounds of every model -------------------------------------------------------------------------------

RELATIVE = [RelativeError(0.05, law) for law in ("constant", "uniform", "gaussian", "rademacher")]
ROUNDING = [RoundingError(name, mode) for name in NAMES for mode in MODES]
BOUNDED = [
    *(error for error in RELATIVE if error.law != "gaussian"),
    *ROUNDING,
    *(CompensatedRounding(name) for name in NAMES),
]


def ident(model: ErrorModel) -> str:
    """A short name of a test case."""
    fields = [getattr(model, name, None) for name in ("law", "fmt", "mode")]
    return " ".join([type(model).__name__, *(getattr(f, "name", f) for f in fields if f)])


@pytest.mark.parametrize("std", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("model", [*RELATIVE, AdditiveError(0.05), *ROUNDING], ids=ident)
def test_an_energy_is_what_is_measured(model: ErrorModel, std: float, generator: torch.Generator) -> None:
    value = normal(std)
    seen = mean_square(model.apply(value, generator) - value)
    # A Gaussian times a Gaussian has a square of kurtosis 9: standard error sqrt(8 / N) = 0.4%
    assert 0.97 < model.energy(std**2) / seen < 1.03


@pytest.mark.parametrize("model", BOUNDED, ids=ident)
@settings(max_examples=50)
@given(data=st.data())
def test_no_values_exceed_a_bound(model: ErrorModel, data: st.DataObject) -> None:
    """Any values, not Gaussian ones: the rms error is below the bound for their own mean square."""
    size = st.floats(-40.0, 40.0) if isinstance(model, RelativeError) else st.floats(-12.0, 8.0)
    number = st.builds(lambda e, m: m * 2.0**e, size, st.floats(-1.0, 1.0))
    value = torch.tensor(data.draw(st.lists(number, min_size=1, max_size=8)), dtype=torch.float64)
    error = model.apply(value, torch.Generator().manual_seed(data.draw(st.integers(0, 99)))) - value
    slack = 1e-12 * math.sqrt(mean_square(value))  # of float64 itself
    assert math.sqrt(mean_square(error)) <= model.bound(mean_square(value)) * (1 + 1e-12) + slack


@pytest.mark.parametrize("name", NAMES)
def test_the_bound_of_rounding_is_met_and_a_smaller_one_would_fail(name: str) -> None:
    """Half a spacing above 1 the error to nearest is u / (1 + u); chopped just below 1 + 2u it is 2u / (1 + 2u), under 2u."""
    fmt = FORMATS[name]
    tie, short = 1.0 + fmt.unit_roundoff, 1.0 + fmt.machine_epsilon * (1 - 1e-6)
    for mode, value, share in (("nearest", tie, 1.0), ("toward_zero", short, 1.0 / (1.0 + fmt.machine_epsilon))):
        model = RoundingError(fmt, mode)
        worst = abs(model.apply(torch.tensor(value, dtype=torch.float64)).item() - value)
        largest = fmt.bound_of(mode) * value
        assert 0.999 * share * largest < worst <= model.bound(value**2)


def test_a_relative_error_of_a_float64_value_is_not_a_float32_one(generator: torch.Generator) -> None:
    """xi of every law is drawn in the dtype of the value: 1 + 1e-9 xi is 1 in float32."""
    value = torch.ones(1000, dtype=torch.float64)
    for model in (RelativeError(1e-9, law) for law in ("constant", "uniform", "gaussian", "rademacher")):
        seen = math.sqrt(mean_square(model.apply(value, generator) - value))
        assert seen == pytest.approx(1e-9, rel=5 * math.sqrt(1 / 1000))  # Gaussian: sqrt((3 - 1) / N) / 2, five times


def test_what_has_no_bound_says_so() -> None:
    assert RelativeError(0.1, "gaussian").bound(1.0) == math.inf
    assert AdditiveError(0.1).bound(1.0) == math.inf
    np.testing.assert_array_equal(AdditiveError(0.1).bound(np.ones(2)), [math.inf] * 2)
    for nothing in (RelativeError(0.0, "gaussian"), AdditiveError(0.0)):
        assert nothing.bound(1.0) == 0.0
        assert nothing.energy(1.0) == 0.0


def test_energies_and_bounds_take_arrays() -> None:
    sizes = np.array([0.25, 1.0, 4.0])
    for model in (*BOUNDED, AdditiveError(0.1)):
        for function in (model.energy, model.bound):
            got = function(sizes)
            assert got.shape == (3,)
            np.testing.assert_allclose(got, [function(float(s)) for s in sizes], rtol=1e-12)
