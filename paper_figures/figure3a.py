r"""Figure 3A of the paper with the controls it lacks, from a record of ``experiments/eps_vs_v.py``.

a: the paper's panel, v-space loss of both heads in bf16, their difference and eq. 27, :math:`1/(128^2\bar\alpha_t)`.
b: the same panel with everything in float32, where nothing rounds to bf16.
c: what the bf16 gap is made of, as shares of it.
d: the direct part, measured with the same weights in two precisions, and three predictions of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffparam import Schedule
from experiments.head_study.decompose import HIGH_NOISE
from paper_figures import style
from paper_figures.from_record import figure_command

PARTS = {
    "float32_gap": ("the float32 control's gap", style.SKY_BLUE, ""),
    "direct": ("direct rounding", style.VERMILLION, "////"),
    "training": ("training in bf16", style.ORANGE, "...."),
    "remainder": ("remainder", style.GREY, ""),
}
PREDICTIONS = {
    "paper": (r"eq. 27, $\delta = 1/128$", style.BLACK, (0, (1, 1.5))),
    "single_rounding": (r"one rounding, $\delta \approx 1/603$", style.PURPLE, (0, (5, 1.5))),
    "calibrated": (r"$\delta$ calibrated on other images", style.GREEN, "-"),
}
REGIMES = {"mixed": "bf16 forward", "pure": "pure bf16"}


def draw(record: dict[str, Any]) -> Figure:
    """The figure, at text width."""
    results = record["results"]
    fig = style.figure(style.TEXT_WIDTH, 5.4)
    (a, b), (c, d) = fig.subplots(2, 2)
    _panel(a, results, "mixed", "a   bf16 forward pass (the paper's panel)")
    _panel(b, results, "float32", "b   control: the same in float32")
    b.sharey(a)
    _shares(c, results)
    _direct(d, results)
    return fig


def _panel(ax: Axes, results: dict[str, Any], precision: str, title: str) -> None:
    t = np.asarray(results["timesteps"])
    loss = {p: _loss(results, f"{p}_{precision}") for p in ("eps", "v")}
    for arm, name in (("eps", "epsilon"), ("v", "v_prediction")):
        look = style.look(name)
        ax.plot(t, loss[arm].mean(0), **look.line(label=f"{look.label} head"))
        ax.fill_between(t, loss[arm].min(0), loss[arm].max(0), color=look.color, alpha=0.25, linewidth=0)
    gap = (loss["eps"] - loss["v"]).mean(0)
    ax.plot(t, np.where(gap > 0, gap, np.nan), color=style.GREEN, marker=".", markersize=3, label=r"difference $\epsilon - v$")
    label, color, dashes = PREDICTIONS["paper"]
    ax.plot(t, results["gaps"]["mixed"]["curves"]["predicted_paper"], color=color, linestyle=dashes, label=f"theory, {label}")
    _axes(ax, title, "loss in $v$-space, per element\n(variance of the data = 1)", (3e-5, 2e4))
    ax.set_xlim(0, 1010)
    ax.legend(loc="upper left", handlelength=2.6)


def _shares(ax: Axes, results: dict[str, Any]) -> None:
    """Stacked bars, two per bucket; a negative part hangs below zero."""
    buckets = [b for b in results["gaps"]["mixed"]["parts"]["gap"] if int(b.partition("-")[0]) >= HIGH_NOISE]
    for side, (regime, short) in zip((-0.2, 0.2), REGIMES.items(), strict=True):
        parts = results["gaps"][regime]["parts"]
        gap = np.array([parts["gap"][b]["mean"] for b in buckets])
        x = np.arange(len(buckets)) + side
        above, below = np.zeros(len(buckets)), np.zeros(len(buckets))
        for name, (label, color, hatch) in PARTS.items():
            share = 100 * np.array([parts[name][b]["mean"] for b in buckets]) / gap
            ax.bar(
                x, share, 0.36, bottom=np.where(share >= 0, above, below),
                color=color, hatch=hatch, edgecolor="white", linewidth=0.3, label=label if regime == "mixed" else None,
            )  # fmt: skip
            above, below = above + share.clip(min=0), below + share.clip(max=0)
        ax.annotate(short, (x[0], 3), rotation=90, ha="center", va="bottom", fontsize=6.5)
    ax.set_xticks(range(len(buckets)), [b.replace("-", "\N{EN DASH}\n") for b in buckets])
    ax.set(ylim=(-4, 138), yticks=range(0, 101, 25), xlabel="timestep $t$", ylabel="share of the gap, per cent")
    ax.axhline(0, color=style.BLACK, linewidth=0.6)
    ax.set_title("c   what the bf16 gap is made of", loc="left")
    ax.legend(loc="upper center", ncols=2, handlelength=1.6, columnspacing=1.2)


def _direct(ax: Axes, results: dict[str, Any]) -> None:
    curves = results["gaps"]["mixed"]["curves"]
    x = 1 / Schedule.cosine(1000).alpha_bar[results["timesteps"]].numpy()
    measured = np.asarray(results["curves"]["eps_mixed"]["direct"]).mean(0)
    for name, (label, color, dashes) in PREDICTIONS.items():
        ax.plot(x, curves[f"predicted_{name}"], color=color, linestyle=dashes, label=label)
    points = {"linestyle": "none", "marker": "o", "markersize": 3, "markerfacecolor": "white"}
    ax.plot(x, measured, color=style.VERMILLION, label="measured", **points)
    ylabel = r"$E|v_{\mathrm{bf16}} - v_{\mathrm{float32}}|^2$, same weights"
    _axes(ax, r"d   direct rounding of the $\epsilon$ head", ylabel, (1e-7, 1e6))
    ax.set_xscale("log")
    ax.set(xlim=(0.8, 2e9), xlabel=r"$\kappa^2 = 1/\bar\alpha_t$ (from $t = 10$ to $t = 999$)")
    ax.minorticks_off()
    ax.legend(loc="upper left", handlelength=2.6)


def _axes(ax: Axes, title: str, ylabel: str, ylim: tuple[float, float]) -> None:
    ax.set_yscale("log")
    ax.set(xlim=(0, 1010), ylim=ylim, xlabel="timestep $t$ of 1000, cosine schedule", ylabel=ylabel)
    ax.set_title(title, loc="left")
    ax.minorticks_off()
    ax.grid(True)
    ax.set_axisbelow(True)


def _loss(results: dict[str, Any], arm: str) -> np.ndarray:
    """``(seeds, timesteps)``, each arm in the precision it was trained to run in."""
    return np.asarray(results["curves"][arm]["loss_float32" if arm.endswith("float32") else "loss_bf16"])


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print where it is."""
    figure_command("figure3a", draw, argv, experiment="eps_vs_v")


if __name__ == "__main__":
    main()
