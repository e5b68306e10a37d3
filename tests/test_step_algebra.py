"""DDIM steps compose, invert and preserve, because each is the identity at one more angle.

While the implied (x0, eps) stay the same, steps are exact: any path from phi_t to phi_s gives w(phi_s). With a fresh network
output at each angle that is what an ideal network of a point mass says; here the outputs are targets of one (x0, eps).
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import assert_within, inner_phis, is_regular, params, phis, psis, rounding_bound, samples

from diffparam import EPSILON, X0, AngularParam, V, convert, ddim_coefficients, ddim_step
from diffparam.angle import HALF_PI

FEW = settings(max_examples=80)
fractions = st.floats(0.0, 1.0)


def w(phi, x0, eps):
    return math.cos(phi) * x0 + math.sin(phi) * eps


def step_bound(param, phi_t, phi_s, x0, eps, carried=0.0):
    """12 roundings of the gains, 5 of the inputs, on all terms; and what an error of x_t already there becomes."""
    step = ddim_coefficients(phi_t, phi_s, param=param)
    a, b = param.coefficients(phi_t)
    terms = [step.gain_u * a * x0, step.gain_u * b * eps]
    terms += [step.gain_x * math.cos(phi_t) * x0, step.gain_x * math.sin(phi_t) * eps]
    return rounding_bound(17, *terms, x0, eps) + abs(step.gain_x) * carried


@FEW
@given(params(), phis(), phis(), st.integers(0, 10**6))
def test_a_step_lands_on_w(param, phi_t, phi_s, seed):
    assume(is_regular(param, phi_t))
    x0, eps = samples(seed, 6)
    x_s = ddim_step(param.target(x0, eps, phi_t), w(phi_t, x0, eps), phi_t, phi_s, param=param)
    assert_within(x_s, w(phi_s, x0, eps), step_bound(param, phi_t, phi_s, x0, eps))


@FEW
@given(params(), inner_phis(), st.lists(inner_phis(), min_size=1, max_size=5), st.integers(0, 10**6))
def test_any_path_leads_to_the_same_point(param, start, path, seed):
    assume(is_regular(param, start, *path, floor=1e-3))
    x0, eps = samples(seed, 6)
    x, bound, at = w(start, x0, eps), rounding_bound(3, x0, eps), start
    for target in path:
        x = ddim_step(param.target(x0, eps, at), x, at, target, param=param)
        bound = step_bound(param, at, target, x0, eps, carried=bound)
        at = target
    assert_within(x, w(path[-1], x0, eps), bound + rounding_bound(3, x0, eps))


@FEW
@given(params(), phis(), phis(), st.integers(0, 10**6))
def test_a_step_and_its_inverse(param, phi_t, phi_s, seed):
    # Back with the output that the target has at phi_s: any x_t and u, no (x0, eps) given. The output carried over is V's.
    assume(is_regular(param, phi_t))
    u, x_t = samples(seed, 6)
    x_s = ddim_step(u, x_t, phi_t, phi_s, param=param)
    v_t = convert(u, x_t, phi_t, source=param, target=V)
    turn = phi_s - phi_t  # v_s is v_t turned with the state, eq. 21
    v_s = math.cos(turn) * v_t - math.sin(turn) * x_t
    back = ddim_step(v_s, x_s, phi_s, phi_t, param=V)
    s = abs(param.sin_theta(phi_t))
    # The gains of v and of the step are at most 1/s; the steps of v are rotations.
    bound = rounding_bound(80 / s, u / param.r_at(phi_t), x_t)
    assert_within(back, x_t, bound)


@FEW
@given(phis(), phis())
def test_a_step_of_v_is_a_rotation(phi_t, phi_s):
    step = ddim_coefficients(phi_t, phi_s, param=V)
    # fl(phi + pi/2) is off by up to 2^-53 rad, and each gain by 4 ulp.
    assert step.gain_u == pytest.approx(math.sin(phi_s - phi_t), abs=2.0**-52 * 4)
    assert step.gain_x == pytest.approx(math.cos(phi_s - phi_t), abs=2.0**-52 * 4)
    assert math.hypot(step.gain_u, step.gain_x) == pytest.approx(1.0, rel=2.0**-52 * 4)


@FEW
@given(params(), phis(), st.integers(0, 10**6))
def test_a_step_of_no_length_returns_the_state_bit_for_bit(param, phi, seed):
    assume(is_regular(param, phi))
    u, x_t = samples(seed, 6)
    assert torch.equal(ddim_step(u, x_t, phi, phi, param=param), x_t)


@FEW
@given(params(), params(), phis(), phis(), st.integers(0, 10**6))
def test_the_step_does_not_depend_on_how_the_output_is_written(a, b, phi_t, phi_s, seed):
    assume(is_regular(a, phi_t, floor=1e-3) and is_regular(b, phi_t, floor=1e-3))
    u, x_t = samples(seed, 6)
    in_b = convert(u, x_t, phi_t, source=a, target=b)
    left = ddim_step(u, x_t, phi_t, phi_s, param=a)
    right = ddim_step(in_b, x_t, phi_t, phi_s, param=b)
    # Gains are at most 1/|sin theta| in w's; what is said in b carries 12 roundings of terms of a.
    s_a, s_b = (abs(p.sin_theta(phi_t)) for p in (a, b))
    bound = rounding_bound(64 / (s_a * s_b), u / a.r_at(phi_t), x_t)
    assert_within(right, left, bound)


@FEW
@given(psis(), st.integers(-20, 20), phis(), phis(), st.integers(0, 10**6))
def test_a_power_of_two_in_r_changes_no_bit_of_a_step(psi, k, phi_t, phi_s, seed):
    param = AngularParam(psi)
    assume(is_regular(param, phi_t))
    louder = AngularParam(psi, 2.0**k)
    for dtype in (torch.float64, torch.float32):
        u, x_t = samples(seed, 6, dtype=dtype)
        step = ddim_coefficients(phi_t, phi_s, param=param)
        assume(step.gain_u == 0 or abs(step.gain_u) > 1e-20)  # no subnormals in float32
        assert torch.equal(ddim_step(u, x_t, phi_t, phi_s, param=param), ddim_step(u * 2.0**k, x_t, phi_t, phi_s, param=louder))


@FEW
@given(phis(), phis(), st.integers(0, 10**6))
def test_to_the_ends(phi_t, phi_s, seed):
    # B = 0 is the clean sample and B = pi/2 the noise, for the parameterization that is singular at neither.
    x0, eps = samples(seed, 6)
    u, x_t = V.target(x0, eps, phi_t), w(phi_t, x0, eps)
    assert_within(ddim_step(u, x_t, phi_t, 0.0, param=V), x0, rounding_bound(20, x0, eps))
    assert_within(ddim_step(u, x_t, phi_t, HALF_PI, param=V), eps, rounding_bound(20, x0, eps))


# -- stochastic steps -------------------------------------------------------------------------------------------------


@FEW
@given(params(), phis(), st.floats(0.0, 1.0), st.floats(0.01, 1.0), st.integers(0, 10**6))
def test_a_stochastic_step_keeps_the_marginal(param, phi_t, fraction, eta, seed):
    # Given x0, the mean of x_s is cos(phi_s) x0 and the variances of the kept and the fresh noise add up to sin(phi_s)^2.
    phi_s = phi_t * fraction
    assume(phi_t > 1e-6 and phi_s < HALF_PI - 1e-6 and is_regular(param, phi_t, floor=1e-3))
    step = ddim_coefficients(phi_t, phi_s, param=param, eta=eta)
    a, b = param.coefficients(phi_t)
    on_x0 = step.gain_u * a + step.gain_x * math.cos(phi_t)
    on_eps = step.gain_u * b + step.gain_x * math.sin(phi_t)
    slack = 40 * 2.0**-53 / abs(param.sin_theta(phi_t))
    assert on_x0 == pytest.approx(math.cos(phi_s), abs=slack)
    assert on_eps**2 + step.noise**2 == pytest.approx(math.sin(phi_s) ** 2, abs=2 * slack * (1 + math.sin(phi_s)))
    deterministic = ddim_coefficients(phi_t, phi_s, param=param)
    assert step.noise >= 0.0 == deterministic.noise


@pytest.mark.parametrize("param", [EPSILON, X0, V], ids=lambda p: p.name)
def test_the_noise_of_a_step_is_measured(param, generator):
    count, phi_t, phi_s, eta = 100_000, 1.1, 0.7, 0.8
    x0, eps = samples(8, count)
    u, x_t = param.target(x0, eps, phi_t), w(phi_t, x0, eps)
    x_s = ddim_step(u, x_t, phi_t, phi_s, param=param, eta=eta, generator=generator)
    rest = x_s - math.cos(phi_s) * x0
    # Sample standard deviations have relative deviation 1/sqrt(2N), correlations 1/sqrt(N): five of each.
    assert rest.std().item() == pytest.approx(math.sin(phi_s), rel=5 / math.sqrt(2 * count))
    correlation = (rest * eps).mean().item() / (rest.std() * eps.std()).item()
    fresh = ddim_coefficients(phi_t, phi_s, param=param, eta=eta).noise
    expected = math.sqrt(math.sin(phi_s) ** 2 - fresh**2) / math.sin(phi_s)
    assert correlation == pytest.approx(expected, abs=5 / math.sqrt(count))
    assert expected < 1 - 10 / math.sqrt(count)  # negative control: an eta that does nothing would leave it at 1


def test_given_noise_and_drawn_noise_are_the_same_thing(generator):
    u, x_t = samples(9, 4, 3)
    z = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    given_noise = ddim_step(u, x_t, 0.9, 0.4, param=V, eta=0.7, noise=z)
    drawn = ddim_step(u, x_t, 0.9, 0.4, param=V, eta=0.7, generator=torch.Generator().manual_seed(5))
    assert torch.equal(given_noise, drawn)
    with pytest.raises(ValueError, match="noise and x_t must have the same shape"):
        ddim_step(u, x_t, 0.9, 0.4, param=V, eta=0.7, noise=z[0])


@FEW
@given(
    params(), st.lists(inner_phis(), min_size=3, max_size=3), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.integers(0, 10**6)
)
def test_steps_per_batch_item(param, angles, fraction, eta, seed):
    assume(is_regular(param, *angles, floor=1e-2))
    u, x_t, z = samples(seed, 3, 2, 2, count=3)
    phi_t = torch.tensor(angles, dtype=torch.float64)
    batched = ddim_step(u, x_t, phi_t, phi_t * fraction, param=param, eta=eta, noise=z)
    for i, angle in enumerate(angles):
        alone = ddim_step(u[i], x_t[i], angle, angle * fraction, param=param, eta=eta, noise=z[i])
        # psi of another library may differ by 2^-50, amplified twice by 1/sin(theta); the fresh noise's
        # sqrt of a small difference by 2^-53 / cos(phi).
        bound = 2.0**-49 / param.sin_theta(angle) ** 2 * (u[i].abs() / param.r_at(angle) + x_t[i].abs() + z[i].abs())
        assert_within(batched[i], alone, bound)
