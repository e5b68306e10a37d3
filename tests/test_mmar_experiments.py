"""The experiments of mmar in their smallest preset, as people run them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from experiments import command, kill_and_resume, model_size, overfit_four
from experiments.kill_study.equality import same_bits
from experiments.kill_study.process import Kill
from experiments.overfit.pairs import DIGITS, make_pairs
from mmar.config import MMARConfig


def run(module: ModuleType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    path = tmp_path / "record.json"
    monkeypatch.setattr(command, "RUNS", tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--preset", "smoke", "--out", str(path)])
    module.main()
    return json.loads(path.read_text())


def test_model_size_counts_and_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(model_size, "model_size.py", tmp_path, monkeypatch)
    counts = record["results"]["parameters_millions"]["mmar-tiny"]
    assert counts["trained"] == pytest.approx(sum(counts.values()) - counts["trained"] - counts["language_model"], rel=1e-4)
    assert all(step["loss"] > 0 and step["norm"] > 0 for step in record["results"]["steps"])
    assert "mmar-tiny" in capsys.readouterr().out


def test_the_papers_sizes_are_those_of_the_design() -> None:
    """Counted by hand: see PAPER in the experiment; two decimals of a million where ranks and widths fix the number."""
    counts = model_size.count_parameters("mmar-0.5b")
    for part, millions in model_size.PAPER["mmar-0.5b"].items():
        assert counts[part] == pytest.approx(millions, abs=0.5)
    assert counts["language_model"] == pytest.approx(494.03, abs=0.01)  # Qwen2-0.5B


@pytest.mark.slow
def test_the_large_model_has_the_papers_size() -> None:
    counts = model_size.count_parameters("mmar-7b")
    for part, millions in model_size.PAPER["mmar-7b"].items():
        assert counts[part] == pytest.approx(millions, abs=0.5)
    assert counts["language_model"] == pytest.approx(7615.62, abs=0.01)


def test_overfit_four_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    record = run(overfit_four, "overfit_four.py", tmp_path, monkeypatch)
    assert set(record["results"]) == {"v_prediction 0", "epsilon 0"}
    for result in record["results"].values():
        assert result["asked"] == 3 * len(DIGITS)
        assert result["drawing_error"]["from 999"] > 0.3  # three steps teach nothing: the error measures something
    errors = record["results"]["epsilon 0"]["drawing_error"]
    assert errors["from 999"] > 100 * errors["from safe t"]  # an untrained epsilon head at alpha_bar = 2.4e-9
    assert "epsilon 0" in capsys.readouterr().out


def test_the_pairs_are_four_different_scans_of_unit_scale() -> None:
    pairs = make_pairs(MMARConfig.preset("mmar-digits"))
    assert pairs.tokens.shape == (4, 16, 4)
    assert 0.5 < float(pairs.tokens.std()) < 1.5
    assert len(set(pairs.captions)) == 4
    answers = [[answer for _, answer in turns] for turns in pairs.questions]
    assert len({tuple(a) for a in answers}) == 4


@pytest.mark.slow
def test_kill_and_resume_ends_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(kill_and_resume, "kill_and_resume.py", tmp_path, monkeypatch)["results"]["seed 0"]
    assert result["kills"] == len(result["at_steps"]) == 2
    assert all(result["equal"].values())
    parts = ("log", "model", "ema", "optimizer", "statistics", "final")
    assert not any(result["control_equal"][part] for part in parts)  # the optimizer's memory is seen to be missing
    assert result["left_a_broken_checkpoint"] == 0
    assert result["steps_lost_at_most"] <= kill_and_resume.PRESETS["smoke"].every
    assert "control: differs" in capsys.readouterr().out


def test_the_comparison_of_runs_sees_one_bit() -> None:
    value = torch.tensor([0.0, 1.0, torch.nan])
    assert same_bits({"a": value}, {"a": value.clone()})
    assert not same_bits({"a": value}, {"a": torch.tensor([-0.0, 1.0, torch.nan])})
    assert not same_bits({"a": value}, {"a": torch.nextafter(value, torch.tensor(9.0))})
    assert not same_bits({"a": value}, {"a": value.double()})
    assert not same_bits({"a": value}, {"b": value})


def test_kills_are_summed_up() -> None:
    kills = [Kill(True, 7, 4, True, 0), Kill(False, 9, 8, False, 0), Kill(False, 8, 8, False, 1)]
    found = kill_and_resume.summary(kills)
    assert found["steps_lost_at_most"] == 3
    assert found["steps_lost"] == 4
    assert found["hit_a_checkpoint_being_written"] == found["left_a_broken_checkpoint"] == 1
    with pytest.raises(ValueError, match="kills"):
        kill_and_resume.Config(kills=10, most=10, steps=99)
