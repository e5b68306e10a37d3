"""What the solvers do: their order, their formulas written another way, their end points, and how an update is carried out."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from gaussian_runs import BF16, COSINE, PARAMS, SOLVERS, network, noise, rms, run
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffparam import (
    EPSILON,
    FLOW_STATE,
    VE,
    VP,
    X0,
    AngularParam,
    FloatFormat,
    GaussianMixture,
    Plan,
    RoundingError,
    Schedule,
    Trajectory,
    V,
    exact_gaussian_flow,
    gaussian_sensitivity,
    plan_ddim,
    plan_ddpm,
    plan_dpm_solver,
    plan_heun,
    round_to,
    sample,
)
from diffparam.solvers.step import StepCoefficients, advance, advance_rounded

U = 2.0**-53
"""Unit roundoff of float64."""
HALF_PI = math.pi / 2
SIGMA_DATA = 2.0
STEPS = (25, 50, 100, 200)
MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.2, -1.0]], dtype=torch.float64),
    torch.tensor([0.3, 0.2, 0.4], dtype=torch.float64),
)


def even(steps: int, low: float = 0.2, high: float = 1.4) -> Schedule:
    """``steps`` equal steps in phi."""
    return Schedule.from_angles(np.linspace(low, high, steps + 1))


def at_the_first_angle(plan: Plan, x: Tensor) -> Tensor:
    """The state at the schedule's first angle, before the step to phi = 0."""
    record = Trajectory()
    run(plan, x, SIGMA_DATA, record=record)
    return record.states[-2]


def slope(errors: list[float]) -> float:
    """Of log error on log step."""
    return float(np.polyfit(np.log(1 / np.array(STEPS)), np.log(errors), 1)[0])


# -- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("param", PARAMS)
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpm", 2), ("heun", 2)])
def test_the_order_of_a_solver_is_a_slope(solver: str, order: int, param: str) -> None:
    # Errors C h^p (1 + c h), h from 0.05 to 0.006 rad: c of order 1 bends the slope by a few hundredths, of order 3 by 0.1.
    x, errors = torch.ones(1, 1, dtype=torch.float64), []
    for steps in STEPS:
        got = at_the_first_angle(SOLVERS[solver](even(steps), param=PARAMS[param]), x)
        errors.append((got - exact_gaussian_flow(x, 1.4, 0.2, sigma_data=SIGMA_DATA)).abs().item())
    assert slope(errors) == pytest.approx(order, abs=0.1)
    assert errors[-1] < (2e-4 if order == 2 else 1e-2)


def test_the_memory_is_what_gives_the_second_order() -> None:
    """Negative control: without its correction or with twice of it, DPM-Solver is of first order."""
    x, forgetful, doubled = torch.ones(1, 1, dtype=torch.float64), [], []
    for steps in STEPS:
        exact = exact_gaussian_flow(x, 1.4, 0.2, sigma_data=SIGMA_DATA)
        plan = plan_dpm_solver(even(steps), param=V)
        forgetful.append((at_the_first_angle(corrected(plan, 0.0), x) - exact).abs().item())
        doubled.append((at_the_first_angle(corrected(plan, 2.0), x) - exact).abs().item())
        assert torch.equal(at_the_first_angle(corrected(plan, 1.0), x), at_the_first_angle(plan, x))
    assert slope(forgetful) == pytest.approx(1, abs=0.15)
    assert slope(doubled) == pytest.approx(1, abs=0.15)


def corrected(plan: Plan, factor: float) -> Plan:
    """A DPM-Solver plan with its correction, ``-gain_m (x0 - memory)``, multiplied."""
    more = -(factor - 1.0) * plan.gain_m
    return replace(
        plan,
        gain_u=plan.gain_u + more * plan.memory_u,
        gain_x=plan.gain_x + more * plan.memory_x,
        gain_m=factor * plan.gain_m,
    )


def test_more_steps_never_hurt_on_data_that_are_not_gaussian() -> None:
    """On a mixture, against 600 steps of the best solver: second order beats first at equal network calls."""
    x = torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fine = even(600)
    exact = sample(MIXTURE.model(fine, V), x, plan_dpm_solver(fine, param=V))
    errors = {}
    for name, steps in (("ddim", 60), ("dpm", 60), ("heun", 30)):
        grid = even(steps)
        errors[name] = rms(sample(MIXTURE.model(grid, V), x, SOLVERS[name](grid, param=V)) - exact)
    assert errors["dpm"] < 0.3 * errors["ddim"]
    assert errors["heun"] < 0.3 * errors["ddim"]


# -- the parameterization and the state do not matter ----------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_exact_networks_of_any_parameterization_sample_the_same(solver: str) -> None:
    """Noise included: it is drawn from the same generator, and no coefficient of the noise depends on the parameterization."""
    grid = even(40, low=0.02, high=1.4)
    x = torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def final(param: AngularParam) -> Tensor:
        plan = SOLVERS[solver](grid, param=param)
        return sample(MIXTURE.model(grid, param), x, plan, generator=torch.Generator().manual_seed(2))

    wanted = final(V)
    for param in PARAMS.values():
        # Per call a few roundings of the terms, which are kappa (|u| + |x|) in size and |u|, |x| < 5, carried by gains of the
        # later steps of a mixture with modes 0.2 wide (a trajectory between two of them: up to 1e2).
        kappa = max(param.condition_number(p) for p in grid.phi.tolist())
        assert (final(param) - wanted).abs().max().item() < 2 * 40 * 8 * U * kappa * 5 * 1e2


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_state_in_sigma_space_or_of_rectified_flow_is_the_same_up_to_scale(solver: str) -> None:
    grid = even(40, low=0.02, high=1.4)
    z = torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    seen = {}
    for state in (VP, VE, FLOW_STATE):
        scaled, record = grid.with_state(state), Trajectory()
        plan = SOLVERS[solver](scaled, param=V)
        x = z * state.scale(1.4)
        sample(MIXTURE.model(scaled, V), x, plan, generator=torch.Generator().manual_seed(2), record=record)
        seen[state.kind] = [s / state.scale(phi) for s, phi in zip(record.states, record.phi, strict=True)]
    for kind in ("ve", "flow"):
        for here, there in zip(seen["vp"], seen[kind], strict=True):
            assert (here - there).abs().max().item() < 2 * 40 * 16 * U * 5 * 1e2  # as above, with kappa = 1


# -- DDPM -------------------------------------------------------------------------------------------------------------


@given(phi_t=st.floats(0.02, 1.55), part=st.floats(0.02, 0.98))
def test_both_variances_are_those_of_ho_et_al(phi_t: float, part: float) -> None:
    """beta and beta (1 - abar_s) / (1 - abar_t) of one step, in 50 digits from the same doubles; the mean is eq. 7."""
    phi_s = part * phi_t
    grid = Schedule.from_angles([phi_s, phi_t])
    with mpmath.workdps(50):
        a_t, a_s = (mpmath.cos(mpmath.mpf(p)) ** 2 for p in (phi_t, phi_s))
        beta = 1 - a_t / a_s
        variances = {"posterior": beta * (1 - a_s) / (1 - a_t), "upper": beta}
        on_x0, on_x = mpmath.sqrt(a_s) * beta / (1 - a_t), mpmath.sqrt(a_t / a_s) * (1 - a_s) / (1 - a_t)
        for variance, exact in variances.items():
            step = plan_ddpm(grid, param=X0, variance=variance)[0].coefficients
            # sin(phi_t - phi_s) is known to 2 u / part of the difference, every other factor to a few u.
            assert abs(step.noise**2 / exact - 1) < 64 * U / (1 - part)
            assert abs(step.gain_u - on_x0) < 64 * U / math.sin(phi_t)
            assert abs(step.gain_x - on_x) < 64 * U / math.sin(phi_t)


def test_the_last_step_adds_no_noise_unless_it_ends_early() -> None:
    grid = COSINE.respace(20)
    for variance in ("posterior", "upper"):
        assert plan_ddpm(grid, param=V, variance=variance).noise[-1] == 0.0
        assert (plan_ddpm(grid, param=V, variance=variance).noise[:-1] > 0).all()
        assert plan_ddpm(grid, param=V, variance=variance, final_phi=0.001).noise[-1] > 0.0
    with pytest.raises(ValueError, match="variance must be one of posterior, upper; got 'uper'"):
        plan_ddpm(grid, param=V, variance="uper")  # type: ignore[arg-type]


def test_each_variance_is_exact_for_the_data_it_is_derived_from() -> None:
    """Ho et al., section 3.2: the upper one for standard normal data, the posterior one for a single point.

    With it the reverse chain has the forward chain's variances at every step, however few steps there are.
    """
    grid = COSINE.respace(7)
    unit = gaussian_sensitivity(plan_ddpm(grid, param=V, variance="upper"), 1.0)
    np.testing.assert_allclose(unit.state_sq[:-1], 1.0, rtol=1e-12)
    plan = plan_ddpm(grid, param=V)
    point = gaussian_sensitivity(plan, 0.0)
    np.testing.assert_allclose(point.state_sq, np.sin(plan.phi_s) ** 2, rtol=1e-9, atol=1e-15)
    # The negative controls: each is wrong for the other's data.
    assert gaussian_sensitivity(plan, 1.0).state_sq[3] < 0.95
    wrong = gaussian_sensitivity(plan_ddpm(grid, param=V, variance="upper"), 0.0)
    assert wrong.state_sq[3] > 1.2 * np.sin(plan.phi_s[3]) ** 2


@pytest.mark.parametrize("variance", ["posterior", "upper"])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_the_spread_of_samples_is_that_of_the_plan(variance: str, temperature: float) -> None:
    count = 20_000
    plan = plan_ddpm(COSINE.respace(30), param=V, variance=variance, temperature=temperature)
    got = rms(run(plan, noise(plan, count), 0.5))
    # A sample standard deviation has the relative standard error 1 / sqrt(2 N): five of them.
    assert got == pytest.approx(math.sqrt(gaussian_sensitivity(plan, 0.5).final_sq), rel=5 / math.sqrt(2 * count))
    hot = math.sqrt(gaussian_sensitivity(plan_ddpm(COSINE.respace(30), param=V, variance=variance), 0.5).final_sq)
    assert temperature == 1.0 or got < 0.95 * hot


def test_ddpm_samples_have_the_spread_of_the_data() -> None:
    """With 1000 steps either variance leaves what is left of the discretisation: below 1 %."""
    for variance in ("posterior", "upper"):
        sizes = gaussian_sensitivity(plan_ddpm(COSINE, param=V, variance=variance), 0.5)
        assert math.sqrt(sizes.final_sq) == pytest.approx(0.5, rel=0.01)


def test_ddim_with_eta_one_and_ddpm_are_one_plan() -> None:
    grid = COSINE.respace(9)
    one, other = plan_ddim(grid, param=EPSILON, eta=1.0), plan_ddpm(grid, param=EPSILON)
    for name in ("gain_u", "gain_x", "noise"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


# -- DPM-Solver++ -----------------------------------------------------------------------------------------------------


def lu_et_al(model: Callable[[Tensor, float], Tensor], x: Tensor, phi: list[float], last_first_order: bool) -> Tensor:
    """Algorithm 2 of Lu et al. 2022 in lambda, alpha, sigma; ``model`` gives x0."""
    lam = [math.log(math.cos(p) / math.sin(p)) for p in phi]
    before = None
    for i in range(1, len(phi)):
        h = lam[i] - lam[i - 1]
        x0 = model(x, phi[i - 1])
        if before is None or (last_first_order and i == len(phi) - 1):
            d = x0
        else:
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        x = math.sin(phi[i]) / math.sin(phi[i - 1]) * x - math.cos(phi[i]) * math.expm1(-h) * d
        before = x0
    return x


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("steps", [8, 14, 15, 30])
def test_dpm_solver_is_its_authors_algorithm(steps: int, lower: bool) -> None:
    """On a mixture; the last of fewer than 15 steps is of first order, if that is asked for."""
    grid = COSINE.respace(steps)
    x = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    phi = [*grid.phi.flip(0).tolist(), 0.003]
    wanted = lu_et_al(lambda x, p: MIXTURE.output(x, p, param=X0), x, phi, lower and steps < 15)
    for param in (V, X0, PARAMS["flow"]):
        plan = plan_dpm_solver(grid, param=param, lower_order_final=lower, final_phi=0.003)
        got = sample(MIXTURE.model(grid, param), x, plan)
        # Algorithm 2 divides by sin(phi) > 0.003 and forms lambdas up to 7: a few hundred u, carried by gains below 1e2.
        assert (got - wanted).abs().max().item() < 1e-11
    other = lu_et_al(lambda x, p: MIXTURE.output(x, p, param=X0), x, phi, not (lower and steps < 15))
    assert (got - other).abs().max().item() > 1e-6  # and the choice is visible


def test_the_ends_of_dpm_solver_are_first_order() -> None:
    """h is infinite at phi = pi/2 and at 0: the correction that would need it is left out, and nothing is NaN."""
    zero_snr = COSINE.rescale_zero_terminal_snr().respace(20)
    plan, ddim = plan_dpm_solver(zero_snr, param=V), plan_ddim(zero_snr, param=V)
    assert plan.phi_t[0] == HALF_PI
    assert plan.gain_m[0] == plan.gain_m[1] == plan.gain_m[-1] == 0.0
    assert (plan.gain_m[2:-1] != 0).all()
    for call in (0, 1, -1):
        assert (plan.gain_u[call], plan.gain_x[call]) == (ddim.gain_u[call], ddim.gain_x[call])
    assert np.isfinite(plan.memory_u).all()
    short = COSINE.respace(14)
    assert plan_dpm_solver(short, param=V, final_phi=0.003).gain_m[-1] == 0.0
    assert plan_dpm_solver(short, param=V, final_phi=0.003, lower_order_final=False).gain_m[-1] != 0.0
    assert plan_dpm_solver(COSINE.respace(15), param=V, final_phi=0.003).gain_m[-1] != 0.0
    assert plan_dpm_solver(COSINE.respace(15), param=V).gain_m[-1] == 0.0


def test_one_and_two_steps_of_dpm_solver_are_ddim() -> None:
    for steps in (1, 2):
        grid = Schedule.from_angles([0.7, 1.4][-steps:])
        plan, ddim = plan_dpm_solver(grid, param=V), plan_ddim(grid, param=V)
        assert not plan.has_memory
        assert np.array_equal(plan.gain_u, ddim.gain_u)
        assert np.array_equal(plan.gain_x, ddim.gain_x)


# -- Heun -------------------------------------------------------------------------------------------------------------


def karras(denoiser: Callable[[Tensor, float], Tensor], x: Tensor, sigma: list[float]) -> Tensor:
    """Algorithm 1 of Karras et al. 2022 without churn; sigma falls to 0."""
    for now, then in pairwise(sigma):
        d = (x - denoiser(x, now)) / now
        euler = x + (then - now) * d
        if then == 0:
            return euler
        x = x + (then - now) * (d + (euler - denoiser(euler, then)) / then) / 2
    return x


@pytest.mark.parametrize("param", PARAMS)
def test_heun_is_karras_algorithm(param: str) -> None:
    grid = Schedule.karras(12, sigma_min=0.01, sigma_max=40.0)
    x = 40 * torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def denoiser(x: Tensor, sigma: float) -> Tensor:
        phi = math.atan(sigma)
        return MIXTURE.output(x * math.cos(phi), phi, param=X0)

    wanted = karras(denoiser, x, [*grid.phi.tan().flip(0).tolist(), 0.0])
    got = sample(MIXTURE.model(grid, PARAMS[param]), x, plan_heun(grid, param=PARAMS[param]))
    # sigma = tan(phi) of a double phi is known to u sigma = 4e-15 relatively, and x is up to 160: 1e-12, times gains below 1e2.
    assert (got - wanted).abs().max().item() < 1e-9
    euler = sample(MIXTURE.model(grid, PARAMS[param]), x, plan_ddim(grid, param=PARAMS[param]))
    assert (euler - wanted).abs().max().item() > 1e-2  # and the corrector is visible


def test_heun_has_no_step_from_pi_over_2() -> None:
    for grid in (COSINE.rescale_zero_terminal_snr(), Schedule.rectified_flow(10)):
        with pytest.raises(ValueError, match="phi must be below pi/2 for heun, got pi/2 where sigma is infinite"):
            plan_heun(grid, param=V)
        assert len(plan_heun(grid.take(range(len(grid) - 1)), param=V)) == 2 * (len(grid) - 1) - 1
    assert len(plan_heun(Schedule.from_angles([0.7]), param=V)) == 1


# -- carrying an update out -------------------------------------------------------------------------------------------

FINEST = FloatFormat("finest", 52, -1022, 1e308)


@pytest.mark.parametrize("solver", SOLVERS)
def test_arithmetic_that_rounds_almost_nothing_is_the_plain_one(solver: str) -> None:
    """52 bits of significand, one fewer than a double: a rounding per product and sum, each of 2^-52."""
    plan = SOLVERS[solver](even(30), param=V)
    x = noise(plan, 64)
    plain, fine, coarse = (run(plan, x, 0.5, arithmetic=a) for a in (None, FINEST, "bfloat16"))
    # 30 steps (60 calls), up to 10 roundings each of terms of size |x| < 4; Heun's terms are 1 / cos(1.5) = 14 times larger.
    assert 0 < (fine - plain).abs().max().item() < 60 * 10 * 2.0**-52 * 4 * 14
    assert (coarse - plain).abs().max().item() > 1e-3  # and coarse arithmetic is visible


def bf16_step(step: StepCoefficients, u: Tensor, x: Tensor, memory: Tensor | None, z: Tensor | None):
    """The update as torch does it on bf16 tensors, op by op."""

    def times(gain: float, value: Tensor | None) -> Tensor | None:
        return None if value is None or gain == 0 else torch.tensor(gain, dtype=torch.float32).bfloat16() * value

    def total(*terms: Tensor | None) -> Tensor:
        some = [t for t in terms if t is not None]
        out = some[0]
        for term in some[1:]:
            out = out + term
        return out

    after = total(times(step.gain_x, x), times(step.gain_u, u), times(step.gain_m, memory), times(step.noise, z))
    kept = None
    if step.memory_u or step.memory_x:
        kept = total(times(step.memory_x, x), times(step.memory_u, u))
    assert after.dtype is torch.bfloat16
    return after, kept


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
def test_emulated_bf16_arithmetic_is_that_of_torch(solver: str, dtype: torch.dtype) -> None:
    """Bit for bit over a whole run: tensors that hold bf16 numbers in float64 or as they are, against torch's bf16 operations.

    Noise is drawn in the dtype of the state, so in float64 it is the same only where there is none.
    """
    plan = SOLVERS[solver](COSINE.respace(12), param=V)
    if plan.is_stochastic:
        dtype = torch.bfloat16
    u_of, draws, same = network(plan, 0.5), *(torch.Generator().manual_seed(3) for _ in range(2))
    native = noise(plan, 500).bfloat16()
    emulated, memory, kept = native.to(dtype), None, None
    for step in plan:
        u = round_to(u_of(native.double(), torch.full((500,), step.timestep)), "bfloat16")
        z = torch.randn(500, 1, dtype=torch.bfloat16, generator=draws) if step.coefficients.noise else None
        native, kept = bf16_step(step.coefficients, u.bfloat16(), native, kept, z)
        emulated, memory = advance_rounded(step.coefficients, u.to(dtype), emulated, memory, BF16.fmt, generator=same)
        assert torch.equal(emulated.bfloat16(), native)
        assert torch.equal(emulated, native.to(dtype))
    exact = run(plan, noise(plan, 500), 0.5)
    assert plan.is_stochastic or not torch.equal(exact.bfloat16(), native)  # which is not what a plain step gives


@pytest.mark.parametrize("solver", SOLVERS)
def test_increments_are_the_same_update_in_another_order(solver: str) -> None:
    """In a fine format they give the state of a plain run; a term after the other, rounded, in bf16."""
    plan = SOLVERS[solver](COSINE.respace(12), param=V)
    x = noise(plan, 500)
    torch.testing.assert_close(run(plan, x, 0.5, arithmetic=FINEST, increments=True), run(plan, x, 0.5), rtol=1e-9, atol=1e-9)
    step, u, start = StepCoefficients(0.3, 1.0 - 2.0**-11), round_to(x, "bfloat16"), round_to(x.flip(0), "bfloat16")
    got, _ = advance_rounded(step, u, start, None, BF16.fmt, increments=True)
    terms = round_to(-(2.0**-11) * start, "bfloat16") + round_to(
        round_to(torch.tensor(0.3), "bfloat16").double() * u, "bfloat16"
    )
    assert torch.equal(got, round_to(start + round_to(terms, "bfloat16"), "bfloat16"))
    with pytest.raises(ValueError, match="increments must come with arithmetic"):
        run(plan, x, 0.5, increments=True)


def test_a_bf16_tensor_is_advanced_in_float32_and_rounded_once() -> None:
    plan = plan_dpm_solver(COSINE.respace(20), param=V)
    step = plan[7].coefficients
    u, x = (torch.randn(1000, generator=torch.Generator().manual_seed(s)).bfloat16() for s in (1, 2))
    memory = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    got, kept = advance(step, u, x, memory)
    assert (got.dtype, kept.dtype) == (torch.bfloat16, torch.float32)
    wanted = step.gain_x * x.double() + step.gain_u * u.double() + step.gain_m * memory.double()
    # float32's own error is 2^-24: a double rounding may cross a midpoint, and then it is the other neighbour by that much.
    assert ((got.double() - wanted).abs() <= (2.0**-9 + 2.0**-20) * wanted.abs() * 2).all()
    assert (got == wanted.bfloat16()).double().mean() > 0.999
    assert torch.allclose(kept.double(), step.memory_x * x.double() + step.memory_u * u.double(), atol=1e-6)


def test_a_memory_lasts_one_step() -> None:
    """What a step does not write is zero for the next, as in the formula of a plan: it is not what an earlier step wrote."""
    u, x, memory = (torch.ones(2, dtype=torch.float64) * k for k in (1, 2, 3))
    for update in (advance, lambda *args: advance_rounded(*args, FINEST)):
        after, kept = update(StepCoefficients(0.5, 2.0), u, x, memory)
        assert (after.tolist(), kept) == ([4.5, 4.5], None)
        after, kept = update(StepCoefficients(0.5, 2.0, gain_m=10.0), u, x, memory)
        assert (after.tolist(), kept) == ([34.5, 34.5], None)
        after, kept = update(StepCoefficients(0.5, 2.0, gain_m=10.0, memory_u=1.0, memory_x=-1.0), u, x, None)
        assert (after.tolist(), kept.tolist()) == ([4.5, 4.5], [-1.0, -1.0])
    nothing, _ = advance_rounded(StepCoefficients(0.0, 0.0), u, x, None, FINEST)
    assert nothing.tolist() == [0.0, 0.0]


# -- what a run holds -------------------------------------------------------------------------------------------------


class Witness:
    """Counts at each call how many of all states and outputs so far are alive."""

    def __init__(self) -> None:
        self.seen: list[weakref.ref[Tensor]] = []
        self.alive: list[int] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        u = 0.1 * x
        self.seen += [weakref.ref(x), weakref.ref(u)]
        self.alive.append(sum(ref() is not None for ref in self.seen))
        return u


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_run_does_not_hold_its_trajectory(solver: str) -> None:
    plan = SOLVERS[solver](COSINE.respace(20), param=V)
    short, long = Witness(), Witness()
    sample(short, torch.ones(2, 3), plan, generator=torch.Generator().manual_seed(0))
    # The starting noise (the caller's), the state, the last output and the new one.
    assert max(short.alive) <= 4
    sample(long, torch.ones(2, 3), plan, generator=torch.Generator().manual_seed(0), record=Trajectory())
    assert long.alive[-1] == 2 * len(plan)  # and the witness can tell


def test_the_network_may_be_told_a_rounded_time() -> None:
    told: list[Tensor] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        told.append(t)
        return torch.zeros_like(x)

    plan = plan_ddim(COSINE.respace(5), param=V)
    sample(model, torch.ones(2, 3), plan, timestep_error=RoundingError("bfloat16"))
    assert [t[0].item() for t in told] == [1000.0, 748.0, 500.0, 250.0, 0.0]
    assert plan.timestep.tolist() == [999, 749, 500, 250, 0]
    assert all(t.dtype is torch.float64 and t.shape == (2,) for t in told)
