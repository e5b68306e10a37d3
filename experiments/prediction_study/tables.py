"""From rows to verdicts: how many predictions hold, which do not, and whether they said so beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from experiments.prediction_study.measure import NOT_INDEPENDENT

Row = dict[str, Any]
ONE_STEP, FINAL = 0.03, 0.10
"""Aims: relative deviation of one call's rms, and of the final sample's where roundings are independent."""
VANISHING = 1e-9
"""Of the sample: below it both are nothing but float64 (the optimal output for Gaussian data is zero)."""
COLUMNS = ("data", "schedule", "solver", "param", "steps", "format", "omega", "predicted", "independent", "measured", "worst")


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """What the tables, the figure and the README read.

    Returns:
        ``groups``: per data and format, shares and ranges; ``worst_exceeded``: rows above their worst case;
        ``missed``: rows that deviate by more than the aim without a flag; ``columns`` and ``rows``: all of them.
    """
    groups = {}
    for name, inside in _groups(rows):
        groups[name] = _verdict(inside)
    return {
        "groups": groups,
        "all": _verdict(rows),
        "worst_exceeded": [_compact(r) for r in rows if _over(r, "worst") > 1],
        "missed": [_compact(r) for r in rows if not _flagged(r) and abs(_over(r, "predicted") - 1) > FINAL],
        "columns": [*COLUMNS, "flagged", "emulated", "one_step"],
        "rows": [_compact(r) for r in rows],
    }


def _groups(rows: Sequence[Row]) -> Iterable[tuple[str, list[Row]]]:
    keys: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        keys.setdefault((row["data"], row["format"]), []).append(row)
    return ((f"{data}, {fmt}", inside) for (data, fmt), inside in keys.items())


def _verdict(rows: Sequence[Row]) -> dict[str, Any]:
    free, flagged = ([r for r in rows if _flagged(r) is which] for which in (False, True))
    one_step = [r["one_step"] for r in rows if "one_step" in r]
    emulated = [_over(r, "emulated") for r in rows if r.get("emulated")]
    return {
        "cases": len(rows),
        "one_step": _range(one_step),
        "one_step_within": _share(one_step, ONE_STEP),
        "unflagged": len(free),
        "final": _range([_over(r, "predicted") for r in free]),
        "final_within": _share([_over(r, "predicted") for r in free], FINAL),
        "flagged_final": _range([_over(r, "predicted") for r in flagged]),
        "flagged_independent": _range([_over(r, "independent") for r in flagged]),
        "emulated": _range(emulated),
        "measured_over_worst": max(_over(r, "worst") for r in rows),
    }


def _flagged(row: Row) -> bool:
    return any(flag in NOT_INDEPENDENT for flag in row["flags"])


def _over(row: Row, name: str) -> float:
    """Measured over a prediction; infinite where the run overflowed."""
    if row["measured"] is None:
        return math.inf
    if max(row["measured"], row[name]) < VANISHING * row["final_rms"]:
        return 1.0
    return float(row["measured"] / row[name]) if row[name] else math.inf if row["measured"] else 1.0


def _range(values: Sequence[float]) -> list[float] | None:
    """Smallest, median, largest."""
    return [float(np.min(values)), float(np.median(values)), float(np.max(values))] if values else None


def _share(values: Sequence[float], within: float) -> float | None:
    return float(np.mean([abs(v - 1) <= within for v in values])) if values else None


def _compact(row: Row) -> list[Any]:
    values = [row[name] for name in COLUMNS]
    values += [_flagged(row), row.get("emulated"), row.get("one_step")]
    return [float(f"{v:.4g}") if isinstance(v, float) else v for v in values]


def tables(record: dict[str, Any]) -> str:
    """One line per data and format; then what was missed."""
    results = record["results"]
    header = [
        "data, format",
        "cases",
        "one call",
        "in 3 %",
        "unflagged",
        "final",
        "in 10 %",
        "flagged: final",
        "as independent",
        "emulated",
        "/worst",
    ]
    lines = [header]
    for name, v in {**results["groups"], "all": results["all"]}.items():
        spans = (v["final"], v["flagged_final"], v["flagged_independent"], v["emulated"])
        final, flagged, independent, emulated = map(_span, spans)
        one = [_span(v["one_step"]), _percent(v["one_step_within"])]
        rest = [str(v["unflagged"]), final, _percent(v["final_within"]), flagged, independent, emulated]
        lines.append([name, str(v["cases"]), *one, *rest, _number(v["measured_over_worst"])])
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    text.insert(1, "-" * len(text[0]))
    title = "Measured over predicted rms: smallest..largest (median)"
    missed = [f"  {row}" for row in results["missed"][:20]]
    beyond = f"\nbeyond 10 % without a flag: {len(results['missed'])}"
    tail = [beyond, *missed, f"above the worst case: {len(results['worst_exceeded'])}"]
    return "\n".join([title, *text, *tail])


def _span(values: Sequence[float] | None) -> str:
    return _maybe(values, lambda v: f"{_number(v[0])}..{_number(v[2])} ({_number(v[1])})")


def _number(value: float | None) -> str:
    return _maybe(value, lambda v: f"{v:.2f}" if v < 100 else f"{v:.0e}")


def _percent(value: float | None) -> str:
    return _maybe(value, lambda v: f"{100 * v:.0f} %")


def _maybe(value: Any, text: Callable[[Any], str]) -> str:
    return "-" if value is None else text(value)
