r"""Figure 3A measured in MMAR's own head, with its controls, from a record of ``experiments/table3.py``.

The panels are those of ``figure3a.py``; heads, conditions and tokens are those of the arms of table 3.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.record import read_record
from paper_figures import figure3a, style


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at text width.

    Raises:
        ValueError: If the record has no heads: its preset leaves out an arm that they are compared with.
    """
    head = record["results"]["head"]
    if head is None:
        raise ValueError("record must be of a preset with all arms of v and epsilon, got one without; take smoke, cpu or gpu")
    return figure3a.draw({"results": head})


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    parser = argparse.ArgumentParser(description="Figure 3A in MMAR's own head, from a record of experiments/table3.py.")
    parser.add_argument("--record", default="table3-cpu", help="name in experiments/records, or a path (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=style.FOLDER, help="folder for figure3a_mmar.png (default: beside this script)"
    )
    args = parser.parse_args(argv)
    with style.applied():
        print(style.save(draw(read_record(args.record)), "figure3a_mmar", args.out))


if __name__ == "__main__":
    main()
