"""The experiments that train models of mmar, in their smallest preset, as people run them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor

from experiments import (
    command,
    mmar_digits,
    mmar_scenes,
    object_words,
    scene_hand,
    scene_labels,
    scene_parts,
    scene_sight,
    scene_things,
    scene_tokenizers,
    scene_words,
    training_runs,
)
from experiments.pictures import unpacked
from mmar.data.scenes import Scene, SceneDataset
from mmar.data.scenes.drawing import draw
from mmar.data.scenes.scene import Glyph, SceneObject
from mmar.data.scenes.vocabulary import BACKGROUNDS
from mmar.model import MMARForConditionalGeneration
from mmar.training.build import build_parts
from mmar.training.config import load_config
from mmar.weight_files import SINGLE
from paper_figures import figure6


def run(module: ModuleType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> dict:
    path = tmp_path / "record.json"
    monkeypatch.setattr(command, "RUNS", tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--preset", "smoke", "--out", str(path), *words])
    module.main()
    return json.loads(path.read_text())


def test_digits_are_trained_drawn_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(mmar_digits, "mmar_digits", tmp_path, monkeypatch)["results"]
    assert [stage["steps"] for stage in found["stages"].values()] == [2, 2, 2]
    assert found["drawing"]["2 x 2"]["drawn"] == 10
    assert found["drawing"]["2 x 2"]["recognised"] < 0.6  # two steps teach nothing: the share measures something
    assert found["classifier_on_test_scans"] > 0.98
    assert [one["caption"] for one in found["drawing"]["2 x 2"]["pictures"]][:2] == ["the digit zero", "the digit one"]
    assert {one["asked"] for one in found["reading"].values()} == {2}
    assert "real test scans" in capsys.readouterr().out


def test_scenes_are_trained_asked_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(mmar_scenes, "mmar_scenes", tmp_path, monkeypatch)["results"]
    assert set(found["reading"]["test"]["families"]) >= {"existence", "counting", "colour", "shape", "position", "reading"}
    for drawn in found["drawing"].values():
        assert drawn["the scenes themselves"]["exact"] == 1.0
        assert drawn["their reconstructions"]["position"] > 0.9
        assert drawn["2 x 2"]["exact"] < 0.5
    assert found["stages"]["scenes"]["config"]["masking"]["low"] == 0.0
    for split in ("test", "held_out"):
        assert set(found["reading_captions"][split]["families"]) == set(found["reading"][split]["families"])
    assert "held_out" in capsys.readouterr().out
    assert [unpacked(one["picture"]).size for one in found["pictures"]] == [(32, 32)] * 2
    digits = {"results": {"drawing": {"a way": {"pictures": found["pictures"]}}}}
    assert isinstance(figure6.draw({"results": found}, digits), Figure)


def test_words_of_scenes_are_trained_and_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = replace(scene_words.PRESETS["smoke"], folder=str(tmp_path / "lm"))
    monkeypatch.setitem(scene_words.PRESETS, "smoke", small)
    found = run(scene_words, "scene_words", tmp_path, monkeypatch)["results"]
    assert list(found["stages"]) == list(scene_words.STAGES)
    assert MMARForConditionalGeneration.from_qwen2(tmp_path / "lm", preset="mmar-scenes").config.image_token_id == 4
    assert {one["asked"] for one in found["reading_captions"]["families"].values()} == {2}
    assert "captions" in capsys.readouterr().out
    again = run(scene_words, "scene_words", tmp_path, monkeypatch, "--resume")["results"]
    assert again["reading_captions"] == found["reading_captions"]


def test_words_of_one_object_are_trained_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = replace(object_words.PRESETS["smoke"], folder=str(tmp_path / "lm"))
    monkeypatch.setitem(object_words.PRESETS, "smoke", small)
    found = run(object_words, "object_words", tmp_path, monkeypatch)["results"]
    assert {split: one["mean"] < 0.6 for split, one in found["reading_captions"].items()} == {"test": True, "held_out": True}
    assert "captions" in capsys.readouterr().out
    stage1 = load_config(training_runs.CONFIGS / "objects-stage1.yaml", [f"model.qwen2={tmp_path / 'lm'}"])
    built, saved = build_parts(stage1).model.language_model, load_file(tmp_path / "lm" / SINGLE)
    weight = built.get_parameter("embed_tokens.weight")  # frozen in bf16
    assert torch.equal(weight, saved["model.embed_tokens.weight"].to(weight.dtype))
    again = run(object_words, "object_words", tmp_path, monkeypatch, "--resume")["results"]
    assert again["reading_captions"] == found["reading_captions"]
    monkeypatch.setitem(object_words.PRESETS, "smoke", replace(small, words=("steps=3", "batch_size=4")))
    with pytest.raises(ValueError, match=r"steps 2 where 3 is wanted; run it without --resume"):
        run(object_words, "object_words", tmp_path, monkeypatch, "--resume")


def test_sight_of_scenes_is_trained_and_a_model_starts_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = replace(scene_sight.PRESETS["smoke"], folder=str(tmp_path / "vit"))
    monkeypatch.setitem(scene_sight.PRESETS, "smoke", small)
    found = run(scene_sight, "scene_sight", tmp_path, monkeypatch)["results"]
    assert found["right"]["test"]["nothing"]["of"] + found["right"]["test"]["position"]["of"] == small.tested * 16
    assert "held_out" in capsys.readouterr().out
    lesson = training_runs.CONFIGS / f"{scene_parts.FIRST_LESSON}.yaml"
    parts = build_parts(load_config(lesson, [f"model.embedding_vit={tmp_path / 'vit'}"]))
    saved = load_file(tmp_path / "vit" / SINGLE)
    vit = parts.model.image_model.input.embedding_vit
    assert all(torch.equal(p, saved[name].float()) and p.requires_grad for name, p in vit.named_parameters())
    with pytest.raises(ValueError, match="sizes must be those of the model"):
        build_parts(load_config(lesson, [f"model.embedding_vit={tmp_path / 'vit'}", "model.options.image_config.channels=8"]))


def test_what_stands_in_each_token_of_a_scene() -> None:
    ring = SceneObject("red", "ring", "large", 1, 1)
    bar = SceneObject("blue", "bar", "small", 24, 13)
    found = scene_labels.labels(Scene((ring, bar), "black", Glyph("7", 13, 24)), 4)
    named = {
        at: [words[i] for words, i in zip(scene_labels.ATTRIBUTES.values(), row, strict=True) if i >= 0]
        for at, row in enumerate(found.tolist())
        if row[0]
    }
    assert named == {
        0: ["ring", "red", "large", "top left"],
        11: ["bar", "blue", "small", "right"],
        13: ["7", "bottom"],
    }


def test_a_hand_for_scenes_is_trained_and_a_model_draws_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = replace(scene_hand.PRESETS["smoke"], folder=str(tmp_path / "head"))
    monkeypatch.setitem(scene_hand.PRESETS, "smoke", small)
    found = run(scene_hand, "scene_hand", tmp_path, monkeypatch)["results"]
    assert set(found["drawn"]) == {"test", "held_out"}
    assert "drawn as told" in capsys.readouterr().out
    given = [f"model.diffusion_head={tmp_path / 'head'}"]
    lesson = training_runs.CONFIGS / f"{scene_parts.FIRST_LESSON}.yaml"
    parts = build_parts(load_config(lesson, given))
    saved = load_file(tmp_path / "head" / SINGLE)
    head = dict(parts.model.image_model.head.named_parameters())
    assert set(head) == set(saved)
    assert all(torch.equal(p, saved[name].float()) and p.requires_grad for name, p in head.items())
    with pytest.raises(ValueError, match="sizes must be those of the model"):
        build_parts(load_config(lesson, [*given, "model.options.diffusion_head_config.depth=2"]))
    with pytest.raises(FileNotFoundError, match=r"model\.diffusion_head must be an existing folder"):
        build_parts(load_config(lesson, [f"model.diffusion_head={tmp_path / 'none'}"]))


def _conditions(
    teller: scene_things.Teller,
    scene: Scene,
    share: scene_things.Share = scene_things.EVERYTHING,
    *,
    without_things: bool = False,
) -> Tensor:
    grounds = torch.tensor([list(BACKGROUNDS).index(scene.background)])
    things = scene_things.things(scene)[None]
    with torch.no_grad():
        found: Tensor = teller(things.fill_(scene_things.NO_WORD) if without_things else things, grounds, share)[0]
    return found


@pytest.mark.parametrize("index", range(12))
def test_a_token_is_told_of_what_is_drawn_in_it(index: int) -> None:
    scene = Scene.from_dict(SceneDataset("train", 12)[index].meta["scene"])
    teller = scene_things.Teller(16, 4)
    empty = _conditions(teller, scene, without_things=True)
    assert torch.equal(empty, empty[:1].expand(16, -1))
    told = (_conditions(teller, scene) != empty).any(-1)  # (16,)
    pixels = torch.from_numpy(np.array(draw(scene))).int()  # (32, 32, 3)
    changed = (pixels != torch.tensor(BACKGROUNDS[scene.background])).any(-1)
    drawn = changed.view(4, 8, 4, 8).any(3).any(1).flatten()  # (16,)
    assert told[drawn].all()
    boxes = [thing.box for thing in (*scene.objects, scene.glyph) if thing is not None]
    covered = torch.zeros(32, 32, dtype=torch.bool)
    for left, top, width, height in boxes:
        covered[top : top + height, left : left + width] = True
    assert torch.equal(told, covered.view(4, 8, 4, 8).any(3).any(1).flatten())
    only_cells = (_conditions(teller, scene, scene_things.Share(1.0, 0.0, 1.0)) != empty).any(-1)
    assert only_cells[told].all()
    nothing = _conditions(teller, scene, scene_things.Share(scene=0.0))
    assert torch.equal(nothing, nothing[:1].expand(16, -1))


def test_a_token_is_told_where_in_it_a_thing_lies() -> None:
    teller = scene_things.Teller(16, 4)
    here, beside = (_conditions(teller, Scene((SceneObject("red", "bar", "small", x, 1),), "black", None)) for x in (1, 2))
    assert (here != beside).any(-1).nonzero().flatten().tolist() == [0]
    cells = scene_things.Share(1.0, 0.0, 1.0)
    scenes = [Scene((SceneObject("red", "bar", "small", x, 1),), "black", None) for x in (1, 2)]
    assert torch.equal(*(_conditions(teller, scene, cells) for scene in scenes))


def test_a_finished_stage_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, words = ("digits-text",), {"": ("steps=1", "batch_size=2")}
    training_runs.train_stages(names, words, folder=tmp_path, resume=False)
    monkeypatch.setattr(training_runs, "train", lambda *_, **__: pytest.fail("trained again"))
    again = training_runs.train_stages(names, words, folder=tmp_path, resume=True)
    assert again["digits-text"]["steps"] == 1
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        training_runs.train_stages(names, words, folder=tmp_path, resume=False)


def test_two_processes_train_a_stage(tmp_path: Path) -> None:
    words = {"": ("steps=2", "batch_size=2", "saving.log_every=1")}
    found = training_runs.train_stages(("digits-text",), words, folder=tmp_path, resume=False, processes=2)["digits-text"]
    assert (found["steps"], found["processes"]) == (2, 2)
    alone = training_runs.train_stages(
        ("digits-text",), {"": ("steps=2", "batch_size=4", "saving.log_every=1")}, folder=tmp_path / "alone", resume=False
    )["digits-text"]
    assert found["text_loss"] == pytest.approx(alone["text_loss"], rel=1e-3)  # as many rows a step; bf16 sums differ


def test_scene_tokenizers_are_trained_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = scene_tokenizers.PRESETS["smoke"]
    monkeypatch.setitem(scene_tokenizers.PRESETS, "smoke", type(small)(**{**vars(small), "folder": str(tmp_path / "weights")}))
    found = run(scene_tokenizers, "scene_tokenizers", tmp_path, monkeypatch)["results"]
    assert found["kl"]["psnr"] < 15  # four steps
    assert found["vq"]["read_in_scene"]["exact"] == 1.0
    assert (tmp_path / "weights" / "kl-scenes" / "image_tokenizer.json").is_file()
    assert "PSNR" in capsys.readouterr().out
