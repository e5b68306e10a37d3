"""Numbers over seeds, as the table of claims prints them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Cells = Mapping[str, Any]
"""Results of a record, with its ``config``, or a number over its seeds: ``mean``, ``min``, ``max``."""
ONE_SEED = "one seed: small differences are not significant"


def whole(share: float) -> str:
    """Whole per cent."""
    return f"{100 * share:.0f} %"


def percent(cell: Cells) -> str:
    """Mean and, where there are several seeds, half their range."""
    return f"{100 * cell['mean']:.1f}{_spread(cell, 100)} %"


def number(cell: Cells) -> str:
    """The same of a distance, to three digits."""
    digits = 4 if cell["mean"] >= 1000 else 3
    return f"{cell['mean']:.{digits}g}{_spread(cell, 1)}"


def _spread(cell: Cells, scale: float) -> str:
    if one_seed(cell):
        return ""
    half = scale * (cell["max"] - cell["min"]) / 2
    return f" ± {half:.1f}" if scale > 1 else f" ± {half:.1g}" if half < 10 else f" ± {half:.0f}"


def one_seed(cell: Cells) -> str:
    """A remark where there is one seed, which has no spread."""
    return " (one seed)" if cell["min"] == cell["max"] and len(cell.get("seeds", [0])) == 1 else ""
