"""From the finished jobs to the results of the record: curves of every arm, decomposition, predictions, samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffparam import Schedule
from experiments.head_study.arms import ARMS
from experiments.head_study.decompose import (
    PARTS,
    PREDICTIONS,
    REGIMES,
    by_bucket,
    decompose,
    over_seeds,
    predict_direct,
    ratio_by_bucket,
    slope_in_alpha_bar,
)

Jobs = Mapping[str, Mapping[str, Any]]


def summarise(jobs: Jobs, schedule: Schedule, timesteps: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
    """Everything the tables, the figure and the README read.

    Args:
        jobs: Result of ``run_arm`` by ``<arm>-seed<seed>``.
        schedule: Training schedule.
        timesteps: Where the curves were measured.
        seeds: All seeds.

    Returns:
        ``timesteps``; ``curves`` raw, by arm, a list over seeds; ``loss`` per arm and bucket; ``gaps`` per regime;
        ``weighting``: the float32 gap of the v-weighted arm; ``samples`` per arm. Numbers over seeds have mean, min and max.
    """
    held_out = [{arm: jobs[f"{arm}-seed{seed}"]["held_out"] for arm in ARMS} for seed in seeds]
    calibration = [{arm: jobs[f"{arm}-seed{seed}"]["calibration"] for arm in ARMS} for seed in seeds]

    def buckets(curves: Sequence[np.ndarray]) -> dict[str, Any]:
        return _over_seeds([by_bucket(curve, timesteps) for curve in curves])

    gaps: dict[str, Any] = {}
    for regime in REGIMES:
        parts = [decompose(heads, regime) for heads in held_out]
        eps = f"eps_{regime}"
        predicted = [predict_direct(schedule, timesteps, heads[eps]) for heads in calibration]
        measured = [np.asarray(heads[eps]["direct"]) for heads in held_out]
        gaps[regime] = {
            "parts": {name: buckets([seed[name] for seed in parts]) for name in ("gap", *PARTS)},
            "slopes": {
                name: over_seeds([slope_in_alpha_bar(s[name], schedule, timesteps) for s in parts]) for name in ("gap", *PARTS)
            },
            "direct_of_eps": buckets(measured),
            "delta": buckets([np.asarray(heads[eps]["delta"]) for heads in held_out]),
            "predictions": {name: buckets([seed[name] for seed in predicted]) for name in PREDICTIONS},
            "measured_over_predicted": {
                name: _over_seeds([ratio_by_bucket(m, p[name], timesteps) for m, p in zip(measured, predicted, strict=True)])
                for name in PREDICTIONS
            },
            "curves": {
                **{name: _mean([seed[name] for seed in parts]) for name in ("gap", *PARTS)},
                **{f"predicted_{name}": _mean([seed[name] for seed in predicted]) for name in PREDICTIONS},
            },
        }
    weighted = [
        np.asarray(heads["epsw_float32"]["loss_float32"]) - np.asarray(heads["v_float32"]["loss_float32"]) for heads in held_out
    ]
    return {
        "timesteps": list(timesteps),
        "curves": {
            arm: {key: [heads[arm][key] for heads in held_out] for key in ("loss_float32", "loss_bf16", "direct")}
            for arm in ARMS
        },
        "loss": {arm: buckets([_own_loss(arm, heads[arm]) for heads in held_out]) for arm in ARMS},
        "gaps": gaps,
        "weighting": {"float32_gap": buckets(weighted), "curve": _mean(weighted)},
        "samples": {arm: _samples([jobs[f"{arm}-seed{seed}"]["samples"] for seed in seeds]) for arm in ARMS},
    }


def _own_loss(arm: str, curves: Mapping[str, Sequence[float]]) -> np.ndarray:
    """The loss in the precision the arm was trained to run in."""
    return np.asarray(curves["loss_float32" if ARMS[arm].precision == "float32" else "loss_bf16"])


def _samples(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of every seed side by side; start and steps are the same in all."""
    rows = []
    for same in zip(*seeds, strict=True):
        row: dict[str, Any] = {key: same[0][key] for key in ("start", "timestep", "steps")}
        row |= {key: over_seeds([seed[key] for seed in same]) for key in ("frechet", "accuracy", "rms")}
        rows.append(row)
    return rows


def _over_seeds(seeds: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    return {label: over_seeds([seed[label] for seed in seeds]) for label in seeds[0]}


def _mean(seeds: Sequence[np.ndarray]) -> list[float]:
    return np.mean(seeds, axis=0).tolist()
