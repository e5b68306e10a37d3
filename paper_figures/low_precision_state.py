r"""A state in bf16 over step counts, from a record of ``experiments/low_precision_state.py``.

a: rounding error of the final sample with DDIM, where updates shrink with the step. Marks are measured; dashed lines take the
roundings as independent, solid ones follow the state on its grid. b: the same with DDPM, whose noise decides every rounding
anew. c: distance of a's runs to the exact probability flow: what a step count is worth in all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.record import read_record
from paper_figures import style

FORMAT = "bfloat16"
MODES = {
    "nearest": ("to nearest", style.VERMILLION, "o"),
    "stochastic": ("stochastic", style.BLUE, "^"),
    "compensated": ("compensated", style.GREEN, "s"),
}
KINDS: dict[str, tuple[str, Any]] = {
    "independent": ("independent", (0, (3, 1.5))),
    "refined": ("on the grid", "-"),
}


def draw(record: dict[str, Any], data: str) -> Figure:
    """The figure, at column width.

    Raises:
        ValueError: If the record has no such data.
    """
    cases = record["results"]["cases"]
    if f"{data}-ddim" not in cases:
        names = sorted({key.rpartition("-")[0] for key in cases})
        raise ValueError(f"data must be in the record, got {data!r}; it has {', '.join(names)}")
    fig = style.figure(style.COLUMN_WIDTH, 6.4)
    a, b, c = fig.subplots(3, 1, sharex=True)
    _errors(a, cases[f"{data}-ddim"], f"a   DDIM, bf16 state, {_words(data)}")
    _errors(b, cases[f"{data}-ddpm"], "b   DDPM, the same")
    _distance(c, cases[f"{data}-ddim"])
    b.sharey(a)
    c.set_xlabel("steps (network calls)")
    modes = [
        Line2D([], [], color=color, marker=marker, linestyle="none", label=label) for label, color, marker in MODES.values()
    ]
    kinds = [Line2D([], [], color=style.BLACK, linestyle=dashes, label=label) for label, dashes in KINDS.values()]
    measured = Line2D([], [], color=style.BLACK, marker="o", markerfacecolor="white", linestyle="none", label="measured")
    handles = [h for pair in zip(modes, [measured, *kinds], strict=True) for h in pair]
    fig.legend(handles=handles, loc="outside upper center", ncols=3, columnspacing=1.4, handlelength=2.0)
    return fig


def _words(data: str) -> str:
    kind, _, sigma = data.partition("-")
    return rf"{kind.replace('gaussian', 'Gaussian')} data" + (rf", $\sigma_d$ = {sigma}" if sigma else "")


def _errors(ax: Axes, case: dict[str, Any], title: str) -> None:
    for mode, (_, color, marker) in MODES.items():
        row = case[FORMAT][mode]
        for kind, (_, dashes) in KINDS.items():
            if None not in row[kind]:
                ax.plot(case["steps"], row[kind], color=color, linestyle=dashes, linewidth=1.0)
        ax.plot(case["steps"], row["measured"], color=color, marker=marker, linestyle="none", markerfacecolor="white")
    _axes(ax, title, "rms error")


def _distance(ax: Axes, case: dict[str, Any]) -> None:
    ax.plot(case["steps"], case["float64_total"], color=style.GREY, linewidth=3.0, alpha=0.5, label="float64")
    for mode, (_, color, marker) in MODES.items():
        row = case[FORMAT][mode]
        if None not in row["refined_total"]:
            ax.plot(case["steps"], row["refined_total"], color=color, linewidth=1.0)
        ax.plot(case["steps"], row["total"], color=color, marker=marker, linestyle="none", markerfacecolor="white")
    _axes(ax, "c   DDIM, distance to the exact flow", "rms distance")
    ax.legend(loc="lower left", handlelength=1.6)


def _axes(ax: Axes, title: str, ylabel: str) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks([10, 25, 100, 250, 1000], ["10", "25", "100", "250", "1000"])
    ax.set_ylabel(ylabel)
    ax.set_title(title, loc="left")
    ax.minorticks_off()
    ax.grid(True)
    ax.set_axisbelow(True)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    parser = argparse.ArgumentParser(description="A bf16 state over step counts, from experiments/low_precision_state.py.")
    parser.add_argument(
        "--record", default="low_precision_state-cpu", help="name in experiments/records, or a path (default: %(default)s)"
    )
    parser.add_argument("--data", default="gaussian-2", help="which data to draw (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=style.FOLDER, help="folder for low_precision_state.png (default: beside this script)"
    )
    args = parser.parse_args(argv)
    try:
        with style.applied():
            print(style.save(draw(read_record(args.record), args.data), "low_precision_state", args.out))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
