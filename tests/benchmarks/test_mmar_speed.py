"""The scripts that time mmar, run as people run them in their quick preset: they measure on an idle machine only."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import data_loading
import first_picture
import generation_speed
import mmar_training_speed
import plora_speed
import pytest
import torch

NAMES = {
    mmar_training_speed: {"mmar", "vq", "transfusion", "all_tokens_over_gathered"},
    plora_speed: {"float32", "autocast", "bf16", "base_over_lora", "gather_over_lora", "mask_over_lora", "merged_over_lora"},
    generation_speed: {"recomputed_over_cached", "faster_than_slowest", "backbone", "head", "rest"},
    data_loading: {f"{kind}, {n}" for kind in ("digits", "scenes", "folder", "latents") for n in ("0 readers", "1 reader")},
    first_picture: {"mmar-tiny, fast", "start_s", "import_s", "load_s", "draw_s", "total_s"},
}
"""Of the record: what must have been measured."""


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values at the ends of nested dicts."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}/{key}")
    else:
        yield name, value


def is_measured(value: Any) -> bool:
    """A positive number; a record has null where something was not finite."""
    return isinstance(value, float | int) and math.isfinite(value) and value > 0


def labels(table: str) -> list[str]:
    """The words of each line, without its numbers."""
    return [" ".join(re.sub(r"[\d.]+", "", line).split()) for line in table.strip().splitlines()]


@pytest.mark.parametrize("script", NAMES, ids=lambda script: script.__name__)
def test_a_script_runs_and_records(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    script.main(["--quick", "--out", str(tmp_path / "record.json")])
    assert torch.get_num_threads() == threads
    record, printed = json.loads((tmp_path / "record.json").read_text()), capsys.readouterr().out
    assert record["experiment"] == script.__name__
    assert record["config"] == json.loads(json.dumps(vars(script.QUICK)))
    found = dict(leaves(record["results"]))
    assert all(is_measured(value) for value in found.values()), found
    assert not NAMES[script] - {part for name in found for part in name.split("/")}
    assert labels(printed) == labels(script.show(record["results"]))  # the record holds the rows of the table


def test_the_table_has_all_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a file to write, and in numbers that follow from the seconds beside them."""
    mmar_training_speed.main(["--quick"])
    assert "transfusion" in capsys.readouterr().out
    results = mmar_training_speed.run(mmar_training_speed.QUICK)
    for name, ratio in results["step_over_mmar"].items():
        assert ratio == pytest.approx(results["step_s"][name] / results["step_s"]["mmar"])
    assert results["step_over_mmar"]["mmar"] == 1.0


def test_what_was_not_measured_is_seen() -> None:
    """The control: what a record holds in place of NaN, infinity and a clock that stood still."""
    assert not any(is_measured(value) for value in (None, math.nan, math.inf, 0.0, -0.1, "1"))
    assert [name for name, value in leaves({"a": {"b": 1.0}, "c": None}) if not is_measured(value)] == ["/c"]


def test_the_times_are_of_models_that_are_what_they_are_called() -> None:
    """A ratio of one would mean nothing if the competitors were one model."""
    config = plora_speed.QUICK
    models = {
        name: plora_speed.build(name, config, torch.float32, torch.float32) for name in ("base", "lora", "gather", "mask")
    }
    trained = {name: sum(p.numel() for p in model.parameters() if p.requires_grad) for name, model in models.items()}
    assert trained["base"] == 0
    assert trained["lora"] == trained["gather"] == trained["mask"] > 0
    arguments = plora_speed.batches(config, torch.float32)
    with torch.no_grad():
        mixed = {name: model(**arguments["text and images"]).last_hidden_state for name, model in models.items()}
        images = {name: model(**arguments["images"]).last_hidden_state for name, model in models.items()}
    first_image = config.text // 2
    assert torch.equal(mixed["gather"], mixed["mask"])
    assert torch.equal(mixed["gather"][:, :first_image], mixed["base"][:, :first_image])
    assert not torch.equal(mixed["lora"][:, :first_image], mixed["base"][:, :first_image])
    # On images alone the expert is the LoRA of all tokens, with the same draws; sums of 64 products in another order.
    assert torch.allclose(images["gather"], images["lora"], rtol=0, atol=1e-5)
    assert not torch.allclose(images["gather"], images["base"], rtol=0, atol=1e-3)
