"""The main job as people run it, in its smallest preset, and the parts that its numbers rest on."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffparam import EPSILON, Schedule, V, loss_floor
from experiments import command, eps_vs_v
from experiments.head_study.arms import ARMS, Recipe, train
from experiments.head_study.decompose import (
    PARTS,
    bucket_masks,
    decompose,
    evaluation_timesteps,
    predict_direct,
    ratio_by_bucket,
    slope_in_alpha_bar,
)
from experiments.head_study.measure import measure
from experiments.head_study.quality import accuracy, frechet_distance, reference_quality
from experiments.jobs import run_jobs
from experiments.record import RECORDS, make_record, read_record, write_json
from experiments.tokens import digits
from mmar.diffusion_head import DiffusionHead

SCHEDULE = Schedule.cosine(1000)


# -- the whole job ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str, Path]:
    """Record, stdout and folder of ``python experiments/eps_vs_v.py --preset smoke``."""
    folder = tmp_path_factory.mktemp("smoke")
    patch = pytest.MonkeyPatch()
    patch.setattr(command, "RUNS", folder / "runs")
    lines: list[str] = []
    patch.setattr("builtins.print", lambda *text, **_: lines.append(" ".join(map(str, text))))
    eps_vs_v.main(["--preset", "smoke", "--out", str(folder / "record.json")])
    patch.undo()
    return json.loads((folder / "record.json").read_text()), "\n".join(lines), folder


def test_the_record_says_where_its_numbers_come_from(smoke: tuple[dict, str, Path]) -> None:
    record, _, _ = smoke
    assert record["experiment"] == "eps_vs_v"
    assert record["config"]["seeds"] == [0]
    assert record["versions"]["torch"] == torch.__version__
    assert record["device"]
    assert record["duration_s"] > 0
    assert set(record["results"]["loss"]) == set(ARMS)


def test_the_four_parts_sum_to_the_gap(smoke: tuple[dict, str, Path]) -> None:
    """Exactly, up to the record's six digits of each term."""
    for gap in smoke[0]["results"]["gaps"].values():
        curves = {name: np.asarray(gap["curves"][name]) for name in ("gap", *PARTS)}
        largest = np.max([np.abs(c) for c in curves.values()], axis=0)
        assert (np.abs(sum(curves[p] for p in PARTS) - curves["gap"]) < 5 * 1e-5 * largest).all()


def test_stdout_has_every_arm_and_every_start(smoke: tuple[dict, str, Path]) -> None:
    _, text, _ = smoke
    for arm in ARMS.values():
        assert arm.label in text
    for start in eps_vs_v.starts().values():
        assert f"t={start}" in text


def test_a_resumed_run_takes_up_finished_jobs(smoke: tuple[dict, str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    record, _, folder = smoke
    monkeypatch.setattr(command, "RUNS", folder / "runs")
    monkeypatch.setattr(eps_vs_v, "train", lambda *_, **__: pytest.fail("trained again"))
    eps_vs_v.main(["--preset", "smoke", "--resume", "--out", str(folder / "again.json")])
    assert json.loads((folder / "again.json").read_text())["results"] == record["results"]


def test_an_interrupted_run_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> dict:
        raise KeyboardInterrupt

    monkeypatch.setattr(eps_vs_v, "run", interrupt)
    monkeypatch.setattr(command, "RUNS", tmp_path)
    with pytest.raises(SystemExit) as stopped:
        eps_vs_v.main(["--preset", "smoke", "--out", str(tmp_path / "record.json")])
    assert stopped.value.code == 130
    assert "--preset smoke --resume" in capsys.readouterr().err
    assert not (tmp_path / "record.json").exists()


# -- jobs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Powers:
    base: int


def power(config: Powers, key: str, tick: object) -> dict[str, int]:
    """A job for the tests below; ``boom`` fails."""
    if key == "boom":
        raise ArithmeticError("no such power")
    tick(1)  # type: ignore[operator]
    return {"value": config.base ** int(key)}


def test_processes_and_one_process_agree_and_finished_jobs_outlive_a_failure(tmp_path: Path) -> None:
    options = {"units_per_job": 1, "folder": tmp_path, "resume": True}
    with pytest.raises(ArithmeticError, match="no such power"):
        run_jobs(power, Powers(3), ["1", "boom"], workers=0, **options)
    (kept,) = tmp_path.glob("*/1.json")
    kept.write_text('{"value": -1}')  # to be seen again: resumed, not computed
    done = run_jobs(power, Powers(3), ["1", "2", "4"], workers=2, **options)
    assert done == {"1": {"value": -1}, "2": {"value": 9}, "4": {"value": 81}}
    assert run_jobs(power, Powers(2), ["2"], workers=0, **options) == {"2": {"value": 4}}  # another config: another folder
    assert run_jobs(power, Powers(3), ["1"], workers=0, **{**options, "resume": False}) == {"1": {"value": 3}}


@dataclass(frozen=True)
class Several:
    base: int
    exponents: tuple[int, ...]


def test_finished_jobs_are_used_beside_further_ones(tmp_path: Path) -> None:
    options = {"units_per_job": 1, "folder": tmp_path, "resume": True, "workers": 0, "in_keys": ("exponents",)}
    run_jobs(power, Several(3, (1,)), ["1"], **options)
    (kept,) = tmp_path.glob("*/1.json")
    kept.write_text('{"value": -1}')  # to be seen again
    assert run_jobs(power, Several(3, (1, 2)), ["1", "2"], **options) == {"1": {"value": -1}, "2": {"value": 9}}
    assert run_jobs(power, Several(2, (1,)), ["1"], **options) == {"1": {"value": 2}}


def wait_for_ever(config: Powers, key: str, tick) -> dict:
    Path(key).write_text(str(os.getpid()))
    time.sleep(600)
    return {}


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Killed so that it can clean up nothing: its workers are not left behind to train on."""
    marks = [str(tmp_path / name) for name in "ab"]
    code = (
        "import sys\nfrom pathlib import Path\nfrom test_experiments import Powers, wait_for_ever\n"
        "from experiments.jobs import run_jobs\n"
        f"if __name__ == '__main__':\n    run_jobs(wait_for_ever, Powers(1), {marks!r}, units_per_job=1, "
        f"folder=Path({str(tmp_path)!r}), workers=2, resume=False)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    folders = os.pathsep.join([str(Path(__file__).parent), str(RECORDS.parent.parent)])
    parent = subprocess.Popen(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": folders}, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: all(Path(mark).exists() and Path(mark).read_text() for mark in marks), parent)
        family = children_of(parent.pid)  # the process that carries the progress too
    finally:
        parent.kill()
        parent.wait()
    workers = [int(Path(mark).read_text()) for mark in marks]
    assert set(workers) <= set(family) or not family
    wait_until(lambda: not any(is_running(process) for process in {*workers, *family}))


def children_of(process: int) -> list[int]:
    """Where the system tells."""
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat")]
    found = [(int(stat.partition(" ")[0]), int(stat.rpartition(")")[2].split()[1])) for stat in stats]
    return [child for child, parent in found if parent == process]


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")  # nobody has asked how it ended


def wait_until(holds, parent: subprocess.Popen | None = None) -> None:
    for _ in range(1200):
        if holds():
            return
        assert parent is None or parent.poll() is None, "the parent ended before its workers began"
        time.sleep(0.1)
    raise AssertionError("waited for two minutes in vain")


# -- training and measuring -------------------------------------------------------------------------------------------


def test_a_seed_decides_everything_about_an_arm() -> None:
    """One seed gives the same initial weights and the same draws: the same arm trains to the same weights, bit for bit."""
    data, _ = digits()
    recipe = Recipe(width=16, depth=1, steps=3, warmup=1)
    heads = [train(ARMS["v_float32"], recipe, data, SCHEDULE, seed=s, device="cpu", tick=lambda _: None) for s in (5, 5, 6)]
    same, again, other = (torch.cat([p.flatten() for p in head.parameters()]) for head in heads)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_precision_decides_weights_and_forward() -> None:
    data, _ = digits()
    recipe = Recipe(width=16, depth=1, steps=2, warmup=1)
    for name, weights in (("eps_mixed", torch.float32), ("eps_pure", torch.bfloat16)):
        head = train(ARMS[name], recipe, data, SCHEDULE, seed=0, device="cpu", tick=lambda _: None)
        assert {p.dtype for p in head.parameters()} == {weights}
        assert ARMS[name].dtype is torch.bfloat16


def test_a_head_without_rounding_has_no_direct_part() -> None:
    """Negative control: a head that says 1 in any precision has a v loss and no rounding."""
    _, held_out = digits()
    constant = DiffusionHead(64, 10, 16, 1)  # zero at initialisation
    torch.nn.init.ones_(constant.token_out.bias).requires_grad_(False)
    with torch.inference_mode():
        curves = measure(constant, ARMS["v_float32"], held_out, SCHEDULE, [500], draws=1, seed=0, device="cpu")
    assert curves["direct"] == curves["delta"] == [0.0]
    assert curves["loss_float32"] == curves["loss_bf16"]
    phi, x = SCHEDULE.phi_at(500), held_out.tokens.double()
    v_sq, v_mean = math.cos(phi) ** 2 + math.sin(phi) ** 2 * x.square().mean().item(), -math.sin(phi) * x.mean().item()
    expected = v_sq - 2 * v_mean + 1  # E (v - 1)^2 over 600 x 64 draws: within 5 sigma < 5 sqrt(4 / 38400) of 2
    assert curves["loss_float32"][0] == pytest.approx(expected, rel=5 * math.sqrt(4 / 38400))


# -- decomposition ----------------------------------------------------------------------------------------------------


def _curves(high: float, low: float, direct: float) -> dict[str, list[float]]:
    return {"loss_float32": [high], "loss_bf16": [low], "direct": [direct]}


def test_decomposition_of_curves_with_known_parts() -> None:
    heads = {
        "v_float32": _curves(1.0, 1.0, 0.0),
        "eps_float32": _curves(3.0, 3.0, 0.0),  # float32 gap 2
        "v_mixed": _curves(1.1, 1.125, 0.02),  # correlation .005
        "eps_mixed": _curves(3.6, 3.93, 0.3),  # training 2.5 - 2 = .5, direct .28, correlation .03 - .005
    }
    parts = {name: value.item() for name, value in decompose(heads, "mixed").items()}
    assert parts == pytest.approx({"gap": 2.805, "float32_gap": 2.0, "direct": 0.28, "training": 0.5, "remainder": 0.025})


def test_predictions_of_a_network_with_known_delta() -> None:
    """A relative error of exactly delta at every t: every prediction that is told delta meets it, eq. 27 only at 1/128."""
    timesteps = evaluation_timesteps(20)
    n, delta = len(timesteps), 1 / 200
    seen = {"delta": [delta] * n, "x_sq": [1.0] * n, "x_v": [0.0] * n, "v_sq": [0.3] * n}
    predicted = predict_direct(SCHEDULE, timesteps, seen)
    phi = SCHEDULE.phi[timesteps].numpy()
    # u_hat = eps_hat = sin x_t + cos v_hat, so E u^2 = sin^2 + 0.3 cos^2; in v-space divided by alpha_bar
    exact = delta**2 * (np.sin(phi) ** 2 + 0.3 * np.cos(phi) ** 2) / np.cos(phi) ** 2
    for name in ("calibrated", "one_delta"):
        assert np.allclose(predicted[name], exact, rtol=1e-9)
    assert np.allclose(predicted["paper"], 1 / (128**2 * np.cos(phi) ** 2), rtol=1e-9)
    ratios = ratio_by_bucket(exact, predicted["single_rounding"], timesteps)
    wanted = (delta / (2**-7 / math.sqrt(32 * math.log(2)))) ** 2
    assert all(r == pytest.approx(wanted, rel=1e-9) for r in ratios.values())


def test_buckets_hold_every_timestep_once() -> None:
    timesteps = evaluation_timesteps(20)
    assert np.sum(list(bucket_masks(timesteps).values()), axis=0).tolist() == [1] * len(timesteps)
    assert timesteps[-1] == 999


def test_slope_of_the_paper_curve_is_minus_one() -> None:
    timesteps = evaluation_timesteps(20)
    curve = np.asarray(loss_floor(SCHEDULE.phi[timesteps].numpy(), param=EPSILON, delta=0.01))
    assert slope_in_alpha_bar(curve, SCHEDULE, timesteps) == pytest.approx(-1, abs=1e-9)
    assert slope_in_alpha_bar(-curve, SCHEDULE, timesteps) is None


def test_starts_follow_from_the_loss_floor() -> None:
    starts = eps_vs_v.starts()
    for name, delta in (("safe_rms", "rms"), ("safe_machine_epsilon", "machine_epsilon")):
        floors = [loss_floor(float(SCHEDULE.phi[t]), param=EPSILON, delta=delta) for t in (starts[name], starts[name] + 1)]
        assert floors[0] <= 0.01 < floors[1]
    assert loss_floor(float(SCHEDULE.phi[999]), param=V, delta="machine_epsilon") < 0.01  # v is safe to the end


# -- quality and records ----------------------------------------------------------------------------------------------


def test_frechet_distance_of_gaussians(generator: torch.Generator) -> None:
    """Of N(0, A) and N(m, B) with commuting A and B: |m|^2 + sum (sqrt a - sqrt b)^2."""
    a = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    a = (a - a.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(a.T)).T)  # exactly white
    b = a * torch.tensor([2.0, 1.0, 0.5]) + torch.tensor([0.0, 3.0, 0.0])
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 0 + 0.25, rel=1e-9)


def test_the_classifier_reads_scans_and_not_noise(generator: torch.Generator) -> None:
    train_set, held_out = digits()
    assert reference_quality(train_set, held_out)["held_out_accuracy"] > 0.97  # a support vector machine reads 98-99 %
    noise = held_out.to_pixels(torch.randn(held_out.tokens.shape, generator=generator))
    assert accuracy(noise, held_out.labels) < 0.2


def test_digits_are_normalised_by_the_training_split_alone() -> None:
    train_set, held_out = digits()
    assert (len(train_set), len(held_out)) == (1197, 600)
    assert train_set.tokens.double().mean().item() == pytest.approx(0, abs=1e-6)
    assert train_set.tokens.double().std(correction=0).item() == pytest.approx(1, abs=1e-6)
    pixels = held_out.to_pixels(held_out.tokens)
    assert torch.allclose(pixels, pixels.round(), atol=1e-5)
    assert 0 <= pixels.round().min() < pixels.round().max() <= 16


def test_records_are_plain_json_and_missing_ones_name_their_command(tmp_path: Path) -> None:
    config = replace(eps_vs_v.PRESETS["smoke"], seeds=(7,))
    here = str(RECORDS / "demo")
    results = {"a": math.nan, "b": torch.tensor([1.0, 1 / 3]), "folder": here}
    record = make_record("demo", config, results, duration_s=1.0, device="cpu")
    write_json(record, tmp_path / "demo-smoke.json")
    back = read_record(tmp_path / "demo-smoke.json")
    assert back["results"] == {"a": None, "b": [1.0, 0.333333], "folder": "experiments/records/demo"}
    assert back["config"]["seeds"] == [7]
    with pytest.raises(FileNotFoundError, match=r"python experiments/demo\.py --preset cpu"):
        read_record("demo-cpu")
