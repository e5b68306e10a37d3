"""The report: what it adds up, when it says safe, and that its advice does what it says."""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections import Counter
from dataclasses import FrozenInstanceError, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strategies as shared
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
    GaussianMixture,
    OutputMoments,
    RelativeError,
    RoundingError,
    Schedule,
    UnknownName,
    V,
    largest_safe_timestep,
    plan_ddim,
    sample,
)
from diffparam.prediction.flags import Flag
from diffparam.prediction.sensitivity import gaussian_output_per_input
from diffparam.report import BadInput, Report, plot_report, report
from diffparam.report.advice import Advice
from diffparam.report.assess import SOURCES, assess, outspoken
from diffparam.report.document import report_run
from diffparam.report.run import Run
from diffparam.report.scheduler import read_scheduler
from diffparam.report.scheduler_options import DEFAULTS, checked_options

COSINE = Schedule.cosine()
SCALED = Schedule.scaled_linear()


def row_of(found: Report, name: str) -> Any:
    return next(row for row in found.rows if row.param.startswith(name))


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_kappa_is_that_of_the_table_of_parameterizations() -> None:
    found = report(SCALED, "v", steps=40, sigma_data=0.5)
    phi = found.run.grid.phi
    assert row_of(found, "epsilon").kappa_max == pytest.approx(float(1 / phi.cos().min()), rel=1e-12)
    assert row_of(found, "sample").kappa_max == pytest.approx(float(1 / phi.sin().min()), rel=1e-12)
    assert row_of(found, "v_prediction").kappa_max == 1.0
    assert 1.0 < row_of(found, "flow").kappa_max <= math.sqrt(2)
    assert row_of(found, "epsilon").kappa_timestep == 999
    assert row_of(found, "sample").kappa_timestep == 0
    for row, param in zip(found.rows, (EPSILON, X0, V, FLOW, AngularParam.optimal(0.5)), strict=True):
        assert row.param == param.name
        assert row.largest_safe_timestep == largest_safe_timestep(SCALED, param=param, delta="rms", sigma_data=0.5)


@given(shared.params(), shared.inner_phis(), shared.sigma_datas)
def test_the_loudest_output_is_the_target_itself(param: AngularParam, phi: float, sigma_data: float) -> None:
    """Gaussian output plus what the report adds has the energy of u = a x + b eps, which is (a sigma_d)^2 + b^2."""
    if not shared.is_regular(param, phi, floor=1e-3):
        return
    plan = plan_ddim(Schedule.from_angles([phi]), param=param, final_phi=0.5 * phi)
    x_sq = OutputMoments.gaussian(phi, sigma_data=sigma_data).x_sq
    quiet = gaussian_output_per_input(plan, plan.phi_t, sigma_data) ** 2 * x_sq
    # The run starts from noise of unit variance, at which the Gaussian part is K^2.
    added = outspoken(plan, sigma_data).output_sq - gaussian_output_per_input(plan, plan.phi_t, sigma_data) ** 2
    a, b = param.coefficients(phi)
    largest = (a * sigma_data) ** 2 + b**2
    assert float((quiet + added)[0]) == pytest.approx(largest, rel=1e-9, abs=1e-9 * (a**2 + b**2) * max(1, sigma_data**2))


DATA = {
    "gaussian": GaussianMixture.gaussian(1.0, 8),
    "heavy tails": GaussianMixture(torch.zeros(2, 8).double(), torch.tensor([0.3, math.sqrt(2 - 0.3**2)]).double()),
    "two points": GaussianMixture(
        torch.stack([torch.ones(8), -torch.ones(8)]).double() * 0.95, torch.full((2,), math.sqrt(1 - 0.95**2)).double()
    ),
}


@pytest.mark.parametrize("law", DATA)
@pytest.mark.parametrize("param", [V, FLOW, EPSILON], ids=lambda p: p.name)
def test_other_data_of_the_same_variance_err_about_as_predicted(param: AngularParam, law: str) -> None:
    """Runs with rounded outputs against exact ones. Gaussian data: at most the prediction, and for epsilon, whose output is
    large whatever the data, not less than a fraction of it. Rms over 8 x 2000 elements: a standard error below 2%. Between
    components lies a watershed, where errors grow: a few samples end at the other of two points, twice its distance from 0
    away, and are counted apart; the rest may err twice as much.
    """
    found = assess(Run(SCALED, SCALED.respace(25), param))
    model = DATA[law].model(SCALED, param)
    plan = plan_ddim(SCALED.respace(25), param=param)
    noise = torch.randn(2000, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    exact, rounded = sample(model, noise, plan), sample(model, noise, plan, output_error=RoundingError("bf16"))
    stayed = (rounded - exact).square().mean(1) < 1.0
    assert stayed.double().mean() > (0.99 if law == "two points" else 0.9999)
    measured = float(((rounded - exact)[stayed].square().mean() / exact.square().mean()).sqrt())
    assert measured < (1.1 if law == "gaussian" else 2.5) * found.sources["output"]
    if param is EPSILON and law == "gaussian":
        assert measured > 0.5 * found.sources["output"]


def test_the_error_is_its_sources_in_quadrature_and_the_dominating_one_is_named() -> None:
    found = report(SCALED, "epsilon", arithmetic="bf16", state="fp16", timestep="bf16")
    for row in found.rows:
        assert tuple(row.sources) == SOURCES
        assert row.error == pytest.approx(math.sqrt(sum(value**2 for value in row.sources.values())), rel=1e-12)
        assert row.sources[row.dominant] == max(row.sources.values())
        assert row.sources["output"] == pytest.approx(max(row.output_range), rel=1e-12)


def test_guidance_multiplies_the_output_alone() -> None:
    plain, guided = report(SCALED, "v"), report(SCALED, "v", guidance=7.5)
    assert guided.row.sources["output"] / plain.row.sources["output"] == pytest.approx(math.hypot(7.5, 6.5), rel=1e-9)
    assert guided.row.sources["arithmetic"] == plain.row.sources["arithmetic"]


def test_a_change_of_the_sample_is_what_the_report_advises() -> None:
    """In bf16 the cosine of v's step is 1: most of the error is the coefficients', and increments take it away."""
    coarse = {"arithmetic": "bf16", "state": "bf16", "tolerance": 0.015}
    plain, increments = report(SCALED, "v", **coarse), report(SCALED, "v", **coarse, increments=True)
    assert plain.row.dominant == "coefficients"
    assert increments.row.sources["coefficients"] < 0.1 * plain.row.sources["coefficients"]
    (advised,) = [one for one in plain.advice if one.change == {"increments": True}]
    assert advised.error == increments.row.error
    assert (plain.safe, advised.safe, increments.safe) == (False, True, True)
    assert not any("increments" in one.change for one in increments.advice)
    assert "arithmetic bfloat16, in increments" in " ".join(str(increments).split())


def test_what_is_exact_has_no_source() -> None:
    found = report(SCALED, "epsilon", output=None, arithmetic=None, state=None, timestep=None)
    assert found.row.sources == {}
    assert found.row.error == 0
    assert found.row.dominant == "none"
    assert found.safe
    assert set(found.run.formats().values()) == {"exact"}


@pytest.mark.parametrize(
    ("output", "words"),
    [(RelativeError(0.004, "gaussian"), "error of 0.004"), (AdditiveError(0.01), "error of 0.01"), ("e4m3", "float8_e4m3")],
)
def test_calibrated_errors_take_the_place_of_a_format(output: Any, words: str) -> None:
    found = report(SCALED, "v", output=output)
    assert found.run.formats()["output"] == words
    assert found.row.sources["output"] > report(SCALED, "v").row.sources["output"]


# -- safe -------------------------------------------------------------------------------------------------------------


UNSAFE_KINDS = ("unsafe", "collision", "stagnation", "overflow", "large")
UNSAFE_RUNS: dict[str, dict[str, Any]] = {
    "unsafe": {"schedule": COSINE, "param": "epsilon", "tolerance": 100.0},
    "large": {"schedule": COSINE, "param": "epsilon", "loss_tolerance": 1e9, "tolerance": 100.0},
    "collision": {"schedule": SCALED, "param": "v", "steps": 1000, "timestep": "bf16", "tolerance": 100.0},
    "stagnation": {"schedule": SCALED, "param": "v", "steps": 1000, "state": "bf16", "tolerance": 100.0},
    "overflow": {
        "schedule": Schedule.karras(20, sigma_max=1e6),
        "param": "v",
        "state": "fp16",
        "steps": 20,
        "tolerance": 100.0,
        "loss_tolerance": 1e9,
    },
}


@pytest.mark.parametrize("kind", UNSAFE_KINDS)
def test_each_kind_of_flag_is_enough_to_be_unsafe(kind: str) -> None:
    found = report(**UNSAFE_RUNS[kind])
    assert kind in {flag.kind for flag in found.row.flags}
    assert not found.safe
    assert any(line.startswith("UNSAFE: ") for line in str(found).splitlines())
    kept = tuple(flag for flag in found.row.flags if flag.kind != kind and flag.kind not in UNSAFE_KINDS)
    assert not replace(found.row, flags=kept).objections(100.0)  # control: it was the flag


@pytest.mark.parametrize("kind", ["off_grid", "correlation", "grid"])
def test_flags_that_inform_do_not_make_it_unsafe(kind: str) -> None:
    row = replace(report(SCALED, "v").row, flags=(Flag(kind, 1.0, "because"),))
    assert not row.objections(0.01)


def test_samples_that_move_are_not_said_to_stand_still() -> None:
    """Gaussian data of unit variance do not move at all under v, and every rounded state would lose their updates. Real ones
    move by sin(step) rms(v), in steps of pi/2/N: more than half a unit in the last place of bf16, at most 1/256, below N = 400.
    """
    kinds = [{flag.kind for flag in report(COSINE, "v", state="bf16", steps=steps).row.flags} for steps in (50, 200, 1000)]
    assert ["stagnation" in found for found in kinds] == [False, False, True]


def test_the_tolerance_is_where_it_says() -> None:
    found = report(SCALED, "epsilon")
    assert report(SCALED, "epsilon", tolerance=found.row.error * (1 + 1e-12)).safe
    assert not report(SCALED, "epsilon", tolerance=found.row.error * (1 - 1e-12)).safe


def test_a_singular_step_is_reported_with_its_timestep_and_not_raised() -> None:
    for schedule in (Schedule.rectified_flow(), SCALED.rescale_zero_terminal_snr()):
        found = report(schedule, "epsilon")
        last = schedule.timesteps[-1].item()
        assert not found.safe
        assert found.row.singular_timestep == last
        assert math.isinf(found.row.kappa_max)
        assert found.row.unsafe_timesteps == (last,)
        assert f"singular at timestep {last:g}" in found.objections[0]
        assert f"singular at {last:g}" in str(found)
        assert found.row.largest_safe_timestep < last
        assert any("start" in advice.change and advice.safe for advice in found.advice)
        assert row_of(found, "v_prediction").singular_timestep is None


def test_where_all_but_one_step_is_safe_that_one_is_listed() -> None:
    found = report(COSINE, "epsilon")
    assert found.row.unsafe_timesteps == (999.0,)
    assert found.row.largest_safe_timestep == 988
    assert report(COSINE, "sample").row.unsafe_timesteps == (0.0,)
    assert report(COSINE, "v").row.unsafe_timesteps == ()


FORMATS = st.sampled_from(["float32", "bfloat16", "float16", "float8_e4m3", None])


@given(
    st.sampled_from([COSINE, SCALED, Schedule.rectified_flow(100), Schedule.karras(30)]),
    st.sampled_from(["epsilon", "sample", "v", "flow", "optimal", "edm", "-flow", "score"]),
    st.integers(2, 30),
    st.sampled_from(["ddim", "ddpm", "dpm_solver"]),
    st.tuples(FORMATS, FORMATS, FORMATS, FORMATS),
    st.floats(0.1, 3.0),
    st.floats(-3.0, 10.0),
    st.floats(1e-4, 1.0),
)
@settings(max_examples=30)
def test_safe_is_what_is_written(schedule, name, steps, solver, formats, sigma_data, guidance, tolerance) -> None:
    """No singular step, no flag of the five kinds, an error within the tolerance; and nothing else decides."""
    output, arithmetic, state, timestep = formats
    found = report(
        schedule,
        name,
        steps=steps,
        solver=solver,
        sigma_data=sigma_data,
        guidance=guidance,
        tolerance=tolerance,
        output=output,
        arithmetic=arithmetic,
        state=state,
        timestep=timestep,
    )
    kinds = {flag.kind for flag in found.row.flags}
    regular = found.row.singular_timestep is None
    assert found.safe == (regular and not kinds & set(UNSAFE_KINDS) and found.row.error <= tolerance)
    assert found.safe != bool(found.objections)
    assert not any(math.isnan(value) for row in found.rows for value in (row.error, row.kappa_max, *row.sources.values()))
    told = found.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert str(found)
    assert found._repr_html_()


# -- which one is configured ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("param", [EPSILON, X0, V, FLOW, -FLOW, AngularParam.optimal(0.5), AngularParam.edm(0.5)])
def test_the_configured_parameterization_is_one_of_five_up_to_its_sign(param: AngularParam) -> None:
    found = report(SCALED, param, sigma_data=0.5)
    assert len(found.rows) == 5
    assert found.row.param == param.name
    assert sum(line.startswith(">") for line in str(found).splitlines()) == 1


def test_any_other_comes_first() -> None:
    for param in (SCORE, AngularParam.from_coefficients(0.6, 0.8, name="mine"), AngularParam.edm(0.3)):
        found = report(SCALED, param)
        assert len(found.rows) == 6
        assert found.configured == 0
        assert found.row.param == param.name


def test_the_sign_changes_nothing() -> None:
    one, other = report(SCALED, FLOW), report(SCALED, -FLOW)
    assert one.row.sources == pytest.approx(other.row.sources, rel=1e-9)


# -- advice -----------------------------------------------------------------------------------------------------------


ADVISED: list[dict[str, Any]] = [
    {"schedule": COSINE, "param": "epsilon"},
    {"schedule": COSINE, "param": "epsilon", "state": "bf16", "steps": 1000},
    {"schedule": SCALED, "param": "v", "state": "bf16", "arithmetic": "bf16", "timestep": "bf16", "guidance": 7.5},
    {"schedule": SCALED, "param": "v", "timestep": "e4m3"},
    {"schedule": Schedule.rectified_flow(), "param": "epsilon", "state": "fp16"},
    {"schedule": Schedule.karras(), "param": "sample", "steps": 18, "output": "e4m3"},
]


@pytest.mark.parametrize("options", ADVISED, ids=lambda o: f"{o['schedule'].name}-{o['param']}")
def test_advice_that_is_followed_does_what_it_says(options: dict[str, Any]) -> None:
    found = report(**options)
    assert found.advice
    assert [advice.error for advice in found.advice] == sorted(advice.error for advice in found.advice)
    for advice in found.advice:
        after = report_run(followed(found.run, advice))
        assert after.row.error == pytest.approx(advice.error, rel=1e-9)
        assert after.safe == advice.safe
        assert advice.safe or advice.error <= found.row.error / 2
        assert advice.text in " ".join(str(found).replace("\n  ", " ").split())


def followed(run: Run, advice: Advice) -> Run:
    """The run with an advice's change made to it."""
    for option, value in advice.change.items():
        if option == "param":
            params = {p.name: p for p in (EPSILON, X0, V, FLOW, AngularParam.optimal(run.sigma_data))}
            run = replace(run, param=params[str(value)])
        elif option == "start":
            run = replace(run, grid=run.grid.up_to(float(value)))
        elif option == "steps":
            index = np.linspace(0, len(run.grid) - 1, int(value)).round().astype(int)
            run = replace(run, grid=run.grid.take(index))
        else:
            run = replace(run, **{option: value})
    return run


def test_of_two_that_are_as_good_the_better_known_is_advised() -> None:
    """At unit variance the optimum is v; no network is trained for the name."""
    for options in ({}, {"state": "bf16", "steps": 1000}):
        advised = [advice.change["param"] for advice in report(COSINE, "epsilon", **options).advice if "param" in advice.change]
        assert advised == ["v_prediction"]
    (advised,) = [a.change["param"] for a in report(COSINE, "epsilon", sigma_data=4.0).advice if "param" in a.change]
    assert advised == "optimal(4)"


def test_two_changes_are_advised_where_one_is_not_enough() -> None:
    found = report(COSINE, "epsilon", state="bf16", steps=1000)
    assert all(advice.safe and len(advice.change) == 2 for advice in found.advice)


def test_a_good_run_is_left_alone() -> None:
    assert report(SCALED, "v").advice == ()


def test_where_nothing_helps_it_says_so() -> None:
    found = report(SCALED, "v", tolerance=1e-9)
    assert not found.safe
    assert [advice.change for advice in found.advice] == [{"output": "float32"}]  # far better, and not enough
    assert not found.advice[0].safe
    assert "still unsafe" in str(found)
    found = report(SCALED, "v", output=None, tolerance=1e-9)
    assert found.advice == ()
    assert "No change" in str(found)


def test_a_safe_run_near_the_tolerance_hears_of_what_halves_its_error() -> None:
    found = report(SCALED, "sample", tolerance=0.01)
    assert found.safe
    assert [set(advice.change) for advice in found.advice] == [{"output"}, {"param"}]
    assert all(advice.safe and 2 * advice.error <= found.row.error for advice in found.advice)


def test_an_output_in_float32_is_no_cure_for_an_imperfect_network() -> None:
    """kappa = 2e4 multiplies every error; the report speaks of rounding, and says so."""
    text = " ".join(str(report(COSINE, "epsilon")).split())
    assert "this helps against rounding only" in text
    assert "multiplies every relative error of the output, that of an imperfect network too" in text
    assert "imperfect" not in str(report(COSINE, "v"))


# -- as a value, as text, as HTML, as JSON ----------------------------------------------------------------------------


def test_a_report_is_frozen() -> None:
    found = report(SCALED, "v", steps=5)
    with pytest.raises(FrozenInstanceError):
        found.configured = 3  # type: ignore[misc]
    assert repr(found).startswith("Report('scaled_linear', 'v_prediction', error ")
    assert repr(found).endswith("safe)")


class Tags(HTMLParser):
    """Counts of tags, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.text = ""
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found[tag] += 1
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_are_escaped_in_html() -> None:
    nasty = "<script>alert('$x$ & \"y\"')</script>"
    schedule = replace(SCALED, name=nasty)
    found = report(schedule, AngularParam.from_coefficients(0.6, 0.8, name=nasty), steps=10)
    page = Tags()
    page.feed(found._repr_html_())
    assert page.open == []
    assert "script" not in page.found
    assert page.found["tr"] == 7
    assert page.text.count(nasty) >= 2
    assert nasty in str(found)


def test_json_holds_what_the_report_holds() -> None:
    found = report(Schedule.rectified_flow(), "epsilon", steps=7, guidance=3.0)
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["safe"] is False
    assert told["objections"] == list(found.objections)
    assert told["settings"]["steps"] == 7
    assert told["settings"]["guidance"] == 3.0
    assert told["settings"]["output"] == "bfloat16"
    assert [row["configured"] for row in told["rows"]] == [True, False, False, False, False]
    assert told["rows"][0]["kappa_max"] is None  # infinite
    assert told["rows"][0]["singular_timestep"] == 1000
    assert told["rows"][2]["sources"] == found.rows[2].sources
    assert told["rows"][2]["safe"] is True
    assert [advice["change"] for advice in told["advice"]] == [dict(a.change) for a in found.advice]


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = report(COSINE, AngularParam.from_coefficients(0.6, 0.8, name="$_x"), steps=8, state="bf16")
    assert plot_report(found, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    drawn = plot_report(report(Schedule.rectified_flow(50), "epsilon"), tmp_path / "b.svg").read_text()
    assert drawn.count("<path") > 20
    with pytest.raises(BadInput, match=r"plot must end in \.png"):
        plot_report(found, tmp_path / "c.exe")


def test_curves_are_those_of_the_rows() -> None:
    found = report(COSINE, "epsilon", steps=20)
    for name, kappa in found.curves.kappa.items():
        assert kappa.shape == found.curves.timesteps.shape == (1000,)
        assert kappa.max() >= row_of(found, name).kappa_max * (1 - 1e-9)
    floor = found.curves.floor["epsilon"]
    unsafe = found.curves.timesteps[floor > found.run.loss_tolerance]
    # The floor counts outputs as large as their targets, of mean square 1: rms of one rounding, as largest_safe_timestep's.
    assert unsafe.min() == found.row.largest_safe_timestep + 1
    total = math.sqrt(sum(float((part**2).sum()) for part in found.curves.step_errors.values()))
    assert total == pytest.approx(found.row.error, rel=0.01)
    assert len(report(Schedule.cosine(100_000), "v", steps=4).curves.timesteps) == 1000


def test_floors_know_the_data() -> None:
    sigma_data = 0.5
    found = report(COSINE, "sample", steps=20, sigma_data=sigma_data)
    inner = slice(1, None)
    variance = COSINE.phi.cos().numpy() ** 2 + (COSINE.phi.sin().numpy() * sigma_data) ** 2  # of the target in v-space
    expected = found.curves.kappa["sample"] ** 2 * found.run.output.energy(sigma_data**2) / variance
    np.testing.assert_allclose(found.curves.floor["sample"][inner], expected[inner], rtol=1e-6)


def test_the_grid_of_a_distilled_scheduler_is_its_own() -> None:
    with pytest.raises(BadInput, match="spacing must be left out for LCMScheduler"):
        report({"_class_name": "LCMScheduler"}, steps=2, spacing="trailing")


def test_an_edm_run_has_two_steps_at_least() -> None:
    with pytest.raises(BadInput, match="steps must be at least 2 for an EDM scheduler"):
        report({"_class_name": "EDMEulerScheduler"}, steps=1)


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"diffparam\[figures\]"):
        plot_report(report(SCALED, "v", steps=4), tmp_path / "a.png")


# -- input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"param": "velocity"}, UnknownName, "ambiguous"),
        ({"param": 3}, TypeError, "param must be an AngularParam"),
        ({"steps": 0}, BadInput, "steps must lie in"),
        ({"steps": 1001}, BadInput, "steps must lie in"),
        ({"spacing": "karras"}, UnknownName, "spacing must be one of"),
        ({"solver": "euler"}, UnknownName, "solver must be one of"),
        ({"solver": "ddpm", "eta": 0.5}, ValueError, "eta must be 0 unless solver is 'ddim'"),
        ({"eta": 1.5}, ValueError, "eta must lie in"),
        ({"guidance": math.inf}, FloatingPointError, "guidance must be finite"),
        ({"sigma_data": 0.0}, ValueError, "sigma_data must lie in"),
        ({"tolerance": 0.0}, ValueError, "tolerance must lie in"),
        ({"loss_tolerance": -1.0}, ValueError, "loss_tolerance must lie in"),
        ({"output": "bf8"}, UnknownName, "format must be one of"),
        ({"output": 3}, TypeError, "output must be a format"),
        ({"arithmetic": "bf8"}, UnknownName, "format must be one of"),
        ({"arithmetic": None, "increments": True}, ValueError, "increments must come with arithmetic"),
        ({"schedule": "cosine"}, TypeError, "config must be a mapping"),
    ],
)
def test_bad_input_is_refused_by_name(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        report(**{"schedule": SCALED, "param": "v", **options})


def test_one_step_is_a_run() -> None:
    assert len(report(SCALED, "v", steps=1).run.grid) == 1


# -- schedulers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_class_is_reported_from_its_name(name: str) -> None:
    found = report({"_class_name": name}, steps=6)
    assert len(found.run.grid) == 6
    assert found.run.name == name
    stand_in = any("stands in" in note for note in found.run.notes)
    assert stand_in == (found.run.name in STAND_INS)


STAND_INS = {
    *("DEISMultistepScheduler", "DPMSolverSinglestepScheduler", "FlowMatchHeunDiscreteScheduler", "LCMScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler"),
    *("TCDScheduler", "UniPCMultistepScheduler"),
}


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name != "AngularScheduler"])
def test_defaults_are_those_of_diffusers(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = inspect.signature(getattr(diffusers, name).__init__).parameters
    assert {key: theirs[key].default for key in DEFAULTS[name]} == DEFAULTS[name]


def test_defaults_of_our_own_scheduler() -> None:
    pytest.importorskip("diffusers")
    from diffparam.integrations.diffusers_scheduler import AngularScheduler

    theirs = inspect.signature(AngularScheduler.__init__).parameters
    ours = DEFAULTS["AngularScheduler"]
    assert {key: parameter.default for key, parameter in theirs.items() if key not in ("self", "args", "kwargs")} == ours


GRIDS = [
    ("DDIMScheduler", {}),
    ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    ("DDIMScheduler", {"timestep_spacing": "linspace"}),
    ("DDIMScheduler", {"steps_offset": 1, "set_alpha_to_one": False}),
    ("DDPMScheduler", {"timestep_spacing": "trailing"}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}),
    ("UniPCMultistepScheduler", {}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("EDMEulerScheduler", {"sigma_max": 50.0}),
    ("LCMScheduler", {}),
    ("TCDScheduler", {"original_inference_steps": 40}),
]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(("name", "options"), GRIDS)
@pytest.mark.parametrize("steps", [2, 4, 25])
def test_the_run_visits_the_timesteps_of_diffusers(name: str, options: dict[str, Any], steps: int) -> None:
    """Both say which timesteps the network is told; theirs are float32, or whole."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(steps)
    ours = read_scheduler({"_class_name": name, **options}, steps=steps).grid.timesteps.flip(0).double()
    # Interpolated in a float32 table of sigmas there: a few thousandths of a timestep.
    tolerance = 0.02 if "use_karras_sigmas" in options else 1e-3
    assert ours.tolist() == pytest.approx(scheduler.timesteps.double().tolist(), abs=tolerance)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_a_live_config_is_read_too(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)()
    found = report({"_class_name": name, **scheduler.config}, steps=10)
    assert found.to_dict() == report({"_class_name": name}, steps=10).to_dict()


def test_what_the_config_says_decides_the_run() -> None:
    read = read_scheduler(
        {
            "_class_name": "DDPMScheduler",
            "variance_type": "fixed_large",
            "prediction_type": "v_prediction",
            "beta_schedule": "squaredcos_cap_v2",
        }
    )
    assert (read.solver, read.variance, read.param) == ("ddpm", "upper", V)
    assert torch.equal(read.training.phi, COSINE.phi)
    assert read_scheduler({"_class_name": "DDIMScheduler", "set_alpha_to_one": False}).final_phi > 0
    assert read_scheduler({"_class_name": "EDMEulerScheduler"}).sigma_data == 0.5
    assert read_scheduler({"_class_name": "EulerDiscreteScheduler"}).grid.state.kind == "ve"
    own = {"_class_name": "AngularScheduler", "solver": "heun", "prediction_type": "edm", "sigma_data": 0.5, "state": "ve"}
    read = read_scheduler(own, steps=10)
    assert (read.solver, read.param.name, read.sigma_data) == ("heun", "edm(0.5)", 0.5)


def test_steps_and_spacing_and_solver_override_the_config() -> None:
    read = read_scheduler({"_class_name": "DPMSolverMultistepScheduler"}, steps=10, spacing="trailing", solver="ddim")
    assert read.solver == "ddim"
    assert read.grid.timesteps.tolist() == COSINE.respace(10, "trailing").timesteps.tolist()
    found = report({"_class_name": "DDIMScheduler"}, "flow", sigma_data=0.7)
    assert found.row.param == "flow"
    assert found.run.sigma_data == 0.7


def test_clipping_is_pointed_out() -> None:
    assert any("clips" in note for note in report({"_class_name": "DDIMScheduler"}).run.notes)
    assert not report({"_class_name": "DDIMScheduler", "clip_sample": False}).run.notes


def test_zero_terminal_snr_in_sigma_space_is_reported_and_not_refused() -> None:
    config = {"_class_name": "EulerDiscreteScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    found = report(config)
    assert found.row.singular_timestep == 999
    assert report({**config, "prediction_type": "v_prediction"}).safe


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "_class_name must be in the config"),
        ({"_class_name": "DDIMInverseScheduler"}, "Did you mean"),
        ({"_class_name": ["DDIMScheduler"]}, "_class_name must be one of"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": "1000"}, "num_train_timesteps must be a whole number"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": 10**15}, "num_train_timesteps must be at least 1 and at most"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": True}, "num_train_timesteps must be a whole number"),
        ({"_class_name": "DDIMScheduler", "beta_start": None}, "beta_start must be a number"),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": "false"}, "rescale_betas_zero_snr must be true or false"),
        ({"_class_name": "DDIMScheduler", "trained_betas": {"a": 1}}, "trained_betas must be a list"),
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.1, "x"]}, "trained_betas must be a number"),
        ({"_class_name": "DDIMScheduler", "prediction_type": ["epsilon"]}, "prediction_type must be a name"),
        ({"_class_name": "DDPMScheduler", "variance_type": {}}, "variance_type must be a name or null"),
        ({"_class_name": "EulerDiscreteScheduler", "sigma_max": "big"}, "sigma_max must be a number"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "--set use_dynamic_shifting=false"),
        ({"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": "low"}, "lambda_min_clipped must be a number"),
    ],
)
def test_a_config_of_the_wrong_kind_is_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        report(options)


def test_only_options_that_are_read_are_checked() -> None:
    """Configs carry what other versions wrote."""
    told = checked_options({"_class_name": "DDIMScheduler", "of_another_version": object(), "shift": "not of this class"})
    assert told == {"_class_name": "DDIMScheduler"}


@pytest.mark.parametrize("name", ["v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_steps_are_judged_by_samples_of_the_size_of_data(name: str, steps: int) -> None:
    """A generator in one step draws samples as large as the data, and rounds its output once: by a thousandth or two."""
    rows = report(Schedule.cosine(1000), name, steps=steps).to_dict()["rows"]
    (error,) = (row["error"] for row in rows if row["param"] == name)
    assert 0.0003 < error < 0.003


@pytest.mark.parametrize("sigma_data", [0.01, 1.0, 100.0])
def test_a_verdict_does_not_hang_on_the_unit_of_the_data(sigma_data: float) -> None:
    found = report(COSINE, "v", steps=50, sigma_data=sigma_data)
    assert found.safe
    assert found.row.largest_safe_timestep == 999
    floor = found.curves.floor["epsilon"]
    unsafe = found.curves.timesteps[floor > found.run.loss_tolerance]
    assert unsafe.min() == pytest.approx(row_of(found, "epsilon").largest_safe_timestep + 1, abs=3)  # log-uniform to 0.6 %


def test_the_relative_error_is_the_same_in_every_state_space() -> None:
    errors = []
    for state in (VP, VE, FLOW_STATE):
        grid = COSINE.take([900]).with_state(state)
        errors.append(assess(Run(grid, grid, V, sigma_data=2.0, final_phi=1.2, state=None, arithmetic=None)).error)
    assert errors == pytest.approx([errors[0]] * 3, rel=1e-9)


def test_a_row_that_overflows_does_not_end_the_report_of_another() -> None:
    """float8_e4m3 does not hold epsilon's first coefficient, 632; v's are all below 1."""
    found = report(COSINE, "v", steps=50, arithmetic="e4m3")
    row = row_of(found, "epsilon")
    assert row.error == math.inf
    assert "arithmetic must be a format that holds" in row.flags[0].reason
    assert not found.safe
    assert math.isfinite(found.row.error)
    own = report(COSINE, "epsilon", steps=50, arithmetic="e4m3")
    assert not own.safe
    assert "holds" in str(own)
