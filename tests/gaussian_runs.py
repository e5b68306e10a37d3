"""Runs on zero-mean Gaussian data, where the ideal network is a number times the state, written from its definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffparam import (
    EPSILON,
    FLOW,
    SCORE,
    X0,
    AngularParam,
    ErrorModel,
    Plan,
    RoundingError,
    Schedule,
    V,
    plan_ddim,
    plan_ddpm,
    plan_dpm_solver,
    plan_heun,
    sample,
)

SOLVERS: dict[str, Callable[..., Plan]] = {
    "ddim": plan_ddim,
    "eta": lambda schedule, *, param: plan_ddim(schedule, param=param, eta=0.5),
    "ddpm": plan_ddpm,
    "upper": lambda schedule, *, param: plan_ddpm(schedule, param=param, variance="upper"),
    "dpm": plan_dpm_solver,
    "heun": plan_heun,
}
"""Every solver, the two variances of DDPM included."""
PARAMS = {"epsilon": EPSILON, "sample": X0, "v": V, "flow": FLOW, "score": SCORE, "edm": AngularParam.edm(0.5)}
COSINE = Schedule.cosine(1000)


def network(plan: Plan, sigma_data: float, table: Schedule | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """E[a x + b eps | x_t] = (a cos + b sin / sigma_d^2) / (cos^2 + sin^2 / sigma_d^2) x_t, at the angle of the told timestep.

    Between the timesteps of ``table`` the angle is interpolated; by default it is the plan's own.
    """
    order = np.argsort(plan.timestep, kind="stable")
    known = (plan.timestep[order], plan.phi_t[order]) if table is None else (table.timesteps.numpy(), table.phi.numpy())

    def model(x: Tensor, t: Tensor) -> Tensor:
        phi = float(np.interp(float(t[0]), *(np.asarray(v, dtype=np.float64) for v in known)))
        c, s = math.cos(phi), math.sin(phi)
        a, b = plan.param.coefficients(phi)
        return x * ((a * c * sigma_data**2 + b * s) / ((c * sigma_data) ** 2 + s**2) / plan.state.scale(phi))

    return model


def noise(plan: Plan, count: int, seed: int = 0) -> Tensor:
    """Where a sampler begins: unit variance in the variance-preserving state, ``(count, 1)`` in the plan's convention."""
    z = torch.randn(count, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return z * np.broadcast_to(plan.state.scale(plan.phi_t), (len(plan),))[0]


def run(plan: Plan, x: Tensor, sigma_data: float, *, table: Schedule | None = None, **errors: Any) -> Tensor:
    """The final sample; the plan's own noise is the same in every call."""
    draws = torch.Generator().manual_seed(11)
    return sample(network(plan, sigma_data, table), x, plan, generator=draws, **errors)


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def measured(plan: Plan, sigma_data: float, count: int = 20_000, *, table: Schedule | None = None, **errors: Any) -> float:
    """Rms over ``count`` samples of what the errors do to the final one."""
    x = noise(plan, count)
    return rms(run(plan, x, sigma_data, table=table, **errors) - run(plan, x, sigma_data))


@dataclass(frozen=True)
class OwnDraws(ErrorModel):
    """An error model with random numbers of its own, so that the run's noise stays the same."""

    error: ErrorModel
    generator: torch.Generator

    rms = 0.0
    scales_with_value = True

    def energy(self, mean_square: Any) -> Any:
        return self.error.energy(mean_square)

    def bound(self, mean_square: Any) -> Any:
        return self.error.bound(mean_square)

    def apply(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.error.apply(value, self.generator)


def own(error: ErrorModel) -> OwnDraws:
    return OwnDraws(error, torch.Generator().manual_seed(12))


BF16 = RoundingError("bfloat16")
NOTHING: dict[str, None] = {"output": None, "arithmetic": None, "state": None, "timestep": None}
"""A budget without sources: what it is to have is added."""


def only(**sources: Any) -> dict[str, Any]:
    """Arguments of a budget with these sources and no other."""
    return {**NOTHING, **sources}
