"""What the runs of ``low_precision_state`` say together, and as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

RIGHT = (0.9, 1.1)
"""Measured over predicted that counts as predicted."""
_OTHER = ("steps", "float64_total")
"""What a case holds beside its formats."""


def each_run(cases: dict[str, Any]) -> Iterator[tuple[str, str, str, int, dict[str, Any]]]:
    """``(case, format, mode, index of the step count, columns)`` of every run."""
    for key, case in cases.items():
        for fmt in (name for name in case if name not in _OTHER):
            for mode, row in case[fmt].items():
                for i in range(len(case["steps"])):
                    yield key, fmt, mode, i, row


def summarise(cases: dict[str, Any]) -> dict[str, Any]:
    """What the flags missed and cried wolf about, how good each prediction is, and where more steps stop helping."""
    right = {"runs": 0, "independent": 0, "refined": 0}
    flags = {"right_and_flagged": 0, "wrong_and_flagged": 0, "wrong_and_not_flagged": 0}
    unflagged = []
    for key, fmt, mode, i, row in each_run(cases):
        fine, flagged = _right(row, "independent", i), bool(row["flags"][i])
        right["runs"] += 1
        right["independent"] += fine
        right["refined"] += _right(row, "refined", i)
        flags["right_and_flagged"] += fine and flagged
        flags["wrong_and_flagged"] += flagged and not fine
        if not fine and not flagged:
            flags["wrong_and_not_flagged"] += 1
            unflagged.append([key, fmt, mode, cases[key]["steps"][i], row["measured"][i] / row["independent"][i]])
    return {"right": right, "flags": flags, "unflagged": unflagged, "best_steps": best_steps(cases)}


def _right(row: dict[str, Any], name: str, i: int) -> bool:
    return RIGHT[0] <= row["measured"][i] / row[name][i] <= RIGHT[1]


def best_steps(cases: dict[str, Any]) -> dict[str, Any]:
    """Of the step counts tried, the one nearest to the exact flow: measured, and by the refined prediction."""
    found: dict[str, Any] = {}
    for key, fmt, mode, i, row in each_run(cases):
        if i or row["total"][0] is None:
            continue
        steps, known = cases[key]["steps"], row["refined_total"][0] is not None
        found.setdefault(key, {}).setdefault(fmt, {})[mode] = {
            "measured": steps[int(np.argmin(row["total"]))],
            "refined": steps[int(np.argmin(row["refined_total"]))] if known else None,
            "useful_steps": row["useful_steps"][-1],
        }
    return found


def tables(record: dict[str, Any]) -> str:
    """One table per data set, solver and format, then the summary."""
    results = record["results"]
    lines = ["Rms error of the final sample, measured over predicted: by independent roundings, (by the refined prediction);"]
    lines += ["* flagged before it was measured; lost: share of the updates below half a unit in the last place"]
    for key, fmt, mode, i, row in each_run(results["cases"]):
        case = results["cases"][key]
        if i == 0 and mode == next(iter(case[fmt])):
            lines += ["", f"{key}, {fmt}", "steps   lost" + "".join(f"{name:>26}" for name in case[fmt])]
            for k, steps in enumerate(case["steps"]):
                cells = "".join(f"{_cell(columns, k):>26}" for columns in case[fmt].values())
                lines.append(f"{steps:5d} {row['lost'][k]:6.0%}{cells}")
    right = results["right"]
    lines += [
        "",
        f"within {RIGHT[0]} to {RIGHT[1]} of {right['runs']}: independent {right['independent']}, refined {right['refined']}",
    ]
    lines += [", ".join(f"{name.replace('_', ' ')} {count}" for name, count in results["flags"].items())]
    lines += [f"  not flagged: {key} {fmt} {mode} {n} steps: {ratio:.3g}" for key, fmt, mode, n, ratio in results["unflagged"]]
    lines += ["", "steps nearest to the exact flow, measured (predicted); useful steps of round-to-nearest"]
    for key, formats in results["best_steps"].items():
        for fmt, modes in formats.items():
            best = ", ".join(f"{mode} {b['measured']} ({b['refined'] or '-'})" for mode, b in modes.items())
            lines.append(f"  {key} {fmt}: {best}; useful {modes['nearest']['useful_steps']:.0f}")
    return "\n".join(lines)


def _cell(row: dict[str, Any], i: int) -> str:
    measured, refined = row["measured"][i], row["refined"][i]
    flag = "*" if row["flags"][i] else " "
    return f"{measured:.2e} {measured / row['independent'][i]:.2f}{flag} ({measured / refined:.2f})"
