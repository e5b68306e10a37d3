"""The record of ``field_reports`` as text."""

from __future__ import annotations

from typing import Any

from experiments.field_study.findings import findings
from experiments.field_study.missing import numbers
from experiments.field_study.predictions import DELTAS
from experiments.field_study.render import number, render
from experiments.field_study.reports import REPORTS
from experiments.head_study.decompose import PARTS

PRECISION = {"float32": "float32", "mixed": "bf16"}
PART_LABELS = {
    "gap": "gap in v-space loss",
    "float32_gap": "float32 control, %",
    "direct": "rounding, %",
    "training": "bf16 training, %",
    "remainder": "rest, %",
}
SHOWN = {"noisy_end": (500, 900, 988, 998, 999), "clean_end": (600, 100, 50, 10, 1)}
"""Timesteps of the tables; the record has all."""


def tables(record: dict[str, Any]) -> str:
    """All tables, report by report; numbers are means over seeds, with half their range."""
    reports = record["results"]["reports"]
    reference = record["results"]["reference"]
    parts: list[str] = []
    for name, results in reports.items():
        parts += [
            f"=== {results['thread']} ===",
            _configuration(name, results),
            _training(name, results),
            _parts(name, results),
            _samples(name, results, reference),
            _exact(results),
            "\n".join(["What follows", *(f"- {line}" for line in findings(name, results))]),
        ]
    return "\n\n".join(parts)


def _configuration(name: str, results: dict[str, Any]) -> str:
    outputs = results["predicted"]["outputs"]
    columns = [(output, precision) for output in outputs for precision in ("float32", "bf16")]

    def limits(output: str, precision: str) -> str:
        return " / ".join(number(outputs[output]["limit"][precision][delta]) for delta in DELTAS)

    rows = [
        ["kappa", *(number(outputs[o]["condition_number"]) for o, _ in columns)],
        ["squared error of the output that costs 1 %", *(number(outputs[o]["tolerable_loss"]) for o, _ in columns)],
        ["v-space loss from one rounding", *(number(outputs[o]["floor"][p]) for o, p in columns)],
        [f"nearest safe t ({', '.join(DELTAS)})", *(limits(o, p) for o, p in columns)],
        ["samples moved by rounding, rms", *(number(outputs[o]["moved"]["reported"][p]) for o, p in columns)],
    ]
    title = f"From the configuration alone, at t = {results['end']}; errors per element, 1 is the variance of the data"
    return render(title, ["", *(f"{o}, {p}" for o, p in columns)], rows)


def _training(name: str, results: dict[str, Any]) -> str:
    low, high = results["tail"]
    weights = results["predicted"]["weights"]
    rows = []
    for head, watched in results["training"].items():
        tail, rest = watched["tail"], watched["rest"]
        rows.append([
            REPORTS[name].heads[head].arm.label,
            number(weights[head]["effective_share"]),
            *(number(tail[key]) for key in ("median", "spike", "spread")),
            *(number(rest[key]) for key in ("median", "spike")),
            number(tail["not_finite"]),
            *(number(_own_loss(name, head, results, t)) for t in SHOWN[name]),
        ])  # fmt: skip
    title = (
        f"Training loss in the bin t = {low}-{high} and outside it (second half: median, largest / median, std / mean),\n"
        "with the share of a batch that its weights leave (predicted); then the v-space loss on held-out scans"
    )
    columns = ["share", "bin", "spike", "spread", "rest", "spike", "not finite", *(f"v at t={t}" for t in SHOWN[name])]
    return render(title, ["head", *columns], rows)


def _parts(name: str, results: dict[str, Any]) -> str:
    reported, cure = (REPORTS[name].parts[role] for role in ("eps_mixed", "v_mixed"))
    at = [results["timesteps"].index(t) for t in SHOWN[name]]
    rows = []
    for part in ("gap", *PARTS):
        cells = []
        for k in at:
            cell, whole = results["parts"][part][k], results["parts"]["gap"][k]["mean"]
            if part == "gap" or None in (whole, cell["mean"]):  # a head diverged
                cells.append(number(cell if part == "gap" else None))
            else:
                cells.append(number({key: 100 * value / whole for key, value in cell.items()}))
        rows.append([PART_LABELS[part], *cells])
    heads = REPORTS[name].heads
    title = f"What the gap between '{heads[reported].arm.label}' and '{heads[cure].arm.label}' is made of"
    return render(title, ["t", *map(str, SHOWN[name])], rows)


def _samples(name: str, results: dict[str, Any], reference: dict[str, float]) -> str:
    rows = []
    for head, runs in results["samples"].items():
        arm = REPORTS[name].heads[head].arm
        own = PRECISION[arm.precision]
        other = "float32" if own == "bf16" else "bf16"
        for run, found in runs.items():
            label = REPORTS[name].label(arm.param.name, run)
            rows.append([
                f"{arm.label}: {label}",
                *(number(found[own][key]) for key in ("frechet", "accuracy", "rms")),
                number(found[other]["frechet"]),
                number(found["start"], 4),
                number(found["moved"]),
            ])  # fmt: skip
    title = (
        "Samples: Frechet distance to held-out scans, class accuracy, rms (1 for data); the distance of the same weights run\n"
        "in the other precision; by how much bf16 moves the samples. Training scans have a distance of "
        f"{reference['frechet']:.3g};\nthe classifier reads {reference['held_out_accuracy']:.3g} of held-out scans"
    )
    return render(title, ["head: run", "frechet", "accuracy", "rms", "other", "start", "moved"], rows)


def _exact(results: dict[str, Any]) -> str:
    rows = []
    for output, found in results["exact"].items():
        for run, samples in found["samples"].items():
            predicted = results["predicted"]["outputs"][output]["moved"][run]["bf16"]
            quality = [number(samples[p][key]) for p in ("float32", "bf16") for key in ("frechet", "rms")]
            rows.append([f"{output}, {run}", *quality, number(samples["moved"]), number(predicted)])
    header = ["output, run", "frechet, float32", "rms", "frechet, bf16", "rms", "moved", "predicted"]
    title = (
        "Rounding alone: a perfect network of the training scans, its output rounded once; predicted for Gaussian data\n"
        "(here a sample can fall to another scan, which moves it by about 1)"
    )
    return render(title, header, rows)


def _own_loss(name: str, head: str, results: dict[str, Any], t: int) -> float:
    """The v-space loss in the precision that the head was trained to run in, mean over seeds."""
    precision = PRECISION[REPORTS[name].heads[head].arm.precision]
    curves = numbers(results["curves"][head][f"loss_{precision}"])
    return float(curves.mean(0)[results["timesteps"].index(t)])
