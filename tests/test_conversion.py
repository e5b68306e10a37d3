"""Conversions: exact for the real numbers, and for floats to within what the gains allow.

Tolerances. In float64 a conversion is ``g_u u + g_x x_t``: each gain is within 4 ulp (8 units of 2^-53), its factor r adds two
roundings, the products and the sum two more: 12 units of ``|g_u u| + |g_x x_t|``. Two gains in a row carry the first error
through the second gain. Nothing else is allowed: 1/sin(theta) enters through the gains alone.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import UNIT, assert_within, inner_phis, is_regular, params, phis, rounding_bound, samples

from diffparam import EPSILON, FLOW, X0, AngularParam, Schedule, V, convert, loss_weight, predict_eps, predict_v, predict_x0
from diffparam.angle import HALF_PI
from diffparam.conversion import conversion_gains

FEW = settings(max_examples=80)
ROUNDINGS = 12


def noised(phi, seed, count=6):
    """(x0, eps, x_t) at an angle."""
    x0, eps = samples(seed, count)
    return x0, eps, math.cos(phi) * x0 + math.sin(phi) * eps


def regular(phi, *chosen):
    return all(is_regular(p, phi) for p in chosen)


# -- conversions are a groupoid ---------------------------------------------------------------------------------------


@FEW
@given(params(), params(), phis(), st.integers(0, 10**6))
def test_there_and_back(a, b, phi, seed):
    assume(regular(phi, a, b))
    u, x_t = samples(seed, 6)
    there_u, there_x = conversion_gains(phi, source=a, target=b)
    back_u, back_x = conversion_gains(phi, source=b, target=a)
    in_b = convert(u, x_t, phi, source=a, target=b)
    # The way back from b amplifies the error of the way there by its own gain.
    bound = abs(back_u) * rounding_bound(ROUNDINGS, there_u * u, there_x * x_t)
    bound = bound + rounding_bound(ROUNDINGS, back_u * in_b, back_x * x_t)
    assert_within(convert(in_b, x_t, phi, source=b, target=a), u, bound)


@FEW
@given(params(), params(), params(), phis(), st.integers(0, 10**6))
def test_by_way_of_another(a, b, c, phi, seed):
    assume(regular(phi, a, b, c))
    u, x_t = samples(seed, 6)
    ab, bc, ac = (conversion_gains(phi, source=s, target=t) for s, t in ((a, b), (b, c), (a, c)))
    in_b = convert(u, x_t, phi, source=a, target=b)
    bound = abs(bc[0]) * rounding_bound(ROUNDINGS, ab[0] * u, ab[1] * x_t)
    bound = bound + rounding_bound(ROUNDINGS, bc[0] * in_b, bc[1] * x_t) + rounding_bound(ROUNDINGS, ac[0] * u, ac[1] * x_t)
    direct = convert(u, x_t, phi, source=a, target=c)
    assert_within(convert(in_b, x_t, phi, source=b, target=c), direct, bound)


@FEW
@given(params(), phis(), st.integers(0, 10**6))
def test_to_itself_is_nothing(a, phi, seed):
    # B = psi gives the gains (1, 0) exactly; r / r is 1.
    assume(regular(phi, a))
    u, x_t = samples(seed, 6)
    assert torch.equal(convert(u, x_t, phi, source=a, target=a), u)


@FEW
@given(params(), params(), phis(), st.integers(0, 10**6))
def test_the_conversion_of_a_target_is_the_other_target(a, b, phi, seed):
    assume(regular(phi, a, b))
    x0, eps, x_t = noised(phi, seed)
    g_u, g_x = conversion_gains(phi, source=a, target=b)
    (a1, a2), (b1, b2) = a.coefficients(phi), b.coefficients(phi)
    # Errors of the inputs: u and x_t as formed here carry 5 roundings of their terms.
    terms = [g_u * a1 * x0, g_u * a2 * eps, g_x * math.cos(phi) * x0, g_x * math.sin(phi) * eps, b1 * x0, b2 * eps]
    got = convert(a.target(x0, eps, phi), x_t, phi, source=a, target=b)
    assert_within(got, b.target(x0, eps, phi), rounding_bound(ROUNDINGS + 5, *terms))


@FEW
@given(params(), phis(), st.integers(0, 10**6))
def test_x0_eps_and_v_come_back(param, phi, seed):
    assume(regular(phi, param))
    x0, eps, x_t = noised(phi, seed)
    u = param.target(x0, eps, phi)
    v = math.cos(phi) * eps - math.sin(phi) * x0
    for predict, name, expected in ((predict_x0, X0, x0), (predict_eps, EPSILON, eps), (predict_v, V, v)):
        g_u, g_x = conversion_gains(phi, source=param, target=name)
        a, b = param.coefficients(phi)
        terms = [g_u * a * x0, g_u * b * eps, g_x * math.cos(phi) * x0, g_x * math.sin(phi) * eps, x0, eps]
        assert_within(predict(u, x_t, phi, param=param), expected, rounding_bound(ROUNDINGS + 5, *terms))


def test_eps_to_v_is_the_papers_equation_24():
    phi = 1.1
    eps, x_t = samples(4, 9)
    expected = eps / math.cos(phi) - math.tan(phi) * x_t
    torch.testing.assert_close(predict_v(eps, x_t, phi, param=EPSILON), expected, rtol=1e-14, atol=1e-14)


# -- scale and sign ---------------------------------------------------------------------------------------------------


@FEW
@given(params(), params(), st.integers(-12, 12), phis(), st.integers(0, 10**6), st.sampled_from([torch.float64, torch.float32]))
def test_a_power_of_two_in_r_changes_no_bit(a, b, k, phi, seed, dtype):
    # r is a scale of the output and cancels: a network that says 2^k u with r 2^k gives the same x0, bit for bit, because
    # scaling by 2^k is exact wherever nothing leaves the normal range (|u|, gains and r lie well within 2^+-60 here).
    assume(isinstance(a.r, float) and regular(phi, a, b))
    u, x_t = samples(seed, 6, dtype=dtype)
    assume(all(1e-20 < abs(g) < 1e20 for g in conversion_gains(phi, source=a, target=b)))
    louder = AngularParam(a.psi, a.r * 2.0**k)
    assert torch.equal(convert(u, x_t, phi, source=a, target=b), convert(u * 2.0**k, x_t, phi, source=louder, target=b))


@FEW
@given(params(), params(), st.floats(0.01, 100.0), phis(), st.integers(0, 10**6))
def test_any_r_changes_nothing_but_rounding(a, b, factor, phi, seed):
    assume(isinstance(a.r, float) and regular(phi, a, b))
    u, x_t = samples(seed, 6)
    g_u, g_x = conversion_gains(phi, source=a, target=b)
    louder = AngularParam(a.psi, a.r * factor)
    got = convert(u * factor, x_t, phi, source=louder, target=b)
    assert_within(got, convert(u, x_t, phi, source=a, target=b), rounding_bound(2 * ROUNDINGS + 3, g_u * u, g_x * x_t))


@FEW
@given(params(), params(), inner_phis(), st.integers(0, 10**6))
def test_a_flipped_sign_is_carried_along(a, b, phi, seed):
    assume(regular(phi, a, b) and is_regular(a, phi, floor=1e-2))
    u, x_t = samples(seed, 6)
    straight = convert(u, x_t, phi, source=a, target=b)
    # psi + pi is rounded by 2^-51 at most (2^-50 beyond 8), which 1/sin(theta) amplifies twice: once in each gain.
    bound = 2.0**-49 / a.sin_theta(phi) ** 2 * b.r_at(phi) * (u.abs() / a.r_at(phi) + x_t.abs())
    assert_within(convert(-u, x_t, phi, source=-a, target=b), straight, bound)
    assert_within(convert(u, x_t, phi, source=a, target=-b), -straight, bound)
    # Negative control: forgetting the sign moves the result by twice what u contributes.
    g_u, _ = conversion_gains(phi, source=a, target=b)
    forgotten = convert(u, x_t, phi, source=-a, target=b)
    torch.testing.assert_close(forgotten - straight, -2 * g_u * u, rtol=1e-6, atol=float(bound.max()))


# -- angles per batch item --------------------------------------------------------------------------------------------


@FEW
@given(params(), params(), st.lists(inner_phis(), min_size=3, max_size=3), st.integers(0, 10**6))
def test_an_angle_per_batch_item(a, b, angles, seed):
    assume(all(regular(phi, a, b) and is_regular(a, phi, floor=1e-2) for phi in angles))
    u, x_t = samples(seed, 3, 2, 2)
    phi = torch.tensor(angles, dtype=torch.float64)
    batched = convert(u, x_t, phi, source=a, target=b)
    shaped = convert(u, x_t, phi[:, None, None], source=a, target=b)
    arrays = convert(u, x_t, np.array(angles), source=a, target=b)
    assert torch.equal(batched, shaped)
    for i, angle in enumerate(angles):
        alone = convert(u[i], x_t[i], angle, source=a, target=b)
        # psi from torch, numpy and math may differ by 2^-50, amplified twice by 1/sin(theta).
        bound = 2.0**-49 / a.sin_theta(angle) ** 2 * b.r_at(angle) * (u[i].abs() / a.r_at(angle) + x_t[i].abs())
        assert_within(batched[i], alone, bound)
        assert_within(arrays[i], alone, bound)


# -- straight or by a detour ------------------------------------------------------------------------------------------


def test_a_detour_costs_what_the_condition_number_says():
    # From v to flow near pi/2 in float32. Straight: gains of order 1, error a few 6e-8. Through eps and back: the gain from
    # eps to flow is about 1/cos(phi) = 1e4 and multiplies the rounding of eps.
    phi = HALF_PI - 1e-4
    x0, eps = samples(5, 2000, dtype=torch.float32)
    x_t = math.cos(phi) * x0.double() + math.sin(phi) * eps.double()
    v = V.target(x0.double(), eps.double(), phi)
    exact = convert(v, x_t, phi, source=V, target=FLOW)
    v, x_t = v.float(), x_t.float()
    straight = convert(v, x_t, phi, source=V, target=FLOW)
    detour = convert(predict_eps(v, x_t, phi, param=V), x_t, phi, source=EPSILON, target=FLOW)
    straight_error, detour_error = ((r.double() - exact).square().mean().sqrt().item() for r in (straight, detour))
    unit = UNIT[torch.float32]
    # Inputs, gains, products and sum: at most 5 roundings on terms of size 1 each.
    assert straight_error < 5 * 2 * unit
    # The rms error of rounding eps (rms 1) once is unit / sqrt(3) or so; times 1e4 / 4 to leave room.
    assert detour_error > 1e4 * unit / 4


# -- loss weights -----------------------------------------------------------------------------------------------------


@FEW
@given(params(), params(), phis(), st.integers(0, 10**6))
def test_the_weight_is_the_ratio_of_squared_errors(a, b, phi, seed):
    # Two outputs for one state: how far apart they are in b over how far apart in a. The difference of the converted
    # outputs is off by the rounding of both, relative to a difference of order g_u.
    assume(regular(phi, a, b))
    u, x_t, other = samples(seed, 6, count=3)
    g_u, g_x = conversion_gains(phi, source=a, target=b)
    assume(abs(g_u) > 1e-3 * abs(g_x))
    in_b = [convert(o, x_t, phi, source=a, target=b) for o in (u, other)]
    ratio = (in_b[0] - in_b[1]).square().sum() / (u - other).square().sum()
    assert loss_weight(phi, source=a, target=b) == pytest.approx(ratio.item(), rel=1e-10)  # 12 roundings, factor 1e3, squared


@FEW
@given(params(), params(), params(), phis())
def test_weights_multiply_along_a_chain(a, b, c, phi):
    assume(regular(phi, a, b, c))
    chain = loss_weight(phi, source=a, target=b) * loss_weight(phi, source=b, target=c)
    assert chain == pytest.approx(loss_weight(phi, source=a, target=c), rel=1e-14)
    back = loss_weight(phi, source=a, target=b) * loss_weight(phi, source=b, target=a)
    assert back == pytest.approx(1.0, rel=1e-14)


@FEW
@given(params(), phis())
def test_the_weight_to_v_is_the_condition_number_squared(param, phi):
    assume(regular(phi, param))
    weight = loss_weight(phi, source=param, target=V)
    assert weight == pytest.approx((param.condition_number(phi) / param.r_at(phi)) ** 2, rel=1e-14)


@FEW
@given(inner_phis(0.01))
def test_weights_of_the_literature(phi):
    snr = 1 / math.tan(phi) ** 2
    alpha_bar = math.cos(phi) ** 2
    for source, target, expected in (
        (EPSILON, V, 1 / alpha_bar),  # the paper's eq. 27 without delta
        (EPSILON, X0, 1 / snr),
        (X0, EPSILON, snr),
        (V, EPSILON, alpha_bar),
        (V, X0, 1 - alpha_bar),  # 1 / (snr + 1)
        (FLOW, V, 1 / (math.sin(phi) + math.cos(phi)) ** 2),
    ):
        # tan and 1 - cos^2 lose digits at the ends: up to 1/sin(0.01)^2 = 1e4 units
        assert loss_weight(phi, source=source, target=target) == pytest.approx(expected, rel=1e-11)


@FEW
@given(inner_phis(0.01), st.sampled_from([1.0, 5.0, 20.0]))
def test_min_snr_is_one_line(phi, gamma):
    # Hang et al. 2023, eq. 8: the x0 loss weighs min(snr, gamma), so eps weighs min(snr, gamma) / snr and v that over snr + 1.
    snr = 1 / math.tan(phi) ** 2
    for source, divisor in ((X0, 1.0), (EPSILON, snr), (V, snr + 1)):
        weight = min(snr, gamma) * loss_weight(phi, source=source, target=X0)
        assert weight == pytest.approx(min(snr, gamma) / divisor, rel=1e-11)


def test_min_snr_is_finite_at_zero_terminal_snr():
    schedule = Schedule.cosine(100).rescale_zero_terminal_snr()
    snr = schedule.log_snr.exp()
    weight = snr.clamp(max=5.0) * loss_weight(schedule.phi, source=V, target=X0)
    assert bool(weight.isfinite().all())
    assert weight[-1] < 1e-30  # no signal, no weight: and not 0/0, as min(snr, gamma) / snr
    expected = snr.clamp(max=5.0) / (snr + 1)
    torch.testing.assert_close(weight, expected, rtol=1e-10, atol=0)


def test_weights_answer_in_kind():
    angles = [0.2, 0.9, 1.4]
    tensor = loss_weight(torch.tensor(angles, dtype=torch.float64), source=EPSILON, target=V)
    array = loss_weight(np.array(angles), source=EPSILON, target=V)
    assert tensor.dtype is torch.float64
    assert array.dtype == np.float64
    for i, phi in enumerate(angles):
        number = loss_weight(phi, source=EPSILON, target=V)
        assert isinstance(number, float)
        assert float(tensor[i]) == pytest.approx(number, rel=1e-14)
        assert float(array[i]) == pytest.approx(number, rel=1e-14)
