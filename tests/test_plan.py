"""A plan is a list of updates: it can be read, is checked, forms a chain, and is refused before a network is called."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gaussian_runs import COSINE, SOLVERS
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import is_regular, params, schedules

from diffparam import (
    EPSILON,
    FLOW_STATE,
    VE,
    X0,
    AngularParam,
    NonFiniteError,
    Plan,
    Schedule,
    SingularParameterization,
    StepCoefficients,
    V,
    plan_ddim,
    plan_ddpm,
    plan_dpm_solver,
    plan_heun,
    sample,
)
from diffparam.solvers.plan import legs_downwards, legs_upwards, make_plan

HALF_PI = math.pi / 2
GRID = COSINE.respace(12)
COLUMNS = ("gain_u", "gain_x", "noise", "gain_m", "memory_u", "memory_x")
ENDING: dict[str, Callable[..., Plan]] = {"ddim": plan_ddim, "ddpm": plan_ddpm, "dpm": plan_dpm_solver}
"""The solvers that may end early."""


# -- a list -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_plan_is_read_like_a_list(solver: str) -> None:
    plan = SOLVERS[solver](GRID, param=V)
    steps = list(plan)
    assert len(steps) == len(plan) == (2 * 12 - 1 if solver == "heun" else 12)
    assert [plan[i] for i in range(len(plan))] == steps == list(plan.steps())
    assert plan[-1] == steps[-1]
    assert plan[2:5] == steps[2:5]
    with pytest.raises(IndexError):
        plan[len(plan)]
    for i, step in enumerate(steps):
        assert (step.timestep, step.phi_t, step.phi_s) == (plan.timestep[i], plan.phi_t[i], plan.phi_s[i])
        assert [getattr(step.coefficients, name) for name in COLUMNS] == [getattr(plan, name)[i] for name in COLUMNS]
        assert all(type(getattr(step.coefficients, name)) is float for name in COLUMNS)


def test_integer_timesteps_stay_integers_and_others_stay_floats() -> None:
    assert all(type(step.timestep) is int for step in plan_ddim(GRID, param=V))
    assert all(type(step.timestep) is float for step in plan_ddim(Schedule.karras(6), param=V))


def test_a_plan_says_what_it_is() -> None:
    assert repr(plan_heun(GRID, param=V)) == "Plan('heun', 'v_prediction', 23 network calls, state 'vp')"
    assert repr(plan_ddpm(GRID.with_state(VE), param=EPSILON)) == "Plan('ddpm', 'epsilon', 12 network calls, state 've')"
    kinds = {name: (plan.has_memory, plan.is_stochastic) for name, plan in ((n, s(GRID, param=V)) for n, s in SOLVERS.items())}
    assert kinds == {
        "ddim": (False, False),
        "eta": (False, True),
        "ddpm": (False, True),
        "upper": (False, True),
        "dpm": (True, False),
        "heun": (True, False),
    }


def test_a_plan_cannot_be_changed_and_checks_itself() -> None:
    plan = plan_ddim(GRID, param=V)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.solver = "other"  # type: ignore[misc]
    for name in ("phi_t", "phi_s", *COLUMNS):
        with pytest.raises(ValueError, match=f"{name} must be an array of one entry per call \\(12\\)"):
            dataclasses.replace(plan, **{name: np.zeros(11)})
        with pytest.raises(NonFiniteError, match=f"{name} must be finite, got nan"):
            dataclasses.replace(plan, **{name: np.full(12, math.nan)})


def test_the_temperature_scales_the_noise_and_nothing_else() -> None:
    plan = plan_ddpm(GRID, param=V)
    cold = plan.scaled_noise(0.5)
    assert np.array_equal(cold.noise, 0.5 * plan.noise)
    assert all(np.array_equal(getattr(cold, n), getattr(plan, n)) for n in ("phi_t", "phi_s", *COLUMNS) if n != "noise")
    assert np.array_equal(plan_ddpm(GRID, param=V, temperature=0.5).noise, cold.noise)
    assert not plan.scaled_noise(0.0).is_stochastic
    with pytest.raises(ValueError, match="temperature must lie in"):
        plan.scaled_noise(-1.0)
    with pytest.raises(NonFiniteError, match="temperature"):
        plan_ddpm(GRID, param=V, temperature=math.nan)


# -- a chain ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_step_begins_where_the_last_one_ended(solver: str) -> None:
    plan = SOLVERS[solver](GRID, param=V)
    assert np.array_equal(plan.phi_s[:-1], plan.phi_t[1:])
    assert (plan.phi_t[0], plan.phi_s[-1]) == (GRID.phi[-1].item(), 0.0)
    visited = plan.timestep[0::2] if solver == "heun" else plan.timestep
    assert visited.tolist() == GRID.timesteps.flip(0).tolist()
    angle = dict(zip(GRID.timesteps.tolist(), GRID.phi.tolist(), strict=True))
    assert [angle[t] for t in plan.timestep.tolist()] == plan.phi_t.tolist()  # what the network is told is where it is


def test_a_heun_step_calls_the_network_at_both_ends() -> None:
    plan = plan_heun(GRID, param=V)
    assert plan.timestep[1::2].tolist() == plan.timestep[2::2].tolist()
    assert np.array_equal(plan.phi_t[1::2], plan.phi_s[1::2])
    assert (plan.gain_m[0::2] == 0).all()
    assert (plan.gain_m[1::2] == 1).all()
    assert (plan.memory_u[1::2] == 0).all()
    assert plan.memory_u[-1] == plan.memory_x[-1] == 0.0  # the last step is Euler's


@pytest.mark.parametrize("solver", ENDING)
def test_a_run_may_end_early(solver: str) -> None:
    full = ENDING[solver](GRID, param=V)
    for final in (1e-4, float(GRID.phi[0]), 0.3, float(GRID.phi[5])):
        plan = ENDING[solver](GRID, param=V, final_phi=final)
        assert plan.phi_s[-1] == final
        assert len(plan) == int((GRID.phi > final).sum())
        assert np.array_equal(plan.phi_t, full.phi_t[: len(plan)])
        assert np.array_equal(plan.gain_x[: len(plan) - 1], full.gain_x[: len(plan) - 1])
    for wrong, said in ((1.6, "final_phi"), (-0.1, "final_phi must lie in"), (math.nan, "final_phi must be finite")):
        with pytest.raises((ValueError, NonFiniteError), match=said):
            ENDING[solver](GRID, param=V, final_phi=wrong)
    with pytest.raises(ValueError, match="final_phi must not be above the schedule"):
        ENDING[solver](GRID.take([0, 1, 2]), param=V, final_phi=1.5)


@pytest.mark.parametrize("solver", ENDING)
def test_a_run_to_its_own_start_has_no_calls_and_changes_nothing(solver: str) -> None:
    plan = ENDING[solver](GRID, param=V, final_phi=float(GRID.phi[-1]))
    assert (len(plan), list(plan)) == (0, [])
    x = torch.ones(2, 3)
    assert sample(lambda x, t: x / 0, x, plan) is x


def test_upwards_and_downwards_are_the_same_legs() -> None:
    t, phi_t, phi_s = legs_downwards(GRID, float(GRID.phi[0]))
    t_up, up_t, up_s = legs_upwards(GRID)
    assert np.array_equal(phi_t[::-1], up_s)
    assert np.array_equal(phi_s[::-1], up_t)
    assert np.array_equal(t[::-1][:-1], t_up[1:])
    assert plan_ddim(GRID, param=V, upwards=True).phi_s[-1] == GRID.phi[-1]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("state", [VE, FLOW_STATE], ids=lambda s: s.kind)
def test_another_state_is_the_same_plan_in_other_units(solver: str, state) -> None:
    """x' = scale(phi_s) / scale(phi_t) for the state, scale(phi_s) for output and noise; DPM's memory is x0, Heun's a state."""
    here, there = SOLVERS[solver](GRID, param=V), SOLVERS[solver](GRID.with_state(state), param=V)
    to, per = state.scale(here.phi_s), state.scale(here.phi_t)
    kept = 1.0 if solver == "dpm" else to  # unit of the memory
    wanted = {
        "gain_u": to * here.gain_u,
        "gain_x": to / per * here.gain_x,
        "noise": to * here.noise,
        "gain_m": (to if solver == "dpm" else 1.0) * here.gain_m,
        "memory_u": kept * here.memory_u,
        "memory_x": kept / per * here.memory_x,
    }
    for name, value in wanted.items():
        # The same products in another order. DPM-Solver's gains are differences of terms 1 / sin(phi) of up to 1e2 in size.
        np.testing.assert_allclose(getattr(there, name), value, rtol=1e-13, atol=1e-13 * np.abs(value).max(), err_msg=name)


# -- refusals ---------------------------------------------------------------------------------------------------------


def crosses(phi: float):
    """A psi that meets the state at ``phi``: singular there and nowhere else."""
    return lambda angle: angle + (angle - phi)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("at", [0, 5, 11])
def test_a_singular_step_is_named_with_its_timestep(solver: str, at: int) -> None:
    """Wherever in the run it lies: the plan is made, and refused, before any network is called."""
    param = AngularParam(crosses(float(GRID.phi[at])), name="crossing")
    with pytest.raises(SingularParameterization, match=f"timestep {GRID.timesteps[at]} ") as caught:
        SOLVERS[solver](GRID, param=param)
    assert (caught.value.timestep, caught.value.phi, caught.value.param) == (GRID.timesteps[at], GRID.phi[at], "crossing")


def test_noise_at_zero_terminal_snr_and_data_at_zero_noise_are_singular() -> None:
    zero_snr = COSINE.rescale_zero_terminal_snr().respace(10)
    for solver in ("ddim", "eta", "ddpm", "upper", "dpm"):
        with pytest.raises(SingularParameterization, match="timestep 999"):
            SOLVERS[solver](zero_snr, param=EPSILON)
        assert SOLVERS[solver](zero_snr, param=V).phi_t[0] == HALF_PI
    with pytest.raises(ValueError, match="phi must be below pi/2 for heun"):
        plan_heun(zero_snr, param=V)
    with pytest.raises(SingularParameterization, match="timestep 0 "):
        plan_ddim(Schedule.from_angles([0.0, 0.5, 1.0]), param=X0, upwards=True)
    for solver in SOLVERS.values():  # but downwards nothing is asked of the network at phi = 0
        assert solver(Schedule.from_angles([0.0, 0.5, 1.0]), param=X0).phi_s[-1] == 0.0


def test_make_plan_leaves_other_errors_alone() -> None:
    def broken(phi_t: np.ndarray, phi_s: np.ndarray) -> StepCoefficients:
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        make_plan("mine", GRID, V, legs_downwards(GRID), broken)


def test_a_solver_of_ones_own_is_one_function() -> None:
    """Numbers broadcast to all calls; what is not said is zero."""
    plan = make_plan("still", GRID, V, legs_downwards(GRID), lambda t, s: StepCoefficients(0.0, np.cos(s) / np.cos(t)))
    assert plan.gain_x.shape == plan.noise.shape == (12,)
    x = torch.ones(1, 2, dtype=torch.float64)
    got = sample(lambda x, t: x, x, plan)
    assert got.tolist() == [[pytest.approx(1 / math.cos(GRID.phi[-1]), rel=1e-12)] * 2]  # the product telescopes


def attempt(make: Callable[[], Plan]) -> Plan | Exception:
    """The plan, or the error that refuses it."""
    try:
        return make()
    except (ValueError, NonFiniteError) as error:
        return error


@settings(max_examples=60)
@given(params(), schedules(), st.sampled_from(sorted(SOLVERS)))
def test_every_plan_is_finite_or_refused_by_name(param, schedule, solver) -> None:
    plan = attempt(lambda: SOLVERS[solver](schedule, param=param))
    if isinstance(plan, SingularParameterization):
        assert plan.timestep is not None
        assert not is_regular(param, plan.phi, floor=1e-15)
    elif isinstance(plan, Exception):  # EDM by hand has no value at pi/2, Heun and sigma-space no step from there
        assert schedule.phi[-1] == HALF_PI
        assert "pi/2" in str(plan) or "psi(phi)" in str(plan)
    else:
        for name in ("phi_t", "phi_s", *COLUMNS):
            assert np.isfinite(getattr(plan, name)).all()
        assert (plan.noise >= 0).all()
        assert (plan.phi_s <= plan.phi_t).all()
