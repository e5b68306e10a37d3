"""Scaled formats against slow independent implementations, and their predicted errors against measured ones."""

from __future__ import annotations

import copy
import dataclasses
import math
from fractions import Fraction
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffparam import ErrorModel, GaussianMixture, Schedule, UnknownName, V
from diffparam.errors import NonFiniteError
from diffparam.prediction.budget import ErrorBudget, predict_error
from diffparam.quantization import ELEMENTS, AmaxRounding, BlockRounding, amax_quantiles, expected_amax, parse_element
from diffparam.rounding import _ldexp
from diffparam.solvers.ddim import plan_ddim
from diffparam.solvers.loop import sample

NATIVE = {
    "float8_e4m3": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float6_e2m3": ml_dtypes.float6_e2m3fn,
    "float6_e3m2": ml_dtypes.float6_e3m2fn,
    "float4_e2m1": ml_dtypes.float4_e2m1fn,
}
"""The independent implementation of each float element."""
EMAX = {"int8": 0, "float8_e4m3": 8, "float8_e5m2": 15, "float6_e2m3": 2, "float6_e3m2": 4, "float4_e2m1": 2}
"""Exponents of the largest normal numbers, copied from table 1 of OCP MX v1.0."""
LARGEST = {"int8": 127 / 64, "float8_e4m3": 448, "float8_e5m2": 57344, "float6_e2m3": 7.5, "float6_e3m2": 28, "float4_e2m1": 6}
FLOATS = sorted(NATIVE)


def positive_values(name: str) -> list[Fraction]:
    """The finite values from 0 upwards in the order of their codes, so that an even place is an even significand."""
    if name == "int8":
        return [Fraction(k, 64) for k in range(128)]
    bits = int(name[5])
    with np.errstate(all="ignore"):
        values = np.arange(2 ** (bits - 1), dtype=np.uint8).view(NATIVE[name]).astype(np.float64)
    return [Fraction(v) for v in values[np.isfinite(values)].tolist()]


def nearest_value(x: Fraction, values: list[Fraction]) -> Fraction:
    """By exhaustion: the nearest of the values, of two the one at the even place."""
    best = min(range(len(values)), key=lambda i: (abs(values[i] - abs(x)), i % 2))
    return values[best] if x >= 0 else -values[best]


def to_float32(x: Fraction) -> float:
    """Rounded once: a fraction is first brought to 24 bits as a whole number."""
    if x == 0:
        return 0.0
    shift = 24 - (abs(x.numerator).bit_length() - x.denominator.bit_length())
    while abs(x * Fraction(2) ** shift) >= 2**24:
        shift -= 1
    return math.ldexp(round(x * Fraction(2) ** shift), -shift)


def slow_amax(x: np.ndarray, name: str, groups: list[list[int]]) -> np.ndarray:
    """Quantised and dequantised in rational arithmetic; ``groups`` are flat indices that share a scale."""
    values, out = positive_values(name), np.zeros(x.size, np.float32)
    for group in groups:
        exact = {i: Fraction(float(x.flat[i])) for i in group}
        amax = max(abs(v) for v in exact.values())
        for i, v in exact.items():
            out[i] = to_float32(nearest_value(v * values[-1] / amax, values) * amax / values[-1]) if amax else 0.0
    return out.reshape(x.shape)


def slow_blocks(x: np.ndarray, name: str, block: int = 32) -> np.ndarray:
    """OCP MX v1.0, section 6.3, value by value: float32 numbers over a power of two are cast by the independent library."""
    out = np.zeros_like(x)
    for row_in, row_out in zip(x.reshape(-1, x.shape[-1]), out.reshape(-1, x.shape[-1]), strict=True):
        for start in range(0, len(row_in), block):
            part = row_in[start : start + block]
            amax = float(np.abs(part).max())
            if amax == 0:
                continue
            scale = 2.0 ** max(math.floor(math.log2(amax)) - EMAX[name], -127)
            element = np.clip(part / scale, -LARGEST[name], LARGEST[name]).astype(np.float32)
            rounded = np.round(element * 64) / 64 if name == "int8" else element.astype(NATIVE[name])
            row_out[start : start + block] = rounded.astype(np.float32) * scale
    return out


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def mean_square(x: Tensor) -> float:
    return float(x.double().square().mean())


# -- bit for bit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ELEMENTS)
def test_the_formats_are_those_of_the_standard(name: str) -> None:
    values, fmt = positive_values(name), ELEMENTS[name]
    assert fmt.max == LARGEST[name] == values[-1]
    assert fmt.smallest_subnormal == values[1]
    assert math.floor(math.log2(fmt.max)) == EMAX[name]


@pytest.mark.parametrize("over", [None, (-1,), (0, 2), 1])
@pytest.mark.parametrize("name", ELEMENTS)
def test_amax_scaling_is_exact_arithmetic(name: str, over: tuple[int, ...] | int | None) -> None:
    x = normal(3, 4, 5, dtype=torch.float32) * torch.tensor([1.0, 1e-6, 1e5]).reshape(3, 1, 1)
    dims = (0, 1, 2) if over is None else tuple(d % 3 for d in ((over,) if isinstance(over, int) else over))
    index = np.moveaxis(np.arange(60).reshape(3, 4, 5), dims, range(-len(dims), 0))
    groups = index.reshape(-1, math.prod((3, 4, 5)[d] for d in dims)).tolist()
    got = AmaxRounding(name, len(groups[0]), over).apply(x)
    np.testing.assert_array_equal(got.numpy(), slow_amax(x.numpy(), name, groups))
    wrong = slow_amax(x.numpy(), name, [[i] for i in range(60)])  # the control: one scale for each value is exact
    assert not np.array_equal(got.numpy(), wrong)


@pytest.mark.parametrize("amax", [None, 1, 17, 21])
@pytest.mark.parametrize("name", ELEMENTS)
def test_ties_go_to_even_after_scaling_too(name: str, amax: int | None) -> None:
    """Midpoints, scaled so that the largest value becomes ``amax``; None leaves them.

    Then the scale is inexact, and still some midpoints over it are float32 numbers: of e4m3 multiples of 7, over 448. Dividing
    by a rounded scale would miss such ties.
    """
    values = positive_values(name)
    ratio = Fraction(1) if amax is None else amax / values[-1]
    middle = [m for m in ((a + b) / 2 * ratio for a, b in pairwise(values)) if Fraction(to_float32(m)) == m]
    assert middle
    x = np.array([*middle, *(-m for m in middle), values[-1] * ratio], np.float32)
    got = AmaxRounding(name, len(x)).apply(torch.from_numpy(x))
    np.testing.assert_array_equal(got.numpy(), slow_amax(x, name, [list(range(len(x)))]))


@pytest.mark.parametrize("shape", [(64,), (2, 3, 32), (5, 70), (33,), (4, 1)])
@pytest.mark.parametrize("name", ELEMENTS)
def test_blocks_equal_the_standard(name: str, shape: tuple[int, ...]) -> None:
    """Ragged last blocks included, and sizes over 60 binades, so that shared exponents reach the smallest."""
    x = normal(*shape, dtype=torch.float32)
    x = x * torch.exp2(torch.linspace(-150, 30, x.numel()).round()).reshape(shape)
    np.testing.assert_array_equal(BlockRounding(name).apply(x).numpy(), slow_blocks(x.numpy(), name))


@pytest.mark.parametrize("block", [1, 7, 16, 100])
def test_blocks_of_any_length(block: int) -> None:
    x = normal(3, 50, dtype=torch.float32)
    for name in ("float4_e2m1", "int8"):
        np.testing.assert_array_equal(BlockRounding(name, block).apply(x).numpy(), slow_blocks(x.numpy(), name, block))


def test_blocks_by_hand() -> None:
    """e2m1 has 0, 0.5, 1, 1.5, 2, 3, 4, 6; the shared exponent of a largest value in [4, 8) is 0."""
    values = torch.tensor([5.0, 3.4, 2.5, 1.25, 0.25, 0.26, -0.74, -7.9])
    assert BlockRounding("fp4").apply(values).tolist() == [4.0, 3.0, 2.0, 1.0, 0.0, 0.5, -0.5, -6.0]  # -7.9 saturates
    assert BlockRounding("fp4").apply(values * 2).tolist() == [8.0, 6.0, 4.0, 2.0, 0.0, 1.0, -1.0, -12.0]
    # int8: largest in [1, 2) means steps of 1/64
    assert BlockRounding("int8").apply(torch.tensor([1.999, 0.5 / 64, 1.5 / 64])).tolist() == [127 / 64, 0.0, 2 / 64]


@pytest.mark.parametrize(
    "model", [AmaxRounding("int8", 64), AmaxRounding("e4m3", 64), BlockRounding("e5m2"), BlockRounding("int8")]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_tensor_is_rounded_once_at_the_end(model: ErrorModel, dtype: torch.dtype) -> None:
    x = normal(64, dtype=dtype)
    kept = x.clone()
    got = model.apply(x)
    exact = model.apply(x.double())
    assert got.dtype is dtype
    assert torch.equal(x, kept)
    neighbours = torch.stack([got.double(), torch.nextafter(got, got * 2).double(), torch.nextafter(got, got * 0).double()])
    assert torch.equal((neighbours - exact).abs().argmin(0), torch.zeros(64, dtype=torch.int64))


@pytest.mark.parametrize("name", ELEMENTS)
def test_what_is_quantised_stays(name: str) -> None:
    x = normal(4, 64, dtype=torch.float32)
    # The scale of the second time is that of the first: the largest value is represented exactly, or saturates below itself.
    once = BlockRounding(name).apply(x)
    assert torch.equal(BlockRounding(name).apply(once), once)
    per_row = AmaxRounding(name, 64, (-1,))
    once = per_row.apply(x.double())
    torch.testing.assert_close(per_row.apply(once), once, rtol=2.0**-51, atol=0.0)


# -- corners ----------------------------------------------------------------------------------------------------------

MODELS = [*(AmaxRounding(name, 48) for name in ELEMENTS), *(BlockRounding(name) for name in ELEMENTS)]


def ident(model: ErrorModel) -> str:
    return f"{type(model).__name__} {model.element.name}"


@pytest.mark.parametrize("model", MODELS, ids=ident)
def test_zeros_stay_zeros(model: ErrorModel) -> None:
    for shape in ((48,), (3, 5), (), (0,), (2, 0)):
        got = model.apply(torch.zeros(shape))
        assert got.shape == shape
        assert torch.equal(got, torch.zeros(shape))
    assert model.energy(0.0) == 0.0
    np.testing.assert_array_equal(model.energy(np.zeros(2)), np.zeros(2))
    with_a_row_of_zeros = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    assert torch.equal(AmaxRounding(model.element, 2, (-1,)).apply(with_a_row_of_zeros), with_a_row_of_zeros)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("model", MODELS, ids=ident)
def test_a_value_that_is_not_finite_is_refused(model: ErrorModel, bad: float) -> None:
    with pytest.raises(NonFiniteError, match="value must be finite"):
        model.apply(torch.tensor([1.0, bad]))


def test_an_outlier_costs_those_that_share_its_scale_alone() -> None:
    x = normal(64, 32)
    x = x.sign() * x.abs().clamp(0.5, 3.0)
    x[10, 7] = 1e4
    others = torch.ones_like(x, dtype=torch.bool)
    others[10, 7] = False
    for model, zeros in (
        (AmaxRounding("int8", x.numel()), 64 * 32 - 1),  # the step is 1e4 / 127 = 79: every other value of the tensor becomes 0
        (AmaxRounding("int8", 32, (-1,)), 31),
        (BlockRounding("int8"), 31),
    ):
        got = model.apply(x)
        assert int((got[others] == 0).sum()) == zeros
        assert got[10, 7].item() == pytest.approx(1e4, rel=2**-6)
        assert math.sqrt(mean_square(got - x)) <= model.bound(mean_square(x))
    kept = AmaxRounding("e5m2", x.numel()).apply(x)[others]  # a float element has smaller steps for smaller values
    assert ((kept - x[others]).abs() <= x[others].abs() / 8 + 1e4 / 57344 * 2.0**-17).all()


def test_tiny_and_huge_values_keep_their_digits() -> None:
    x = normal(64)
    for model in (AmaxRounding("int8", 64), AmaxRounding("e4m3", 64)):
        for size in (2.0**-1000, 2.0**1000):
            assert torch.equal(model.apply(x * size), model.apply(x) * size)
    # A block's scale ends at 2^-127: what is far below is lost, and what is beyond 2^127 is refused.
    assert torch.equal(BlockRounding("e4m3").apply(x * 2.0**-200), torch.zeros(64, dtype=torch.float64))
    with pytest.raises(ValueError, match="value must be below 2\\^136"):
        BlockRounding("e4m3").apply(x * 2.0**200)
    top = torch.full((32,), torch.finfo(torch.float32).max)
    for name in ELEMENTS:  # float32 never gets there
        assert BlockRounding(name).apply(top).isfinite().all()


def test_a_ragged_block_has_a_scale_of_its_own() -> None:
    x = normal(40) * torch.tensor([100.0] * 32 + [0.01] * 8)
    got = BlockRounding("int8").apply(x)
    assert torch.equal(got[32:], BlockRounding("int8").apply(x[32:]))
    assert (got[32:] != 0).any()
    assert (AmaxRounding("int8", 40).apply(x)[32:] == 0).all()  # the control: one scale for all


# -- predicted over measured ------------------------------------------------------------------------------------------

# Tolerance: N = 2^18 squared errors; in a group of n they share a scale, whose square varies by less than its own mean, so the
# standard error is below sqrt(2 / N) + sqrt(n / N) / log(n) of the groups, 1% at n = 1024. Predictions are promised to 3%.
COUNT = 2**18


@pytest.mark.parametrize("count", [2, 3, 16, 64, 1024])
@pytest.mark.parametrize("name", ELEMENTS)
def test_the_energy_of_amax_scaling_is_what_is_measured(name: str, count: int) -> None:
    model, x = AmaxRounding(name, count, (-1,)), normal(COUNT // count, count, seed=count) * 3.7
    assert 0.97 < model.energy(3.7**2) / mean_square(model.apply(x) - x) < 1.03


@pytest.mark.parametrize("name", ["int8", "float8_e4m3", "float4_e2m1"])
def test_the_energy_of_a_whole_tensor_is_what_is_measured(name: str) -> None:
    model = AmaxRounding(name, 4096)
    draws = [normal(4, 32, 32, seed=seed) for seed in range(64)]
    measured = np.mean([mean_square(model.apply(x) - x) for x in draws])
    assert 0.97 < model.energy(1.0) / measured < 1.03


@pytest.mark.parametrize("std", [0.011, 0.75, 1.0, 1.3, 1.8, 50.0])
@pytest.mark.parametrize("name", ELEMENTS)
def test_the_energy_of_blocks_is_what_is_measured(name: str, std: float) -> None:
    model, x = BlockRounding(name), normal(COUNT // 64, 64, seed=1) * std
    assert 0.97 < model.energy(std**2) / mean_square(model.apply(x) - x) < 1.03


@pytest.mark.parametrize("block", [1, 2, 16, 128])
@pytest.mark.parametrize("name", ELEMENTS)
def test_the_energy_of_other_blocks_too(name: str, block: int) -> None:
    model, x = BlockRounding(name, block), normal(COUNT // 128, 128, seed=2) * 1.2
    assert 0.97 < model.energy(1.2**2) / mean_square(model.apply(x) - x) < 1.03


def test_without_the_law_of_the_maximum_the_prediction_fails() -> None:
    """The negative control: four standard deviations whatever the count, and an error for the largest value too."""
    for count in (4, 1024):
        naive = (4 / 127) ** 2 / 12
        assert not 0.9 < naive / AmaxRounding("int8", count).energy(1.0) < 1.1
    # One value alone is exact; of two one is: half the energy that a uniform error would have.
    assert AmaxRounding("int8", 1).energy(1.0) == 0.0
    assert AmaxRounding("int8", 2).energy(1.0) == pytest.approx(second_moment_of_two() / 127**2 / 12 / 2, rel=0.005)


def second_moment_of_two() -> float:
    """E[max(z1^2, z2^2)] = 1 + 2 / pi: half the sum plus half the mean absolute difference of two squares of normals."""
    return 1 + 2 / math.pi


def test_the_expected_maximum() -> None:
    """Closed forms: sqrt(2 / pi) for one, 2 / sqrt(pi) for two; larger ones by simulation, to five standard errors."""
    assert expected_amax(1) == pytest.approx(math.sqrt(2 / math.pi), rel=1e-3)
    assert expected_amax(2) == pytest.approx(2 / math.sqrt(math.pi), rel=1e-3)
    assert (amax_quantiles(2, 4096) ** 2).mean() == pytest.approx(second_moment_of_two(), rel=1e-3)
    for count in (32, 4096):
        seen = normal(2**21 // count, count).abs().amax(1)
        error = 5 * seen.std().item() / math.sqrt(len(seen))
        assert expected_amax(count) == pytest.approx(seen.mean().item(), abs=error)
    # (2 Phi(A) - 1)^n = 1/2 at erfc(A / sqrt 2) = ln 2 / n: float64 has no digit of 2 Phi - 1 left there.
    median = float(amax_quantiles(10**12, 1)[0])
    assert math.erfc(median / math.sqrt(2)) == pytest.approx(math.log(2) / 10**12, rel=1e-9)
    assert np.isfinite(amax_quantiles(10**15)).all()


def test_an_energy_follows_the_size_and_takes_arrays() -> None:
    sizes = np.array([0.3, 1.2, 4.8, 19.2])  # a factor of 2 in the rms each
    for model in MODELS:
        got = model.energy(sizes)
        np.testing.assert_allclose(got / sizes, got[0] / sizes[0], rtol=1e-9)
        assert model.energy(1.2) == pytest.approx(got[1])
        assert model.rms**2 == pytest.approx(model.energy(1.0))
        assert model.bound(sizes).shape == (4,)
    between = BlockRounding("int8").energy(np.array([1.0, 2.0])) / [1.0, 2.0]
    assert abs(between[1] / between[0] - 1) > 0.05  # the scale is a power of two: half an octave matters


@pytest.mark.parametrize("model", MODELS, ids=ident)
def test_whether_an_error_scales_with_its_value(model: ErrorModel) -> None:
    """Squared errors of values around 1.5 std over those around 0.3 std, two binades below: 1 where they do not scale.

    Were all of them normal numbers of the format the ratio would be 16; few of e2m1's and e2m3's are.
    """
    x = normal(COUNT // 48, 48)
    error = (dataclasses.replace(model, **({"over": (-1,)} if isinstance(model, AmaxRounding) else {})).apply(x) - x).square()
    large, small = (float(error[(x.abs() > low) & (x.abs() < high)].mean()) for low, high in ((1.2, 1.8), (0.24, 0.36)))
    if model.element.name == "int8":
        assert not model.scales_with_value
        assert 0.9 < large / small < 1.1
    else:
        assert model.scales_with_value
        assert large / small > 2.0


@pytest.mark.parametrize("model", [AmaxRounding("int8", 8, -1), AmaxRounding("e4m3", 8, -1), AmaxRounding("e2m1", 8, -1),
                                   *(BlockRounding(name, 8) for name in ELEMENTS)], ids=ident)  # fmt: skip
@settings(max_examples=50)
@given(data=st.data())
def test_no_values_exceed_a_bound(model: ErrorModel, data: st.DataObject) -> None:
    number = st.builds(lambda e, m: m * 2.0**e, st.integers(-140, 40), st.floats(-1.0, 1.0))
    rows = data.draw(st.lists(st.lists(number, min_size=8, max_size=8), min_size=1, max_size=3))
    x = torch.tensor(rows, dtype=torch.float64)
    error = math.sqrt(mean_square(model.apply(x) - x))
    assert error <= model.bound(mean_square(x)) * (1 + 1e-12)


# -- in a prediction --------------------------------------------------------------------------------------------------


QUANTISED = [AmaxRounding("int8", 2048), AmaxRounding("e4m3", 2048), BlockRounding("int8"), BlockRounding("e2m1")]
OUTPUT_ALONE = {"arithmetic": None, "state": None, "timestep": None}


def run(error: ErrorModel, eta: float) -> tuple[ErrorBudget, float]:
    """Ten steps of the exact network of Gaussian data: predicted, and measured over 24 runs of 2048 values."""
    data, schedule = GaussianMixture.gaussian(0.5, dim=32), Schedule.cosine(1000).respace(10)
    plan = plan_ddim(schedule, param=V, eta=eta)
    model, seen = data.model(schedule, V), []
    for seed in range(24):
        exact, moved = (
            sample(model, normal(64, 32, seed=seed), plan, generator=torch.Generator().manual_seed(seed), output_error=e)
            for e in (None, error)
        )
        seen.append(mean_square(moved - exact))
    return predict_error(plan, 0.5, output=error, **OUTPUT_ALONE), math.sqrt(np.mean(seen))


@pytest.mark.parametrize("error", QUANTISED, ids=ident)
def test_a_stochastic_run_with_quantised_outputs_errs_as_predicted(error: ErrorModel) -> None:
    """Fresh noise at each step makes the errors independent. 49152 errors of a run share ten scales: 10% is generous."""
    budget, measured = run(error, eta=1.0)
    assert 0.9 < budget.rms / measured < 1.1
    assert budget.rms < budget.worst


@pytest.mark.parametrize("error", QUANTISED[:2], ids=ident)
def test_a_scale_that_follows_the_outputs_repeats_their_errors(error: ErrorModel) -> None:
    """Deterministic and linear: every output is U_k z, so value over scale is nearly the same in each call, with its error.

    Independent errors in quadrature are then too small, and the sum of all with one sign, the other end, is too large.
    """
    budget, measured = run(error, eta=0.0)
    assert 1.3 * budget.independent < measured < budget.correlated


# -- as values --------------------------------------------------------------------------------------------------------


def test_models_are_values_and_satisfy_the_protocol() -> None:
    for model in MODELS:
        assert isinstance(model, ErrorModel)
        twin = copy.deepcopy(model)
        assert (twin, hash(twin)) == (model, hash(model))
        assert [other for other in MODELS if other == model] == [model]
        with pytest.raises(dataclasses.FrozenInstanceError):
            model.element = "int8"


def test_names_are_parsed_once() -> None:
    assert parse_element(" E4M3 ") is parse_element(torch.float8_e4m3fn) is ELEMENTS["float8_e4m3"]
    assert parse_element(torch.int8) is parse_element("int8") is parse_element(ELEMENTS["int8"])
    assert AmaxRounding("fp8_e5m2", 4, -1) == AmaxRounding(torch.float8_e5m2, 4, (-1,))


def test_what_cannot_be_quantised_to_is_refused_by_name() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'int8'"):
        AmaxRounding("int9", 4)
    with pytest.raises(UnknownName, match="element"):
        BlockRounding(torch.bfloat16)
    with pytest.raises(TypeError, match="element"):
        BlockRounding(8)
    with pytest.raises(ValueError, match="count"):
        AmaxRounding("int8", 0)
    with pytest.raises(ValueError, match="block"):
        BlockRounding("int8", 0)
    with pytest.raises(ValueError, match="over must name at least one"):
        AmaxRounding("int8", 4, ())
    with pytest.raises(ValueError, match="over must name dimensions of value"):
        AmaxRounding("int8", 4, (2,)).apply(torch.zeros(2, 2))
    with pytest.raises(TypeError, match="floating-point"):
        AmaxRounding("int8", 4).apply(torch.zeros(2, dtype=torch.int32))


def test_scaling_by_powers_of_two_is_exact() -> None:
    """What the quantisers rest on: also where 2^exponent itself would overflow."""
    x = torch.tensor([2.0**-1074, 1.5], dtype=torch.float64)
    assert _ldexp(x, torch.tensor([1074 + 500, 1000])).tolist() == [2.0**500, 1.5 * 2.0**1000]
