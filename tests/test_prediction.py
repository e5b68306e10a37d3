"""Errors predicted before they are measured: predicted over measured is 1, equation by equation and by Monte-Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from diffparam import (
    EPSILON,
    FLOW,
    SCORE,
    X0,
    AngularParam,
    ErrorModel,
    GaussianMixture,
    NonFiniteError,
    OutputMoments,
    RelativeError,
    RoundingError,
    Schedule,
    SingularParameterization,
    V,
    ddim_step,
    largest_safe_timestep,
    loss_floor,
    optimal_angle,
    output_energy,
    predict_v,
    step_error,
    step_error_gain,
    step_error_rms,
    unit_step_error,
)
from diffparam.error_model import LAWS

COUNT = 200_000
PARAMS = [EPSILON, X0, V, FLOW, SCORE, AngularParam.edm(0.8), AngularParam.from_coefficients(0.8, 0.6, name="w")]
SCHEDULES = [Schedule.cosine(), Schedule.linear(), Schedule.karras(18).with_state(Schedule.cosine().state)]
ERRORS = [*(RelativeError("rms", law) for law in LAWS), RoundingError("bfloat16")]
MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.4], [0.9, -0.2]], dtype=torch.float64), torch.tensor([0.3, 0.6], dtype=torch.float64)
)
angles = st.floats(0.02, math.pi / 2 - 0.02)


def states(data: GaussianMixture, phi: float, count: int = COUNT) -> Tensor:
    """x_t at ``phi``, ``(count, D)``."""
    draws = torch.Generator().manual_seed(17)
    x0 = data.sample(count, draws)
    return math.cos(phi) * x0 + math.sin(phi) * torch.randn(x0.shape, dtype=torch.float64, generator=draws)


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def pick(schedule: Schedule) -> list[float]:
    """Angles near the clean end, in the middle and near the noisy end."""
    n = len(schedule)
    return [float(schedule.phi[i]) for i in (1, n // 2, int(0.95 * n))]


# -- Monte-Carlo ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
@pytest.mark.parametrize("param", PARAMS, ids=lambda p: p.name)
@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
def test_predicted_over_measured_is_one(param: AngularParam, schedule: Schedule, sigma_data: float) -> None:
    """One step of the exact network with its output perturbed, against kappa delta |sin(step)| rms(u/r).

    The squared error is u^2 xi^2, u Gaussian: at N draws its root mean square has a relative standard error of at most
    sqrt(3 * 3 - 1) / (2 sqrt N) = 0.3% (Gaussian xi), so five of them are 1.6%. For rounding, delta = rms holds for a
    log-uniform significand; of a Gaussian number it is right to 0.3% (the first Fourier coefficient of u^2 p(u) in log2 u).
    """
    data = GaussianMixture.gaussian(sigma_data)
    for phi_t in pick(schedule):
        phi_s = 0.4 * phi_t  # far enough that a sine is not its angle
        x_t = states(data, phi_t)
        u = data.output(x_t, phi_t, param=param)
        clean = ddim_step(u, x_t, phi_t, phi_s, param=param)
        moments = OutputMoments.gaussian(phi_t, sigma_data=sigma_data)
        predicted = step_error_rms(phi_t, phi_s, param=param, delta="rms", moments=moments)
        for error in ERRORS:
            measured = rms(measure(error, u, x_t, phi_t, phi_s, param) - clean)
            assert 0.97 < predicted / measured < 1.03, (phi_t, error)


def measure(error: ErrorModel, u: Tensor, x_t: Tensor, phi_t: float, phi_s: float, param: AngularParam) -> Tensor:
    return ddim_step(u, x_t, phi_t, phi_s, param=param, output_error=error, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("param", PARAMS, ids=lambda p: p.name)
def test_the_loss_floor_is_the_v_space_error_that_is_measured(param: AngularParam) -> None:
    """On data that are not Gaussian, with measured moments. Energies: twice the relative error of an rms."""
    for phi in (0.1, 0.8, 1.4):
        x_t = states(MIXTURE, phi)
        v_hat = MIXTURE.predict_v(x_t, phi)
        u = MIXTURE.output(x_t, phi, param=param)
        moments = OutputMoments.measure(x_t, v_hat)
        predicted = loss_floor(phi, param=param, delta="rms", moments=moments)
        for error in (RelativeError("rms", "gaussian"), RoundingError("bfloat16")):
            moved = predict_v(error.apply(u, torch.Generator().manual_seed(3)), x_t, phi, param=param)
            assert 0.94 < predicted / (moved - v_hat).square().mean().item() < 1.06, (phi, error)


def test_it_adds_to_the_loss_of_the_network() -> None:
    """Eq. 26: an error of mean zero, independent of the network's own, adds its energy and no cross term."""
    phi, draws = 1.2, torch.Generator().manual_seed(5)
    x0 = MIXTURE.sample(COUNT, draws)
    eps = torch.randn(x0.shape, dtype=torch.float64, generator=draws)
    x_t, v = math.cos(phi) * x0 + math.sin(phi) * eps, V.target(x0, eps, phi)
    u = MIXTURE.output(x_t, phi, param=EPSILON)
    loss = (v - predict_v(u, x_t, phi, param=EPSILON)).square().mean().item()
    moved = RelativeError(0.1, "rademacher").apply(u, draws)
    added = (v - predict_v(moved, x_t, phi, param=EPSILON)).square().mean().item() - loss
    moments = OutputMoments.measure(x_t, MIXTURE.predict_v(x_t, phi))
    # The cross term 2 (v - v_hat) e has standard deviation 2 sqrt(loss * floor) per element and averages over 2 COUNT of them.
    floor = loss_floor(phi, param=EPSILON, delta=0.1, moments=moments)
    assert added == pytest.approx(floor, abs=5 * 2 * math.sqrt(loss * floor / (2 * COUNT)))
    assert added > 10 * 2 * math.sqrt(loss * floor / (2 * COUNT))  # and it is there


def test_the_papers_delta_and_the_papers_energy_are_not_the_measurement() -> None:
    """Control: each ingredient left out is far outside the 3% the other tests allow."""
    phi_t, phi_s, data = 1.2, 1.0, GaussianMixture.gaussian(0.5)
    x_t = states(data, phi_t)
    u = data.output(x_t, phi_t, param=V)
    error = rms(measure(RoundingError("bf16"), u, x_t, phi_t, phi_s, V) - ddim_step(u, x_t, phi_t, phi_s, param=V))
    moments = OutputMoments.gaussian(phi_t, sigma_data=0.5)
    for delta, given_moments in (("machine_epsilon", moments), ("unit_roundoff", moments), ("rms", None)):
        assert step_error_rms(phi_t, phi_s, param=V, delta=delta, moments=given_moments) / error > 1.5
    assert step_error_rms(phi_t, phi_s, param=EPSILON, delta="rms", moments=moments) / error > 1.5


# -- moments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", [0.05, 0.7, 1.5])
@pytest.mark.parametrize("sigma_data", [0.3, 1.0, 2.0])
def test_the_output_energy_of_gaussian_data_is_what_is_measured(phi: float, sigma_data: float) -> None:
    data = GaussianMixture.gaussian(sigma_data)
    x_t = states(data, phi)
    closed = OutputMoments.gaussian(phi, sigma_data=sigma_data)
    measured = OutputMoments.measure(x_t, data.predict_v(x_t, phi))
    tolerance = 5 * math.sqrt(2 / COUNT)  # relative standard error of the mean square of N Gaussians, five times
    assert measured.x_sq == pytest.approx(closed.x_sq, rel=tolerance)
    assert measured.x_v == pytest.approx(closed.x_v, rel=tolerance)
    assert measured.v_sq == pytest.approx(closed.v_sq, rel=tolerance)
    for param in PARAMS:
        u = data.output(x_t, phi, param=param) / param.r_at(phi)
        energy = u.square().mean().item()
        # Of measured moments it is the measured energy, up to the rounding of cos^2, sin cos and sin^2 terms that may cancel.
        assert output_energy(phi, param=param, moments=measured) == pytest.approx(energy, rel=1e-9, abs=1e-13)
        assert output_energy(phi, param=param, moments=closed) == pytest.approx(energy, rel=tolerance, abs=1e-13)


def test_of_the_target_the_energy_is_one_in_every_parameterization() -> None:
    for param in PARAMS:
        for phi in (0.1, 0.8, 1.5):
            assert output_energy(phi, param=param, moments=OutputMoments.target()) == pytest.approx(1.0, rel=1e-14)


@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
def test_where_the_network_says_nothing_no_error_is_predicted(sigma_data: float) -> None:
    """F of EDM on Gaussian data of its own sigma_data: the terms cancel to either side of zero, and a root must be real."""
    for phi in np.linspace(0.05, 1.5, 30):
        moments = OutputMoments.gaussian(float(phi), sigma_data=sigma_data)
        predicted = step_error_rms(float(phi), 0.0, param=AngularParam.edm(sigma_data), delta=1.0, moments=moments)
        assert isinstance(predicted, float)
        # The root of a few 2^-53 times E[x_t^2] <= 4.
        assert 0 <= predicted < math.sqrt(64 * 2.0**-53 * 4) * AngularParam.edm(sigma_data).condition_number(float(phi))


def test_moments_follow_the_kind_of_their_angle() -> None:
    phi = np.linspace(0.1, 1.5, 7)
    for moments in (OutputMoments.gaussian(phi, sigma_data=0.5), OutputMoments.gaussian(torch.from_numpy(phi), sigma_data=0.5)):
        for i, angle in enumerate(phi):
            one = OutputMoments.gaussian(float(angle), sigma_data=0.5)
            for name in ("x_sq", "x_v", "v_sq"):
                assert float(getattr(moments, name)[i]) == pytest.approx(getattr(one, name), rel=1e-14)


def test_a_whole_schedule_is_answered_at_once() -> None:
    schedule = Schedule.cosine(50)
    floors = loss_floor(schedule.phi, param=EPSILON, delta="rms", moments=OutputMoments.gaussian(schedule.phi, sigma_data=0.5))
    steps = step_error_rms(schedule.phi[1:], schedule.phi[:-1], param=EPSILON, delta="rms")
    for i in (1, 25, 49):
        phi, before = float(schedule.phi[i]), float(schedule.phi[i - 1])
        moments = OutputMoments.gaussian(phi, sigma_data=0.5)
        assert float(floors[i]) == pytest.approx(loss_floor(phi, param=EPSILON, delta="rms", moments=moments), rel=1e-13)
        assert float(steps[i - 1]) == pytest.approx(step_error_rms(phi, before, param=EPSILON, delta="rms"), rel=1e-12)


# -- the paper's equations ----------------------------------------------------------------------------------------------


@given(phi_t=angles, phi_s=angles, delta=st.floats(1e-4, 0.1))
def test_equation_6(phi_t: float, phi_s: float, delta: float) -> None:
    """For epsilon: sqrt(1 - a_s) - sqrt(a_s / a_t) sqrt(1 - a_t), times eps delta."""
    eps = torch.linspace(-2, 2, 9, dtype=torch.float64)
    a_t, a_s = math.cos(phi_t) ** 2, math.cos(phi_s) ** 2
    bracket = math.sqrt(1 - a_s) - math.sqrt(a_s) / math.sqrt(a_t) * math.sqrt(1 - a_t)
    got = step_error(eps, phi_t, phi_s, param=EPSILON, delta=delta)
    # The bracket cancels: its absolute error is a few 2^-53 / cos(phi_t), and 1 - a loses 2^-53 / sin more.
    tolerance = (
        2 * delta * 32 * 2.0**-53 * (1 / math.cos(phi_t) + 1 / math.sin(phi_s) + 1 / (math.cos(phi_t) * math.sin(phi_t)))
    )
    assert (got - bracket * eps * delta).abs().max().item() < tolerance


@given(phi_t=angles, phi_s=angles, index=st.integers(0, len(PARAMS) - 1))
def test_equation_18(phi_t: float, phi_s: float, index: int) -> None:
    param = PARAMS[index]
    assume(abs(param.sin_theta(phi_t)) > 1e-3 and abs(phi_t - phi_s) > 1e-3)
    u = torch.linspace(-2, 2, 9, dtype=torch.float64)
    psi, r = param.psi_at(phi_t), param.r_at(phi_t)
    by_hand = math.sin(phi_s - phi_t) * (u / r) / math.sin(psi - phi_t) / 128
    assert torch.allclose(step_error(u, phi_t, phi_s, param=param, delta="machine_epsilon"), by_hand, rtol=1e-11, atol=0)
    assert step_error_gain(phi_t, phi_s, param=param) == pytest.approx(
        math.sin(phi_s - phi_t) / (r * math.sin(psi - phi_t)), rel=1e-11
    )
    whole = torch.full_like(u, 1 / 128)
    assert torch.allclose(step_error(u, phi_t, phi_s, param=param, delta=whole), by_hand, rtol=1e-11, atol=0)


@given(phi=angles)
def test_equations_23_and_27(phi: float) -> None:
    alpha_bar = math.cos(phi) ** 2
    # cos(phi) by sin(pi/2 - phi): pi/2 as a double is off by 6e-17.
    rel = 1e-15 + 2e-16 / math.cos(phi)
    assert unit_step_error(phi, param=EPSILON, delta="machine_epsilon") == pytest.approx(1 / (128 * math.cos(phi)), rel=rel)
    assert loss_floor(phi, param=EPSILON, delta="machine_epsilon") == pytest.approx(1 / (128**2 * alpha_bar), rel=2 * rel)
    assert loss_floor(phi, param=V, delta="machine_epsilon") == pytest.approx(1 / 128**2, rel=1e-14)
    assert loss_floor(phi, param=EPSILON, delta="unit_roundoff", fmt="fp16") == pytest.approx(2.0**-22 / alpha_bar, rel=2 * rel)


@given(phi=angles, step=st.floats(1e-6, 1e-3))
def test_a_unit_step_is_the_limit_of_a_small_one(phi: float, step: float) -> None:
    # sin(step) = step (1 - step^2 / 6)
    for param in (EPSILON, V, FLOW):
        assert step_error_rms(phi, max(phi - step, 0.0), param=param, delta=0.01) / step == pytest.approx(
            unit_step_error(phi, param=param, delta=0.01), rel=step**2 / 6 + 1e-9
        )


# -- the optimum ------------------------------------------------------------------------------------------------------


@given(phi=angles, sigma_data=st.floats(0.1, 5.0), turn=st.floats(0.02, math.pi - 0.02))
def test_no_other_angle_has_a_lower_floor(phi: float, sigma_data: float, turn: float) -> None:
    moments = OutputMoments.gaussian(phi, sigma_data=sigma_data)
    best = optimal_angle(phi, moments)
    here = loss_floor(phi, param=AngularParam(best), delta=1.0, moments=moments)
    other = AngularParam(best + turn)
    assume(abs(math.sin(best + turn - phi)) > 1e-6)
    assert loss_floor(phi, param=other, delta=1.0, moments=moments) > here
    # u is orthogonal to x_t there: E[u x_t] = cos E[x^2] + sin E[x v].
    assert math.cos(best - phi) * moments.x_sq + math.sin(best - phi) * moments.x_v == pytest.approx(
        0, abs=1e-14 * moments.x_sq
    )


@pytest.mark.parametrize("sigma_data", [0.2, 0.5, 1.0, 3.0])
def test_the_optimum_is_the_direction_of_edm_and_v_at_unit_variance(sigma_data: float) -> None:
    for phi in (0.1, 0.8, 1.5):
        best = optimal_angle(phi, OutputMoments.gaussian(phi, sigma_data=sigma_data))
        optimal = AngularParam.optimal(sigma_data).psi_at(phi)
        assert math.sin(best - optimal) == pytest.approx(0, abs=1e-14)  # the sign of u is free
        gap = math.sin(best - (phi + math.pi / 2))
        assert (abs(gap) < 1e-14) == (sigma_data == 1.0)


def test_the_optimum_of_measured_moments_beats_a_grid() -> None:
    for phi in (0.3, 1.2):
        x_t = states(MIXTURE, phi, 20_000)
        moments = OutputMoments.measure(x_t, MIXTURE.predict_v(x_t, phi))
        best = optimal_angle(phi, moments)
        assert best == float(optimal_angle(torch.tensor(phi, dtype=torch.float64), moments))  # numbers beside a tensor
        grid = phi + np.linspace(0.05, math.pi - 0.05, 400)
        floors = [loss_floor(phi, param=AngularParam(float(psi)), delta=1.0, moments=moments) for psi in grid]
        here = loss_floor(phi, param=AngularParam(best), delta=1.0, moments=moments)
        assert here <= min(floors)
        assert min(floors) < 1.001 * here + 1e-4  # the grid comes near: here is a minimum, not a mistake of scale
        assert max(floors) > 10 * here


def test_the_optimum_is_answered_for_arrays() -> None:
    phi = np.linspace(0.1, 1.5, 5)
    several = optimal_angle(phi, OutputMoments.gaussian(phi, sigma_data=0.5))
    for i, angle in enumerate(phi):
        one = optimal_angle(float(angle), OutputMoments.gaussian(float(angle), sigma_data=0.5))
        assert several[i] == pytest.approx(one, rel=1e-15)


# -- where it is safe ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Schedule.cosine(), Schedule.linear(), Schedule.rectified_flow(50)], ids=lambda s: s.name)
@pytest.mark.parametrize("delta", ["machine_epsilon", "rms", 0.3])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-3, 0.01])
def test_the_largest_safe_timestep_is_the_last_within_tolerance(
    schedule: Schedule, delta: str | float, tolerance: float
) -> None:
    for param in (EPSILON, V, FLOW, X0):
        safe = []
        for t, phi in zip(schedule.timesteps.tolist(), schedule.phi.tolist(), strict=True):
            try:
                floor = loss_floor(phi, param=param, delta=delta)
            except SingularParameterization:
                continue
            if floor <= tolerance:
                safe.append(t)
        assert largest_safe_timestep(schedule, param=param, delta=delta, tolerance=tolerance) == (safe[-1] if safe else None)


def test_v_is_safe_to_the_end_and_epsilon_is_not() -> None:
    zero_snr = Schedule.linear().rescale_zero_terminal_snr()
    assert largest_safe_timestep(zero_snr, param=V, delta="machine_epsilon") == 999
    last = largest_safe_timestep(zero_snr, param=EPSILON, delta="machine_epsilon")
    assert 0 < last < 999
    # alpha_bar >= 1 / (128^2 tolerance) by eq. 27.
    assert zero_snr.alpha_bar[last] >= 1 / (128**2 * 0.01) > zero_snr.alpha_bar[last + 1]
    assert largest_safe_timestep(zero_snr, param=EPSILON, delta=0.5) is None


def test_where_it_is_singular_the_floor_is_refused() -> None:
    with pytest.raises(SingularParameterization, match="epsilon"):
        loss_floor(math.pi / 2, param=EPSILON, delta="rms")
    with pytest.raises(SingularParameterization, match="sample"):
        unit_step_error(0.0, param=X0, delta="rms")
    with pytest.raises(ValueError, match="delta"):
        loss_floor(1.0, param=V, delta=-1.0)
    with pytest.raises(ValueError, match="tolerance"):
        largest_safe_timestep(Schedule.cosine(), param=V, delta="rms", tolerance=0.0)
    with pytest.raises(ValueError, match="same shape"):
        OutputMoments.measure(torch.ones(2), torch.ones(3))


@pytest.mark.parametrize(
    ("moments", "message"),
    [
        ((-1.0, 0.0, 1.0), "x_sq must be a mean square of at least 0"),
        ((1.0, 0.0, -1e-9), "v_sq must be a mean square"),
        ((1.0, 0.0, math.nan), "v_sq must be finite"),
        ((1.0, 1.1, 1.0), "x_v must be at most sqrt"),
        ((1.0, math.nan, 1.0), "x_v must be finite"),
        ((np.array([1.0, 1.0]), 0.0, np.array([1.0, -1.0])), "v_sq must be"),
    ],
)
def test_moments_that_no_values_have_are_refused(moments: tuple[object, ...], message: str) -> None:
    with pytest.raises((ValueError, NonFiniteError), match=message):
        OutputMoments(*moments)
    OutputMoments(1.0, 1.0, 1.0)  # v_hat = x_t has them


def test_the_moments_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="x_t must hold at least one value, got shape"):
        OutputMoments.measure(torch.zeros(0, 3), torch.zeros(0, 3))
