"""The exact denoisers against integration, Monte-Carlo and the gradient of the log-density."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from diffparam import (
    EPSILON,
    FLOW,
    FLOW_STATE,
    SCORE,
    VE,
    X0,
    AngularParam,
    GaussianMixture,
    NonFiniteError,
    Schedule,
    V,
    convert,
)

ANGLES = [0.02, 0.3, math.pi / 4, 1.2, 1.55]


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def mixture() -> GaussianMixture:
    """Three unequal components in the plane."""
    means = torch.tensor([[1.0, -0.5], [-1.2, 0.3], [0.2, 1.5]], dtype=torch.float64)
    return GaussianMixture(means, double(0.3, 0.6, 1.4), double(0.5, 0.3, 0.2))


def log_density(data: GaussianMixture, x_t: Tensor, phi: float) -> Tensor:
    """log p(x_t) by torch.distributions: per component mean cos(phi) mu and variance (cos(phi) std)^2 + sin(phi)^2."""
    c, s = math.cos(phi), math.sin(phi)
    std = (c**2 * data.stds**2 + s**2).sqrt()[:, None].expand_as(data.means)
    components = Independent(Normal(c * data.means, std), 1)
    return MixtureSameFamily(Categorical(data.weights), components).log_prob(x_t)


def score(data: GaussianMixture, x_t: Tensor, phi: float) -> Tensor:
    x = x_t.clone().requires_grad_(True)
    return torch.autograd.grad(log_density(data, x, phi).sum(), x)[0]


# -- one Gaussian -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_data", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("phi", ANGLES)
def test_of_a_gaussian_it_is_linear_regression(sigma_data: float, phi: float) -> None:
    # Jointly Gaussian v and x_t: E[v | x_t] = Cov(v, x_t) / Var(x_t) x_t.
    c, s = math.cos(phi), math.sin(phi)
    x_t = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    slope = (c * s - s * c * sigma_data**2) / (c**2 * sigma_data**2 + s**2)
    got = GaussianMixture.gaussian(sigma_data).predict_v(x_t, phi)
    assert torch.allclose(got, slope * x_t, rtol=1e-13, atol=1e-15)


def test_for_unit_variance_data_the_best_v_is_zero() -> None:
    assert GaussianMixture.gaussian(1.0, dim=3).predict_v(torch.ones(2, 3), 0.7).abs().max() == 0


# -- a mixture --------------------------------------------------------------------------------------------------------


def integrated_v(data: GaussianMixture, x_t: float, phi: float) -> float:
    """E[v | x_t] in one dimension, integrating over x; the trapezoidal rule converges exponentially for such integrands."""
    c, s = math.cos(phi), math.sin(phi)
    # Around where the posterior lives: within 12 standard deviations of each component and of x_t / c.
    means, stds = data.means[:, 0].numpy(), data.stds.numpy()
    low, high = (means - 12 * stds).min(), (means + 12 * stds).max()
    if c * 12 > s:  # the likelihood is narrow
        low, high = max(low, (x_t - 12 * s) / c), min(high, (x_t + 12 * s) / c)
    x = np.linspace(low, high, 40_001)
    prior = (data.weights.numpy() / stds * np.exp(-0.5 * ((x[:, None] - means) / stds) ** 2)).sum(1)
    eps = (x_t - c * x) / s
    mass = prior * np.exp(-0.5 * eps**2)
    return float(((c * eps - s * x) * mass).sum() / mass.sum())


@pytest.mark.parametrize("phi", [0.1, 0.3, math.pi / 4, 1.2, 1.55, math.pi / 2])
def test_of_a_mixture_it_is_the_integral(phi: float) -> None:
    data = GaussianMixture(double(-1.5, 0.4, 2.0)[:, None], double(0.2, 0.7, 0.4), double(0.2, 0.5, 0.3))
    for x_t in (-2.0, -0.3, 0.0, 1.1, 2.5):
        got = data.predict_v(double(x_t)[:, None], phi).item()
        # eps = (x_t - c x) / s multiplies the rounding of x by cot(phi); 40001 terms cost a few more ulp.
        assert got == pytest.approx(integrated_v(data, x_t, phi), abs=1e-11)


def worst_z(residual: Tensor, x_t: Tensor) -> float:
    """Largest |mean / standard error| of residual * g(x_t) over a few functions g: standard normal if E[residual | x_t] = 0."""
    tests = [torch.ones_like(x_t), x_t, x_t.flip(-1), torch.sin(2 * x_t), (x_t > 0.5).double()]
    products = [residual * g for g in tests]
    return max(float((p.mean(0) / (p.std(0) / math.sqrt(len(p)))).abs().max()) for p in products)


@pytest.mark.parametrize("phi", ANGLES)
def test_its_error_is_orthogonal_to_every_function_of_the_state(
    mixture: GaussianMixture, phi: float, generator: torch.Generator
) -> None:
    """What defines a conditional mean. Ten standard normal z: P(any above 5) = 6e-6."""
    x0 = mixture.sample(200_000, generator)
    eps = torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    x_t, v = (math.cos(phi) * x0 + math.sin(phi) * eps), (math.cos(phi) * eps - math.sin(phi) * x0)
    residual = v - mixture.predict_v(x_t, phi)
    assert worst_z(residual, x_t) < 5
    # Control: the conditional mean of another mixture. Its v differs by some 0.1 sin(phi) of the data's scale.
    shifted = GaussianMixture(mixture.means + 0.2, mixture.stds, mixture.weights)
    control = v - shifted.predict_v(x_t, phi)
    if phi > 0.1:  # where the noise is small the state gives the data away, whatever the prior
        assert worst_z(control, x_t) > 10


@pytest.mark.parametrize("phi", ANGLES)
def test_its_score_is_the_gradient_of_the_log_density(mixture: GaussianMixture, phi: float, generator: torch.Generator) -> None:
    x_t = 2 * torch.randn(50, 2, dtype=torch.float64, generator=generator)
    c, s, wanted = math.cos(phi), math.sin(phi), score(mixture, x_t, phi)
    # The rebase from v costs kappa = 1/cos(phi) ulp for the score and 1/sin(phi) for x0, of outputs of order 10.
    assert torch.allclose(mixture.output(x_t, phi, param=SCORE), wanted, rtol=1e-12, atol=1e-13 / c / s)
    assert torch.allclose(mixture.output(x_t, phi, param=EPSILON), -s * wanted, rtol=1e-12, atol=1e-13 / c)
    tweedie = (x_t + s**2 * wanted) / c
    assert torch.allclose(mixture.output(x_t, phi, param=X0), tweedie, rtol=1e-12, atol=1e-13 / c / s)


def test_the_wrong_angle_gives_another_score(mixture: GaussianMixture) -> None:
    x_t = torch.tensor([[0.4, -1.0]], dtype=torch.float64)
    assert (mixture.output(x_t, 0.7, param=SCORE) - score(mixture, x_t, 0.72)).abs().max() > 1e-3


# -- the ends ---------------------------------------------------------------------------------------------------------


def test_from_pure_noise_it_says_minus_the_mean(mixture: GaussianMixture, generator: torch.Generator) -> None:
    # At phi = pi/2 v is -x and x_t tells nothing of x; cos(pi/2) is 6e-17 in float64.
    x_t = torch.randn(20, 2, dtype=torch.float64, generator=generator)
    mean = (mixture.weights[:, None] * mixture.means).sum(0)
    assert torch.allclose(mixture.predict_v(x_t, math.pi / 2), -mean.expand(20, 2), rtol=1e-13, atol=1e-14)


def test_from_clean_data_it_says_nothing(mixture: GaussianMixture) -> None:
    # At phi = 0 v is the noise, whose mean given x is zero.
    assert mixture.predict_v(torch.ones(3, 2, dtype=torch.float64), 0.0).abs().max() == 0


def test_a_point_mass_is_found_from_any_noise(generator: torch.Generator) -> None:
    point = GaussianMixture.gaussian(0.0, dim=2, mean=0.7)
    x_t = torch.randn(10, 2, dtype=torch.float64, generator=generator)
    for phi in ANGLES:
        assert torch.allclose(point.output(x_t, phi, param=X0), torch.full_like(x_t, 0.7), rtol=0, atol=1e-14 / math.sin(phi))
    with pytest.raises(ValueError, match="point mass"):
        point.predict_v(x_t, 0.0)


def test_between_two_point_masses_it_is_a_hyperbolic_tangent() -> None:
    # x = +-1 with equal weight: E[x | x_t] = tanh(x_t cos / sin^2).
    points = GaussianMixture(double(-1.0, 1.0)[:, None], double(0.0, 0.0))
    x_t = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    for phi in (0.5, 1.0, 1.5):
        wanted = (x_t * math.cos(phi) / math.sin(phi) ** 2).tanh()
        assert torch.allclose(points.output(x_t, phi, param=X0), wanted, rtol=1e-13, atol=1e-15)


# -- how it is called -------------------------------------------------------------------------------------------------


def test_one_angle_per_row_is_row_by_row(mixture: GaussianMixture, generator: torch.Generator) -> None:
    x_t = torch.randn(4, 2, dtype=torch.float64, generator=generator)
    phi = double(0.1, 0.6, 1.1, 1.5)
    together = mixture.output(x_t, phi, param=FLOW)
    alone = torch.cat([mixture.output(x_t[i : i + 1], float(phi[i]), param=FLOW) for i in range(4)])
    assert torch.allclose(together, alone, rtol=1e-14, atol=1e-15)


def test_every_parameterization_speaks_of_the_same_v(mixture: GaussianMixture, generator: torch.Generator) -> None:
    x_t = torch.randn(20, 2, dtype=torch.float64, generator=generator)
    for param in (EPSILON, X0, FLOW, SCORE, AngularParam.edm(0.5)):
        back = convert(mixture.output(x_t, 0.9, param=param), x_t, 0.9, source=param, target=V)
        assert torch.allclose(back, mixture.predict_v(x_t, 0.9), rtol=0, atol=1e-14)


def test_float32_states_are_computed_in_float64(mixture: GaussianMixture, generator: torch.Generator) -> None:
    x_t = torch.randn(50, 2, generator=generator)
    got = mixture.predict_v(x_t, 0.4)
    assert got.dtype is torch.float32
    assert torch.equal(got, mixture.predict_v(x_t.double(), 0.4).float())


@pytest.mark.parametrize("state", [VE, FLOW_STATE], ids=lambda s: s.kind)
def test_the_model_reads_states_in_the_schedules_convention(
    mixture: GaussianMixture, state, generator: torch.Generator
) -> None:
    schedule = Schedule.linear(100)
    t = torch.tensor([3, 50, 97])
    x_t = torch.randn(3, 2, dtype=torch.float64, generator=generator)
    plain = mixture.model(schedule, V)(x_t, t)
    scaled = x_t * state.scale(schedule.phi_at(t))[:, None]
    assert torch.allclose(mixture.model(schedule.with_state(state), V)(scaled, t), plain, rtol=1e-13, atol=1e-15)


def test_samples_have_the_moments_of_the_data(mixture: GaussianMixture, generator: torch.Generator) -> None:
    n = 100_000
    x = mixture.sample(n, generator)
    mean = (mixture.weights[:, None] * mixture.means).sum(0)
    spread = mixture.means - mean
    covariance = torch.einsum("k,ki,kj->ij", mixture.weights, spread, spread)
    covariance += (mixture.weights * mixture.stds**2).sum() * torch.eye(2, dtype=torch.float64)
    # Mean within 5 standard errors; a covariance entry has a standard error of at most sqrt(E[x^4] / N), E[x^4] < 20 here.
    assert ((x.mean(0) - mean).abs() < 5 * (covariance.diagonal() / n).sqrt()).all()
    assert ((torch.cov(x.T) - covariance).abs() < 5 * math.sqrt(20 / n)).all()
    again = mixture.sample(10, torch.Generator().manual_seed(1))
    assert torch.equal(again, mixture.sample(10, torch.Generator().manual_seed(1)))


def test_what_is_not_a_mixture_is_refused() -> None:
    means = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="means must have shape"):
        GaussianMixture(torch.zeros(3), torch.ones(3))
    with pytest.raises(TypeError, match="floating-point"):
        GaussianMixture(torch.zeros(2, 3, dtype=torch.int64), torch.ones(2))
    with pytest.raises(ValueError, match=r"stds must have shape \(2,\)"):
        GaussianMixture(means, torch.ones(3))
    with pytest.raises(ValueError, match="negative"):
        GaussianMixture(means, torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="sum to 1"):
        GaussianMixture(means, torch.ones(2), torch.tensor([0.5, 0.6]))
    with pytest.raises(ValueError, match="positive"):
        GaussianMixture(means, torch.ones(2), torch.tensor([1.5, -0.5]))
    data = GaussianMixture(means, torch.ones(2))
    with pytest.raises(ValueError, match=r"\(batch, 3\)"):
        data.predict_v(torch.zeros(4, 2), 0.5)
    with pytest.raises(ValueError, match="phi"):
        data.predict_v(torch.zeros(4, 3), 2.0)
    with pytest.raises(ValueError, match="timestep"):
        data.model(Schedule.linear(10), V)(torch.zeros(1, 3), torch.tensor([10]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("param", [EPSILON, X0, V])
def test_a_low_precision_output_is_the_exact_one_rounded_once(dtype: torch.dtype, param: AngularParam) -> None:
    data, schedule = GaussianMixture.gaussian(0.1, dim=2), Schedule.karras(10)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(data.output(x, 1.5, param=param), data.output(x.double(), 1.5, param=param).to(dtype))
    model, t = data.model(schedule, param), schedule.timesteps[5].expand(64)
    assert torch.equal(model(x, t), model(x.double(), t).to(dtype))


def test_data_without_centres_or_with_nan_are_refused() -> None:
    with pytest.raises(NonFiniteError, match="means must be finite, but 1 of its 2 values"):
        GaussianMixture(torch.tensor([[0.0, math.nan]]), torch.ones(1))
    with pytest.raises(NonFiniteError, match="stds must be finite"):
        GaussianMixture(torch.zeros(1, 2), torch.tensor([math.inf]))
    with pytest.raises(ValueError, match="means must hold at least one centre"):
        GaussianMixture(torch.zeros(0, 2), torch.zeros(0))
