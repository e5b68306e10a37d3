"""The record of ``parameterization_race`` as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from experiments.field_study.race_arms import ARMS, PARAMS, WEIGHTINGS, arm_name
from experiments.field_study.render import number, render

SHOWN = ("0-99", "300-399", "600-699", "800-899", "950-979", "990-998", "999")
"""Buckets of the tables; the record has all."""
QUALITY = {"floor": "floor, distance", "moved": "rms error, distance", "floor_misread": "floor, misread"}
LABELS = {"own": "squared error of the output", "v": "squared error of v, weight bounded"}


def tables(record: dict[str, Any]) -> str:
    """All tables; numbers are means over seeds, with half their range."""
    results = record["results"]
    shown = [bucket for bucket in SHOWN if bucket in results["loss"]["v_own_float32"]]
    return "\n\n".join([
        _predicted(results, shown),
        _loss(results, shown),
        _samples(results),
        _ranks(results, shown),
        _quality(results),
        "\n".join(["What follows", *(f"- {line}" for line in findings(results))]),
    ])  # fmt: skip


def findings(results: dict[str, Any]) -> list[str]:
    """Sentences with means over seeds, buckets or arms."""
    lines = []
    for weighting, ranks in results["ranks"].items():
        rounding = _average(cell["mean"] for cell in ranks["rounding"].values())
        loss = {p: _average(cell["mean"] for cell in cells.values()) for p, cells in ranks["loss"].items()}
        quality = "; ".join(
            f"{p} from t = {t}, {_at(rows, 'floor', start):.2f} with the Frechet distance, "
            f"{_at(rows, 'floor_misread', start):.2f} with the misread share"
            for p, rows in ranks["quality"].items()
            for start, t in results["starts"].items()
        )
        lines.append(
            f"Trained on the {LABELS[weighting]}, mean rank correlation of the predicted floor: {rounding:.2f} with the "
            f"measured rounding; {loss['bf16']:.2f} with the v-space loss in bf16, {loss['float32']:.2f} in float32. "
            f"Samples: {quality}."
        )
    ratios = bf16_over_float32(results)
    low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    middle = sorted(ratios.values())[len(ratios) // 2]
    lines.append(
        f"bf16 in place of float32 multiplies the Frechet distance by {middle:.3g} (median of {len(ratios)} arms, starts and "
        f"step counts), from {ratios[low]:.3g} ({low}) to {ratios[high]:.3g} ({high})."
    )
    return lines


def bf16_over_float32(results: dict[str, Any]) -> dict[str, float]:
    """Frechet distance of every arm trained in bf16 over that of its float32 control, where both are finite."""
    ratios = {}
    for weighting in WEIGHTINGS:
        for key in PARAMS:
            pair = [results["samples"][arm_name(key, weighting, precision)] for precision in ("bf16", "float32")]
            for low, high in zip(*pair, strict=True):
                if low["frechet"]["mean"] is not None and high["frechet"]["mean"] is not None:
                    name = f"{ARMS[arm_name(key, weighting, 'bf16')].label} from t = {low['timestep']} in {low['steps']} steps"
                    ratios[name] = low["frechet"]["mean"] / high["frechet"]["mean"]
    return ratios


def _predicted(results: dict[str, Any], shown: list[str]) -> str:
    predicted, rows = results["predicted"], []
    step_counts = list(predicted["moved"]["last"])
    steps = step_counts[len(step_counts) // 2]
    for key in PARAMS:
        moved = [number(predicted["moved"][start][steps][key]) for start in results["starts"]]
        rows.append([key, *(number(predicted["buckets"][key][bucket]) for bucket in shown), *moved])
    title = (
        "Predicted before training: what one rounding to bf16 adds to the v-space loss, by timestep, and by how much it moves\n"
        f"samples of {steps} steps (rms, in units of the data)"
    )
    return render(title, ["", *shown, *(f"moved from {t}" for t in results["starts"].values())], rows)


def _loss(results: dict[str, Any], shown: list[str]) -> str:
    rows = [[arm.label, *(number(results["loss"][name][bucket]) for bucket in shown)] for name, arm in ARMS.items()]
    return render("v-space loss on held-out scans, in the precision of training, by timestep", ["arm", *shown], rows)


def _samples(results: dict[str, Any]) -> str:
    rows = []
    for name, arm in ARMS.items():
        cells = [f"{number(row['frechet'])} ({number(row['accuracy']['mean'])})" for row in results["samples"][name]]
        rows.append([arm.label, *cells])
    columns = [f"t={row['timestep']}, {row['steps']}" for row in results["samples"]["v_own_float32"]]
    reference = results["reference"]
    title = (
        "Samples: Frechet distance to held-out scans in units of the data's variance (class accuracy), by start and steps;\n"
        f"training scans have {reference['frechet']:.3g} ({reference['held_out_accuracy']:.3g} for held-out scans)"
    )
    return render(title, ["arm", *columns], rows)


def _ranks(results: dict[str, Any], shown: list[str]) -> str:
    rows = []
    for weighting, ranks in results["ranks"].items():
        measured = {"rounding, measured": ranks["rounding"], **{f"loss, {p}": cells for p, cells in ranks["loss"].items()}}
        rows += [[f"{weighting}-weighted: {what}", *(number(cells[b], 2) for b in shown)] for what, cells in measured.items()]
    title = (
        "Rank correlation over the five parameterizations of the predicted floor with what was measured, by timestep;\n"
        "predictions within 10 % tie; where none do, chance alone gives 0.9 or more in 1 of 24 orders"
    )
    return render(title, ["", *shown], rows)


def _quality(results: dict[str, Any]) -> str:
    rows = []
    for weighting, ranks in results["ranks"].items():
        for precision, found in ranks["quality"].items():
            for name, label in QUALITY.items():
                cells = [number(row[name], 2) for row in found]
                rows.append([f"{weighting}-weighted, {precision}: {label}", *cells])
    columns = [f"t={row['timestep']}, {row['steps']}" for row in results["samples"]["v_own_float32"]]
    title = (
        "Rank correlation of two predictions, the mean floor and the samples' rms error, with the Frechet distance, and of\n"
        "the floor with the share of samples that the classifier misreads, by start and steps"
    )
    return render(title, ["", *columns], rows)


def _at(rows: list[dict[str, Any]], name: str, start: str) -> float:
    return _average(row[name]["mean"] for row in rows if row["start"] == start)


def _average(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")
