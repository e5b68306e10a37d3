"""Each flag is raised where it should be and not where it should not, and what it says in words is so."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from gaussian_runs import BF16, COSINE, PARAMS, SOLVERS, measured, network, noise, only, run

from diffparam import (
    EPSILON,
    FLOW,
    SCORE,
    VE,
    X0,
    AdditiveError,
    AngularParam,
    CompensatedRounding,
    ErrorBudget,
    Flag,
    GaussianMixture,
    NonFiniteError,
    OutputMoments,
    RelativeError,
    RoundingError,
    Schedule,
    V,
    gaussian_sensitivity,
    largest_safe_timestep,
    loss_floor,
    plan_ddim,
    plan_heun,
    predict_error,
    predict_v,
    trace_sensitivity,
)

GRID = COSINE.respace(20)


def flags(budget: ErrorBudget) -> dict[str, Flag]:
    """The first of each kind."""
    return {flag.kind: flag for flag in reversed(budget.flags)}


def test_a_flag_is_a_kind_a_place_and_a_reason() -> None:
    flag = Flag("large", None, "because")
    with pytest.raises(dataclasses.FrozenInstanceError):
        flag.kind = "other"  # type: ignore[misc]
    assert flag == Flag("large", None, "because")
    for kind in ("unsafe", "collision", "off_grid", "stagnation", "correlation", "grid", "heavy_tail", "overflow", "large"):
        assert f"``{kind}``" in Flag.__doc__


def test_a_safe_run_has_no_flags() -> None:
    """v in bf16 on unit-scale data, a float32 state and ten steps: nothing to say."""
    for solver in SOLVERS:
        assert predict_error(SOLVERS[solver](COSINE.respace(6), param=V), 0.5).flags == (), solver


# -- unsafe -----------------------------------------------------------------------------------------------------------


def test_epsilon_at_high_noise_is_unsafe_from_the_timestep_that_is_said() -> None:
    plan = plan_ddim(COSINE, param=EPSILON)
    budget = predict_error(plan, 1.0, **only(output="bf16"), tolerance=0.01)
    flag = flags(budget)["unsafe"]
    # Unit-variance data: the output has unit variance too, so the floor is kappa^2 delta^2; a Gaussian is log-uniform to 0.6 %.
    floor = np.array([loss_floor(p, param=EPSILON, delta="rms", moments=OutputMoments.gaussian(p)) for p in plan.phi_t])
    said = int(re.match(r"(\d+) of 1000 calls", flag.reason).group(1))  # type: ignore[union-attr]
    assert (floor > 0.01 * 1.01).sum() <= said <= (floor > 0.01 / 1.01).sum()
    assert said == 999 - largest_safe_timestep(COSINE, param=EPSILON, delta="rms")  # which assumes unit variance
    assert flag.timestep == plan.timestep[np.argmax(floor)] == 999
    assert f"kappa reaches {1 / math.cos(plan.phi_t[0]):.3g}" in flag.reason


def test_what_is_unsafe_depends_on_the_parameterization_the_format_and_the_tolerance() -> None:
    plan = plan_ddim(GRID, param=EPSILON)
    assert "unsafe" in flags(predict_error(plan, 1.0, **only(output="bf16")))
    for param in (V, FLOW):
        assert "unsafe" not in flags(predict_error(plan_ddim(GRID, param=param), 1.0, **only(output="bf16")))
    late = plan_ddim(COSINE.up_to(900).respace(20), param=EPSILON)  # kappa is 7 there
    assert "unsafe" not in flags(predict_error(late, 1.0, **only(output="bf16")))
    assert "unsafe" in flags(predict_error(late, 1.0, **only(output="bf16"), tolerance=1e-5))
    assert "unsafe" in flags(predict_error(late, 1.0, **only(output="e4m3")))
    clean = predict_error(plan_ddim(GRID, param=X0), 1.0, **only(output="bf16"))
    assert flags(clean)["unsafe"].timestep == GRID.timesteps[0]  # x0 is unsafe at the clean end
    assert "unsafe" not in flags(predict_error(plan, 1.0, **only(state="bf16")))  # which speaks of the output


def test_the_scale_of_an_output_makes_nothing_unsafe() -> None:
    """r is divided out: the score is as safe as epsilon, whatever its size."""
    late = COSINE.up_to(900).respace(20)
    for tolerance in (1e-2, 1e-5):
        one, other = (
            flags(predict_error(plan_ddim(late, param=p), 1.0, **only(output="bf16"), tolerance=tolerance))
            for p in (EPSILON, SCORE)
        )
        assert ("unsafe" in one) == ("unsafe" in other) == (tolerance < 1e-3)


# -- timesteps --------------------------------------------------------------------------------------------------------


def test_bf16_cannot_tell_1000_timesteps_apart() -> None:
    plan = plan_ddim(COSINE, param=V)
    found = flags(predict_error(plan, 0.5, **only(timestep="bf16")))
    distinct = len(set(torch.arange(1000).bfloat16().tolist()))
    assert found["collision"].reason.startswith(f"1000 timesteps become {distinct} in bfloat16, the first pair at 256")
    assert found["collision"].timestep == 256.0
    # 8 bits of significand: odd numbers above 256, and three of four above 512, move; those of two steps by at most two.
    moved = int((torch.arange(1000).bfloat16().double() != torch.arange(1000)).sum())
    assert found["off_grid"].reason.startswith(f"{moved} of 1000 timesteps are moved by bfloat16")
    assert abs(found["off_grid"].timestep - torch.tensor(found["off_grid"].timestep).bfloat16().item()) == 2.0


def test_formats_with_enough_bits_can() -> None:
    for fmt in ("float32", "tf32", "fp16", None):  # 11 bits hold every integer up to 2048
        assert flags(predict_error(plan_ddim(COSINE, param=V), 0.5, **only(timestep=fmt))) == {}
    even = plan_ddim(COSINE.take(range(0, 1000, 8)), param=V)  # multiples of 4 up to 1024 are bf16 numbers
    assert flags(predict_error(even, 0.5, **only(timestep="bf16"))) == {}
    some = flags(predict_error(plan_ddim(GRID, param=V), 0.5, **only(timestep="bf16")))
    assert set(some) == {"off_grid"}  # twenty timesteps stay apart, but are not where they were


def test_the_float32_digits_of_a_fractional_timestep_are_nothing_to_flag() -> None:
    for schedule in (Schedule.karras(18), Schedule.rectified_flow(30).take(range(29))):
        for solver in SOLVERS:
            plan = SOLVERS[solver](schedule, param=V)
            assert not {"off_grid", "collision"} & set(flags(predict_error(plan, 0.5, **only(timestep="float32"))))
            assert "off_grid" in flags(predict_error(plan, 0.5, **only(timestep="bf16")))


def test_a_second_call_at_the_same_timestep_is_no_collision() -> None:
    """Heun's two calls there are meant."""
    assert flags(predict_error(plan_heun(GRID, param=V), 0.5, **only(timestep="float32"))) == {}


# -- stored states ----------------------------------------------------------------------------------------------------


def test_updates_below_half_a_unit_are_lost() -> None:
    """Flagged where the rms update is below half a unit in the last place of the state; a run shows that they are lost."""
    plan = plan_ddim(COSINE, param=FLOW)
    budget = predict_error(plan, 0.5, **only(state="bf16"))
    flag = flags(budget)["stagnation"]
    lost = int(re.match(r"(\d+) of 1000 updates", flag.reason).group(1))  # type: ignore[union-attr]
    sizes = gaussian_sensitivity(plan, 0.5)
    # Half a unit in the last place of a Gaussian of rms s: sqrt(3) times the rms error of rounding, 2^-8.6 s.
    small = np.sqrt(sizes.change_sq / sizes.state_sq) < math.sqrt(3) * BF16.rms
    assert lost == pytest.approx(small.sum(), abs=10)
    assert flag.timestep == plan.timestep[np.flatnonzero(small)[0]]
    assert lost > 900
    x = BF16.apply(noise(plan, 500))
    stuck = run(plan, x, 0.5, state_error=BF16)
    # It should shrink to half of its size; most of it does not move.
    assert (stuck.square().mean() / x.square().mean()).sqrt().item() > 0.9
    assert budget.useful_steps == pytest.approx(
        (np.sqrt(sizes.change_sq / sizes.state_sq) / (math.sqrt(3) * BF16.rms)).sum(), rel=0.01
    )


def test_what_keeps_updates_is_not_flagged() -> None:
    plan = plan_ddim(COSINE.respace(250), param=FLOW)
    remedies = ["float32", RoundingError("bf16", "stochastic"), CompensatedRounding("bf16"), AdditiveError(1e-3), None]
    for state in remedies:
        budget = predict_error(plan, 0.5, **only(state=state))
        assert "stagnation" not in flags(budget), state
        assert budget.useful_steps > 1e5
    assert "stagnation" in flags(predict_error(plan, 0.5, **only(state="bf16")))
    assert "stagnation" in flags(predict_error(plan, 0.5, **only(state=RoundingError("bf16", "toward_zero"))))
    few = plan_ddim(Schedule.from_angles([0.5, 0.9, 1.3]), param=FLOW)  # long steps, far from where nothing moves
    assert "stagnation" not in flags(predict_error(few, 0.5, **only(state="bf16")))


def test_stochastic_rounding_of_small_updates_errs_less_than_is_said() -> None:
    """Flagged up to a whole unit in the last place: a value within a unit of a grid point mostly stays on it."""
    plan, error = plan_ddim(COSINE.respace(250), param=FLOW), RoundingError("bf16", "stochastic")
    flag = flags(predict_error(plan, 0.5, **only(state=error)))["correlation"]
    sizes = gaussian_sensitivity(plan, 0.5)
    unit = 2.0 * math.sqrt(3) * BF16.rms  # in the rms of a Gaussian value
    small = np.flatnonzero(np.sqrt(sizes.change_sq / sizes.state_sq) < unit)
    lost = int(re.match(r"(\d+) of 250 updates", flag.reason).group(1))  # type: ignore[union-attr]
    assert lost == pytest.approx(len(small), abs=5)
    assert np.count_nonzero(np.sqrt(sizes.change_sq / sizes.state_sq) < unit / 2) < lost - 10
    assert flag.timestep == pytest.approx(plan.timestep[small[0]], abs=8)
    few = plan_ddim(Schedule.from_angles([0.5, 0.9, 1.3]), param=FLOW)
    assert "correlation" not in flags(predict_error(few, 0.5, **only(state=error)))


def test_bf16_sums_lose_updates_whatever_stores_them() -> None:
    plan = plan_ddim(COSINE.respace(250), param=FLOW)
    for state in ("float32", "bf16", None, CompensatedRounding("bf16")):
        budget = predict_error(plan, 0.5, **only(arithmetic="bf16", state=state))
        assert "stagnation" in flags(budget)
        assert budget.useful_steps == predict_error(plan, 0.5, **only(state="bf16")).useful_steps
    assert "stagnation" not in flags(predict_error(plan, 0.5, **only(arithmetic="float32", state="float32")))


# -- outputs that repeat ------------------------------------------------------------------------------------------------


def test_outputs_that_move_slowly_are_flagged() -> None:
    slow, fast = (plan_ddim(COSINE.respace(n), param=FLOW) for n in (1000, 5))
    for error in (BF16, RoundingError("bf16", "toward_zero"), "e4m3"):
        assert "correlation" in flags(predict_error(slow, 0.5, **only(output=error)))
    for error in (RoundingError("bf16", "stochastic"), RelativeError(0.01), "float32", CompensatedRounding("bf16")):
        assert "correlation" not in flags(predict_error(slow, 0.5, **only(output=error)))
    assert "correlation" not in flags(predict_error(fast, 0.5, **only(output="bf16")))
    flag = flags(predict_error(slow, 0.5, **only(output="bf16")))["correlation"]
    sizes = gaussian_sensitivity(slow, 0.5)
    unit = np.sqrt(12 * BF16.energy(sizes.output_sq))
    below = np.flatnonzero(np.sqrt(sizes.output_change_sq) < unit)
    assert flag.timestep == slow.timestep[below[0]]
    assert f"{len(below)} of 999 steps" in flag.reason


def test_fresh_noise_moves_the_output_of_an_ancestral_run() -> None:
    slow = SOLVERS["ddpm"](COSINE.respace(250), param=EPSILON)
    still = SOLVERS["ddim"](COSINE.respace(250), param=EPSILON)
    at = [np.sqrt(gaussian_sensitivity(p, 0.5).output_change_sq[1:]).min() for p in (slow, still)]
    assert at[0] > 3 * at[1]


def test_a_last_update_that_is_the_output_lies_on_its_grid() -> None:
    """x0 to phi = 0 is the rounded output itself: the error is that of the last rounding and no quadrature describes it."""
    plan = plan_ddim(COSINE.respace(20), param=X0)
    budget = predict_error(plan, 0.5, **only(output="bf16"))
    assert flags(budget)["grid"].timestep == 0.0
    final = run(plan, noise(plan, 200), 0.5, output_error=BF16)
    assert torch.equal(final, BF16.apply(final))
    for param in (V, EPSILON, FLOW):
        assert "grid" not in flags(predict_error(plan_ddim(GRID, param=param), 0.5, **only(output="bf16")))
    early = plan_ddim(COSINE.respace(20), param=X0, final_phi=0.1)
    assert "grid" not in flags(predict_error(early, 0.5, **only(output="bf16")))
    assert "grid" not in flags(predict_error(plan, 0.5, **only(output=RelativeError(0.01))))


# -- tails, overflow, size ----------------------------------------------------------------------------------------------


def test_gains_that_few_samples_carry_are_flagged() -> None:
    """Narrow modes: a trajectory that starts between them is thousands of times more sensitive than the others."""
    plan = plan_ddim(GRID, param=V)
    narrow = GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), torch.full((2,), 0.02, dtype=torch.float64))
    draws = torch.Generator().manual_seed(1)
    few = trace_sensitivity(narrow.model(GRID, V), plan, noise(plan, 300), generator=draws)
    assert few.effective_samples < 50
    flag = flags(predict_error(plan, few, **only(output="bf16")))["heavy_tail"]
    assert f"{few.effective_samples:.0f} samples" in flag.reason
    assert flag.timestep is None
    linear = trace_sensitivity(network(plan, 0.5), plan, noise(plan, 3000), generator=draws)
    assert linear.effective_samples > 200
    assert "heavy_tail" not in flags(predict_error(plan, linear, **only(output="bf16")))
    assert "heavy_tail" not in flags(predict_error(plan, 0.5, **only(output="bf16")))  # exact gains rest on no samples
    assert "heavy_tail" not in flags(predict_error(plan, few, **only(state="bf16")))  # it is the output's gains that do


def test_values_beyond_the_largest_are_flagged() -> None:
    """An output a thousand times the target's size, in e4m3, whose largest value is 448."""
    plan = plan_ddim(GRID, param=AngularParam(EPSILON.psi, 1000.0))
    flag = flags(predict_error(plan, 0.5, **only(output="e4m3")))["overflow"]
    assert "the output's values is beyond 448" in flag.reason
    with pytest.raises(NonFiniteError, match="the final sample"):  # e4m3 has no infinity, and the run ends in NaN
        measured(plan, 0.5, 4000, output_error=RoundingError("e4m3"))
    share = float(re.match(r"a share of ([0-9.]+) ", flag.reason).group(1))  # type: ignore[union-attr]
    assert share == pytest.approx(math.erfc(0.448 / math.sqrt(2)), abs=0.006)  # of unit rms at high noise, to two digits
    for fine in ("e5m2", "bf16", "fp16"):
        assert "overflow" not in flags(predict_error(plan, 0.5, **only(output=fine)))
    assert "overflow" not in flags(predict_error(plan_ddim(GRID, param=V), 0.5, **only(output="e4m3")))
    assert "overflow" not in flags(predict_error(plan, 0.5, **only(output=RelativeError(0.1))))


def test_a_state_in_sigma_space_overflows_what_a_variance_preserving_one_fits() -> None:
    grid = Schedule.karras(12, sigma_max=1000.0)
    wide = plan_ddim(grid, param=V)
    narrow = plan_ddim(grid.with_state(COSINE.state), param=V)
    assert wide.state == VE
    flag = flags(predict_error(wide, 0.5, **only(state="e4m3")))["overflow"]
    assert "the state's values is beyond 448" in flag.reason
    for plan, fmt in ((narrow, "e4m3"), (wide, "bf16"), (wide, "fp16")):
        assert "overflow" not in flags(predict_error(plan, 0.5, **only(state=fmt)))


def test_a_prediction_that_is_not_small_says_so() -> None:
    plan = plan_ddim(GRID, param=EPSILON)
    large = predict_error(plan, 0.5, **only(output="e4m3"))
    assert large.relative > 0.3
    assert f"{large.relative:.2g} of the sample" in flags(large)["large"].reason
    small = predict_error(plan_ddim(GRID, param=V), 0.5, **only(output="e4m3"))
    assert small.relative < 0.3
    assert "large" not in flags(small)


@pytest.mark.parametrize("solver", SOLVERS)
def test_flags_name_timesteps_of_the_plan(solver: str) -> None:
    for param in PARAMS.values():
        plan = SOLVERS[solver](COSINE.respace(100), param=param)
        budget = predict_error(plan, 0.5, output="e5m2", state="bf16", timestep="bf16")
        for flag in budget.flags:
            assert flag.timestep is None or flag.timestep in plan.timestep, flag
            assert len(flag.reason) > 30
            assert "nan" not in flag.reason


# -- the unit of a loss floor -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_data", [0.01, 0.5, 1.0, 2.0, 100.0])
@pytest.mark.parametrize("param", [EPSILON, V, FLOW, X0], ids=lambda p: p.name)
def test_a_floor_is_a_share_of_the_variance_of_v(param: AngularParam, sigma_data: float) -> None:
    """Measured: noised data, targets with a relative error of one rounding, in v-space, over the variance of v."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(20000, generator=generator, dtype=torch.float64) for _ in range(2))
    x0 = x0 * sigma_data
    grid = COSINE.take([50, 600, 990])
    limit = largest_safe_timestep(grid, param=param, delta=2.0**-7, tolerance=1e-3, sigma_data=sigma_data)
    shares = []
    for phi in grid.phi.tolist():
        x_t, u, v = math.cos(phi) * x0 + math.sin(phi) * eps, param.target(x0, eps, phi), V.target(x0, eps, phi)
        wrong = u * (1.0 + 2.0**-7 * torch.randn(u.shape, generator=generator, dtype=torch.float64))
        moved = predict_v(wrong, x_t, phi, param=param) - v
        shares.append((moved.square().mean() / v.square().mean()).item())
    safe = [t for t, share in zip(grid.timesteps.tolist(), shares, strict=True) if share <= 1e-3]
    assert all(abs(share / 1e-3 - 1) > 0.05 for share in shares)  # none is near the tolerance
    assert limit == (max(safe) if safe else None)


@pytest.mark.parametrize("sigma_data", [0.001, 1.0, 1000.0])
def test_v_is_safe_at_every_scale_of_the_data(sigma_data: float) -> None:
    assert "unsafe" not in flags(predict_error(plan_ddim(GRID, param=V), sigma_data, **only(output="bf16")))
    # At 1000 the target of v is so large that epsilon's error is a small part of it.
    epsilon = flags(predict_error(plan_ddim(GRID, param=EPSILON), sigma_data, **only(output="bf16")))
    assert ("unsafe" in epsilon) == (sigma_data < 1000)


def test_a_timestep_rounded_beyond_the_last_one_is_not_free() -> None:
    """bf16 makes 1000 of 999; the network then answers for an angle beyond its training."""
    plan = plan_ddim(COSINE.take([500, 999]), param=EPSILON)
    told = predict_error(plan, 0.5, **only(timestep="bf16"), training=COSINE).sources["timestep"]
    assert told.predicted > 0
