"""The DDIM step: eq. 14 by hand, Song's formula in 50 digits, injected errors, state conventions, refusals."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import mpmath
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from diffparam import (
    EPSILON,
    FLOW,
    FLOW_STATE,
    SCORE,
    VE,
    VP,
    X0,
    AdditiveError,
    AngularParam,
    NonFiniteError,
    RelativeError,
    RoundingError,
    Schedule,
    SingularParameterization,
    StepCoefficients,
    V,
    apply_step,
    convert,
    ddim_coefficients,
    ddim_step,
    exact_gaussian_flow,
    largest_safe_timestep,
    loss_floor,
    loss_weight,
    plan_ddim,
    plan_heun,
    predict_eps,
    predict_x0,
    round_to,
    step_error,
    unit_step_error,
)

HALF_PI = math.pi / 2
U = 2.0**-53
"""Unit roundoff of float64."""
PARAMS = {
    "epsilon": EPSILON, "sample": X0, "v": V, "flow": FLOW, "score": SCORE, "edm": AngularParam.edm(0.5),
    "custom": AngularParam.from_coefficients(0.3, -1.7),
}  # fmt: skip
angles = st.floats(0.01, HALF_PI - 0.01)
params = st.sampled_from(sorted(PARAMS)).map(PARAMS.get)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def regular(param: AngularParam, phi: float) -> bool:
    return abs(param.sin_theta(phi)) > 1e-3


# -- the deterministic step -------------------------------------------------------------------------------------------


@given(phi_t=angles, phi_s=angles, param=params)
def test_it_is_equation_14(phi_t: float, phi_s: float, param: AngularParam) -> None:
    assume(regular(param, phi_t))
    u, x_t = randn(7, seed=1), randn(7, seed=2)
    psi, r = param.psi_at(phi_t), param.r_at(phi_t)
    by_hand = (math.sin(phi_s - phi_t) * (u / r) - math.sin(phi_s - psi) * x_t) / math.sin(psi - phi_t)
    # By hand psi - phi is known to |psi| u absolutely, so every sine to a relative 4 u / |sin|: the condition number of eq. 14.
    kappa = param.condition_number(phi_t)
    tolerance = 32 * U * kappa**2 * (u / r).abs().add(x_t.abs()).max().item()
    assert (ddim_step(u, x_t, phi_t, phi_s, param=param) - by_hand).abs().max() < tolerance


@given(phi_t=angles, phi_s=angles, param=params)
def test_from_the_target_it_lands_on_the_noised_sample(phi_t: float, phi_s: float, param: AngularParam) -> None:
    """Up or down, over any distance: with u on target the step is exact."""
    assume(regular(param, phi_t))
    x0, eps = randn(9, seed=1), randn(9, seed=2)
    x_t, wanted = (math.cos(p) * x0 + math.sin(p) * eps for p in (phi_t, phi_s))
    got = ddim_step(param.target(x0, eps, phi_t), x_t, phi_t, phi_s, param=param)
    # A few roundings of terms of order kappa * (|x0| + |eps|), each below 4 here.
    assert (got - wanted).abs().max() < 64 * U * 8 * param.condition_number(phi_t)


def test_for_epsilon_it_is_the_textbook_formula() -> None:
    phi_t, phi_s = 1.1, 0.8
    eps, x_t = randn(5, seed=1), randn(5, seed=2)
    a_t, a_s = math.cos(phi_t) ** 2, math.cos(phi_s) ** 2
    x0 = (x_t - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)
    wanted = math.sqrt(a_s) * x0 + math.sqrt(1 - a_s) * eps
    assert torch.allclose(ddim_step(eps, x_t, phi_t, phi_s, param=EPSILON), wanted, rtol=1e-14, atol=1e-15)


@given(phi_t=st.floats(0, HALF_PI), phi_s=st.floats(0, HALF_PI))
def test_for_v_it_is_a_rotation_at_every_angle(phi_t: float, phi_s: float) -> None:
    step = ddim_coefficients(phi_t, phi_s, param=V)
    # psi - phi_s carries the rounding of phi + pi/2, at most 2^-53 absolutely, on top of two of the sine.
    assert abs(step.gain_u - math.sin(phi_s - phi_t)) < 6 * U
    assert abs(step.gain_x - math.cos(phi_s - phi_t)) < 6 * U
    assert abs(step.gain_u**2 + step.gain_x**2 - 1) < 12 * U
    assert step.noise == 0.0


@given(phi_t=st.floats(0.1, 1.4), step=st.floats(-0.09, 0.09), param=params)
def test_there_and_back_is_nowhere(phi_t: float, step: float, param: AngularParam) -> None:
    assume(regular(param, phi_t) and regular(param, phi_t + step))
    u, x_t = randn(5, seed=1), randn(5, seed=2)
    x0, eps = (f(u, x_t, phi_t, param=param) for f in (predict_x0, predict_eps))
    x_s = ddim_step(u, x_t, phi_t, phi_t + step, param=param)
    back = ddim_step(param.target(x0, eps, phi_t + step), x_s, phi_t + step, phi_t, param=param)
    kappa = param.condition_number(phi_t) * param.condition_number(phi_t + step)
    size = max(x0.abs().max().item(), eps.abs().max().item(), 1.0)
    assert (back - x_t).abs().max() < 64 * U * kappa * size


def test_a_step_of_no_length_changes_nothing() -> None:
    u, x_t = randn(5, seed=1), randn(5, seed=2)
    for param in PARAMS.values():
        assert torch.equal(ddim_step(u, x_t, 0.7, 0.7, param=param), x_t)


def test_the_scale_of_the_output_does_not_matter() -> None:
    u, x_t = randn(5, seed=1), randn(5, seed=2)
    thrice = AngularParam(V.psi, 3.0)
    assert torch.allclose(ddim_step(3 * u, x_t, 1.0, 0.8, param=thrice), ddim_step(u, x_t, 1.0, 0.8, param=V), rtol=1e-15)


def test_of_a_gaussian_the_exact_flow_composes_and_keeps_the_marginal(generator: torch.Generator) -> None:
    x = torch.randn(100, dtype=torch.float64, generator=generator)
    there = exact_gaussian_flow(exact_gaussian_flow(x, 1.5, 0.7, sigma_data=2.0), 0.7, 0.0, sigma_data=2.0)
    assert torch.allclose(there, exact_gaussian_flow(x, 1.5, 0.0, sigma_data=2.0), rtol=1e-14)
    assert torch.allclose(exact_gaussian_flow(x, HALF_PI, 0.0, sigma_data=2.0), 2 * x, rtol=1e-15)


# -- eta --------------------------------------------------------------------------------------------------------------


def song(phi_t: float, phi_s: float, eta: float) -> tuple[mpmath.mpf, mpmath.mpf, mpmath.mpf]:
    """Gains on eps-hat and x_t, and sigma, of Song et al. 2021 eq. 12 and 16, in 50 digits from the same doubles."""
    a_t, a_s = (mpmath.cos(mpmath.mpf(p)) ** 2 for p in (phi_t, phi_s))
    sigma = mpmath.mpf(eta) * mpmath.sqrt((1 - a_s) / (1 - a_t)) * mpmath.sqrt(1 - a_t / a_s)
    on_x = mpmath.sqrt(a_s / a_t)
    return mpmath.sqrt(1 - a_s - sigma**2) - on_x * mpmath.sqrt(1 - a_t), on_x, sigma


@given(phi_t=st.floats(0.02, 1.55), part=st.floats(0.02, 0.98), eta=st.floats(0, 1))
def test_with_eta_it_is_songs_equation_16(phi_t: float, part: float, eta: float) -> None:
    phi_s = part * phi_t
    step = ddim_coefficients(phi_t, phi_s, param=EPSILON, eta=eta)
    with mpmath.workdps(50):
        wanted = song(phi_t, phi_s, eta)
        for got, exact in zip((step.gain_u, step.gain_x, step.noise), wanted, strict=True):
            # Gains of order kappa = 1/cos(phi_t); each is a few roundings of terms of that size.
            assert abs(got - exact) < 64 * U / math.cos(phi_t)


@given(phi_t=st.floats(0.02, 1.55), part=st.floats(0.0, 0.98))
def test_eta_one_is_the_posterior_of_ddpm(phi_t: float, part: float) -> None:
    """Mean and variance of q(x_s | x_t, x0) (Ho et al. 2020, eq. 7), with x0 as the output."""
    phi_s = part * phi_t
    step = ddim_coefficients(phi_t, phi_s, param=X0, eta=1.0)
    with mpmath.workdps(50):
        a_t, a_s = (mpmath.cos(mpmath.mpf(p)) ** 2 for p in (phi_t, phi_s))
        beta = 1 - a_t / a_s
        on_x0 = mpmath.sqrt(a_s) * beta / (1 - a_t)
        on_x = mpmath.sqrt(a_t / a_s) * (1 - a_s) / (1 - a_t)
        variance = (1 - a_s) / (1 - a_t) * beta
        tolerance = 64 * U / math.sin(phi_t)  # kappa of x0
        assert abs(step.gain_u - on_x0) < tolerance
        assert abs(step.gain_x - on_x) < tolerance
        assert abs(step.noise**2 - variance) < tolerance


@given(phi_t=st.floats(0.05, 1.5), part=st.floats(0.05, 0.95), eta=st.floats(0, 1), param=params)
def test_eta_keeps_the_marginal(phi_t: float, part: float, eta: float, param: AngularParam) -> None:
    """With u on target: cos(phi_s) x0 in the mean, sin(phi_s)^2 of noise in all."""
    assume(regular(param, phi_t))
    phi_s = part * phi_t
    step = ddim_coefficients(phi_t, phi_s, param=param, eta=eta)
    a, b = param.coefficients(phi_t)
    signal = step.gain_u * a + step.gain_x * math.cos(phi_t)
    noise = math.hypot(step.gain_u * b + step.gain_x * math.sin(phi_t), step.noise)
    tolerance = 64 * U * param.condition_number(phi_t)
    assert abs(signal - math.cos(phi_s)) < tolerance
    assert abs(noise - math.sin(phi_s)) < tolerance / math.sin(phi_s)


def test_the_noise_it_draws_has_the_size_it_says(generator: torch.Generator) -> None:
    n, phi_t, phi_s = 200_000, 1.2, 0.9
    u, x_t = torch.full((n,), 0.3), torch.full((n,), -0.8)
    for eta in (0.5, 1.0):
        x_s = ddim_step(u, x_t, phi_t, phi_s, param=V, eta=eta, generator=generator).double()
        step = ddim_coefficients(phi_t, phi_s, param=V, eta=eta)
        sigma = float(song(phi_t, phi_s, eta)[2])
        assert x_s.mean().item() == pytest.approx(step.gain_u * 0.3 - step.gain_x * 0.8, abs=5 * sigma / math.sqrt(n))
        assert x_s.std().item() == pytest.approx(sigma, rel=5 / math.sqrt(2 * n))


def test_noise_can_be_given(generator: torch.Generator) -> None:
    u, x_t, z = randn(4, seed=1), randn(4, seed=2), randn(4, seed=3)
    step = ddim_coefficients(1.2, 0.9, param=V, eta=0.7)
    state = generator.get_state()
    got = ddim_step(u, x_t, 1.2, 0.9, param=V, eta=0.7, noise=z, generator=generator)
    assert torch.allclose(got, step.gain_u * u + step.gain_x * x_t + step.noise * z, rtol=0, atol=8 * U * 4)
    assert torch.equal(state, generator.get_state())


@pytest.mark.parametrize("state", [VP, VE, FLOW_STATE], ids=lambda s: s.kind)
def test_a_deterministic_step_draws_nothing(state, generator: torch.Generator) -> None:
    before = generator.get_state().clone()
    phi = torch.tensor([1.2, 0.4], dtype=torch.float64)
    for angle in (1.2, phi):
        ddim_step(randn(2, 3), randn(2, 3, seed=1), angle, angle / 2, param=V, state=state, generator=generator)
    assert torch.equal(before, generator.get_state())


# -- injected errors --------------------------------------------------------------------------------------------------


@given(phi_t=st.floats(0.05, 1.5), phi_s=st.floats(0.05, 1.5), param=params, delta=st.floats(1e-6, 0.5))
def test_an_output_error_is_equations_17_and_18(phi_t: float, phi_s: float, param: AngularParam, delta: float) -> None:
    assume(regular(param, phi_t))
    u, x_t = randn(9, seed=1), randn(9, seed=2)
    psi, r = param.psi_at(phi_t), param.r_at(phi_t)
    clean = ddim_step(u, x_t, phi_t, phi_s, param=param)
    moved = ddim_step(u, x_t, phi_t, phi_s, param=param, output_error=RelativeError(delta))
    eq17 = (math.sin(phi_s - phi_t) * (1 + delta) * u / r - math.sin(phi_s - psi) * x_t) / math.sin(psi - phi_t)
    eq18 = math.sin(phi_s - phi_t) * (u / r) / math.sin(psi - phi_t) * delta
    size = (u / r).abs().add(x_t.abs()).max().item()
    tolerance = 64 * U * param.condition_number(phi_t) ** 2 * size  # as for eq. 14
    assert (moved - eq17).abs().max() < tolerance
    assert (moved - clean - eq18).abs().max() < tolerance
    assert (step_error(u, phi_t, phi_s, param=param, delta=delta) - eq18).abs().max() < tolerance


def test_a_state_error_is_put_on_the_result_and_a_coefficient_error_on_the_coefficients() -> None:
    u, x_t = randn(9, seed=1), randn(9, seed=2)
    bf16 = RoundingError("bfloat16")
    clean = ddim_step(u, x_t, 1.2, 0.9, param=FLOW)
    assert torch.equal(ddim_step(u, x_t, 1.2, 0.9, param=FLOW, state_error=bf16), round_to(clean, "bfloat16"))
    step = ddim_coefficients(1.2, 0.9, param=FLOW)
    gains = round_to(torch.tensor([step.gain_u, step.gain_x], dtype=torch.float64), "bfloat16").tolist()
    rounded = apply_step(StepCoefficients(*gains), u, x_t)
    assert torch.equal(ddim_step(u, x_t, 1.2, 0.9, param=FLOW, coefficient_error=bf16), rounded)
    assert not torch.equal(rounded, clean)


def test_a_coefficient_error_makes_no_noise_where_there_is_none(generator: torch.Generator) -> None:
    step = ddim_coefficients(1.2, 0.9, param=V)
    moved = step.perturbed(AdditiveError(0.1), generator)
    assert moved.noise == 0.0
    assert moved.gain_u != step.gain_u
    assert moved.gain_x != step.gain_x
    assert ddim_coefficients(1.2, 0.9, param=V, eta=1.0).perturbed(AdditiveError(0.1), generator).noise != 0.0


def test_a_coefficient_error_reaches_a_batch_of_angles() -> None:
    phi = torch.tensor([1.2, 0.9], dtype=torch.float64)
    step = ddim_coefficients(phi, phi / 2, param=V)
    moved = step.perturbed(RelativeError(0.25))
    assert torch.equal(moved.gain_u, step.gain_u * 1.25)
    assert torch.equal(moved.gain_x, step.gain_x * 1.25)


def test_all_random_numbers_come_from_the_generator() -> None:
    u, x_t = randn(50, seed=1), randn(50, seed=2)
    errors = {k: RelativeError(0.01, "gaussian") for k in ("output_error", "state_error", "coefficient_error")}
    before = torch.random.get_rng_state()
    first, again, other = (
        ddim_step(u, x_t, 1.2, 0.9, param=V, eta=1.0, generator=torch.Generator().manual_seed(s), **errors) for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


# -- state conventions ------------------------------------------------------------------------------------------------


@given(phi_t=st.floats(0.05, 1.5), part=st.floats(0.05, 0.95), eta=st.sampled_from([0.0, 0.6]), param=params)
@pytest.mark.parametrize("state", [VE, FLOW_STATE], ids=lambda s: s.kind)
def test_another_state_space_is_the_same_step_scaled(state, phi_t: float, part: float, eta: float, param: AngularParam) -> None:
    assume(regular(param, phi_t))
    phi_s = part * phi_t
    u, x_t, z = randn(5, seed=1), randn(5, seed=2), randn(5, seed=3)
    to, per = state.scale(phi_s), state.scale(phi_t)
    plain = ddim_step(u, x_t, phi_t, phi_s, param=param, eta=eta, noise=z) * to
    got = ddim_step(u, x_t * per, phi_t, phi_s, param=param, eta=eta, noise=z, state=state)
    size = (u / param.r_at(phi_t)).abs().add(x_t.abs()).max().item() * to * param.condition_number(phi_t)
    assert (got - plain).abs().max() < 32 * U * size


def test_in_sigma_space_it_is_eulers_step() -> None:
    # Karras et al. 2022, algorithm 1: x + (sigma_s - sigma_t) (x - D) / sigma_t, where (x - D) / sigma_t is eps-hat.
    sigma_t, sigma_s = 3.0, 0.4
    eps, x = randn(5, seed=1), randn(5, seed=2)
    got = ddim_step(eps, x, math.atan(sigma_t), math.atan(sigma_s), param=EPSILON, state=VE)
    assert torch.allclose(got, x + (sigma_s - sigma_t) * eps, rtol=0, atol=64 * U * 10)


def test_in_flow_coordinates_it_is_eulers_step() -> None:
    t, s = 0.7, 0.45
    u, x = randn(5, seed=1), randn(5, seed=2)
    got = ddim_step(u, x, math.atan2(t, 1 - t), math.atan2(s, 1 - s), param=FLOW, state=FLOW_STATE)
    assert torch.allclose(got, x + (s - t) * u, rtol=0, atol=64 * U)


# -- angles, dtypes, transforms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMS)
def test_one_angle_per_item_is_item_by_item(name: str) -> None:
    param, u, x_t = PARAMS[name], randn(4, 3, 2, seed=1), randn(4, 3, 2, seed=2)
    phi_t = torch.tensor([0.2, 0.6, 1.1, 1.5], dtype=torch.float64)
    for eta in (0.0, 0.5):
        z = randn(4, 3, 2, seed=3)
        together = ddim_step(u, x_t, phi_t, phi_t / 2, param=param, eta=eta, noise=z)
        for i in range(4):
            phi = float(phi_t[i])
            alone = ddim_step(u[i], x_t[i], phi, phi / 2, param=param, eta=eta, noise=z[i])
            assert torch.allclose(together[i], alone, rtol=1e-13, atol=1e-13 * param.condition_number(phi))


def test_a_bf16_sample_is_rounded_once_and_not_at_every_operation() -> None:
    u, x_t = (randn(10_000, seed=s, dtype=torch.float32).bfloat16() for s in (1, 2))
    step = ddim_coefficients(1.0, 0.5, param=V)
    got = ddim_step(u, x_t, 1.0, 0.5, param=V)
    assert got.dtype is torch.bfloat16
    exact = step.gain_u * u.double() + step.gain_x * x_t.double()
    # One rounding to bf16: u / (1 + u) of the result, plus float32's own few parts in 2^24 of the terms (|x_t|, |u| < 6).
    bound = RoundingError("bfloat16").fmt.bound_of("nearest") * exact.abs() + 4 * 2.0**-24 * 6
    assert ((got.double() - exact).abs() <= bound).all()
    native = x_t * torch.tensor(step.gain_x).bfloat16() + u * torch.tensor(step.gain_u).bfloat16()
    assert ((native.double() - exact).abs() > bound).double().mean() > 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("output", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_sample_decides_the_dtype(dtype: torch.dtype, output: torch.dtype, eta: float, generator: torch.Generator) -> None:
    u, x_t = randn(4, 3, seed=1).to(output), randn(4, 3, seed=2).to(dtype)
    for phi in (1.0, torch.full((4,), 1.0, dtype=torch.float64)):
        got = ddim_step(u, x_t, phi, phi * 0.9, param=V, eta=eta, generator=generator)
        assert (got.dtype, got.shape) == (dtype, x_t.shape)


def test_a_wider_output_is_used_in_full() -> None:
    # float64 output, float32 sample: the sum is formed in float64 and rounded once.
    u, x_t = randn(1000, seed=1), randn(1000, seed=2, dtype=torch.float32)
    step = ddim_coefficients(1.0, 0.9, param=V)
    wanted = (step.gain_u * u + step.gain_x * x_t.double()).float()
    assert torch.equal(ddim_step(u, x_t, 1.0, 0.9, param=V), wanted)


def test_the_arguments_are_not_written_to() -> None:
    u, x_t = randn(5, seed=1), randn(5, seed=2)
    kept = u.clone(), x_t.clone()
    ddim_step(u, x_t, 1.0, 0.9, param=V, eta=1.0, noise=u)
    assert torch.equal(u, kept[0])
    assert torch.equal(x_t, kept[1])


def test_gradients_are_the_gains() -> None:
    for parts in ((True, True), (True, False), (False, True)):
        u, x_t = (randn(5, seed=i).requires_grad_(part) for i, part in enumerate(parts))
        ddim_step(u, x_t, 1.0, 0.9, param=FLOW).sum().backward()
        step = ddim_coefficients(1.0, 0.9, param=FLOW)
        for value, gain in ((u, step.gain_u), (x_t, step.gain_x)):
            assert value.grad is None or torch.equal(value.grad, torch.full((5,), gain, dtype=torch.float64))


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0)])
def test_it_can_be_mapped_over_either_argument(in_dims: tuple[int | None, int | None]) -> None:
    u, x_t = (randn(3, 5, seed=i) if d == 0 else randn(5, seed=i) for i, d in enumerate(in_dims))

    def step(u: Tensor, x_t: Tensor) -> Tensor:
        return ddim_step(u, x_t, 1.0, 0.9, param=V)

    wanted = torch.stack([step(u[i] if in_dims[0] == 0 else u, x_t[i] if in_dims[1] == 0 else x_t) for i in range(3)])
    assert torch.equal(torch.func.vmap(step, in_dims)(u, x_t), wanted)


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("param", "phi"), [(EPSILON, HALF_PI), (X0, 0.0), (SCORE, HALF_PI), (-EPSILON, HALF_PI)])
def test_a_singular_angle_is_refused_by_name(param: AngularParam, phi: float) -> None:
    x = torch.ones(2, 3)
    for angle in (phi, torch.tensor([0.5, phi], dtype=torch.float64)):
        with pytest.raises(SingularParameterization, match=re.escape(repr(phi))) as caught:
            ddim_step(x, x, angle, 0.7, param=param)
        assert caught.value.phi == phi
        assert caught.value.param == param.name
        assert caught.value.timestep is None


def test_what_cannot_be_stepped_is_refused() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="same shape"):
        ddim_step(torch.ones(2, 4), x, 1.0, 0.9, param=V)
    with pytest.raises(ValueError, match="noise and x_t"):
        ddim_step(x, x, 1.0, 0.9, param=V, eta=1.0, noise=torch.ones(3))
    with pytest.raises(TypeError, match="floating-point"):
        ddim_step(x.long(), x.long(), 1.0, 0.9, param=V)
    with pytest.raises(TypeError, match="torch tensor"):
        ddim_step(1.0, x, 1.0, 0.9, param=V)
    with pytest.raises(ValueError, match="phi_t must lie in"):
        ddim_step(x, x, 1.7, 0.9, param=V)
    with pytest.raises(ValueError, match="phi_s must lie in"):
        ddim_step(x, x, 1.0, -0.1, param=V)
    with pytest.raises(NonFiniteError, match="phi_s"):
        ddim_step(x, x, 1.0, math.nan, param=V)
    with pytest.raises(TypeError, match="float64"):
        ddim_step(x, x, torch.tensor([1.0, 1.0]), 0.9, param=V)
    with pytest.raises(ValueError, match="one value per batch item"):
        ddim_step(x, x, torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64), 0.9, param=V)


def test_a_non_finite_result_is_refused_but_not_a_large_one() -> None:
    x = torch.ones(4, 3)
    for bad in (math.nan, math.inf):
        with pytest.raises(NonFiniteError, match="1 of its 12"):
            ddim_step(torch.where(torch.arange(12).reshape(4, 3) == 5, bad, x), x, 1.0, 0.9, param=V)
    large = torch.full((4, 3), 3e38)  # finite, though its sum is not
    assert ddim_step(x, large, 1.0, 1.0, param=V).isfinite().all()
    fine = torch.full((300,), 6e4, dtype=torch.float16)  # sum beyond float16
    assert ddim_step(fine, fine, 1.0, 1.0, param=V).isfinite().all()


def test_eta_only_goes_down_and_only_so_far() -> None:
    x = torch.ones(2)
    with pytest.raises(ValueError, match="upwards"):
        ddim_step(x, x, 0.9, 1.0, param=V, eta=0.5)
    with pytest.raises(ValueError, match="eta must leave"):
        ddim_step(x, x, 1.0, 0.9, param=V, eta=3.0)
    with pytest.raises(ValueError, match="eta must lie in"):
        ddim_step(x, x, 1.0, 0.9, param=V, eta=-0.5)
    with pytest.raises(ValueError, match="nothing is left"):
        ddim_step(x, x, 0.0, 0.0, param=V, eta=0.5)
    assert ddim_step(x, x, 1.0, 0.99, param=V, eta=1.5).isfinite().all()  # above 1, but within sin(phi_s)
    with pytest.raises(ValueError, match="sigma-space"):
        ddim_step(x, x, HALF_PI, 1.0, param=V, state=VE)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_gradient_by_the_next_angle_is_finite_at_clean_data(eta: float) -> None:
    """At eta = 1 too, where the variance that is left is a square that vanishes there."""
    x, phi_t = torch.ones(2, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64)

    def step(phi_s: Tensor) -> Tensor:
        return ddim_step(0.3 * x, x, phi_t, phi_s, param=V, eta=eta, noise=torch.zeros_like(x)).sum()

    near, at = (torch.tensor(phi, dtype=torch.float64, requires_grad=True) for phi in (1e-8, 0.0))
    slopes = [torch.autograd.grad(step(phi), phi)[0].item() for phi in (near, at)]
    assert slopes[1] == pytest.approx(slopes[0], abs=1e-6)


def test_the_exact_flow_refuses_what_it_cannot_follow() -> None:
    x = torch.zeros(2)
    with pytest.raises(ValueError, match="phi_t must lie in"):
        exact_gaussian_flow(x, 1.6, 0.5, sigma_data=1.0)
    with pytest.raises(NonFiniteError, match="phi_s must be finite"):
        exact_gaussian_flow(x, 1.0, math.nan, sigma_data=1.0)
    with pytest.raises(ValueError, match=r"sigma_data must lie in \[0, inf\), got -1"):
        exact_gaussian_flow(x, 1.0, 0.5, sigma_data=-1.0)
    with pytest.raises(ValueError, match="phi_t must be above 0 for sigma_data = 0"):
        exact_gaussian_flow(x, 0.0, 0.5, sigma_data=0.0)


def test_a_name_is_no_parameterization() -> None:
    x, schedule = torch.zeros(2, 3), Schedule.cosine(10)
    calls: list[Callable[[], object]] = [
        lambda: ddim_step(x, x, 1.0, 0.5, param="v"),  # type: ignore[arg-type]
        lambda: plan_ddim(schedule, param="v"),  # type: ignore[arg-type]
        lambda: plan_heun(schedule, param="v"),  # type: ignore[arg-type]
        lambda: convert(x, x, 1.0, source="v", target=V),  # type: ignore[arg-type]
        lambda: convert(x, x, 1.0, source=V, target="v"),  # type: ignore[arg-type]
        lambda: predict_x0(x, x, 1.0, param="v"),  # type: ignore[arg-type]
        lambda: loss_weight(1.0, source="v", target=V),  # type: ignore[arg-type]
        lambda: unit_step_error(1.0, param="v", delta=0.01),  # type: ignore[arg-type]
        lambda: loss_floor(1.0, param="v", delta=0.01),  # type: ignore[arg-type]
        lambda: largest_safe_timestep(schedule, param="v", delta=0.01),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"must be an AngularParam, got str \('v'\).*parse_parameterization"):
            call()
