"""The run that a diffusers scheduler makes, from its config and without diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffparam.errors import UnknownName
from diffparam.integrations._scheduler_config import translate_config
from diffparam.integrations._scheduler_grid import grid_of_times, sampling_grid
from diffparam.integrations._scheduler_settings import SchedulerSettings
from diffparam.integrations.diffusers_config import param_from_config, schedule_from_config
from diffparam.parameterization import AngularParam
from diffparam.report.errors import BadInput
from diffparam.report.run import MAX_STEPS
from diffparam.report.scheduler_options import DEFAULTS, checked_options
from diffparam.schedule import SPACINGS, Schedule
from diffparam.state import VP

_SAME = {"DDIMParallelScheduler": "DDIMScheduler", "DDPMParallelScheduler": "DDPMScheduler"}
_STAND_INS = {
    "DEISMultistepScheduler": ("DEISMultistepScheduler", "ddim"),
    "DPMSolverSinglestepScheduler": ("DPMSolverMultistepScheduler", "dpm_solver"),
    "FlowMatchHeunDiscreteScheduler": ("FlowMatchEulerDiscreteScheduler", "ddim"),
    "KDPM2AncestralDiscreteScheduler": ("EulerAncestralDiscreteScheduler", "ddpm"),
    "KDPM2DiscreteScheduler": ("EulerDiscreteScheduler", "ddim"),
    "LCMScheduler": ("DDIMScheduler", "ddim"),
    "LMSDiscreteScheduler": ("LMSDiscreteScheduler", "ddim"),
    "PNDMScheduler": ("PNDMScheduler", "ddim"),
    "TCDScheduler": ("DDIMScheduler", "ddim"),
    "UniPCMultistepScheduler": ("UniPCMultistepScheduler", "dpm_solver"),
}
"""Whose grid and whose solver speak for a scheduler that has no plan of its own."""
_NAMES = {"dpm_solver++2m": "dpm_solver"}
_DISTILLED = ("LCMScheduler", "TCDScheduler")
"""They visit a part of the timesteps of their distillation, whatever ``timestep_spacing`` says."""
DEFAULT_STEPS = 50


@dataclass(frozen=True, eq=False)
class SchedulerRun:
    """What a config says of a run; the fields are those of :class:`diffparam.report.run.Run`."""

    name: str
    training: Schedule
    grid: Schedule
    param: AngularParam
    solver: str
    variance: str
    lower_order_final: bool
    final_phi: float
    sigma_data: float | None
    notes: tuple[str, ...]


def read_scheduler(
    config: Mapping[str, Any], *, steps: int | None = None, spacing: str | None = None, solver: str | None = None
) -> SchedulerRun:
    """The schedule, the grid, the solver and the parameterization behind a config.

    Args:
        config: The mapping in ``scheduler_config.json``; what it leaves out is its class's default.
        steps: Sampling steps; 50, or all where training has fewer.
        spacing: Instead of the config's: one of :data:`diffparam.schedule.SPACINGS`.
        solver: Instead of the class's own.

    Raises:
        BadInput: If a value is of the wrong kind, or an option is not covered.
        ValueError: If values contradict each other.
    """
    options = checked_options(config)
    name = options["_class_name"]
    if name.startswith("EDM"):
        return _edm(options, steps, spacing, solver)
    stand_in, stand_solver = _STAND_INS.get(name, (_SAME.get(name, name), None))
    notes = _notes(options, name, stand_solver, solver)
    told = {**DEFAULTS[name], **options, "_class_name": stand_in}
    if told.get("use_dynamic_shifting"):
        raise BadInput(
            "use_dynamic_shifting must be off, got on: its shift depends on the image; give one: "
            "--set use_dynamic_shifting=false --set shift=3.0 (flow_shift where that is its name)"
        )
    given = () if solver is None and stand_solver is None else ("solver",)
    told = {**told, "thresholding": False} if "thresholding" in told else told
    settings = _settings(told, given, spacing)
    training = settings.training_schedule()
    if name in _DISTILLED:
        if spacing is not None:
            raise BadInput(f"spacing must be left out for {name}, got {spacing!r}; it visits the timesteps of its distillation")
        grid = grid_of_times(settings, training, _distilled_times(told, len(training), steps))
    else:
        grid = sampling_grid(settings, training, step_count(steps, len(training)))
    if grid.state.kind == "ve" and settings.rescale_betas_zero_snr:
        training, grid = training.with_state(VP), grid.with_state(VP)
        notes += ("sigma is infinite at zero terminal SNR (diffusers puts 4096): reported in the variance-preserving state",)
    return SchedulerRun(
        name,
        training,
        grid,
        settings.param,
        solver or stand_solver or _NAMES.get(settings.solver, settings.solver),
        settings.variance,
        settings.lower_order_final,
        0.0 if settings.final_sigmas_type == "zero" else float(training.phi[0]),
        settings.sigma_data,
        notes,
    )


def _distilled_times(options: Mapping[str, Any], available: int, steps: int | None) -> np.ndarray:
    """Timesteps of LCM and TCD, rising: equally spaced among those of the distillation, from the noisiest."""
    original = options["original_inference_steps"]
    if not 1 <= original <= available:
        raise BadInput(f"original_inference_steps must lie in [1, {available}], got {original}")
    count = step_count(steps, original)
    visited = np.arange(original, 0, -1) * (available // original) - 1
    return visited[np.floor(np.linspace(0, original, count, endpoint=False)).astype(np.int64)][::-1].astype(np.float64)


def step_count(steps: int | None, available: int) -> int:
    """``steps``, or 50, or all where there are fewer.

    Raises:
        BadInput: If there are not that many.
    """
    if steps is None:
        return min(DEFAULT_STEPS, available)
    if not 1 <= steps <= min(available, MAX_STEPS):
        raise BadInput(f"steps must lie in [1, {min(available, MAX_STEPS)}] for this schedule, got {steps}")
    return steps


def _settings(told: dict[str, Any], given: tuple[str, ...], spacing: str | None) -> SchedulerSettings:
    defaults = DEFAULTS["AngularScheduler"]
    if told["_class_name"] == "AngularScheduler":
        translated = {key: told[key] for key in defaults}
    else:
        translated = translate_config(told, lambda name: DEFAULTS[name], given=given)
    if spacing is not None:
        if spacing not in SPACINGS:
            raise UnknownName("spacing", spacing, SPACINGS)
        offset = translated.get("steps_offset", 0) if spacing == "leading" else 0
        translated |= {"timestep_spacing": spacing, "sigma_spacing": None, "skip_lowest": False, "steps_offset": offset}
    return SchedulerSettings(**{**defaults, **{key: translated[key] for key in defaults if key in translated}})


def _edm(options: dict[str, Any], steps: int | None, spacing: str | None, solver: str | None) -> SchedulerRun:
    """EDM's schedulers: the grid is a ramp of its own, not a part of the training timesteps."""
    if spacing is not None:
        raise BadInput(f"spacing must be left out for an EDM scheduler, got {spacing!r}; its sigmas are Karras' ramp")
    told = {**DEFAULTS[options["_class_name"]], **options}
    training = schedule_from_config(told)
    count = step_count(steps, len(training))
    if count < 2:
        raise BadInput(f"steps must be at least 2 for an EDM scheduler, got {count}: its ramp runs between two sigmas")
    grid = schedule_from_config({**told, "num_train_timesteps": count})
    own = "ddim" if told["_class_name"] == "EDMEulerScheduler" else "dpm_solver"
    return SchedulerRun(
        told["_class_name"],
        training,
        grid,
        param_from_config(told),
        solver or own,
        "posterior",
        bool(told.get("lower_order_final", True)),
        0.0 if told["final_sigmas_type"] == "zero" else float(training.phi[0]),
        told["sigma_data"],
        (),
    )


def _notes(options: Mapping[str, Any], name: str, stand_in: str | None, solver: str | None) -> tuple[str, ...]:
    told = {**DEFAULTS[name], **options}
    notes = []
    if stand_in is not None and solver is None:
        notes.append(
            f"the solver of {name} has no plan here: {stand_in} on its grid stands in, good for the order of magnitude"
        )
    if told.get("clip_sample") or told.get("thresholding"):
        notes.append(
            "the scheduler clips the predicted clean sample, which the prediction leaves out: clipping hides a large error "
            "of the first steps, it does not undo it"
        )
    return tuple(notes)
