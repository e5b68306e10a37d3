r"""bf16 in the sampler of MMAR's head, predicted and measured, from a record of ``experiments/sampler_precision.py``.

Distance (rms) of the final tokens of 50 DDIM steps from those of float32, by what computes in bf16: filled measured, open
predicted without running the sampler in bf16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_figures import style
from paper_figures.arm_rows import COLORS, FILLED, OPEN, draw_cells, frame_rows
from paper_figures.from_record import figure_command

WAYS = {
    "forward": "bf16 forward",
    "plain": "bf16 step and state, plain update",
    "state": "bf16 step and state",
    "everything": "everything bf16",
}
HEADS = {"v_mixed": "v", "eps_mixed": r"$\epsilon$"}


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at column width and a half."""
    arms = record["results"]["arms"]
    labels, at = [], 0
    fig = style.figure(1.5 * style.COLUMN_WIDTH, 0.26 * len(arms) * len(WAYS) + 0.9)
    ax = fig.subplots()
    for name, arm in arms.items():
        color = COLORS[name.partition("_")[0]]
        for way, label in WAYS.items():
            if way not in arm["errors"]:
                continue
            error = arm["errors"][way]
            draw_cells(ax, error["measured"], at, color, face=FILLED)
            draw_cells(ax, error["predicted"], at, color, face=OPEN, size=7)
            labels.append(f"{HEADS[name]}: {label}")
            at += 1
    ax.set_yticks(range(at), labels)
    frame_rows(ax, at)
    ax.set_xscale("log")
    ax.set_xlabel("error of the final tokens (rms; of tokens with variance 1)")
    marks = {"linestyle": "none", "marker": "o", "color": style.GREY}
    handles = [Line2D([], [], **marks), Line2D([], [], markerfacecolor=OPEN, markersize=7, **marks)]
    fig.legend(handles, ["measured", "predicted"], loc="outside lower center", ncols=2)
    return fig


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    figure_command("sampler_precision", draw, argv)


if __name__ == "__main__":
    main()
