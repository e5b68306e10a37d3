"""Other schedulers' configurations in the terms of :class:`AngularScheduler`.

A value that was left at its class's default is a choice of that class, so it is translated like any other: diffusers' own
``from_config`` drops it and takes the new class's default, which changes the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from diffparam.errors import UnknownName

OWN_NAME = "AngularScheduler"

_SOLVERS = {
    "DDIMScheduler": ("ddim", "vp"),
    "DDPMScheduler": ("ddpm", "vp"),
    "DPMSolverMultistepScheduler": ("dpm_solver++2m", "vp"),
    "EulerDiscreteScheduler": ("ddim", "ve"),
    "EulerAncestralDiscreteScheduler": ("ddpm", "ve"),
    "HeunDiscreteScheduler": ("heun", "ve"),
    "FlowMatchEulerDiscreteScheduler": ("ddim", "flow"),
}
"""Solver and convention of the samples."""
_WITHOUT_SOLVER = ("DEISMultistepScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler")
"""Their schedules are read; their solvers are not among ours."""
READABLE = (*_SOLVERS, *_WITHOUT_SOLVER)

_INTERPOLATING = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler")
_SKIPPING = ("DPMSolverMultistepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler")
_SAME_NAME = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    *("use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "time_shift_type", "prediction_type", "lower_order_final"),
    *("timestep_spacing", "steps_offset", "final_sigmas_type", "sigma_min", "sigma_max", "clip_sample", "clip_sample_range"),
)
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "thresholding": (False,),
    "interpolation_type": ("linear",),
    "use_lu_lambdas": (False,),
    "lambda_min_clipped": (-math.inf,),
    "invert_sigmas": (False,),
    "shift_terminal": (None,),
    "stochastic_sampling": (False,),
}
"""What is not covered, unless it has one of these values."""
_REQUIRED_OF_DPM_SOLVER: dict[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver++",),
    "solver_order": (1, 2),
    "solver_type": ("midpoint",),
    "variance_type": (None,),
}
_VARIANCES = {
    "fixed_small": "posterior",
    "fixed_small_log": "posterior",
    "fixed_large": "upper",
    "fixed_large_log": "upper",
}


def translate_config(
    config: Mapping[str, Any], defaults_of: Callable[[str], dict[str, Any]], *, given: Collection[str] = ()
) -> dict[str, Any]:
    """Every option of :class:`AngularScheduler` that another scheduler's config speaks of.

    Args:
        config: ``scheduler.config``, or a parsed ``scheduler_config.json``.
        defaults_of: The constructor's defaults of a class of :data:`READABLE`, by its name.
        given: Options that the caller sets, which need no translation.

    Raises:
        UnknownName: For a class that cannot be read.
        ValueError: If the class cannot be told, its solver is not one of ours, or an option is not covered.
    """
    name = class_of(config, defaults_of)
    if name == OWN_NAME:
        return {}
    defaults = defaults_of(name)
    told = {**defaults, **{key: config[key] for key in defaults if key in config}}
    _require(told, name, _REQUIRED)
    ours = {key: told[key] for key in _SAME_NAME if key in told}
    flow = bool(ours.setdefault("use_flow_sigmas", False))
    if name == "FlowMatchEulerDiscreteScheduler":
        flow = True
        ours |= {"use_flow_sigmas": True, "flow_shift": told["shift"], "prediction_type": "flow_prediction"}
    ours["skip_lowest"] = name in _SKIPPING
    ours["interpolation_type"] = "linear" if name in _INTERPOLATING else None
    if told.get("set_alpha_to_one") is False:
        ours["final_sigmas_type"] = "sigma_min"
    ours["sigma_spacing"] = next((kind for kind in ("karras", "exponential", "beta") if told.get(f"use_{kind}_sigmas")), None)
    if ours["sigma_spacing"] and name in _SKIPPING:  # between the ends of training, whatever the spacing
        ours |= {"timestep_spacing": "linspace", "steps_offset": 0, "skip_lowest": False}
    # As there: EDM's time is told to v networks only.
    continuous = told.get("timestep_type") == "continuous" and told["prediction_type"] == "v_prediction"
    ours["timestep_type"] = "continuous" if continuous else "discrete"
    return {**ours, **_solver_options(name, told, flow, given)}


def class_of(config: Mapping[str, Any], defaults_of: Callable[[str], dict[str, Any]]) -> str:
    """The class a config is of: named in it, or the one whose options it holds (``scheduler.config`` leaves the name out)."""
    if not isinstance(config, Mapping):
        raise TypeError(
            f"config must be a mapping (scheduler.config or a parsed scheduler_config.json), got {type(config).__name__}"
        )
    name = config.get("_class_name")
    if name is not None:
        if name not in (OWN_NAME, *READABLE):
            raise UnknownName("_class_name", name, (OWN_NAME, *READABLE))
        return str(name)
    options = {known: set(defaults_of(known)) for known in READABLE}
    left_out = set(config.get("_use_default_values") or ())
    fits = [known for known, names in options.items() if left_out <= names <= set(config)]
    fits = [known for known in fits if not any(options[known] < options[other] for other in fits)]
    if len(fits) == 1:
        return fits[0]
    if not fits and not left_out:
        return OWN_NAME  # a plain dictionary of options
    raise ValueError(
        f"_class_name must be in the config, which could be of {', '.join(fits) or 'none that is known'}; "
        'add it: {"_class_name": type(scheduler).__name__, **scheduler.config}'
    )


def _solver_options(name: str, told: Mapping[str, Any], flow: bool, given: Collection[str]) -> dict[str, Any]:
    if name not in _SOLVERS:
        if "solver" not in given:
            raise ValueError(
                f"solver must be given for the config of a {name}, got none: its own is not one of ours; pass solver='ddim'"
            )
        return {}
    solver, state = _SOLVERS[name]
    out: dict[str, Any] = {"state": "flow" if flow else state}
    if "solver" in given:
        return out
    out["solver"] = solver
    if name == "DDPMScheduler" and "variance" not in given:
        if told["variance_type"] not in _VARIANCES:
            raise UnknownName("variance_type", told["variance_type"], _VARIANCES, "Or pass variance='posterior'.")
        out["variance"] = _VARIANCES[told["variance_type"]]
    if name == "DPMSolverMultistepScheduler":
        _require(told, name, _REQUIRED_OF_DPM_SOLVER, remedy="or pass solver='dpm_solver++2m'")
        if told["solver_order"] == 1:
            out["solver"] = "ddim"
        if told["euler_at_final"] and told["final_sigmas_type"] != "zero":
            raise ValueError(
                "euler_at_final must be off unless final_sigmas_type is 'zero', got on; pass final_sigmas_type='zero'"
            )
    return out


def _require(told: Mapping[str, Any], name: str, rules: Mapping[str, tuple[Any, ...]], *, remedy: str = "") -> None:
    for key, allowed in rules.items():
        if key in told and told[key] not in allowed:
            raise ValueError(
                f"{key} must be {' or '.join(map(repr, allowed))} in the config of a {name}, got {told[key]!r}; "
                f"{remedy or 'set it so, the rest of the config is covered'}"
            )
