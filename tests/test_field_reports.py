"""Two public reports: predictions by closed forms, guards and weights as the threads have them, and the job as it is run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffparam import (
    EPSILON,
    FLOW,
    VP,
    X0,
    GaussianMixture,
    Schedule,
    V,
    ddim_sample,
    ddim_step,
    largest_safe_timestep,
    rounding_energy,
)
from experiments import command, field_reports
from experiments.field_study.exact import ExactNetwork, rounding_loss
from experiments.field_study.findings import explosion, findings, share
from experiments.field_study.guards import ClampTime, ClipData, ClipOutput, NoGuard
from experiments.field_study.predictions import DELTAS, describe_weight, nearest_safe, predict, start_by_own_error
from experiments.field_study.render import number, render
from experiments.field_study.reports import FOLK_CLAMP, REPORTS, Head
from experiments.field_study.summary import summarise
from experiments.field_study.tables import tables
from experiments.field_study.training import describe, train_watched
from experiments.head_study.arms import Arm, Recipe, train
from experiments.head_study.decompose import PARTS
from experiments.record import make_record, read_record, write_json
from experiments.tokens import digits
from paper_figures import field_reports as figure
from paper_figures import style

NOISY, CLEAN = REPORTS["noisy_end"], REPORTS["clean_end"]
RMS, BF16_EPSILON = 2.0**-7 / math.sqrt(32 * math.log(2)), 2.0**-7
NOISE_LEVEL = np.arange(1, 1001) / 1000

Smoke = tuple[dict, str, Path]


# -- the whole job ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    """Record, stdout and folder of ``python experiments/field_reports.py --preset smoke``."""
    folder = tmp_path_factory.mktemp("field_reports")
    patch = pytest.MonkeyPatch()
    patch.setattr(command, "RUNS", folder / "runs")
    lines: list[str] = []
    patch.setattr("builtins.print", lambda *text, **_: lines.append(" ".join(map(str, text))))
    field_reports.main(["--preset", "smoke", "--out", str(folder / "record.json")])
    patch.undo()
    return json.loads((folder / "record.json").read_text()), "\n".join(lines), folder


def test_record_and_stdout_name_every_head_run_and_finding(smoke: Smoke) -> None:
    record, text, _ = smoke
    for name, report in REPORTS.items():
        results = record["results"]["reports"][name]
        assert report.thread in text
        assert set(results["samples"]) == set(results["curves"]) == set(results["training"]) == set(report.heads)
        for head, runs in results["samples"].items():
            param = report.heads[head].arm.param
            assert set(runs) == set(report.runs[param.name]) | ({"own_error"} if param == report.limited else set())
            assert all(report.label(param.name, run) in text for run in runs)
        assert all(f"- {line}" in text for line in findings(name, results))


def test_parts_sum_to_the_gap_of_the_reported_head_over_its_cure(smoke: Smoke) -> None:
    """Exactly, up to the record's six digits of each term."""
    for name, (reported, cure) in {"noisy_end": ("eps_bf16", "v_bf16"), "clean_end": ("x_bf16", "flow_bf16")}.items():
        results = smoke[0]["results"]["reports"][name]
        gap, *parts = (np.array([cell["mean"] for cell in results["parts"][part]]) for part in ("gap", *PARTS))
        assert np.allclose(sum(parts), gap, rtol=0, atol=1e-5 * np.abs([gap, *parts]).max(0))
        lost = [np.asarray(results["curves"][head]["loss_bf16"][0]) for head in (reported, cure)]
        assert np.allclose(gap, lost[0] - lost[1], rtol=1e-5, atol=1e-5 * lost[0].max(initial=0, where=lost[0] < 10))
        assert sum(share(results, part) for part in PARTS) == pytest.approx(100, abs=1e-2)


def test_a_resumed_run_takes_up_finished_jobs(smoke: Smoke, monkeypatch: pytest.MonkeyPatch) -> None:
    record, _, folder = smoke
    monkeypatch.setattr(command, "RUNS", folder / "runs")
    monkeypatch.setattr(field_reports, "train_watched", lambda *_, **__: pytest.fail("trained again"))
    field_reports.main(["--preset", "smoke", "--resume", "--out", str(folder / "again.json")])
    assert json.loads((folder / "again.json").read_text())["results"] == record["results"]


def test_the_figure_is_drawn_from_the_record_alone_and_is_reproducible(smoke: Smoke, tmp_path: Path) -> None:
    for name in ("first", "second"):
        figure.main(["--record", str(smoke[2] / "record.json"), "--out", str(tmp_path / name)])
    first, second = (tmp_path / name / "field_reports.png" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert image.width == round(style.COLUMN_WIDTH * style.DPI)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 100  # not an empty page


def test_a_run_that_left_the_finite_range_has_no_mark_and_no_number(smoke: Smoke) -> None:
    record = json.loads(json.dumps(smoke[0]))
    lost = record["results"]["reports"]["noisy_end"]["samples"]["eps_bf16"]["reported"]
    none = {"mean": None, "min": None, "max": None}
    lost["bf16"] = dict.fromkeys(lost["bf16"], none)
    lost["moved"] = none
    with style.applied():
        figure.draw(record)
    assert "as reported -" in findings("noisy_end", record["results"]["reports"]["noisy_end"])[-1]


# -- predictions ------------------------------------------------------------------------------------------------------


def test_the_noisy_end_is_predicted_by_closed_forms() -> None:
    predicted = predict(NOISY, 50)["outputs"]["epsilon"]
    alpha_bar = float(NOISY.schedule.alpha_bar[-1])
    assert predicted["condition_number"] == pytest.approx(alpha_bar**-0.5, rel=1e-9)
    assert predicted["tolerable_loss"] == pytest.approx(0.01 * alpha_bar, rel=1e-9)
    assert predicted["floor"]["bf16"] == pytest.approx(RMS**2 / alpha_bar, rel=1e-9)  # eq. 27 with the rms delta
    assert predicted["floor"]["bf16"] / predicted["floor"]["float32"] == pytest.approx(2.0**32, rel=1e-9)  # 16 bits
    for delta in DELTAS:
        assert predicted["limit"]["bf16"][delta] == largest_safe_timestep(NOISY.schedule, param=EPSILON, delta=delta)
    assert predicted["moved"]["reported"]["bf16"] > 100 * predicted["moved"]["safe_rms"]["bf16"]
    assert predicted["moved"]["clip_data"] == {"float32": None, "bf16": None}  # clipping is not linear


def test_the_clean_end_is_predicted_by_closed_forms() -> None:
    """On x_n = (1 - n) x + n eps: sin phi = n / hypot(n, 1 - n), so kappa = hypot(n, 1 - n) / n."""
    predicted = predict(CLEAN, 50)["outputs"]
    kappa = np.hypot(NOISE_LEVEL, 1 - NOISE_LEVEL) / NOISE_LEVEL
    assert predicted["sample"]["condition_number"] == pytest.approx(kappa[0], rel=1e-9)
    for delta, size in (("rms", RMS), ("unit_roundoff", BF16_EPSILON / 2), ("machine_epsilon", BF16_EPSILON)):
        first = int(np.flatnonzero((kappa * size) ** 2 <= 0.01)[0]) + 1
        assert predicted["sample"]["limit"]["bf16"][delta] == pytest.approx(first, abs=1e-6)
    limits = [t / 1000 for t in predicted["sample"]["limit"]["bf16"].values()]
    assert min(limits) < FOLK_CLAMP < max(limits)
    assert {*predicted["sample"]["limit"]["float32"].values(), *predicted["flow"]["limit"]["bf16"].values()} == {1.0}
    assert predicted["flow"]["condition_number"] < math.sqrt(2)
    assert predicted["sample"]["moved"]["reported"]["bf16"] < 0.01  # kappa is infinite where the steps end, and cancels


def test_nothing_is_safe_at_an_absurd_error() -> None:
    assert nearest_safe(NOISY, EPSILON, 0.5, "bfloat16") is None
    level = nearest_safe(CLEAN, X0, 0.05, "bfloat16")
    assert level == math.ceil(1000 * (math.sqrt(3) - 1) / 2)  # kappa = 2: n^2 + (1 - n)^2 = 4 n^2


def test_loss_weights_are_those_of_the_thread() -> None:
    """The velocity's squared error is that of x over n^2; the clamp bounds n from below."""
    for head, bound in (("x_bf16", 0.0), ("xclamp_bf16", FOLK_CLAMP)):
        np.testing.assert_allclose(CLEAN.heads[head].weight(CLEAN.schedule), np.maximum(NOISE_LEVEL, bound) ** -2.0, rtol=1e-9)
    assert CLEAN.heads["flow_bf16"].weight(CLEAN.schedule) is None


def test_effective_share_of_a_batch() -> None:
    """1 / n^2 over N levels k / N: (sum k^-2)^2 / (N sum k^-4), about (pi^2/6)^2 / (pi^4/90) / N = 2.5 / N."""
    share_of = describe_weight(CLEAN.heads["x_bf16"].weight(CLEAN.schedule))
    assert share_of["effective_share"] == pytest.approx(2.5 / 1000, rel=2e-3)  # the tail of sum k^-2 beyond 1000
    assert describe_weight(torch.ones(7).double()) == describe_weight(None) == {"largest": 1.0, "effective_share": 1.0}
    one = torch.zeros(10).double()
    one[3] = 5.0
    assert describe_weight(one)["effective_share"] == pytest.approx(0.1)


@given(loss=st.floats(1e-2, 1e7))
def test_start_by_own_error_is_the_last_with_an_error_of_at_most_one(loss: float) -> None:
    start, alpha_bar = start_by_own_error(NOISY, EPSILON, loss), NOISY.schedule.alpha_bar
    cost = loss * alpha_bar[-1] / alpha_bar  # kappa^2 delta^2 with delta^2 = loss / kappa_end^2
    assert cost[start] <= 1 + 1e-9
    assert start == len(alpha_bar) - 1 or cost[start + 1] > 1 - 1e-9


# -- the exact network and rounding alone ----------------------------------------------------------------------------


@pytest.mark.parametrize("param", [EPSILON, V, X0], ids=lambda p: p.name)
def test_the_exact_network_is_the_oracle_of_point_masses(param: object, generator: torch.Generator) -> None:
    """Two ways to one posterior mean. Exponents reach D / (2 sin^2) = 8e5 at t = 0: 8e5 ulp, 2e-10, in a probability."""
    train_set, _ = digits()
    schedule = NOISY.schedule
    network = ExactNetwork(train_set, schedule, param)  # type: ignore[arg-type]
    scans = train_set.tokens[train_set.labels == 3].double()
    oracle = GaussianMixture(scans, torch.zeros(len(scans), dtype=torch.float64))
    for t in (0, 300, 999):
        eps = torch.randn(20, 64, generator=generator, dtype=torch.float64)
        x_t = schedule.add_noise(scans[:20], eps, t)
        z = torch.nn.functional.one_hot(torch.full((20,), 3), 10).float()
        u = network.exact(x_t, torch.full((20,), t), z)
        expected = oracle.output(x_t, schedule.phi_at(t), param=param)  # type: ignore[arg-type]
        scale = float(param.condition_number(schedule.phi_at(t))) if t else 200.0  # type: ignore[attr-defined]
        torch.testing.assert_close(u, expected, rtol=0, atol=1e-9 * scale)
        rounded = network(x_t, torch.full((20,), t), z, dtype=torch.bfloat16)
        assert rounded.dtype is torch.bfloat16
        assert (rounded.double() - u).abs().max() <= 2.0**-8 * u.abs().max()


def test_rounding_of_a_perfect_output_costs_what_is_predicted() -> None:
    """At t = 999 the perfect eps is x_t, standard normal: kappa^2 E[(round(u) - u)^2], from 3200 values within 5 sigma."""
    train_set, held_out = digits()
    some = field_reports._first(held_out, 50)
    network = ExactNetwork(train_set, NOISY.schedule, EPSILON)
    kappa_sq = 1 / float(NOISY.schedule.alpha_bar[-1])
    measured = rounding_loss(network, some, 999, torch.bfloat16, seed=0)
    # e^2 of a uniform error has a relative std of sqrt(4/5) within a binade; over the binades of a Gaussian at most 2
    assert measured == pytest.approx(kappa_sq * rounding_energy("bfloat16", 1.0), rel=5 * 2 / math.sqrt(3200))
    assert rounding_loss(network, some, 999, torch.float32, seed=0) < 2.0**-30 * measured  # control: 2^-32


# -- guards -----------------------------------------------------------------------------------------------------------


def _pair(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 64, generator=generator).double(), torch.randn(8, 64, generator=generator).double()


@settings(deadline=None)
@given(index=st.integers(0, 999), seed=st.integers(0, 99))
def test_clamped_time_is_the_step_of_the_published_sampler(index: int, seed: int) -> None:
    """z + (n - m) (x_hat - z) / max(n, b), an Euler step of the velocity on z = (1 - n) x + n eps, downwards from n to m."""
    train_set, _ = digits()
    u, x_t = _pair(torch.Generator().manual_seed(seed))
    phi, n = float(CLEAN.schedule.phi[index]), NOISE_LEVEL[index]
    m = n / 2
    phi_s = math.atan2(m, 1 - m)
    guard = ClampTime(FOLK_CLAMP)
    ours = ddim_step(guard.apply(u, x_t, phi, param=X0, data=train_set), x_t, phi, phi_s, param=guard.param(X0))
    z = x_t / (math.cos(phi) + math.sin(phi))
    theirs = z + (n - m) * (u - z) / max(n, FOLK_CLAMP)
    torch.testing.assert_close(ours / (math.cos(phi_s) + math.sin(phi_s)), theirs, rtol=0, atol=1e-12)


def test_clamping_the_sampler_leaves_noise_that_is_known(generator: torch.Generator) -> None:
    """Perfect x, 50 steps of 0.02: those from n = 0.04 and 0.02 go 0.02 / 0.05 of their way and leave 0.04 * 0.6^2 of it."""
    x0, noise = _pair(generator)
    data, _ = digits()
    grid = CLEAN.grid(CLEAN.runs["sample"]["reported"], 50)
    left = {}
    for guard in (NoGuard(), ClampTime(FOLK_CLAMP)):
        found = ddim_sample(
            lambda x, t, g=guard: g.apply(x0, x, grid.phi_at(float(t[0])), param=X0, data=data), noise, grid, param=X0
        )
        left[type(guard)] = found - x0
    torch.testing.assert_close(left[ClampTime], 0.04 * 0.6**2 * (noise - x0), rtol=0, atol=1e-12)
    assert left[NoGuard].abs().max() < 1e-14


def test_clipping_acts_beyond_its_bound_and_not_within(generator: torch.Generator) -> None:
    u, x_t = _pair(generator)
    data, _ = digits()
    for param in (EPSILON, V, X0):
        assert torch.equal(NoGuard().apply(u, x_t, 1.0, param=param, data=data), u)
        assert torch.equal(ClipOutput(20.0).apply(u, x_t, 1.0, param=param, data=data), u)  # a normal number is below 20
        assert ClipOutput(0.5).apply(u, x_t, 1.0, param=param, data=data).abs().max() == 0.5
        clipped = ClipData(0.0, 16.0).apply(50 * u, x_t, 1.0, param=param, data=data)
        pixels = data.to_pixels(clipped)
        assert float(pixels.min()) == pytest.approx(0, abs=1e-9)
        assert float(pixels.max()) == pytest.approx(16, rel=1e-9)
    assert ClipData(0.0, 16.0).param(EPSILON) == X0
    assert ClipOutput(20.0).param(EPSILON) == EPSILON


# -- training ---------------------------------------------------------------------------------------------------------


def test_without_a_weight_training_is_that_of_the_head_study_bit_for_bit() -> None:
    data, _ = digits()
    recipe = Recipe(width=16, depth=1, steps=3, warmup=1)
    for name in ("eps_float32", "v_bf16"):
        head = NOISY.heads[name]
        ours, _ = train_watched(head, NOISY, recipe, data, seed=4, device="cpu", tick=lambda _: None)
        theirs = train(head.arm, recipe, data, NOISY.schedule, seed=4, device="cpu", tick=lambda _: None)
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_the_watched_bins_hold_the_weighted_loss() -> None:
    """Before the first step the output is 0: the flow loss of x output is x^2 / n^2, of flow output (eps - x)^2."""
    data, _ = digits()
    recipe = Recipe(width=8, depth=1, steps=1, batch=1197, timesteps_per_token=4)
    for name, expected in (("x_float32", NOISE_LEVEL**-2), ("flow_float32", 2.0 + 0 * NOISE_LEVEL)):
        _, log = train_watched(CLEAN.heads[name], CLEAN, recipe, data, seed=0, device="cpu", tick=lambda _: None)
        # 4308 rows outside the tail, means over 64 channels; n^-2 there has a relative std below 2
        assert log["rest"]["median"] == pytest.approx(expected[100:].mean(), rel=5 * 2 / math.sqrt(4308))
        if name == "x_float32":
            assert log["tail"]["median"] > 100 * log["rest"]["median"]


def test_description_of_a_loss_curve() -> None:
    first, second = np.full(50, 9.0), np.ones(50)
    second[7], first[3] = 25.0, np.nan
    told = describe(np.concatenate([first, second]))
    assert told["median"] == 1.0
    assert told["spike"] == 25.0
    assert told["spread"] == pytest.approx(second.std() / second.mean())
    assert told["not_finite"] == 1
    assert len(told["blocks"]["median"]) == len(told["blocks"]["max"]) == 60
    assert describe(np.ones(10))["spike"] == 1.0


def test_a_diverged_head_has_a_record_tables_and_a_figure(smoke: Smoke, tmp_path: Path) -> None:
    """The report at the clean end ends in NaN: with an absurd learning rate so does this head."""
    recipe = Recipe(width=8, depth=1, steps=8, warmup=1, learning_rate=1e30)
    config = replace(field_reports.PRESETS["smoke"], recipe=recipe)
    job = field_reports.run_job(config, "clean_end-x_bf16-seed0", lambda _: None)
    assert job["training"]["tail"]["not_finite"] > 0
    assert job["curves"]["loss_bf16"][0] is None
    json.dumps(job, allow_nan=False)
    folder = next((smoke[2] / "runs" / "field_reports").iterdir())
    jobs = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    results = {
        "reference": smoke[0]["results"]["reference"],
        "reports": summarise({**jobs, "clean_end-x_bf16-seed0": job}, (0,), 4),
    }
    write_json(make_record("field_reports", config, results, duration_s=1.0, device="cpu"), tmp_path / "diverged.json")
    record = read_record(tmp_path / "diverged.json")
    assert "nan" in tables(record)
    figure.main(["--record", str(tmp_path / "diverged.json"), "--out", str(tmp_path)])


# -- findings and text ------------------------------------------------------------------------------------------------


def test_explosion_is_the_first_predicted_clean_sample(generator: torch.Generator) -> None:
    """An eps output with an error d at t = 999: x_hat = x - (tan phi) d, of mean square 1 + kappa^2 d^2 up to alpha_bar."""
    schedule, d = NOISY.schedule, 0.05
    phi = float(schedule.phi[-1])
    x0, eps = (torch.randn(2000, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    x_t = schedule.add_noise(x0, eps, 999)
    first = (x_t - math.sin(phi) * (eps + d)) / math.cos(phi)
    loss = (d / math.cos(phi)) ** 2  # in v-space, eq. 25
    results = {"timesteps": [999], "end": 999, "curves": {"eps_float32": {"loss_float32": [[loss]]}}}
    assert explosion(results, "eps_float32") == pytest.approx(float(first.square().mean() ** 0.5), rel=1e-3)


def test_numbers_over_seeds() -> None:
    assert number({"mean": 2.0, "min": 1.5, "max": 2.5}) == "2 ±0.5"
    assert number({"mean": 2.0, "min": 2.0, "max": 2.0}) == number(2.0) == "2"
    assert number({"mean": None, "min": None, "max": None}) == number(None) == "-"
    assert render("T", ["a", "b"], [["long name", "1"]]).splitlines()[2] == "a          b"


def test_heads_differ_in_what_they_are_compared_for_alone() -> None:
    """Precision pairs share output, loss space and bound; the clamp changes the bound alone."""
    for report in REPORTS.values():
        for name, head in report.heads.items():
            twin = report.heads[name.replace("float32", "bf16")]
            assert (head.arm.param, head.loss_space, head.bound) == (twin.arm.param, twin.loss_space, twin.bound)
    assert Head(CLEAN.heads["x_bf16"].arm, FLOW, CLEAN.heads["xclamp_bf16"].bound) == Head(
        Arm("x_bf16", "x, no clamp, bf16", X0, "mixed"), FLOW, FOLK_CLAMP**-2
    )
    assert CLEAN.schedule.state is VP
    assert NOISY.schedule.phi.equal(Schedule.cosine(1000).phi)
