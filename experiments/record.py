"""Records: one JSON file per experiment and preset, with everything needed to say where a number came from."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RECORDS = Path(__file__).parent / "records"
PACKAGES = ("diffparam", "torch", "numpy", "scipy", "scikit-learn")


def make_record(experiment: str, config: Any, results: Mapping[str, Any], *, duration_s: float, device: str) -> dict[str, Any]:
    """A record: config, versions, device, duration and results; floats to 6 digits, non-finite ones as null."""
    return {
        "experiment": experiment,
        "config": _plain(asdict(config) if is_dataclass(config) and not isinstance(config, type) else config),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "device": describe_device(device),
        "duration_s": round(duration_s, 1),
        "results": _plain(results),
    }


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """Write atomically: a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(_dumps(value))
    temporary.replace(path)


def read_record(name: str | Path) -> dict[str, Any]:
    """A record by the name of its file in ``experiments/records``, or by path.

    Raises:
        FileNotFoundError: With the command that makes it.
    """
    path = Path(name) if Path(name).suffix == ".json" else RECORDS / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"the record must exist, got no file at {path}; make it with: {_command(path)}")
    return json.loads(path.read_text())


def _command(path: Path) -> str:
    """What makes a record: an experiment by preset, or a benchmark."""
    name, _, preset = path.stem.rpartition("-")
    if (RECORDS.parents[1] / "tests" / "benchmarks" / f"{name}.py").exists():
        return f"python tests/benchmarks/{name}.py --out {path}"
    return f"python experiments/{name}.py --preset {preset}"


def describe_device(device: str) -> str:
    """The processor or accelerator in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, str):
        return value.removeprefix(f"{RECORDS.parents[1]}{os.sep}")  # a folder of the project, wherever it stands
    return value


def _dumps(value: Any, indent: int = 0) -> str:
    """JSON with short lists of numbers on one line: a record is read by people too."""
    pad = " " * (indent + 1)
    if isinstance(value, dict) and value:
        inner = ",\n".join(f"{pad}{json.dumps(k)}: {_dumps(v, indent + 1)}" for k, v in value.items())
        return "{\n" + inner + "\n" + " " * indent + "}"
    return json.dumps(value, allow_nan=False)
