"""The proof experiment in its smallest preset, and the verdicts that it draws."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffparam import RoundingError, gaussian_sensitivity, predict_error
from experiments import command, prediction_check
from experiments.prediction_study.cases import FORMATS, SOLVERS, Case
from experiments.prediction_study.measure import gaussian_rows
from experiments.prediction_study.tables import summarise
from paper_figures import prediction_check as figure
from paper_figures import style


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prediction_check")
    patch = pytest.MonkeyPatch()
    patch.setattr(command, "RUNS", folder / "runs")
    patch.setattr("builtins.print", lambda *_, **__: None)
    prediction_check.main(["--preset", "smoke", "--out", str(folder / "record.json")])
    patch.undo()
    return folder / "record.json"


def test_every_kind_of_case_is_in_the_record(smoke: Path) -> None:
    results = json.loads(smoke.read_text())["results"]
    table = [dict(zip(results["columns"], row, strict=True)) for row in results["rows"]]
    assert {row["data"].partition("(")[0] for row in table} == {"gaussian", "two_point", "mixture", "digits"}
    assert {row["format"] for row in table} == set(FORMATS)
    assert {row["solver"] for row in table} == set(SOLVERS)
    assert {row["omega"] for row in table} >= {1.0, 3.0}
    assert sum(group["cases"] for group in results["groups"].values()) == results["all"]["cases"] == len(table)


def test_the_figure_is_drawn_from_it(smoke: Path, tmp_path: Path) -> None:
    figure.main(["--record", str(smoke), "--out", str(tmp_path)])
    with Image.open(tmp_path / "prediction_check.png") as image:
        assert image.width == round(style.TEXT_WIDTH * style.DPI)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_call_and_the_final_sample_are_as_predicted(solver: str) -> None:
    """bf16, ten steps: independent roundings. 8192 samples know an rms to 1/sqrt(2 * 8192) = 0.8 %; four sigma and a margin."""
    case = Case("cosine", solver, "v", 10, 0.5)
    (row,) = gaussian_rows(case.plan(), 0.5, ["bfloat16"], 8192, seed=1)
    assert row["one_step"] == pytest.approx(1, abs=0.03)
    assert row["measured"] / row["predicted"] == pytest.approx(1, abs=0.1)
    assert row["measured"] < row["worst"]


def test_a_prediction_with_half_the_error_would_be_noticed() -> None:
    """Negative control of the test above."""
    case = Case("cosine", "ddim", "v", 10, 0.5)
    plan = case.plan()
    (row,) = gaussian_rows(plan, 0.5, ["bfloat16"], 8192, seed=1)
    finer = predict_error(
        plan, gaussian_sensitivity(plan, 0.5), output=RoundingError("tf32"), arithmetic=None, state=None, timestep=None
    )
    assert row["measured"] / finer.rms > 2


def _row(measured: float | None, flags: list[str]) -> dict:
    labels = {"data": "d", "schedule": "s", "solver": "x", "param": "p", "steps": 1, "format": "f", "omega": 1.0}
    return {
        **labels,
        "predicted": 1.0,
        "independent": 0.5,
        "worst": 2.0,
        "final_rms": 1.0,
        "measured": measured,
        "flags": flags,
    }


def test_verdicts_of_rows_with_known_ratios() -> None:
    rows = [_row(1.05, []), _row(1.5, []), _row(3.0, ["correlation"]), _row(0.0, []), _row(None, ["overflow"])]
    found = summarise(rows)
    assert found["all"]["unflagged"] == 3
    assert found["all"]["final_within"] == pytest.approx(1 / 3)  # 1.05; 1.5 and 0 are not
    assert [row[9] for row in found["missed"]] == [1.5, 0.0]
    assert [row[9] for row in found["worst_exceeded"]] == [3.0, None]
    assert found["all"]["flagged_final"] == [3.0, math.inf, math.inf]
    assert np.isinf(found["all"]["measured_over_worst"])


def test_nothing_is_nothing() -> None:
    """An output that is zero leaves no error, and float64's own noise is not a finding."""
    row = {**_row(3e-17, []), "predicted": 1e-19, "worst": 1e-18}
    assert summarise([row])["missed"] == []
    assert summarise([{**row, "measured": 1e-3}])["missed"] != []
