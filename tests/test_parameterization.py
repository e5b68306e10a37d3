"""AngularParam: what a parameterization is, whichever way it was written down."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import (
    ahead_of_phi,
    assert_within,
    edm_preconditioning,
    inner_phis,
    is_regular,
    params,
    phis,
    psis,
    radii,
    rounding_bound,
    samples,
    sigma_datas,
    swelling,
)

from diffparam import (
    EPSILON,
    FLOW,
    SCORE,
    X0,
    AngularParam,
    NonFiniteError,
    OutputMoments,
    SingularParameterization,
    V,
    loss_floor,
)
from diffparam.angle import HALF_PI, namespace

FEW = settings(max_examples=60)
U = 2.0**-53
NAMED = {"epsilon": EPSILON, "sample": X0, "v_prediction": V, "flow": FLOW, "score": SCORE}


# -- the target is the definition -------------------------------------------------------------------------------------


@FEW
@given(params(), phis(), st.integers(0, 10**6))
def test_the_target_is_r_times_a_unit_vector(param, phi, seed):
    # u = r (cos psi x + sin psi eps), eq. 11. Roundings: cosine 2, product with r 1, product and sum 2.
    assume(is_regular(param, phi, floor=0.0))
    x0, eps = samples(seed, 5)
    psi, r = param.psi_at(phi), param.r_at(phi)
    a, b = r * math.cos(psi) * x0, r * math.sin(psi) * eps
    assert_within(param.target(x0, eps, phi), a + b, rounding_bound(10, a, b))


def test_the_targets_of_the_literature():
    x0, eps = samples(1, 7)
    phi = 0.8
    # cos(pi/2) is 6e-17 in doubles, hence atol.
    close = {"rtol": 1e-15, "atol": 4e-16}
    torch.testing.assert_close(EPSILON.target(x0, eps, phi), eps, **close)
    torch.testing.assert_close(X0.target(x0, eps, phi), x0, **close)
    torch.testing.assert_close(V.target(x0, eps, phi), math.cos(phi) * eps - math.sin(phi) * x0, **close)
    torch.testing.assert_close(FLOW.target(x0, eps, phi), eps - x0, rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(SCORE.target(x0, eps, phi), -eps / math.sin(phi), **close)


@FEW
@given(params(), phis())
def test_coefficients_have_the_length_and_the_angle(param, phi):
    assume(is_regular(param, phi, floor=0.0))
    a, b = param.coefficients(phi)
    psi, r = param.psi_at(phi), param.r_at(phi)
    assert math.hypot(a, b) == pytest.approx(r, rel=8 * U)
    # The angle up to whole turns; a double psi below 8 has spacing 2^-50.
    assert abs(math.remainder(math.atan2(b, a) - psi, 2 * math.pi)) <= 2.0**-49


@FEW
@given(params(), phis())
def test_the_condition_number_is_one_over_the_sine(param, phi):
    assume(is_regular(param, phi))
    assert param.condition_number(phi) == 1.0 / abs(param.sin_theta(phi))
    assert param.condition_number(phi) >= 1.0 - 4 * U


@FEW
@given(phis())
def test_v_is_perfectly_conditioned_everywhere(phi):
    # fl(phi + pi/2) is off by 2^-53; the sine at its maximum does not move: 1 - 2^-107.
    assert V.condition_number(phi) == V.sin_theta(phi) == 1.0


@pytest.mark.parametrize(
    ("param", "end", "quantity"),
    [
        (EPSILON, HALF_PI, "condition_number"),
        (SCORE, HALF_PI, "condition_number"),
        (X0, 0.0, "condition_number"),
        (SCORE, 0.0, "r_at"),  # its sine is 1 there, its r infinite
    ],
)
def test_singular_ends_are_refused(param, end, quantity):
    for kind in (end, np.array([end]), torch.tensor([0.3, end], dtype=torch.float64)):
        with pytest.raises(SingularParameterization, match=f"{param.name!r} is singular at phi = ") as caught:
            getattr(param, quantity)(kind)
        assert caught.value.phi == end
    assert getattr(param, quantity)(abs(end - 0.1)) < 11  # 1/sin(0.1) = 10.02


# -- three kinds of angle ---------------------------------------------------------------------------------------------


@FEW
@given(params(), st.lists(inner_phis(), min_size=1, max_size=4))
def test_floats_arrays_and_tensors_give_the_same_parameterization(param, angles):
    # psi below 8: one or two roundings of 2^-51 in its function; r and the coefficients relative to r.
    for make in (np.array, lambda v: torch.tensor(v, dtype=torch.float64)):
        phi = make(angles)
        many = [param.psi_at(phi), param.r_at(phi), param.sin_theta(phi), *param.coefficients(phi)]
        for i, angle in enumerate(angles):
            one = [param.psi_at(angle), param.r_at(angle), param.sin_theta(angle), *param.coefficients(angle)]
            assert all(isinstance(value, float) for value in one)
            scale = max(1.0, param.r_at(angle))
            for value, row in zip(one, many, strict=True):
                entry = row if isinstance(row, float) else float(row[i])
                assert entry == pytest.approx(value, abs=32 * U * 8 * scale)


@FEW
@given(params(), st.lists(inner_phis(), min_size=3, max_size=3), st.integers(0, 10**6))
def test_an_angle_per_batch_item_is_that_item_at_that_angle(param, angles, seed):
    x0, eps = samples(seed, 3, 2, 2)
    batched = param.target(x0, eps, torch.tensor(angles, dtype=torch.float64))
    for i, phi in enumerate(angles):
        r = param.r_at(phi)
        # psi may differ by two spacings of 2^-50 between libraries, its sine and cosine by as much.
        bound = rounding_bound(16, r * x0[i], r * eps[i])
        assert_within(batched[i], param.target(x0[i], eps[i], phi), bound + r * 2.0**-49 * (x0[i].abs() + eps[i].abs()))


def test_an_angle_per_channel_needs_its_own_axis():
    x0, eps = samples(3, 2, 4)
    phi = torch.tensor([0.1, 0.4, 0.9, 1.3], dtype=torch.float64)
    channelled = V.target(x0, eps, phi[None])
    torch.testing.assert_close(channelled[:, 2], V.target(x0[:, 2], eps[:, 2], 0.9), rtol=1e-15, atol=1e-15)
    with pytest.raises(ValueError, match=r"one value per batch item \(2\), got 4; .*\(1, \.\.\., 4\)"):
        V.target(x0, eps, phi)


# -- sign and scale ---------------------------------------------------------------------------------------------------


@FEW
@given(params(), phis(), st.integers(0, 10**6))
def test_minus_flips_the_sign_and_nothing_else(param, phi, seed):
    assume(is_regular(param, phi))
    x0, eps = samples(seed, 5)
    minus = -param
    r = param.r_at(phi)
    assert minus.r_at(phi) == r
    # psi + pi is rounded once, below 16: 2^-50.
    bound = rounding_bound(10, r * x0, r * eps) + 2.0**-50 * r * (x0.abs() + eps.abs())
    assert_within(minus.target(x0, eps, phi), -param.target(x0, eps, phi), bound)
    assert minus.sin_theta(phi) == pytest.approx(-param.sin_theta(phi), abs=2.0**-49)
    assert abs(math.remainder((-minus).psi_at(phi) - param.psi_at(phi), 2 * math.pi)) <= 2.0**-48
    assert ((-minus).name, minus.name) == (param.name, param.name[1:] if param.name.startswith("-") else f"-{param.name}")


@FEW
@given(psis(), radii(), st.integers(-20, 20), phis(), st.integers(0, 10**6))
def test_a_power_of_two_in_r_is_a_power_of_two_in_u(psi, r, k, phi, seed):
    # Scaling by 2^k is exact, so it commutes with every rounding: equality bit for bit, in every dtype wide enough.
    for dtype in (torch.float64, torch.float32):
        x0, eps = samples(seed, 5, dtype=dtype)
        u, scaled = (AngularParam(psi, s).target(x0, eps, phi) for s in (r, r * 2.0**k))
        assert torch.equal(u * 2.0**k, scaled)


# -- other ways to say it ---------------------------------------------------------------------------------------------


@FEW
@given(params(), phis())
def test_coefficients_lead_back(param, phi):
    assume(is_regular(param, phi))
    again = AngularParam.from_coefficients(*param.coefficients(phi))
    assert again.r_at(phi) == pytest.approx(param.r_at(phi), rel=8 * U)
    assert again.sin_theta(phi) == pytest.approx(param.sin_theta(phi), abs=2.0**-49)


@FEW
@given(params(), phis())
def test_coefficients_as_functions_lead_back(param, phi):
    assume(is_regular(param, phi))
    again = AngularParam.from_coefficients(lambda p: param.coefficients(p)[0], lambda p: param.coefficients(p)[1])
    assert again.r_at(phi) == pytest.approx(param.r_at(phi), rel=8 * U)
    assert again.sin_theta(phi) == pytest.approx(param.sin_theta(phi), abs=2.0**-49)


@FEW
@given(params(), inner_phis())
def test_a_preconditioner_is_the_denoiser_it_was_read_from(param, phi):
    # D = c_skip x_sigma + c_out F recovers x0 from any regular u: with F = u, c_skip and c_out are the gains of x0, in
    # sigma-space. Reading those back gives the parameterization. The conversion to (1 - c_skip) / c_out cancels 1/c_out.
    assume(is_regular(param, phi, floor=1e-2))
    s = param.sin_theta(phi)
    c_out = -math.sin(phi) / (s * param.r_at(phi))
    c_skip = math.sin(param.psi_at(phi)) / s * math.cos(phi)
    again = AngularParam.from_preconditioning(c_skip, c_out)
    a, b = param.coefficients(phi)
    lost = 64 * U * (1 + abs(c_skip)) / abs(c_out)
    assert again.coefficients(phi) == pytest.approx((a, b), abs=lost + 64 * U * abs(c_skip / c_out) * math.tan(phi))


@FEW
@given(sigma_datas, inner_phis(1e-3))
def test_edm_is_its_preconditioner(sigma_data, phi):
    # 1 - c_skip loses digits at small sigma: an error of 2^-53 over c_out, which is at least about sigma there; at large sigma
    # the error of tan(phi) is 2^-53 relative. 1e-3 from both ends: 1e3 units.
    one, other = AngularParam.edm(sigma_data), edm_preconditioning(sigma_data)
    assert other.psi_at(phi) == pytest.approx(one.psi_at(phi), abs=20e3 * U)
    assert other.r_at(phi) == pytest.approx(one.r_at(phi), rel=20e3 * U)


@FEW
@given(sigma_datas)
def test_edm_has_its_limits(sigma_data):
    # No noise: F is -eps. Noise alone: F is x / sigma_d. In both the output is orthogonal to the state, so kappa is 1.
    f = AngularParam.edm(sigma_data)
    assert f.coefficients(0.0) == pytest.approx((0.0, -1.0), abs=4 * U)
    assert f.coefficients(HALF_PI) == pytest.approx((1 / sigma_data, 0.0), abs=8 * U * max(1, sigma_data, 1 / sigma_data))
    assert f.condition_number(0.0) == pytest.approx(1.0, rel=4 * U)
    assert f.condition_number(HALF_PI) == pytest.approx(1.0, rel=4 * U)


@FEW
@given(sigma_datas, inner_phis(1e-3))
def test_edm_outputs_have_unit_variance(sigma_data, phi):
    # What c_in, c_skip and c_out were made for: a^2 sigma_d^2 + b^2 = 1 (Karras et al. 2022, appendix B.6).
    a, b = AngularParam.edm(sigma_data).coefficients(phi)
    assert (a * sigma_data) ** 2 + b**2 == pytest.approx(1.0, rel=32 * U)


@FEW
@given(sigma_datas, inner_phis(), st.floats(-1.2, 1.2))
def test_no_angle_loses_less_than_the_optimal_one(sigma_data, phi, turn):
    # Moments of data that are not Gaussian: E[v_hat^2] may be anything above E[x v]^2 / E[x^2], here 0.3 above.
    gaussian = OutputMoments.gaussian(phi, sigma_data=sigma_data)
    moments = OutputMoments(gaussian.x_sq, gaussian.x_v, gaussian.v_sq + 0.3)
    best = AngularParam.optimal(sigma_data)
    other = AngularParam(best.psi_at(phi) + turn)
    assume(is_regular(other, phi, floor=1e-3))
    floor, worse = (loss_floor(phi, param=p, delta=1.0, moments=moments) for p in (best, other))
    # cot(theta) off its optimum by c costs c^2 E[x_t^2] (completing the square).
    cot = [math.cos(p.psi_at(phi) - phi) / p.sin_theta(phi) for p in (best, other)]
    extra = (cot[1] - cot[0]) ** 2 * gaussian.x_sq
    assert worse - floor == pytest.approx(extra, rel=1e-6, abs=1e-9 * worse)
    assert worse >= floor * (1 - 1e-12)


def test_at_unit_variance_the_optimum_is_v():
    phi = np.linspace(0, HALF_PI, 33)
    np.testing.assert_allclose(AngularParam.optimal(1.0).psi_at(phi), V.psi_at(phi), rtol=0, atol=2.0**-50)
    np.testing.assert_allclose(AngularParam.optimal(1.0).r_at(phi), 1.0, rtol=4 * U)
    assert abs(AngularParam.optimal(0.5).psi_at(0.8) - V.psi_at(0.8)) > 0.1  # negative control


# -- value semantics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "param",
    [*NAMED.values(), -V, -SCORE, AngularParam.edm(0.5), AngularParam.optimal(0.5), AngularParam.from_coefficients(1.0, 2.0)],
    ids=lambda p: p.name,
)
def test_parameterizations_are_values(param):
    for twin in (pickle.loads(pickle.dumps(param)), copy.deepcopy(param)):
        assert twin == param
        assert hash(twin) == hash(param)
        assert twin.name == param.name
        assert twin.coefficients(0.7) == param.coefficients(0.7)
    assert AngularParam(param.psi, param.r, name="other") == param  # a name is a label
    assert AngularParam(param.psi, 3.0) != param
    with pytest.raises(AttributeError):
        param.r = 2.0


@pytest.mark.parametrize("param", [*NAMED.values(), AngularParam.edm(0.5), AngularParam.optimal(2.0)], ids=lambda p: p.name)
def test_two_signs_cancel(param):
    minus = -param
    assert minus != param
    assert -minus == param


def test_different_data_are_different_parameterizations():
    assert AngularParam.edm(0.5) == AngularParam.edm(0.5)
    assert AngularParam.edm(0.5) != AngularParam.edm(1.0)
    assert -AngularParam.edm(1.0) != V  # the same angles, but not the same formula; equality is of formulas


# -- functions of phi are held to their contract ----------------------------------------------------------------------


def test_a_function_that_works_in_every_namespace():
    param = AngularParam(ahead_of_phi(1.0, 0.2), swelling(0.5))
    phi = torch.tensor([0.2, 0.9], dtype=torch.float64)
    torch.testing.assert_close(param.psi_at(phi), phi + 1.0 + 0.2 * phi.sin(), rtol=0, atol=0)
    assert param.psi_at(0.9) == pytest.approx(0.9 + 1.0 + 0.2 * math.sin(0.9), rel=2 * U)


@pytest.mark.parametrize(
    ("function", "phi", "error", "message"),
    [
        (math.sin, torch.tensor([0.1, 0.2], dtype=torch.float64), TypeError, "must accept a Tensor, but failed: .*namespace"),
        (math.sin, np.array([0.1, 0.2]), TypeError, "must accept a ndarray, but failed: .*namespace"),
        (lambda p: p.sin(), 0.3, TypeError, "must accept a float, but failed: .*namespace"),
        (
            lambda p: p.float(),
            torch.tensor([0.1], dtype=torch.float64),
            TypeError,
            "must be float64, got torch.float32; compute",
        ),
        (lambda p: p * math.nan, 0.3, NonFiniteError, "must be finite, got nan or infinity within phi = 0.3; restrict phi"),
        (lambda p: p + math.inf, 0.3, NonFiniteError, "must be finite"),
        (lambda p: p + math.inf, np.array([0.3]), NonFiniteError, "must be finite"),
        (lambda p: p + math.inf, torch.tensor([0.3], dtype=torch.float64), NonFiniteError, "must be finite"),
        (lambda p: 1.0 / p, 0.0, NonFiniteError, "must be finite"),
    ],
)
def test_a_bad_psi_is_refused_by_name(function, phi, error, message):
    with pytest.raises(error, match=rf"psi\(phi\) of 'mine' {message}"):
        AngularParam(function, name="mine").psi_at(phi)


@pytest.mark.parametrize("make", [float, lambda v: np.array([v]), lambda v: torch.tensor([v], dtype=torch.float64)])
def test_r_must_be_positive_where_it_is_used(make):
    param = AngularParam(0.3, lambda phi: phi - 1.0, name="mine")
    assert param.r_at(make(1.25)) == 0.25
    for phi in (1.0, 0.5):
        with pytest.raises(ValueError, match=r"r\(phi\) of 'mine' must be positive, got -?0.* a sign belongs in psi"):
            param.r_at(make(phi))


def test_an_infinite_r_is_refused():
    param = AngularParam(-HALF_PI, lambda phi: 1.0 / namespace(phi).sin(phi) ** 2, name="mine")
    assert param.r_at(HALF_PI) == 1.0
    with pytest.raises(SingularParameterization, match="'mine' is singular at phi = 1e-200"):
        param.r_at(torch.tensor([0.5, 1e-200], dtype=torch.float64))  # the square underflows: 1/0 is infinite in an array
    with pytest.raises(NonFiniteError, match=r"r\(phi\) of 'mine' must be finite"):
        param.r_at(1e-200)  # and no number at all in Python
