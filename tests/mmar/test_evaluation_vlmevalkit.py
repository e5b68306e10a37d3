"""MMAR in VLMEvalKit, without a fork: against a double of the kit, in a process of its own as importing it demands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_pipeline import picture, pipeline

from mmar.evaluation.adapters import vlmevalkit
from mmar.evaluation.adapters.table4 import dataset_names, table4_datasets
from mmar.evaluation.averages import HIGHEST

KIT = Path(__file__).parent / "doubles" / "vlmeval_kit"
PROGRAM = """
import sys, torch
from mmar.evaluation.adapters.vlmevalkit import main
assert torch.is_grad_enabled()
status = main(sys.argv[1:])
print("gradients", torch.is_grad_enabled())
sys.exit(status)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    pipeline().save_pretrained(folder)
    return folder


def evaluate(*words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, [Path(__file__).parents[2], KIT]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", PROGRAM, *words], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow  # another interpreter, which imports everything anew
def test_their_script_asks_mmar(model: Path, tmp_path: Path) -> None:
    """All rows of two data sets, with the answers that the pipeline itself gives."""
    for i in range(2):
        picture(i).save(tmp_path / f"{i}.png")
    first, second = str(tmp_path / "0.png"), str(tmp_path / "1.png")
    question = "what colour is it?"
    rows = {
        "POPE": [
            [{"type": "image", "value": first}, {"type": "text", "value": question}],
            [second, question],
        ],
        "MMMU_DEV_VAL": [
            [
                {"type": "text", "value": "is it"},
                {"type": "image", "value": first},
                {"type": "text", "value": "round?"},
                {"type": "image", "value": second},
            ]
        ],
    }
    (tmp_path / "data.json").write_text(json.dumps(rows))
    words = ["--model", str(model), "--max-new-tokens", "4", "--", "--data", *rows, "--work-dir", str(tmp_path), "--judge", "x"]
    done = evaluate(*words)
    assert done.returncode == 0, done.stderr
    assert "gradients False" in done.stdout  # the double does what the kit does, and why this is a process of its own
    pipe = pipeline()

    def expected(images: list[str], text: str) -> str:
        return pipe.answer(images, text, do_sample=False, max_new_tokens=4)

    said = {name: json.loads((tmp_path / f"MMAR_{name}.json").read_text()) for name in rows}
    assert said["POPE"] == {"0": expected([first], question), "1": expected([second], question)}
    assert said["MMMU_DEV_VAL"] == {"0": expected([first, second], "is it\nround?")}
    assert expected([first], question) != expected([second], question)  # the control: the picture is read


def test_without_data_the_paper_s_are_asked(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: nothing of the kit is imported."""
    script = tmp_path / "run.py"
    script.write_text("import sys\nprint(sys.argv[1:])\n")
    registered: dict[str, dict[str, object]] = {}
    monkeypatch.setattr(vlmevalkit, "run_py", lambda: script)
    monkeypatch.setattr(vlmevalkit, "register", lambda name, **options: registered.update({name: options}))
    before = list(sys.argv)
    assert vlmevalkit.main(["--model", str(model), "--name", "ours", "--", "--mode", "infer"]) == 0
    assert sys.argv == before
    assert capsys.readouterr().out.strip() == str(["--model", "ours", "--data", *dataset_names(), "--mode", "infer"])
    assert registered == {"ours": {"model": str(model), "device": "cpu", "compute_dtype": None, "max_new_tokens": 512}}


def test_mistakes_are_told_in_one_line(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vlmevalkit.main(["--model", "nowhere"]) == 2
    assert "a model must be an existing folder" in capsys.readouterr().err
    assert vlmevalkit.main(["--model", str(model)]) == 2
    assert "VLMEvalKit must be installed, got no package vlmeval; clone" in capsys.readouterr().err
    theirs = SimpleNamespace(supported_VLM={"Qwen2-VL-2B-Instruct": None})
    monkeypatch.setattr(vlmevalkit, "_kit", lambda module: theirs)
    with pytest.raises(ValueError, match="--name must be new to VLMEvalKit, got 'Qwen2-VL-2B-Instruct'"):
        vlmevalkit.register("Qwen2-VL-2B-Instruct")


def test_their_own_choice_of_model_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vlmevalkit.main(["--model", str(model), "--", "--model", "other"]) == 2
    assert "run.py's --model must not be given, it is MMAR here" in capsys.readouterr().err
    assert vlmevalkit.main(["--model", str(model), "--", "--config=a.json"]) == 2


def test_messages_without_images_or_with_films_are_refused() -> None:
    for message, told in (
        ([{"type": "text", "value": "a"}], "no image"),
        ([{"type": "video", "value": "a.mp4"}, {"type": "image", "value": "a.png"}], "got video"),
    ):
        with pytest.raises(ValueError, match=f"message must hold text and at least one image, got .*{told.split()[-1]}"):
            vlmevalkit.split_message(message)


def test_the_table_names_the_columns_of_the_average(tmp_path: Path) -> None:
    assert list(table4_datasets()) == list(HIGHEST)
    assert len(dataset_names()) == 17  # MME gives two of the 18
    (tmp_path / "other.yaml").write_text("AI2D: AI2D_TEST\n")
    with pytest.raises(ValueError, match="must name the 18 columns of table 4"):
        table4_datasets(tmp_path / "other.yaml")
