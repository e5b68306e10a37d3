"""diffparam: what low precision does to diffusion models, from one identity in angles."""

from diffparam.angle import rebase_gains
from diffparam.calibration import Calibration, calibrate
from diffparam.conversion import convert, loss_weight, predict_eps, predict_v, predict_x0
from diffparam.error_model import AdditiveError, CompensatedRounding, ErrorModel, RelativeError, RoundingError
from diffparam.errors import NonFiniteError, SingularParameterization, UnknownName
from diffparam.guidance import guidance_error_gain, guide
from diffparam.integrations.diffusers_config import param_from_config, schedule_from_config
from diffparam.names import parse_parameterization
from diffparam.network_error import NetworkError
from diffparam.oracle import GaussianMixture
from diffparam.parameterization import EPSILON, FLOW, SCORE, X0, AngularParam, V
from diffparam.prediction.budget import ErrorBudget, predict_error
from diffparam.prediction.flags import Flag
from diffparam.prediction.sensitivity import Sensitivity, gaussian_sensitivity, moments_sensitivity
from diffparam.prediction.sources import SourceError
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
from diffparam.prediction.trace import trace_sensitivity
from diffparam.quantization import AmaxRounding, BlockRounding
from diffparam.rounding import FORMATS, FloatFormat, parse_format, relative_error, round_to
from diffparam.rounding_energy import overflow_probability, rounding_energy
from diffparam.schedule import Schedule
from diffparam.solvers.ddim import ddim_coefficients, ddim_step, exact_gaussian_flow, plan_ddim
from diffparam.solvers.ddpm import plan_ddpm
from diffparam.solvers.dpm_solver import plan_dpm_solver
from diffparam.solvers.heun import plan_heun
from diffparam.solvers.loop import Trajectory, ddim_invert, ddim_sample, sample
from diffparam.solvers.plan import Plan
from diffparam.solvers.step import StepCoefficients, apply_step
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
    "AmaxRounding",
    "AngularParam",
    "BlockRounding",
    "Calibration",
    "CompensatedRounding",
    "ErrorBudget",
    "ErrorModel",
    "Flag",
    "FloatFormat",
    "GaussianMixture",
    "NetworkError",
    "NonFiniteError",
    "OutputMoments",
    "Plan",
    "RelativeError",
    "RoundingError",
    "Schedule",
    "Sensitivity",
    "SingularParameterization",
    "SourceError",
    "StateSpace",
    "StepCoefficients",
    "Trajectory",
    "UnknownName",
    "V",
    "apply_step",
    "calibrate",
    "convert",
    "ddim_coefficients",
    "ddim_invert",
    "ddim_sample",
    "ddim_step",
    "exact_gaussian_flow",
    "gaussian_sensitivity",
    "guidance_error_gain",
    "guide",
    "largest_safe_timestep",
    "loss_floor",
    "loss_weight",
    "moments_sensitivity",
    "optimal_angle",
    "output_energy",
    "overflow_probability",
    "param_from_config",
    "parse_format",
    "parse_parameterization",
    "plan_ddim",
    "plan_ddpm",
    "plan_dpm_solver",
    "plan_heun",
    "predict_eps",
    "predict_error",
    "predict_v",
    "predict_x0",
    "rebase_gains",
    "relative_error",
    "round_to",
    "rounding_energy",
    "sample",
    "schedule_from_config",
    "step_error",
    "step_error_gain",
    "step_error_rms",
    "trace_sensitivity",
    "unit_step_error",
]
