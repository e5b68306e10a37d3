"""Numbers over seeds and tables as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Cell = Mapping[str, Any]
"""``mean``, ``min`` and ``max`` over seeds; all None where a seed has no number."""


def number(cell: Cell | float | None, digits: int = 3) -> str:
    """The mean, with half the range where seeds differ in the digits shown; ``-`` where there is none."""
    if not isinstance(cell, Mapping):
        return "-" if cell is None else f"{cell:.{digits}g}"
    if cell["mean"] is None:
        return "-"
    half = (cell["max"] - cell["min"]) / 2
    spread = f" ±{half:.1g}" if f"{cell['min']:.{digits}g}" != f"{cell['max']:.{digits}g}" else ""
    return f"{cell['mean']:.{digits}g}{spread}"


def render(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: the first column to the left, the others to the right."""
    table = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in table]
    rule = "-" * max(map(len, lines))
    return "\n".join([title, rule, lines[0], rule, *lines[1:]])
