"""diffparam: what low precision does to diffusion models, from one identity in angles."""

from diffparam.angle import rebase_gains
from diffparam.conversion import convert, loss_weight, predict_eps, predict_v, predict_x0
from diffparam.error_model import AdditiveError, ErrorModel, RelativeError, RoundingError
from diffparam.errors import NonFiniteError, SingularParameterization, UnknownName
from diffparam.guidance import guidance_error_gain, guide
from diffparam.integrations.diffusers_config import param_from_config, schedule_from_config
from diffparam.names import parse_parameterization
from diffparam.oracle import GaussianMixture
from diffparam.parameterization import EPSILON, FLOW, SCORE, X0, AngularParam, V
from diffparam.prediction.step import (
    OutputMoments,
    largest_safe_timestep,
    loss_floor,
    optimal_angle,
    output_energy,
    step_error,
    step_error_gain,
    step_error_rms,
    unit_step_error,
)
from diffparam.rounding import FORMATS, FloatFormat, parse_format, relative_error, round_to
from diffparam.schedule import Schedule
from diffparam.solvers.ddim import StepCoefficients, apply_step, ddim_coefficients, ddim_step, exact_gaussian_flow
from diffparam.solvers.loop import Trajectory, ddim_invert, ddim_sample
from diffparam.state import FLOW_STATE, VE, VP, StateSpace

__version__ = "0.1.0"

__all__ = [
    "EPSILON",
    "FLOW",
    "FLOW_STATE",
    "FORMATS",
    "SCORE",
    "VE",
    "VP",
    "X0",
    "AdditiveError",
    "AngularParam",
    "ErrorModel",
    "FloatFormat",
    "GaussianMixture",
    "NonFiniteError",
    "OutputMoments",
    "RelativeError",
    "RoundingError",
    "Schedule",
    "SingularParameterization",
    "StateSpace",
    "StepCoefficients",
    "Trajectory",
    "UnknownName",
    "V",
    "apply_step",
    "convert",
    "ddim_coefficients",
    "ddim_invert",
    "ddim_sample",
    "ddim_step",
    "exact_gaussian_flow",
    "guidance_error_gain",
    "guide",
    "largest_safe_timestep",
    "loss_floor",
    "loss_weight",
    "optimal_angle",
    "output_energy",
    "param_from_config",
    "parse_format",
    "parse_parameterization",
    "predict_eps",
    "predict_v",
    "predict_x0",
    "rebase_gains",
    "relative_error",
    "round_to",
    "schedule_from_config",
    "step_error",
    "step_error_gain",
    "step_error_rms",
    "unit_step_error",
]
