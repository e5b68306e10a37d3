"""Measured and predicted errors of one run: of a single call, and of the final sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffparam import (
    ErrorBudget,
    NonFiniteError,
    Plan,
    RoundingError,
    Sensitivity,
    gaussian_sensitivity,
    predict_error,
    sample,
    trace_sensitivity,
)
from diffparam.prediction.sensitivity import gaussian_output_per_input

Row = dict[str, Any]
Model = Callable[[Tensor, Tensor], Tensor]
NOT_INDEPENDENT = ("correlation", "grid", "heavy_tail", "large", "overflow")
"""Flags that say, before a run, that sums of independent first-order errors are not the whole story."""


class LinearNetwork:
    """The ideal network of Gaussian data along a plan, called once per planned call, in order."""

    def __init__(self, plan: Plan, sigma_data: float) -> None:
        self.per_input = gaussian_output_per_input(plan, plan.phi_t, sigma_data).tolist()
        self.call = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """K of the next call times x."""
        u = x * self.per_input[self.call]
        self.call += 1
        return u


def gaussian_rows(plan: Plan, sigma_data: float, formats: Sequence[str], count: int, seed: int) -> list[Row]:
    """One row per format: predicted and measured, with the roundings of the output to nearest."""
    scale = float(np.broadcast_to(plan.state.scale(plan.phi_t), (len(plan),))[0])
    noise = scale * torch.randn(count, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def run(**errors: Any) -> Tensor:
        return sample(LinearNetwork(plan, sigma_data), noise, plan, generator=torch.Generator().manual_seed(seed + 1), **errors)

    exact = run()
    sizes = gaussian_sensitivity(plan, sigma_data)
    rows = []
    for fmt in formats:
        budget = predict_error(plan, sizes, output=fmt, arithmetic=None, state=None, timestep=None)
        error = measured(run, exact, RoundingError(fmt))
        rows.append(
            {
                "format": fmt,
                **predicted(budget),
                "measured": error,
                "one_step": one_step_ratio(plan, sizes, budget, fmt, count, seed),
            }
        )
    return rows


def traced_rows(
    model: Model, plan: Plan, noise: Tensor, formats: Sequence[str], seed: int, trace: int, emulate: bool = True
) -> list[Row]:
    """The same for any differentiable network, with the prediction from a reverse pass over ``trace`` samples."""

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(seed + 1)

    def run(**errors: Any) -> Tensor:
        with torch.no_grad():
            return sample(model, noise, plan, generator=generator(), **errors)

    exact = run()
    rows = []
    for fmt in formats:
        error = RoundingError(fmt)
        sizes = trace_sensitivity(model, plan, noise[:trace], generator=generator())
        budget = predict_error(plan, sizes, output=fmt, arithmetic=None, state=None, timestep=None)
        row = {"format": fmt, **predicted(budget), "measured": measured(run, exact, error)}
        if emulate:
            exactly = trace_sensitivity(model, plan, noise[:trace], generator=generator(), emulate=error)
            rehearsed = predict_error(plan, exactly, output=fmt, arithmetic=None, state=None, timestep=None).rms
            row["emulated"] = rehearsed if math.isfinite(rehearsed) else None
        rows.append(row)
    return rows


def measured(run: Callable[..., Tensor], exact: Tensor, error: RoundingError) -> float | None:
    """Rms difference of a run with rounded outputs from the exact one; None where it overflowed."""
    try:
        return rms(run(output_error=error) - exact)
    except NonFiniteError:
        return None


def one_step_ratio(plan: Plan, sizes: Sensitivity, budget: ErrorBudget, fmt: str, count: int, seed: int) -> float:
    """Measured over predicted rms of one call's error, the farthest from 1 of five calls along the run."""
    source = budget.sources["output"]
    generator = torch.Generator().manual_seed(seed + 2)
    ratios = []
    for call in np.unique(np.linspace(0, len(plan) - 1, 5).astype(int)):
        if source.step_rms[call] == 0:
            continue
        u = torch.randn(4 * count, dtype=torch.float64, generator=generator) * float(np.sqrt(sizes.output_sq[call]))
        error = rms(RoundingError(fmt).apply(u) - u) * abs(float(plan.gain_u[call]))
        ratios.append(error / float(source.step_rms[call]))
    return max(ratios, key=lambda r: abs(np.log(r))) if ratios else 1.0


def predicted(budget: ErrorBudget) -> Row:
    """What the record keeps of a prediction."""
    return {
        "predicted": budget.rms,
        "independent": budget.independent,
        "worst": budget.worst,
        "final_rms": budget.final_rms,
        "flags": sorted({flag.kind for flag in budget.flags}),
    }


def rms(x: Tensor) -> float:
    """Root mean square."""
    return float(x.square().mean().sqrt())
