"""What the gap between the v-space losses of eps and v is made of, and how well three predictions meet its direct part.

Pure functions of the measured curves; nothing is trained here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from diffparam import EPSILON, OutputMoments, Schedule, loss_floor
from experiments.head_study.measure import Curves

BUCKETS = (0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 950, 980, 990, 999, 1000)
"""Edges of the timestep buckets; finer where 1/alpha_bar grows by orders of magnitude."""
REGIMES = ("mixed", "pure")
PARTS = ("float32_gap", "direct", "training", "remainder")
PREDICTIONS = ("paper", "single_rounding", "calibrated", "one_delta")
HIGH_NOISE = 500
"""Where a network's rounding error is relative to its output; below, an absolute part shows."""


def evaluation_timesteps(stride: int) -> list[int]:
    """Every ``stride``-th timestep, in the middle of its interval, and a finer tail from 950."""
    return sorted({*range(stride // 2, 950, stride), *range(955, 990, 5), *range(990, 1000)})


def decompose(heads: Mapping[str, Curves], regime: str) -> dict[str, np.ndarray]:
    """The bf16 gap of a regime as an exact sum of four parts, each over timesteps.

    With L_hi, L_lo the v-space losses of the same weights evaluated in float32 and bf16, D the energy of their difference:
    ``float32_gap`` = L_hi(eps) - L_hi(v) of the float32 arms; ``direct`` = D(eps) - D(v); ``training`` = what training in the
    regime adds to the gap of L_hi; ``remainder`` = the correlation of rounding and approximation errors, L_lo - L_hi - D.

    Args:
        heads: Held-out curves of the arms of one seed.
        regime: ``mixed`` or ``pure``.
    """
    eps, v, eps32, v32 = (_arrays(heads[name]) for name in (f"eps_{regime}", f"v_{regime}", "eps_float32", "v_float32"))
    float32_gap = eps32["loss_float32"] - v32["loss_float32"]
    return {
        "gap": eps["loss_bf16"] - v["loss_bf16"],
        "float32_gap": float32_gap,
        "direct": eps["direct"] - v["direct"],
        "training": eps["loss_float32"] - v["loss_float32"] - float32_gap,
        "remainder": _correlation(eps) - _correlation(v),
    }


def predict_direct(schedule: Schedule, timesteps: Sequence[int], calibration: Curves) -> dict[str, np.ndarray]:
    """Direct part of an eps head over timesteps, predicted four ways by :func:`diffparam.loss_floor`.

    ``paper``: eq. 27, 1/(128^2 alpha_bar). ``single_rounding``: one rounding of the output to nearest, with the network's
    output moments. ``calibrated``: delta measured on the network in each bucket. ``one_delta``: one delta for all t, measured
    from t = 500 up.

    Args:
        schedule: Training schedule.
        timesteps: Where the curves were measured.
        calibration: Curves of the same head on *other* images and noise than those the direct part is measured on.
    """
    phi = schedule.phi[list(timesteps)].numpy()
    seen = _arrays(calibration)
    moments = OutputMoments(seen["x_sq"], seen["x_v"], seen["v_sq"])

    def floor(delta: float | str, **options: OutputMoments) -> np.ndarray:
        return np.asarray(loss_floor(phi, param=EPSILON, delta=delta, **options))

    delta_sq = seen["delta"] ** 2
    per_bucket = delta_sq.copy()
    for inside in bucket_masks(timesteps).values():
        per_bucket[inside] = delta_sq[inside].mean()
    constant = delta_sq[np.asarray(timesteps) >= HIGH_NOISE].mean()
    return {
        "paper": floor("machine_epsilon"),
        "single_rounding": floor("rms", moments=moments),
        "calibrated": per_bucket * floor(1.0, moments=moments),
        "one_delta": constant * floor(1.0, moments=moments),
    }


def bucket_masks(timesteps: Sequence[int]) -> dict[str, np.ndarray]:
    """Which timesteps fall into each bucket, by its label; buckets without timesteps are left out."""
    t = np.asarray(timesteps)
    masks = {(f"{a}-{b - 1}" if b - a > 1 else f"{a}"): (t >= a) & (t < b) for a, b in pairwise(BUCKETS)}
    return {label: inside for label, inside in masks.items() if inside.any()}


def by_bucket(curve: np.ndarray, timesteps: Sequence[int]) -> dict[str, float]:
    """Mean of a curve in each bucket."""
    return {label: float(curve[inside].mean()) for label, inside in bucket_masks(timesteps).items()}


def ratio_by_bucket(measured: np.ndarray, predicted: np.ndarray, timesteps: Sequence[int]) -> dict[str, float]:
    """Measured over predicted, geometric mean in each bucket: one timestep counts as much as another."""
    log = np.log(measured / predicted)
    return {label: float(np.exp(log[inside].mean())) for label, inside in bucket_masks(timesteps).items()}


def slope_in_alpha_bar(curve: np.ndarray, schedule: Schedule, timesteps: Sequence[int]) -> float | None:
    """Exponent p of ``curve ~ alpha_bar^p`` from t = 500 up, by least squares in logarithms; None if the curve changes sign."""
    high = np.asarray(timesteps) >= HIGH_NOISE
    if not (curve[high] > 0).all():
        return None
    alpha_bar = schedule.alpha_bar[list(timesteps)].numpy()
    return float(np.polyfit(np.log(alpha_bar[high]), np.log(curve[high]), 1)[0])


def over_seeds(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean, smallest and largest of one number over the seeds; None where a seed has none."""
    if any(v is None for v in values):
        return {"mean": None, "min": None, "max": None}
    return {"mean": float(np.mean(values)), "min": float(np.min(values)), "max": float(np.max(values))}  # type: ignore[arg-type]


def _correlation(head: Mapping[str, np.ndarray]) -> np.ndarray:
    return head["loss_bf16"] - head["loss_float32"] - head["direct"]


def _arrays(curves: Curves) -> dict[str, np.ndarray]:
    return {key: np.asarray(values) for key, values in curves.items()}
