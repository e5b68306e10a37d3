"""Precision and recall of generated pictures by nearest neighbours of features (Kynkäänniemi et al. 2019, arXiv 1904.06991)."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_AT_A_TIME = 1024


def precision_recall(real: Tensor, generated: Tensor, *, neighbours: int = 3) -> tuple[float, float]:
    """How many generated pictures look real, and how many real ones could have been generated.

    Precision is the share of generated features within the balls around the real ones, recall the share of real features
    within those around the generated ones (their equations 2 and 3). A ball reaches to its k-th nearest neighbour of its own
    kind. Both grow with k and with the number of pictures: compare at the same numbers only.

    Args:
        real: ``(m, F)``.
        generated: ``(n, F)``.
        neighbours: k.

    Returns:
        Precision and recall, in [0, 1].

    Raises:
        ValueError: If shapes do not fit, there are no more than k features of a kind, or one is not finite.
    """
    _check(real, generated, neighbours)
    real, generated = real.double(), generated.double()
    precision = _share_within(generated, real, _radii(real, neighbours))
    recall = _share_within(real, generated, _radii(generated, neighbours))
    return precision, recall


def _radii(points: Tensor, k: int) -> Tensor:
    """``(n,)`` distances to the k-th nearest other point of ``(n, F)``; the nearest of all is the point itself."""
    return torch.cat([_distances(part, points).kthvalue(k + 1, dim=1).values for part in points.split(ROWS_AT_A_TIME)])


def _share_within(queries: Tensor, centres: Tensor, radii: Tensor) -> float:
    inside = [(_distances(part, centres) <= radii).any(1) for part in queries.split(ROWS_AT_A_TIME)]
    return float(torch.cat(inside).double().mean())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Without the matrix product, whose rounding would part a point from itself."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _check(real: Tensor, generated: Tensor, k: int) -> None:
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"real and generated must be features (m, F) and (n, F), got {tuple(real.shape)} and {tuple(generated.shape)}"
        )
    if k < 1:
        raise ValueError(f"neighbours must be at least 1, got {k}")
    if min(len(real), len(generated)) <= k:
        raise ValueError(
            f"real and generated must each hold more than neighbours={k} features, got {len(real)} and {len(generated)}"
        )
    if not bool(real.isfinite().all() and generated.isfinite().all()):
        raise ValueError("features must be finite, got others; look at the pictures that they are of")
