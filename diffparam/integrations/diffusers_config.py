"""Read a diffusers scheduler's configuration; diffusers itself is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from diffparam._checks import check_count
from diffparam.errors import UnknownName
from diffparam.names import parse_parameterization
from diffparam.parameterization import FLOW, AngularParam
from diffparam.schedule import Schedule

_BETA_CLASSES = (
    "DDIMScheduler", "DDIMInverseScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "TCDScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
_FLOW_CLASSES = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_OWN_CLASS = "AngularScheduler"
_EDM_CLASSES = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_OTHER_ENDS = {  # defaults that are not DDPM's
    "HeunDiscreteScheduler": "linear",
    "KDPM2AncestralDiscreteScheduler": "linear",
    "KDPM2DiscreteScheduler": "linear",
    "LCMScheduler": "scaled_linear",
    "TCDScheduler": "scaled_linear",
}
"""Classes whose betas run from 0.00085 to 0.012 by default, and how."""
_OWN_SCHEDULES = ("snr_shift_scale", "scaler")
"""What changes the schedule of classes that are not covered (CogVideoX's, Wuerstchen's)."""
_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """The training schedule that a diffusers scheduler config describes, in float64.

    Args:
        config: The mapping in ``scheduler_config.json``, or ``scheduler.config``. Without ``_class_name`` it is read as one of
            the schedulers with betas.

    Schedules with betas come in the variance-preserving state; pipelines of Euler-type schedulers carry sigma-space samples
    (``.with_state(VE)``). diffusers itself holds the same table in float32; the two agree to float32 accuracy.

    Raises:
        UnknownName: For a class or a beta schedule that is not covered.
        ValueError: If the class cannot be told, or its shift depends on the image.
    """
    name = _class_name(config)
    steps = check_count(config.get("num_train_timesteps", 1000), "num_train_timesteps", low=1, high=1_000_000)
    if name in _FLOW_CLASSES:
        return _flow_schedule(config, steps, "shift")
    if name in _EDM_CLASSES:
        ramp = config.get("sigma_schedule", "karras")
        if ramp != "karras":
            raise UnknownName("sigma_schedule", ramp, ("karras",))
        options = {k: config[k] for k in ("sigma_min", "sigma_max", "rho") if k in config}
        return Schedule.karras(steps, **options)
    if config.get("use_flow_sigmas"):
        return _flow_schedule(config, steps, "flow_shift")
    schedule = _beta_schedule(config, steps)
    return schedule.rescale_zero_terminal_snr() if config.get("rescale_betas_zero_snr") else schedule


def param_from_config(config: Mapping[str, Any]) -> AngularParam:
    """What the network behind a diffusers scheduler config outputs.

    Flow-match schedulers always mean eps - x. EDM schedulers' ``epsilon`` is EDM's F and their ``v_prediction`` is -F, neither
    of them eps or v.
    """
    name = _class_name(config)
    if name in _FLOW_CLASSES:
        return FLOW
    prediction = config.get("prediction_type", "epsilon")
    if name in _EDM_CLASSES:
        f = AngularParam.edm(config.get("sigma_data", 0.5))
        if prediction not in ("epsilon", "v_prediction"):
            raise UnknownName("prediction_type", prediction, ("epsilon", "v_prediction"))
        return f if prediction == "epsilon" else -f
    return parse_parameterization(prediction, sigma_data=config.get("sigma_data") if name == _OWN_CLASS else None)


def _class_name(config: Mapping[str, Any]) -> str:
    if not isinstance(config, Mapping):
        raise TypeError(
            f"config must be a mapping (scheduler.config or a parsed scheduler_config.json), got {type(config).__name__}"
        )
    name = config.get("_class_name")
    if name is None:
        has_betas = "beta_schedule" in config or config.get("trained_betas", ()) is not None  # None: a class with its own
        if not has_betas or ("beta_schedule" not in config and ("shift" in config or "sigma_data" in config)):
            raise ValueError(
                "_class_name must be in the config of a scheduler without betas, got none; scheduler.config leaves it out, so "
                'add it: {"_class_name": type(scheduler).__name__, **scheduler.config}'
            )
        unread = [key for key in _OWN_SCHEDULES if key in config]
        if unread:
            raise UnknownName("option of the schedule", unread[0], ("beta_schedule", "beta_start", "beta_end", "trained_betas"))
        name = "DDPMScheduler"
    known = (*_BETA_CLASSES, *_FLOW_CLASSES, *_EDM_CLASSES, _OWN_CLASS)
    if name not in known:
        raise UnknownName("_class_name", name, known)
    return str(name)


def _flow_schedule(config: Mapping[str, Any], steps: int, shift: str) -> Schedule:
    if config.get("use_dynamic_shifting"):
        raise ValueError(
            "use_dynamic_shifting must be off, got on; its shift depends on the image, so give it: "
            "Schedule.rectified_flow(shift=...)"
        )
    return Schedule.rectified_flow(steps, shift=config.get(shift, 1.0), time_scale=steps)


def _beta_schedule(config: Mapping[str, Any], steps: int) -> Schedule:
    if config.get("trained_betas") is not None:
        return Schedule.from_betas(torch.as_tensor(config["trained_betas"], dtype=torch.float64), name="trained_betas")
    name = str(config.get("_class_name"))
    kind = config.get("beta_schedule", _OTHER_ENDS.get(name, "linear"))
    if kind == "squaredcos_cap_v2":
        return Schedule.cosine(steps)
    if kind not in _BETA_SCHEDULES:
        raise UnknownName("beta_schedule", kind, _BETA_SCHEDULES)
    start, end = (0.00085, 0.012) if name in _OTHER_ENDS else (0.0001, 0.02)
    ends = {"beta_start": config.get("beta_start", start), "beta_end": config.get("beta_end", end)}
    return Schedule.linear(steps, **ends) if kind == "linear" else Schedule.scaled_linear(steps, **ends)
