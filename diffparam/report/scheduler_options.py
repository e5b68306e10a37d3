"""A scheduler's options: the defaults of diffusers' constructors, as data, and what kind each value must be.

The defaults let a class be reported by its name alone, without importing diffusers; a test compares them with diffusers' own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffparam._checks import check_count, check_number
from diffparam.errors import NonFiniteError, UnknownName
from diffparam.report.errors import BadInput

_BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
}
_LEADING = {**_BETAS, "timestep_spacing": "leading"}
_LINSPACE = {**_BETAS, "timestep_spacing": "linspace"}
_ZERO_SNR = {"rescale_betas_zero_snr": False}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_THRESHOLD = {"thresholding": False}
_TO_ONE = {"set_alpha_to_one": True}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_SHIFTING = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
_FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0, **_SHIFTING}
_RANGE = {"sigma_min": None, "sigma_max": None}
_ORDER = {"solver_order": 2, "solver_type": "midpoint", "lower_order_final": True, "algorithm_type": "dpmsolver++"}
_ZERO = {"final_sigmas_type": "zero"}
_CLIPPED_LAMBDA = {"lambda_min_clipped": -math.inf, "variance_type": None}
_NARROW = {"beta_start": 0.00085, "beta_end": 0.012}
_DDIM = {**_LEADING, **_ZERO_SNR, **_CLIP, **_THRESHOLD, **_TO_ONE}
_DDPM = {**_LEADING, **_ZERO_SNR, **_CLIP, **_THRESHOLD, "variance_type": "fixed_small"}
_LCM = {**_DDIM, **_NARROW, "beta_schedule": "scaled_linear", "clip_sample": False, "original_inference_steps": 50}
_HEUN = {**_LINSPACE, **_NARROW, **_SIGMAS}
_EDM = {
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "rho": 7.0,
    **_ZERO,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "DEISMultistepScheduler": {
        **_LINSPACE,
        **_SIGMAS,
        **_FLOW,
        **_ORDER,
        **_THRESHOLD,
        "solver_type": "logrho",
        "algorithm_type": "deis",
    },
    "DPMSolverMultistepScheduler": {
        **_LINSPACE,
        **_ZERO_SNR,
        **_SIGMAS,
        **_FLOW,
        **_ORDER,
        **_ZERO,
        **_THRESHOLD,
        **_CLIPPED_LAMBDA,
        "use_lu_lambdas": False,
        "euler_at_final": False,
    },
    "DPMSolverSinglestepScheduler": {
        **{key: value for key, value in _BETAS.items() if key != "steps_offset"},
        **_SIGMAS,
        **_FLOW,
        **_ORDER,
        **_ZERO,
        **_THRESHOLD,
        **_CLIPPED_LAMBDA,
        "lower_order_final": False,
    },
    "EulerAncestralDiscreteScheduler": {**_LINSPACE, **_ZERO_SNR},
    "EulerDiscreteScheduler": {
        **_LINSPACE,
        **_ZERO_SNR,
        **_SIGMAS,
        **_RANGE,
        **_ZERO,
        "interpolation_type": "linear",
        "timestep_type": "discrete",
    },
    "HeunDiscreteScheduler": {**_HEUN, **_CLIP, "clip_sample": False},
    "KDPM2AncestralDiscreteScheduler": _HEUN,
    "KDPM2DiscreteScheduler": _HEUN,
    "LCMScheduler": _LCM,
    "LMSDiscreteScheduler": {**_LINSPACE, **_SIGMAS},
    "PNDMScheduler": {**_LEADING, "set_alpha_to_one": False},
    "TCDScheduler": _LCM,
    "UniPCMultistepScheduler": {
        **_LINSPACE,
        **_ZERO_SNR,
        **_SIGMAS,
        **_FLOW,
        **_RANGE,
        **{key: value for key, value in _ORDER.items() if key != "algorithm_type"},
        **_ZERO,
        **_THRESHOLD,
        "solver_type": "bh2",
        "shift_terminal": None,
    },
    "FlowMatchEulerDiscreteScheduler": {
        "num_train_timesteps": 1000,
        "shift": 1.0,
        **_SHIFTING,
        **_SIGMAS,
        "shift_terminal": None,
        "invert_sigmas": False,
        "stochastic_sampling": False,
    },
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": {**_EDM, **_ORDER, **_THRESHOLD, "euler_at_final": False},
    "AngularScheduler": {
        **_LEADING,
        **_ZERO_SNR,
        **_FLOW,
        **_RANGE,
        **_ZERO,
        **_CLIP,
        "clip_sample": False,
        "sigma_data": None,
        "solver": "ddim",
        "variance": "posterior",
        "lower_order_final": True,
        "state": None,
        "skip_lowest": False,
        "interpolation_type": None,
        "sigma_spacing": None,
        "timestep_type": "discrete",
    },
}
"""By class, the options that a report reads."""

MAX_TIMESTEPS = 1_000_000
_OPTIONAL_NUMBERS = ("sigma_min", "sigma_max", "sigma_data", "shift_terminal")
_OPTIONAL_NAMES = ("variance_type", "interpolation_type", "state", "sigma_spacing")


def checked_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a config that a report reads, each of the kind it must be, with ``_class_name``.

    Raises:
        BadInput: If the class is missing, or a value is of another kind.
        UnknownName: If the class is not known.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a mapping (a parsed scheduler_config.json), got {type(config).__name__}")
    name = config.get("_class_name")
    if name is None:
        raise BadInput("_class_name must be in the config, got none; add it, or pass --set _class_name=DDIMScheduler")
    if not isinstance(name, str) or name not in DEFAULTS:
        raise UnknownName("_class_name", name, DEFAULTS)
    found = {key: config[key] for key in DEFAULTS[name] if key in config}
    for key, value in found.items():
        try:
            _check_option(key, value)
        except (TypeError, ValueError, NonFiniteError) as error:
            raise BadInput(f"{error} (in the config of a {name})") from None
    return {"_class_name": name, **found}


def _check_option(key: str, value: Any) -> None:
    default = next(options[key] for options in DEFAULTS.values() if key in options)
    if key == "trained_betas":
        if value is not None:
            _check_betas(value)
    elif key == "lambda_min_clipped":
        if value != -math.inf:
            check_number(value, key)
    elif key in _OPTIONAL_NUMBERS:
        if value is not None:
            check_number(value, key)
    elif key in _OPTIONAL_NAMES:
        if not (value is None or isinstance(value, str)):
            raise TypeError(f"{key} must be a name or null, got {type(value).__name__}")
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise TypeError(f"{key} must be true or false, got {value!r}")
    elif isinstance(default, int):
        check_count(value, key, low=0 if key == "steps_offset" else 1, high=MAX_TIMESTEPS)
    elif isinstance(default, float):
        check_number(value, key)
    elif not isinstance(value, str):
        raise TypeError(f"{key} must be a name, got {type(value).__name__}")


def _check_betas(value: Any) -> None:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_TIMESTEPS:
        raise TypeError(f"trained_betas must be a list of 1 to {MAX_TIMESTEPS} numbers, got {type(value).__name__}")
    for beta in value:
        check_number(beta, "trained_betas", low=0.0, high=1.0)
