"""AVE@18 against the seven averages that the paper prints."""

from __future__ import annotations

import math

import pytest

from mmar.evaluation.averages import HIGHEST, average_18

SYSTEMS = ("Chameleon-7B", "Transfusion*", "Show-o", "MMAR-0.5B", "MMAR-0.5B eps", "MMAR-0.5B VQ", "MMAR-7B")
TABLE_4 = {  # arXiv 2410.10798, table 4, section A.7
    "AI2D": (34.81, 40.22, 32.48, 43.43, 41.90, 41.90, 62.63),
    "ChartQA": (3.84, 9.56, 11.32, 10.20, 10.36, 9.36, 12.72),
    "DocVQA": (1.51, 6.72, 18.24, 7.62, 6.77, 6.79, 10.28),
    "HallusionBench": (39.01, 41.54, 40.90, 42.80, 41.11, 41.54, 50.47),
    "MathVista": (21.90, 22.60, 23.20, 21.60, 23.10, 22.90, 32.10),
    "MMBench-CN": (10.14, 27.23, 0.52, 43.99, 38.83, 31.87, 66.49),
    "MMBench-EN": (13.32, 29.47, 42.44, 48.45, 45.53, 37.54, 66.32),
    "MME-P": (125.8, 594.3, 1182.7, 882.1, 880.7, 618.2, 1393.9),
    "MME-C": (33.9, 206.1, 225.0, 256.8, 232.1, 273.2, 320.0),
    "MMMU": (24.00, 29.33, 26.44, 29.33, 25.33, 29.67, 42.78),
    "MMStar": (20.47, 28.13, 32.00, 32.13, 31.07, 28.07, 40.00),
    "MM-Vet": (7.34, 13.90, 20.87, 18.49, 17.98, 14.45, 27.80),
    "OCRBench": (0.50, 2.30, 15.20, 18.70, 7.10, 2.10, 23.10),
    "POPE": (30.86, 66.90, 84.50, 70.74, 71.14, 66.98, 83.02),
    "RealWorldQA": (27.06, 36.99, 27.97, 38.30, 35.16, 36.60, 52.42),
    "ScienceQA": (44.83, 45.92, 41.82, 47.54, 45.21, 45.35, 71.05),
    "SEEDBench": (34.61, 42.40, 51.61, 55.70, 53.72, 44.93, 64.52),
    "TextVQA": (5.43, 9.94, 38.35, 16.77, 12.40, 9.46, 22.05),
}
PRINTED = (18.34, 28.26, 33.06, 34.56, 32.21, 29.70, 46.52)
HALF_A_DIGIT = 0.005 + 0.005  # of the printed average; and the mean of 18 scores, each printed to a hundredth or better


def scores(system: str) -> dict[str, float]:
    return {name: row[SYSTEMS.index(system)] for name, row in TABLE_4.items()}


@pytest.mark.parametrize(("system", "printed"), [*zip(SYSTEMS, PRINTED, strict=True)])
def test_the_printed_averages_come_out(system: str, printed: float) -> None:
    assert abs(average_18(scores(system)) - printed) <= HALF_A_DIGIT


def test_other_ways_with_mme_do_not_reproduce_them() -> None:
    """The control: leaving MME out, or adding its two parts up, misses at least one printed average by a tenth."""
    without = [math.fsum(v for k, v in scores(s).items() if not k.startswith("MME-")) / 16 for s in SYSTEMS]
    summed = [
        (
            math.fsum(v for k, v in scores(s).items() if not k.startswith("MME-"))
            + (scores(s)["MME-P"] + scores(s)["MME-C"]) / 28
        )
        / 17
        for s in SYSTEMS
    ]
    for other in (without, summed):
        assert max(abs(a - b) for a, b in zip(other, PRINTED, strict=True)) > 0.1


def test_the_ends_of_the_scale() -> None:
    assert average_18(HIGHEST) == 100.0
    assert average_18(dict.fromkeys(HIGHEST, 0.0)) == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MME-P": 2000.5}, r"MME-P must lie in \[0, 2000\], got 2000.5"),
        ({"OCRBench": 187.0}, r"OCRBench must lie in \[0, 100\], got 187.0.*a tenth of its 1000 points"),
        ({"AI2D": -0.1}, "AI2D must lie in"),
        ({"AI2D": float("nan")}, "AI2D must lie in .* got nan"),
        ({"MMVet": 18.49}, "got none missing and MMVet unknown"),
    ],
)
def test_wrong_scores_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average_18({**scores("MMAR-0.5B"), **change})


def test_a_missing_column_is_named() -> None:
    table = scores("MMAR-0.5B")
    del table["POPE"], table["MME-C"]
    with pytest.raises(ValueError, match="got MME-C, POPE missing and none unknown"):
        average_18(table)
