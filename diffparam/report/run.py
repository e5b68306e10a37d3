"""The run a report speaks of: a sampling grid, a solver and the formats that things are kept in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffparam._checks import check_count, check_increments, check_number, check_phi
from diffparam.error_model import CompensatedRounding, ErrorModel, RoundingError
from diffparam.errors import UnknownName
from diffparam.parameterization import AngularParam, check_param
from diffparam.prediction.budget import as_error
from diffparam.rounding import FloatFormat, parse_format
from diffparam.schedule import Schedule
from diffparam.solvers.ddim import plan_ddim
from diffparam.solvers.ddpm import VARIANCES, plan_ddpm
from diffparam.solvers.dpm_solver import plan_dpm_solver
from diffparam.solvers.heun import plan_heun
from diffparam.solvers.plan import Plan

SOLVERS = ("ddim", "ddpm", "dpm_solver", "heun")
MAX_STEPS = 10_000
"""More network calls than any sampler makes; the prediction's own time grows with them."""


@dataclass(frozen=True, eq=False)
class Run:
    """A sampler's settings.

    Args:
        training: What the network was trained on; says which timesteps are safe and what a rounded timestep means.
        grid: The angles that are visited.
        param: What the network outputs.
        solver: ``ddim``, ``ddpm``, ``dpm_solver`` (++2M) or ``heun``.
        eta: Noise of ``ddim``, 0 to 1.
        variance: Of ``ddpm``: ``posterior`` or ``upper``.
        lower_order_final: Of ``dpm_solver``.
        final_phi: Angle to end at, radians; ``heun`` ends at 0.
        guidance: Scale omega; 1 is none.
        sigma_data: Standard deviation of the data, per element.
        output: What the network's output suffers: a format, an error model (a calibrated one too), or None.
        arithmetic: Format of the update's products, sums and coefficients, or None.
        increments: The update is computed as a change of the state, see :func:`diffparam.sample`.
        state: What storing the sample suffers, as ``output``.
        timestep: Format in which the network is told the time, or None.
        tolerance: Largest rms error of the final sample, relative to its own rms, that counts as safe.
        loss_tolerance: Loss floor above which a step is unsafe, in units of the target's variance.
        name: What the schedule or the scheduler is called.
        notes: What the reader must know of how the run stands for a scheduler.
    """

    training: Schedule
    grid: Schedule
    param: AngularParam
    solver: str = "ddim"
    eta: float = 0.0
    variance: str = "posterior"
    lower_order_final: bool = True
    final_phi: float = 0.0
    guidance: float = 1.0
    sigma_data: float = 1.0
    output: Any = "bfloat16"
    arithmetic: Any = "float32"
    state: Any = "float32"
    timestep: Any = "float32"
    increments: bool = False
    tolerance: float = 0.01
    loss_tolerance: float = 0.01
    name: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for schedule, name in ((self.training, "training"), (self.grid, "grid")):
            if not isinstance(schedule, Schedule):
                raise TypeError(f"{name} must be a Schedule, got {type(schedule).__name__}; see Schedule.cosine and its likes")
        check_param(self.param)
        check_count(len(self.grid), "steps", high=MAX_STEPS)
        if self.solver not in SOLVERS:
            raise UnknownName("solver", self.solver, SOLVERS)
        if self.variance not in VARIANCES:
            raise UnknownName("variance", self.variance, VARIANCES)
        if check_number(self.eta, "eta", low=0.0, high=1.0) and self.solver != "ddim":
            raise ValueError(f"eta must be 0 unless solver is 'ddim', got {self.eta!r} with {self.solver!r}")
        if check_phi(self.final_phi, "final_phi") and self.solver == "heun":
            raise ValueError(f"final_phi must be 0 for solver 'heun', got {self.final_phi!r}")
        check_number(self.guidance, "guidance", low=-1e6, high=1e6)
        check_number(self.sigma_data, "sigma_data", low=1e-6, high=1e6)
        check_number(self.tolerance, "tolerance", low=0.0, open_low=True)
        check_number(self.loss_tolerance, "loss_tolerance", low=0.0, open_low=True)
        object.__setattr__(self, "output", as_error(self.output, "output"))
        object.__setattr__(self, "state", as_error(self.state, "state"))
        object.__setattr__(self, "arithmetic", _format(self.arithmetic))
        object.__setattr__(self, "timestep", _format(self.timestep))
        check_increments(self.increments, self.arithmetic)

    def plan(self, param: AngularParam) -> Plan:
        """All steps of this run for a network that outputs ``param``.

        Raises:
            SingularParameterization: If a step is singular; names its timestep.
        """
        if self.solver == "ddim":
            return plan_ddim(self.grid, param=param, eta=self.eta, final_phi=self.final_phi)
        if self.solver == "ddpm":
            variance: Any = self.variance
            return plan_ddpm(self.grid, param=param, variance=variance, final_phi=self.final_phi)
        if self.solver == "heun":
            return plan_heun(self.grid, param=param)
        return plan_dpm_solver(self.grid, param=param, lower_order_final=self.lower_order_final, final_phi=self.final_phi)

    def formats(self) -> dict[str, str]:
        """What each thing is kept in, in words."""
        return {
            "output": error_name(self.output),
            "arithmetic": "exact" if self.arithmetic is None else self.arithmetic.name + _IN_INCREMENTS * self.increments,
            "state": error_name(self.state),
            "timestep": "exact" if self.timestep is None else self.timestep.name,
        }


_IN_INCREMENTS = ", in increments"


def error_name(error: ErrorModel | None) -> str:
    """A format's name, or the size of another error."""
    if error is None:
        return "exact"
    if isinstance(error, RoundingError):
        return parse_format(error.fmt).name + ("" if error.mode == "nearest" else f" ({error.mode})")
    if isinstance(error, CompensatedRounding):
        return f"{parse_format(error.fmt).name} (compensated)"
    return f"error of {error.rms:.3g}"


def _format(fmt: Any) -> FloatFormat | None:
    return None if fmt is None else parse_format(fmt)
