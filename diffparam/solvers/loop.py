"""Running a plan: one loop for every solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffparam._checks import check_finite, check_increments, check_pair, check_sample
from diffparam.error_model import ErrorModel, check_error_model
from diffparam.network_error import NetworkError
from diffparam.parameterization import AngularParam
from diffparam.rounding import FloatFormat, parse_format
from diffparam.schedule import Schedule
from diffparam.solvers.ddim import plan_ddim
from diffparam.solvers.plan import Plan, PlannedStep
from diffparam.solvers.step import advance, advance_rounded

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


def sample(
    model: Model,
    x_init: Tensor,
    plan: Plan,
    *,
    noise: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
    output_error: ErrorModel | None = None,
    state_error: ErrorModel | None = None,
    coefficient_error: ErrorModel | None = None,
    timestep_error: ErrorModel | None = None,
    arithmetic: str | FloatFormat | None = None,
    increments: bool = False,
    record: Trajectory | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Run any solver's plan: :func:`plan_ddim`, :func:`plan_ddpm`, :func:`plan_dpm_solver`, :func:`plan_heun`.

    Args:
        model: ``model(x_t, t)`` with ``x_t`` like ``x_init`` and ``t`` of shape ``(batch,)``; its output may be of another
            dtype (bf16) than the state.
        x_init: The state at the plan's first angle in its convention, ``(batch, *event)``; sets dtype and device.
        plan: The run.
        noise: ``noise(x)``, standard normal numbers like the state, asked for before each update that adds some; drawn from
            ``generator`` if missing. With it the items of a batch can have sources of their own.
        generator: Source of all other random numbers, on the device of ``x_init``.
        output_error: Error put on each network output; a :class:`NetworkError` with one entry per call, on its own call.
        state_error: Error put on each new state, as storing it would.
        coefficient_error: Error put on each step's coefficients.
        timestep_error: Error put on the timesteps that the model is told.
        arithmetic: Format in which to emulate the update, every product and sum rounded; by default at least float32.
        increments: With ``arithmetic``: compute ``x + ((gain_x - 1) x + gain_u u)`` in the place of ``gain_x x + gain_u u``. A
            cosine near 1 is 1 in bf16, its distance from 1 is not.
        record: An empty :class:`Trajectory` to fill; without it the state, the output and the next state are held, and the
            memory of a solver that has one.
        on_step: Called as ``on_step(done, total)`` after each network call.

    Returns:
        The state at the plan's last angle, like ``x_init``.

    Raises:
        TypeError: If the model returns no floating-point tensor, or an error is no error model.
        ValueError: If the model returns another shape, or ``increments`` comes without ``arithmetic``.
        NonFiniteError: If the result is not finite.
    """
    check_sample(x_init, "x_init")
    if x_init.ndim < 1:
        raise ValueError("x_init must have a batch dimension, got a scalar; use shape (1, ...)")
    check_finite(x_init, "x_init", "draw it with torch.randn")
    errors = {"output": output_error, "state": state_error, "coefficient": coefficient_error, "timestep": timestep_error}
    for source, error in errors.items():
        check_error_model(error, f"{source}_error")
        _check_calls(error, f"{source}_error", len(plan))
    if record is not None and (record.phi or record.states):
        raise ValueError(f"record must be empty, got one of {len(record.outputs)} steps; pass a new Trajectory()")
    fmt = None if arithmetic is None else parse_format(arithmetic)
    check_increments(increments, fmt)
    x, memory = x_init, None
    for done, step in enumerate(plan.steps(), start=1):
        u = model(x, _told(step.timestep, x, timestep_error, generator))
        check_output(u, x, step.timestep)
        if output_error is not None:
            u = _error_of_call(output_error, done - 1).apply(u, generator)
        if record is not None:
            _note(record, step, x, u)
        coefficients = step.coefficients
        if coefficient_error is not None:
            coefficients = coefficients.perturbed(coefficient_error, generator, increments=increments)
        z = noise(x) if noise is not None and coefficients.is_stochastic else None
        if z is not None:
            check_pair(z, x, ("noise", "x"))
        if fmt is None:
            x, memory = advance(coefficients, u, x, memory, noise=z, generator=generator)
        else:
            x, memory = advance_rounded(coefficients, u, x, memory, fmt, increments=increments, noise=z, generator=generator)
        if state_error is not None:
            x = state_error.apply(x, generator)
        if on_step is not None:
            on_step(done, len(plan))
    if record is not None and len(plan):
        record.phi.append(float(plan.phi_s[-1]))
        record.states.append(x)
    check_finite(x, "the final sample", "pass record=Trajectory() to see at which timestep it began")
    return x


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
    plan = plan_ddim(schedule, param=param, eta=eta, final_phi=final_phi)
    return sample(
        model,
        x_init,
        plan,
        generator=generator,
        output_error=output_error,
        state_error=state_error,
        coefficient_error=coefficient_error,
        record=record,
        on_step=on_step,
    )


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
    return sample(
        model,
        x,
        plan_ddim(schedule, param=param, upwards=True),
        generator=generator,
        output_error=output_error,
        state_error=state_error,
        coefficient_error=coefficient_error,
        record=record,
        on_step=on_step,
    )


def check_output(u: Any, x: Tensor, timestep: float) -> None:
    """What a sampler can step with: one floating-point tensor of the shape of the state.

    Raises:
        TypeError: If it is something else (a tuple, an object of outputs), or of integers or complex numbers.
        ValueError: If it has another shape.
    """
    if not isinstance(u, Tensor) or not u.is_floating_point():
        got = f"dtype {u.dtype}" if isinstance(u, Tensor) else type(u).__name__
        raise TypeError(
            f"model must return one floating-point tensor, got {got} at t = {timestep}; wrap it in a function that returns the "
            "tensor, as lambda x, t: model(x, t).sample"
        )
    if u.shape != x.shape:
        raise ValueError(f"model must return the shape of its input {tuple(x.shape)}, got {tuple(u.shape)} at t = {timestep}")


def timestep_tensor(timestep: float, x: Tensor) -> Tensor:
    """``(batch,)`` copies of a timestep on the device of ``x``: int64 where it is an integer, else the widest float."""
    return torch.full(x.shape[:1], timestep, device=x.device, dtype=_timestep_dtype(timestep, x))


def _error_of_call(error: ErrorModel, call: int) -> ErrorModel:
    """A calibrated error may differ from call to call."""
    return error.of_call(call) if isinstance(error, NetworkError) and error.is_per_call else error


def _check_calls(error: ErrorModel | None, name: str, calls: int) -> None:
    """A calibrated error that differs from call to call is of one plan, and of its outputs."""
    if not isinstance(error, NetworkError) or not error.is_per_call:
        return
    if name != "output_error":
        raise ValueError(f"{name} must be of one call, got one of {len(error)} calls; use error.of_call(k)")
    if len(error) != calls:
        raise ValueError(
            f"{name} must have one entry per call of the plan ({calls}), got {len(error)}; take Calibration.at(plan)"
        )


def _told(timestep: int | float, x: Tensor, error: ErrorModel | None, generator: torch.Generator | None) -> Tensor:
    if error is None:
        return timestep_tensor(timestep, x)
    return error.apply(timestep_tensor(float(timestep), x), generator)


def _timestep_dtype(timestep: int | float, x: Tensor) -> torch.dtype:
    if isinstance(timestep, int):
        return torch.int64
    return torch.float32 if x.device.type == "mps" else torch.float64


def _note(record: Trajectory, step: PlannedStep, x: Tensor, u: Tensor) -> None:
    record.phi.append(step.phi_t)
    record.timesteps.append(step.timestep)
    record.states.append(x)
    record.outputs.append(u)
