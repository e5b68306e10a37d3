"""Precision and recall against a count of every pair, and where the answer is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmar.evaluation.precision_recall import precision_recall


def by_counting(real: Tensor, generated: Tensor, k: int) -> tuple[float, float]:
    """The definition, one pair at a time, in Python's own numbers."""

    def distance(a: list[float], b: list[float]) -> float:
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5

    def share(queries: list[list[float]], centres: list[list[float]]) -> float:
        radii = [sorted(distance(c, o) for j, o in enumerate(centres) if j != i)[k - 1] for i, c in enumerate(centres)]
        inside = [any(distance(q, c) <= r for c, r in zip(centres, radii, strict=True)) for q in queries]
        return sum(inside) / len(inside)

    return share(generated.tolist(), real.tolist()), share(real.tolist(), generated.tolist())


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    m=st.integers(5, 12),
    n=st.integers(5, 12),
    k=st.integers(1, 4),
    shift=st.sampled_from([0.0, 1.5]),
)
def test_it_is_the_count(seed: int, m: int, n: int, k: int, shift: float) -> None:
    g = torch.Generator().manual_seed(seed)
    real = torch.randn(m, 3, generator=g, dtype=torch.float64)
    generated = torch.randn(n, 3, generator=g, dtype=torch.float64) + shift
    assert precision_recall(real, generated, neighbours=k) == pytest.approx(by_counting(real, generated, k), abs=1e-12)


def test_known_cases(generator: torch.Generator) -> None:
    """The same points: both 1. Far away: both 0. One mode of two: precise, half recalled. A mode too many: the reverse."""
    one = torch.randn(200, 4, generator=generator)
    other = torch.randn(200, 4, generator=generator) + 100.0
    both = torch.cat([one, other])
    assert precision_recall(one, one) == (1.0, 1.0)
    assert precision_recall(one, other) == (0.0, 0.0)
    assert precision_recall(both, one) == (1.0, 0.5)
    assert precision_recall(one, both) == (0.5, 1.0)


def test_a_model_that_repeats_itself_is_precise_and_forgets(generator: torch.Generator) -> None:
    real = torch.randn(300, 4, generator=generator)
    repeated = real[:10].repeat(30, 1)  # balls of radius 0 around ten real points
    precision, recall = precision_recall(real, repeated)
    assert precision == 1.0
    assert recall == pytest.approx(10 / 300)


def test_points_in_parts_are_the_same(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    real, generated = torch.randn(50, 3, generator=generator), torch.randn(40, 3, generator=generator) + 0.5
    whole = precision_recall(real, generated)
    monkeypatch.setattr("mmar.evaluation.precision_recall.ROWS_AT_A_TIME", 7)
    assert precision_recall(real, generated) == whole


@pytest.mark.parametrize(
    ("shapes", "k", "message"),
    [
        (((4, 3), (4, 2)), 1, r"must be features .* got \(4, 3\) and \(4, 2\)"),
        (((4, 3), (4, 3)), 0, "neighbours must be at least 1, got 0"),
        (((4, 3), (3, 3)), 3, "more than neighbours=3 features, got 4 and 3"),
    ],
)
def test_bad_input_is_refused(shapes: tuple[tuple[int, ...], ...], k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        precision_recall(*(torch.zeros(shape) for shape in shapes), neighbours=k)


def test_numbers_that_are_not_finite_are_refused() -> None:
    real = torch.zeros(6, 2)
    real[0, 0] = torch.nan
    with pytest.raises(ValueError, match="features must be finite"):
        precision_recall(real, torch.zeros(6, 2))
