"""What the library says of a report before anything is trained: from schedule, output, loss weight, sampler and dtype alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffparam import AngularParam, OutputMoments, largest_safe_timestep, loss_floor, plan_ddim, predict_error
from experiments.field_study.guards import NoGuard
from experiments.field_study.reports import Report

FORMATS = {"float32": "float32", "bf16": "bfloat16"}
DELTAS = ("rms", "unit_roundoff", "machine_epsilon")
TOLERANCE = 0.01
"""Share of the target's variance in v-space that an error may cost."""


def predict(report: Report, steps: int) -> dict[str, Any]:
    """Everything below assumes a target of unit variance (eq. 19) and, for rounding, one rounding of the output to nearest.

    Args:
        report: The configuration.
        steps: DDIM steps.

    Returns:
        By name of the output, in ``outputs``: ``condition_number`` at the report's end; ``tolerable_loss``, the squared error
        of the output there that costs 1 % of the variance in v-space, whatever makes it; ``floor``, what rounding adds to
        the v-space loss there, by precision; ``limit``, the timestep nearest to the end at which rounding costs at most 1 %, by
        precision and size of the error (None where there is none); ``moved``, by run and precision, by how much rounding moves
        the samples. By name of the head, in ``weights``: :func:`describe_weight`.
    """
    params = {head.arm.param.name: head.arm.param for head in report.heads.values()}
    phi = float(report.schedule.phi_at(report.end))
    outputs = {}
    for name, param in params.items():
        kappa = float(param.condition_number(phi))
        outputs[name] = {
            "condition_number": kappa,
            "tolerable_loss": float(TOLERANCE * (param.r_at(phi) / kappa) ** 2),
            "floor": {p: float(loss_floor(phi, param=param, delta="rms", fmt=fmt)) for p, fmt in FORMATS.items()},
            "limit": {p: {d: nearest_safe(report, param, d, fmt) for d in DELTAS} for p, fmt in FORMATS.items()},
            "moved": {
                run_name: {p: _moved(report, name, run_name, param, fmt, steps) for p, fmt in FORMATS.items()}
                for run_name in report.runs[name]
            },
        }
    weights = {name: describe_weight(head.weight(report.schedule)) for name, head in report.heads.items()}
    return {"outputs": outputs, "weights": weights}


def nearest_safe(report: Report, param: AngularParam, delta: float | str, fmt: str) -> float | None:
    """The timestep nearest to the report's end where the rounding floor is at most 1 %."""
    schedule = report.schedule
    regular = param.sin_theta(schedule.phi) != 0
    floor = torch.full((len(schedule),), torch.inf, dtype=torch.float64)
    floor[regular] = torch.as_tensor(loss_floor(schedule.phi[regular], param=param, delta=delta, fmt=fmt)).double()
    safe = schedule.timesteps[floor <= TOLERANCE]
    return float(safe[(safe - report.end).abs().argmin()]) if len(safe) else None


def start_by_own_error(report: Report, param: AngularParam, loss: float) -> int:
    """The largest start at which a head's own error costs no more than the data's variance in v-space.

    Args:
        report: The schedule, and the end at which ``loss`` was measured.
        param: What the head outputs.
        loss: Its v-space loss there; over kappa^2 it is the squared relative error of the output (eq. 25).
    """
    kappa = float(param.condition_number(report.schedule.phi_at(report.end)))
    safe = largest_safe_timestep(report.schedule, param=param, delta=loss**0.5 / kappa, tolerance=1.0)
    return int(report.schedule.timesteps[0] if safe is None else safe)


def describe_weight(weight: Tensor | None) -> dict[str, float]:
    """How uneven a weighting is under uniform timesteps, whatever the precision.

    Returns:
        ``largest`` over the mean; ``effective_share``, E[w]^2 / E[w^2]: the share of a batch that an average with these weights
        is worth if all rows have the same error.
    """
    if weight is None:
        return {"largest": 1.0, "effective_share": 1.0}
    mean = weight.mean()
    return {"largest": float(weight.max() / mean), "effective_share": float(mean**2 / weight.square().mean())}


def _moved(report: Report, output: str, run: str, param: AngularParam, fmt: str, steps: int) -> float | None:
    """Rms over the final sample; None for a guarded run, which is not linear."""
    chosen = report.runs[output][run]
    if type(chosen.guard) is not NoGuard:
        return None
    budget = predict_error(plan_ddim(report.grid(chosen, steps), param=param), OutputMoments.target(), output=fmt)
    return budget.sources["output"].predicted
