r"""A sampling run before its first network call: one linear update per call, in float64.

Every solver of this package has the form

.. math::
    x_{k+1} = a_k x_k + b_k u_k + c_k m_k + n_k z_k, \qquad m_{k+1} = p_k x_k + q_k u_k

with the network output u, the state x and one memory m. So one loop runs them all (:func:`diffparam.sample`) and one
recursion propagates their errors (:func:`diffparam.predict_error`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from diffparam._checks import check_number, check_phi
from diffparam.errors import NonFiniteError, SingularParameterization
from diffparam.parameterization import AngularParam, check_param
from diffparam.schedule import Schedule
from diffparam.solvers.step import StepCoefficients
from diffparam.state import StateSpace


@dataclass(frozen=True)
class PlannedStep:
    """One network call and the update after it."""

    timestep: int | float
    phi_t: float
    phi_s: float
    coefficients: StepCoefficients


@dataclass(frozen=True, eq=False)
class Plan:
    """All updates of a run, as float64 arrays ``(calls,)`` in the order of the run.

    Attributes:
        solver: Its name.
        param: What the network outputs.
        state: Convention of the samples.
        timestep: What the network is told.
        phi_t: Angle of the state the network sees.
        phi_s: Angle of the state after the update.
        gain_u: b, on the output.
        gain_x: a, on the state.
        noise: n, on fresh standard normal noise.
        gain_m: c, on the memory.
        memory_u: q.
        memory_x: p.
    """

    solver: str
    param: AngularParam
    state: StateSpace
    timestep: np.ndarray
    phi_t: np.ndarray
    phi_s: np.ndarray
    gain_u: np.ndarray
    gain_x: np.ndarray
    noise: np.ndarray
    gain_m: np.ndarray
    memory_u: np.ndarray
    memory_x: np.ndarray

    def __post_init__(self) -> None:
        for name in ("timestep", "phi_t", "phi_s", *_GAINS):
            column = getattr(self, name)
            if not isinstance(column, np.ndarray) or column.shape != (len(self.timestep),):
                raise ValueError(f"{name} must be an array of one entry per call ({len(self.timestep)}), got {column!r}")
            if not np.isfinite(column).all():
                raise NonFiniteError(f"{name} must be finite, got {column[~np.isfinite(column)][0]}")

    def __len__(self) -> int:
        return len(self.timestep)

    def __repr__(self) -> str:
        return f"Plan({self.solver!r}, {self.param.name!r}, {len(self)} network calls, state {self.state.kind!r})"

    @property
    def has_memory(self) -> bool:
        """Whether any update reads the memory."""
        return bool(np.any(self.gain_m))

    @property
    def is_stochastic(self) -> bool:
        """Whether any update adds noise."""
        return bool(np.any(self.noise))

    def __iter__(self) -> Iterator[PlannedStep]:
        return self.steps()

    def __getitem__(self, index: int) -> PlannedStep:
        return list(self.steps())[index]

    def steps(self) -> Iterator[PlannedStep]:
        """The updates one by one, as Python numbers."""
        columns = (getattr(self, name) for name in _GAINS)
        for t, phi_t, phi_s, *gains in zip(
            *(c.tolist() for c in (self.timestep, self.phi_t, self.phi_s, *columns)), strict=True
        ):
            yield PlannedStep(t, phi_t, phi_s, StepCoefficients(*gains))

    def scaled_noise(self, temperature: float) -> Plan:
        """The same run with its noise multiplied by ``temperature`` (MAR's sampling temperature)."""
        return replace(self, noise=self.noise * check_number(temperature, "temperature", low=0.0))


_GAINS = ("gain_u", "gain_x", "noise", "gain_m", "memory_u", "memory_x")
"""As :class:`diffparam.StepCoefficients` has them."""


def make_plan(
    solver: str,
    schedule: Schedule,
    param: AngularParam,
    legs: tuple[np.ndarray, np.ndarray, np.ndarray],
    coefficients: Callable[[np.ndarray, np.ndarray], StepCoefficients],
) -> Plan:
    """A plan from legs ``(timestep, phi_t, phi_s)`` and the coefficients over all of them.

    Raises:
        SingularParameterization: If a step is singular; names its timestep.
    """
    check_param(param)
    timestep, phi_t, phi_s = legs
    try:
        step = coefficients(phi_t, phi_s)
    except SingularParameterization as error:
        at = timestep[np.argmin(np.abs(phi_t - error.phi))]
        raise SingularParameterization(error.param, error.phi, timestep=float(at)) from None
    return Plan(solver, param, schedule.state, timestep, phi_t, phi_s, *columns(step, len(timestep)))


def columns(step: StepCoefficients, count: int) -> list[np.ndarray]:
    """The fields of ``step`` in the order of :class:`Plan`, each as an array ``(count,)``."""
    return [np.array(np.broadcast_to(getattr(step, name), (count,)), dtype=np.float64) for name in _GAINS]


def legs_downwards(schedule: Schedule, final_phi: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(timestep, phi_t, phi_s)`` from the last angle of the schedule to ``final_phi``.

    Raises:
        ValueError: If ``final_phi`` is above the schedule or no angle.
    """
    final_phi = float(check_phi(final_phi, "final_phi"))
    phi = schedule.phi.numpy()
    if final_phi > phi[-1]:
        raise ValueError(f"final_phi must not be above the schedule's last angle {phi[-1]!r}, got {final_phi!r}")
    ends = np.concatenate(([final_phi], phi[:-1])).clip(min=final_phi)
    keep = phi > ends
    return schedule.timesteps.numpy()[keep][::-1], phi[keep][::-1].copy(), ends[keep][::-1].copy()


def legs_upwards(schedule: Schedule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(timestep, phi_t, phi_s)`` from the first angle of the schedule to the last."""
    phi = schedule.phi.numpy()
    return schedule.timesteps.numpy()[:-1], phi[:-1], phi[1:]
