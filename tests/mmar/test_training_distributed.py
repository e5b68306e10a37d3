"""Two processes: the numbers of one with twice the batch, whole or sharded, and checkpoints for either number."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from two_ranks import train_on_ranks

from mmar.pipeline import MMARPipeline
from mmar.training import memory_plan
from mmar.training.checkpoint_folder import list_checkpoints, load_latest
from mmar.training.config import DataSource, ModelSource, TrainingConfig
from mmar.training.log import Throughput
from mmar.training.loop import Trainer, train
from mmar.training.memory_plan import flops_per_sample, plan_memory, shard_bytes
from mmar.training.positions import moved

CUT, STEPS = 2, 4
CLOSE = 1e-5
"""Float32 sums in another order: 2^-24 times a few hundred terms, carried on by Adam for a few steps."""
HARD = {"batch_size": 2, "gradient_checkpointing": True, "tasks": {"understanding": 1.0, "generation": 1.0}}
"""One rank reads, the other draws: other numbers of known tokens, and a head that one of them does not run."""
TEXT = {"batch_size": 2, "steps": 2, "tasks": {"text": 1.0, "generation": 1.0}}
"""One rank without any image."""


def config(output: Path, ranks: int = 1, **options: Any) -> TrainingConfig:
    made = TrainingConfig(output=str(output), steps=STEPS, precision="float32", threads=1, batch_size=4)
    made.model = ModelSource(preset="mmar-tiny")
    made.data = [DataSource(kind="digits", options={"questions": 2})]
    made.optimizer.warmup = 3
    made.saving.every, made.saving.log_every = CUT, 1
    for name, value in options.items():
        setattr(made, name, value)
    made.batch_size //= ranks
    return made


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_curve(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], tolerance: float = CLOSE) -> None:
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert (a["text_tokens"], a["image_tokens"]) == (b["text_tokens"], b["image_tokens"])
        for name in ("loss", "text_loss", "image_loss"):
            assert a[name] == pytest.approx(b[name], rel=tolerance), (a["step"], name)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=10 * tolerance), a["step"]


def cut_copy(run: Path, to: Path) -> Path:
    """A run that was cut off at its first checkpoint."""
    to.mkdir()
    shutil.copytree(list_checkpoints(run)[0], to / list_checkpoints(run)[0].name)
    return to


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs on one and on two processes, in one folder."""
    folder = tmp_path_factory.mktemp("ranks")
    train(config(folder / "one"))
    train(config(folder / "one-hard", **HARD))
    train(config(folder / "one-bf16", precision="bf16", steps=2))
    todo = []
    for sharding in ("ddp", "fsdp"):
        cut_copy(folder / "one", folder / f"one-to-{sharding}")
        todo += [
            (config(folder / sharding, 2, sharding=sharding), False),
            (config(folder / f"{sharding}-hard", 2, sharding=sharding, **HARD), False),
            (config(folder / f"{sharding}-text", 2, sharding=sharding, **TEXT), False),
            (config(folder / f"one-to-{sharding}", 2, sharding=sharding), True),
        ]
    todo.append((config(folder / "fsdp-bf16", 2, sharding="fsdp", precision="bf16", steps=2), False))
    codes = train_on_ranks(todo, said=folder / "said")
    assert codes == [0, 0], (folder / "said.0").read_text()[-3000:] + (folder / "said.1").read_text()[-3000:]
    for sharding in ("ddp", "fsdp"):
        train(config(cut_copy(folder / sharding, folder / f"{sharding}-to-one")), resume=True)
    return folder


slow = pytest.mark.slow  # the fixture takes half a minute


@slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_processes_are_one_with_twice_the_batch(runs: Path, sharding: str) -> None:
    assert_same_curve(lines(runs / sharding), lines(runs / "one"))


@slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_ranks_with_other_parts_of_the_model_at_work_do_not_wait_for_each_other(runs: Path, sharding: str) -> None:
    assert_same_curve(lines(runs / f"{sharding}-hard"), lines(runs / "one-hard"))


@slow
def test_a_rank_without_images_reduces_what_the_others_do(runs: Path) -> None:
    """Compared with each other: a text among images is asked for its answers only, one without for all of it."""
    assert_same_curve(lines(runs / "fsdp-text"), lines(runs / "ddp-text"))
    assert all(line["text_tokens"] > 0 and line["image_tokens"] > 0 for line in lines(runs / "fsdp-text"))


@slow
def test_adapters_gathered_in_bf16_change_roundings_only(runs: Path) -> None:
    """Gradients are rounded to 2^-9 as on one process, and summed in float32 over the ranks."""
    assert_same_curve(lines(runs / "fsdp-bf16"), lines(runs / "one-bf16"), tolerance=2**-9)


@slow
@pytest.mark.parametrize("name", ["ddp-to-one", "fsdp-to-one", "one-to-ddp", "one-to-fsdp"])
def test_a_checkpoint_goes_on_with_another_number_of_processes(runs: Path, name: str) -> None:
    assert_same_curve(lines(runs / name), lines(runs / "one")[CUT:])


@slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_the_pipeline_of_a_distributed_run_is_a_plain_folder(runs: Path, sharding: str) -> None:
    ours, theirs = (MMARPipeline.from_pretrained(runs / name / "final").model.state_dict() for name in (sharding, "one"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        # Adam divides by the root of small second moments, so that a last digit can move a weight by a share of the rate.
        assert torch.allclose(value, theirs[name], atol=1e-4), name


@slow
def test_the_state_of_all_ranks_is_saved(runs: Path) -> None:
    """Samples and the counts of timesteps are those of one process."""
    one, two = (load_latest(runs / name)[0] for name in ("one", "fsdp"))
    assert torch.equal(one.tensors["statistics"]["count"], two.tensors["statistics"]["count"])
    assert sum(loader["workers"][0][2]["delivered"] for loader in two.state["loaders"]) == STEPS * 4
    assert (two.path / "shards").is_dir()
    assert "model" not in two.tensors


def test_checkpointed_layers_are_computed_again_as_they_were(tmp_path: Path) -> None:
    """In bf16 too, where attention on a CPU has a kernel of its own, out of reach of the backward pass."""
    train(config(tmp_path, precision="bf16", gradient_checkpointing=True, steps=1))
    assert math.isfinite(lines(tmp_path)[0]["loss"])


# -- positions ---------------------------------------------------------------------------------------------------------------


def loader(rank: int, size: int, turn: int, place: int = 0) -> dict[str, Any]:
    report = {"delivered": turn, "counts": {}, "examples": {}}
    stream = {"data": {"rank": rank, "world_size": size}, "reader": [rank, size], "cursor": [turn, place], "skipped": report}
    return {"num_workers": 1, "next": 0, "workers": [[0, stream, report]]}


@pytest.mark.parametrize(("before", "turn", "now"), [(2, 6, 1), (1, 6, 2), (4, 3, 6), (3, 4, 3)])
def test_samples_that_were_read_make_the_same_beginning(before: int, turn: int, now: int) -> None:
    states = [moved([loader(rank, before, turn) for rank in range(before)], rank=r, size=now) for r in range(now)]
    assert all(state["workers"][0][1]["cursor"] == [before * turn // now, 0] for state in states)
    assert [state["workers"][0][1]["reader"] for state in states] == [[r, now] for r in range(now)]
    assert sum(state["workers"][0][2]["delivered"] for state in states) == before * turn


def test_no_common_beginning_is_none() -> None:
    assert moved([loader(0, 1, 5)], rank=0, size=2) is None
    assert moved([loader(0, 2, 5), loader(1, 2, 6)], rank=0, size=1) is None  # one left a sample out
    assert moved([loader(0, 1, 4, place=3)], rank=0, size=2) is None  # within a shard
    two = {**loader(0, 1, 4), "num_workers": 2}
    assert moved([two], rank=0, size=2) is None


# -- memory ------------------------------------------------------------------------------------------------------------------


def held(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("options", [{}, {"stage": "text", "precision": "float32", "ema": 0.0}])
def test_planned_bytes_are_those_that_a_run_holds(tmp_path: Path, options: dict[str, Any]) -> None:
    """On one process, after a step; activations are an estimate and not compared."""
    run = config(tmp_path, **{"precision": "bf16", "model": ModelSource(preset="mmar-digits"), **options})
    trainer = Trainer(run)
    trainer._step(iter(trainer.loader), Throughput())
    parameters = list(trainer.model.parameters())
    plan = plan_memory(run, 1)
    assert plan.trained == held(p for p in parameters if p.requires_grad)
    assert plan.frozen == held(p for p in parameters if not p.requires_grad) + held(trainer.model.buffers())
    assert plan.optimizer == held(v for state in trainer.optimizer.state.values() for v in state.values())
    assert plan.average == (held(trainer.ema.shadow.values()) if trainer.ema else 0)
    assert plan.gradients == plan.trained
    assert plan.gathered == 0
    trainer.close()


def test_shards_are_those_of_torch() -> None:
    for shape in ((5, 3), (1, 8), (7,), (16, 2), (2, 2)):
        tensor = torch.empty(shape, device="meta")
        assert shard_bytes(tensor, 4) == held([tensor.chunk(4)[0]])
        assert shard_bytes(tensor, 1) == held([tensor])


def test_sharding_divides_what_is_kept(tmp_path: Path) -> None:
    """Up to one row of each tensor."""
    whole, parts = (plan_memory(config(tmp_path, sharding=sharding), 8) for sharding in ("ddp", "fsdp"))
    for name in ("trained", "optimizer", "average", "gradients"):
        assert getattr(whole, name) / 8 <= getattr(parts, name) <= getattr(whole, name) / 4
    assert plan_memory(config(tmp_path, sharding="fsdp"), 1) == plan_memory(config(tmp_path), 1)


def test_the_estimate_of_operations_is_near_what_torch_counts(tmp_path: Path) -> None:
    """Within a quarter: padding, words and masked tokens, which skip EmbeddingViT, are not in the formula."""
    run = config(tmp_path, batch_size=16, model=ModelSource(preset="mmar-digits"))
    trainer = Trainer(run)
    (batch,) = trainer.feed.batches(iter(trainer.loader), 0)
    words = batch.tokens / 16 - trainer.model.config.image_config.count - 2
    estimate = 16 * flops_per_sample(run, trainer.model, text_tokens=round(words))
    assert estimate == pytest.approx(trainer.gradients.count_flops(batch), rel=0.25)
    trainer.close()


def test_the_plan_of_the_paper_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "configs" / "paper-7b-stage1.yaml"
    assert memory_plan.main([str(path), "--gpus", "64"]) == 0
    said = capsys.readouterr().out
    assert "fits" in said
    assert "assumed" in said
    assert memory_plan.main([str(path), "model.size=null"]) == 2


# -- torchrun ----------------------------------------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_signal_to_one_rank_of_torchrun_saves_and_ends_all(sharding: str, tmp_path: Path) -> None:
    output, path, said = tmp_path / "run", tmp_path / "run.yaml", tmp_path / "said"
    path.write_text(
        f"output: {output}\nmodel: {{preset: mmar-tiny}}\ndata: [{{kind: digits}}]\nbatch_size: 2\nsteps: 4000\n"
        f"sharding: {sharding}\nsaving: {{every: 2, log_every: 1}}\n"
    )
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "mmar.train"]
    with said.open("wb") as file:
        process = subprocess.Popen(
            [*words, str(path)], stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    deadline = time.monotonic() + 120
    while not list_checkpoints(output) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    ranks = [child for child in psutil.Process(process.pid).children() if "mmar.train" in " ".join(child.cmdline())]
    assert len(ranks) == 2, said.read_text()[-3000:]
    ranks[1].send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 0, said.read_text()[-3000:]
    last = load_latest(output)[0]
    assert last is not None
    assert last.step == lines(output)[-1]["step"]
    assert math.isfinite(lines(output)[-1]["loss"])
    assert said.read_text().count(str(last.path)) == 2  # in the message of the stop, and printed once
