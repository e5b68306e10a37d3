"""The cases: parameterization x schedule x solver x steps, and what is put into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from diffparam import (
    EPSILON,
    FLOW,
    X0,
    AngularParam,
    Plan,
    Schedule,
    V,
    plan_ddim,
    plan_ddpm,
    plan_dpm_solver,
    plan_heun,
)

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "cosine": lambda: Schedule.cosine(1000),
    "linear": lambda: Schedule.linear(1000),
    "rectified_flow": lambda: Schedule.rectified_flow(1000),
}
SOLVERS: dict[str, Callable[..., Plan]] = {
    "ddim": plan_ddim,
    "ddpm": plan_ddpm,
    "dpm_solver": plan_dpm_solver,
    "heun": plan_heun,
}
FORMATS = ("bfloat16", "float16", "float8_e4m3", "float8_e5m2")
START = 980
"""Timestep that every run starts from: all five parameterizations and all four solvers are regular there."""


def params(sigma_data: float) -> dict[str, AngularParam]:
    """The five parameterizations for data of this standard deviation."""
    return {"epsilon": EPSILON, "sample": X0, "v": V, "flow": FLOW, "optimal": AngularParam.optimal(sigma_data)}


@dataclass(frozen=True)
class Case:
    """One run, without its precision.

    Attributes:
        schedule: Name in ``SCHEDULES``.
        solver: Name in ``SOLVERS``.
        param: Name in ``params``.
        steps: Steps of the sampler (Heun's has two calls in each).
        sigma_data: Standard deviation of the data.
    """

    schedule: str
    solver: str
    param: str
    steps: int
    sigma_data: float

    def plan(self) -> Plan:
        """The run, from t = 980 on a grid that keeps both ends."""
        schedule = SCHEDULES[self.schedule]()
        grid = schedule.up_to(START * schedule.timesteps[-1].item() / 999).respace(min(self.steps, START))
        return SOLVERS[self.solver](grid, param=params(self.sigma_data)[self.param])


def gaussian_cases(steps: tuple[int, ...], sigmas: tuple[float, ...]) -> Iterator[Case]:
    """Every combination."""
    for schedule in SCHEDULES:
        for solver in SOLVERS:
            for sigma_data in sigmas:
                for param in params(sigma_data):
                    for count in steps:
                        yield Case(schedule, solver, param, count, sigma_data)
