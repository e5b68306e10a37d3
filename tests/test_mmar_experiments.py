"""The experiments of mmar in their smallest preset, as people run them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from experiments import command, model_size, overfit_four
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
