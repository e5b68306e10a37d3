"""What a run says: JSON lines, TensorBoard events, a progress bar."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm


class RunLog:
    """Lines of a run; one rank writes.

    Args:
        folder: Of the run; ``log.jsonl`` is appended to, ``events/`` holds TensorBoard's files.
        steps: In all.
        first: Steps done before.
        tensorboard: Whether to write events too.
    """

    def __init__(self, folder: Path, *, steps: int, first: int, tensorboard: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"
        _drop_after(self.path, first)
        self.bar = tqdm(total=steps, initial=first, unit="step", file=sys.stderr, dynamic_ncols=True)
        self.events: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # an optional extra

            self.events = SummaryWriter(str(folder / "events"), purge_step=first)

    def line(self, step: int, **values: Any) -> None:
        """Write one line; what is not finite is null."""
        plain = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **plain}, allow_nan=False) + "\n")
        if self.events is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self.events.add_scalar(name, value, step)

    def tick(self, **shown: float) -> None:
        """One step more."""
        self.bar.update(1)
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)

    def say(self, text: str) -> None:
        """A message that the bar does not overwrite."""
        self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Finish bar and events."""
        self.bar.close()
        if self.events is not None:
            self.events.close()


class Throughput:
    """Samples, tokens and floating-point operations per second since the last reading."""

    def __init__(self) -> None:
        self.start, self.samples, self.tokens, self.steps = time.perf_counter(), 0, 0, 0
        self.data_seconds = 0.0

    def add(self, samples: int, tokens: int, data_seconds: float) -> None:
        """Count a step."""
        self.samples, self.tokens, self.steps = self.samples + samples, self.tokens + tokens, self.steps + 1
        self.data_seconds += data_seconds

    def read(self, flops_per_step: float | None) -> dict[str, float]:
        """Rates since the last reading, and memory."""
        seconds = max(1e-9, time.perf_counter() - self.start)
        rates = {
            "samples_per_s": self.samples / seconds,
            "tokens_per_s": self.tokens / seconds,
            "step_s": seconds / max(1, self.steps),
            "data_share": self.data_seconds / seconds,
            "memory_gib": _memory_gib(),
        }
        if flops_per_step is not None:
            rates["tflops"] = flops_per_step * self.steps / seconds / 1e12
        self.__init__()  # type: ignore[misc]
        return {name: round(value, 4) for name, value in rates.items()}


def _memory_gib() -> float:
    """Peak of the accelerator, or of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _drop_after(path: Path, step: int) -> None:
    """Lines of steps that will be run again, after a kill, are taken out; so is a line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    beside = path.with_suffix(".jsonl.new")  # or a kill in between would cost the lines that are kept
    beside.write_text("".join(kept))
    beside.replace(path)
