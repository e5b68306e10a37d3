"""Guidance commutes with every conversion and every step, because its weights sum to one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import UNIT, assert_within, dtypes, inner_phis, is_regular, params, rounding_bound, samples

from diffparam import V, convert, ddim_coefficients, ddim_step, guidance_error_gain, guide, predict_x0, round_to
from diffparam.conversion import conversion_gains

FEW = settings(max_examples=80)
omegas = st.one_of(st.floats(-3.0, 20.0), st.sampled_from([0.0, 0.5, 1.0, 7.5]))


def amplified(omega):
    """|1 - omega| + |omega|: what errors of the two branches are multiplied by at worst."""
    return abs(1 - omega) + abs(omega)


@FEW
@given(omegas, st.integers(0, 10**6))
def test_it_is_the_papers_formula(omega, seed):
    uncond, cond = samples(seed, 7)
    expected = uncond + omega * (cond - uncond)
    assert_within(guide(uncond, cond, omega), expected, rounding_bound(6 * amplified(omega), uncond, cond))


@FEW
@given(dtypes(), st.integers(0, 10**6))
def test_zero_and_one_choose_a_branch_exactly(dtype, seed):
    uncond, cond = samples(seed, 7, dtype=dtype)
    assert torch.equal(guide(uncond, cond, 0.0), uncond)
    assert torch.equal(guide(uncond, cond, 1.0), cond)
    assert torch.equal(guide(uncond, cond, 1), cond)


@FEW
@given(dtypes(), omegas, st.integers(0, 10**6))
def test_equal_branches_are_left_alone(dtype, omega, seed):
    (u,) = samples(seed, 7, dtype=dtype, count=1)
    assert torch.equal(guide(u, u.clone(), omega), u)


@FEW
@given(params(), params(), omegas, inner_phis(), st.integers(0, 10**6))
def test_it_commutes_with_every_conversion(a, b, omega, phi, seed):
    # A.4 of the paper, for any pair. Left: 12 roundings on the guided output; right: 12 on each branch, amplified; and the
    # roundings of guidance itself, carried through the gain.
    assume(is_regular(a, phi) and is_regular(b, phi))
    uncond, cond, x_t = samples(seed, 7, count=3)
    g_u, g_x = conversion_gains(phi, source=a, target=b)
    left = convert(guide(uncond, cond, omega), x_t, phi, source=a, target=b)
    right = guide(*(convert(u, x_t, phi, source=a, target=b) for u in (uncond, cond)), omega)
    assert_within(left, right, rounding_bound(32 * amplified(omega), g_u * uncond, g_u * cond, g_x * x_t))


@FEW
@given(params(), omegas, inner_phis(), inner_phis(), st.integers(0, 10**6))
def test_it_commutes_with_a_step(param, omega, phi_t, phi_s, seed):
    assume(is_regular(param, phi_t))
    uncond, cond, x_t = samples(seed, 7, count=3)
    step = ddim_coefficients(phi_t, phi_s, param=param)
    left = ddim_step(guide(uncond, cond, omega), x_t, phi_t, phi_s, param=param)
    right = guide(*(ddim_step(u, x_t, phi_t, phi_s, param=param) for u in (uncond, cond)), omega)
    bound = rounding_bound(32 * amplified(omega), step.gain_u * uncond, step.gain_u * cond, step.gain_x * x_t)
    assert_within(left, right, bound)


def test_rescaling_and_clipping_do_not_commute():
    # Negative control: both act in one space, and give another sample when done in v than when done in x0.
    uncond, cond, x_t = samples(2, 64, count=3)
    phi, omega = 0.9, 6.0

    def rescaled(u, c):
        guided = guide(u, c, omega)
        return guided * (c.std() / guided.std())

    in_v = predict_x0(rescaled(uncond, cond), x_t, phi, param=V)
    in_x0 = rescaled(*(predict_x0(u, x_t, phi, param=V) for u in (uncond, cond)))
    assert (in_v - in_x0).abs().max() > 0.1
    clipped_v = predict_x0(guide(uncond, cond, omega).clamp(-1, 1), x_t, phi, param=V)
    clipped_x0 = guide(*(predict_x0(u, x_t, phi, param=V) for u in (uncond, cond)), omega).clamp(-1, 1)
    assert (clipped_v - clipped_x0).abs().max() > 0.1


@FEW
@given(st.sampled_from([torch.bfloat16, torch.float16]), st.floats(1.0, 16.0), st.integers(0, 10**6))
def test_narrow_guidance_is_rounded_once(dtype, omega, seed):
    # Formed in float32 (three roundings of 2^-24, amplified) and then rounded to the narrow dtype once.
    uncond, cond = samples(seed, 32, dtype=dtype)
    exact = guide(uncond.double(), cond.double(), omega)
    slack = rounding_bound(4 * amplified(omega), uncond, cond, unit=UNIT[torch.float32])
    assert_within(guide(uncond, cond, omega), exact, rounding_bound(1, exact, unit=UNIT[dtype]) * 1.01 + slack)


def test_guidance_in_the_narrow_dtype_itself_is_not():
    # Negative control: u + omega (c - u) with every operation in bf16. Where the branches are near, the difference is exact but
    # omega times it is rounded relative to omega (c - u), and the sum again: the error exceeds one rounding.
    uncond, noise = samples(3, 4000, dtype=torch.bfloat16)
    cond = (uncond + 0.3 * noise).to(torch.bfloat16)
    exact = guide(uncond.double(), cond.double(), 7.5)
    once = round_to(exact, "bfloat16")

    def rms(value):
        return (value.double() - exact).square().mean().sqrt()

    assert rms(guide(uncond, cond, 7.5)) < 1.01 * rms(once)
    assert rms(uncond + 7.5 * (cond - uncond)) > 1.3 * rms(once)


def test_eight_bits_are_guided_in_float32():
    # torch has no arithmetic in float8; the sum is exact in float32 and rounded to e4m3's 4 bits at the end.
    uncond, cond = (torch.tensor(v).to(torch.float8_e4m3fn) for v in ([1.0, 2.0], [1.25, 2.0]))
    guided = guide(uncond, cond, 3.0)
    assert guided.dtype is torch.float8_e4m3fn
    assert guided.float().tolist() == [1.75, 2.0]


# -- errors of the branches -------------------------------------------------------------------------------------------


@FEW
@given(st.floats(-5.0, 30.0))
def test_the_error_gain_is_a_hypotenuse(omega):
    assert guidance_error_gain(omega) ** 2 == pytest.approx(omega**2 + (1 - omega) ** 2, rel=1e-14)
    # Independent errors are never worse than aligned ones, nor better than 1/sqrt(2) (omega = 1/2: the mean of two).
    assert math.sqrt(0.5) * (1 - 1e-15) <= guidance_error_gain(omega) <= amplified(omega) * (1 + 1e-15)


@pytest.mark.parametrize("omega", [0.5, 1.0, 3.0, 7.5])
def test_the_error_gain_is_measured(omega, generator):
    count = 100_000
    uncond, cond, e_uncond, e_cond = torch.randn(4, count, dtype=torch.float64, generator=generator).unbind()
    error = guide(uncond + 1e-3 * e_uncond, cond + 1e-3 * e_cond, omega) - guide(uncond, cond, omega)
    # A sample rms of a Gaussian has relative standard deviation 1/sqrt(2 N); five of them.
    assert error.square().mean().sqrt().item() / 1e-3 == pytest.approx(guidance_error_gain(omega), rel=5 / math.sqrt(2 * count))


@pytest.mark.parametrize("omega", ["7", None, True, torch.tensor(2.0)])
def test_omega_must_be_a_number(omega):
    u = torch.zeros(2)
    with pytest.raises(TypeError, match=f"omega must be a number, got {type(omega).__name__}"):
        guide(u, u, omega)
