"""A sampling run that somebody else drives: one planned update per call of ``AngularScheduler.step``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from diffparam._checks import check_finite, check_number
from diffparam._combine import combine
from diffparam.conversion import conversion_gains
from diffparam.errors import NonFiniteError
from diffparam.integrations._scheduler_grid import same_time
from diffparam.integrations._scheduler_settings import SchedulerSettings
from diffparam.parameterization import X0, AngularParam
from diffparam.schedule import Schedule
from diffparam.solvers.ddim import plan_ddim
from diffparam.solvers.ddpm import plan_ddpm
from diffparam.solvers.dpm_solver import plan_dpm_solver
from diffparam.solvers.heun import plan_heun
from diffparam.solvers.plan import Plan, PlannedStep
from diffparam.solvers.step import advance, apply_step


def plan_of(
    settings: SchedulerSettings, grid: Schedule, param: AngularParam, *, eta: float = 0.0, final_phi: float = 0.0
) -> Plan:
    """The plan of the settings' solver on a grid.

    Raises:
        SingularParameterization: If a step is singular; names its timestep.
        ValueError: If ``eta`` is not 0 for a solver that has none.
    """
    if settings.solver == "ddim":
        return plan_ddim(grid, param=param, eta=eta, final_phi=final_phi)
    if eta:
        raise ValueError(f"eta must be 0 with solver {settings.solver!r}, got {eta!r}; only solver='ddim' takes one")
    if settings.solver == "ddpm":
        return plan_ddpm(grid, param=param, variance=settings.variance, final_phi=final_phi)  # type: ignore[arg-type]
    if settings.solver == "heun":
        return plan_heun(grid, param=param)
    return plan_dpm_solver(grid, param=param, lower_order_final=settings.lower_order_final, final_phi=final_phi)


@dataclass
class SchedulerRun:
    """Where a run stands.

    Attributes:
        settings: The scheduler's, when the run was set up.
        grid: The angles it visits.
        param: What the network outputs.
        final_phi: The angle it ends at.
        plan: All updates.
        position: Index of the next update.
        memory: What a solver with memory keeps.
    """

    settings: SchedulerSettings
    grid: Schedule
    param: AngularParam
    final_phi: float
    plan: Plan = field(init=False)
    steps: tuple[PlannedStep, ...] = field(init=False)
    eta: float = 0.0
    position: int = 0
    memory: Tensor | None = None

    def __post_init__(self) -> None:
        self.plan = plan_of(self.settings, self.grid, self.param, final_phi=self.final_phi)
        if not len(self.plan):
            raise ValueError(
                f"timesteps must hold one above the final angle {self.final_phi!r}, got {self.grid.timesteps.tolist()}; "
                "use more steps, or final_sigmas_type='zero'"
            )
        self.steps = tuple(self.plan.steps())

    def seek(self, timestep: float, eta: float) -> PlannedStep:
        """The update at a timestep: the next one, or a fresh start elsewhere on the grid.

        A solver with memory that starts in the middle starts as at the top, with a first-order step. Of two equal timesteps
        (Heun's corrector, then the next step) a fresh start takes the second.

        Raises:
            ValueError: If the grid has no such timestep.
        """
        if eta != self.eta:
            eta = check_number(eta, "eta", low=0.0)
            self.plan = plan_of(self.settings, self.grid, self.param, eta=eta, final_phi=self.final_phi)
            self.steps, self.eta = tuple(self.plan.steps()), eta
        if self.position < len(self.steps) and same_time(self.steps[self.position].timestep, timestep):
            return self.steps[self.position]
        hits = np.flatnonzero(same_time(self.plan.timestep, timestep))
        if not len(hits):
            raise ValueError(
                f"timestep must be one of this run's {len(self.steps)} ({self.steps[0].timestep:g} .. "
                f"{self.steps[-1].timestep:g}), got {timestep!r}; take it from scheduler.timesteps, in float32 at least"
            )
        self.position, self.memory = int(hits[-1]), None
        if self.plan.has_memory:
            rest = self.grid.up_to(self.plan.timestep[self.position].item())
            lower = self.settings.lower_order_final and len(self.steps) < 15  # of the whole run, not of what is left
            settings = replace(self.settings, lower_order_final=lower)
            fresh = plan_of(settings, rest, self.param, final_phi=self.final_phi)
            whole = tuple(self.plan.steps())
            self.steps = whole[: self.position] + tuple(fresh.steps())
        return self.steps[self.position]

    def update(
        self, step: PlannedStep, u: Tensor, x: Tensor, *, noise: Tensor | None, keep_eps: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """``(x_s, x0, memory)`` without checks, ``x`` in at least float32; changes nothing.

        Clipping replaces u by the output whose x0 is the clipped one, at the same x_t. With ``keep_eps`` (DDIM of diffusers)
        the implied noise stays that of the unclipped u.
        """
        gain_u, gain_x = conversion_gains(step.phi_t, source=self.param, target=X0)
        x0 = combine(gain_x / self.grid.state.scale(step.phi_t), x, gain_u, u)
        excess: Tensor | None = None
        if self.settings.clip_sample:
            clipped = x0.clamp(-self.settings.clip_sample_range, self.settings.clip_sample_range)
            excess, x0 = clipped - x0, clipped
            if not keep_eps:
                u = u.to(x.dtype) + excess / float(gain_u)  # a float: phi_t is one
        if step.coefficients.is_stochastic:
            x_s, memory = apply_step(step.coefficients, u, x, noise=noise), self.memory
        else:
            x_s, memory = advance(step.coefficients, u, x, self.memory)
        if excess is not None and keep_eps:
            x_s = x_s + excess * (math.cos(step.phi_s) * self.grid.state.scale(step.phi_s))
        return x_s, x0, memory

    def done(self, memory: Tensor | None) -> None:
        """Note that the next update has been taken."""
        self.position, self.memory = self.position + 1, memory


def require_finite(previous: Tensor, original: Tensor, model_output: Tensor, sample: Tensor, timestep: float) -> None:
    """Refuse a result that is not finite, and say where it comes from."""
    try:
        check_finite(previous, "prev_sample", f"it overflowed {previous.dtype} at timestep {timestep:g}: use a wider dtype")
        check_finite(
            original, "pred_original_sample", f"it overflowed {original.dtype} at timestep {timestep:g}: use a wider dtype"
        )
    except NonFiniteError:
        check_finite(model_output, "model_output", f"the network made them at timestep {timestep:g}")
        check_finite(sample, "sample", f"they were there before the step at timestep {timestep:g}")
        raise
