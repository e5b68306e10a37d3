"""Quality of samples against held-out scans: Frechet distance in pixel space, and accuracy of a fixed classifier."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh
from sklearn.svm import SVC
from torch import Tensor

from diffparam import NonFiniteError, Schedule, ddim_sample
from experiments.head_study.arms import Arm
from experiments.tokens import TokenSet, digits
from mmar.diffusion_head import DiffusionHead


def sample_quality(
    head: DiffusionHead,
    arm: Arm,
    held_out: TokenSet,
    schedule: Schedule,
    *,
    starts: Mapping[str, int],
    step_counts: Sequence[int],
    repeats: int,
    seed: int,
    device: str,
) -> list[dict[str, Any]]:
    """Sample the held-out classes with DDIM and compare with the held-out scans.

    The network runs in the arm's own precision, the sampler in float32 (the paper's mixed-precision inference). The initial
    noise depends on the seed alone.

    Returns:
        One row per start and step count: ``start`` (its name), ``timestep``, ``steps``, ``frechet`` (in units of the
        normalised tokens squared), ``accuracy``, and ``rms``, the samples' root mean square (1 for the data); None where the
        sampler left the finite range.
    """
    z = held_out.z.repeat(repeats, 1).to(device)
    labels = held_out.labels.repeat(repeats)
    rows: list[dict[str, Any]] = []
    for start, timestep in starts.items():
        for steps in step_counts:
            noise = torch.randn(len(z), held_out.tokens.shape[1], generator=torch.Generator().manual_seed(3_000_000 + seed))
            grid = schedule.up_to(timestep).respace(steps)
            row: dict[str, Any] = {"start": start, "timestep": timestep, "steps": steps}
            try:
                samples = ddim_sample(lambda x, t: head(x, t, z, dtype=arm.dtype), noise.to(device), grid, param=arm.param)
                row |= _quality(samples.cpu(), labels, held_out)
            except NonFiniteError:
                row |= {"frechet": None, "accuracy": None, "rms": None}
            rows.append(row)
    return rows


def reference_quality(train: TokenSet, held_out: TokenSet) -> dict[str, float]:
    """What is possible: the training scans as if they were samples, and the classifier on the held-out scans."""
    return {
        "frechet": frechet_distance(train.tokens, held_out.tokens),
        "held_out_accuracy": accuracy(held_out.to_pixels(held_out.tokens), held_out.labels),
    }


def _quality(samples: Tensor, labels: Tensor, held_out: TokenSet) -> dict[str, float]:
    return {
        "frechet": frechet_distance(samples, held_out.tokens),
        "accuracy": accuracy(held_out.to_pixels(samples), labels),
        "rms": samples.double().square().mean().sqrt().item(),
    }


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of Gaussian fits: ``|mu_a - mu_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)``.

    Args:
        a: ``(count, D)`` samples.
        b: ``(count, D)`` samples.
    """
    x, y = a.double().numpy(), b.double().numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = eigh(cov_x)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T  # eigenvalues of a covariance are not negative but by rounding
    cross = np.sqrt(eigh(root @ cov_y @ root, eigvals_only=True).clip(min=0)).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * cross)


def accuracy(pixels: Tensor, labels: Tensor) -> float:
    """Share of images that the fixed classifier assigns to their class."""
    return float((_classifier().predict(pixels.numpy()) == labels.numpy()).mean())


@functools.cache
def _classifier() -> SVC:
    """An RBF support vector machine on the training scans, in pixel units; deterministic."""
    train, _ = digits()
    return SVC(gamma=0.001, C=10.0).fit(train.to_pixels(train.tokens).numpy(), train.labels.numpy())
