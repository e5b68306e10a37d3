r"""Figure 2 of the paper: the densities of the share of masked tokens in both stages, as the trainer draws them.

Lines are the densities of :class:`mmar.masking.MaskRatio`, steps the shares of masks that were really drawn for an image of 256
tokens. The paper's curve of stage 2 is not legible: cosine is our reading, the others are options.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmar.masking import MaskRatio, draw_known
from paper_figures import style

TOKENS, DRAWS, BINS = 256, 6_000, 32
STAGES = {
    "stage 1: truncated normal on [0.7, 1]": (MaskRatio.stage1(), style.BLUE, "-"),
    "stage 2: cosine on (0, 1]": (MaskRatio.stage2(), style.VERMILLION, "-"),
    "option: truncated normal on (0, 1]": (MaskRatio("truncated_normal", 0.0, 1.0), style.GREEN, (0, (5, 1.5))),
    "option: uniform on (0, 1]": (MaskRatio("uniform", 0.0, 1.0), style.GREY, (0, (1, 1.5))),
}


def draw() -> Figure:
    """The figure, at column width."""
    fig = style.figure(style.COLUMN_WIDTH, 2.6)
    ax = fig.subplots()
    for label, (ratio, color, dashes) in STAGES.items():
        at = np.linspace(ratio.low, ratio.high, 500, endpoint=False)
        ax.plot(at, ratio.density(at), color=color, linestyle=dashes, label=label)
        if label.startswith("stage"):
            _drawn(ax, ratio, color)
    ax.set(xlim=(0, 1), ylim=(0, 6.5), xlabel="share of masked tokens", ylabel="density")
    ax.grid(True)
    ax.set_axisbelow(True)
    ax.legend(loc="upper left")
    return fig


def shares_drawn(ratio: MaskRatio, draws: int = DRAWS, tokens: int = TOKENS) -> np.ndarray:
    """Shares of masked tokens ``(draws,)`` of masks drawn as in training."""
    source = torch.Generator().manual_seed(0)
    return np.array([1 - float(draw_known(1, tokens, ratio.sample(source), source).float().mean()) for _ in range(draws)])


def _drawn(ax: Axes, ratio: MaskRatio, color: str) -> None:
    counts, edges = np.histogram(shares_drawn(ratio), BINS, (0, 1), density=True)
    ax.stairs(counts, edges, color=color, alpha=0.3, fill=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    parser = argparse.ArgumentParser(description="Figure 2: densities of the share of masked tokens.")
    parser.add_argument("--out", type=Path, default=style.FOLDER, help="folder for figure2.png (default: beside this script)")
    args = parser.parse_args(argv)
    with style.applied():
        print(style.save(draw(), "figure2", args.out))


if __name__ == "__main__":
    main()
