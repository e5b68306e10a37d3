"""``mmar generate``: pictures that can be made again, inpainting, and bad input that is found before weights are read."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_pipeline import GRID, SETTINGS, SIDE, picture, pipeline

from mmar.cli import main
from mmar.generation.settings import ImageGenerationConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "final"
    pipeline().save_pretrained(folder)
    return folder


def generate(model: Path, out: Path, *words: str) -> int:
    return main(["generate", *words, "--model", str(model), "--out", str(out)])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def facts(path: Path) -> dict[str, Any]:
    return Image.open(path).text


def test_a_seed_gives_a_picture(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert generate(model, tmp_path / f"new/{name}.png", "a red square", "--seed", seed) == 0
    a, b, c = (pixels(tmp_path / f"new/{name}.png") for name in "abc")
    assert (a == b).all()
    assert (a != c).any()
    assert a.shape == (SIDE, SIDE, 3)
    told = capsys.readouterr()
    assert told.out.splitlines() == [str(tmp_path / f"new/{name}.png") for name in "abc"]
    assert f"{SETTINGS.ar_steps}/{SETTINGS.ar_steps}" in told.err  # the progress bar
    drawn = pipeline().draw("a red square", seed=[1])[0]  # the stored settings are those of the pipeline
    assert (np.asarray(drawn) == a).all()


def test_several_pictures_are_numbered_and_each_is_reproduced_by_what_its_file_says(model: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a blue circle\n\n  ein größerer Kreis ○ \n")
    words = ["a red square", "", "--captions-file", str(tmp_path / "captions.txt"), "--count", "3", "--seed", "7"]
    assert generate(model, tmp_path / "img.png", *words, "--steps", "3x2", "--set", "order=raster") == 0
    files = sorted(tmp_path.glob("img*.png"))
    assert [file.name for file in files] == [f"img-{i:02d}.png" for i in range(1, 13)]
    told = [facts(file) for file in files]
    captions = ["a red square", "", "a blue circle", "ein größerer Kreis ○"]
    assert [one["caption"] for one in told] == [caption for caption in captions for _ in range(3)]
    assert [int(one["seed"]) for one in told] == list(range(7, 19))
    assert len({pixels(file).tobytes() for file in files}) == 12
    for i in (1, 4, 11):
        settings = json.loads(told[i]["settings"])
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
        assert generate(model, tmp_path / "again.png", told[i]["caption"], "--seed", told[i]["seed"], *words) == 0
        assert (pixels(tmp_path / "again.png") == pixels(files[i])).all()
        assert facts(tmp_path / "again.png") == told[i]


def test_pictures_in_batches_are_the_same_up_to_rounding(model: Path, tmp_path: Path) -> None:
    """One level of 255, as in the pipeline's own test."""
    assert generate(model, tmp_path / "one.png", "a red square", "is it round?", "a") == 0
    assert generate(model, tmp_path / "two.png", "a red square", "is it round?", "a", "--batch-size", "2") == 0
    for i in (1, 2, 3):
        one, two = (pixels(tmp_path / f"{name}-{i}.png").astype(int) for name in ("one", "two"))
        assert np.abs(one - two).max() <= 1


def test_settings_are_heard_and_written_down(model: Path, tmp_path: Path) -> None:
    cases: list[tuple[list[str], dict[str, Any]]] = [
        ([], SETTINGS.to_dict()),
        (["--guidance", "3"], {**SETTINGS.to_dict(), "guidance_scale": 3.0}),
        (["--steps", "2x5"], {**SETTINGS.to_dict(), "ar_steps": 2, "head_steps": 5}),
        (["--steps", "x2"], {**SETTINGS.to_dict(), "ar_steps": None, "head_steps": 2}),
        (
            ["--solver", "dpm_solver", "--temperature", "0.5"],
            {**SETTINGS.to_dict(), "solver": "dpm_solver", "temperature": 0.5},
        ),
        (["--max-timestep", "safe"], {**SETTINGS.to_dict(), "max_timestep": "safe"}),
        (["--max-timestep", "500"], {**SETTINGS.to_dict(), "max_timestep": 500}),
        (["--preset", "fast", "--guidance", "2"], ImageGenerationConfig.preset("fast", guidance_scale=2.0).to_dict()),
    ]
    seen = set()
    for words, wanted in cases:
        assert generate(model, tmp_path / "a.png", "a red square", *words) == 0
        assert json.loads(facts(tmp_path / "a.png")["settings"]) == wanted
        seen.add(pixels(tmp_path / "a.png").tobytes())
    assert len(seen) >= len(cases) - 1  # of a v head every timestep is safe: that one is the picture of the first


def test_a_file_names_its_checkpoint_but_not_where_it_is(model: Path, tmp_path: Path) -> None:
    assert generate(model, tmp_path / "a.png", "a") == 0
    told = facts(tmp_path / "a.png")
    name, fingerprint = told["checkpoint"].split()
    assert name == f"{model.parent.name}/final"
    assert len(fingerprint) == 16
    assert str(model.parent.parent) not in str(told)
    assert told["computed"] == "float32 on cpu, batch size 1"


def test_what_is_not_painted_over_stays(model: Path, tmp_path: Path) -> None:
    """Patches are decoded one by one and without loss, so all pixels of the kept tokens come back as they were."""
    image, mask = picture(), np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[: SIDE // GRID, : SIDE // GRID] = 255  # the first token
    image.save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = ["--inpaint", str(tmp_path / "image.png"), "--mask", str(tmp_path / "mask.png")]
    assert generate(model, tmp_path / "out.png", "a red square", *words) == 0
    drawn, before = pixels(tmp_path / "out.png"), np.asarray(image)
    assert (drawn[mask == 0] == before[mask == 0]).all()
    assert (drawn[mask == 255] != before[mask == 255]).any()
    digest = hashlib.sha256((tmp_path / "mask.png").read_bytes()).hexdigest()
    assert facts(tmp_path / "out.png")["inpaint_mask_sha256"] == digest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "captions must be given as words or in --captions-file, got none"),
        (["a", "--out", "a.jpg"], "--out must end in .png, got 'a.jpg'"),
        (["a", "--steps", "16"], "argument --steps: must be like 16x25"),
        (["a", "--steps", "16x0"], "head_steps must be a whole number of at least 1, got 0"),
        (["a", "--solver", "euler"], "solver must be one of ddpm, ddim, dpm_solver, heun, got 'euler'"),
        (["a", "--preset", "slow"], "name must be one of paper, fast, got 'slow'"),
        (["a", "--guidance", "nan"], "guidance_scale must be a finite number of at least 0, got nan"),
        (["a", "--seed", "-1"], "argument --seed: must be a whole number of at least 0, got '-1'"),
        (["a", "--max-timestep", "low"], "argument --max-timestep: must be a number, got 'low'"),
        (["a", "--max-timestep", "inf"], "must be a finite number"),
        (["a", "--set", "top_k=3"], "top_k and top_p must be None for 'masked_diffusion', got 3"),
        (["a", "--set", "sovler=ddim"], "got sovler"),
        (["a", "--inpaint", "image.png"], "--inpaint and --mask must come together"),
        (["a", "--inpaint", "nowhere.png", "--mask", "nowhere.png"], "a path must lead to an image file, got 'nowhere.png'"),
        (["a", "--captions-file", "nowhere.txt"], "No such file or directory: 'nowhere.txt'"),
        (["a", "--model", "nowhere"], "a model must be an existing folder, got 'nowhere'"),
        (["a", "--device", "abacus"], "--device must be one that this machine has, got 'abacus'"),
        (["a", "--compute-dtype", "int8"], "argument --compute-dtype: invalid choice: 'int8'"),
        (["a", "--colour"], "unrecognized arguments: --colour; see mmar generate --help"),
    ],
)
def test_bad_input_is_found_before_weights_are_read(
    model: Path, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert main(["generate", "--model", str(folder), "--out", str(tmp_path / "a.png"), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmar generate: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_damaged_checkpoint_and_a_folder_that_cannot_be_written_are_failures(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert generate(model, tmp_path / "file" / "a.png", "a") == 1
    folder = shutil.copytree(model, tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    capsys.readouterr()
    assert generate(folder, tmp_path / "a.png", "a") == 1
    assert "mmar generate: " in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()
