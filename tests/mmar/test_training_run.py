"""Whole runs of a tiny model: resumed to the last digit, stopped, spoilt, and on two processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mmar import precision
from mmar import train as command
from mmar.data.digits import DigitDataset
from mmar.pipeline import MMARPipeline
from mmar.training import loop
from mmar.training.checkpoint_folder import list_checkpoints, load_latest
from mmar.training.config import DataSource, ModelSource, TrainingConfig
from mmar.training.export import checkpoint_pipeline
from mmar.training.loop import NonFiniteLoss, Trainer, train

EXACT = ("step", "loss", "text_loss", "image_loss", "grad_norm", "lr", "text_tokens", "image_tokens")
CUT = 5


def config(output: Path, **options: Any) -> TrainingConfig:
    made = TrainingConfig(output=str(output))
    made.model = ModelSource(preset="mmar-tiny")
    made.data = [DataSource(kind="digits", options={"questions": 2})]
    made.batch_size, made.steps, made.optimizer.warmup = 4, 8, 3
    made.saving.every, made.saving.log_every = CUT, 1
    for name, value in options.items():
        setattr(made, name, value)
    return made


def lines(folder: Path) -> list[dict]:
    return [
        {k: v for k, v in json.loads(line).items() if k in EXACT} for line in (folder / "log.jsonl").read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    train(config(folder))
    return folder


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_a_stage_that_starts_from_a_checkpoint_has_float32_masters(whole: Path, tmp_path: Path, precision: str) -> None:
    """The frozen part of a saved model is in bfloat16; what is trained must not be, or small updates are lost."""
    trainer = Trainer(config(tmp_path, model=ModelSource(checkpoint=str(whole / "final")), precision=precision))
    dtypes = {p.dtype for p in trainer.model.parameters() if p.requires_grad}
    trainer.close()
    assert dtypes == {torch.float32}


def test_a_checkpoint_becomes_the_pipeline_that_the_run_ends_in(whole: Path) -> None:
    last = checkpoint_pipeline(list_checkpoints(whole)[-1]).model.state_dict()
    final = MMARPipeline.from_pretrained(whole / "final", dtype=torch.float32).model.state_dict()
    assert set(last) == set(final)
    assert all(torch.equal(last[name].float(), final[name]) for name in last)
    before = checkpoint_pipeline(list_checkpoints(whole)[0]).model.state_dict()
    assert not torch.equal(before["image_model.head.head.token_in.weight"], last["image_model.head.head.token_in.weight"])


def test_a_run_ends_in_a_pipeline_that_draws_and_answers(whole: Path) -> None:
    pipe = MMARPipeline.from_pretrained(whole / "final")
    example = DigitDataset("test")[0]
    assert isinstance(pipe.answer(example.image, "which digit is this?", max_new_tokens=2), str)
    assert len(lines(whole)) == 8
    assert lines(whole)[-1]["text_loss"] < lines(whole)[0]["text_loss"]


def test_a_resumed_run_is_the_same_to_the_last_digit(whole: Path, tmp_path: Path) -> None:
    """It is cut after a checkpoint and two steps more, as by a kill."""
    trainer = Trainer(config(tmp_path))
    items = iter(trainer.loader)
    for _ in range(CUT):
        trainer._step(items, loop.Throughput())
    trainer._save()
    for _ in range(2):
        trainer._step(items, loop.Throughput())
    trainer.close()
    train(config(tmp_path), resume=True)
    assert lines(tmp_path) == lines(whole)[CUT:]
    ours, theirs = (load_latest(folder)[0] for folder in (tmp_path, whole))
    for group in ("model", "ema", "optimizer", "statistics"):
        assert ours.tensors[group].keys() == theirs.tensors[group].keys()
        assert all(torch.equal(v, theirs.tensors[group][k]) for k, v in ours.tensors[group].items())


def test_another_seed_is_another_run(whole: Path, tmp_path: Path) -> None:
    train(config(tmp_path, seed=1))
    assert lines(tmp_path) != lines(whole)


def test_accumulation_is_one_large_batch(tmp_path: Path) -> None:
    """Means over all tokens of a step, not means of means; one mask ratio per micro-batch is why text alone is compared."""
    one, two = tmp_path / "one", tmp_path / "two"
    options = {"precision": "float32", "tasks": {"understanding": 1.0}, "steps": 3}
    train(config(one, batch_size=4, **options))
    train(config(two, batch_size=2, accumulation=2, **options))
    for a, b in zip(lines(one), lines(two), strict=True):
        # Float32 sums of other batches through two layers: 1e-6 a step, carried on by Adam.
        assert a["text_loss"] == pytest.approx(b["text_loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_a_folder_with_checkpoints_is_not_overwritten(whole: Path) -> None:
    with pytest.raises(ValueError, match="--resume"):
        Trainer(config(whole))


def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    with pytest.raises(OSError, match="folder that can be written"):
        Trainer(config(file / "run"))


def test_losses_that_are_not_finite_are_skipped_counted_and_at_last_stop(tmp_path: Path) -> None:
    trainer = Trainer(config(tmp_path, max_nan=2))
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.model.image_model.head.register_forward_hook(lambda *_: torch.full((), torch.nan))
    with torch.no_grad():
        trainer.model.boundary.weight.fill_(torch.inf)
        before["boundary.weight"].fill_(torch.inf)
    with pytest.raises(NonFiniteLoss, match="2 steps"):
        trainer.run()
    assert all(torch.equal(p.detach(), before[n]) for n, p in trainer.model.named_parameters() if p.requires_grad)
    (saved,) = tmp_path.glob("not-finite-*")
    assert json.loads((saved / "batch-0.json").read_text())["keys"]
    trainer.close()


def test_stage_0_trains_the_language_model_alone_and_it_is_then_frozen(tmp_path: Path) -> None:
    first = tmp_path / "text"
    train(config(first, stage="text", steps=4))
    assert lines(first)[-1]["text_loss"] < lines(first)[0]["text_loss"]
    second = config(tmp_path / "joint", steps=1)
    second.model.language_model = str(first / "final")
    second.tokenizers.text = str(first / "final")
    trainer = Trainer(second)
    theirs = MMARPipeline.from_pretrained(first / "final").model.state_dict()
    ours = trainer.model.state_dict()
    name = "language_model.layers.1.mlp.up_proj.base_layer.weight"
    assert torch.equal(ours[name].float(), theirs[name].bfloat16().float())
    assert not trainer.model.get_parameter(name).requires_grad
    trainer.close()


def test_bad_input_ends_with_status_2_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"output: {tmp_path / 'out'}\nmodel: {{preset: mmar-none}}\ndata: [{{kind: digits}}]\n")
    assert command.main([str(path)]) == 2
    assert command.main([str(path), "steps=0"]) == 2
    assert command.main([str(tmp_path / "none.yaml")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 3
    assert "mmar-0.5b" in said[0]


# -- processes ---------------------------------------------------------------------------------------------------------------


def said(output: Path) -> Path:
    """What the run of a folder prints."""
    return output.parent / f"{output.name}.out"


def started(output: Path, *words: str, steps: int = 400) -> subprocess.Popen[bytes]:
    path = output.parent / f"{output.name}.yaml"
    path.write_text(
        f"output: {output}\nmodel: {{preset: mmar-tiny}}\ndata: [{{kind: digits}}]\nbatch_size: 2\nsteps: {steps}\n"
        "saving: {every: 3, log_every: 1}\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with said(output).open("wb") as file:
        arguments = [sys.executable, "-m", "mmar.train", str(path), *words]
        return subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT, env=environment)


def wait_for_checkpoints(folder: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while len(list_checkpoints(folder)) < count and time.monotonic() < deadline:
        assert process.poll() is None, said(folder).read_text()[-2000:]
        time.sleep(0.05)
    assert len(list_checkpoints(folder)) >= count


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_status_0(number: signal.Signals, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = started(folder)
    wait_for_checkpoints(folder, 1, process)
    process.send_signal(number)
    assert process.wait(timeout=60) == 0, said(folder).read_text()[-2000:]
    last = load_latest(folder)[0]
    assert last is not None
    assert said(folder).read_text().rstrip().endswith(str(last.path))
    assert last.step == lines(folder)[-1]["step"]


@pytest.mark.slow
def test_after_kill_9_nothing_is_lost(tmp_path: Path) -> None:
    folder, steps = tmp_path / "run", 14
    process = started(folder, steps=steps)
    wait_for_checkpoints(folder, 2, process)
    process.kill()
    process.wait()
    assert started(folder, "--resume", steps=steps).wait(timeout=120) == 0, said(folder).read_text()[-2000:]
    whole = started(tmp_path / "whole", steps=steps)
    assert whole.wait(timeout=120) == 0
    assert lines(folder) == lines(tmp_path / "whole")


# -- what does not go on -----------------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_its_own_frozen_weights_and_sizes_only(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("final"))
    with pytest.raises(ValueError, match="trained beside other frozen weights"):
        Trainer(config(tmp_path / "run", seed=1), resume=True)
    wider = config(tmp_path / "run")
    wider.model.options = {"diffusion_head_config": {"width": 64}}
    with pytest.raises(ValueError, match=r"must be of this model, got .* of shape \(.*\) for \(64"):
        Trainer(wider, resume=True)
    Trainer(config(tmp_path / "run"), resume=True).close()


def test_recomputed_activations_train_with_float32_products_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mode of products, which the environment asks for, does not reach what the backward pass computes again."""
    monkeypatch.setenv("MMAR_FLOAT32_PRODUCTS", "1")
    monkeypatch.setattr(precision, "native_bf16_matmul", lambda: False)
    train(config(tmp_path, gradient_checkpointing=True, steps=1))
    assert lines(tmp_path)[0]["loss"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.options.plora_config.rank=abc"], "model.options must be options of MMARConfig, got .*rank.*abc"),
        (["model.options.plora_config=3"], "model.options must be options of MMARConfig, got .*plora_config"),
        (["data=[{kind: folder, path: /none, options: {limits: 5}}]"], "data.options.limits must be a mapping, got 5"),
    ],
)
def test_options_of_another_kind_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"output: {tmp_path / 'out'}\nmodel: {{preset: mmar-tiny}}\ndata: [{{kind: digits}}]\n")
    assert command.main([str(path), *words]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, said)
