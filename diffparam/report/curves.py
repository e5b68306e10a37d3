"""What a report draws: kappa and the loss floor over the training timesteps, and each source over the steps of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffparam.errors import NonFiniteError, SingularParameterization
from diffparam.parameterization import AngularParam
from diffparam.prediction.budget import predict_error
from diffparam.prediction.step import OutputMoments, output_energy
from diffparam.report.assess import SOURCES, lost_timestep, outspoken
from diffparam.report.run import Run

MAX_POINTS = 1000


@dataclass(frozen=True, eq=False)
class Curves:
    """float64 arrays; infinite where singular.

    Attributes:
        timesteps: Of the training schedule, thinned to :data:`MAX_POINTS`, ``(points,)``.
        kappa: Condition number by parameterization, ``(points,)`` each.
        floor: Loss floor of the output's error by parameterization, for outputs as large as their targets.
        step_timesteps: Of the configured run's calls, ``(calls,)``; empty where it is singular or overflows.
        step_errors: Each call's part in the error of the final sample, relative, by source.
    """

    timesteps: np.ndarray
    kappa: dict[str, np.ndarray]
    floor: dict[str, np.ndarray]
    step_timesteps: np.ndarray
    step_errors: dict[str, np.ndarray]


def curves_of(run: Run, params: Sequence[AngularParam]) -> Curves:
    """The curves of several parameterizations and of the run's own steps."""
    index = np.unique(np.linspace(0, len(run.training) - 1, MAX_POINTS).round().astype(np.int64))
    phi = run.training.phi.numpy()[index]
    kappa, floor = {}, {}
    for param in params:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            amplification = 1.0 / np.abs(np.broadcast_to(param.sin_theta(phi), phi.shape))
            kappa[param.name] = amplification
            floor[param.name] = _floor(run, param, phi, amplification)
    times, errors = _steps(run)
    return Curves(run.training.timesteps.double().numpy()[index], kappa, floor, times, errors)


def _floor(run: Run, param: AngularParam, phi: np.ndarray, kappa: np.ndarray) -> np.ndarray:
    if run.output is None:
        return np.zeros_like(phi)
    c, s, var = np.cos(phi), np.sin(phi), run.sigma_data**2
    target = OutputMoments(c**2 * var + s**2, c * s * (1.0 - var), s**2 * var + c**2)
    energy = output_energy(phi, param=param, moments=target)
    r = np.ones_like(phi)
    if callable(param.r):
        regular = np.isfinite(kappa) & (phi > 0)
        r[regular] = param.r_at(phi[regular])
    else:
        r *= param.r
    floor = kappa**2 * run.output.energy(energy * r**2) / r**2 / target.v_sq
    return np.where(np.isfinite(kappa), floor, np.inf)


def _steps(run: Run) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    try:
        plan = run.plan(run.param)
    except SingularParameterization:
        return np.zeros(0), {}
    names = ("output", "arithmetic", "increments", "state", "guidance")
    options = {name: getattr(run, name) for name in names}
    timestep = run.timestep if lost_timestep(run, plan) is None else None
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        try:
            loud = predict_error(plan, outspoken(plan, run.sigma_data), timestep=None, **options)
            quiet = predict_error(plan, run.sigma_data, timestep=timestep, training=run.training, **options)
        except NonFiniteError:  # told as an overflow of the run
            return np.zeros(0), {}
        sources = {**loud.sources, **{name: quiet.sources[name] for name in ("timestep",) if name in quiet.sources}}
        errors = {name: sources[name].final / quiet.final_rms for name in SOURCES if name in sources}
    return plan.timestep.astype(np.float64), errors
