r"""One parameterization in one run: how much of the final sample is rounding, where it enters, and from where it is safe.

What the output's rounding costs depends on how large the output is, and so on the data. Two cases bracket all data of standard
deviation :math:`\sigma_d`: Gaussian data, whose network says least, and the target itself, which no conditional mean exceeds in
energy. They differ by

.. math:: E[u^2] = E[u^2]_{\mathrm{Gauss}} + r^2\sin^2\theta\,\frac{\sigma_d^2}{\cos^2\phi\,\sigma_d^2 + \sin^2\phi}

since x_t and v are a rotation of x and eps, so their second moments have the determinant :math:`\sigma_d^2`. Each source counts
with the larger of the two predictions: in the Gaussian case successive roundings of a slowly moving output are known to
correlate, in the other the output is larger.

How errors travel is that of Gaussian data in both. Far from Gaussian data the error is of that size but not bounded by it: on
mixtures it came out up to twice as large, and where modes are separate a few samples end in another one, which no first-order
sum describes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from diffparam.errors import NonFiniteError, SingularParameterization
from diffparam.parameterization import AngularParam
from diffparam.prediction.budget import ErrorBudget, predict_error
from diffparam.prediction.flags import Flag, large_flags
from diffparam.prediction.sensitivity import Sensitivity, gaussian_sensitivity, v_loss_floor
from diffparam.prediction.sources import root_sum_square
from diffparam.prediction.step import largest_safe_timestep
from diffparam.report.run import Run
from diffparam.solvers.plan import Plan

SOURCES = ("output", "arithmetic", "coefficients", "state", "timestep")
UNSAFE_KINDS = ("unsafe", "collision", "stagnation", "overflow", "large")
"""Flags of :func:`diffparam.predict_error` with which a run is not safe; ``off_grid`` and ``correlation`` inform."""


@dataclass(frozen=True)
class Assessment:
    """What one parameterization does in a run. Errors are rms over the rms of the final sample.

    Attributes:
        param: Its name.
        kappa_max: Largest condition number over the run; infinite where singular.
        kappa_timestep: Where that is.
        sources: Error of the final sample by source, in the order of :data:`SOURCES`; empty where singular.
        error: All sources together, independent of each other; infinite where singular.
        largest_safe_timestep: Of the training schedule; None if none is.
        unsafe_timesteps: Of the run, from the first step on: those whose loss floor exceeds the run's ``loss_tolerance``.
        flags: What sums do not say.
        singular_timestep: Where the run cannot pass; None where it can.
        output_range: Error of the output on Gaussian data and on outputs as large as their target.
    """

    param: str
    kappa_max: float
    kappa_timestep: float
    sources: dict[str, float]
    error: float
    largest_safe_timestep: float | None
    unsafe_timesteps: tuple[float, ...]
    flags: tuple[Flag, ...] = ()
    singular_timestep: float | None = None
    output_range: tuple[float, float] = (math.nan, math.nan)

    @property
    def dominant(self) -> str:
        """The largest source."""
        return max(self.sources, key=lambda name: self.sources[name], default="none")

    def objections(self, tolerance: float) -> tuple[str, ...]:
        """Why the run is not safe, in words; empty where it is.

        Safe: no step is singular, no flag is of :data:`UNSAFE_KINDS`, and :attr:`error` is at most ``tolerance``.
        """
        if self.singular_timestep is not None:
            return (
                f"{self.param} is singular at timestep {self.singular_timestep:g}: its output and x_t are the same "
                "combination of data and noise there, so no precision is enough",
            )
        found = [flag.reason for flag in self.flags if flag.kind in UNSAFE_KINDS and flag.kind != "large"]
        large = any(flag.kind == "large" for flag in self.flags)
        if large or not self.error <= tolerance:
            found.append(
                f"the predicted error of the final sample is {percent(self.error)} of its rms (tolerance "
                f"{percent(tolerance)}), mostly from {WORDS[self.dominant]}"
                + ("; first-order sums are rough there" if large else "")
            )
        return tuple(found)


WORDS = {
    "output": "the network's output",
    "arithmetic": "the arithmetic of the update",
    "coefficients": "the coefficients of the update",
    "state": "the stored sample",
    "timestep": "the timestep the network is told",
    "none": "nothing",
}


def percent(share: float) -> str:
    """0.0123 as ``1.2%``."""
    return f"{100 * share:.2g}%" if share < 0.995 else f"{100 * share:.3g}%"


def assess(run: Run, param: AngularParam | None = None) -> Assessment:
    """What ``param`` does in ``run``; the run's own by default. Nothing is raised where it is singular.

    Raises:
        ValueError: If the solver cannot run on this grid at all.
    """
    param = run.param if param is None else param
    delta = 0.0 if run.output is None else run.output.rms
    from_here = largest_safe_timestep(
        run.training, param=param, delta=delta, tolerance=run.loss_tolerance, sigma_data=run.sigma_data
    )
    try:
        plan = run.plan(param)
    except SingularParameterization as singular:
        at = math.nan if singular.timestep is None else float(singular.timestep)
        return Assessment(param.name, math.inf, at, {}, math.inf, from_here, (at,), singular_timestep=at)
    lost = lost_timestep(run, plan)
    if lost is not None:
        run = replace(run, timestep=None)
    kappa = np.broadcast_to(param.condition_number(plan.phi_t), (len(plan),))
    worst = int(np.argmax(kappa))
    largest, where = float(kappa[worst]), float(plan.timestep[worst])
    try:
        quiet, loud, floor = _predictions(run, plan)
    except NonFiniteError as overflow:  # of a coefficient that the arithmetic does not hold, or of the run itself
        return Assessment(param.name, largest, where, {}, math.inf, from_here, (), (Flag("overflow", where, str(overflow)),))
    sources = {name: _larger(quiet, loud, name) for name in SOURCES if name in quiet.sources or name in loud.sources}
    if lost is not None:
        sources["timestep"] = math.inf
    error = root_sum_square(sources.values())
    return Assessment(
        param.name,
        largest,
        where,
        sources,
        error,
        from_here,
        tuple(plan.timestep[~(floor <= run.loss_tolerance)].astype(float).tolist()),
        (*_flags(quiet, loud, error), *(() if lost is None else (lost,))),
        output_range=(_relative(quiet, "output"), _relative(loud, "output")),
    )


def _predictions(run: Run, plan: Plan) -> tuple[ErrorBudget, ErrorBudget, np.ndarray]:
    """For the network's own outputs and for outputs as large as their targets, and the loss floor of the latter."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # an overflow is answered as an infinite error
        sizes = outspoken(plan, run.sigma_data)
        quiet, loud = _predict(run, plan, run.sigma_data), _predict(run, plan, sizes)
        floor = np.zeros(len(plan)) if run.output is None else v_loss_floor(plan, sizes, run.output)
    return quiet, loud, floor


def lost_timestep(run: Run, plan: Plan) -> Flag | None:
    """Whether a timestep is beyond the largest number of its format."""
    if run.timestep is None:
        return None
    times = plan.timestep.astype(np.float64)
    if not (np.abs(times) > run.timestep.max).any():
        return None
    largest = float(times[np.argmax(np.abs(times))])
    return Flag("overflow", largest, f"timestep {largest:g} is beyond {run.timestep.max:g}, the largest of {run.timestep.name}")


def outspoken(plan: Plan, sigma_data: float) -> Sensitivity:
    """The Gaussian run with outputs as large as their targets, and a sample as large as the data, also after one step: no data
    of this standard deviation has larger ones.
    """
    sizes = gaussian_sensitivity(plan, sigma_data)
    x_sq = (np.cos(plan.phi_t) * sigma_data) ** 2 + np.sin(plan.phi_t) ** 2
    more = (plan.param.r_at(plan.phi_t) * plan.param.sin_theta(plan.phi_t) * sigma_data) ** 2 / x_sq
    output_sq = sizes.output_sq + more
    end = float(plan.phi_s[-1])
    return replace(
        sizes,
        output_sq=output_sq,
        change_sq=sizes.change_sq + plan.gain_u**2 * more,
        final_sq=max(sizes.final_sq, float(((np.cos(end) * sigma_data) ** 2 + np.sin(end) ** 2) * plan.state.scale(end) ** 2)),
        relative_gain=np.abs(sizes.output_gain) * np.sqrt(output_sq),
        output_amplitude=None,
        input_amplitude=None,
    )


def _predict(run: Run, plan: Plan, data: float | Sensitivity) -> ErrorBudget:
    return predict_error(
        plan,
        data,
        output=run.output,
        arithmetic=run.arithmetic,
        increments=run.increments,
        state=run.state,
        timestep=run.timestep,
        guidance=run.guidance,
        training=run.training,
        tolerance=run.loss_tolerance,
    )


def _relative(budget: ErrorBudget, name: str) -> float:
    """A source's share of the final sample; infinite where the prediction overflows."""
    if name not in budget.sources:
        return 0.0
    share = budget.sources[name].predicted / budget.final_rms if budget.final_rms else math.inf
    return share if math.isfinite(share) else math.inf


def _larger(quiet: ErrorBudget, loud: ErrorBudget, name: str) -> float:
    return max(_relative(quiet, name), _relative(loud, name))


def _flags(quiet: ErrorBudget, loud: ErrorBudget, error: float) -> tuple[Flag, ...]:
    """Of the loud run, whose samples move as real ones do: those of Gaussian data of unit variance stay where they are, and any
    rounded state would lose their updates. What depends on the outputs' known course is from the quiet run, where that counts.
    """
    kept = [flag for flag in loud.flags if flag.kind not in ("large", *_OF_COURSE)]
    if _relative(quiet, "output") >= _relative(loud, "output"):
        kept += [flag for flag in quiet.flags if flag.kind in _OF_COURSE]
    return (*kept, *large_flags(error))


_OF_COURSE = ("correlation", "grid")
