"""Sampling and inversion along a schedule: order of convergence on an exact oracle, bookkeeping, determinism, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from diffparam import (
    EPSILON,
    FLOW,
    FLOW_STATE,
    VE,
    X0,
    AngularParam,
    GaussianMixture,
    NetworkError,
    NonFiniteError,
    RelativeError,
    RoundingError,
    Schedule,
    SingularParameterization,
    StateSpace,
    Trajectory,
    V,
    apply_step,
    ddim_invert,
    ddim_sample,
    ddim_step,
    exact_gaussian_flow,
    step_error_rms,
    trace_sensitivity,
)
from diffparam.prediction.step import OutputMoments
from diffparam.rounding import BFLOAT16
from diffparam.solvers.loop import plan_ddim, sample

SIGMA_DATA = 2.0
ORACLE = GaussianMixture.gaussian(SIGMA_DATA, dim=3)
STEPS = (25, 50, 100, 200, 400)


def even(steps: int, low: float = 0.05, high: float = 1.5) -> Schedule:
    """``steps`` equal steps in phi."""
    return Schedule.from_angles(np.linspace(low, high, steps + 1))


def slope(errors: list[float]) -> float:
    """Of log error on log step."""
    return float(np.polyfit(np.log(1 / np.array(STEPS)), np.log(errors), 1)[0])


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([[1.0, -0.4, 2.0], [0.3, -1.5, 0.7]], dtype=dtype)


# -- convergence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("param", [V, EPSILON, X0, FLOW, AngularParam.edm(SIGMA_DATA)], ids=lambda p: p.name)
def test_sampling_converges_with_first_order(param: AngularParam) -> None:
    # Errors C h (1 + c h) with h from 0.06 to 0.004 rad and c of order 1 bend the slope by a few hundredths.
    errors = []
    for steps in STEPS:
        grid = even(steps)
        got = ddim_sample(ORACLE.model(grid, param), start(), grid, param=param, final_phi=0.05)
        errors.append((got - exact_gaussian_flow(start(), 1.5, 0.05, sigma_data=SIGMA_DATA)).abs().max().item())
    assert slope(errors) == pytest.approx(1.0, abs=0.05)


def test_a_wrong_oracle_does_not_converge() -> None:
    wrong = GaussianMixture.gaussian(1.1 * SIGMA_DATA, dim=3)
    errors = []
    for steps in STEPS:
        grid = even(steps)
        got = ddim_sample(wrong.model(grid, V), start(), grid, param=V, final_phi=0.05)
        errors.append((got - exact_gaussian_flow(start(), 1.5, 0.05, sigma_data=SIGMA_DATA)).abs().max().item())
    assert slope(errors) < 0.5


def test_inversion_converges_with_first_order_and_so_does_the_round_trip() -> None:
    there, back = [], []
    for steps in STEPS:
        grid = even(steps)
        model = ORACLE.model(grid, V)
        up = ddim_invert(model, start(), grid, param=V)
        there.append((up - exact_gaussian_flow(start(), 0.05, 1.5, sigma_data=SIGMA_DATA)).abs().max().item())
        down = ddim_sample(model, up, grid, param=V, final_phi=0.05)
        back.append((down - start()).abs().max().item())
    assert slope(there) == pytest.approx(1.0, abs=0.05)
    assert slope(back) == pytest.approx(1.0, abs=0.05)


def test_sampling_is_the_same_in_every_parameterization_and_state_space() -> None:
    """What differs between parameterizations is rounding; the trajectory of exact networks is one."""
    grid = even(50)
    wanted = ddim_sample(ORACLE.model(grid, V), start(), grid, param=V)
    for state in (StateSpace("vp"), VE, FLOW_STATE):
        scaled = grid.with_state(state)
        for param in (V, EPSILON, FLOW, AngularParam.edm(0.5)):
            x = start() * state.scale(1.5)
            got = ddim_sample(ORACLE.model(scaled, param), x, scaled, param=param)
            # 50 steps, each an error of kappa < 1/cos(1.5) = 14 times a few 1e-16 times |x| < 2, carried to x < 6.
            assert torch.allclose(got, wanted, rtol=0, atol=50 * 14 * 2 * 6 * 2.0**-52)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_sampling_of_gaussian_data_has_their_spread(eta: float, generator: torch.Generator) -> None:
    # Standard error of the std of n samples: 1/sqrt(2 n). The bias of 400 first-order steps, 0.004 rad each, is below 1%.
    data, grid, n = GaussianMixture.gaussian(0.5), even(400, low=0.004, high=math.pi / 2 - 1e-3), 20_000
    x = torch.randn(n, 1, dtype=torch.float64, generator=generator)
    got = ddim_sample(data.model(grid, V), x, grid, param=V, eta=eta, generator=generator)
    assert got.std().item() == pytest.approx(0.5, rel=5 / math.sqrt(2 * n) + 0.01)
    assert abs(got.mean().item()) < 5 * 0.5 / math.sqrt(n)


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_the_plan_is_a_chain_from_the_last_angle_to_the_final_one() -> None:
    grid = Schedule.cosine(1000).respace(7)
    plan = plan_ddim(grid, param=V, final_phi=0.001)
    assert [step.phi_t for step in plan] == grid.phi.flip(0).tolist()
    assert [step.phi_s for step in plan] == [*grid.phi.flip(0).tolist()[1:], 0.001]
    assert [step.timestep for step in plan] == grid.timesteps.flip(0).tolist()
    up = plan_ddim(grid, param=V, upwards=True)
    assert [(step.phi_t, step.phi_s) for step in up] == list(zip(grid.phi.tolist()[:-1], grid.phi.tolist()[1:], strict=True))


def test_a_final_angle_inside_the_schedule_is_reached_and_not_passed() -> None:
    grid = even(10)
    for final in (0.0, 0.05, 0.3, 0.77, 1.5):
        record = Trajectory()
        ddim_sample(ORACLE.model(grid, V), start(), grid, param=V, final_phi=final, record=record)
        if record.phi:
            assert record.phi[-1] == final
            assert all(a > b for a, b in zip(record.phi, record.phi[1:], strict=False))
        else:
            assert final == 1.5
    with pytest.raises(ValueError, match="final_phi must not be above"):
        ddim_sample(ORACLE.model(grid, V), start(), grid, param=V, final_phi=1.51)
    with pytest.raises(ValueError, match="final_phi must lie in"):
        ddim_sample(ORACLE.model(grid, V), start(), grid, param=V, final_phi=-0.1)


def test_a_clean_last_angle_is_not_stepped_to_twice() -> None:
    grid = even(10, low=0.0)
    assert [step.phi_s for step in plan_ddim(grid, param=V)][-2:] == [grid.phi[1].item(), 0.0]
    assert len(plan_ddim(grid, param=V)) == 10


class Never:
    """A network that must not be called."""

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("the network was called")


def test_a_singular_step_is_named_before_the_first_network_call() -> None:
    zero_snr = Schedule.linear(100).rescale_zero_terminal_snr()
    with pytest.raises(SingularParameterization, match="timestep 99") as caught:
        ddim_sample(Never(), start(), zero_snr, param=EPSILON)
    assert (caught.value.timestep, caught.value.phi, caught.value.param) == (99, math.pi / 2, "epsilon")
    assert isinstance(caught.value, ValueError)
    # The singular timestep is the last that would be reached: it is still found first.
    with pytest.raises(SingularParameterization, match="timestep 0 "):
        ddim_invert(Never(), start(), even(10, low=0.0), param=X0)
    with pytest.raises(AssertionError, match="was called"):
        ddim_sample(Never(), start(), zero_snr, param=V)


# -- what a run leaves behind -----------------------------------------------------------------------------------------


def test_the_record_tells_the_whole_run(generator: torch.Generator) -> None:
    grid, record, x = even(8), Trajectory(), start()
    error = RelativeError(0.01, "gaussian")
    got = ddim_sample(ORACLE.model(grid, FLOW), x, grid, param=FLOW, output_error=error, generator=generator, record=record)
    assert record.phi == [*grid.phi.flip(0).tolist(), 0.0]
    assert record.timesteps == grid.timesteps.flip(0).tolist()
    assert len(record.outputs) == len(record.timesteps) == len(record.states) - 1 == 9
    assert torch.equal(record.states[0], x)
    assert torch.equal(record.states[-1], got)
    for step, u, before, after in zip(
        plan_ddim(grid, param=FLOW), record.outputs, record.states[:-1], record.states[1:], strict=True
    ):
        assert torch.equal(apply_step(step.coefficients, u, before), after)
        clean = ORACLE.output(before, step.phi_t, param=FLOW)
        assert not torch.equal(u, clean)  # the output is noted with its error


@pytest.mark.parametrize(("run", "steps"), [(ddim_sample, 6), (ddim_invert, 5)])
def test_progress_is_reported_after_every_step(run: Callable[..., Tensor], steps: int) -> None:
    seen: list[tuple[int, int]] = []
    run(ORACLE.model(even(5), V), start(), even(5), param=V, on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, steps) for i in range(steps)]


@pytest.mark.parametrize("run", [ddim_sample, ddim_invert])
def test_the_network_gets_one_timestep_per_item(run: Callable[..., Tensor]) -> None:
    for grid, dtype in ((even(5), torch.int64), (Schedule.karras(6), torch.float64)):
        times: list[Tensor] = []

        def model(x_t: Tensor, t: Tensor, times: list[Tensor] = times) -> Tensor:
            times.append(t)
            return torch.zeros_like(x_t)

        run(model, start(), grid, param=V)
        assert all(t.shape == (2,) and t.dtype is dtype and t[0] == t[1] for t in times)
        order = grid.timesteps.flip(0) if run is ddim_sample else grid.timesteps[:-1]
        assert [t[0].item() for t in times] == order.tolist()


def test_runs_follow_their_generator() -> None:
    grid = even(8)
    errors = {k: RelativeError(0.01, "uniform") for k in ("output_error", "state_error", "coefficient_error")}

    def run(seed: int) -> Tensor:
        draws = torch.Generator().manual_seed(seed)
        return ddim_sample(ORACLE.model(grid, V), start(), grid, param=V, eta=1.0, generator=draws, **errors)

    before = torch.random.get_rng_state()
    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_initial_noise_is_not_written_to() -> None:
    x = start()
    ddim_sample(ORACLE.model(even(5), V), x, even(5), param=V)
    assert torch.equal(x, start())


@pytest.mark.parametrize("arithmetic", [None, "bfloat16"])
def test_noise_may_come_from_the_caller(arithmetic: str | None) -> None:
    """So that each item of a batch can have a generator of its own: its run does not know the others."""
    plan = plan_ddim(even(5), param=V, eta=1.0)

    def run(x: Tensor, seeds: list[int]) -> Tensor:
        sources = [torch.Generator().manual_seed(seed) for seed in seeds]

        def noise(x: Tensor) -> Tensor:
            return torch.stack([torch.randn(3, generator=source, dtype=x.dtype) for source in sources])

        return sample(ORACLE.model(even(5), V), x, plan, noise=noise, arithmetic=arithmetic)

    alone = run(start()[1:], [7])
    assert torch.equal(run(start(), [6, 7])[1:], alone)
    assert not torch.equal(run(start(), [7, 6])[1:], alone)  # the control
    same = sample(
        ORACLE.model(even(5), V), start()[1:], plan, generator=torch.Generator().manual_seed(7), arithmetic=arithmetic
    )
    assert torch.equal(alone, same)  # one source is what a generator is
    with pytest.raises(ValueError, match="noise and x must have the same shape"):
        sample(ORACLE.model(even(5), V), start(), plan, noise=lambda x: x[:1])
    sample(ORACLE.model(even(5), V), start(), plan_ddim(even(5), param=V), noise=lambda x: x[:1])  # nobody asks


# -- precision --------------------------------------------------------------------------------------------------------


def test_a_bf16_network_leaves_a_float32_state_as_good_as_predicted(generator: torch.Generator) -> None:
    """One step, then a whole run: the error is that of rounding the output, and it does not touch the state's dtype."""
    n, grid = 100_000, Schedule.from_angles([0.6, 1.2])
    data = GaussianMixture.gaussian(0.5)
    exact = data.model(grid, V)
    x = torch.randn(n, 1, generator=generator)

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        return exact(x_t, t).bfloat16()

    low, high = (ddim_sample(m, x, grid, param=V, final_phi=0.6) for m in (network, exact))
    assert low.dtype is torch.float32
    # States of unit variance at 1.2 rad, not of the data's there: scale the moments' prediction by E[x_t^2].
    moments = OutputMoments.gaussian(1.2, sigma_data=0.5)
    predicted = step_error_rms(1.2, 0.6, param=V, delta="rms", moments=moments) / math.sqrt(moments.x_sq)
    # Gaussian outputs are log-uniform to 0.3% in rms; N = 10^5 gives another 5 * 0.5 / sqrt(N) = 0.8%.
    assert (low - high).double().square().mean().sqrt().item() == pytest.approx(predicted, rel=0.02)

    fine = even(50)
    whole = data.model(fine, V)
    low, high = (ddim_sample(m, x[:1000], fine, param=V) for m in (lambda x_t, t: whole(x_t, t).bfloat16(), whole))
    assert low.dtype is torch.float32
    # 51 errors of sin(0.03) delta rms(v): added up in the worst way they stay below pi/2 * 2^-8 * max |v|, |v| < 4.
    assert 0 < (low - high).abs().max().item() < math.pi / 2 * 2.0**-8 * 4


def test_a_bf16_state_stays_bf16_and_costs_more_than_a_bf16_output() -> None:
    data, fine = GaussianMixture.gaussian(0.5), even(200)
    model = data.model(fine, V)
    x = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = ddim_sample(model, x.double(), fine, param=V)
    in_bf16 = ddim_sample(model, x, fine, param=V)
    assert in_bf16.dtype is torch.bfloat16
    emulated = ddim_sample(model, x.double(), fine, param=V, state_error=RoundingError("bfloat16"))
    output_only = ddim_sample(model, x.double(), fine, param=V, output_error=RoundingError("bfloat16"))
    errors = [(y.double() - exact).square().mean().sqrt().item() for y in (in_bf16, emulated, output_only)]
    # The emulation rounds at the same places as the real dtype, but its network reads float64: equal to some percent.
    assert errors[1] == pytest.approx(errors[0], rel=0.2)
    assert errors[0] > 5 * errors[2]


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_sampled_is_refused() -> None:
    grid = even(5)
    with pytest.raises(ValueError, match="model must return the shape"):
        ddim_sample(lambda x, t: x[:, :1], start(), grid, param=V)
    with pytest.raises(TypeError, match="floating-point"):
        ddim_sample(Never(), torch.ones(2, 3, dtype=torch.int64), grid, param=V)
    with pytest.raises(ValueError, match="batch dimension"):
        ddim_sample(Never(), torch.tensor(1.0), grid, param=V)
    with pytest.raises(NonFiniteError, match="x_init"):
        ddim_sample(Never(), torch.full((2, 3), math.nan), grid, param=V)
    with pytest.raises(NonFiniteError, match="final sample"):
        ddim_sample(lambda x, t: x * math.inf, start(), grid, param=V)
    with pytest.raises(ValueError, match="eta must lie in"):
        ddim_sample(Never(), start(), grid, param=V, eta=-1.0)


@pytest.mark.parametrize(
    ("wrap", "got"),
    [
        (lambda u: (u,), "got tuple at t = 999"),
        (lambda u: u.long(), "got dtype torch.int64"),
        (lambda u: u.to(torch.complex64), "got dtype torch.complex64"),
        (lambda u: None, "got NoneType"),
    ],
)
def test_a_model_returns_one_real_tensor(wrap: Callable[[Tensor], object], got: str) -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(TypeError, match=f"model must return one floating-point tensor, {got}"):
        ddim_sample(lambda x, t: wrap(x), x, Schedule.cosine(1000), param=V)
    with pytest.raises(TypeError, match=f"model must return one floating-point tensor, {got}"):
        trace_sensitivity(lambda x, t: wrap(x), plan_ddim(Schedule.cosine(1000), param=V), x)


@pytest.mark.parametrize("source", ["output", "state", "coefficient", "timestep"])
def test_a_format_is_no_error_model(source: str) -> None:
    """Before the first network call."""
    plan = plan_ddim(Schedule.cosine(10), param=V)
    for error in ("bfloat16", torch.bfloat16, BFLOAT16, RoundingError):
        with pytest.raises(TypeError, match=rf"{source}_error must be an error model or None, got .* is RoundingError\(format"):
            sample(_never, torch.zeros(2, 3), plan, **{f"{source}_error": error})
    if source != "timestep":
        u = torch.zeros(2, 3)
        with pytest.raises(TypeError, match=f"{source}_error must be an error model"):
            ddim_step(u, u, 1.0, 0.5, param=V, **{f"{source}_error": "bfloat16"})


def _never(x: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("the network was called")


def test_an_error_of_each_call_must_be_of_this_plan() -> None:
    plan, x = plan_ddim(Schedule.cosine(10), param=V), torch.zeros(2, 3)
    for calls in (5, 50):
        with pytest.raises(ValueError, match=rf"output_error must have one entry per call of the plan \(10\), got {calls}"):
            sample(_never, x, plan, output_error=NetworkError([0.1] * calls))
    with pytest.raises(ValueError, match="state_error must be of one call, got one of 10 calls"):
        sample(_never, x, plan, state_error=NetworkError([0.1] * 10))


def test_a_record_is_of_one_run() -> None:
    plan, x, record = plan_ddim(Schedule.cosine(3), param=V), torch.zeros(2, 3), Trajectory()
    sample(lambda x, t: x, x, plan, record=record)
    with pytest.raises(ValueError, match="record must be empty, got one of 3 steps"):
        sample(_never, x, plan, record=record)
