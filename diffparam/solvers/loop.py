"""Sampling and inversion along a schedule with the DDIM step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffparam._checks import check_finite, check_phi, check_sample
from diffparam.error_model import ErrorModel
from diffparam.errors import SingularParameterization
from diffparam.parameterization import AngularParam
from diffparam.schedule import Schedule
from diffparam.solvers.ddim import StepCoefficients, apply_step, ddim_coefficients

Model = Callable[[Tensor, Tensor], Tensor]
"""``model(x_t, t)``: the network output for the state ``(batch, *event)`` and timesteps ``(batch,)``."""


@dataclass
class Trajectory:
    """What a sampler saw, on request: pass an empty one as ``record``.

    Attributes:
        phi: Angle before each step, then the last one, radians.
        timesteps: Timestep of each step.
        states: State at each angle of ``phi``.
        outputs: Network output of each step, with its injected error.
    """

    phi: list[float] = field(default_factory=list)
    timesteps: list[float] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class PlannedStep:
    """A step with its coefficients ready."""

    timestep: int | float
    phi_t: float
    phi_s: float
    coefficients: StepCoefficients


def plan_ddim(
    schedule: Schedule, *, param: AngularParam, eta: float = 0.0, final_phi: float = 0.0, upwards: bool = False
) -> list[PlannedStep]:
    """All steps of :func:`ddim_sample` (or, ``upwards``, of :func:`ddim_invert`), before the first network call.

    Raises:
        SingularParameterization: If a step is singular; names its timestep.
        ValueError: If ``final_phi`` is above the schedule.
    """
    phi: Sequence[float] = schedule.phi.tolist()
    timesteps: Sequence[int | float] = schedule.timesteps.tolist()
    if upwards:
        legs = list(zip(timesteps[:-1], phi[:-1], phi[1:], strict=True))
    else:
        if final_phi > phi[-1]:
            raise ValueError(f"final_phi must not be above the schedule's last angle {phi[-1]!r}, got {final_phi!r}")
        ends = [final_phi, *(max(p, final_phi) for p in phi[:-1])]
        legs = [leg for leg in zip(timesteps[::-1], phi[::-1], ends[::-1], strict=True) if leg[1] > leg[2]]
    steps = []
    for t, phi_t, phi_s in legs:
        try:
            coefficients = ddim_coefficients(phi_t, phi_s, param=param, eta=eta, state=schedule.state)
        except SingularParameterization as error:
            raise SingularParameterization(error.param, error.phi, timestep=t) from None
        steps.append(PlannedStep(t, phi_t, phi_s, coefficients))
    return steps


def ddim_sample(
    model: Model,
    x_init: Tensor,
    schedule: Schedule,
    *,
    param: AngularParam,
    eta: float = 0.0,
    final_phi: float = 0.0,
    generator: torch.Generator | None = None,
    output_error: ErrorModel | None = None,
    state_error: ErrorModel | None = None,
    coefficient_error: ErrorModel | None = None,
    record: Trajectory | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Sample from noise to data along all angles of ``schedule``, from the last to ``final_phi``.

    Args:
        model: ``model(x_t, t)`` with ``x_t`` like ``x_init`` and ``t`` of shape ``(batch,)``, timesteps of ``schedule``; its
            output may be of another dtype (bf16) than the state.
        x_init: Noise at the schedule's last angle in its state convention, ``(batch, *event)``; sets dtype and device.
        schedule: The sampling grid: see :meth:`Schedule.respace`.
        param: What the model's output means.
        eta: As in :func:`ddim_step`.
        final_phi: Angle to end at, radians; 0 is clean data.
        generator: Source of all random numbers, on the device of ``x_init``.
        output_error: Error put on each network output.
        state_error: Error put on each new state, as storing it would.
        coefficient_error: Error put on each step's coefficients.
        record: An empty :class:`Trajectory` to fill; without it three states are held at most.
        on_step: Called as ``on_step(done, total)`` after each step.

    Returns:
        The sample at ``final_phi``, like ``x_init``.

    Raises:
        SingularParameterization: Before the first network call, with the timestep.
        ValueError: If ``final_phi`` is above the schedule, or the model returns another shape.
        NonFiniteError: If the result is not finite.
    """
    final_phi = float(check_phi(final_phi, "final_phi"))
    plan = plan_ddim(schedule, param=param, eta=eta, final_phi=final_phi)
    errors = (output_error, state_error, coefficient_error)
    return _run(model, x_init, plan, errors, generator, record, on_step)


def ddim_invert(
    model: Model,
    x: Tensor,
    schedule: Schedule,
    *,
    param: AngularParam,
    generator: torch.Generator | None = None,
    output_error: ErrorModel | None = None,
    state_error: ErrorModel | None = None,
    coefficient_error: ErrorModel | None = None,
    record: Trajectory | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """DDIM inversion: the same steps upwards, from the schedule's first angle to its last.

    ``x`` is the sample at the first angle; a clean sample is that up to sin(phi_0) of noise. Arguments as
    :func:`ddim_sample`.
    """
    plan = plan_ddim(schedule, param=param, upwards=True)
    errors = (output_error, state_error, coefficient_error)
    return _run(model, x, plan, errors, generator, record, on_step)


def _run(
    model: Model,
    x: Tensor,
    plan: Sequence[PlannedStep],
    errors: tuple[ErrorModel | None, ErrorModel | None, ErrorModel | None],
    generator: torch.Generator | None,
    record: Trajectory | None,
    on_step: Callable[[int, int], None] | None,
) -> Tensor:
    check_sample(x, "x_init")
    if x.ndim < 1:
        raise ValueError("x_init must have a batch dimension, got a scalar; use shape (1, ...)")
    check_finite(x, "x_init", "draw it with torch.randn")
    output_error, state_error, coefficient_error = errors
    for done, step in enumerate(plan, start=1):
        u = model(x, torch.full(x.shape[:1], step.timestep, device=x.device, dtype=_timestep_dtype(step.timestep, x)))
        if u.shape != x.shape:
            raise ValueError(
                f"model must return the shape of its input {tuple(x.shape)}, got {tuple(u.shape)} at t = {step.timestep}"
            )
        if output_error is not None:
            u = output_error.apply(u, generator)
        if record is not None:
            _note(record, step, x, u)
        coefficients = step.coefficients
        if coefficient_error is not None:
            coefficients = coefficients.perturbed(coefficient_error, generator)
        x = apply_step(coefficients, u, x, generator=generator)
        if state_error is not None:
            x = state_error.apply(x, generator)
        if on_step is not None:
            on_step(done, len(plan))
    if record is not None and plan:
        record.phi.append(plan[-1].phi_s)
        record.states.append(x)
    check_finite(x, "the final sample", "pass record=Trajectory() to see at which timestep it began")
    return x


def _timestep_dtype(timestep: int | float, x: Tensor) -> torch.dtype:
    if isinstance(timestep, int):
        return torch.int64
    return torch.float32 if x.device.type == "mps" else torch.float64


def _note(record: Trajectory, step: PlannedStep, x: Tensor, u: Tensor) -> None:
    record.phi.append(step.phi_t)
    record.timesteps.append(step.timestep)
    record.states.append(x)
    record.outputs.append(u)
