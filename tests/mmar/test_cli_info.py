"""``mmar info``: its numbers are those of the model and of the report, without the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_pipeline import SETTINGS, pipeline
from tiny_model import tiny_model
from torch import nn

from diffparam.report import report
from mmar.cli import main
from mmar.config import MMARConfig
from mmar.generation.settings import ImageGenerationConfig
from mmar.model import MMARForConditionalGeneration
from mmar.plora import image_expert_parameters

FAMILIES = ["mmar", "vq", "raster", "transfusion-vit", "understanding-only"]


def info(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["info", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def sizes_by_module(model: MMARForConditionalGeneration) -> dict[str, tuple[int, int]]:
    """All and trained parameters of each part, found by module and not by name."""
    images: Any = model.image_model
    head = getattr(images, "head", None)
    adapters = list(image_expert_parameters(model))
    parts = {
        "plora": adapters,
        "language_model": [*model.language_model.parameters(), *model.lm_head.parameters()],
        "embedding_vit": list(images.input.embedding_vit.parameters()) if hasattr(images.input, "embedding_vit") else [],
        "head": [] if head is None else list((head.head if hasattr(head, "head") else head.out).parameters()),
        "projectors_and_tables": list(model.parameters()),
    }
    counted: set[int] = set()
    sizes = {}
    for name, parameters in parts.items():
        own: list[nn.Parameter] = list({id(p): p for p in parameters if id(p) not in counted}.values())
        counted |= {id(p) for p in own}
        sizes[name] = (sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad))
    return sizes


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_are_those_of_the_model(name: str, tied: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(name, text_config={"tie_word_embeddings": tied})
    model.save_pretrained(tmp_path, max_shard_size="200KB" if tied else "1GB")
    told = info(tmp_path, capsys)
    assert {part: (size["parameters"], size["trained"]) for part, size in told["parts"].items()} == sizes_by_module(model)
    assert (told["parameters"], told["trained"]) == (model.num_parameters(), model.num_parameters(only_trainable=True))
    assert told["stored_as"] == {"float32": told["parameters"]}
    assert told["bytes"] == 4 * told["parameters"]
    assert told["objective"] == model.config.image_objective
    assert (told["image_tokenizer"], told["drawing"], told["compute_dtype"]) == (None, None, None)  # a model alone
    assert (told["sampler_in_bf16"] is None) is (name in ("vq", "understanding-only"))


def test_a_preset_has_the_sizes_of_its_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Frozen weights are often stored in bf16 beside float32 trained ones."""
    model = MMARForConditionalGeneration(MMARConfig.preset("mmar-tiny"))
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    model.save_pretrained(tmp_path)
    told = info(tmp_path, capsys)
    trained = model.num_parameters(only_trainable=True)
    assert told["stored_as"] == {"float32": trained, "bfloat16": model.num_parameters() - trained}
    assert told["bytes"] == 4 * trained + 2 * (model.num_parameters() - trained)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    pipeline().save_pretrained(folder)
    return folder


def test_a_pipeline_is_described(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = info(saved, capsys)
    assert told["drawing"] == SETTINGS.to_dict()
    assert told["compute_dtype"] == "float32"
    assert told["parameterization"]["prediction_type"] == "v_prediction"
    assert told["schedule"] == {"name": "cosine", "train_timesteps": 1000, "zero_terminal_snr": False}
    assert (told["image_tokenizer"]["kind"], told["image_tokenizer"]["latent_std"]) == ("patches", 1.0)
    config = MMARConfig.from_pretrained(saved)
    own = report(config.schedule_config.build(), config.param, steps=3, solver="ddpm", guidance=2.0)
    assert told["sampler_in_bf16"] == own.to_dict()
    assert main(["info", str(saved)]) == 0
    text = capsys.readouterr().out
    assert str(own) in text
    for word in (
        f"{told['parts']['plora']['parameters']:,}",
        "PLoRA",
        "v_prediction",
        "latent_std 1",
        "ddpm",
        told["fingerprint"],
    ):
        assert word in text


def test_the_sampler_is_judged_as_it_is_stored(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An epsilon head from the last timestep of a cosine schedule is unsafe in bf16, from a safe one it is not."""
    tiny_model("epsilon").save_pretrained(tmp_path)
    assert not info(tmp_path, capsys)["sampler_in_bf16"]["safe"]
    ImageGenerationConfig(head_steps=25, max_timestep=500).save(tmp_path)
    safe = info(tmp_path, capsys)["sampler_in_bf16"]
    assert safe["safe"]
    assert safe["settings"]["timesteps"][0] <= 500
    ImageGenerationConfig(head_steps=2000).save(tmp_path)
    assert "cannot be run" in info(tmp_path, capsys)["sampler_in_bf16"]["error"]
    folder = shutil.copytree(saved, tmp_path / "rounded")
    ImageGenerationConfig(head_steps=25, sampler_dtype="bfloat16").save(folder)
    settings = info(folder, capsys)["sampler_in_bf16"]["settings"]
    assert (settings["state"], settings["arithmetic"]) != ("float32", "float32")


def test_a_fingerprint_is_of_the_weights_and_not_of_the_folder(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, before = shutil.copytree(saved, tmp_path / "other"), info(saved, capsys)
    assert info(folder, capsys) == {**before, "folder": str(folder)}
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert info(folder, capsys)["fingerprint"] == before["fingerprint"]  # the control: it was saved again
    tensors["boundary.weight"] += 1e-3  # the smallest of steps
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    after = info(folder, capsys)
    assert after["fingerprint"] != before["fingerprint"]
    assert after["parts"] == before["parts"]


def test_only_headers_are_needed(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """256 GiB that are not there: a hole behind the header, which this machine could not read into memory."""
    folder = shutil.copytree(saved, tmp_path / "other")
    huge = 2**36
    header = json.dumps({"language_model.x": {"dtype": "F32", "shape": [huge], "data_offsets": [0, 4 * huge]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * huge)
    assert info(folder, capsys)["parameters"] == huge


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a safetensors file"),
        (b"\xff" * 100, "must be a safetensors file"),
        (None, "it is cut off"),
    ],
)
def test_damaged_weights_are_named(
    content: bytes | None, message: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(saved, tmp_path / "other")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] if content is None else content)
    assert main(["info", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmar info: ")
    assert message in error


def test_bad_folders_are_named(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(saved, tmp_path / "other")
    (folder / "model.safetensors").unlink()
    cases = {
        "a model must be an existing folder, got 'nowhere'": "nowhere",
        "folder must hold config.json": str(tmp_path),
        "must have its weights in safetensors": str(folder),
    }
    for message, path in cases.items():
        assert main(["info", path]) == 2
        assert message in capsys.readouterr().err
    assert torch.get_default_dtype() is torch.float32
