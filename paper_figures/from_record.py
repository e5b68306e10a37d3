"""The command of a figure that is drawn from the record of an experiment."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.record import read_record
from paper_figures import style


def figure_command(
    stem: str, draw: Callable[[dict[str, Any]], Figure], argv: Sequence[str] | None = None, *, experiment: str | None = None
) -> None:
    """Read ``--record``, draw, write ``<stem>.png`` into ``--out``, and print where it is.

    Args:
        stem: Of the picture.
        draw: Makes the figure of a record.
        argv: Words of the command line; None: those of the process.
        experiment: Whose record; the one that is called like the picture by default.

    Raises:
        FileNotFoundError: If the record is missing; it names the command that makes it.
    """
    name = stem if experiment is None else experiment
    parser = argparse.ArgumentParser(description=f"Draw {stem}.png from a record of experiments/{name}.py.")
    parser.add_argument("--record", default=f"{name}-cpu", help="name in experiments/records, or a path (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=style.FOLDER, help=f"folder for {stem}.png (default: beside this script)")
    args = parser.parse_args(argv)
    with style.applied():
        print(style.save(draw(read_record(args.record)), stem, args.out))
