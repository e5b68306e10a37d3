"""The error budget: predicted over measured is one where roundings are independent, and bounds hold where they are not.

Measured is the rms of run minus exact run over COUNT samples. The error of a sample is its size, standard normal, times a sum
of independent terms: its square has a relative variance of at most 3 * 3 - 1 = 8, so an rms is known to sqrt(8 / N) / 2 = 1 %.
Five of those are INDEPENDENT; formats and models of rounding add what is said where they are used.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from gaussian_runs import BF16, COSINE, PARAMS, SOLVERS, measured, network, noise, only, own, rms, run
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import is_regular, params, schedules
from torch import Tensor

from diffparam import (
    EPSILON,
    FLOW,
    FORMATS,
    VE,
    AdditiveError,
    CompensatedRounding,
    ErrorBudget,
    ErrorModel,
    GaussianMixture,
    NonFiniteError,
    OutputMoments,
    RelativeError,
    RoundingError,
    Schedule,
    UnknownName,
    V,
    gaussian_sensitivity,
    guidance_error_gain,
    guide,
    moments_sensitivity,
    plan_ddim,
    plan_ddpm,
    plan_dpm_solver,
    plan_heun,
    predict_error,
    round_to,
    sample,
    trace_sensitivity,
)
from diffparam.prediction.correlation import correlated_energy, sawtooth_correlation
from diffparam.prediction.known import known_error
from diffparam.solvers.step import StepCoefficients

COUNT = 20_000
INDEPENDENT = 5 * math.sqrt(8 / COUNT) / 2
GRID = COSINE.respace(20)
TEN = COSINE.respace(10)


def kinds(budget: ErrorBudget) -> set[str]:
    return {flag.kind for flag in budget.flags}


# -- the output -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["uniform", "gaussian", "rademacher"])
@pytest.mark.parametrize("param", ["v", "epsilon", "flow", "sample"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_independent_errors_add_as_predicted(solver: str, param: str, law: str) -> None:
    """Relative errors of a law, new at each call. Second order: 1e-5 times epsilon's gain of 1e3 at its first step, 1 %."""
    plan, error = SOLVERS[solver](TEN, param=PARAMS[param]), RelativeError(1e-5, law)
    budget = predict_error(plan, 0.5, **only(output=error))
    assert budget.rms == pytest.approx(budget.independent, rel=1e-14)
    assert budget.rms / measured(plan, 0.5, COUNT, output_error=own(error)) == pytest.approx(1, abs=INDEPENDENT + 0.01)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_additive_error_adds_as_predicted(solver: str) -> None:
    plan, error = SOLVERS[solver](GRID.with_state(VE), param=V), AdditiveError(1e-3)
    budget = predict_error(plan, 2.0, **only(output=error))
    # The errors are Gaussian and exactly linear: 5 / sqrt(2 N).
    assert budget.rms / measured(plan, 2.0, COUNT, output_error=own(error)) == pytest.approx(1, abs=5 / math.sqrt(2 * COUNT))
    assert budget.worst == budget.bound == math.inf


@pytest.mark.parametrize("param", ["v", "epsilon", "flow"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_factor_on_all_outputs_is_known(solver: str, param: str) -> None:
    """The paper's constant relative error: no independence to assume, and no quadrature."""
    plan, error = SOLVERS[solver](GRID, param=PARAMS[param]), RelativeError(1e-6)
    budget = predict_error(plan, 0.5, **only(output=error))
    # Second order: 1e-6 times gains up to 1e3.
    assert budget.rms / measured(plan, 0.5, COUNT, output_error=error) == pytest.approx(1, abs=5 / math.sqrt(2 * COUNT) + 2e-3)


def test_the_papers_step_size_cancels_where_errors_do_not() -> None:
    """Section 3: with the same relative error at each step the sum does not fall with the number of steps, else as its root."""
    one, other = (plan_ddim(COSINE.respace(n), param=FLOW) for n in (25, 400))
    same = [predict_error(plan, 0.5, **only(output=RelativeError(1e-3))) for plan in (one, other)]
    fresh = [predict_error(plan, 0.5, **only(output=RelativeError(1e-3, "rademacher"))) for plan in (one, other)]
    assert same[1].rms / same[0].rms == pytest.approx(1, abs=0.1)
    assert fresh[1].rms / fresh[0].rms == pytest.approx(1 / 4, rel=0.2)
    assert fresh[1].correlated / fresh[0].correlated == pytest.approx(1, abs=0.2)


# What the model of rounding leaves: the roundings of 10 outputs that are one number times a constant are not quite independent.
FORMAT_TOLERANCE = {"bfloat16": 0.06, "float16": 0.06, "float8_e4m3": 0.1, "float8_e5m2": 0.1}
ROUGH = {"correlation", "grid", "large", "overflow"}
"""Flags that say that independence, or first order, is rough."""


@pytest.mark.parametrize(
    ("solver", "fmt"),
    [
        *((solver, fmt) for solver in SOLVERS for fmt in ("bfloat16", "float16")),
        *((solver, fmt) for solver in ("eta", "ddpm", "upper") for fmt in ("float8_e4m3", "float8_e5m2")),
    ],
)
def test_a_rounded_output_costs_what_is_predicted(solver: str, fmt: str) -> None:
    seen = 0
    for param in PARAMS:
        for sigma_data in (0.5, 2.0):
            plan = SOLVERS[solver](TEN, param=PARAMS[param])
            budget = predict_error(plan, sigma_data, **only(output=fmt))
            if kinds(budget) & ROUGH or budget.relative < 1e-12:  # EDM's F of its own data says nothing
                continue
            seen += 1
            ratio = budget.rms / measured(plan, sigma_data, COUNT, output_error=RoundingError(fmt))
            assert ratio == pytest.approx(1, abs=INDEPENDENT + FORMAT_TOLERANCE[fmt]), (param, sigma_data)
    # Units of the coarse formats are so wide that outputs of a run without noise move by less, which is flagged.
    assert seen >= (2 if fmt in ("bfloat16", "float16") else 1)


@pytest.mark.parametrize("mode", ["stochastic", "toward_zero"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_other_ways_to_round_too(solver: str, mode: str) -> None:
    """Toward zero, seven tenths of the energy is a factor that is the same at every call."""
    error = RoundingError("bfloat16", mode)  # type: ignore[arg-type]
    for steps in (10, 60):
        plan = SOLVERS[solver](COSINE.respace(steps), param=FLOW)
        budget = predict_error(plan, 2.0, **only(output=error))
        ratio = budget.rms / measured(plan, 2.0, COUNT // 2, output_error=own(error))
        assert ratio == pytest.approx(1, abs=INDEPENDENT * math.sqrt(2) + 0.06)
    if mode == "toward_zero" and not plan.is_stochastic:
        assert not 1 / 1.5 < budget.rms / budget.independent < 1.5


def test_a_prediction_for_something_else_would_be_noticed() -> None:
    """Negative controls: other data, another solver, another parameterization, another format, half of the errors."""
    plan = plan_dpm_solver(GRID, param=FLOW)
    seen = measured(plan, 0.5, COUNT, output_error=BF16)
    others = {
        "data": predict_error(plan, 1.0, **only(output="bf16")),
        "solver": predict_error(plan_ddim(GRID, param=FLOW), 0.5, **only(output="bf16")),
        "param": predict_error(plan_dpm_solver(GRID, param=V), 0.5, **only(output="bf16")),
        "format": predict_error(plan, 0.5, **only(output="fp16")),
    }
    assert predict_error(plan, 0.5, **only(output="bf16")).rms / seen == pytest.approx(1, abs=0.1)
    for name, budget in others.items():
        assert not 0.85 < budget.rms / seen < 1.15, name
    no_memory = dataclasses.replace(plan, gain_m=np.zeros(len(plan)))  # a budget that forgets that errors are remembered
    assert not 0.85 < predict_error(no_memory, 0.5, **only(output="bf16")).rms / seen < 1.15


# -- slow runs: correlation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "param", "off"), [("ddim", "flow", 1.4), ("dpm", "flow", 1.4), ("heun", "v", 1.4), ("ddim", "v", 1.0)]
)
@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
def test_in_slow_runs_the_correlation_is_known(solver: str, param: str, off: float, sigma_data: float) -> None:
    """1000 steps: the output moves by less than a unit a step; roundings repeat or cancel. Independence is off by ``off``."""
    plan = SOLVERS[solver](COSINE, param=PARAMS[param])
    budget = predict_error(plan, sigma_data, **only(output="bf16"))
    seen = measured(plan, sigma_data, 800, output_error=BF16)
    assert "correlation" in kinds(budget)
    assert budget.rms / seen == pytest.approx(1, abs=0.3)
    assert max(budget.independent / seen, seen / budget.independent) > off
    assert budget.correlated / seen > 20  # and all of one sign is far off


def test_the_sawtooth_correlation_is_what_roundings_have() -> None:
    m = torch.exp2(torch.rand(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))

    def rounding(value: Tensor) -> Tensor:
        return (value * 128).round() / 128 - value

    assert torch.equal(rounding(m), BF16.apply(m) - m)  # above 2 the spacing would double; here it does not
    for move in (0.0, 0.1, 0.3, 0.5, 0.8, 1.0, 1.7, 3.0):
        one, other = rounding(m), rounding(m * (1 + move / 128))
        seen = (one * other).mean() / (rms(one) * rms(other))
        # 5 / sqrt(N), and the cells of 1/128 in the place of ever finer ones.
        assert sawtooth_correlation(np.array([move]))[0] == pytest.approx(seen.item(), abs=5 / math.sqrt(len(m)) + 0.01)
    assert sawtooth_correlation(np.array([0.0, 5.0, np.inf])).tolist() == [1.0, 0.0, 0.0]


def test_roundings_of_one_number_add_up_and_of_opposite_signs_cancel() -> None:
    one = np.ones(5)
    assert correlated_energy(0.1 * one, one, 2.0**-7) == pytest.approx(0.25)
    assert correlated_energy(0.1 * one, -one, 2.0**-7) == pytest.approx(0.25)
    assert correlated_energy(0.1 * np.array([1.0, -1.0]), np.ones(2), 2.0**-7) == pytest.approx(0.0, abs=1e-15)
    assert correlated_energy(0.1 * one, 2.0 ** np.arange(5) * 1.3, 2.0**-7) == pytest.approx(0.05)  # far apart
    assert correlated_energy(0.1 * one, np.zeros(5), 2.0**-7) == pytest.approx(0.05)  # nothing said, nothing known


# -- bounds -----------------------------------------------------------------------------------------------------------

BOUNDED: list[ErrorModel] = [
    *(RelativeError(0.01, law) for law in ("constant", "uniform", "rademacher")),  # type: ignore[arg-type]
    *(RoundingError(name, mode) for name in ("bf16", "fp16", "e4m3") for mode in ("nearest", "toward_zero", "stochastic")),  # type: ignore[arg-type]
]


@settings(max_examples=60)
@given(
    param=st.sampled_from(sorted(PARAMS)),
    solver=st.sampled_from(sorted(SOLVERS)),
    steps=st.integers(2, 40),
    sigma_data=st.floats(0.1, 4.0),
    error=st.sampled_from(BOUNDED),
    where=st.sampled_from(["output", "state"]),
)
def test_the_worst_case_is_never_exceeded(
    param: str, solver: str, steps: int, sigma_data: float, error: ErrorModel, where: str
) -> None:
    """The rms over any samples, to first order: what is large is flagged and left out. 400 samples: 5 / sqrt(2 N) = 18 %."""
    plan = SOLVERS[solver](COSINE.respace(steps), param=PARAMS[param])
    budget = predict_error(plan, sigma_data, **only(**{where: error}))
    assume(not kinds(budget) & {"large", "overflow"})
    seen = measured(plan, sigma_data, 400, **{f"{where}_error": own(error)})
    assert seen <= 1.18 * budget.worst + 1e-12  # the last is float64's own


@pytest.mark.parametrize("solver", ["ddim", "dpm", "ddpm"])
def test_the_worst_case_of_arithmetic_is_never_exceeded(solver: str) -> None:
    for param in ("v", "flow", "epsilon"):
        for steps in (5, 20, 100):
            plan = SOLVERS[solver](COSINE.respace(steps), param=PARAMS[param])
            for fmt in ("bf16", "fp16"):
                budget = predict_error(plan, 0.5, **only(arithmetic=fmt))
                assert measured(plan, 0.5, 400, arithmetic=fmt) < budget.worst


def test_the_worst_case_is_reached_by_the_error_that_is_worst() -> None:
    """+-delta u with the sign of its gain at every call: that is what the sum of bounds says, and no less."""
    plan, delta = plan_heun(TEN, param=FLOW), 1e-6
    sizes = gaussian_sensitivity(plan, 0.5)
    signs = np.sign(sizes.output_gain * sizes.output_amplitude)
    model, calls = network(plan, 0.5), iter(signs)
    x = torch.ones(1, 1, dtype=torch.float64)
    spoiled = sample(lambda x, t: model(x, t) * (1 + delta * next(calls)), x, plan)
    budget = predict_error(plan, 0.5, **only(output=RelativeError(delta)))
    assert (spoiled - sample(model, x, plan)).abs().item() == pytest.approx(budget.worst, rel=1e-2)
    assert budget.worst > 1.2 * budget.rms


@pytest.mark.parametrize(
    ("solver", "steps", "role", "error"),
    [
        ("ddim", 1, "output", RelativeError(0.01, "rademacher")),
        ("ddim", 10, "output", RelativeError(0.01, "rademacher")),
        ("ddim", 10, "output", RelativeError(0.01, "constant")),
        ("ddpm", 20, "output", RelativeError(0.01, "uniform")),
        ("heun", 10, "output", RoundingError("bf16")),
        ("dpm", 20, "output", RoundingError("e4m3")),
        ("ddim", 500, "output", RoundingError("bf16")),
        ("ddim", 40, "output", RoundingError("bf16", "toward_zero")),
        ("ddpm", 10, "state", RoundingError("bf16")),
        ("ddim", 20, "arithmetic", "bf16"),
        ("ddim", 50, "timestep", "bf16"),
    ],
)
def test_few_elements_exceed_the_probable_bound(solver: str, steps: int, role: str, error: Any) -> None:
    plan = SOLVERS[solver](COSINE.take([500]) if steps == 1 else COSINE.respace(steps), param=FLOW)
    count = COUNT if steps < 100 else 4000
    x = noise(plan, count)
    errors = {f"{role}_error": own(error)} if isinstance(error, ErrorModel) else {role: error}
    if role == "timestep":
        errors = {"timestep_error": RoundingError(error)}
    table = COSINE if role == "timestep" else None
    moved = (run(plan, x, 0.5, table=table, **errors) - run(plan, x, 0.5)).abs()
    options = only(**{role: error}, training=table)
    bounds = []
    for confidence in (0.0, 0.5, 0.9, 0.99, 0.999):
        budget = predict_error(plan, 0.5, **options, confidence=confidence)
        share = (moved > budget.bound).double().mean().item()
        # A share p of N samples has the standard error sqrt(p (1 - p) / N).
        assert share <= 1 - confidence + 5 * math.sqrt(confidence * (1 - confidence) / count), confidence
        assert budget.confidence == confidence
        bounds.append(budget.bound)
    assert bounds == sorted(bounds)
    assert bounds[-1] < 100 * rms(moved)  # and it is not so large that it says nothing


def test_a_bound_for_elements_of_rms_size_would_be_exceeded() -> None:
    """Negative control: Azuma's sqrt(2 log(2 / p)) leaves out that some elements are larger than the rms."""
    plan, error = plan_ddim(TEN, param=FLOW), RelativeError(0.01, "rademacher")
    x = noise(plan, COUNT)
    moved = (run(plan, x, 0.5, output_error=own(error)) - run(plan, x, 0.5)).abs()
    root = math.sqrt((predict_error(plan, 0.5, **only(output=error)).sources["output"].bounds ** 2).sum())
    share = (moved > math.sqrt(2 * math.log(2 / 0.001)) * root).double().mean().item()
    assert share > 0.001 + 5 * math.sqrt(0.001 / COUNT)


# -- arithmetic and coefficients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("param", ["v", "epsilon", "flow", "sample"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_rounded_coefficients_do_what_is_predicted(solver: str, param: str) -> None:
    """Known numbers: every sample suffers the same. A few per cent of second order, 2^-9 times gains of tens, in bf16."""
    plan = SOLVERS[solver](GRID, param=PARAMS[param])
    for fmt, second_order in (("bf16", 0.03), ("fp16", 0.005)):
        source = predict_error(plan, 2.0, **only(arithmetic=fmt)).sources["coefficients"]
        seen = measured(plan, 2.0, COUNT, coefficient_error=RoundingError(fmt))
        assert source.predicted / seen == pytest.approx(1, abs=5 / math.sqrt(2 * COUNT) + second_order)


def test_the_same_coefficient_errs_in_the_same_way_at_every_step() -> None:
    """Equal steps of v have equal coefficients: their errors add up, 7 times what 50 errors of either sign would make."""
    source = predict_error(plan_ddim(COSINE.respace(50), param=V), 0.5, **only(arithmetic="bf16")).sources["coefficients"]
    assert source.predicted > 4 * source.independent
    assert source.predicted <= source.worst


@pytest.mark.parametrize("param", ["v", "epsilon", "flow", "sample"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_bf16_arithmetic_costs_what_is_predicted(solver: str, param: str) -> None:
    """Coefficients, products and sums, the memory's too. Short runs: a stored state has few bits, and its product with a
    coefficient near 1 is not rounded at random, so a fifth is all that is promised, and less for an ancestral first step.
    """
    plan = SOLVERS[solver](TEN, param=PARAMS[param])
    budget = predict_error(plan, 2.0, **only(arithmetic="bf16"))
    ratio = budget.rms / measured(plan, 2.0, 4000, arithmetic="bf16")
    assert 1 / 1.25 < ratio < 1.65 if solver in ("ddpm", "upper", "eta") else 1 / 1.25 < ratio < 1.25
    assert budget.sources.keys() == {"arithmetic", "coefficients"}


@pytest.mark.parametrize("param", ["v", "epsilon", "flow", "sample"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_increments_in_bf16_cost_what_is_predicted(solver: str, param: str) -> None:
    """Most of it is the rounding of the state, which a step moves by few units in its last place: to a quarter, as above.

    Of epsilon's first step two products of thousands cancel; one in a million rounds the other way, a large part of the
    expected square and of no 4000 samples.
    """
    plan = SOLVERS[solver](TEN, param=PARAMS[param])
    budget = predict_error(plan, 2.0, **only(arithmetic="bf16"), increments=True)
    ratio = budget.rms / measured(plan, 2.0, 4000, arithmetic="bf16", increments=True)
    assert 1 / 1.25 < ratio < (2.2 if param == "epsilon" else 1.65 if solver in ("ddpm", "upper", "eta") else 1.4)


def test_increments_save_v_what_its_cosine_loses() -> None:
    """Of 20 steps: an error several times smaller, which is that of storing the state in bf16 at all.

    0.99609 x, rounded, is a whole unit in the last place below x wherever it should be between a half and one: the plain form
    is worse than if its roundings were random.
    """
    plan = plan_ddim(GRID, param=V)
    plain, increments, stored = (
        measured(plan, 0.5, **errors)
        for errors in (
            {"arithmetic": "bf16"},
            {"arithmetic": "bf16", "increments": True},
            {"state_error": BF16},
        )
    )
    assert plain > 2.5 * increments
    assert increments / stored == pytest.approx(1, abs=0.1)
    predicted = predict_error(plan, 0.5, **only(arithmetic="bf16"), increments=True).rms
    assert predicted == pytest.approx(increments, rel=0.35)


def test_what_is_rounded_on_its_way_into_a_memory_is_in_the_sum() -> None:
    """A run of two calls whose result is the memory: two products and a sum, with coefficients that bf16 has.

    The sum of two numbers of few bits is sometimes exact: some per cent.
    """
    plan = plan_dpm_solver(COSINE.take([300, 600]), param=V)
    columns = {
        "gain_x": [1.0, 0.0], "gain_u": [0.0, 0.0], "gain_m": [0.0, 1.0], "memory_x": [0.6875, 0.0], "memory_u": [-0.3125, 0.0],
    }  # fmt: skip
    kept = dataclasses.replace(plan, **{name: np.array(column) for name, column in columns.items()})
    assert gaussian_sensitivity(kept, 2.0).output_per_input[0] < 0  # the two products add up
    budget = predict_error(kept, 2.0, **only(arithmetic="bf16"))
    assert budget.rms / measured(kept, 2.0, COUNT, arithmetic="bf16") == pytest.approx(1, abs=INDEPENDENT + 0.04)
    assert budget.sources["coefficients"].predicted == 0.0


def test_products_that_cancel_are_rounded_alike() -> None:
    """Epsilon's first step at high noise is a x - b u with a x = b u to four digits, each a thousand times the state.

    Their roundings cancel as they do. In quadrature they would be predicted three times as large as all that happens.
    """
    plan = plan_ddim(GRID, param=EPSILON)
    budget = predict_error(plan, 0.5, **only(arithmetic="bf16"))
    seen = measured(plan, 0.5, 4000, arithmetic="bf16")
    assert budget.rms / seen == pytest.approx(1, abs=0.1)
    apart = abs(plan.gain_x[0]) * BF16.rms * math.sqrt(2) * abs(gaussian_sensitivity(plan, 0.5).state_gain[0])
    assert apart > 2 * seen


def test_a_power_of_two_times_a_stored_number_is_exact() -> None:
    """Heun adds its memory as it is: no rounding for that product, and one for each of the others."""
    plan = plan_heun(TEN, param=V)
    source = predict_error(plan, 0.5, **only(arithmetic="bf16")).sources["arithmetic"]
    doubled = dataclasses.replace(
        plan, gain_m=2 * plan.gain_m, memory_u=plan.memory_u / 2, memory_x=plan.memory_x / 2
    )  # the same run
    same = predict_error(doubled, 0.5, **only(arithmetic="bf16")).sources["arithmetic"]
    np.testing.assert_allclose(same.final, source.final, rtol=1e-12)
    tripled = dataclasses.replace(plan, gain_m=3 * plan.gain_m, memory_u=plan.memory_u / 3, memory_x=plan.memory_x / 3)
    more = predict_error(tripled, 0.5, **only(arithmetic="bf16")).sources["arithmetic"]
    assert (more.step_rms[1::2] > 1.05 * source.step_rms[1::2]).all()


# -- the state --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [BF16, RoundingError("fp16"), RoundingError("bf16", "stochastic"), CompensatedRounding("bf16")],
    ids=["bf16", "fp16", "stochastic", "compensated"],
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_stored_state_costs_what_is_predicted(solver: str, error: ErrorModel) -> None:
    """Ten steps move the state by many units in the last place; 15 % for what few bits still know of each other."""
    plan = SOLVERS[solver](TEN, param=V)
    for sigma_data in (0.5, 2.0):
        budget = predict_error(plan, sigma_data, **only(state=error))
        ratio = budget.rms / measured(plan, sigma_data, COUNT // 2, state_error=own(error))
        assert ratio == pytest.approx(1, abs=0.15), sigma_data
        assert budget.sources.keys() == {"state"}


def test_many_steps_need_a_state_that_does_not_stagnate() -> None:
    """250 steps: round-to-nearest loses updates, which is flagged and not predicted; the two remedies are."""
    plan = plan_ddim(COSINE.respace(250), param=V)
    for error, good in ((BF16, False), (RoundingError("bf16", "stochastic"), True), (CompensatedRounding("bf16"), True)):
        budget = predict_error(plan, 0.5, **only(state=error))
        ratio = budget.rms / measured(plan, 0.5, 4000, state_error=own(error))
        assert ("stagnation" not in kinds(budget)) == good
        assert (0.9 < ratio < 1.1) if good else (ratio < 0.4)
    assert predict_error(plan, 0.5, **only(state=BF16)).useful_steps < 10 * 250


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_state_that_is_chopped_shrinks_as_predicted(solver: str) -> None:
    plan, error = SOLVERS[solver](TEN, param=V), RoundingError("bf16", "toward_zero")
    budget = predict_error(plan, 2.0, **only(state=error))
    assert budget.rms / measured(plan, 2.0, 4000, state_error=error) == pytest.approx(1, abs=0.25)


def test_a_sum_in_the_states_format_is_not_rounded_again() -> None:
    plan = plan_ddim(GRID, param=V)
    once = predict_error(plan, 0.5, **only(arithmetic="bf16", state="bf16"))
    assert once.sources.keys() == {"arithmetic", "coefficients"}
    assert predict_error(plan, 0.5, **only(arithmetic="bf16")).rms == once.rms
    other = predict_error(plan, 0.5, **only(arithmetic="bf16", state=RoundingError("bf16", "stochastic")))
    assert "state" in other.sources
    assert predict_error(plan, 0.5, **only(arithmetic="fp32", state="bf16")).sources.keys() >= {"state"}


# -- the timestep -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [50, 250])
def test_a_network_that_is_told_a_rounded_time_answers_as_predicted(solver: str, steps: int) -> None:
    """bf16 timesteps of the cosine schedule: known errors. Second order is what 2 steps of 1000 change, 1 %."""
    plan = SOLVERS[solver](COSINE.respace(steps), param=FLOW)
    budget = predict_error(plan, 0.5, **only(timestep="bf16"), training=COSINE)
    seen = measured(plan, 0.5, 2000, table=COSINE, timestep_error=BF16)
    assert budget.rms / seen == pytest.approx(1, abs=5 / math.sqrt(2 * 2000) + 0.02)
    exact = predict_error(plan, 0.5, **only(timestep="float32"), training=COSINE)
    assert exact.rms == 0.0  # integers up to 2^24


def test_the_training_schedule_says_what_an_off_grid_time_means() -> None:
    """Between two timesteps of a coarse plan the plan's own angles are a guess; the training's are the answer."""
    linear = Schedule.linear()
    plan = plan_ddim(linear.take([0, 301, 999]), param=FLOW)
    seen = measured(plan, 0.5, 4000, table=linear, timestep_error=BF16)
    right = predict_error(plan, 0.5, **only(timestep="bf16"), training=linear)
    guess = predict_error(plan, 0.5, **only(timestep="bf16"))
    assert right.rms / seen == pytest.approx(1, abs=0.06)
    assert abs(guess.rms / seen - 1) > 0.065


def test_of_other_data_the_timestep_is_not_predicted_but_flagged() -> None:
    plan = plan_ddim(GRID, param=V)
    moments = predict_error(plan, OutputMoments(1.0, 0.0, 0.5), **only(timestep="bf16"))
    assert moments.sources == {}
    assert "off_grid" in kinds(moments)
    for number in (np.float32(0.5), np.float64(0.5), 1, np.int64(1)):
        assert "timestep" in predict_error(plan, number, **only(timestep="bf16")).sources


# -- guidance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("omega", [0.0, 1.0, 3.0, 7.5, -1.0])
@pytest.mark.parametrize(("law", "gain"), [("rademacher", guidance_error_gain), ("constant", lambda omega: 1.0)])
def test_the_branches_of_guidance_err_on_their_own(omega: float, law: str, gain) -> None:
    """Two evaluations of one network, each with its error. A factor on both is a factor on their combination."""
    plan, error = plan_ddim(GRID, param=FLOW), RelativeError(1e-5, law)  # type: ignore[arg-type]
    model, spoiled = network(plan, 0.5), own(error)

    def guided(x: Tensor, t: Tensor) -> Tensor:
        u = model(x, t)
        return guide(spoiled.apply(u), spoiled.apply(u), omega)

    x = noise(plan, COUNT)
    seen = rms(sample(guided, x, plan) - sample(model, x, plan))
    budget = predict_error(plan, 0.5, **only(output=error), guidance=omega)
    assert budget.rms / seen == pytest.approx(1, abs=INDEPENDENT + 0.01)
    alone = predict_error(plan, 0.5, **only(output=error))
    assert budget.rms == pytest.approx(gain(omega) * alone.rms, rel=1e-12)
    assert budget.independent == pytest.approx(gain(omega) * alone.independent, rel=1e-12)
    assert budget.worst == pytest.approx((abs(omega) + abs(omega - 1)) * alone.worst, rel=1e-12)


# -- all at once ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_all_sources_together_are_what_is_measured(solver: str) -> None:
    """Default formats but a bf16 output; then fp16 everywhere."""
    plan = SOLVERS[solver](TEN, param=FLOW)
    budget = predict_error(plan, 0.5)
    seen = measured(plan, 0.5, 4000, output_error=BF16, arithmetic="float32")
    assert budget.rms / seen == pytest.approx(1, abs=0.15)
    assert budget.dominant == "output"
    assert budget.sources["arithmetic"].predicted < 1e-3 * budget.rms or solver == "heun"
    fp16 = RoundingError("fp16")
    budget = predict_error(plan, 0.5, output="fp16", arithmetic="fp16", state="fp16", timestep="fp16")
    seen = measured(plan, 0.5, 4000, output_error=fp16, arithmetic="fp16", state_error=fp16)
    assert budget.rms / seen == pytest.approx(1, abs=0.5)
    assert budget.sources.keys() == {"output", "arithmetic", "coefficients", "timestep"}


def test_a_budget_is_the_sum_of_its_sources() -> None:
    plan = plan_ddpm(GRID, param=V)
    budget = predict_error(plan, 0.5, output="e4m3", arithmetic="bf16", state="fp16", timestep="bf16", guidance=3.0)
    sources = budget.sources.values()
    assert {s.name for s in sources} == set(budget.sources) == {"output", "arithmetic", "coefficients", "state", "timestep"}
    assert budget.rms == pytest.approx(math.sqrt(sum(s.predicted**2 for s in sources)))
    assert budget.independent == pytest.approx(math.sqrt(sum((s.final**2).sum() for s in sources)))
    assert budget.correlated == pytest.approx(sum(s.final.sum() for s in sources))
    assert budget.worst == pytest.approx(sum(s.bounds.sum() for s in sources))
    assert budget.independent <= budget.correlated <= budget.worst
    assert budget.relative == budget.rms / budget.final_rms
    assert budget.final_rms == math.sqrt(gaussian_sensitivity(plan, 0.5).final_sq)
    assert budget.dominant == max(budget.sources, key=lambda n: budget.sources[n].predicted)
    assert budget.plan is plan
    for source in sources:
        assert source.step_rms.shape == source.final.shape == source.bounds.shape == (len(plan),)
    assert f"mostly {budget.dominant}" in repr(budget)
    nothing = predict_error(plan, 0.5, **only())
    assert (nothing.rms, nothing.worst, nothing.bound, nothing.dominant, nothing.flags) == (0.0, 0.0, 0.0, "none", ())
    assert nothing.useful_steps == math.inf


def test_an_error_of_a_step_is_that_of_a_step() -> None:
    """``step_rms`` is what one call alone puts into the state."""
    plan = plan_ddim(GRID, param=FLOW)
    source = predict_error(plan, 0.5, **only(output=RelativeError(1e-3, "rademacher"))).sources["output"]
    sizes = gaussian_sensitivity(plan, 0.5)
    np.testing.assert_allclose(source.step_rms, 1e-3 * np.abs(plan.gain_u) * np.sqrt(sizes.output_sq), rtol=1e-12)
    np.testing.assert_allclose(source.final, source.step_rms * np.abs(sizes.state_gain), rtol=1e-12)


def test_tracing_and_moments_give_the_same_budget_on_gaussian_data() -> None:
    plan = plan_dpm_solver(GRID, param=FLOW)
    closed = predict_error(plan, 0.5, **only(output=RelativeError(1e-3, "uniform"), arithmetic="bf16", state="fp16"))
    draws = torch.Generator().manual_seed(3)
    traced = trace_sensitivity(network(plan, 0.5), plan, noise(plan, 2000), generator=draws)
    by_trace = predict_error(plan, traced, **only(output=RelativeError(1e-3, "uniform"), arithmetic="bf16", state="fp16"))
    moments = moments_sensitivity(plan, OutputMoments.gaussian(plan.phi_t, sigma_data=0.5))
    by_moments = predict_error(plan, moments, **only(output=RelativeError(1e-3, "uniform"), arithmetic="bf16", state="fp16"))
    assert by_moments.rms == pytest.approx(closed.rms, rel=1e-6)
    for name in ("output", "state"):
        # 2000 samples of zeta^2 u^2: sqrt(8 / N) / 2 = 3 %, five of them.
        assert by_trace.sources[name].predicted == pytest.approx(closed.sources[name].predicted, rel=0.16)
    assert by_trace.final_rms == pytest.approx(closed.final_rms, rel=5 / math.sqrt(4000))


def test_a_traced_mixture_is_predicted() -> None:
    """A network that is not linear: gains from one reverse pass, sizes from the run itself."""
    data = GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), torch.tensor([0.5, 0.7], dtype=torch.float64))
    for solver in ("ddim", "dpm", "heun", "ddpm"):
        plan = SOLVERS[solver](TEN, param=V)
        model, x = data.model(TEN, V), noise(plan, 4000)
        sizes = trace_sensitivity(model, plan, x, generator=torch.Generator().manual_seed(3))
        error = RelativeError(1e-4, "uniform")
        budget = predict_error(plan, sizes, **only(output=error))
        exact, moved = (
            sample(model, x, plan, generator=torch.Generator().manual_seed(11), output_error=e) for e in (None, own(error))
        )
        assert budget.rms / rms(moved - exact) == pytest.approx(1, abs=0.15)  # twice 4000 samples with tails


@pytest.mark.parametrize("param", ["v", "flow"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_tracing_knows_what_rounded_coefficients_do(solver: str, param: str) -> None:
    """The oracle of Gaussian data, traced as if it were any network: the closed form, to the error of 4000 squares."""
    plan = SOLVERS[solver](TEN, param=PARAMS[param])
    model = network(plan, 2.0)
    traced = trace_sensitivity(model, plan, noise(plan, 4000), generator=torch.Generator().manual_seed(3))
    found, exact = (predict_error(plan, data, **only(arithmetic="bf16")).sources["coefficients"] for data in (traced, 2.0))
    # (zeta J z)^2 of two normal numbers: relative variance 8.
    assert found.predicted / exact.predicted == pytest.approx(1, abs=5 * math.sqrt(8 / 4000) / 2)
    np.testing.assert_allclose(found.final, exact.final, rtol=5 * math.sqrt(8 / 4000) / 2, atol=1e-12)


def test_coefficients_of_a_trained_like_network_add_with_their_signs() -> None:
    """Fifty equal steps of v on a mixture: its cosine is 1 in bf16 at each; as independent errors they would be far less."""
    data = GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), torch.tensor([0.5, 0.7], dtype=torch.float64))
    grid = COSINE.respace(50)
    plan = plan_ddim(grid, param=V)
    model, x = data.model(grid, V), noise(plan, 2000)
    traced = trace_sensitivity(model, plan, x, generator=torch.Generator().manual_seed(3), probes=2)
    source = predict_error(plan, traced, **only(arithmetic="bf16")).sources["coefficients"]
    seen = rms(sample(model, x, plan, coefficient_error=BF16) - sample(model, x, plan))
    assert source.predicted / seen == pytest.approx(1, abs=0.15)  # 4000 squares with tails, second order
    assert source.independent < seen / 3  # the control


@pytest.mark.parametrize("param", ["v", "epsilon"])
def test_emulated_arithmetic_and_states_meet_the_measurement(param: str) -> None:
    """Steps so short that roundings repeat each other: independent ones, the control, would do half as much or less.

    Emulation rounds a run that has not drifted, to first order: errors are up to a tenth of the sample here, so a fifth is all
    that is promised.
    """
    grid = COSINE.up_to(900).respace(100)
    plan = plan_ddim(grid, param=PARAMS[param])
    data = GaussianMixture(torch.tensor([[-0.5], [0.5]], dtype=torch.float64), torch.tensor([0.6, 0.8], dtype=torch.float64))
    model, x = data.model(grid, PARAMS[param]), noise(plan, 2000)
    traced, plain = (
        trace_sensitivity(model, plan, x, generator=torch.Generator().manual_seed(3), **options)
        for options in ({"emulate_arithmetic": "bf16", "emulate_state": BF16}, {})
    )
    exact = sample(model, x, plan)
    kinds = {
        "state": ({"state": BF16}, {"state_error": BF16}),
        "arithmetic": ({"arithmetic": "bf16", "state": BF16}, {"arithmetic": "bf16", "state_error": BF16}),
        "increments": ({"arithmetic": "bf16", "increments": True}, {"arithmetic": "bf16", "increments": True}),
    }
    for name, (sources, errors) in kinds.items():
        seen = rms(sample(model, x, plan, **errors) - exact)
        budget, law = (predict_error(plan, data, **only(**sources)) for data in (traced, plain))
        assert budget.rms / seen == pytest.approx(1, abs=0.2), name
        assert law.rms / seen < 0.7, name  # the control


def test_an_emulation_serves_its_own_format_alone() -> None:
    plan = plan_ddim(TEN, param=V)
    traced = trace_sensitivity(network(plan, 0.5), plan, noise(plan, 50), emulate_arithmetic="bf16", emulate_state=BF16)
    plain = dataclasses.replace(traced, emulated={})
    for sources in ({"arithmetic": "fp16"}, {"state": RoundingError("fp16")}, {"state": RoundingError("bf16", "stochastic")}):
        assert predict_error(plan, traced, **only(**sources)).rms == predict_error(plan, plain, **only(**sources)).rms
    assert predict_error(plan, traced, **only(state=BF16)).rms == traced.emulated["state"].total


def test_known_errors_of_a_run_that_is_neither_linear_nor_traced_are_added_in_quadrature() -> None:
    plan = plan_ddim(GRID, param=FLOW)
    linear = gaussian_sensitivity(plan, 0.5)
    opaque = dataclasses.replace(linear, output_per_input=None)
    change = StepCoefficients(1e-3 * plan.gain_u, 0.0)
    step, final, total = known_error(plan, opaque, change)
    np.testing.assert_allclose(final, known_error(plan, linear, change)[1], rtol=1e-9)
    assert total == pytest.approx(math.sqrt((final**2).sum()))
    assert total < known_error(plan, linear, change)[2]
    assert (step > 0).all()


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_predicted_is_refused_by_name() -> None:
    plan = plan_ddim(GRID, param=V)
    with pytest.raises(NonFiniteError, match="data must be finite"):
        predict_error(plan, math.nan)
    with pytest.raises(ValueError, match="data must lie in"):
        predict_error(plan, -0.5)
    with pytest.raises(ValueError, match="increments must come with arithmetic"):
        predict_error(plan, 0.5, arithmetic=None, increments=True)
    with pytest.raises(TypeError, match="data must be a number"):
        predict_error(plan, "0.5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="plan must be a Plan, got Schedule"):
        predict_error(GRID, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="plan must have at least one network call"):
        predict_error(plan_ddim(GRID, param=V, final_phi=float(GRID.phi[-1])), 0.5)
    with pytest.raises(ValueError, match="data must have one entry per call \\(20\\), got 10"):
        predict_error(plan, gaussian_sensitivity(plan_ddim(TEN, param=V)))
    for option in ("output", "state"):
        with pytest.raises(TypeError, match=f"{option} must be a format, an error model or None, got float"):
            predict_error(plan, 0.5, **{option: 0.01})
        with pytest.raises(UnknownName, match="format"):
            predict_error(plan, 0.5, **{option: "bf17"})
    for option in ("arithmetic", "timestep"):
        with pytest.raises(UnknownName, match="format"):
            predict_error(plan, 0.5, **{option: "bf17"})
    with pytest.raises(NonFiniteError, match="guidance must be finite"):
        predict_error(plan, 0.5, output=None, guidance=math.nan)
    with pytest.raises(ValueError, match="confidence must be below 1"):
        predict_error(plan, 0.5, confidence=1.0)
    with pytest.raises(ValueError, match="confidence must lie in"):
        predict_error(plan, 0.5, confidence=1.5)
    with pytest.raises(ValueError, match="tolerance must lie in"):
        predict_error(plan, 0.5, tolerance=0.0)


def test_numbers_that_a_format_does_not_have_are_refused() -> None:
    """In place of a NaN that would leave quietly."""
    plan = plan_ddim(GRID, param=V)
    with pytest.raises(NonFiniteError, match=r"timestep must be a format that holds 999, got float8_e4m3, .* value is 448"):
        predict_error(plan, 0.5, timestep="e4m3")
    assert predict_error(plan, 0.5, timestep="e5m2").rms > 0
    far = plan_ddim(Schedule.from_angles(GRID.phi, timesteps=1e5 * (1 + torch.arange(20.0))), param=V)
    with pytest.raises(NonFiniteError, match="timestep must be a format that holds"):
        predict_error(far, 0.5, timestep="fp16")
    with pytest.raises(NonFiniteError, match=r"arithmetic must be a format that holds .*, got float8_e4m3"):
        predict_error(plan_ddim(GRID, param=EPSILON), 0.5, arithmetic="e4m3")  # 1 / cos(phi) is 20,000


def test_a_final_sample_that_is_nothing_has_no_relative_error() -> None:
    """A point mass at zero, found exactly: an error of it is infinitely large, none is none."""
    plan = plan_ddim(GRID, param=PARAMS["sample"])
    assert predict_error(plan, 0.0, **only()).relative == 0.0
    zero = dataclasses.replace(gaussian_sensitivity(plan, 0.5), final_sq=0.0)
    budget = predict_error(plan, zero, **only(output="bf16"))
    assert budget.relative == math.inf
    assert "large" in kinds(budget)


def numbers(budget: ErrorBudget) -> dict[str, float]:
    """Every number of a budget."""
    out = {n: getattr(budget, n) for n in ("rms", "independent", "correlated", "final_rms", "relative")}
    for name, source in budget.sources.items():
        out |= {f"{name} {k}": float(np.sum(getattr(source, k))) for k in ("step_rms", "final", "predicted")}
    return out


formats = st.sampled_from([None, *FORMATS])
models = st.one_of(
    formats,
    st.builds(RelativeError, st.floats(0.0, 1.0), st.sampled_from(["constant", "uniform", "gaussian", "rademacher"])),
    st.builds(AdditiveError, st.floats(0.0, 10.0)),
    st.builds(RoundingError, st.sampled_from(sorted(FORMATS)), st.sampled_from(["nearest", "toward_zero", "stochastic"])),
    st.builds(CompensatedRounding, st.sampled_from(sorted(FORMATS))),
)


def rounded(value: float, fmt: str) -> Tensor:
    return round_to(torch.tensor(value, dtype=torch.float64), fmt)


@settings(max_examples=100)
@given(
    param=params(),
    schedule=schedules(),
    solver=st.sampled_from(sorted(SOLVERS)),
    sigma_data=st.one_of(st.just(0.0), st.floats(1e-3, 1e3)),
    output=models,
    state=models,
    arithmetic=formats,
    timestep=formats,
    guidance=st.floats(-20.0, 20.0),
    confidence=st.floats(0.0, 0.999999),
)
def test_no_nan_and_no_infinity_leaves_without_an_error_or_a_flag(
    param, schedule, solver, sigma_data, output, state, arithmetic, timestep, guidance, confidence
) -> None:
    assume(solver != "heun" or schedule.phi[-1] < math.pi / 2)
    assume(is_regular(param, *schedule.phi[schedule.phi > 0].tolist(), floor=1e-12))
    plan = SOLVERS[solver](schedule, param=param)
    options = {"output": output, "state": state, "arithmetic": arithmetic, "timestep": timestep}
    largest = {
        "timestep": np.abs(plan.timestep).max(),
        "arithmetic": max(
            np.abs(getattr(plan, n)).max() for n in ("gain_u", "gain_x", "gain_m", "memory_u", "memory_x", "noise")
        ),
    }
    too_large = [n for n, size in largest.items() if options[n] and not torch.isfinite(rounded(size, options[n]))]
    if too_large:
        with pytest.raises(NonFiniteError, match=f"({'|'.join(too_large)}) must be a format that holds"):
            predict_error(plan, sigma_data, **options)
        return
    budget = predict_error(plan, sigma_data, **options, guidance=guidance, confidence=confidence)
    for name, value in numbers(budget).items():
        assert not math.isnan(value), name
        assert math.isfinite(value) or "large" in kinds(budget), name
        assert value >= 0, name
    assert not math.isnan(budget.worst)
    assert not math.isnan(budget.bound)
    unbounded = any(isinstance(e, (RelativeError, AdditiveError)) for e in (output, state))
    assert math.isfinite(budget.worst) or unbounded or "large" in kinds(budget)
    assert budget.useful_steps >= 0
