"""Sampling from a head along a report's grid, in two precisions of its output, with the guards that people put on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from diffparam import AngularParam, NonFiniteError, ddim_sample
from experiments.field_study.reports import Report, Run
from experiments.head_study.quality import accuracy, frechet_distance
from experiments.tokens import TokenSet

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


class Network(Protocol):
    """A head, or the exact network."""

    def __call__(self, x_t: Tensor, t: Tensor, z: Tensor, *, dtype: torch.dtype) -> Tensor:
        """``(batch, D), (batch,), (batch, C)`` to ``(batch, D)`` in ``dtype``."""


def sample_runs(
    network: Network,
    param: AngularParam,
    report: Report,
    runs: Mapping[str, Run],
    data: TokenSet,
    *,
    steps: int,
    seed: int,
    device: str,
) -> dict[str, dict[str, Any]]:
    """Sample the classes of ``data`` by every run, in both precisions from the same noise, and compare with its scans.

    Returns:
        By run: ``start``; ``float32`` and ``bf16``, each with ``frechet``, ``accuracy`` and ``rms`` (1 for the data); and
        ``moved``, the rms difference between the two, which is what rounding did. None where the sampler left the finite range.
    """
    results: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        samples = {
            precision: _sample(network, param, report, run, data, dtype, steps=steps, seed=seed, device=device)
            for precision, dtype in PRECISIONS.items()
        }
        moved = None
        if all(sample is not None for sample in samples.values()):
            moved = (samples["bf16"] - samples["float32"]).double().square().mean().sqrt().item()  # type: ignore[operator]
        results[name] = {
            "start": float(run.start),
            **{p: _quality(sample, data) for p, sample in samples.items()},
            "moved": moved,
        }
    return results


def _sample(
    network: Network,
    param: AngularParam,
    report: Report,
    run: Run,
    data: TokenSet,
    dtype: torch.dtype,
    *,
    steps: int,
    seed: int,
    device: str,
) -> Tensor | None:
    """Samples ``(count, D)`` float32 on the CPU; the sampler is float32 whatever the network computes in."""
    grid, z = report.grid(run, steps), data.z.to(device)

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        phi = grid.phi_at(t[0].item())
        return run.guard.apply(network(x_t, t, z, dtype=dtype), x_t, phi, param=param, data=data)

    noise = torch.randn(data.tokens.shape, generator=torch.Generator().manual_seed(3_000_000 + seed)).to(device)
    try:
        return ddim_sample(model, noise, grid, param=run.guard.param(param)).cpu()
    except NonFiniteError:
        return None


def _quality(samples: Tensor | None, data: TokenSet) -> dict[str, float | None]:
    if samples is None:
        return {"frechet": None, "accuracy": None, "rms": None}
    return {
        "frechet": frechet_distance(samples, data.tokens),
        "accuracy": accuracy(data.to_pixels(samples), data.labels),
        "rms": samples.double().square().mean().sqrt().item(),
    }
