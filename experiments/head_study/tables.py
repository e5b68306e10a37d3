"""The record of ``eps_vs_v`` as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.head_study.arms import ARMS
from experiments.head_study.decompose import PREDICTIONS, REGIMES

Cell = dict[str, float | None]
REGIME_LABELS = {"mixed": "bf16 forward, float32 weights", "pure": "pure bf16 weights and optimizer"}
PART_LABELS = {"gap": "gap", "float32_gap": "= float32", "direct": "+ direct", "training": "+ training", "remainder": "+ rest"}
PREDICTION_LABELS = {"paper": "/eq. 27", "single_rounding": "/1 round", "calibrated": "/calib.", "one_delta": "/1 delta"}


def tables(record: dict[str, Any]) -> str:
    """All tables; numbers are means over seeds, with half the range where there are several."""
    results, seeds = record["results"], len(record["config"]["seeds"])
    return "\n\n".join([*head_tables(results, seeds), _sample_table(results, seeds)])


def head_tables(results: dict[str, Any], seeds: int) -> list[str]:
    """Losses of all arms, and the gap of each regime, of what ``summarise`` gave."""
    return [_loss_table(results, seeds), *(_gap_table(results, regime, seeds) for regime in REGIMES)]


def _loss_table(results: dict[str, Any], seeds: int) -> str:
    buckets = list(results["loss"]["v_float32"])
    rows = [[ARMS[a].label, *(number(results["loss"][a][b], seeds) for b in buckets)] for a in ARMS]
    return _render("v-space MSE on held-out scans, by timestep (eq. 24 for eps)", ["arm", *buckets], rows, transpose=True)


def _gap_table(results: dict[str, Any], regime: str, seeds: int) -> str:
    gap = results["gaps"][regime]
    buckets = list(gap["direct_of_eps"])
    rows = [[PART_LABELS[p], *(number(cells[b], seeds) for b in buckets)] for p, cells in gap["parts"].items()]
    rows += [[PREDICTION_LABELS[p], *(number(gap["measured_over_predicted"][p][b], 1) for b in buckets)] for p in PREDICTIONS]
    title = (
        f"{REGIME_LABELS[regime]}: the gap eps - v and its parts (float32 control, direct rounding, training in bf16, rest);\n"
        "then direct rounding of the eps head, measured / predicted: eq. 27, one rounding, calibrated per bucket, one delta"
    )
    return _render(title, ["t", *buckets], rows, transpose=True)


def _sample_table(results: dict[str, Any], seeds: int) -> str:
    reference = results["reference"]
    title = (
        "Samples: Frechet distance to held-out scans (class accuracy); training scans have "
        f"{reference['frechet']:.3g} ({reference['held_out_accuracy']:.3g} for held-out scans)"
    )
    columns = [(row["start"], row["steps"]) for row in results["samples"]["v_float32"]]
    rows = []
    for arm, samples in results["samples"].items():
        rows.append([ARMS[arm].label, *(f"{number(r['frechet'], seeds)} ({number(r['accuracy'], 1)})" for r in samples)])
    header = ["start, steps", *(f"t={results['starts'][start]}, {steps}" for start, steps in columns)]
    return _render(title, header, rows, transpose=True)


def number(cell: Cell, seeds: int) -> str:
    """A number over seeds: the mean, and half the range where there are several."""
    mean = cell["mean"]
    if mean is None:
        return "-"
    if seeds == 1:
        return f"{mean:.3g}"
    return f"{mean:.3g} ±{(cell['max'] - cell['min']) / 2:.1g}"  # type: ignore[operator]


def _render(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, transpose: bool = False) -> str:
    table = [list(header), *map(list, rows)]
    if transpose:
        table = [list(column) for column in zip(*table, strict=True)]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in table]
    return "\n".join([title, "-" * len(lines[0]), lines[0], "-" * len(lines[0]), *lines[1:]])
