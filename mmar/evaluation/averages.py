"""AVE@18: the one number that the paper gives for visual understanding (table 4, section A.7)."""

from __future__ import annotations

import math
from collections.abc import Mapping

HIGHEST = {
    "AI2D": 100.0,
    "ChartQA": 100.0,
    "DocVQA": 100.0,
    "HallusionBench": 100.0,
    "MathVista": 100.0,
    "MMBench-CN": 100.0,
    "MMBench-EN": 100.0,
    "MME-P": 2000.0,
    "MME-C": 800.0,
    "MMMU": 100.0,
    "MMStar": 100.0,
    "MM-Vet": 100.0,
    "OCRBench": 100.0,
    "POPE": 100.0,
    "RealWorldQA": 100.0,
    "ScienceQA": 100.0,
    "SEEDBench": 100.0,
    "TextVQA": 100.0,
}
"""The columns of table 4 and their highest scores: MME keeps its own scale there, all others are shares in percent."""


def average_18(scores: Mapping[str, float]) -> float:
    r"""The mean of 18 scores, each in percent of its highest (AVE@18 of the paper).

    .. math:: \frac{1}{18} \sum_{b} 100\, s_b / h_b

    so MME-P counts by a twentieth and MME-C by an eighth. "The average score is calculated on the normalized score of all the
    benchmarks including MME", says section A.7; how, it does not say. This reproduces its seven averages to two decimals.

    Args:
        scores: Of one system, by the names of :data:`HIGHEST`.

    Returns:
        In [0, 100].

    Raises:
        ValueError: If a column is missing or unknown, or a score out of range.
    """
    _check_columns(scores)
    for name, score in scores.items():
        if not (math.isfinite(score) and 0 <= score <= HIGHEST[name]):
            raise ValueError(
                f"{name} must lie in [0, {HIGHEST[name]:g}], got {score!r}; shares are in percent, MME is the original score "
                "and OCRBench a tenth of its 1000 points"
            )
    return math.fsum(100.0 * score / HIGHEST[name] for name, score in scores.items()) / len(HIGHEST)


def _check_columns(scores: Mapping[str, float]) -> None:
    missing = [name for name in HIGHEST if name not in scores]
    unknown = [str(name) for name in scores if name not in HIGHEST]
    if missing or unknown:
        raise ValueError(
            f"scores must hold the {len(HIGHEST)} columns of table 4, got {', '.join(missing) or 'none'} missing and "
            f"{', '.join(unknown) or 'none'} unknown; an average over fewer is another number"
        )
