"""From standard normal noise to tokens: a plan of diffparam, run with noise from each row's own generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffparam import (
    AngularParam,
    Plan,
    Schedule,
    guide,
    largest_safe_timestep,
    plan_ddim,
    plan_ddpm,
    plan_dpm_solver,
    plan_heun,
    sample,
)
from mmar.generation.randomness import draw_normal
from mmar.generation.settings import ImageGenerationConfig

Network = Callable[[Tensor, Tensor], Tensor]
"""``network(x_t, t)``: ``(rows, n, C), (rows,)`` to the output, float32."""


def solver_plan(settings: ImageGenerationConfig, schedule: Schedule, param: AngularParam, steps: int) -> Plan:
    """The updates of a run of ``steps`` steps, fractionally respaced (both ends of the schedule are kept).

    Raises:
        ValueError: If there are more steps than timesteps, or the first step is singular; names ``max_timestep``.
    """
    grid = starting_schedule(settings, schedule, param)
    if steps > len(grid):
        raise ValueError(f"head_steps must be at most the {len(grid)} timesteps of the schedule, got {steps}")
    grid = grid.respace(steps) if steps > 1 else grid.respace(1, "trailing")
    try:
        return _plan(settings, grid, param).scaled_noise(settings.temperature)
    except ValueError as error:
        last = grid.timesteps[-1].item()
        raise ValueError(
            f"max_timestep must be below {last:g} for {param.name} with {settings.solver}, got {settings.max_timestep!r}; "
            f"'safe' finds one ({error})"
        ) from error


def starting_schedule(settings: ImageGenerationConfig, schedule: Schedule, param: AngularParam) -> Schedule:
    """The part of the training schedule that sampling runs through."""
    if settings.max_timestep is None:
        return schedule
    highest = settings.max_timestep
    if highest == "safe":
        found = largest_safe_timestep(schedule, param=param, delta="unit_roundoff")
        if found is None:
            raise ValueError(f"max_timestep must be a number for {param.name}, got 'safe'; no timestep of the schedule is")
        highest = found
    return schedule.up_to(highest)


def _plan(settings: ImageGenerationConfig, grid: Schedule, param: AngularParam) -> Plan:
    if settings.solver == "ddpm":
        return plan_ddpm(grid, param=param)
    if settings.solver == "ddim":
        return plan_ddim(grid, param=param, eta=settings.eta)
    return (plan_dpm_solver if settings.solver == "dpm_solver" else plan_heun)(grid, param=param)


def solve(
    network: Network,
    plan: Plan,
    sources: Sequence[torch.Generator],
    shape: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Run a plan for one ``shape = (n, C)`` per row.

    Args:
        network: The model.
        plan: The run.
        sources: One generator per row; each gives its first noise, then the noise of each update, in one draw.
        shape: Of one row.
        device: Where to run.
        dtype: Of the state; bfloat16 also rounds every product and sum of the updates, which are then computed as changes of
            the state (``increments`` of :func:`diffparam.sample`): a gain near 1, of which bf16 keeps little, is not needed.

    Returns:
        ``(rows, n, C)`` float32.
    """
    draws = 1 + int((plan.noise != 0).sum())
    noise = draw_normal(sources, (draws, *shape), device).to(dtype)  # (rows, draws, n, C)
    later = iter(noise[:, 1:].unbind(1))
    x_init = noise[:, 0] * plan.state.scale(float(plan.phi_t[0]))  # (rows, n, C): unit variance, in the schedule's convention
    coarse = dtype is torch.bfloat16
    x_0 = sample(
        lambda x_t, t: network(x_t, t).to(dtype),
        x_init,
        plan,
        noise=lambda _: next(later),
        arithmetic="bfloat16" if coarse else None,
        increments=coarse,
    )
    return x_0.float()


def guided(outputs: Tensor, omega: float) -> Tensor:
    """``(branches, ...)``, conditional then unconditional, to ``(...)``; the only branch where there is one (section 3.3.4)."""
    return outputs[0] if len(outputs) == 1 else guide(outputs[1], outputs[0], omega)
