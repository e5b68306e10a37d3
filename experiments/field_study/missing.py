"""Numbers that a diverged head does not have: None in jobs and records, nan in arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def without_nan(value: Any) -> Any:
    """Nested results with None for every float that is not finite: JSON has no other word for it."""
    if isinstance(value, Mapping):
        return {key: without_nan(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def numbers(values: Sequence[Any]) -> np.ndarray:
    """An array, nested lists too, with nan for None."""
    return np.asarray(values, dtype=np.float64)
