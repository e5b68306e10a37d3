"""A report as a picture; needs matplotlib, which nothing else here does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffparam.report.config_file import shown
from diffparam.report.errors import BadInput

if TYPE_CHECKING:
    from diffparam.report.document import Report

SUFFIXES = (".png", ".svg", ".pdf")


def plot_report(report: Report, path: str | Path) -> Path:
    """Draw kappa and the loss floor over the timesteps, and each source's part in the final error over the steps of the run.

    Args:
        report: What :func:`diffparam.report.report` returned.
        path: Where to, ending in .png, .svg or .pdf; an existing file is replaced.

    Returns:
        The path.

    Raises:
        BadInput: If the suffix is another one.
        ImportError: If matplotlib is missing.
        OSError: If the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise BadInput(f"plot must end in {', '.join(SUFFIXES)}, got {shown(path)}")
    try:
        from matplotlib.figure import Figure  # an optional extra, and slow to import
    except ImportError:
        raise ImportError("the plot needs matplotlib, which is not installed: pip install 'diffparam[figures]'") from None
    figure = Figure(figsize=(13.0, 4.2), layout="constrained")
    over_kappa, over_floor, over_steps = figure.subplots(1, 3)
    _over_timesteps(over_kappa, report, report.curves.kappa, "condition number κ")
    _over_timesteps(over_floor, report, report.curves.floor, "loss floor of the rounded output, v-space")
    over_floor.axhline(report.run.loss_tolerance, color="0.6", linewidth=0.8, linestyle=":", label="tolerance")
    limit = report.row.largest_safe_timestep
    if limit is not None:
        for axes in (over_kappa, over_floor):
            axes.axvline(limit, color="0.6", linewidth=0.8, label=f"safe up to {limit:g}")
    over_kappa.legend(fontsize="small")
    _over_steps(over_steps, report)
    figure.suptitle(_plain(f"{report.run.name}: {report.row.param}, {'safe' if report.safe else 'UNSAFE'}"))
    figure.savefig(path, dpi=120)
    return path


def _over_timesteps(axes: Any, report: Report, curves: dict[str, np.ndarray], label: str) -> None:
    configured = report.row.param
    for name, values in curves.items():
        marked = name == configured
        axes.plot(
            report.curves.timesteps,
            _drawable(values),
            label=_plain(name) + (", configured" if marked else ""),
            linewidth=2.2 if marked else 1.2,
            linestyle="-" if marked else "--",
        )
    _logarithmic(axes, curves)
    axes.set_xlabel("timestep")
    axes.set_title(label, fontsize="medium")


def _over_steps(axes: Any, report: Report) -> None:
    axes.set_title("part in the error of the final sample, by step", fontsize="medium")
    axes.set_xlabel("timestep")
    if not report.curves.step_errors:
        axes.text(0.5, 0.5, "no run: a step is singular", ha="center", va="center", transform=axes.transAxes)
        return
    for name, values in report.curves.step_errors.items():
        if not np.isfinite(_drawable(values)).any():
            continue
        axes.plot(report.curves.step_timesteps, _drawable(values), label=name, linewidth=1.2)
    _logarithmic(axes, report.curves.step_errors)
    axes.invert_xaxis()
    axes.legend(fontsize="small")


def _logarithmic(axes: Any, curves: dict[str, np.ndarray]) -> None:
    if any(np.isfinite(_drawable(values)).any() for values in curves.values()):
        axes.set_yscale("log")


def _drawable(values: np.ndarray) -> np.ndarray:
    """What a logarithmic axis has no place for becomes a gap."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _plain(text: str) -> str:
    """No mathematics from a name."""
    return text.replace("$", r"\$")
