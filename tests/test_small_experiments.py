"""Three experiments with exact denoisers in their smallest preset, what their numbers rest on, and their figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from diffparam import (
    AngularParam,
    CompensatedRounding,
    ErrorModel,
    FloatFormat,
    OutputMoments,
    Plan,
    RoundingError,
    Schedule,
    Sensitivity,
    V,
    gaussian_sensitivity,
    guidance_error_gain,
    plan_ddim,
    plan_ddpm,
    predict_error,
    round_to,
    rounding_energy,
    sample,
)
from experiments import command, guidance_error, low_precision_state, optimum
from experiments.state_study import recursion, summary
from paper_figures import guidance_error as guidance_figure
from paper_figures import low_precision_state as state_figure
from paper_figures import optimum as optimum_figure
from paper_figures import style

EXPERIMENTS = {module.__name__.rpartition(".")[2]: module for module in (low_precision_state, guidance_error, optimum)}
FIGURES = {"low_precision_state": state_figure, "guidance_error": guidance_figure, "optimum": optimum_figure}
SCHEDULE = Schedule.cosine(1000)
Run = tuple[dict, str, Path]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Record, stdout and record's path of ``python experiments/NAME.py --preset smoke``, run once."""
    folder, done = tmp_path_factory.mktemp("smoke"), {}

    def run(name: str) -> Run:
        if name not in done:
            lines: list[str] = []
            path = folder / f"{name}-smoke.json"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(command, "RUNS", folder / "runs")
                patch.setattr("builtins.print", lambda *text, **_: lines.append(" ".join(map(str, text))))
                EXPERIMENTS[name].main(["--preset", "smoke", "--out", str(path)])
            done[name] = json.loads(path.read_text()), "\n".join(lines), path
        return done[name]

    return run


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_record_holds_its_config_and_finite_numbers(name: str, smoke: Callable[[str], Run]) -> None:
    record, text, path = smoke(name)
    assert record["experiment"] == name
    assert record["config"]["seed"] == 0
    assert record["device"]
    assert f"record: {path}" in text
    assert "nan" not in text


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_presets_are_those_of_every_experiment(name: str) -> None:
    assert list(EXPERIMENTS[name].PRESETS) == ["smoke", "quick", "cpu", "gpu"]
    assert EXPERIMENTS[name].PRESETS["gpu"].device == "cuda"


# -- the state --------------------------------------------------------------------------------------------------------


def test_the_recursion_is_what_is_measured(smoke: Callable[[str], Run]) -> None:
    """1024 samples know an rms to 1/sqrt(2048), 128 nodes an octave a sum of roundings to 1/sqrt(1024): together 3.8 %."""
    case = smoke("low_precision_state")[0]["results"]["cases"]["gaussian-2-ddim"]
    for fmt in ("bfloat16", "float8_e4m3"):
        for mode in low_precision_state.MODES:
            row = case[fmt][mode]
            assert np.array(row["measured"]) == pytest.approx(np.array(row["refined"]), rel=5 * 0.038), (fmt, mode)
            assert np.array(row["total"]) == pytest.approx(np.array(row["refined_total"]), rel=5 * 0.038), (fmt, mode)
    lost = case["float8_e4m3"]["nearest"]
    assert lost["lost"][1] == 1.0
    assert lost["measured"][1] > 2.5 * lost["independent"][1]  # control: independence is far off, and it was said before
    assert "stagnation" in lost["flags"][1]


def test_the_summary_lists_what_was_not_flagged(smoke: Callable[[str], Run]) -> None:
    record, text, _ = smoke("low_precision_state")
    results = record["results"]
    wrong = [
        (key, fmt, mode, results["cases"][key]["steps"][i])
        for key, fmt, mode, i, row in summary.each_run(results["cases"])
        if not 0.9 <= row["measured"][i] / row["independent"][i] <= 1.1 and not row["flags"][i]
    ]
    assert [tuple(found[:4]) for found in results["unflagged"]] == wrong
    assert results["flags"]["wrong_and_not_flagged"] == len(wrong)
    assert text.count("not flagged:") == len(wrong)
    assert results["right"]["runs"] == 2 * 2 * 2 * 2 * 3


def plan_and_sizes(steps: int, sigma_data: float) -> tuple[Plan, Sensitivity]:
    plan = plan_ddim(SCHEDULE.respace(steps), param=V)
    return plan, gaussian_sensitivity(plan, sigma_data)


def test_without_rounding_nothing_is_transported() -> None:
    plan, sizes = plan_and_sizes(50, 2.0)
    exact = RoundingError(FloatFormat("52 bits", 52, -1022, 1e308))
    assert recursion.transported(plan, sizes, exact).rms_error() < 50 * 2.0**-51 * math.sqrt(sizes.final_sq)


def test_where_every_update_is_lost_the_state_stays_after_its_first_rounding() -> None:
    """For unit-variance data J = cos(step): 1 - J < 2e-5 at 250 steps, far below bf16's 2^-9 / m. What is left of the run is
    (J_0 - prod J) z plus one rounding. Relative: 512 nodes an octave know the rounding to 1/sqrt(4096).
    """
    plan, sizes = plan_and_sizes(250, 1.0)
    ratios = recursion.step_ratios(plan, sizes)
    assert np.abs(1.0 - ratios).max() < 2.0**-10
    expected = math.hypot(ratios[0] - ratios.prod(), math.sqrt(rounding_energy("bf16", ratios[0] ** 2)))
    assert recursion.transported(plan, sizes, RoundingError("bf16")).rms_error() == pytest.approx(expected, rel=5 / 64)


def test_the_recursion_refuses_what_it_does_not_know() -> None:
    plan, sizes = plan_and_sizes(10, 2.0)
    with pytest.raises(ValueError, match="stochastic"):
        recursion.transported(plan, sizes, RoundingError("bf16", "stochastic"))
    noisy = plan_ddpm(SCHEDULE.respace(10), param=V)
    with pytest.raises(ValueError, match="linear"):
        recursion.transported(noisy, gaussian_sensitivity(noisy, 2.0), RoundingError("bf16"))


def test_the_share_of_a_rounding_by_the_size_of_the_update() -> None:
    """Small d: f (1 - f) = d and (d - round d)^2 = d^2, with E[m] = 1/ln 2 and E[m^2] = 3 / (2 ln 2). Large d: a full one.

    The stochastic share is a table of spacing 1/128, linear in between: right to 1/128 E[m^2] / E[m] = 1.2 % of itself below.
    """
    small = np.array([1e-3])
    assert recursion.on_grid_share(small, stochastic=True) == pytest.approx(6e-3 / math.log(2), rel=0.013)
    assert recursion.on_grid_share(small, stochastic=False) == pytest.approx(12e-6 * 1.5 / math.log(2), rel=1e-4)
    half = 12 * (1 - 1 / math.log(2) + 3 / (8 * math.log(2)))  # d = m / 2 rounds to 1: E[(m / 2 - 1)^2]
    assert recursion.on_grid_share(np.array([0.5]), stochastic=False) == pytest.approx(half, rel=1e-4)
    for stochastic in (True, False):  # 256 significands know the mean of a bounded variable to 1/16
        assert recursion.on_grid_share(np.array([1234.5]), stochastic=stochastic) == pytest.approx(1.0, abs=5 / 16)


def test_roundings_on_the_grid_are_those_of_a_dithered_run() -> None:
    """Stochastic rounding of unit-variance data: updates of a fiftieth of a unit, so a seventh of the independent error."""
    plan, sizes = plan_and_sizes(250, 1.0)
    error = RoundingError("bf16", "stochastic")
    x = torch.randn(4096, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = low_precision_state.DATA["gaussian-1"].model(SCHEDULE, V)
    draws = torch.Generator().manual_seed(1)
    measured = (sample(model, x, plan, generator=draws, state_error=error) - sample(model, x, plan)).square().mean().sqrt()
    # Rare jumps of a unit each: of 4096 samples about every sixth has one, so the mean square is known to 1/sqrt(600)
    assert recursion.on_grid_error(sizes, error) == pytest.approx(measured.item(), rel=5 * 0.5 / math.sqrt(600))
    independent = predict_error(plan, 1.0, output=None, arithmetic=None, state=error, timestep=None).rms
    assert independent > 4 * measured


def test_the_trace_of_gaussian_data_is_the_closed_form() -> None:
    """Gains do not depend on the sample there. zeta^2 e^2 of 20 000 samples: sqrt(3 * 6 / 20000) / 2 = 1.5 %."""
    plan, sizes = plan_and_sizes(5, 2.0)
    model = low_precision_state.DATA["gaussian-2"].model(SCHEDULE, V)
    x = torch.randn(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors: list[ErrorModel] = [RoundingError("bf16", "stochastic"), CompensatedRounding("bf16")]
    traced = recursion.traced_error(model, plan, x, errors, torch.Generator().manual_seed(1))
    for error, value in zip(errors, traced, strict=True):
        assert value == pytest.approx(
            recursion.on_grid_error(sizes, error), rel=5 * 0.015 + 0.05
        )  # its first state is rounded too


# -- guidance ---------------------------------------------------------------------------------------------------------


def test_independent_branches_follow_the_formula_and_equal_ones_do_not(smoke: Callable[[str], Run]) -> None:
    """4096 values know a rms to 1/sqrt(8192) = 1.1 %, and at low noise both branches are of one size."""
    results = smoke("guidance_error")[0]["results"]
    low = {name: values[0] for name, values in results["levels-v_prediction"].items()}
    for i, omega in enumerate((1.0, 7.5)):
        assert low["stochastic"][i] == pytest.approx(guidance_error_gain(omega), rel=0.055)
        assert low["nearest"][i] == pytest.approx(low["correlated"][i], rel=0.1)
    assert low["rho"] > 0.5
    assert low["nearest"][1] < 0.7 * guidance_error_gain(7.5)  # control
    equal = {name: values[-1] for name, values in results["separation"].items()}
    assert equal["within_a_unit"] == 1.0
    assert equal["nearest"] == pytest.approx([1.0, 1.0], rel=1e-6)
    assert equal["stochastic"][1] == pytest.approx(guidance_error_gain(7.5), rel=0.055)
    for part in (results["levels-v_prediction"], results["levels-epsilon"], results["separation"]):
        assert np.array(part["rho"]) == pytest.approx(np.array(part["rho_predicted"]), abs=0.08)  # 5 / sqrt(4096)


def test_over_a_run_both_branches_say_what_the_formula_does_not(smoke: Callable[[str], Run]) -> None:
    """The mean over 1024 runs of a few far more sensitive ones: known to about a tenth."""
    run = smoke("guidance_error")[0]["results"]["run-v_prediction"]
    for error in guidance_error.ERRORS:
        measured = np.array(run[f"{error}_measured"])
        assert (np.abs(np.log(measured / np.array(run[f"{error}_emulated"]))) < 0.3).all(), error
    assert run["nearest_measured"][1] < 0.5 * run["nearest_formula"][1]
    assert run["stochastic_measured"][1] == pytest.approx(run["stochastic_branches"][1], rel=0.3)


def test_the_unit_in_the_last_place_bounds_twice_the_rounding() -> None:
    x = torch.exp2(torch.linspace(-20, 20, 4001, dtype=torch.float64))
    unit = guidance_error.unit_in_last_place(x)
    assert ((round_to(x, "bf16") - x).abs() <= unit / 2).all()
    assert torch.equal(round_to(x, "bf16") / unit, (round_to(x, "bf16") / unit).round())  # a multiple of it
    assert (unit / x).max() == 2.0**-7


def test_near_branches_have_an_exact_difference_in_bf16() -> None:
    """Sterbenz: within a factor of two the difference of two bf16 numbers is one. Equal branches stay what they are."""
    u = round_to(torch.linspace(1, 2, 50, dtype=torch.float64)[:, None], "bf16")

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return u

    assert torch.equal(guidance_error.guided_in_bf16((model, model), 7.5, u, u), u)


# -- the optimum ------------------------------------------------------------------------------------------------------


def test_the_search_finds_the_closed_form(smoke: Callable[[str], Run]) -> None:
    """Gaussian data: an exact zero, so the gap is the search's own. A mixture: a flat minimum under the waves that the binades
    make of a rounding's energy, so the angle is loose and the loss is not.
    """
    results = smoke("optimum")[0]["results"]
    assert results["worst"]["gaussian"]["gap_sigma_data"] < 1e-3
    assert results["worst"]["mixture"]["gap_moments"] < 0.2
    assert results["worst"]["mixture"]["excess"] < 0.25
    part = results["data"]["mixture-0.5"]
    for i in range(2):
        assert part["loss_v"][i] > 1.5 * part["loss_moments"][i]  # control: v is not the optimum there
        ratio = np.array(part["losses"][i]) / np.array(part["predicted"][i])
        assert 0.7 < ratio.min() < 1 < ratio.max() < 1.4
    one = results["data"]["mixture-1"]["runs"]
    assert one["v_prediction"]["measured"] == pytest.approx(one["optimal"]["measured"], rel=1e-3)  # the same angle
    half = results["data"]["mixture-0.5"]["runs"]
    assert half["v_prediction"]["measured"] > 1.2 * half["optimal"]["measured"]
    assert results["data"]["gaussian-0.5"]["runs"]["optimal"]["measured"] < 1e-12  # it says nothing, so nothing is rounded


@given(phi=st.floats(0.05, 1.5), sigma_data=st.floats(0.1, 10.0))
def test_what_v_loses_on_its_target(phi: float, sigma_data: float) -> None:
    """kappa^2 E[u^2] / r^2 of both, with E[u^2] / r^2 = cos^2 psi sigma_d^2 + sin^2 psi of the target."""

    def floor(param: AngularParam) -> float:
        psi = param.psi_at(phi)
        energy = (math.cos(psi) * sigma_data) ** 2 + math.sin(psi) ** 2
        return energy * param.condition_number(phi) ** 2

    ratio = optimum.target_ratio(phi, sigma_data)
    assert floor(V) / floor(AngularParam.optimal(sigma_data)) == pytest.approx(ratio, rel=1e-9)
    assert optimum.target_ratio(phi, 1 / sigma_data) == pytest.approx(ratio, rel=1e-9)
    assert ratio >= 1 == optimum.target_ratio(phi, 1.0)


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
@pytest.mark.parametrize("sigma_data", [0.25, 4.0])
def test_data_have_the_second_moment_they_are_named_after(kind: str, sigma_data: float) -> None:
    data = optimum.data_of(kind, sigma_data)
    x = data.sample(100_000, torch.Generator().manual_seed(0))
    assert x.square().mean().item() == pytest.approx(sigma_data**2, rel=5 * math.sqrt(2 / 2e5))
    phi = 0.8
    moments = OutputMoments.measure(x, data.predict_v(x, phi))
    assert moments.x_sq == pytest.approx(sigma_data**2, rel=5 * math.sqrt(2 / 2e5))


# -- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_the_figure_is_drawn_from_its_record_and_the_same_every_time(
    name: str, smoke: Callable[[str], Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(smoke(name)[2])
    for folder in ("first", "second"):
        FIGURES[name].main(["--record", path, "--out", str(tmp_path / folder)])
        assert capsys.readouterr().out.strip() == str(tmp_path / folder / f"{name}.png")
    first, second = (tmp_path / folder / f"{name}.png" for folder in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert image.width == round(style.COLUMN_WIDTH * style.DPI)
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 100


@pytest.mark.parametrize(
    ("name", "panel", "where"),
    [
        ("low_precision_state", 0, lambda r: r["cases"]["gaussian-2-ddim"]["bfloat16"]["nearest"]["measured"]),
        ("low_precision_state", 1, lambda r: r["cases"]["gaussian-2-ddpm"]["bfloat16"]["stochastic"]["refined"]),
        ("low_precision_state", 2, lambda r: r["cases"]["gaussian-2-ddim"]["float64_total"]),
        ("guidance_error", 0, lambda r: r["levels-v_prediction"]["nearest"][0]),
        ("guidance_error", 2, lambda r: r["run-v_prediction"]["stochastic_measured"]),
        ("optimum", 0, lambda r: r["data"]["mixture-0.5"]["losses"][0]),
        ("optimum", 2, lambda r: [math.sqrt(r["data"][f"mixture-{s}"]["target_ratio"][0]) for s in ("0.5", "1")]),
    ],
)
def test_drawn_lines_are_the_records(
    name: str, panel: int, where: Callable[[dict], list[float]], smoke: Callable[[str], Run]
) -> None:
    record = smoke(name)[0]
    drawn = draw(FIGURES[name], record).axes[panel].lines
    wanted = where(record["results"])
    values = [np.asarray(line.get_ydata(), dtype=np.float64) for line in drawn]
    assert any(len(y) == len(wanted) and np.allclose(y, wanted, rtol=1e-12, atol=0.0) for y in values)


def draw(module: ModuleType, record: dict) -> Figure:
    with style.applied():
        return module.draw(record, "gaussian-2") if module is state_figure else module.draw(record)


def test_data_that_are_not_in_the_record_are_refused(smoke: Callable[[str], Run], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        state_figure.main(["--record", str(smoke("low_precision_state")[2]), "--data", "gaussian-7"])
    assert end.value.code == 2
    assert "gaussian-2, mixture" in capsys.readouterr().err
