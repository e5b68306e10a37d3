"""What can go wrong around a run, done for real: disks that are full or locked, damaged checkpoints, losses that explode."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_image_files import encoded
from safetensors.torch import load_file

from mmar import train as command
from mmar.data.folder import FolderDataset
from mmar.data.latents import cache_latents
from mmar.data.order import StreamSettings
from mmar.data.stream import ExampleStream
from mmar.processing import MMARProcessor
from mmar.tokenizers import LatentScale, PatchTokenizer
from mmar.training.build import build_parts
from mmar.training.checkpoint_folder import UNFINISHED, list_checkpoints, load_checkpoint, load_latest
from mmar.training.config import load_config
from mmar.training.loop import NonFiniteLoss, Trainer

EXACT = ("step", "loss", "text_loss", "image_loss", "grad_norm", "lr", "text_tokens", "image_tokens")
STEPS, EVERY = 8, 2
MEGABYTE = 2**20
PATIENCE_S = 300.0


def written(output: Path, text: str = "") -> Path:
    """A configuration of a short run; ``text`` is put behind it."""
    path = output.parent / f"{output.name}.yaml"
    path.write_text(
        f"output: {output}\nmodel: {{preset: mmar-tiny}}\ndata: [{{kind: digits, options: {{questions: 1}}}}]\n"
        f"batch_size: 2\nsteps: {STEPS}\nthreads: 1\nsaving: {{every: {EVERY}, log_every: 1, keep: {STEPS}}}\n{text}"
    )
    return path


def run(output: Path, *words: str, text: str = "") -> int:
    """Status of the command, in this process."""
    return command.main([str(written(output, text)), *words])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [{name: json.loads(line)[name] for name in EXACT} for line in (folder / "log.jsonl").read_text().splitlines()]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def steps_of(folder: Path) -> list[int]:
    return [load_checkpoint(path).step for path in list_checkpoints(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(folder) == 0
    return folder


def check_same(folder: Path, whole: Path) -> None:
    assert lines(folder) == lines(whole)
    assert digests(folder / "final") == digests(whole / "final")


# -- disks --------------------------------------------------------------------------------------------------------------------


def mounted(place: Path, *words: str) -> None:
    try:
        subprocess.run(["mount", *words, str(place)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to mount: {error}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk of so many bytes; called again, it has another size."""
    place = tmp_path / "disk"
    place.mkdir()

    def sized(size: int) -> Path:
        mounted(place, "-t", "tmpfs", "-o", f"{'remount,' if place.is_mount() else ''}size={size}", "tmpfs")
        return place

    yield sized
    if place.is_mount():
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def checkpoint_size(whole: Path) -> int:
    """On a disk with blocks of 4096 bytes."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in list_checkpoints(whole)[-1].iterdir())


def test_a_disk_that_fills_up_ends_the_run_and_costs_only_the_steps_since_the_last_checkpoint(
    whole: Path, disk: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two checkpoints fit and half of a third."""
    folder = disk(int(2.5 * checkpoint_size(whole))) / "run"
    path = written(tmp_path / "full")
    assert command.main([str(path), f"output={folder}"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left on device" in said
    assert "--resume" in said
    assert steps_of(folder) == [EVERY, 2 * EVERY]
    assert not list(folder.glob(f"{UNFINISHED}*"))
    kept = digests(folder)
    assert command.main([str(path), f"output={folder}", "--resume"]) == 1  # still full: nothing is lost by trying
    assert {name: digest for name, digest in digests(folder).items() if name.startswith("checkpoint")} == {
        name: digest for name, digest in kept.items() if name.startswith("checkpoint")
    }
    disk(64 * MEGABYTE)
    assert command.main([str(path), f"output={folder}", "--resume"]) == 0
    check_same(folder, whole)


def test_a_disk_without_room_for_the_end_says_so(
    whole: Path, disk: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All checkpoints fit, the finished pipeline does not."""
    folder = disk(int(STEPS / EVERY * checkpoint_size(whole)) + 64 * 1024) / "run"
    path = written(tmp_path / "full")
    assert command.main([str(path), f"output={folder}"]) == 1
    assert "No space left on device" in capsys.readouterr().err.strip().splitlines()[-1]
    assert steps_of(folder) == [2, 4, 6, 8]
    assert not (folder / "final").exists()  # what needs this run looks for that folder
    disk(64 * MEGABYTE)
    assert command.main([str(path), f"output={folder}", "--resume"]) == 0
    check_same(folder, whole)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing beyond it fails with EFBIG, as over a quota or on an old file system."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_may_not_grow_leaves_the_checkpoint_before(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run(folder, "steps=4") == 0
    shutil.rmtree(folder / "final")
    kept = digests(list_checkpoints(folder)[-1])
    with largest_file(MEGABYTE):
        assert run(folder, "--resume") == 1
    assert "File too large" in capsys.readouterr().err
    assert steps_of(folder) == [2, 4]
    assert digests(list_checkpoints(folder)[-1]) == kept
    assert run(folder, "--resume") == 0
    check_same(folder, whole)


def test_a_locked_disk_is_refused_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_parts(config: Any) -> None:
        raise AssertionError("built")

    monkeypatch.setattr("mmar.training.loop.build_parts", build_parts)
    place = tmp_path / "locked"
    place.mkdir()
    mounted(place, "--bind", str(place))
    try:
        mounted(place, "-o", "remount,bind,ro")
        assert command.main([str(written(tmp_path / "run")), f"output={place / 'run'}"]) == 1
    finally:
        subprocess.run(["umount", str(place)], check=True)
    said = capsys.readouterr().err
    assert "Read-only file system" in said
    assert "choose another" in said
    assert len(said.splitlines()) == 1


def test_a_disk_that_is_locked_while_a_run_goes_on(
    disk: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an error of the hardware. The message says what is left and what to do."""
    place = disk(64 * MEGABYTE)
    take = Trainer._step

    def step(self: Trainer, *arguments: Any) -> Any:
        if self.step == 2 * EVERY - 1:
            mounted(place, "-o", "remount,ro")
        return take(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", step)
    assert command.main([str(written(tmp_path / "run")), f"output={place / 'run'}", "saving.log_every=100"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Read-only file system" in said
    assert "--resume" in said
    assert steps_of(place / "run") == [EVERY]


# -- damage -------------------------------------------------------------------------------------------------------------------


def truncate(checkpoint: Path) -> None:
    os.truncate(checkpoint / "optimizer.safetensors", 1000)


def flip_a_bit(checkpoint: Path) -> None:
    data = bytearray((checkpoint / "ema.safetensors").read_bytes())
    data[-1] ^= 1
    (checkpoint / "ema.safetensors").write_bytes(data)


def remove(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()


def empty(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_bytes(b"")


def list_nothing(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_text('{"files": {}}')


def list_wrongly(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_text('{"files": []}')


def copied(whole: Path, folder: Path) -> Path:
    """A run that was killed behind its last checkpoint."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "final")
    return folder


def test_damaged_checkpoints_are_passed_over_to_the_first_whole_one(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(whole, tmp_path / "run")
    _, *damaged = list_checkpoints(folder)
    for damage, checkpoint in zip((truncate, flip_a_bit, remove), damaged, strict=True):
        damage(checkpoint)
    assert run(folder, "--resume") == 0
    said = capsys.readouterr().out
    complaints = [line for line in said.splitlines() if line.startswith("skipped a broken checkpoint")]
    files = ("optimizer", "ema", "model")
    for line, path, name in zip(complaints, reversed(damaged), reversed(files), strict=True):
        assert path.name in line
        assert f"{name}.safetensors" in line
    assert f"resumed {list_checkpoints(folder)[0]} at step {EVERY}" in said
    check_same(folder, whole)
    assert steps_of(folder) == [2, 4, 6, 8]  # the damaged ones were written anew


@pytest.mark.parametrize("damage", [empty, list_nothing, list_wrongly])
def test_a_manifest_that_lists_nothing_is_damage_too(
    damage: Callable[[Path], None], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(whole, tmp_path / "run")
    damage(list_checkpoints(folder)[-1])
    assert run(folder, "--resume") == 0
    assert "skipped a broken checkpoint" in capsys.readouterr().out
    check_same(folder, whole)


def test_where_no_checkpoint_is_whole_nothing_is_overwritten(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A person must decide: the files may be repaired, or be on a disk that is not mounted right."""
    folder = copied(whole, tmp_path / "run")
    for checkpoint in list_checkpoints(folder):
        remove(checkpoint)
    kept = digests(folder)
    assert run(folder, "--resume") in (1, 2)
    said = capsys.readouterr()
    assert "model.safetensors" in said.out + said.err
    assert digests(folder) == kept


def test_a_damaged_checkpoint_is_not_kept_in_place_of_a_whole_one(whole: Path, tmp_path: Path) -> None:
    """One good checkpoint is left and one may be kept: it must be a good one."""
    folder = copied(whole, tmp_path / "run")
    for checkpoint in list_checkpoints(folder)[1:]:
        remove(checkpoint)
    assert run(folder, "--resume", "steps=4", "saving.keep=1") == 0
    found = load_latest(folder)[0]
    assert found is not None
    assert found.step == 4


def test_a_run_killed_at_its_very_end_has_no_finished_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model written, processor not: what is there must not be called final."""

    class Killed(BaseException):
        pass

    def kill(self: MMARProcessor, folder: Any, **options: Any) -> None:
        raise Killed

    monkeypatch.setattr(MMARProcessor, "save_pretrained", kill)
    with pytest.raises(Killed):
        run(tmp_path / "run")
    assert not (tmp_path / "run" / "final").exists()


# -- losses that are not finite -----------------------------------------------------------------------------------------------


def test_steps_without_a_finite_loss_are_counted_and_change_nothing(tmp_path: Path) -> None:
    """Two of them, where three stop the run: it goes on, with the weights of before."""
    config = load_config(written(tmp_path / "run"), ["max_nan=3"])
    trainer, seen = Trainer(config), []

    def spoil(module: Any, arguments: Any, output: Any) -> Any:
        seen.append([p.detach().clone() for p in trainer._trained()])
        if trainer.step in (2, 3):
            output.loss = output.loss * torch.nan
        return output

    trainer._count_flops = lambda batch: 0.0  # type: ignore[method-assign]  # a forward pass more
    trainer.model.register_forward_hook(spoil)
    assert trainer.run().name == "final"
    trainer.close()
    changed = [not all(map(torch.equal, a, b)) for a, b in pairwise(seen)]
    assert changed == [step not in (2, 3) for step in range(STEPS - 1)]
    state = load_checkpoint(list_checkpoints(tmp_path / "run")[-1]).state
    assert (state["nan_steps"], state["ema_updates"]) == (2, STEPS - 2)
    assert [line["grad_norm"] for line in lines(tmp_path / "run")[2:4]] == [None, None]


def test_a_loss_that_explodes_stops_the_run_and_the_batch_explodes_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    words = ["optimizer.lr=1e30", "optimizer.warmup=0", "max_nan=2", "saving.every=1"]
    assert run(folder, *words) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "2 steps" in said
    (saved,) = folder.glob("not-finite-step-*")
    assert str(saved) in said
    last = list_checkpoints(folder)[-1]
    assert load_checkpoint(last).state["nan_steps"] == 1
    config = load_config(written(folder), words)
    batch, model = load_file(saved / "batch-0.safetensors"), build_parts(config).model
    assert json.loads((saved / "batch-0.json").read_text())["keys"]
    assert model(**batch).loss.isfinite()  # the control: by itself the batch is good
    model.load_state_dict(load_checkpoint(last).tensors["model"], strict=False)
    assert not model(**batch).loss.isfinite()


def test_after_such_a_stop_the_advice_can_be_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert run(folder, "steps=4") == 0
    trainer = Trainer(load_config(written(folder), ["max_nan=1"]), resume=True)
    trainer.model.register_forward_hook(lambda module, arguments, output: setattr(output, "loss", output.loss * torch.nan))
    trainer._count_flops = lambda batch: 0.0  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLoss) as stopped:
        trainer.run()
    trainer.close()
    capsys.readouterr()
    assert "another seed" not in str(stopped.value) or run(folder, "--resume", "seed=1") == 0, capsys.readouterr().err


def test_a_file_that_is_not_yaml_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "run", "steps: 3\n")  # a key that occurs twice
    assert command.main([str(path)]) == 2
    assert "steps" in capsys.readouterr().err


# -- a latent cache -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders cache and image: eight photographs with captions, as tokens, and their tokenizer."""
    place = tmp_path_factory.mktemp("cache")
    (place / "images").mkdir()
    names = [f"{i}.png" for i in range(8)]
    for i, name in enumerate(names):
        (place / "images" / name).write_bytes(encoded(i, "PNG"))
    lines = [json.dumps({"file_name": name, "text": f"photograph {name}"}) for name in names]
    (place / "images" / "metadata.jsonl").write_text("\n".join(lines))
    patches = PatchTokenizer(8, 2, image_channels=3).with_scale(LatentScale(std=0.5))
    patches.save_pretrained(place / "image")
    cache_latents(
        ExampleStream(FolderDataset.from_folder(place / "images"), StreamSettings(epochs=1)), patches, place / "cache"
    )
    return place


def cached(place: Path, output: Path) -> Path:
    path = written(output, f"tokenizers: {{image: {place / 'image'}}}\n")
    path.write_text(
        path.read_text().replace("{kind: digits, options: {questions: 1}}", f"{{kind: latents, path: {place / 'cache'}}}")
    )
    return path


def test_a_run_on_a_latent_cache_needs_no_text_tokenizer(cache: Path, tmp_path: Path) -> None:
    assert command.main([str(cached(cache, tmp_path / "run")), "steps=1"]) == 0


def test_a_run_on_a_latent_cache_draws_its_first_captions(whole: Path, cache: Path, tmp_path: Path) -> None:
    words = ["steps=1", f"tokenizers.text={whole / 'final'}", "saving.sample_steps=[1,1]"]
    assert command.main([str(cached(cache, tmp_path / "without")), *words]) == 0  # the control
    assert command.main([str(cached(cache, tmp_path / "with")), *words, "saving.samples_every=1"]) == 0


# -- signals ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_readers_too_and_the_run_ends_well(number: signal.Signals, tmp_path: Path) -> None:
    """A terminal and a job scheduler send it to all processes of the run at once, the latter to the first one twice."""
    folder, out = tmp_path / "run", tmp_path / "out"
    with out.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "mmar.train", str(written(folder)), "steps=10000", "workers=1"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    deadline = time.monotonic() + PATIENCE_S
    while not list_checkpoints(folder) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    time.sleep(0.05)
    os.killpg(process.pid, number)
    assert process.wait(PATIENCE_S) == 0, out.read_text()[-2000:]
    found = load_latest(folder)[0]
    assert found is not None
    assert found.step == lines(folder)[-1]["step"]
    assert f"{number.name}: saved" in out.read_text()
    assert "Traceback" not in out.read_text()
