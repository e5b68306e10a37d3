"""The comparisons of the paper in their smallest preset, and what their tables rest on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from experiments import (
    ablations,
    command,
    digit_tokenizers,
    figure3b,
    figure3c,
    figure5,
    figure7,
    image_order,
    sampler_precision,
    speed_quality,
    table1,
    table3,
    table3_scenes,
)
from experiments.paper_study import kept, runs
from experiments.paper_study.arms import ARMS
from experiments.paper_study.measure import Amount, DigitJudge, masked_tokens
from experiments.paper_study.objects import measure_objects
from experiments.paper_study.runs import SUBJECTS, Recipe, Runs
from experiments.paper_study.study import Study, measure_arm
from experiments.pictures import packed, unpacked
from experiments.record import read_record, write_json
from mmar.baselines import BASELINES
from mmar.data.digits import DigitDataset
from mmar.masking import MaskRatio
from mmar.model import MMARForConditionalGeneration
from mmar.pipeline import MMARPipeline
from mmar.tokenizers import load_image_tokenizer
from mmar.training.loop import FINAL
from paper_figures import figure2, figure3a_mmar
from paper_figures import figure3b as figure3b_figure
from paper_figures import figure3c as figure3c_figure
from paper_figures import figure5 as figure5_figure
from paper_figures import figure7 as figure7_figure
from paper_figures import speed_quality as speed_figure
from paper_figures import table3 as table3_figure

TINY = Recipe(text_steps=1, stage1_steps=1, stage2_steps=1, batch_size=2, words=("questions=1",))


def run(module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    path = tmp_path / "record.json"
    monkeypatch.setattr(command, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(sys, "argv", [module.__name__, "--preset", "smoke", "--out", str(path)])
    module.main()
    return json.loads(path.read_text())


def test_table3_runs_and_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    record = run(table3, tmp_path, monkeypatch)
    found = record["results"]
    assert set(found["arms"]) == set(table3.PRESETS["smoke"].arms)
    assert found["reference"]["recognised"] > 0.98
    for name, arm in found["arms"].items():
        assert 0 <= arm["reading"]["mean"] <= 1
        assert arm["drawing"]["last"]["recognised"]["mean"] < 0.6  # two steps teach nothing: the share measures something
        assert ("safe" in arm["drawing"]) == (not BASELINES[ARMS[name].baseline].needs_codes)
    loss = found["head"]["loss"]
    assert loss["eps_float32"]["999"]["mean"] > 1e6 * loss["v_float32"]["999"]["mean"]  # an untrained epsilon head
    assert found["head"]["gaps"]["mixed"]["parts"]["direct"]["999"]["mean"] > 0
    assert "transfusion-like" in capsys.readouterr().out
    assert isinstance(figure3a_mmar.draw(record), Figure)
    assert isinstance(table3_figure.draw(record), Figure)


def test_table3_on_scenes_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(table3_scenes, tmp_path, monkeypatch)["results"]
    assert set(found["arms"]) == {"v_mixed", "vq", "transfusion"}
    for arm in found["arms"].values():
        assert all(0 <= arm["reading"][split]["mean"]["mean"] <= 1 for split in ("test", "held_out"))
        assert arm["drawing"]["last"]["exact"]["mean"] == 0.0  # two steps teach nothing: the share measures something
    assert found["references"]["real scenes"]["exact"] == 1.0
    assert found["references"]["test scenes after the autoencoder"]["position"] == 1.0
    assert "transfusion-like" in capsys.readouterr().out


def test_objects_take_the_image_tokens_of_their_arm() -> None:
    """MMAR packs four latents into a token; codes cannot be packed, and digits are as they were."""
    packed = runs.image_words(ARMS["v_mixed"], SUBJECTS["objects"])
    assert {"tokenizers.image_patch_size=2", "model.options.image_config.channels=32"} <= set(packed)
    codes = runs.image_words(ARMS["vq"], SUBJECTS["objects"])
    assert {"tokenizers.image_patch_size=1", "model.options.image_config.codebook_size=1024"} <= set(codes)
    assert not any("patch_size" in word for word in runs.image_words(ARMS["v_mixed"], SUBJECTS["digits"]))


def test_folders_of_older_runs_are_found() -> None:
    """What came later, a rate and a subject, is named where it is not the usual one."""
    assert set(Recipe().identity()) & {"rate", "subject"} == set()
    assert Recipe(rate=2.0, subject="objects").identity()["subject"] == "objects"
    folders = {Runs(Path("runs"), Recipe(subject=subject)).arm_folder(ARMS["vq"], 0) for subject in SUBJECTS}
    assert len(folders) == len(SUBJECTS)


def test_what_is_kept_of_arms_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine's measurements stand in for training; its own are never replaced, nor are kept ones."""
    study = Study(amount=Amount(400, 200), folder="study")
    chosen, seed = ARMS["flow"], 1
    name = kept.file_name("objects", study.amount)
    theirs, ours = tmp_path / "kept", tmp_path / "runs" / "study"
    there = theirs / study.runs.arm_folder(chosen, seed).name / name
    write_json({"device": "theirs"}, there)
    write_json({"device": "too few"}, ours / "other-seed0-0" / kept.file_name("digits", Amount(2, 1, 2)))
    monkeypatch.setattr(command, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(Runs, "train", lambda *_: pytest.fail("trained what was kept"))

    def ticked(config: Study) -> list[int]:
        ticks: list[int] = []
        assert measure_arm(config, chosen, seed, ticks.append, measure_objects) == {"device": "theirs"}
        return ticks

    kept.take_up(ours, theirs)
    assert sum(ticked(study)) == 2  # as training would have
    with pytest.raises(pytest.fail.Exception, match="trained"):
        measure_arm(study, ARMS["flow"], 2, lambda _: None)
    write_json({"device": "ours"}, ours / there.parent.name / name)
    assert kept.take_up(ours, theirs) == []
    assert kept.keep(ours, theirs) == []
    assert json.loads(there.read_text()) == {"device": "theirs"}
    assert kept.keep(ours, tmp_path / "new") == [tmp_path / "new" / there.parent.name / name]


def test_committed_measurements_are_those_of_the_records() -> None:
    """Each arm of table 3 on scenes is in the record as it was kept."""
    record, study = read_record("table3_scenes-cpu"), table3_scenes.PRESETS["cpu"]
    for name, one in record["results"]["arms"].items():
        folders = [kept.KEPT / study.runs.arm_folder(ARMS[name], seed).name for seed in record["config"]["seeds"]]
        found = [json.loads((folder / kept.file_name("objects", study.amount)).read_text()) for folder in folders]
        means = [seed["reading"]["test"]["mean"] for seed in found]
        assert one["reading"]["test"]["mean"]["mean"] == pytest.approx(sum(means) / len(means), rel=1e-5)
        assert one["devices"] == [seed["device"] for seed in found]


def test_a_record_without_heads_has_no_figure() -> None:
    with pytest.raises(ValueError, match="all arms"):
        figure3a_mmar.draw({"results": {"head": None}})


def test_speed_and_quality_run_and_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(speed_quality, tmp_path, monkeypatch)
    ways = record["results"]["ways"]
    assert ways["paper"]["head_calls"] == 48
    assert ways["2 x 2-1 dpm_solver"]["head_calls"] == 3
    assert ways["2 x 2-1 dpm_solver"]["fewer_calls"] == 16
    assert len(ways["paper"]["recognised"]["each"][0]) == 2
    assert record["results"]["best"] in ways
    assert "best:" in capsys.readouterr().out
    assert isinstance(speed_figure.draw(record), Figure)


def test_table1_and_sizes_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(table1, tmp_path, monkeypatch)["results"]
    assert set(found["arms"]) == {"chameleon", "understanding_only"}
    assert found["arms"]["understanding_only"]["drawing"] == {}  # it has nothing to draw with
    assert found["sizes"]["mmar-digits"]["trained_parameters"] > 2 * found["arms"]["chameleon"]["trained_parameters"] > 0
    assert set(found["sizes"]) == {"mmar-digits", "mmar-digits-small x2"}
    assert 0 <= found["sizes"]["mmar-digits"]["reading_captions"]["mean"] <= 1
    assert "LLaVA-like" in capsys.readouterr().out


def test_image_orders_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(image_order, tmp_path, monkeypatch)["results"]
    assert list(found["ways"]) == list(image_order.LABELS)
    for one in found["ways"].values():
        assert one["frechet"]["mean"] > 5 * found["reference"]["frechet"]  # three steps teach nothing
    whole, half = (found["ways"][name]["frechet"]["mean"] for name in ("raster", "raster, half the steps"))
    assert whole != half  # models of their own
    assert "raster order with causal attention" in capsys.readouterr().out


def test_ablations_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(ablations, tmp_path, monkeypatch)["results"]
    assert set(found["arms"]) == set(ablations.PRESETS["smoke"].arms)
    assert "a position for each token" in capsys.readouterr().out


def test_figure3b_runs_and_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(figure3b, tmp_path, monkeypatch)
    gain = record["results"]["gain"]
    assert gain["measured"][0][0]["mean"] == 1.0  # without guidance the output is the branch's own
    assert gain["predicted"] == pytest.approx([1.0, 13**0.5], rel=1e-5)
    assert 1.0 < gain["measured"][0][1]["mean"] < 5.0  # between full correlation and far above none: |w| + |w - 1|
    assert "independent roundings" in capsys.readouterr().out
    assert isinstance(figure3b_figure.draw(record), Figure)


def test_figure3c_runs_and_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(figure3c, tmp_path, monkeypatch)
    found = record["results"]
    assert [(p["stage"], p["step"]) for p in found["points"]] == [("stage1", 1), ("stage1", 2), ("stage2", 1), ("stage2", 2)]
    assert len(found["plain"]) == len(found["tuned"]) == 4
    assert "after tuning" in capsys.readouterr().out
    assert isinstance(figure3c_figure.draw(record), Figure)


def test_figure5_counts_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    record = run(figure5, tmp_path, monkeypatch)
    found = record["results"]
    assert found["holes_in_test_scans"] == pytest.approx(0.01, abs=0.002)  # as they set the threshold
    assert found["holes"]["v_mixed"]["mean"] > 2 * found["holes_in_test_scans"]  # two steps draw clouds
    assert [unpacked(one).size for one in found["pictures"]["v_mixed"]] == [(8, 8)] * 10
    assert "of patches" in capsys.readouterr().out
    assert isinstance(figure5_figure.draw(record), Figure)


def test_figure7_runs_and_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    record = run(figure7, tmp_path, monkeypatch)
    assert set(record["results"]["arms"]["transfusion"]) == {"0", "750"}
    assert set(record["results"]["arms"]["v_mixed"]) == {"clean"}
    assert "t = 750" in capsys.readouterr().out
    assert isinstance(figure7_figure.draw(record), Figure)


def test_sampler_precision_is_predicted_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = run(sampler_precision, tmp_path, monkeypatch)["results"]["arms"]
    for arm in arms.values():
        errors = {way: cell["measured"]["mean"] / cell["predicted"]["mean"] for way, cell in arm["errors"].items()}
        assert 0.5 < errors["state"] < 2.0  # an untrained head is nearly linear; three steps of some thousand numbers
        assert arm["errors"]["everything"]["measured"]["mean"] > 0
    assert "all one way" in capsys.readouterr().out


def test_figure2_shows_the_densities_that_are_drawn() -> None:
    assert isinstance(figure2.draw(), Figure)
    for ratio in (MaskRatio.stage1(), MaskRatio.stage2()):
        shares = figure2.shares_drawn(ratio, draws=2000, tokens=1000)
        for p in (0.1, 0.5, 0.9):  # rounding up to whole tokens shifts a share by 1/1000 at most
            assert (shares <= ratio.quantile(p) + 1e-3).mean() == pytest.approx(p, abs=0.05)  # five standard errors


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pictures_come_back_to_the_pixel(mode: str) -> None:
    shape = (8, 8) if mode == "L" else (8, 8, 3)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8))
    assert packed(unpacked(packed(picture))) == packed(picture)
    assert np.array_equal(np.asarray(unpacked(packed(picture))), np.asarray(picture))


def test_the_front_and_the_best_way() -> None:
    def way(seconds: float, frechet: float, recognised: float = 0.9, recall: float = 0.9, spread: float = 1.0) -> dict:
        cells = {"seconds": seconds, "frechet": frechet, "recognised": recognised, "recall": recall}
        return {name: {"mean": value, "spread": spread} for name, value in cells.items()}

    table = {"paper": way(10, 5), "worse": way(11, 6), "fast": way(1, 9), "middle": way(4, 5.9), "blind": way(2, 5.5, -0.5)}
    table["narrow"] = way(2.5, 5.5, recall=-0.5)
    assert speed_quality.pareto(table) == ["fast", "blind", "paper"]
    for name in table:
        table[name]["within_spread"] = speed_quality._within(table[name], table["paper"])
    assert [name for name in table if table[name]["within_spread"]] == ["paper", "worse", "middle"]
    assert speed_quality.best(table) == "middle"


def test_arms_are_found_again_and_are_what_they_say(tmp_path: Path) -> None:
    runs = Runs(tmp_path, TINY)
    stages = dict(runs.train(ARMS["vq"], 0))
    assert stages["stage1"].parent == runs.arm_folder(ARMS["vq"], 0) != runs.arm_folder(ARMS["vq"], 1)
    written = (stages["stage2"] / FINAL / "config.json").stat().st_mtime_ns
    assert dict(runs.train(ARMS["vq"], 0)) == stages
    assert (stages["stage2"] / FINAL / "config.json").stat().st_mtime_ns == written
    model = MMARForConditionalGeneration.from_pretrained(stages["stage2"] / FINAL)
    tokenizer = load_image_tokenizer(stages["stage2"] / FINAL / "image_tokenizer")
    codebook = model.image_model.input.codebook.weight  # frozen parts are kept in bfloat16
    assert torch.equal(codebook.float(), tokenizer.codebook.bfloat16().float())


def test_options_reach_the_model(tmp_path: Path) -> None:
    runs = Runs(tmp_path, TINY)
    *_, (_, stage2) = runs.train(ARMS["epsw_float32"], 0)
    pipeline = MMARPipeline.from_pretrained(stage2 / FINAL)
    head = pipeline.model.config.diffusion_head_config
    assert (head.prediction_type, head.loss_space, head.max_loss_weight) == ("epsilon", "v_prediction", 1000)
    assert pipeline.compute_dtype is torch.float32
    tokens = masked_tokens(pipeline, "test", seed=0, limit=5)
    assert len(tokens) == len(tokens.z) == len(tokens.labels)
    assert 0 < len(tokens) <= 5 * 16
    assert set(tokens.labels.tolist()) <= set(range(10))


def test_the_judge_tells_right_digits_from_wrong_ones() -> None:
    judge, scans = DigitJudge(), DigitDataset("train", caption_only=True)
    some = [scans[i] for i in range(200)]
    pictures, digits = [scan.image for scan in some], [int(scan.meta["digit"]) for scan in some]
    right, wrong = judge.judge(pictures, digits), judge.judge(pictures[:1] * 200, [(d + 1) % 10 for d in digits])
    assert right["recognised"] > 0.98 > 0.3 > wrong["recognised"]
    assert right["frechet"] < wrong["frechet"] / 10


def test_digit_tokenizers_are_trained_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    smoke = digit_tokenizers.PRESETS["smoke"]
    monkeypatch.setitem(digit_tokenizers.PRESETS, "smoke", type(smoke)(**{**vars(smoke), "folder": str(tmp_path / "weights")}))
    found = run(digit_tokenizers, tmp_path, monkeypatch)["results"]
    assert set(found) == {"kl", "vq"}
    assert found["kl"]["read"] < 0.5 < found["kl"]["read_in_scan"]
    assert load_image_tokenizer(tmp_path / "weights" / "vq-digits").codebook_size == 16
    assert "PSNR" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_the_committed_digit_tokenizers_keep_digits(kind: str) -> None:
    tokenizer = load_image_tokenizer(digit_tokenizers.WEIGHTS / f"{kind}-digits")
    assert tokenizer.grid == tokenizer.channels == 4
    assert digit_tokenizers._reconstruct(tokenizer)["read"] > 0.98
