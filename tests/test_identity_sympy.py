"""The algebra behind the library, proved symbolically, and the library's numbers beside it.

Every row of the table of parameterizations starts from the definition its authors give (a combination of x and eps), and
the angle, the scale and the sine follow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import sympy as sp
import torch

from diffparam import (
    EPSILON,
    FLOW,
    FLOW_STATE,
    SCORE,
    VE,
    X0,
    AngularParam,
    OutputMoments,
    V,
    ddim_coefficients,
    loss_floor,
    loss_weight,
    optimal_angle,
    parse_parameterization,
    rebase_gains,
)

PHI = sp.Symbol("phi", positive=True)  # in (0, pi/2): sin and cos are positive, see `settled`
PSI, B, X, E = sp.symbols("psi B x epsilon", real=True)
PHI_S, ETA, SIGMA_D, R = sp.symbols("phi_s eta sigma_d r", positive=True)
ANGLES = (0.05, 0.4, 0.9, 1.3, 1.52)
TIGHT = 1e-13  # a dozen roundings of 1.1e-16, condition numbers below 50: 6e-14


def settled(expression: sp.Expr) -> sp.Expr:
    """Simplified for 0 < phi_s < phi < pi/2: through t = tan(phi), s = tan(phi_s), which are positive."""
    t, s = sp.symbols("t s", positive=True)
    for angle, tangent in ((PHI, t), (PHI_S, s)):
        cosine = 1 / sp.sqrt(1 + tangent**2)
        swap = {sp.tan(angle): tangent, sp.cot(angle): 1 / tangent, sp.sin(angle): tangent * cosine, sp.cos(angle): cosine}
        expression = sp.expand_trig(expression).subs(swap)
    return sp.simplify(expression)


def number(expression: sp.Expr, **values: float) -> float:
    """The value of an expression to 30 digits, then rounded."""
    symbols = {"phi": PHI, "phi_s": PHI_S, "eta": ETA, "sigma_d": SIGMA_D, "psi": PSI, "b": B}
    exact = {symbols[k]: sp.Float(v, 30) for k, v in values.items()}  # the double itself, to 30 digits
    return float(sp.N(expression.subs(exact), 30))


# -- the identity -----------------------------------------------------------------------------------------------------


def w(angle: sp.Expr) -> sp.Expr:
    return sp.cos(angle) * X + sp.sin(angle) * E


U, X_T = R * w(PSI), w(PHI)
GAIN_U, GAIN_X = sp.sin(B - PHI) / sp.sin(PSI - PHI), sp.sin(PSI - B) / sp.sin(PSI - PHI)


def test_the_identity():
    rebased = GAIN_U * U / R + GAIN_X * X_T
    assert sp.simplify(sp.expand_trig((rebased - w(B)) * sp.sin(PSI - PHI))) == 0


def test_a_flipped_sign_breaks_the_identity():
    # Negative control for the simplifier: it must not call everything zero.
    rebased = GAIN_U * U / R - GAIN_X * X_T
    assert sp.simplify(sp.expand_trig((rebased - w(B)) * sp.sin(PSI - PHI))) != 0


def test_the_papers_forms_are_cases_of_it():
    x0 = (sp.sin(PSI) * X_T - sp.sin(PHI) * U / R) / sp.sin(PSI - PHI)  # eq. 12
    eps = -(sp.cos(PSI) * X_T - sp.cos(PHI) * U / R) / sp.sin(PSI - PHI)
    step = (sp.sin(PHI_S - PHI) * U / R - sp.sin(PHI_S - PSI) * X_T) / sp.sin(PSI - PHI)  # eq. 14
    for target, expected in ((0, x0), (sp.pi / 2, eps), (PHI_S, step)):
        general = GAIN_U.subs(B, target) * U / R + GAIN_X.subs(B, target) * X_T
        assert sp.simplify(sp.expand_trig(general - expected)) == 0
    assert sp.simplify(sp.expand_trig(x0 - X)) == 0
    assert sp.simplify(sp.expand_trig(sp.cos(PHI_S) * x0 + sp.sin(PHI_S) * eps - step)) == 0  # eq. 13


@pytest.mark.parametrize("phi", ANGLES)
@pytest.mark.parametrize("psi", [-2.0, 0.0, 1.57, 2.9])
@pytest.mark.parametrize("target", [-0.7, 0.0, 0.9])
def test_the_library_computes_these_gains(phi, psi, target):
    gain_u, gain_x = rebase_gains(phi, psi, target)
    assert gain_u == pytest.approx(number(GAIN_U, phi=phi, psi=psi, b=target), rel=4 * 2.0**-52, abs=1e-30)
    assert gain_x == pytest.approx(number(GAIN_X, phi=phi, psi=psi, b=target), rel=4 * 2.0**-52, abs=1e-30)


# -- the table --------------------------------------------------------------------------------------------------------

SIN, COS = sp.sin(PHI), sp.cos(PHI)
SIGMA = sp.tan(PHI)  # Karras' sigma: x_sigma = x_t / cos(phi) = x + sigma eps
C_SKIP = SIGMA_D**2 / (SIGMA**2 + SIGMA_D**2)
C_OUT = SIGMA * SIGMA_D / sp.sqrt(SIGMA**2 + SIGMA_D**2)
EDM_F = ((1 - C_SKIP) / C_OUT, -C_SKIP * SIGMA / C_OUT)  # F = (x - c_skip (x + sigma eps)) / c_out
EDM_R = sp.sqrt(SIN**2 + SIGMA_D**4 * COS**2) / (SIGMA_D * sp.sqrt(SIN**2 + SIGMA_D**2 * COS**2))


@dataclass(frozen=True)
class Row:
    """A parameterization by its authors' (a, b), and the angle, scale and sine that the table claims."""

    a: sp.Expr
    b: sp.Expr
    cos_psi: sp.Expr
    sin_psi: sp.Expr
    r: sp.Expr
    sin_theta: sp.Expr
    param: AngularParam


def row(a, b, psi, r, sin_theta, param):
    return Row(sp.sympify(a), sp.sympify(b), sp.cos(psi), sp.sin(psi), sp.sympify(r), sin_theta, param)


# cos and sin of atan2(y, x) with y = -sigma_d^2 cos phi, x = sin phi, as atan2's definition gives them
EDM_LENGTH = sp.sqrt(SIN**2 + SIGMA_D**4 * COS**2)
EDM_COS, EDM_SIN = SIN / EDM_LENGTH, -(SIGMA_D**2) * COS / EDM_LENGTH
EDM_THETA = -(SIN**2 + SIGMA_D**2 * COS**2) / EDM_LENGTH

TABLE = {
    "epsilon": row(0, 1, sp.pi / 2, 1, COS, EPSILON),
    "sample": row(1, 0, 0, 1, -SIN, X0),
    "v_prediction": row(-SIN, COS, PHI + sp.pi / 2, 1, sp.Integer(1), V),
    "flow": row(-1, 1, 3 * sp.pi / 4, sp.sqrt(2), (SIN + COS) / sp.sqrt(2), FLOW),
    "score": row(0, -1 / SIN, -sp.pi / 2, 1 / SIN, -COS, SCORE),
    "edm": Row(*EDM_F, EDM_COS, EDM_SIN, EDM_R, EDM_THETA, AngularParam.edm(0.5)),
}


@pytest.mark.parametrize("name", TABLE)
def test_angle_and_scale_give_the_definition(name):
    row = TABLE[name]
    assert settled(row.r * row.cos_psi - row.a) == 0
    assert settled(row.r * row.sin_psi - row.b) == 0
    assert settled(row.sin_psi * COS - row.cos_psi * SIN - row.sin_theta) == 0
    assert settled(row.cos_psi**2 + row.sin_psi**2) == 1


@pytest.mark.parametrize("phi", ANGLES)
@pytest.mark.parametrize("name", TABLE)
def test_the_library_holds_the_table(name, phi):
    row = TABLE[name]
    values = {"phi": phi, "sigma_d": 0.5}
    a, b = row.param.coefficients(phi)
    assert a == pytest.approx(number(row.a, **values), rel=TIGHT, abs=TIGHT)
    assert b == pytest.approx(number(row.b, **values), rel=TIGHT, abs=TIGHT)
    assert row.param.sin_theta(phi) == pytest.approx(number(row.sin_theta, **values), rel=TIGHT)
    assert row.param.r_at(phi) == pytest.approx(number(row.r, **values), rel=TIGHT)
    assert row.param.condition_number(phi) == pytest.approx(1 / abs(number(row.sin_theta, **values)), rel=TIGHT)


def test_flow_is_never_worse_than_root_two():
    # |sin theta| = cos(phi - pi/4), at least cos(pi/4) on the quarter circle.
    assert settled((SIN + COS) / sp.sqrt(2) - sp.cos(PHI - sp.pi / 4)) == 0
    phi = np.linspace(0, math.pi / 2, 101)
    assert abs(FLOW.sin_theta(phi)).min() == pytest.approx(1 / math.sqrt(2), rel=1e-15)


def test_v_is_minus_f_for_unit_data():
    for coefficient, v in zip(EDM_F, (-SIN, COS), strict=True):
        assert settled(-coefficient.subs(SIGMA_D, 1) - v) == 0
        assert settled(-coefficient.subs(SIGMA_D, 2) - v) != 0  # and for no other variance
    phi = np.linspace(0.01, 1.57, 50)
    for ours, v in zip((-AngularParam.edm(1.0)).coefficients(phi), V.coefficients(phi), strict=True):
        np.testing.assert_allclose(ours, v, rtol=0, atol=4 * 2.0**-52)  # angles below 2 pi: two roundings of 2^-51


def test_trigflow_is_v_in_the_coordinates_of_normalised_data():
    # TrigFlow: data x, noise z = sigma_d eps, state cos(t) x + sin(t) z, target (cos(t) z - sin(t) x) / sigma_d. Its state is
    # a multiple of x + tan(phi) eps, so tan(phi) = sigma_d tan(t).
    t = sp.atan(sp.tan(PHI) / SIGMA_D)
    for minus_f, target in zip((-c for c in EDM_F), (-sp.sin(t) / SIGMA_D, sp.cos(t)), strict=True):
        assert settled(minus_f - target) == 0
    a, b = parse_parameterization("trigflow", sigma_data=0.5).coefficients(0.9)
    angle = math.atan(math.tan(0.9) / 0.5)
    assert (a, b) == pytest.approx((-math.sin(angle) / 0.5, math.cos(angle)), rel=TIGHT)


# -- the optimum ------------------------------------------------------------------------------------------------------

COT = sp.Symbol("c", real=True)  # cot(theta)
VAR_X = COS**2 * SIGMA_D**2 + SIN**2  # E[x_t^2] for data of variance sigma_d^2
COV_XV = SIN * COS * (1 - SIGMA_D**2)  # E[x_t v], with v = cos phi eps - sin phi x; the conditional mean has the same


def test_the_optimal_angle():
    v_sq = sp.Symbol("m", positive=True)  # E[v_hat^2] does not move the optimum
    energy = COT**2 * VAR_X + 2 * COT * COV_XV + v_sq
    (best,) = sp.solve(sp.diff(energy, COT), COT)
    assert sp.diff(energy, COT, 2).subs({PHI: 1, SIGMA_D: 2}) > 0
    tangent = -(SIGMA_D**2) * COS / SIN  # what the table says of tan(psi*)
    assert (
        settled((SIN / COS * best + 1) - tangent * (best - SIN / COS)) == 0
    )  # and what tan(phi + theta*) is, fractions cleared
    # u orthogonal to x_t in L2: E[u x_t] = cos(psi) cos(phi) sigma_d^2 + sin(psi) sin(phi)
    assert settled(COS * SIGMA_D**2 + tangent * SIN) == 0
    assert settled(EDM_SIN / EDM_COS - tangent) == 0  # the direction of EDM's F
    assert settled(tangent.subs(SIGMA_D, 1) + 1 / sp.tan(PHI)) == 0  # tan(phi + pi/2): v, for unit data


@pytest.mark.parametrize("phi", ANGLES)
@pytest.mark.parametrize("sigma_data", [0.2, 0.5, 1.0, 3.0])
def test_the_library_computes_the_optimum(phi, sigma_data):
    best = AngularParam.optimal(sigma_data)
    assert math.tan(best.psi_at(phi)) == pytest.approx(-(sigma_data**2) / math.tan(phi), rel=TIGHT * 100)  # tan near pi/2
    moments = OutputMoments.gaussian(phi, sigma_data=sigma_data)
    assert optimal_angle(phi, moments) == pytest.approx(best.psi_at(phi), abs=TIGHT)
    floor = loss_floor(phi, param=best, delta=1.0, moments=moments)
    # For Gaussian data the ideal v is linear in x_t, so the output orthogonal to x_t is nothing at all: the floor is 0.
    assert floor == pytest.approx(0.0, abs=TIGHT)
    for turn in (-0.3, -0.01, 0.01, 0.3):
        other = AngularParam(best.psi_at(phi) + turn)
        assert loss_floor(phi, param=other, delta=1.0, moments=moments) > floor + 1e-7


# -- stochastic steps -------------------------------------------------------------------------------------------------

A_T, A_S = COS**2, sp.cos(PHI_S) ** 2  # alpha_bar at both ends
SONG = ETA * sp.sqrt((1 - A_S) / (1 - A_T)) * sp.sqrt(1 - A_T / A_S)  # Song et al. 2021, eq. 16


def test_the_noise_of_a_stochastic_step():
    ours = ETA * sp.sin(PHI_S) / SIN * sp.sqrt(sp.sin(PHI - PHI_S) * sp.sin(PHI + PHI_S)) / sp.cos(PHI_S)
    assert settled(SONG**2 - ours**2) == 0
    # What is left of sin(phi_s)^2 for the predicted noise, without cancellation.
    ratio = sp.tan(PHI_S) / sp.tan(PHI)
    assert settled(sp.sin(PHI_S) ** 2 * (1 - ETA**2 + ETA**2 * ratio**2) - (sp.sin(PHI_S) ** 2 - SONG**2)) == 0


def test_one_is_the_ddpm_posterior():
    mean_x0 = sp.sqrt(A_S) * (1 - A_T / A_S) / (1 - A_T)  # Ho et al. 2020, eq. 7
    mean_xt = sp.sqrt(A_T / A_S) * (1 - A_S) / (1 - A_T)
    eps_kept = sp.sin(PHI_S) ** 2 / SIN * sp.cos(PHI) / sp.cos(PHI_S)  # sqrt(sin(phi_s)^2 - sigma^2) at eta = 1
    assert settled(eps_kept**2 - (sp.sin(PHI_S) ** 2 - SONG.subs(ETA, 1) ** 2)) == 0
    # cos(phi_s) x0 + kept eps with eps = (x_t - cos(phi) x0) / sin(phi)
    assert settled(sp.cos(PHI_S) - eps_kept * COS / SIN - mean_x0) == 0
    assert settled(eps_kept / SIN - mean_xt) == 0
    variance = (1 - A_S) / (1 - A_T) * (1 - A_T / A_S)
    assert settled(SONG.subs(ETA, 1) ** 2 - variance) == 0


@pytest.mark.parametrize(("phi_t", "phi_s"), [(0.9, 0.4), (1.5, 1.45), (0.05, 0.01), (math.pi / 2, 0.7)])
@pytest.mark.parametrize("eta", [0.2, 0.7, 1.0])
def test_the_library_computes_the_stochastic_step(phi_t, phi_s, eta):
    step = ddim_coefficients(phi_t, phi_s, param=X0, eta=eta)
    exact = number(SONG, phi=phi_t, phi_s=phi_s, eta=eta)
    assert step.noise == pytest.approx(exact, rel=TIGHT)
    kept = math.sqrt(math.sin(phi_s) ** 2 - exact**2)
    # In terms of (x, eps): gain_u x + gain_x (cos x + sin eps). Its cancellations cost 1/sin(phi_t), at most 20 here.
    assert step.gain_u + step.gain_x * math.cos(phi_t) == pytest.approx(math.cos(phi_s), rel=TIGHT)
    assert step.gain_x * math.sin(phi_t) == pytest.approx(kept, rel=100 * TIGHT)
    # The marginal keeps its variance: kept^2 + noise^2 = sin(phi_s)^2.
    assert (step.gain_x * math.sin(phi_t)) ** 2 + step.noise**2 == pytest.approx(math.sin(phi_s) ** 2, rel=100 * TIGHT)


@pytest.mark.parametrize(("phi_t", "phi_s"), [(0.9, 0.4), (1.5, 1.45), (0.05, 0.01)])
def test_the_library_computes_the_ddpm_posterior(phi_t, phi_s):
    step = ddim_coefficients(phi_t, phi_s, param=X0, eta=1.0)
    a_t, a_s, b_t, b_s = math.cos(phi_t) ** 2, math.cos(phi_s) ** 2, math.sin(phi_t) ** 2, math.sin(phi_s) ** 2
    beta = math.sin(phi_t - phi_s) * math.sin(phi_t + phi_s) / a_s  # 1 - a_t / a_s
    assert step.gain_u == pytest.approx(math.sqrt(a_s) * beta / b_t, rel=TIGHT)
    assert step.gain_x == pytest.approx(math.sqrt(a_t / a_s) * b_s / b_t, rel=TIGHT)
    assert step.noise == pytest.approx(math.sqrt(b_s / b_t * beta), rel=TIGHT)


# -- steps in other conventions of the state --------------------------------------------------------------------------


def test_the_euler_steps_of_other_conventions_are_the_same_step():
    t, s = (sp.sin(a) / (sp.sin(a) + sp.cos(a)) for a in (PHI, PHI_S))  # rectified flow's time
    flow = w(PHI) / (SIN + COS) + (s - t) * (E - X)
    assert settled((flow - w(PHI_S) / (sp.sin(PHI_S) + sp.cos(PHI_S))).expand()) == 0
    sigma_space = w(PHI) / COS + (sp.tan(PHI_S) - sp.tan(PHI)) * E
    assert settled((sigma_space - w(PHI_S) / sp.cos(PHI_S)).expand()) == 0


@pytest.mark.parametrize(("phi_t", "phi_s"), [(0.9, 0.4), (1.5, 1.45), (0.4, 0.9)])
def test_the_library_takes_the_euler_steps(phi_t, phi_s):
    def time(phi):
        return math.sin(phi) / (math.sin(phi) + math.cos(phi))

    flow = ddim_coefficients(phi_t, phi_s, param=FLOW, state=FLOW_STATE)
    assert (flow.gain_u, flow.gain_x) == pytest.approx((time(phi_s) - time(phi_t), 1.0), rel=TIGHT)
    karras = ddim_coefficients(phi_t, phi_s, param=EPSILON, state=VE)
    assert (karras.gain_u, karras.gain_x) == pytest.approx((math.tan(phi_s) - math.tan(phi_t), 1.0), rel=TIGHT)


# -- loss weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["epsilon", "v_prediction", "flow", "edm"])
@pytest.mark.parametrize("target", ["sample", "v_prediction", "score"])
def test_loss_weights_are_squared_gains(source, target):
    one, other = TABLE[source], TABLE[target]
    # Two outputs that differ by d in the source differ, at the same x_t, by gain * d in the target.
    gain = sp.Matrix([[one.a, one.b], [COS, SIN]]).T.solve(sp.Matrix([other.a, other.b]))[0]
    ratio = (other.r * other.sin_theta / (one.r * one.sin_theta)) ** 2
    assert settled(gain**2 - ratio) == 0
    phi = torch.tensor(ANGLES, dtype=torch.float64)
    expected = [number(ratio, phi=p, sigma_d=0.5) for p in ANGLES]
    weights = loss_weight(phi, source=one.param, target=other.param)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=TIGHT, atol=0)


# -- the paper's floor ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", ANGLES)
def test_equation_27(phi):
    # E[e^2] = 1 / (128^2 alpha_bar) for eps in bf16, with delta the machine epsilon and outputs of unit variance (eq. 19); for
    # v it is 1/128^2 at every angle. Other choices of delta scale it by their square.
    exact = number(1 / (128**2 * COS**2), phi=phi)
    assert loss_floor(phi, param=EPSILON, delta="machine_epsilon") == pytest.approx(exact, rel=TIGHT)
    assert loss_floor(phi, param=V, delta="machine_epsilon") == pytest.approx(128.0**-2, rel=TIGHT)
    assert loss_floor(phi, param=EPSILON, delta="unit_roundoff") == pytest.approx(exact / 4, rel=TIGHT)
    assert loss_floor(phi, param=EPSILON, delta=1 / 64) == pytest.approx(4 * exact, rel=TIGHT)
