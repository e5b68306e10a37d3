r"""The sampling grid of an :class:`AngularScheduler`: which angles are visited, and which timestep the network is told at each.

A timestep and an angle always belong together. Timesteps are made float32 first, as networks get them, and the angle is that of
the rounded timestep; where a rule gives sigma first, the timestep is the one whose angle that is. So the network is never told
another time than that of its input.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from diffparam._checks import check_count
from diffparam.angle import HALF_PI
from diffparam.errors import NonFiniteError
from diffparam.integrations._scheduler_settings import SchedulerSettings
from diffparam.schedule import Schedule

TIME_TOLERANCE = 2.0**-23
"""Relative; timesteps come back in float32, half of this off."""
EDGE_TOLERANCE = 1e-3
"""Relative; published lists of sigmas carry four digits, and their first is the training schedule's last."""


def choose_grid(
    settings: SchedulerSettings,
    training: Schedule,
    *,
    num_steps: int | None,
    timesteps: Any = None,
    sigmas: Any = None,
    mu: float | None = None,
) -> tuple[Schedule, float]:
    """The grid and the angle to end at, from the arguments of ``AngularScheduler.set_timesteps``.

    Raises:
        ValueError: If not exactly one of the three is given (a flow's pipelines give ``num_steps`` beside the others).
    """
    given = [name for name, value in (("timesteps", timesteps), ("sigmas", sigmas)) if value is not None]
    if num_steps is not None and not (settings.use_flow_sigmas and given):
        given.insert(0, "num_inference_steps")
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise ValueError(f"exactly one of num_inference_steps, timesteps and sigmas must be given, got {got}")
    final_phi = 0.0 if settings.final_sigmas_type == "zero" else float(training.phi[0])
    if timesteps is not None:
        return grid_of_times(settings, training, rising(timesteps, "timesteps")), final_phi
    if sigmas is None:
        return sampling_grid(settings, training, num_steps, mu=mu), final_phi  # type: ignore[arg-type]
    visited = rising(sigmas, "sigmas")
    low, high = ("(0", "1]") if settings.use_flow_sigmas else ("[0", "inf)")
    if visited[0] < 0 or (settings.use_flow_sigmas and (visited[0] == 0 or visited[-1] > 1)):
        raise ValueError(f"sigmas must lie in {low}, {high}, got {sigmas!r}; of a flow they are its t, without the end at 0")
    if settings.use_flow_sigmas:
        return grid_of_sigmas(settings, training, visited, mu=mu), final_phi
    if len(visited) < 2:
        raise ValueError("sigmas must hold at least two, where to start and where to end, got 1; append 0.0")
    if settings.solver == "heun" and visited[0] > 0:
        raise ValueError(f"sigmas must end at 0 with solver 'heun', got {visited[0]:g}; append 0.0, or use 'dpm_solver++2m'")
    return grid_of_sigmas(settings, training, visited[1:]), float(np.arctan(visited[0]))


def sampling_grid(settings: SchedulerSettings, training: Schedule, num_steps: int, *, mu: float | None = None) -> Schedule:
    """``num_steps`` angles by the settings' spacing.

    Raises:
        ValueError: If there are more steps than the training schedule has, or the top sigma must be finite and is not.
    """
    num_steps = check_count(num_steps, "num_inference_steps", high=settings.num_train_timesteps)
    if settings.use_flow_sigmas:
        shift = settings.dynamic_shift(mu)
        total = settings.num_train_timesteps
        if settings.skip_lowest:
            t = np.linspace(0.0, 1.0 - 1.0 / total, num_steps + 1)[1:]
        else:  # the training schedule's own range, already shifted once, is spaced and then shifted
            first = 1.0 / total
            low = first if settings.use_dynamic_shifting else shift * first / (1.0 + (shift - 1.0) * first)
            t = np.linspace(1.0, low, num_steps)[::-1]
        return _flow_grid(settings, t, shift)
    times = _float32(_spaced_times(settings, training, num_steps))
    phi = _angles_in_table(settings, training, times)
    if settings.sigma_spacing is None and settings.timestep_type == "discrete":
        return _grid(settings, training, phi, times)
    if settings.sigma_max is None and phi[-1] == HALF_PI:
        raise ValueError(
            "sigma_max must be given where the terminal SNR is zero, got None: the schedule's own is infinite; or use "
            "sigma_spacing=None with timestep_type='discrete'"
        )
    sigmas = np.tan(phi)
    if settings.sigma_spacing is not None:
        low = sigmas[0] if settings.sigma_min is None else settings.sigma_min
        high = sigmas[-1] if settings.sigma_max is None else settings.sigma_max
        sigmas = _sigma_ramp(settings.sigma_spacing, float(low), float(high), num_steps)
    return grid_of_sigmas(settings, training, sigmas)


def grid_of_times(settings: SchedulerSettings, training: Schedule, times: np.ndarray) -> Schedule:
    """The grid that visits these timesteps, rising, float64."""
    times = _float32(times)
    return _grid(settings, training, angles_of_times(settings, training, times), times)


def grid_of_sigmas(settings: SchedulerSettings, training: Schedule, sigmas: np.ndarray, *, mu: float | None = None) -> Schedule:
    """The grid that visits these sigmas, rising: tan(phi), or the flow's t before its shift.

    Raises:
        ValueError: If a sigma lies outside the training schedule, where no timestep belongs to it.
    """
    if settings.use_flow_sigmas:
        return _flow_grid(settings, sigmas, settings.dynamic_shift(mu))
    return _grid(settings, training, np.arctan(sigmas), _times_of_sigmas(settings, training, sigmas))


def angles_of_times(settings: SchedulerSettings, training: Schedule, times: np.ndarray) -> np.ndarray:
    """The angle at each timestep, whether or not it is on the training schedule.

    Flow: ``t`` is the share of the noise, times the number of steps. Continuous: ``t = log(sigma) / 4``. Betas: the table, and
    between two entries sigma is interpolated linearly where the settings say so.

    Raises:
        ValueError: If no angle belongs to a timestep.
    """
    if not np.isfinite(times).all():
        raise NonFiniteError(f"timesteps must be finite, got {times[~np.isfinite(times)].flat[0]}; take scheduler.timesteps")
    if settings.use_flow_sigmas:
        share = times / settings.num_train_timesteps
        _require(times, (share >= 0) & (share <= 1), f"lie in [0, {settings.num_train_timesteps}]")
        return np.arctan2(share, 1.0 - share)
    if settings.timestep_type == "continuous":
        return np.arctan(np.exp(4.0 * times))
    return _angles_in_table(settings, training, times)


def find(table: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Where each of ``times`` stands in ``table``, rising; -1 for those that do not."""
    above = np.searchsorted(table, times).clip(max=len(table) - 1)
    below = (above - 1).clip(min=0)
    index = np.where(np.abs(table[above] - times) <= np.abs(table[below] - times), above, below)
    return np.where(same_time(table[index], times), index, -1)


def same_time(a: Any, b: Any) -> Any:
    """Whether two timesteps are one, up to float32."""
    return np.abs(a - b) <= TIME_TOLERANCE * np.abs(a)


def _angles_in_table(settings: SchedulerSettings, training: Schedule, times: np.ndarray) -> np.ndarray:
    table = training.phi.numpy()
    _require(times, (times >= 0) & (times <= len(table) - 1), f"lie in [0, {len(table) - 1}]")
    below = np.floor(times).astype(np.int64)
    share = times - below
    if settings.interpolation_type is None:
        _require(times, share == 0, "be whole numbers unless interpolation_type is 'linear'")
    above = np.minimum(below + 1, len(table) - 1)
    _require(times, (share == 0) | (table[above] < HALF_PI), "be whole between the last two, of which one has zero SNR")
    between = np.arctan((1.0 - share) * np.tan(table[below]) + share * np.tan(table[above]))
    return np.where(share == 0, table[below], between)


def _spaced_times(settings: SchedulerSettings, training: Schedule, num_steps: int) -> np.ndarray:
    spacing, skip = settings.timestep_spacing, settings.skip_lowest and settings.timestep_spacing != "trailing"
    if settings.interpolation_type == "linear" and spacing == "linspace":
        if num_steps + skip < 2:
            raise ValueError("num_inference_steps must be at least 2 for 'linspace', which keeps both ends, got 1")
        return np.linspace(0.0, len(training) - 1.0, num_steps + skip)[int(skip) :]
    offset = settings.steps_offset if spacing == "leading" else 0  # as in diffusers, only leading has one
    if skip and num_steps == len(training):
        raise ValueError(f"num_inference_steps must be below {num_steps} with skip_lowest, got {num_steps}")
    grid = training.respace(num_steps + skip, spacing, offset=offset)
    return grid.timesteps.double().numpy()[int(skip) :]


def _sigma_ramp(kind: str, low: float, high: float, count: int) -> np.ndarray:
    """``count`` sigmas from ``low`` to ``high``, both kept exactly.

    Karras et al. 2022, eq. 5 with rho = 7; a geometric ramp; or the quantiles of Beta(0.6, 0.6) (Lee et al. 2024).
    """
    if count == 1:
        return np.array([high])
    ramp = np.linspace(0.0, 1.0, count)
    if kind == "karras":
        sigmas = (low ** (1 / 7) + ramp * (high ** (1 / 7) - low ** (1 / 7))) ** 7
    elif kind == "exponential":
        sigmas = low * (high / low) ** ramp
    else:
        sigmas = low + betaincinv(0.6, 0.6, ramp) * (high - low)
    sigmas[0], sigmas[-1] = low, high
    return sigmas


def _times_of_sigmas(settings: SchedulerSettings, training: Schedule, sigmas: np.ndarray) -> np.ndarray:
    """The timestep of each sigma: log(sigma) / 4, or interpolated in log(sigma) between the training schedule's."""
    if settings.timestep_type == "continuous":
        return np.log(sigmas) / 4.0
    finite = training.phi.numpy()[training.phi.numpy() < HALF_PI]
    table = np.tan(finite)
    inside = (sigmas >= table[0] * (1 - EDGE_TOLERANCE)) & (sigmas <= table[-1] * (1 + EDGE_TOLERANCE))
    if not inside.all():
        raise ValueError(
            f"sigmas must lie in [{table[0]:.6g}, {table[-1]:.6g}], the training schedule's, got {sigmas[~inside][0]:.6g}; no "
            "timestep belongs to another one, unless timestep_type is 'continuous'"
        )
    return np.interp(np.log(sigmas), np.log(table), np.arange(len(table), dtype=np.float64))


def _flow_grid(settings: SchedulerSettings, t: np.ndarray, shift: float) -> Schedule:
    noise, signal = shift * t, 1.0 - t  # in the ratio of the shifted pair
    times = settings.num_train_timesteps * (noise / (noise + signal))
    return Schedule(
        torch.atan2(*map(torch.from_numpy, (noise, signal))), torch.from_numpy(times), settings.sampler_state, "grid"
    )


def _grid(settings: SchedulerSettings, training: Schedule, phi: np.ndarray, times: np.ndarray) -> Schedule:
    whole = settings.sampler_state.kind == "vp" and bool((times == np.round(times)).all())
    told = torch.from_numpy(times.astype(np.int64) if whole else times)
    return replace(training, phi=torch.from_numpy(phi), timesteps=told, name=f"{training.name}, {len(phi)} steps")


def rising(values: Any, name: str) -> np.ndarray:
    """A user's falling list as a rising float64 array.

    Raises:
        ValueError: If it is empty or does not fall.
        NonFiniteError: If a value is not finite.
    """
    listed = values.detach().cpu() if isinstance(values, Tensor) else values
    array = np.asarray(listed, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} must be one-dimensional and not empty, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    if (np.diff(array) >= 0).any():
        at = int(np.argmax(np.diff(array) >= 0))
        raise ValueError(
            f"{name} must fall, got {array[at]:g} then {array[at + 1]:g} at position {at}; a run goes from noise to data"
        )
    return array[::-1].copy()


def _float32(times: np.ndarray) -> np.ndarray:
    return times.astype(np.float32).astype(np.float64)


def _require(times: np.ndarray, holds: np.ndarray, rule: str) -> None:
    if not holds.all():
        raise ValueError(f"timesteps must {rule}, got {times[~holds].flat[0]:g}; take them from scheduler.timesteps")
