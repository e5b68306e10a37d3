"""A training run as a process group of its own, watched from outside through its folder and killed at a chosen moment."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

from mmar.training.checkpoint_folder import UNFINISHED, load_latest
from mmar.training.config import TrainingConfig, save_config

PATIENCE_S = 600.0
"""Longest wait for anything."""
PAUSE_S = 0.0005
"""Between two looks: a small checkpoint is written in some hundredths of a second."""


@dataclass(frozen=True)
class Moment:
    """When to kill.

    Attributes:
        aimed: At a checkpoint that is being written.
        count: Of checkpoints begun, or of steps done, by this process; 0: while it starts.
        delay_s: After that, or after the start of the process.
    """

    aimed: bool
    count: int
    delay_s: float


@dataclass(frozen=True)
class Kill:
    """What a kill left behind.

    Attributes:
        aimed: Whether it was aimed at a checkpoint.
        step: Last step that the killed process had logged; that of its start where it had logged none.
        checkpoint: Step of the newest whole checkpoint.
        writing: Whether this process left a checkpoint unfinished. What others left stays until its step is written again.
        broken: Checkpoints that are there and not whole.
    """

    aimed: bool
    step: int
    checkpoint: int
    writing: bool
    broken: int

    @property
    def lost(self) -> int:
        """Steps that must be done again."""
        return self.step - self.checkpoint


def draw_moment(rng: Random, *, aimed: bool, most: int, start_s: float, write_s: float, step_s: float) -> Moment:
    """A random moment.

    Args:
        rng: Source.
        aimed: At a checkpoint: the first or the second that this process begins.
        most: Steps of a process at most.
        start_s: Seconds that a start takes, about.
        write_s: Seconds that a checkpoint takes, about.
        step_s: Seconds that a step takes, about.
    """
    count = rng.randint(1, 2) if aimed else rng.randint(0, most)
    return Moment(aimed, count, rng.uniform(0, write_s if aimed else step_s if count else start_s))


class Run:
    """Processes of one training run, one after the other.

    Args:
        config: Of the run; its output is a new folder.
        device: cpu hides accelerators from the processes.
    """

    def __init__(self, config: TrainingConfig, *, device: str) -> None:
        self.folder = Path(config.output)
        self.log = self.folder / "log.jsonl"
        self._config = self.folder.with_suffix(".yaml")
        self._said = self.folder.with_suffix(".out")
        self._hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        save_config(config, self._config)

    def finish(self) -> None:
        """Start or resume it and wait for its end.

        Raises:
            RuntimeError: If it fails.
        """
        process = self._start()
        if process.wait(PATIENCE_S) != 0:
            raise self._failure(process)

    def kill(self, moment: Moment) -> Kill:
        """Start or resume it and kill the whole group at a moment, with nothing that could be caught.

        Raises:
            RuntimeError: If it ends by itself before.
        """
        start = self._checkpoint()[0]
        before, left = self._seen(), self._unfinished()
        process = self._start()
        try:
            self._wait(process, moment, start, before, left)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode != -signal.SIGKILL:
            raise self._failure(process)
        checkpoint, broken = self._checkpoint()
        step = start if self._seen() == before else max(start, self._last_step())
        return Kill(moment.aimed, step, checkpoint, bool(self._begun(left)), broken)

    def _start(self) -> subprocess.Popen[bytes]:
        words = ["--resume"] if self.folder.exists() else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self._hidden}
        with self._said.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "mmar.train", str(self._config), *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # readers too are in the group that is killed
            )

    def _wait(
        self, process: subprocess.Popen[bytes], moment: Moment, start: int, before: tuple[int, int], left: dict[str, int]
    ) -> None:
        begun, deadline = set[str](), time.monotonic() + PATIENCE_S
        while moment.count:
            begun |= self._begun(left)
            if moment.aimed and len(begun) >= moment.count:
                break
            if not moment.aimed and self._seen() != before and self._last_step() >= start + moment.count:
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise self._failure(process)
            time.sleep(PAUSE_S)
        time.sleep(moment.delay_s)

    def _begun(self, left: dict[str, int]) -> set[str]:
        """Unfinished checkpoints that were not there, or not as they are now."""
        return {name for name, changed in self._unfinished().items() if left.get(name) != changed}

    def _unfinished(self) -> dict[str, int]:
        """Names of folders, and when they were changed."""
        found = {}
        for path in self.folder.glob(f"{UNFINISHED}*"):
            with contextlib.suppress(FileNotFoundError):  # it was finished meanwhile
                if path.name != f"{UNFINISHED}probe":
                    found[path.name] = path.stat().st_mtime_ns
        return found

    def _checkpoint(self) -> tuple[int, int]:
        """Step of the newest whole checkpoint, and the number of broken ones that are newer."""
        found, broken = load_latest(self.folder)
        return 0 if found is None else found.step, len(broken)

    def _seen(self) -> tuple[int, int]:
        """Changes with each line, and when a resumed run takes out those that it will write again."""
        if not self.log.exists():
            return 0, 0
        status = self.log.stat()
        return status.st_size, status.st_mtime_ns

    def _last_step(self) -> int:
        """Of the last whole line."""
        if not self.log.exists():
            return 0
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 4096))
            whole = file.read().split(b"\n")[:-1]
        return json.loads(whole[-1])["step"] if whole else 0

    def _failure(self, process: subprocess.Popen[bytes]) -> RuntimeError:
        said = self._said.read_text(errors="replace")[-2000:]
        return RuntimeError(f"a run must go on until it is killed or done, got status {process.poll()}; it said\n{said}")
