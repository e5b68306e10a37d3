"""The race of five parameterizations: equal conditions, predictions by closed forms, ranks, and the job as it is run."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import spearmanr

from diffparam import EPSILON, AngularParam, V, largest_safe_timestep, loss_weight
from experiments import command, parameterization_race
from experiments.field_study.race_arms import ARMS, PARAMS, PRECISIONS, SIGMA_DATA, WEIGHTINGS, arm_name, scaled_digits
from experiments.field_study.race_tables import bf16_over_float32, findings
from experiments.field_study.ranking import floors, predict, rank_correlation, target_moments
from experiments.head_study.arms import Arm, Recipe, train
from experiments.head_study.decompose import evaluation_timesteps
from experiments.tokens import digits
from paper_figures import parameterization_race as figure
from paper_figures import style

SCHEDULE = parameterization_race.SCHEDULE
RMS = 2.0**-7 / math.sqrt(32 * math.log(2))
Smoke = tuple[dict, str, Path]


# -- the whole job ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    """Record, stdout and folder of ``python experiments/parameterization_race.py --preset smoke``."""
    folder = tmp_path_factory.mktemp("race")
    patch = pytest.MonkeyPatch()
    patch.setattr(command, "RUNS", folder / "runs")
    lines: list[str] = []
    patch.setattr("builtins.print", lambda *text, **_: lines.append(" ".join(map(str, text))))
    parameterization_race.main(["--preset", "smoke", "--out", str(folder / "record.json")])
    patch.undo()
    return json.loads((folder / "record.json").read_text()), "\n".join(lines), folder


def test_record_and_stdout_have_every_arm_start_and_finding(smoke: Smoke) -> None:
    record, text, _ = smoke
    results = record["results"]
    assert set(results["samples"]) == set(results["loss"]) == set(results["curves"]) == set(ARMS)
    assert all(arm.label in text for arm in ARMS.values())
    assert all(f"t={start}" in text for start in parameterization_race.starts().values())
    assert all(f"- {line}" in text for line in findings(results))


def test_ranks_of_the_record_are_those_of_its_numbers(smoke: Smoke) -> None:
    results = smoke[0]["results"]
    for weighting, precision in itertools.product(WEIGHTINGS, PRECISIONS):
        for row in results["ranks"][weighting]["quality"][precision]:
            samples = {key: results["samples"][arm_name(key, weighting, precision)] for key in PARAMS}
            (distance,) = (
                {key: found["frechet"]["mean"] for key, found in same.items()}
                for same in ({key: rows[i] for key, rows in samples.items()} for i in range(len(samples["v"])))
                if (same["v"]["start"], same["v"]["steps"]) == (row["start"], row["steps"])
            )
            expected = rank_correlation(results["predicted"]["rank_floor"][row["start"]], distance)
            assert row["floor"]["mean"] == pytest.approx(expected, abs=1e-5)
    assert len(bf16_over_float32(results)) == 9 * 2  # five own, four v-weighted; two starts, one step count


def test_a_resumed_run_takes_up_finished_jobs(smoke: Smoke, monkeypatch: pytest.MonkeyPatch) -> None:
    record, _, folder = smoke
    monkeypatch.setattr(command, "RUNS", folder / "runs")
    monkeypatch.setattr(parameterization_race, "train", lambda *_, **__: pytest.fail("trained again"))
    parameterization_race.main(["--preset", "smoke", "--resume", "--out", str(folder / "again.json")])
    assert json.loads((folder / "again.json").read_text())["results"] == record["results"]


def test_the_figure_is_drawn_from_the_record_alone_and_is_reproducible(smoke: Smoke, tmp_path: Path) -> None:
    for name in ("first", "second"):
        figure.main(["--record", str(smoke[2] / "record.json"), "--out", str(tmp_path / name)])
    first, second = (tmp_path / name / "parameterization_race.png" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert image.width == round(style.COLUMN_WIDTH * style.DPI)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 100  # not an empty page


# -- equal conditions -------------------------------------------------------------------------------------------------


def test_arms_are_every_output_in_every_precision_and_weighting() -> None:
    assert len(ARMS) == 2 * (5 + 4)  # the loss of v is its own
    for key, weighting, precision in itertools.product(PARAMS, WEIGHTINGS, PRECISIONS):
        arm = ARMS[arm_name(key, weighting, precision)]
        assert arm.param == PARAMS[key]
        assert arm.dtype is (torch.float32 if precision == "float32" else torch.bfloat16)
        assert arm.v_weighted is (weighting == "v" and key != "v")
    assert loss_weight(1.0, source=V, target=V) == 1.0


def test_scans_are_scaled_and_their_pixels_are_not() -> None:
    for scaled, plain in zip(scaled_digits(), digits(), strict=True):
        torch.testing.assert_close(scaled.tokens, SIGMA_DATA * plain.tokens)
        torch.testing.assert_close(scaled.to_pixels(scaled.tokens), plain.to_pixels(plain.tokens), rtol=0, atol=1e-5)
    assert float(scaled_digits()[0].tokens.double().std(correction=0)) == pytest.approx(SIGMA_DATA, rel=1e-6)


@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_at_unit_variance_the_race_would_have_four(precision: str) -> None:
    """EDM's F is -v there, and the head, AdamW and rounding know no sign: the weights are the same, the last layer negated."""
    data, _ = digits()
    recipe = Recipe(width=16, depth=1, steps=4, warmup=1)
    heads = [
        train(Arm("a", "a", param, precision), recipe, data, SCHEDULE, seed=0, device="cpu", tick=lambda _: None)  # type: ignore[arg-type]
        for param in (V, -V)
    ]
    assert AngularParam.edm(1.0).condition_number(0.7) == pytest.approx(1.0, rel=1e-15)
    for (name, v), (_, minus_v) in zip(*(head.named_parameters() for head in heads), strict=True):
        assert torch.equal(v, -minus_v if name.startswith("token_out") else minus_v), name
    assert heads[0].token_out.weight.abs().max() > 0


# -- predictions ------------------------------------------------------------------------------------------------------


def test_floors_are_closed_forms() -> None:
    """kappa^2 delta^2 E[(u/r)^2] with E = cos^2 psi sigma_d^2 + sin^2 psi, the energy of the target."""
    phi = SCHEDULE.phi.numpy()
    c, s, var = np.cos(phi), np.sin(phi), SIGMA_DATA**2
    found = floors(phi)
    np.testing.assert_allclose(found["eps"], RMS**2 / c**2, rtol=1e-9)
    np.testing.assert_allclose(found["x"], RMS**2 * var / s**2, rtol=1e-9)
    np.testing.assert_allclose(found["v"], RMS**2 * (c**2 + var * s**2), rtol=1e-9)
    np.testing.assert_allclose(found["flow"], RMS**2 * (1 + var) / (c + s) ** 2, rtol=1e-9)
    np.testing.assert_allclose(found["edm"], RMS**2 * var / (s**2 + var * c**2), rtol=1e-9)


def test_no_parameterization_has_a_lower_floor_than_edm() -> None:
    """The optimum is orthogonal to x_t; lower than all others at every angle, with equality only up to rounding."""
    found = floors(SCHEDULE.phi.numpy())
    for key in PARAMS:
        assert (found["edm"] <= found[key] * (1 + 1e-9)).all()


def test_target_moments_are_those_of_draws(generator: torch.Generator) -> None:
    n, phi = 200_000, 0.9
    x0 = SIGMA_DATA * torch.randn(n, generator=generator, dtype=torch.float64)
    eps = torch.randn(n, generator=generator, dtype=torch.float64)
    x_t, v = math.cos(phi) * x0 + math.sin(phi) * eps, V.target(x0, eps, phi)
    moments = target_moments(np.array(phi))
    for product, expected in ((x_t * x_t, moments.x_sq), (x_t * v, moments.x_v), (v * v, moments.v_sq)):
        assert float(product.mean()) == pytest.approx(
            float(expected), abs=5 * math.sqrt(2 / n)
        )  # products of std at most sqrt 2


def test_predictions_name_every_start_and_step_count() -> None:
    starts = parameterization_race.starts()
    predicted = predict(SCHEDULE, evaluation_timesteps(100), starts, (4, 10))
    assert starts == {"last": 999, "safe": largest_safe_timestep(SCHEDULE, param=EPSILON, delta="machine_epsilon")}
    for start, timestep in starts.items():
        everywhere = floors(SCHEDULE.phi[: timestep + 1].numpy())
        for key in PARAMS:
            assert predicted["rank_floor"][start][key] == pytest.approx(everywhere[key].mean(), rel=1e-12)
            assert predicted["moved"][start]["4"][key] > 0
    assert predicted["moved"]["last"]["10"]["eps"] > 100 * predicted["moved"]["safe"]["10"]["eps"]
    np.testing.assert_allclose(predicted["kappa"]["v"], 1.0)


# -- ranks ------------------------------------------------------------------------------------------------------------

KEYS = list(PARAMS)
apart = st.permutations([1.0, 2.0, 4.0, 8.0, 16.0])


@given(x=apart, y=st.lists(st.floats(-1e3, 1e3), min_size=5, max_size=5, unique=True))
def test_rank_correlation_is_spearmans(x: list[float], y: list[float]) -> None:
    found = rank_correlation(dict(zip(KEYS, x, strict=True)), dict(zip(KEYS, y, strict=True)))
    assert found == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_predictions_that_are_close_claim_no_order() -> None:
    close = dict(zip(KEYS, (1.0, 1.05, 1.1, 5.0, 9.0), strict=True))
    orders = ([1.0, 2.0, 3.0, 4.0, 5.0], [3.0, 1.0, 2.0, 4.0, 5.0])
    a, b = (rank_correlation(close, dict(zip(KEYS, order, strict=True))) for order in orders)
    assert a == pytest.approx(b)
    assert a == pytest.approx(spearmanr([2, 2, 2, 4, 5], orders[0]).statistic)


def test_a_diverged_sampler_ranks_last_and_ties_rank_nothing() -> None:
    x = dict(zip(KEYS, (1.0, 2.0, 4.0, 8.0, 16.0), strict=True))
    assert rank_correlation(x, dict(zip(KEYS, (1.0, 2.0, 3.0, 4.0, None), strict=True))) == pytest.approx(1.0)
    assert rank_correlation(x, dict.fromkeys(KEYS, 3.0)) is None
    assert rank_correlation(dict.fromkeys(KEYS, 3.0), x) is None


def test_chance_of_a_high_rank_correlation_is_what_the_table_says() -> None:
    x = dict(zip(KEYS, (1.0, 2.0, 4.0, 8.0, 16.0), strict=True))
    high = [
        order
        for order in itertools.permutations(range(5))
        if rank_correlation(x, dict(zip(KEYS, map(float, order), strict=True))) >= 0.9 - 1e-9
    ]
    assert len(high) * 24 == math.factorial(5)
