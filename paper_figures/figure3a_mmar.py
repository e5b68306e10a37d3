r"""Figure 3A measured in MMAR's own head, with its controls, from a record of ``experiments/table3.py``.

The panels are those of ``figure3a.py``; heads, conditions and tokens are those of the arms of table 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from paper_figures import figure3a
from paper_figures.from_record import figure_command


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
    figure_command("figure3a_mmar", draw, argv, experiment="table3")


if __name__ == "__main__":
    main()
