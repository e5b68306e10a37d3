"""Sizes and gains along a run: against brute force, against Monte Carlo, and one way of getting them against the other."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from gaussian_runs import COSINE, PARAMS, SOLVERS, network, noise, rms
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import is_regular, params, schedules
from torch import Tensor

from diffparam import (
    FLOW_STATE,
    VE,
    VP,
    X0,
    GaussianMixture,
    NonFiniteError,
    OutputMoments,
    Plan,
    RelativeError,
    RoundingError,
    Schedule,
    Sensitivity,
    UnknownName,
    V,
    gaussian_sensitivity,
    moments_sensitivity,
    plan_ddim,
    plan_ddpm,
    plan_dpm_solver,
    sample,
    trace_sensitivity,
)
from diffparam.prediction.sensitivity import memory_gain, state_factors
from diffparam.solvers.step import advance

GRID = COSINE.respace(10)
MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.4], [0.9, -0.2]], dtype=torch.float64), torch.tensor([0.4, 0.6], dtype=torch.float64)
)
COUNT = 40_000


def plan_of(solver: str, param: str = "v", state=VP) -> Plan:
    return SOLVERS[solver](GRID.with_state(state), param=PARAMS[param])


def propagate(plan: Plan, sigma_data: float, kicks: dict[tuple[str, int], float], rest: np.ndarray | None = None) -> list:
    """The run with something added to outputs, states or memories: ``[(x, m, u, x_after)]`` per call, ``(COUNT, 1)`` each."""
    draws, residual = torch.Generator().manual_seed(5), torch.Generator().manual_seed(6)
    model, x, memory, seen = network(plan, sigma_data), noise(plan, COUNT if not kicks else 1), None, []
    for k, step in enumerate(plan):
        u = model(x, torch.full((len(x),), float(step.timestep))) + kicks.get(("output", k), 0.0)
        if rest is not None:
            u = u + math.sqrt(rest[k]) * torch.randn(x.shape, dtype=torch.float64, generator=residual)
        before, read = x, memory
        x, memory = advance(step.coefficients, u, x, memory, generator=draws)
        x = x + kicks.get(("state", k), 0.0)
        memory = None if memory is None else memory + kicks.get(("memory", k), 0.0)
        seen.append((before, torch.zeros_like(x) if read is None else read, u, x))
    return seen


def final(plan: Plan, sigma_data: float, **kick: Any) -> float:
    return propagate(plan, sigma_data, {next(iter(kick.items())): 1.0} if kick else {("none", 0): 0.0})[-1][-1].item()


# -- brute force ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [VP, VE, FLOW_STATE], ids=lambda s: s.kind)
@pytest.mark.parametrize("param", ["v", "epsilon", "flow"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_gains_are_what_a_kick_becomes(solver: str, param: str, state) -> None:
    """A linear run: one added to an output, a state or a memory moves the final sample by the gain, sign included."""
    plan = plan_of(solver, param, state)
    sizes = gaussian_sensitivity(plan, 0.5)
    kept = memory_gain(plan, sizes.state_gain)
    clean = final(plan, 0.5)
    gains = {"output": sizes.output_gain, "state": sizes.state_gain, "memory": kept}
    for what, gain in gains.items():
        if what == "memory" and not plan.has_memory:
            assert not kept.any()
            continue
        seen = np.array([final(plan, 0.5, **{what: k}) - clean for k in range(len(plan))])
        # Differences of final samples of size up to 1e3 (epsilon's gain at the first step), known to 1e-16 of that.
        np.testing.assert_allclose(seen, gain, rtol=1e-9, atol=1e-12 * max(1.0, np.abs(gain).max()))


@pytest.mark.parametrize("solver", SOLVERS)
def test_gains_are_the_gradient(solver: str) -> None:
    """By autograd, of one sample."""
    plan = plan_of(solver)
    model, x = network(plan, 2.0), noise(plan, 1)
    bumps = [torch.zeros(1, 1, dtype=torch.float64, requires_grad=True) for _ in plan]
    memory, draws = None, torch.Generator().manual_seed(1)
    for step, bump in zip(plan, bumps, strict=True):
        x, memory = advance(step.coefficients, model(x, torch.full((1,), step.timestep)) + bump, x, memory, generator=draws)
    gradient = [g.item() for g in torch.autograd.grad(x.sum(), bumps)]
    np.testing.assert_allclose(gaussian_sensitivity(plan, 2.0).output_gain, gradient, rtol=1e-10)


def test_the_amplitudes_are_the_run_of_one() -> None:
    for solver in ("ddim", "dpm", "heun"):
        plan = plan_of(solver, "flow", VE)
        sizes = gaussian_sensitivity(plan, 0.5)
        x, memory, model = torch.full((1, 1), VE.scale(plan.phi_t[0].item()), dtype=torch.float64), None, network(plan, 0.5)
        for k, step in enumerate(plan):
            u = model(x, torch.full((1,), step.timestep))
            assert sizes.input_amplitude[k] == pytest.approx(x.item(), rel=1e-11)
            assert sizes.output_amplitude[k] == pytest.approx(u.item(), rel=1e-10, abs=1e-13)
            x, memory = advance(step.coefficients, u, x, memory)
        np.testing.assert_allclose(sizes.output_amplitude**2, sizes.output_sq, rtol=1e-10)
        assert math.sqrt(sizes.final_sq) == pytest.approx(abs(x.item()), rel=1e-10)
    assert gaussian_sensitivity(plan_of("ddpm"), 0.5).output_amplitude is None  # with noise there is no such number


# -- Monte Carlo ------------------------------------------------------------------------------------------------------


def assert_moments(sizes: Sensitivity, seen: list) -> None:
    """Of COUNT Gaussian samples: the mean of a product has the standard error sqrt((E[a^2] E[b^2] + E[ab]^2) / N)."""

    def close(name: str, got: np.ndarray, pairs: list[tuple[Tensor, Tensor]]) -> None:
        for k, (a, b) in enumerate(pairs):
            spread = math.sqrt((rms(a) * rms(b)) ** 2 + (a * b).mean().item() ** 2) / math.sqrt(COUNT)
            assert got[k] == pytest.approx((a * b).mean().item(), abs=5 * spread + 1e-15), (name, k)

    close("input", sizes.input_sq, [(x, x) for x, _, _, _ in seen])
    close("memory", sizes.memory_sq, [(m, m) for _, m, _, _ in seen])
    close("together", sizes.input_memory, [(x, m) for x, m, _, _ in seen])
    close("output", sizes.output_sq, [(u, u) for _, _, u, _ in seen])
    close("state", sizes.state_sq, [(y, y) for _, _, _, y in seen])
    close("change", sizes.change_sq, [(y - x, y - x) for x, _, _, y in seen])
    moves = [(v - u, v - u) for (_, _, u, _), (_, _, v, _) in pairwise(seen)]
    close("output change", sizes.output_change_sq[1:], moves)
    assert sizes.output_change_sq[0] == math.inf
    assert sizes.final_sq == sizes.state_sq[-1]


@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_sizes_are_those_of_many_samples(solver: str, sigma_data: float) -> None:
    plan = plan_of(solver, "flow", FLOW_STATE)
    assert_moments(gaussian_sensitivity(plan, sigma_data), propagate(plan, sigma_data, {}))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_rest_that_no_line_explains_travels_with_the_run(solver: str) -> None:
    """Moments with more energy than their regression: u = K x plus an independent rest, at every call."""
    plan = plan_of(solver)
    exact = OutputMoments.gaussian(plan.phi_t, sigma_data=0.5)
    more = 0.1 + 0.2 * np.sin(plan.phi_t)
    sizes = moments_sensitivity(plan, OutputMoments(exact.x_sq, exact.x_v, exact.v_sq + more))
    assert_moments(sizes, propagate(plan, 0.5, {}, rest=more))  # for v, r sin(theta) is 1
    assert sizes.output_amplitude is None


# -- the same thing said in another way ---------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_gaussian_moments_are_gaussian_data(solver: str) -> None:
    plan = plan_of(solver, "epsilon")
    by_moments = moments_sensitivity(plan, OutputMoments.gaussian(plan.phi_t, sigma_data=0.7))
    exact = gaussian_sensitivity(plan, 0.7)
    for field in dataclasses.fields(Sensitivity):
        one, other = getattr(by_moments, field.name), getattr(exact, field.name)
        if isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and field.name != "output_change_sq":
            # v_sq - x_v^2 / x_sq is zero to within its rounding, 1e-16 of terms that are multiplied by gains up to 1e3 squared.
            np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-9, err_msg=field.name)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("param", ["v", "sample"])
def test_tracing_the_oracle_gives_the_closed_form(solver: str, param: str) -> None:
    plan = plan_of(solver, param)
    count = 2000
    traced = trace_sensitivity(network(plan, 0.5), plan, noise(plan, count), generator=torch.Generator().manual_seed(3))
    exact = gaussian_sensitivity(plan, 0.5)
    # One zeta per sample serves all calls: of a linear run every traced gain is the true one times the rms of zeta.
    scale = traced.state_gain[-1]
    assert scale == pytest.approx(1.0, abs=5 / math.sqrt(2 * count))
    np.testing.assert_allclose(traced.output_gain, scale * np.abs(exact.output_gain), rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(traced.state_gain, scale * np.abs(exact.state_gain), rtol=1e-9)
    for name in ("output_sq", "input_sq", "memory_sq", "state_sq", "change_sq"):
        np.testing.assert_allclose(getattr(traced, name), getattr(exact, name), rtol=5 * math.sqrt(2 / count), atol=1e-12)
    # zeta^2 u^2 has the relative variance 3 * 3 - 1 = 8.
    np.testing.assert_allclose(traced.relative_gain, exact.relative_gain, rtol=5 * math.sqrt(8 / count) / 2, atol=1e-12)
    np.testing.assert_allclose(
        traced.output_change_sq[1:], exact.output_change_sq[1:], rtol=5 * math.sqrt(2 / count), atol=1e-12
    )
    assert traced.output_change_sq[0] == math.inf
    assert traced.output_per_input is None


def test_a_traced_gain_is_the_frobenius_norm_of_the_jacobian() -> None:
    """On a mixture, where it differs from point to point: many zeta at one point, against finite differences there."""
    plan, count = plan_dpm_solver(GRID, param=V), 4000
    model, point = MIXTURE.model(GRID, V), torch.tensor([[0.3, -0.8]], dtype=torch.float64)
    traced = trace_sensitivity(model, plan, point.expand(count, 2), generator=torch.Generator().manual_seed(3))

    def kicked(call: int, kick: Tensor) -> Tensor:
        calls = iter(range(len(plan)))
        return sample(lambda x, t: model(x, t) + (kick if next(calls) == call else 0.0), point, plan)[0]

    for call in (0, 4, 9):
        tiny = 1e-5
        columns = [(kicked(call, tiny * e) - kicked(call, -tiny * e)) / (2 * tiny) for e in torch.eye(2, dtype=torch.float64)]
        wanted = math.sqrt(torch.stack(columns).square().sum().item() / 2)
        # zeta J J^T zeta of two dimensions: relative variance at most 2, halved by the root.
        assert traced.output_gain[call] == pytest.approx(wanted, rel=5 * math.sqrt(2 / count) / 2)


def test_moments_are_a_fair_model_of_a_mixture() -> None:
    """Sizes from one batch per call, gains from the regression: right to a quarter where the tracing is exact."""
    plan, draws = plan_ddim(GRID, param=V), torch.Generator().manual_seed(2)
    measured = []
    for phi in plan.phi_t.tolist():
        x_t = math.cos(phi) * MIXTURE.sample(4000, draws) + math.sin(phi) * torch.randn(
            4000, 2, dtype=torch.float64, generator=draws
        )
        measured.append(OutputMoments.measure(x_t, MIXTURE.predict_v(x_t, phi)))
    moments = OutputMoments(*(np.array([getattr(m, n) for m in measured]) for n in ("x_sq", "x_v", "v_sq")))
    sizes = moments_sensitivity(plan, moments)
    x = torch.randn(1000, 2, dtype=torch.float64, generator=draws)
    traced = trace_sensitivity(MIXTURE.model(GRID, V), plan, x, generator=draws)
    np.testing.assert_allclose(sizes.output_sq, traced.output_sq, rtol=0.25, atol=0.01)
    np.testing.assert_allclose(np.abs(sizes.output_gain), traced.output_gain, rtol=0.4)


@pytest.mark.parametrize("solver", ["ddim", "dpm", "heun"])
def test_factors_multiply_to_the_final_amplitude(solver: str) -> None:
    plan = plan_of(solver)
    sizes = gaussian_sensitivity(plan, 0.5)
    to_x, to_m = state_factors(plan, sizes.output_per_input)
    x, m = 1.0, 0.0
    for jx, jm, c in zip(to_x, to_m, plan.gain_m, strict=True):
        x, m = jx * x + c * m, jm * x
    assert x**2 == pytest.approx(sizes.final_sq, rel=1e-11)


def test_an_inversion_starts_from_data_and_a_sampler_from_noise() -> None:
    grid = Schedule.from_angles(np.linspace(0.1, 1.4, 8))
    up = gaussian_sensitivity(plan_ddim(grid, param=V, upwards=True), 2.0)
    assert up.input_sq[0] == pytest.approx((2 * math.cos(0.1)) ** 2 + math.sin(0.1) ** 2, rel=1e-14)
    assert gaussian_sensitivity(plan_ddim(grid, param=V), 2.0).input_sq[0] == 1.0
    ve = plan_ddim(grid.with_state(VE), param=V, upwards=True)
    assert gaussian_sensitivity(ve, 2.0).input_sq[0] == pytest.approx(4 + math.tan(0.1) ** 2, rel=1e-14)
    assert moments_sensitivity(ve, OutputMoments.gaussian(ve.phi_t, sigma_data=2.0)).input_sq[0] == pytest.approx(
        4 + math.tan(0.1) ** 2, rel=1e-13
    )


# -- emulation and effective samples --------------------------------------------------------------------------------------


def test_emulation_meets_the_values_themselves() -> None:
    """An error of +-delta u is exactly the relative gain; one that depends on the value is what that value suffers."""
    plan, x = plan_of("heun", "flow"), noise(plan_of("heun", "flow"), 500)

    def traced(emulate=None) -> Sensitivity:
        return trace_sensitivity(network(plan, 0.5), plan, x, generator=torch.Generator().manual_seed(3), emulate=emulate)

    signs = traced(RelativeError(0.01, "rademacher"))
    np.testing.assert_allclose(signs.emulated["output"].final, 0.01 * signs.relative_gain, rtol=1e-9)
    assert signs.emulated["output"].error == RelativeError(0.01, "rademacher")
    assert traced().emulated == {}
    # 500 products zeta * e: relative variance of their squares (3 * 1.8 - 1), e uniform in a cell.
    coarse = traced(RoundingError("bfloat16"))
    wanted = np.abs(coarse.output_gain) * np.sqrt(RoundingError("bfloat16").energy(coarse.output_sq))
    np.testing.assert_allclose(coarse.emulated["output"].final, wanted, rtol=5 * math.sqrt(8 / 500) / 2)


def test_where_all_outputs_are_one_number_the_law_of_significands_is_wrong_and_emulation_right() -> None:
    """A network that says 1.0 everywhere is rounded without error; the energy of a Gaussian of that size is not zero."""
    plan = plan_of("ddim")

    def one(x: Tensor, t: Tensor) -> Tensor:
        return torch.ones_like(x) + 0 * x

    traced = trace_sensitivity(
        one, plan, noise(plan, 100), generator=torch.Generator().manual_seed(3), emulate=RoundingError("bfloat16")
    )
    assert not traced.emulated["output"].final.any()
    assert traced.emulated["output"].total == 0.0
    assert RoundingError("bfloat16").energy(traced.output_sq).min() > 1e-6


def test_effective_samples_count_who_carries_the_gains() -> None:
    plan, x = plan_of("ddim"), noise(plan_of("ddim"), 5000)
    draws = torch.Generator().manual_seed(3)
    linear = trace_sensitivity(network(plan, 0.5), plan, x, generator=draws)
    # s = zeta^2 z^2: (E s)^2 / E[s^2] = 1 / 9 of the samples; E[s^4] makes the estimate itself uncertain by a third.
    assert linear.effective_samples == pytest.approx(5000 / 9, rel=0.34)

    def one_wild(x: Tensor, t: Tensor) -> Tensor:
        return x * torch.cat([torch.full((1, 1), 30.0), torch.full((len(x) - 1, 1), 0.01)]).double()

    assert trace_sensitivity(one_wild, plan, x, generator=draws).effective_samples < 1.5
    silent = trace_sensitivity(lambda x, t: 0.0 * x, plan, x, generator=draws)
    assert silent.effective_samples == 5000.0
    assert gaussian_sensitivity(plan, 0.5).effective_samples == math.inf


def test_a_trace_follows_its_generator_and_leaves_the_noise_alone() -> None:
    plan, x = plan_of("ddpm"), noise(plan_of("ddpm"), 50)
    kept, before = x.clone(), torch.random.get_rng_state()

    def traced(seed: int) -> Sensitivity:
        return trace_sensitivity(network(plan, 0.5), plan, x, generator=torch.Generator().manual_seed(seed))

    assert np.array_equal(traced(1).output_gain, traced(1).output_gain)
    assert not np.array_equal(traced(1).output_gain, traced(2).output_gain)
    assert torch.equal(x, kept)
    assert torch.equal(before, torch.random.get_rng_state())
    with torch.no_grad():  # tracing turns gradients on for itself
        assert traced(1).state_gain[0] > 0


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_traced_is_refused() -> None:
    plan, x = plan_of("ddim"), noise(plan_of("ddim"), 4)
    model = network(plan, 0.5)
    with pytest.raises(ValueError, match=r"model must be differentiable, but its output at t = \d+ has no gradient"):
        trace_sensitivity(lambda x, t: model(x, t).detach(), plan, x)
    with pytest.raises(ValueError, match="model must be differentiable"):
        trace_sensitivity(torch.no_grad()(model), plan, x)
    with pytest.raises(ValueError, match="model must return the shape"):
        trace_sensitivity(lambda x, t: x[:2], plan, x)
    with pytest.raises(NonFiniteError, match="x_init must be finite"):
        trace_sensitivity(model, plan, x * math.nan)
    with pytest.raises(NonFiniteError, match="the final sample"):
        trace_sensitivity(lambda x, t: model(x, t) * math.inf, plan, x)
    with pytest.raises(NonFiniteError, match="gain must be finite"):  # the value is finite, its gradient is not
        trace_sensitivity(lambda x, t: (x - x.detach()).sqrt(), plan, x)
    with pytest.raises(TypeError, match="floating-point"):
        trace_sensitivity(model, plan, torch.ones(2, 1, dtype=torch.int64))
    with pytest.raises(TypeError, match="emulate_state must be an error model or None, got str"):
        trace_sensitivity(model, plan, x, emulate_state="bf16")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="bf17"):
        trace_sensitivity(model, plan, x, emulate_arithmetic="bf17")


def test_a_plan_without_calls_and_what_is_no_plan_are_refused() -> None:
    empty = plan_ddim(GRID, param=V, final_phi=float(GRID.phi[-1]))
    for measure in (
        lambda plan: gaussian_sensitivity(plan, 1.0),
        lambda plan: moments_sensitivity(plan, OutputMoments(1.0, 0.0, 1.0)),
        lambda plan: trace_sensitivity(lambda x, t: x, plan, torch.ones(2, 1)),
    ):
        with pytest.raises(ValueError, match="plan must have at least one network call, got none"):
            measure(empty)
        with pytest.raises(TypeError, match="plan must be a Plan, got Schedule"):
            measure(GRID)


def test_moments_that_no_samples_have_are_refused() -> None:
    plan = plan_of("ddim")
    with pytest.raises(NonFiniteError, match=r"moments.v_sq must be finite, got inf"):
        moments_sensitivity(plan, OutputMoments(1.0, 0.0, math.inf))
    with pytest.raises(ValueError, match=r"moments.x_sq must be positive, got 0;"):
        moments_sensitivity(plan, OutputMoments(np.append(np.ones(9), 0.0), 0.0, 1.0))
    with pytest.raises(ValueError, match=r"x_v must be at most sqrt\(x_sq v_sq\) in size"):
        moments_sensitivity(plan, OutputMoments(1.0, np.array([0, 0, 0, 1.2, 0, 0, 0, 0, 0, 0]), 1.0))
    with pytest.raises(ValueError, match=r"moments.v_sq must be a number or one per call \(10\), got shape \(9,\)"):
        moments_sensitivity(plan, OutputMoments(1.0, 0.0, np.ones(9)))
    on_the_edge = OutputMoments(1.0, 1.0 + 1e-8, 1.0)  # as float32 sums leave it
    assert moments_sensitivity(plan, on_the_edge).final_sq > 0


def test_data_that_are_no_size_are_refused() -> None:
    plan = plan_of("ddim")
    for wrong, error in ((-1.0, ValueError), (math.nan, NonFiniteError), ("1", TypeError), (True, TypeError)):
        with pytest.raises(error, match="sigma_data must"):
            gaussian_sensitivity(plan, wrong)
    with pytest.raises(ValueError, match="point mass"):
        gaussian_sensitivity(plan_ddim(Schedule.from_angles([0.0, 0.5]), param=V, upwards=True), 0.0)
    with pytest.raises(ValueError, match=r"state_gain must have one entry per call \(10\), got shape \(9,\)"):
        dataclasses.replace(gaussian_sensitivity(plan, 0.5), state_gain=np.ones(9))
    with pytest.raises(NonFiniteError, match="output_sq must be finite"):
        dataclasses.replace(gaussian_sensitivity(plan, 0.5), output_sq=np.full(10, math.inf))


@settings(max_examples=50)
@given(params(), schedules(), st.sampled_from(sorted(SOLVERS)), st.floats(0.0, 10.0))
def test_sizes_are_never_negative_and_gains_never_nan(param, schedule, solver, sigma_data) -> None:
    assume(schedule.phi[-1] < math.pi / 2 - 1e-9 and is_regular(param, *schedule.phi.tolist()))
    sizes = gaussian_sensitivity(SOLVERS[solver](schedule, param=param), sigma_data)
    for name in ("output_sq", "input_sq", "memory_sq", "state_sq", "change_sq", "relative_gain"):
        assert (getattr(sizes, name) >= 0).all(), name
    assert sizes.state_gain[-1] == 1.0  # the last state is the sample
    assert sizes.final_sq == sizes.state_sq[-1]


def test_a_point_mass_is_found_whatever_the_noise() -> None:
    """sigma_data = 0: the network knows the sample, and the last update is its answer."""
    for solver in SOLVERS:
        sizes = gaussian_sensitivity(SOLVERS[solver](GRID, param=X0), 0.0)
        assert sizes.final_sq < 1e-25
    assert plan_ddpm(GRID, param=X0).gain_x[-1] == 0.0
