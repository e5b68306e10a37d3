"""Rounding against independent references: every code point of the narrow formats, exact rationals for float64 inputs."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffparam import FORMATS, FloatFormat, UnknownName, parse_format, relative_error, round_to
from diffparam.rounding import DELTAS, MODES

NATIVE = {
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float8_e4m3": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
"""The formats whose code points can be listed, by the independent implementation of each."""
LAST_EXPONENT = {"float32": 127, "tf32": 127, "bfloat16": 127, "float16": 15, "float8_e4m3": 8, "float8_e5m2": 15}
SMALL = [name for name in NATIVE if name.startswith("float8")]


def code_points(name: str) -> np.ndarray:
    """Every value a format has, NaNs included, as float32 (which holds them all)."""
    bits = 8 * np.dtype(NATIVE[name]).itemsize
    with np.errstate(all="ignore"):
        return np.arange(2**bits, dtype=f"uint{bits}").view(NATIVE[name]).astype(np.float32)


def positive_values(name: str) -> np.ndarray:
    """The finite values from 0 upwards, in order, as float64."""
    codes = code_points(name)
    return np.unique(codes[np.isfinite(codes) & (codes >= 0)].astype(np.float64))


def hard_inputs(name: str) -> np.ndarray:
    """float32 numbers that decide a rounding: code points, all midpoints (also the one beyond the largest value), neighbours.

    Each midpoint has one bit more than the format, so float32 holds it, and a cast from float32 rounds once.
    """
    values = positive_values(name)
    fmt = parse_format(name)
    beyond = values[-1] + (values[-1] - values[-2])
    middle = (values + np.append(values[1:], beyond)) / 2
    inputs = np.concatenate([values, middle, [beyond, 2 * beyond, math.inf]])
    with np.errstate(over="ignore"):
        inputs = inputs.astype(np.float32)
    inputs = np.concatenate([inputs, np.nextafter(inputs, np.float32(math.inf)), np.nextafter(inputs, np.float32(0))])
    assert fmt.max == values[-1]
    return np.concatenate([inputs, -inputs, [np.float32(math.nan)]]).astype(np.float32)


def reference_cast(x: np.ndarray, name: str, *, saturate: bool) -> np.ndarray:
    """One cast by the independent implementation; saturation is clipping beforehand, which moves nothing inside the range."""
    top = np.float32(positive_values(name)[-1])
    with np.errstate(all="ignore"):
        return (np.clip(x, -top, top) if saturate else x).astype(NATIVE[name]).astype(np.float32)


def assert_same_bits(got: np.ndarray, wanted: np.ndarray, x: np.ndarray) -> None:
    """Equal bit for bit, so that -0.0 is not 0.0; any NaN is a NaN."""
    wrong = (got.view(np.int32) != wanted.view(np.int32)) & ~(np.isnan(got) & np.isnan(wanted))
    assert not wrong.any(), np.stack([x[wrong], got[wrong], wanted[wrong]], 1)[:5]


# -- nearest, against casts that round once ---------------------------------------------------------------------------


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("name", NATIVE)
def test_nearest_equals_the_hardware_format_bit_for_bit(name: str, saturate: bool) -> None:
    x = hard_inputs(name)
    got = round_to(torch.from_numpy(x), name, saturate=saturate).numpy()
    assert_same_bits(got, reference_cast(x, name, saturate=saturate), x)


@pytest.mark.parametrize("name", NATIVE)
def test_nearest_agrees_on_random_float32_bit_patterns(name: str) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32)  # every exponent alike: subnormals, overflow, infinities and NaNs of both signs
    assert_same_bits(round_to(torch.from_numpy(x), name).numpy(), reference_cast(x, name, saturate=False), x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NATIVE)
def test_every_code_point_stays_as_it_is_in_every_mode(name: str, mode: str, generator: torch.Generator) -> None:
    x = code_points(name)
    x = x[~np.isinf(x)] if name == "float8_e4m3" else x  # that format has no infinity to keep
    assert_same_bits(round_to(torch.from_numpy(x), name, mode=mode, generator=generator).numpy(), x, x)


def test_the_comparison_notices_the_wrong_mode_and_the_wrong_sign_of_zero() -> None:
    x = hard_inputs("bfloat16")
    wanted = reference_cast(x, "bfloat16", saturate=False)
    with pytest.raises(AssertionError):
        assert_same_bits(round_to(torch.from_numpy(x), "bfloat16", mode="toward_zero").numpy(), wanted, x)
    with pytest.raises(AssertionError):
        assert_same_bits(np.abs(wanted), wanted, x)


@pytest.mark.parametrize("name", NATIVE)
def test_overflow_goes_where_the_format_says(name: str) -> None:
    fmt = parse_format(name)
    huge = torch.tensor([math.inf, -math.inf, 1e38 * 3.4, -2 * fmt.max], dtype=torch.float64)
    assert round_to(huge, fmt, saturate=True).tolist() == [fmt.max, -fmt.max, fmt.max, -fmt.max]
    got = round_to(huge, fmt)
    if name == "float8_e4m3":
        assert got.isnan().all()
    else:
        assert got.tolist() == [math.inf, -math.inf, math.inf, -math.inf]


def test_tf32_is_float32_with_thirteen_bits_less() -> None:
    # Round half to even on the integer pattern: add just under half of the last kept place, plus its lowest bit.
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, 300_000, dtype=np.uint64).astype(np.uint32)
    ties = (bits & np.uint32(0xFFFFE000)) | np.uint32(0x1000)
    edges = np.concatenate([bits, ties, ties - 1, ties + 1])
    edges = edges[(edges & 0x7F800000) != 0x7F800000]  # finite
    wanted = (edges + np.uint32(0xFFF) + ((edges >> 13) & 1)) & np.uint32(0xFFFFE000)
    got = round_to(torch.from_numpy(edges.view(np.float32)), "tf32").numpy()
    assert_same_bits(got, wanted.view(np.float32), edges.view(np.float32))


# -- float64 inputs: exact rationals ----------------------------------------------------------------------------------


def exact_nearest(x: float, precision: int, emin: int, top: Fraction) -> float:
    """Round half to even in exact arithmetic; what rounds beyond ``top`` is infinite."""
    value = abs(Fraction(x))
    exponent = emin
    while Fraction(2) ** (exponent + 1) <= value:
        exponent += 1
    place = Fraction(2) ** (exponent - precision + 1)
    whole, rest = divmod(value / place, 1)
    up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1)
    rounded = (whole + up) * place
    return math.copysign(math.inf if rounded > top else float(rounded), x)


def limits(name: str) -> tuple[int, int, Fraction]:
    """(precision, emin, largest value) from the definition of the format, not from the library."""
    precision, emin = {
        "float32": (24, -126), "tf32": (11, -126), "bfloat16": (8, -126),
        "float16": (11, -14), "float8_e4m3": (4, -6), "float8_e5m2": (3, -14),
    }[name]  # fmt: skip
    top_significand = 2 - Fraction(2) ** (1 - precision)
    if name == "float8_e4m3":
        top_significand -= Fraction(1, 8)  # its last code is NaN
    return precision, emin, top_significand * Fraction(2) ** LAST_EXPONENT[name]


@given(
    name=st.sampled_from(sorted(FORMATS)),
    significand=st.integers(0, 2**25),
    exponent=st.integers(-155, 130),
    nudge=st.integers(-2, 2),
    negative=st.booleans(),
)
def test_float64_is_rounded_once(name: str, significand: int, exponent: int, nudge: int, negative: bool) -> None:
    """Near every kind of midpoint a float64 can be off by its last bit: where two roundings go wrong."""
    precision, emin, top = limits(name)
    half_place = (significand % 2 ** (precision + 1)) * 2.0 ** (max(exponent, emin) - precision)
    x = half_place
    for _ in range(abs(nudge)):
        x = math.nextafter(x, math.copysign(math.inf, nudge))
    x = -x if negative else x
    wanted = exact_nearest(x, precision, emin, top)
    if math.isinf(wanted):
        wanted = math.copysign(parse_format(name).overflow, x)
    got = round_to(torch.tensor(x, dtype=torch.float64), name).item()
    assert got == wanted or (math.isnan(got) and math.isnan(wanted))
    assert math.isnan(got) or math.copysign(1, got) == math.copysign(1, x)


@given(x=st.floats(allow_nan=False, allow_infinity=False), name=st.sampled_from(sorted(FORMATS)))
def test_any_float64_is_rounded_to_the_nearest(x: float, name: str) -> None:
    wanted = exact_nearest(x, *limits(name))
    got = round_to(torch.tensor([x], dtype=torch.float64), name).item()
    assert got == wanted or (math.isinf(wanted) and math.isnan(parse_format(name).overflow) and math.isnan(got))


def test_a_cast_from_float64_rounds_twice_and_round_to_does_not() -> None:
    # 1 + u + 2^-40 lies above the midpoint 1 + u of bf16, u = 2^-8, but float32 rounds it to the midpoint, and half to even
    # then goes down. The correct answer is the number above.
    x = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    assert round_to(x, "bfloat16").item() == 1 + 2.0**-7
    assert x.to(torch.bfloat16).item() == 1.0
    assert exact_nearest(x.item(), *limits("bfloat16")) == 1 + 2.0**-7


# -- toward zero and stochastic ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NATIVE)
def test_toward_zero_is_the_code_point_below(name: str) -> None:
    values = positive_values(name)
    x = hard_inputs(name)
    x = x[np.isfinite(x)]
    below = values[np.searchsorted(values, np.abs(x).astype(np.float64), side="right") - 1]  # never beyond the largest value
    assert_same_bits(
        round_to(torch.from_numpy(x), name, mode="toward_zero").numpy(), np.copysign(below, x).astype(np.float32), x
    )


def test_toward_zero_of_bf16_is_the_upper_half_of_the_float32_pattern() -> None:
    bits = np.random.default_rng(2).integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    bits = bits[(bits & 0x7F800000) != 0x7F800000]
    got = round_to(torch.from_numpy(bits.view(np.float32)), "bfloat16", mode="toward_zero").numpy()
    assert_same_bits(got, (bits & np.uint32(0xFFFF0000)).view(np.float32), bits.view(np.float32))


def test_toward_zero_keeps_an_infinity_infinite_unless_it_saturates() -> None:
    x = torch.tensor([math.inf, -math.inf])
    assert round_to(x, "float16", mode="toward_zero").tolist() == [math.inf, -math.inf]
    assert round_to(x, "float16", mode="toward_zero", saturate=True).tolist() == [65504.0, -65504.0]
    assert round_to(x, "float8_e4m3", mode="toward_zero").isnan().all()


def mean_error_in_sigmas(x: torch.Tensor, name: str, count: int, mode: str, generator: torch.Generator) -> np.ndarray:
    """(mean of ``count`` roundings - x) over its standard error ulp sqrt(f (1 - f) / count), f the way to the next number."""
    values = torch.from_numpy(positive_values(name))
    above = torch.searchsorted(values, x.abs(), right=True)
    low, high = values[above - 1], values[above]
    part = (x.abs() - low) / (high - low)
    rounded = round_to(x.expand(count, -1), name, mode=mode, generator=generator)
    assert bool(((rounded.abs() == low) | (rounded.abs() == high)).all())
    return ((rounded.mean(0) - x) / ((high - low) * (part * (1 - part) / count).sqrt())).numpy()


@pytest.mark.parametrize("name", NATIVE)
def test_stochastic_rounding_has_no_bias(name: str, generator: torch.Generator) -> None:
    # 40 numbers between code points, subnormal ones included. z-scores are standard normal: P(any |z| > 5) = 40 * 6e-7.
    values = positive_values(name)
    at = np.linspace(0, len(values) - 2, 40).astype(int)
    part = np.linspace(0.03, 0.97, 40)
    x = torch.from_numpy((values[at] + part * (values[at + 1] - values[at])) * np.where(np.arange(40) % 2, 1, -1))
    z = mean_error_in_sigmas(x, name, 40_000, "stochastic", generator)
    assert np.abs(z).max() < 5
    control = mean_error_in_sigmas(x, name, 40_000, "nearest", generator)  # always the same way: biased by up to half an ulp
    assert np.abs(control).max() > 100


def test_stochastic_rounding_follows_its_generator() -> None:
    x = torch.full((1000,), 1.001)
    draw = [round_to(x, "bf16", mode="stochastic", generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    before = torch.random.get_rng_state()
    round_to(x, "bf16", mode="stochastic", generator=torch.Generator().manual_seed(1))
    assert torch.equal(before, torch.random.get_rng_state())


# -- the size of the error --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["float32", "tf32", "bfloat16", "float16", "float8_e4m3", "float8_e5m2"])
def test_the_rms_of_rounding_a_log_uniform_significand(name: str, mode: str, generator: torch.Generator) -> None:
    # m = 2^U, U uniform: delta = e / m, e uniform over a cell. The relative standard error of the measured rms over N draws is
    # sqrt(E[d^4] / E[d^2]^2 - 1) / (2 sqrt N). Largest for stochastic rounding, where e is triangular, E[e^4] = eps^4/15 and
    # E[e^2] = eps^2/6: sqrt(36/15 * E[m^-4] / E[m^-2]^2 - 1) / 2 = 0.67, with E[m^-2] = 3/(8 ln 2), E[m^-4] = 15/(64 ln 2).
    # Within a cell of a coarse format log-uniform is not uniform: a correction of order eps^2 where the error is even about the
    # cell's middle, and of 9/8 eps E[1/m] = 0.8 eps where it is one-sided.
    fmt, count = parse_format(name), 400_000
    m = torch.exp2(torch.rand(count, dtype=torch.float64, generator=generator))
    delta = round_to(m, fmt, mode=mode, generator=generator) / m - 1
    tolerance = 5 * 0.67 / math.sqrt(count) + fmt.machine_epsilon ** (1 if mode == "toward_zero" else 2)
    assert delta.square().mean().sqrt().item() == pytest.approx(fmt.rms_of(mode), rel=tolerance)


def test_the_rms_of_bf16_is_neither_its_epsilon_nor_its_bound(generator: torch.Generator) -> None:
    m = torch.exp2(torch.rand(100_000, dtype=torch.float64, generator=generator))
    rms = (round_to(m, "bfloat16") / m - 1).square().mean().sqrt().item()
    assert 1 / rms == pytest.approx(603, rel=0.01)  # numerics: about 1/603
    for wrong in (1 / 128, 1 / 256):
        assert abs(rms / wrong - 1) > 0.5


@pytest.mark.parametrize("name", NATIVE)
def test_the_bounds_are_reached_and_not_passed(name: str) -> None:
    fmt = parse_format(name)
    values = positive_values(name)
    x = np.abs(hard_inputs(name)).astype(np.float64)
    x = torch.from_numpy(x[(x >= fmt.smallest_normal) & (x <= values[-1])])
    nearest = (round_to(x, name) / x - 1).abs().max().item()
    # Reached at the tie 1 + u, which goes down: u / (1 + u) by one correctly rounded division and subtraction.
    assert nearest == pytest.approx(fmt.bound_of("nearest"), rel=2**-40)
    chopped = (round_to(x, name, mode="toward_zero") / x - 1).abs().max().item()
    assert fmt.bound_of("nearest") < chopped < fmt.bound_of("toward_zero") == fmt.bound_of("stochastic")


@pytest.mark.parametrize("name", NATIVE)
def test_the_named_deltas_and_limits_are_those_of_the_code_points(name: str) -> None:
    fmt, values = parse_format(name), positive_values(name)
    spacing = values[np.searchsorted(values, 1.0) + 1] - 1.0
    assert relative_error("machine_epsilon", name) == fmt.machine_epsilon == spacing
    assert relative_error("unit_roundoff", name) == fmt.unit_roundoff == spacing / 2
    assert relative_error("rms", name) == fmt.rms == pytest.approx(spacing / math.sqrt(32 * math.log(2)), rel=2**-50)
    assert fmt.smallest_subnormal == values[1]
    assert fmt.smallest_normal == float(ml_dtypes.finfo(NATIVE[name]).smallest_normal)
    assert fmt.max == values[-1]


def test_the_papers_delta_is_bf16_machine_epsilon() -> None:
    assert relative_error("machine_epsilon") == 1 / 128
    assert relative_error(0.25) == 0.25
    assert relative_error("unit_roundoff", torch.float16) == 2.0**-11


# -- what goes in and what comes out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_shape_and_dtype_of_the_input_are_kept(dtype: torch.dtype) -> None:
    for shape in ((), (0, 3), (2, 1, 3)):
        y = round_to(torch.ones(shape, dtype=dtype), "e4m3")
        assert (y.shape, y.dtype) == (shape, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrower_input_is_left_alone(dtype: torch.dtype) -> None:
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    assert torch.equal(round_to(codes, "float32").nan_to_num(7.0), codes.nan_to_num(7.0))


def test_a_16_bit_input_is_rounded_as_its_value() -> None:
    codes = torch.from_numpy(positive_values("float16")).to(torch.float16)
    got = round_to(codes, "e5m2").double()
    assert torch.equal(got, round_to(codes.double(), "e5m2"))


@pytest.mark.parametrize(
    ("alias", "name"),
    [("bf16", "bfloat16"), ("FP16 ", "float16"), ("half", "float16"), ("e4m3", "float8_e4m3"), ("fp32", "float32")],
)
def test_formats_have_the_names_of_the_field(alias: str, name: str) -> None:
    assert parse_format(alias) is FORMATS[name]


@pytest.mark.parametrize("fmt", [f for f in FORMATS.values() if f.dtype is not None], ids=lambda f: f.name)
def test_a_torch_dtype_is_a_format(fmt: FloatFormat) -> None:
    assert parse_format(fmt.dtype) is fmt
    assert parse_format(fmt) is fmt


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'bfloat16'"):
        parse_format("bflot16")
    with pytest.raises(UnknownName, match=r"torch\.int8"):
        parse_format(torch.int8)
    with pytest.raises(UnknownName, match="'nearest'"):
        round_to(torch.ones(1), "bf16", mode="neares")
    with pytest.raises(UnknownName, match="unit_roundoff"):
        relative_error("unit_round_off")
    for name in DELTAS:
        assert relative_error(name) > 0


def test_integers_and_impossible_formats_are_refused() -> None:
    with pytest.raises(TypeError, match="floating-point"):
        round_to(torch.ones(2, dtype=torch.int64), "bf16")
    with pytest.raises(ValueError, match="precision"):
        FloatFormat("wide", 60, -126, 1e38)
    with pytest.raises(ValueError, match="max"):
        FloatFormat("empty", 8, -126, 0.0)
    with pytest.raises(ValueError, match="delta"):
        relative_error(-0.1)
