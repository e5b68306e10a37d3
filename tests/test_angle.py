"""The identity's gains, against 50-digit arithmetic, at every corner of the angle plane."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from strategies import near, phis, psis

from diffparam.angle import HALF_PI, namespace, rebase_gains, sin_difference
from diffparam.errors import SingularParameterization

FEW = settings(max_examples=100)


def exact_sine(a: float, b: float) -> mpmath.mpf:
    """sin(a - b) of the given doubles to 50 digits."""
    with mpmath.workdps(50):
        return mpmath.sin(mpmath.mpf(a) - mpmath.mpf(b))


def ulps(value: float, exact: mpmath.mpf, floor: float = 0.0) -> float:
    """Error of ``value`` in units in the last place of ``exact``, what lies below ``floor`` forgiven."""
    with mpmath.workdps(50):
        error = abs(mpmath.mpf(value) - exact) - floor
        return max(0.0, float(error / math.ulp(float(exact))))


# A difference of angles below 8 has spacing 2^-50, so its rounding error is below 2^-51. Where d itself is that small (a - b at
# a multiple of pi to the last bit) the sine and the correction may cancel; sin(d) is then at most 2^-50 and right to an ulp,
# that is to 2^-102. This absolute floor only matters where the exact sine is below 1e-15.
FLOOR = 2.0**-102


def far_angles(phi: float) -> st.SearchStrategy[float]:
    """Output and target angles around ``phi``: anywhere, next to it, and next to it plus multiples of pi."""
    turn, distance, side = st.integers(-2, 2), st.floats(-15.0, -1.0), st.sampled_from([-1, 1])
    turned = st.builds(lambda k, d, s: phi + k * math.pi + s * 10.0**d, turn, distance, side)
    neighbour = st.sampled_from([math.nextafter(phi, 9.0), math.nextafter(phi, -9.0), phi * (1 + 2.0**-30), phi])
    return st.one_of(psis(), turned, neighbour.filter(lambda b: b == 0 or abs(b) > 1e-300), near(HALF_PI, -1))


@st.composite
def triples(draw: st.DrawFn) -> tuple[float, float, float]:
    """(phi, psi, B) with every kind of closeness between them."""
    phi = draw(phis())
    psi = draw(far_angles(phi))
    return phi, psi, draw(st.one_of(far_angles(phi), far_angles(psi)))


@FEW
@given(triples())
@example((HALF_PI, -HALF_PI, 0.0))
@example((1e-60, 0.0, HALF_PI))
def test_sin_difference_is_right_to_two_ulp(angles):
    # libm's sine is right to 1 ulp, the correction adds one rounding of the sum: 1.5 ulp, and 2 leaves room for the platform.
    for a, b in ((angles[1], angles[0]), (angles[2], angles[0]), (angles[1], angles[2])):
        assert ulps(sin_difference(a, b), exact_sine(a, b), FLOOR) <= 2.0


def test_plain_subtraction_is_not_right_near_pi():
    # Negative control: 3 + 1e-9 and a small negative angle differ by nearly pi; fl(a - b) is off by up to 2^-52, which is
    # 2^-52 / 1e-9 of the sine, about 1e6 ulp at worst.
    a, b = 3.0, -(math.pi - 3.0 + 1.2345678901e-9)
    exact = exact_sine(a, b)
    assert ulps(math.sin(a - b), exact) > 1e4
    assert ulps(sin_difference(a, b), exact) <= 2.0


@FEW
@given(triples())
def test_gains_are_within_four_ulp(angles):
    # Two sines of 1.5 ulp and one division of 0.5: 3.5 ulp, wherever sin(theta) is not tiny.
    phi, psi, target = angles
    s = exact_sine(psi, phi)
    assume(abs(s) > 1e-9)
    floor = FLOOR / abs(float(s))
    gain_u, gain_x = rebase_gains(phi, psi, target)
    with mpmath.workdps(50):
        assert ulps(gain_u, exact_sine(target, phi) / s, floor) <= 4.0
        assert ulps(gain_x, exact_sine(psi, target) / s, floor) <= 4.0


def test_the_textbook_form_of_the_gain_cancels():
    # Negative control: sin B cos phi - cos B sin phi, as samplers write it through x0 and eps. Each product is rounded by up to
    # 2^-54, the difference is 1e-8: 2^-54 / 1e-8 is 2^25 ulp at worst, and of twenty such steps one comes near that.
    phi, psi = 0.8, HALF_PI
    worst_textbook = worst = 0.0
    for target in (phi + k * 1.1e-8 for k in range(1, 21)):
        with mpmath.workdps(50):
            exact = exact_sine(target, phi) / exact_sine(psi, phi)
        textbook = (math.sin(target) * math.cos(phi) - math.cos(target) * math.sin(phi)) / math.cos(phi)
        worst_textbook = max(worst_textbook, ulps(textbook, exact))
        worst = max(worst, ulps(rebase_gains(phi, psi, target)[0], exact))
    assert worst_textbook > 2**20
    assert worst <= 4.0


@FEW
@given(triples())
def test_floats_numpy_and_torch_agree(angles):
    # numpy calls the same libm or one of the same quality; torch's vector sine may differ from it by an ulp, and so may each
    # of the two sines and their quotient: one ulp for a sine, three for a gain.
    phi, psi, target = angles
    assume(abs(exact_sine(psi, phi)) > 1e-9)
    number = (sin_difference(psi, phi), *rebase_gains(phi, psi, target))
    for make in (lambda v: np.array([v]), lambda v: torch.tensor([v], dtype=torch.float64)):
        array = (sin_difference(make(psi), make(phi)), *rebase_gains(make(phi), make(psi), make(target)))
        mixed = (sin_difference(psi, make(phi)), *rebase_gains(make(phi), psi, target))
        for value, *others, allowed in zip(number, array, mixed, (1, 3, 3), strict=True):
            for other in others:
                assert type(other) is type(make(0.0))
                assert other.dtype in (np.float64, torch.float64)
                assert abs(float(other[0]) - value) <= allowed * math.ulp(value) + FLOOR / abs(number[0])


@FEW
@given(triples())
def test_the_sine_is_odd_bit_for_bit(angles):
    a, b, _ = angles
    assert sin_difference(a, b) == -sin_difference(b, a)


@FEW
@given(phis(), psis())
def test_rebasing_onto_what_is_known_returns_it_exactly(phi, psi):
    # B = phi is the state itself and B = psi the output: no rounding at all.
    assume(abs(exact_sine(psi, phi)) > 1e-9)
    assert rebase_gains(phi, psi, phi) == (0.0, 1.0)
    assert rebase_gains(phi, psi, psi) == (1.0, 0.0)


@FEW
@given(triples(), st.floats(-3, 3), st.floats(-3, 3))
def test_the_gains_recover_w(angles, x, eps):
    # w(B) formed from its definition, from states and outputs that are exact to 50 digits. The only errors left are those of
    # the gains, 4 ulp each of what they multiply.
    phi, psi, target = angles
    assume(abs(exact_sine(psi, phi)) > 1e-9)
    gain_u, gain_x = rebase_gains(phi, psi, target)
    with mpmath.workdps(50):

        def w(angle):
            return mpmath.cos(angle) * x + mpmath.sin(angle) * eps

        error = abs(gain_u * w(psi) + gain_x * w(phi) - w(target))
        bound = 4 * 2.0**-52 * (abs(gain_u * w(psi)) + abs(gain_x * w(phi))) + FLOOR / abs(exact_sine(psi, phi)) * 20
        assert error <= bound


# -- singular angles --------------------------------------------------------------------------------------------------


KINDS = (lambda v: v, lambda v: np.array([0.1, v]), lambda v: torch.tensor([0.1, v], dtype=torch.float64))


@FEW
@given(phis(), st.sampled_from([-2, -1, 0, 1, 2]), st.sampled_from(KINDS))
def test_an_output_along_the_state_is_refused(phi, turns, kind):
    # phi + k pi, rounded, differs from the exact angle by half an ulp of psi and by k (pi - fl(pi)) = 0.35 k pi 2^-53: below
    # the refused 2^-52 max(|phi|, |psi|).
    psi = phi + turns * math.pi
    with pytest.raises(SingularParameterization, match="'custom' is singular at") as caught:
        rebase_gains(kind(phi), psi, 0.3)
    assert caught.value.phi == phi


@FEW
@given(phis(), st.sampled_from([-2, -1, 0, 1, 2]), st.sampled_from([-1, 1]), st.sampled_from(KINDS[:1]))
def test_an_output_a_little_off_the_state_is_not(phi, turns, side, kind):
    # 2^-44 rad off is far from singular in double precision: the guard must not widen into a tolerance.
    psi = phi + turns * math.pi + side * 2.0**-44
    gain_u, _ = rebase_gains(kind(phi), psi, psi)
    assert gain_u == 1.0


def test_the_error_names_the_first_singular_angle_of_a_batch():
    phi = torch.tensor([0.2, 0.7, HALF_PI, HALF_PI], dtype=torch.float64)
    with pytest.raises(SingularParameterization) as caught:
        rebase_gains(phi, HALF_PI, 0.0, name="epsilon")
    assert (caught.value.param, caught.value.phi) == ("epsilon", HALF_PI)


def test_namespace_follows_the_widest_kind():
    array, tensor = np.zeros(1), torch.zeros(1, dtype=torch.float64)
    assert namespace(0.1, 0.2) is math
    assert namespace(0.1, array) is namespace(array, 0.1) is np
    assert namespace(0.1, tensor) is namespace(array, tensor) is namespace(tensor, array) is torch
