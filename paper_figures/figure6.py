r"""Figure 6 in small: pictures with the captions that they were drawn from, the first ones of each record, none chosen.

From the records of ``experiments/mmar_scenes.py`` and ``experiments/mmar_digits.py``.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.pictures import unpacked
from experiments.record import read_record
from paper_figures import style

COLUMNS, SCENES, DIGITS = 6, 12, 6


def draw(scenes: Mapping[str, Any], digits: Mapping[str, Any]) -> Figure:
    """The figure, at text width.

    Args:
        scenes: Record of ``mmar_scenes``.
        digits: Record of ``mmar_digits``.
    """
    first = next(iter(digits["results"]["drawing"].values()))
    shown = [*scenes["results"]["pictures"][:SCENES], *first["pictures"][:DIGITS]]
    rows = -(-len(shown) // COLUMNS)
    fig = style.figure(style.TEXT_WIDTH, 1.75 * rows)
    axes = fig.subplots(rows, COLUMNS, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, one in zip(axes, shown, strict=False):
        picture = unpacked(one["picture"])
        ax.imshow(picture, cmap="gray" if picture.mode == "L" else None, vmin=0, vmax=255, interpolation="nearest")
        ax.text(0.0, -0.04, textwrap.fill(one["caption"], 30), transform=ax.transAxes, va="top", fontsize=4.5)
    return fig


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    parser = argparse.ArgumentParser(description="Figure 6: drawn pictures with their captions, from two records.")
    parser.add_argument("--scenes", default="mmar_scenes-cpu", help="name in experiments/records, or a path (%(default)s)")
    parser.add_argument("--digits", default="mmar_digits-cpu", help="name in experiments/records, or a path (%(default)s)")
    parser.add_argument("--out", type=Path, default=style.FOLDER, help="folder for figure6.png (default: beside this script)")
    args = parser.parse_args(argv)
    with style.applied():
        print(style.save(draw(read_record(args.scenes), read_record(args.digits)), "figure6", args.out))


if __name__ == "__main__":
    main()
