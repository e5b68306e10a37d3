"""One sampler step against the bare sum and against diffusers, grouped so that ratios print.

    pytest tests/benchmarks --benchmark-only

Skipped by default; ``ratios.py`` beside it measures the same in turns, for the record. What it says of accuracy does not depend
on the machine and is tested here.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import mpmath
import prediction_speed
import pytest
import ratios
import torch

from diffparam import EPSILON, Schedule, V, ddim_coefficients

NAMES = ("bare_sum", "apply_step", "ddim_step", "diffusers")


@pytest.mark.benchmark(group="sampler step, 1M float32")
@pytest.mark.parametrize("name", NAMES)
def test_speed_on_a_million_numbers(benchmark, name: str) -> None:
    benchmark(ratios.sampler_competitors(ratios.LARGE)[name])


@pytest.mark.benchmark(group="sampler step, 64 x 16 float32")
@pytest.mark.parametrize("name", NAMES)
def test_speed_on_a_batch_of_tokens(benchmark, name: str) -> None:
    benchmark(ratios.sampler_competitors(ratios.SMALL)[name])


@pytest.mark.benchmark(group="training step of the diffusion head")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_speed_of_training(benchmark, dtype: torch.dtype) -> None:
    benchmark(ratios.training_step(dtype, ratios.FULL))


@pytest.mark.parametrize("prediction", ratios.PARAMS)
@pytest.mark.parametrize("shape", [ratios.SMALL, (10_000,)])
def test_the_competitors_compute_the_same(shape: tuple[int, ...], prediction: str) -> None:
    competitors = ratios.sampler_competitors(shape, prediction)
    wanted = competitors["bare_sum"]()
    assert torch.allclose(competitors["apply_step"](), wanted, rtol=0, atol=4 * 2.0**-24 * 5)
    assert torch.equal(competitors["apply_step"](), competitors["ddim_step"]())
    # diffusers' table is float32: its coefficients are off by some 1e-5.
    assert torch.allclose(competitors["diffusers"](), wanted, rtol=0, atol=5 * 1e-4)


@pytest.mark.parametrize("prediction", ratios.PARAMS)
@pytest.mark.parametrize("name", ratios.BETA_SCHEDULES)
def test_coefficients_are_right_where_those_of_a_float32_table_are_not(name: str, prediction: str) -> None:
    errors = ratios.coefficient_accuracy(name, prediction, digits=30)
    # Angles of order 1 are doubles, 2^-53 apart in the best case, and a step is their difference, down to 1e-4 rad: 1e-12, and
    # a few times that after sums of a thousand terms. In a float32 table 2^-24 takes the place of 2^-53.
    assert errors["diffparam"]["max"] < 1e-11
    assert errors["diffparam"]["rms"] < 1e-12
    assert errors["diffusers"]["rms"] > 1e-6
    assert errors["diffusers_table_alone"]["rms"] > 0.5 * errors["diffusers"]["rms"]  # it is the table, not the arithmetic


def test_the_reference_is_the_definition() -> None:
    """Products of 1 - beta formed another way, and the textbook gains of epsilon."""
    with mpmath.workdps(40):
        linear, cosine = ratios.exact_angles("linear"), ratios.exact_angles("cosine")
        assert (
            abs(mpmath.cos(linear[1]) ** 2 - (1 - mpmath.mpf("1e-4")) * (1 - mpmath.mpf("1e-4") - mpmath.mpf("0.0199") / 999))
            < 1e-35
        )
        ends = [
            mpmath.cos((mpmath.mpf(t) / 1000 + mpmath.mpf("0.008")) / mpmath.mpf("1.008") * mpmath.pi / 2) for t in (0, 500)
        ]
        assert abs(mpmath.cos(cosine[499]) ** 2 - (ends[1] / ends[0]) ** 2) < 1e-35  # the products telescope
        on_u, on_x = ratios.exact_gains(linear[500], linear[480], "epsilon")
        a_t, a_s = (mpmath.cos(linear[t]) ** 2 for t in (500, 480))
        assert abs(on_x - mpmath.sqrt(a_s / a_t)) < 1e-35
        assert abs(on_u - (mpmath.sqrt(1 - a_s) - mpmath.sqrt(a_s / a_t) * mpmath.sqrt(1 - a_t))) < 1e-35
    step = ddim_coefficients(*(Schedule.linear().phi_at(t) for t in (500, 480)), param=EPSILON)
    assert float(on_u) == pytest.approx(step.gain_u, rel=1e-12)
    assert ddim_coefficients(1.0, 0.9, param=V).gain_u == pytest.approx(float(ratios.exact_gains(1.0, 0.9, "v_prediction")[0]))


def test_the_script_runs_and_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "benchmarks-cpu.json"
    ratios.main(["--quick", "--out", str(out)])
    printed = capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["experiment"] == "benchmarks"
    for what, value, _ in ratios.ratios(record["results"]):
        assert math.isfinite(value)
        assert value > 0
        assert what in printed
    assert len(record["results"]["sampler_step"]) == 6
    assert record["config"]["diffusers"] == ratios.FULL.diffusers


def test_an_aim_is_met_or_missed() -> None:
    assert ratios.is_met(1.1, "at most 1.2")
    assert not ratios.is_met(1.3, "at most 1.2")
    assert ratios.is_met(11.0, "at least 10")
    assert not ratios.is_met(9.0, "at least 10")
    assert ratios.is_met(9.0, "")


def test_prediction_speed_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Shows that the script runs; it measures on an idle machine only."""
    prediction_speed.main(["--quick"])
    assert "sample_over_network" in capsys.readouterr().out
