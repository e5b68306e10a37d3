"""From the finished jobs of ``experiments/field_reports.py`` to the results of its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.field_study.missing import numbers
from experiments.field_study.predictions import predict
from experiments.field_study.reports import REPORTS, Report
from experiments.head_study.decompose import PARTS, decompose, over_seeds

Jobs = Mapping[str, Mapping[str, Any]]


def summarise(jobs: Jobs, seeds: Sequence[int], steps: int) -> dict[str, Any]:
    """Everything that the tables and the figure read, by report.

    Args:
        jobs: Result of ``run_job`` by ``<report>-<head>-seed<seed>``, and of the exact network by ``<report>-exact``.
        seeds: All seeds.
        steps: DDIM steps.

    Returns:
        By report: ``thread``, ``end``, ``timesteps``; ``predicted``; ``curves`` raw, by head, a list over seeds; ``training``
        and ``samples`` by head; ``parts``, the gap between what was reported and its cure, taken apart, by timestep; ``exact``.
        Numbers over seeds have mean, min and max.
    """
    return {name: _summarise_report(name, report, jobs, seeds, steps) for name, report in REPORTS.items()}


def _summarise_report(name: str, report: Report, jobs: Jobs, seeds: Sequence[int], steps: int) -> dict[str, Any]:
    heads = {head: [jobs[f"{name}-{head}-seed{seed}"] for seed in seeds] for head in report.heads}
    return {
        "thread": report.thread,
        "end": report.end,
        "tail": list(report.tail),
        "timesteps": list(report.timesteps),
        "predicted": predict(report, steps),
        "curves": {
            head: {key: [job["curves"][key] for job in found] for key in ("loss_float32", "loss_bf16", "direct", "delta")}
            for head, found in heads.items()
        },
        "parts": _parts(report, heads),
        "training": {head: _training([job["training"] for job in found]) for head, found in heads.items()},
        "samples": {head: _merge([job["samples"] for job in found]) for head, found in heads.items()},
        "exact": jobs[f"{name}-exact"],
    }


def _parts(report: Report, heads: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[dict[str, float | None]]]:
    """``decompose`` between the reported head and its cure, by part a list over timesteps.

    ``head_study`` calls the two eps and v: eps stands for what was reported, v for the cure.
    """
    count = len(next(iter(heads.values())))
    seeds = [decompose({role: _curves(heads[head][i]) for role, head in report.parts.items()}, "mixed") for i in range(count)]
    return {
        part: [over_seeds([float(seed[part][k]) for seed in seeds]) for k in range(len(report.timesteps))]
        for part in ("gap", *PARTS)
    }


def _curves(job: Mapping[str, Any]) -> dict[str, Any]:
    return {key: numbers(values) for key, values in job["curves"].items()}


def _training(logs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers over seeds, and the curve of the tail's loss in the first seed."""
    return {
        **{
            where: {key: over_seeds([log[where][key] for log in logs]) for key in ("median", "spike", "spread", "not_finite")}
            for where in ("tail", "rest")
        },
        "blocks": logs[0]["tail"]["blocks"],
    }


def _merge(values: Sequence[Any]) -> Any:
    """Nested results of every seed, with mean, min and max at each number."""
    if isinstance(values[0], Mapping):
        return {key: _merge([value[key] for value in values]) for key in values[0]}
    return over_seeds(values)
