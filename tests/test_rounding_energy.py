"""Expected rounding errors of Gaussian values: predicted over measured, limits that are known exactly, and overflow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import ndtri
from torch import Tensor

from diffparam import FORMATS, FloatFormat, UnknownName, round_to
from diffparam.errors import NonFiniteError
from diffparam.rounding import MODES
from diffparam.rounding_energy import _exact, overflow_probability, relative_rounding, rounding_energy

COUNT = 200_001
NORMAL = torch.from_numpy(ndtri((np.arange(COUNT) + 0.5) / COUNT))
"""The middles of COUNT equal shares of a standard normal."""
NAMES = ("bfloat16", "float16", "float8_e4m3", "float8_e5m2", "tf32")
STDS = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 1.4, 3.0, 10.0, 31.0, 100.0)


def squared_errors(u: Tensor, fmt: FloatFormat, mode: str) -> Tensor:
    """Of each value; of stochastic rounding the mean over its two outcomes, (u - below)(above - u)."""
    if mode != "stochastic":
        return (round_to(u, fmt, mode=mode) - u).square()
    exponent = torch.frexp(u).exponent - 1
    spacing = torch.ldexp(torch.ones_like(u), exponent.clamp(min=fmt.emin) - (fmt.precision - 1))
    short = (u - round_to(u, fmt, mode="toward_zero")).abs()
    return short * (spacing - short)


def measured(fmt: FloatFormat, std: float, mode: str) -> float:
    u = NORMAL * std
    return float(squared_errors(u, fmt, mode)[u.abs() <= fmt.max].sum()) / COUNT


# Tolerance: the mean of N squared errors of kurtosis at most 3 has a relative standard error of sqrt(2 / N) = 0.3%, and from
# cell to cell the density changes by the order of a spacing, 1% of bf16's. 3% is what a user is promised.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_predicted_over_measured_is_one(name: str, mode: str) -> None:
    fmt = FORMATS[name]
    for std in STDS:
        assert 0.97 < rounding_energy(fmt, std**2, mode=mode) / measured(fmt, std, mode) < 1.03, std


@pytest.mark.parametrize("mode", MODES)
def test_below_the_smallest_subnormal_too(mode: str) -> None:
    # Where a Gaussian is narrower than the spacing next to zero: float16's is 2^-24 = 6e-8.
    for std in (1e-12, 1e-9, 1e-8, 3e-8, 1e-7, 3e-7):
        assert 0.97 < rounding_energy("float16", std**2, mode=mode) / measured(FORMATS["float16"], std, mode) < 1.03, std


def test_a_value_far_below_the_format_is_lost_whole() -> None:
    """To nearest and toward zero it becomes 0; stochastically it becomes the spacing s with probability |u| / s."""
    std, spacing = 1e-14, 2.0**-24
    for mode in ("nearest", "toward_zero"):
        assert rounding_energy("fp16", std**2, mode=mode) == pytest.approx(std**2, rel=1e-9)
    # E[|u| (s - |u|)] = s std sqrt(2 / pi) - std^2; the second term is std / s = 2e-7 of the first.
    assert rounding_energy("fp16", std**2, mode="stochastic") == pytest.approx(spacing * std * math.sqrt(2 / math.pi), rel=1e-5)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "tf32", "float32"])
def test_a_gaussian_of_any_size_has_the_rms_of_a_log_uniform_significand(name: str) -> None:
    """To half a per cent, the first Fourier coefficient of u^2 p(u) in log2 u; averaged over an octave, exactly."""
    fmt = FORMATS[name]
    ratios = np.array([rounding_energy(fmt, 4.0**k) / 4.0**k for k in np.arange(8) / 8]) / fmt.rms**2
    assert np.abs(ratios - 1).max() < 0.006
    assert np.abs(ratios - 1).max() > 0.002  # and not exactly: the octave matters
    assert ratios.mean() == pytest.approx(1.0, abs=1e-6)


def test_values_of_one_binade_are_another_matter() -> None:
    """The negative control: there E[e^2/u^2] is (1 / (32 ln 2)) / (ln 2 / 18) = 1.17 times E[e^2]/E[u^2]."""
    fmt = FORMATS["bfloat16"]
    seen = measured(fmt, 1.0, "nearest")
    assert abs(fmt.rms**2 / seen - 1) < 0.03
    assert seen / relative_rounding(fmt) ** 2 == pytest.approx(18 / (32 * math.log(2) ** 2), rel=0.01)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [*NAMES, "float32"])
def test_an_energy_is_periodic_in_binades_and_takes_arrays(name: str, mode: str) -> None:
    fmt = FORMATS[name]
    std = 2.0 ** np.array([[-1.0, 0.0], [1.0, 2.0]]) * 1.2
    got = rounding_energy(fmt, std**2, mode=mode)
    assert got.shape == std.shape
    if fmt.emin < -100:  # far from subnormals and overflow
        np.testing.assert_allclose(got / std**2, got[0, 0] / std[0, 0] ** 2, rtol=1e-12)
    assert rounding_energy(fmt, float(std[1, 0] ** 2), mode=mode) == pytest.approx(got[1, 0], rel=1e-13)
    assert rounding_energy(fmt, 0.0, mode=mode) == 0.0
    np.testing.assert_array_equal(rounding_energy(fmt, np.zeros(3), mode=mode), np.zeros(3))


@pytest.mark.parametrize("name", NAMES)
def test_stochastic_is_twice_and_chopping_about_four_times_nearest(name: str) -> None:
    nearest, stochastic, chopped = (rounding_energy(name, 1.0, mode=m) for m in ("nearest", "stochastic", "toward_zero"))
    # Cells of uniform density have q^2 times 1/12, 1/6 and 1/3. A density that changes within a cell moves chopping to first
    # order in the unit roundoff: of e5m2 that is 1/8.
    assert stochastic / nearest == pytest.approx(2.0, rel=0.05)
    assert chopped / nearest == pytest.approx(4.0, rel=1.5 * FORMATS[name].unit_roundoff + 0.01)


@given(st.floats(-6.0, 2.0), st.sampled_from(NAMES), st.sampled_from(MODES))
def test_an_energy_lies_between_nothing_and_the_largest_error(log_std: float, name: str, mode: str) -> None:
    fmt, std = FORMATS[name], 10.0**log_std
    energy = rounding_energy(fmt, std**2, mode=mode)
    # Minkowski: the rms error is at most the relative bound times the rms, plus one subnormal spacing (overflow is left out).
    assert 0.0 < energy <= (fmt.bound_of(mode) * std + fmt.smallest_subnormal) ** 2 * (1 + 1e-9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [*NAMES, "float32"])
def test_the_table_is_as_good_as_the_sums_it_was_made_of(name: str, mode: str) -> None:
    """Across its ends too: float16's smallest subnormal is 6e-8, and e4m3's largest value 448."""
    std = np.geomspace(1e-9, 1e6, 1501)
    got, exact = rounding_energy(name, std**2, mode=mode), _exact(FORMATS[name], std, mode)
    seen = exact > 1e-7 * std**2 * FORMATS[name].machine_epsilon ** 2  # closed forms of cells lose the digits of less
    # where sums of cells and of binades meet they differ by 0.5%, toward zero
    np.testing.assert_allclose(got[seen], exact[seen], rtol=0.005 if mode == "toward_zero" else 1e-4)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_a_mean_square_that_is_none_is_refused(bad: float) -> None:
    with pytest.raises(NonFiniteError, match="mean_square"):
        rounding_energy("bf16", np.array([1.0, bad]))


def test_an_unknown_mode_or_format_is_refused_by_name() -> None:
    with pytest.raises(UnknownName, match="mode"):
        rounding_energy("bf16", 1.0, mode="up")
    with pytest.raises(UnknownName, match="format"):
        rounding_energy("bf17", 1.0)
    with pytest.raises(UnknownName, match="mode"):
        relative_rounding("bf16", "up")


# -- overflow ---------------------------------------------------------------------------------------------------------


def test_the_share_beyond_the_range_is_what_is_seen() -> None:
    for name in ("float16", "float8_e4m3", "float8_e5m2"):
        fmt = FORMATS[name]
        for sigmas in (0.5, 1.0, 2.0, 3.0):
            std = fmt.max / sigmas
            seen = float((NORMAL.abs() * std > fmt.max).double().mean())
            assert overflow_probability(fmt, std**2) == pytest.approx(seen, abs=2 / COUNT)  # one point of the grid each side
            assert overflow_probability(fmt, std**2) == pytest.approx(math.erfc(sigmas / math.sqrt(2)), rel=1e-12)


def test_the_share_far_in_the_tail_keeps_its_digits_and_zero_has_none() -> None:
    # 1 - erf would be 0 here: 2 (1 - Phi(20)) = 5.5e-89
    assert overflow_probability("e4m3", (448 / 20) ** 2) == pytest.approx(math.erfc(20 / math.sqrt(2)), rel=1e-12)
    assert overflow_probability("e4m3", 0.0) == 0.0
    np.testing.assert_array_equal(overflow_probability("e4m3", np.array([0.0, 0.0])), [0.0, 0.0])
    assert overflow_probability("bf16", 1.0) == 0.0


# -- the log-uniform significand --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_the_closed_form_is_the_quadrature(name: str, mode: str) -> None:
    """E[e^2] / E[m^2] over m in [1, 2) of density 1 / (m ln 2): the cells are equal, so E[e^2] is that of one cell."""
    fmt = FORMATS[name]
    cell = {
        "nearest": quad(lambda e: e**2, -0.5, 0.5)[0],
        "toward_zero": quad(lambda e: e**2, 0.0, 1.0)[0],
        "stochastic": quad(lambda e: e * (1.0 - e), 0.0, 1.0)[0],
    }[mode]
    mean_square = quad(lambda m: m**2 / (m * math.log(2.0)), 1.0, 2.0)[0]
    expected = fmt.machine_epsilon * math.sqrt(cell / mean_square)
    assert relative_rounding(fmt, mode) == pytest.approx(expected, rel=1e-12)


def test_the_closed_form_is_what_a_log_uniform_significand_suffers() -> None:
    m = torch.exp2((torch.arange(COUNT, dtype=torch.float64) + 0.5) / COUNT)
    for name in ("bfloat16", "float16", "tf32"):
        for mode in MODES:
            seen = math.sqrt(float(squared_errors(m, FORMATS[name], mode).mean() / m.square().mean()))
            assert relative_rounding(name, mode) == pytest.approx(seen, rel=0.005)
