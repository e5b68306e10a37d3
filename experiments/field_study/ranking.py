"""Whether the error predicted from kappa orders the parameterizations as the measurements do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from diffparam import OutputMoments, Schedule, loss_floor, plan_ddim, predict_error
from experiments.field_study.race_arms import ARMS, PARAMS, SIGMA_DATA, WEIGHTINGS, arm_name
from experiments.head_study.decompose import by_bucket, over_seeds

Jobs = Mapping[str, Mapping[str, Any]]
Starts = Mapping[str, int]
TIE = 1.1
"""Ratio of two predictions up to which they claim no order."""


def target_moments(phi: np.ndarray) -> OutputMoments:
    """Of the v target itself for zero-mean data of standard deviation :data:`SIGMA_DATA`: eq. 19 without its unit variance."""
    cos, sin = np.cos(phi), np.sin(phi)
    return OutputMoments((cos * SIGMA_DATA) ** 2 + sin**2, cos * sin * (1 - SIGMA_DATA**2), cos**2 + (sin * SIGMA_DATA) ** 2)


def floors(phi: np.ndarray) -> dict[str, np.ndarray]:
    """What one rounding to bf16 adds to the v-space loss of each parameterization at angles ``phi``."""
    moments = target_moments(phi)
    return {key: np.asarray(loss_floor(phi, param=p, delta="rms", moments=moments)) for key, p in PARAMS.items()}


def predict(schedule: Schedule, timesteps: Sequence[int], starts: Starts, step_counts: Sequence[int]) -> dict[str, Any]:
    """What kappa, the data's standard deviation and one rounding to bf16 say of each parameterization, before training.

    Returns:
        ``kappa``, by parameterization over ``timesteps``; ``floor``, what one rounding adds to the v-space loss there;
        ``buckets``, means of it; ``rank_floor``, by start, its mean over all timesteps up to the start; ``moved``,
        by start and steps, by how much rounding moves the samples, in units of the data.
    """
    phi = schedule.phi[list(timesteps)].numpy()
    every, everywhere = schedule.timesteps.numpy(), floors(schedule.phi.numpy())
    floor = floors(phi)
    moved: dict[str, dict[str, dict[str, float]]] = {}
    for start, timestep in starts.items():
        moved[start] = {}
        for steps in step_counts:
            grid = schedule.up_to(timestep).respace(steps)
            plans = {key: plan_ddim(grid, param=param) for key, param in PARAMS.items()}
            budgets = {key: predict_error(plan, target_moments(plan.phi_t), output="bfloat16") for key, plan in plans.items()}
            moved[start][str(steps)] = {key: b.sources["output"].predicted / SIGMA_DATA for key, b in budgets.items()}
    return {
        "kappa": {key: np.asarray(param.condition_number(phi)).tolist() for key, param in PARAMS.items()},
        "floor": {key: values.tolist() for key, values in floor.items()},
        "buckets": {key: by_bucket(values, timesteps) for key, values in floor.items()},
        "rank_floor": {
            start: {key: float(values[every <= timestep].mean()) for key, values in everywhere.items()}
            for start, timestep in starts.items()
        },
        "moved": moved,
    }


def rank_correlation(predicted: Mapping[str, float], measured: Mapping[str, float | None]) -> float | None:
    """Spearman's, over the parameterizations.

    Predictions that differ by less than 10 per cent from their neighbour claim no order and tie. A measurement that is not
    finite ranks last. None where either side is all ties.
    """
    keys = sorted(predicted, key=predicted.__getitem__)
    values = np.array([predicted[key] for key in keys])
    x = rankdata(np.concatenate([[0], np.cumsum(values[1:] > TIE * values[:-1])]))
    y = rankdata([math.inf if measured[key] is None else measured[key] for key in keys])
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def rank(jobs: Jobs, predicted: Mapping[str, Any], timesteps: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
    """Rank correlations between the predicted floor and what was measured, by weighting, with mean, min and max over seeds.

    Returns:
        ``rounding``: with the energy of rounding, measured on one set of weights in two precisions, by bucket of timesteps;
        ``loss``: with the v-space loss, by precision and bucket; ``quality``, by precision, a list over
        starts and step counts: of the mean ``floor`` and of ``moved`` with the Frechet distance, and ``floor_misread``, of the
        floor with the share of samples that the classifier does not read as intended.
    """
    buckets = list(next(iter(predicted["buckets"].values())))

    def by_param(weighting: str, precision: str, curve: str, seed: int, bucket: str) -> dict[str, float | None]:
        found = {key: _job(jobs, key, weighting, precision, seed)["curves"][curve] for key in PARAMS}
        return {key: by_bucket(np.asarray(values), timesteps)[bucket] for key, values in found.items()}

    def correlate(weighting: str, precision: str, curve: str) -> dict[str, Any]:
        floors = {bucket: {key: values[bucket] for key, values in predicted["buckets"].items()} for bucket in buckets}
        return {
            bucket: over_seeds([rank_correlation(floor, by_param(weighting, precision, curve, seed, bucket)) for seed in seeds])
            for bucket, floor in floors.items()
        }

    return {
        weighting: {
            "rounding": correlate(weighting, "bf16", "direct"),
            "loss": {precision: correlate(weighting, precision, f"loss_{precision}") for precision in ("float32", "bf16")},
            "quality": {precision: _quality(jobs, predicted, weighting, precision, seeds) for precision in ("float32", "bf16")},
        }
        for weighting in WEIGHTINGS
    }


def _quality(
    jobs: Jobs, predicted: Mapping[str, Any], weighting: str, precision: str, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    rows = []
    for i, row in enumerate(_job(jobs, "v", weighting, precision, seeds[0])["samples"]):
        start, steps = row["start"], row["steps"]
        floor, moved = predicted["rank_floor"][start], predicted["moved"][start][str(steps)]
        found = [{key: _job(jobs, key, weighting, precision, seed)["samples"][i] for key in PARAMS} for seed in seeds]
        distance = [{key: sample["frechet"] for key, sample in one.items()} for one in found]
        misread = [{key: None if s["accuracy"] is None else 1 - s["accuracy"] for key, s in one.items()} for one in found]
        rows.append({
            "start": start,
            "steps": steps,
            "floor": over_seeds([rank_correlation(floor, one) for one in distance]),
            "moved": over_seeds([rank_correlation(moved, one) for one in distance]),
            "floor_misread": over_seeds([rank_correlation(floor, one) for one in misread]),
        })  # fmt: skip
    return rows


def summarise(jobs: Jobs, timesteps: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
    """``curves`` raw, by arm, a list over seeds; ``loss`` in the precision of training, by bucket; ``samples``; over seeds."""

    def of(arm: str, what: str) -> list[Any]:
        return [jobs[f"{arm}-seed{seed}"][what] for seed in seeds]

    results: dict[str, Any] = {"curves": {}, "loss": {}, "samples": {}}
    for name, arm in ARMS.items():
        curves = of(name, "curves")
        own = "loss_float32" if arm.precision == "float32" else "loss_bf16"
        results["curves"][name] = {key: [c[key] for c in curves] for key in ("loss_float32", "loss_bf16", "direct")}
        means = [by_bucket(np.asarray(c[own]), timesteps) for c in curves]
        results["loss"][name] = {bucket: over_seeds([m[bucket] for m in means]) for bucket in means[0]}
        results["samples"][name] = [
            {
                **{key: same[0][key] for key in ("start", "timestep", "steps")},
                **{key: over_seeds([one[key] for one in same]) for key in ("frechet", "accuracy", "rms")},
            }
            for same in zip(*of(name, "samples"), strict=True)
        ]
    return results


def _job(jobs: Jobs, param: str, weighting: str, precision: str, seed: int) -> Mapping[str, Any]:
    return jobs[f"{arm_name(param, weighting, precision)}-seed{seed}"]
