"""``mmar chat`` and ``mmar reconstruct``: what is said about a picture, and what the image tokenizer makes of it."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_pipeline import SIDE, picture, pipeline
from tiny_tokenizers import vq

from mmar.cli import main
from mmar.commands.reconstruct import psnr
from mmar.pipeline import MMARPipeline

QUESTIONS = ["what colour is it?", "is it round?"]


@pytest.fixture(scope="module")
def pipe() -> MMARPipeline:
    return pipeline()


@pytest.fixture(scope="module")
def model(pipe: MMARPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    picture(1).save(folder / "picture.png")
    return folder


def chat(model: Path, *words: str) -> int:
    return main(["chat", str(model / "picture.png"), *words, "--model", str(model), "--max-new-tokens", "8"])


def test_answers_are_those_of_the_pipeline(pipe: MMARPipeline, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = pipe.answer(picture(1), QUESTIONS, max_new_tokens=8)
    assert any(answers)
    assert chat(model, *QUESTIONS) == 0
    assert capsys.readouterr().out == "\n".join(answers) + "\n"
    assert answers != pipe.answer(picture(2), QUESTIONS, max_new_tokens=8)  # the control: the picture matters


def test_questions_come_from_stdin_until_it_ends(
    pipe: MMARPipeline, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTIONS[0]}\n\n  {QUESTIONS[1]}"))
    assert chat(model) == 0
    told = capsys.readouterr()
    assert told.out == "".join(pipe.answer(picture(1), question, max_new_tokens=8) + "\n" for question in QUESTIONS)
    assert told.err.count("> ") == 4  # two questions, an empty line and the end


@pytest.mark.parametrize("subcommand", ["chat", "reconstruct"])
def test_bad_input_is_told(subcommand: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--out", str(tmp_path / "out.png")] if subcommand == "reconstruct" else []
    cases = {
        "a path must lead to an image file, got 'nowhere.png'": ["nowhere.png", "--model", str(model)],
        "a path must lead to an image that Pillow reads": [str(model / "config.json"), "--model", str(model)],
        "a model must be an existing folder, got 'nowhere'": [str(model / "picture.png"), "--model", "nowhere"],
        "folder must hold mmar_pipeline.json": [str(model / "picture.png"), "--model", str(tmp_path)],
        "the following arguments are required: --model": [str(model / "picture.png")],
    }
    for message, words in cases.items():
        assert main([subcommand, *words, *more]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"mmar {subcommand}: ")
        assert message in error


# -- before and after ------------------------------------------------------------------------------------------------------


def test_psnr_of_a_constant_difference() -> None:
    """Mean squared difference d^2: 20 log10(255 / d)."""
    a, b = (Image.fromarray(np.full((3, 5, 3), value, dtype=np.uint8)) for value in (10, 13))
    assert psnr(a, b) == pytest.approx(20 * math.log10(255 / 3), rel=1e-12)
    assert psnr(a, a) == math.inf


def test_patches_come_back_as_they_were(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "both.png"
    assert main(["reconstruct", str(model / "picture.png"), "--model", str(model), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: before | after, PSNR inf dB\n"
    both = np.asarray(Image.open(out))
    assert (both[:, :SIDE] == np.asarray(picture(1))).all()
    assert (both[:, SIDE:] == both[:, :SIDE]).all()


def test_a_lossy_tokenizer_is_measured_without_the_weights_of_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = pipeline(vq())
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    picture(2, 50, 40).save(tmp_path / "picture.png")
    out = tmp_path / "both.png"
    assert main(["reconstruct", str(tmp_path / "picture.png"), "--model", str(tmp_path / "model"), "--out", str(out)]) == 0
    both = Image.open(out)
    before, after = both.crop((0, 0, 32, 32)), both.crop((32, 0, 64, 32))
    assert f"PSNR {psnr(before, after):.2f} dB" in capsys.readouterr().out
    assert 0 < psnr(before, after) < 30  # random weights
    assert (np.asarray(after) == np.asarray(pipe.reconstruct(picture(2, 50, 40)))).all()
