"""The public surface: these names, each documented, and no library beyond torch, numpy and scipy behind them."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest

import diffparam

PUBLIC = [
    *("EPSILON", "FLOW", "FLOW_STATE", "FORMATS", "SCORE", "VE", "VP", "X0"),
    *("AdditiveError", "AmaxRounding", "AngularParam", "BlockRounding", "Calibration", "CompensatedRounding", "ErrorBudget"),
    *("ErrorModel", "Flag", "FloatFormat", "GaussianMixture", "NetworkError", "NonFiniteError", "OutputMoments", "Plan"),
    *("RelativeError", "RoundingError", "Schedule", "Sensitivity", "SingularParameterization", "SourceError", "StateSpace"),
    *("StepCoefficients", "Trajectory", "UnknownName", "V"),
    *("apply_step", "calibrate", "convert", "ddim_coefficients", "ddim_invert", "ddim_sample", "ddim_step"),
    *("exact_gaussian_flow", "gaussian_sensitivity", "guidance_error_gain", "guide", "largest_safe_timestep", "loss_floor"),
    *("loss_weight", "moments_sensitivity", "optimal_angle", "output_energy", "overflow_probability", "param_from_config"),
    *("parse_format", "parse_parameterization", "plan_ddim", "plan_ddpm", "plan_dpm_solver", "plan_heun", "predict_eps"),
    *("predict_error", "predict_v", "predict_x0", "rebase_gains", "relative_error", "round_to", "rounding_energy", "sample"),
    *("schedule_from_config", "step_error", "step_error_gain", "step_error_rms", "trace_sensitivity", "unit_step_error"),
]
THINGS = {name: getattr(diffparam, name) for name in PUBLIC}
CALLABLE = [name for name, thing in THINGS.items() if inspect.isclass(thing) or inspect.isfunction(thing)]


def test_the_public_names_are_these():
    assert diffparam.__all__ == PUBLIC
    assert len(set(PUBLIC)) == len(PUBLIC)
    exported = {name for name in vars(diffparam) if not name.startswith("_") and not inspect.ismodule(vars(diffparam)[name])}
    assert exported == set(PUBLIC)  # nothing public by accident


def methods(cls: type) -> list[str]:
    return [
        name
        for name, value in vars(cls).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property | classmethod | staticmethod))
    ]


@pytest.mark.parametrize("name", CALLABLE)
def test_every_function_class_and_method_is_documented(name):
    thing = getattr(diffparam, name)
    assert thing.__doc__
    assert not thing.__doc__.startswith(f"{name}(")  # the signature that dataclasses fill in
    if inspect.isclass(thing):
        for method in methods(thing):
            assert inspect.getattr_static(thing, method).__doc__, f"{name}.{method}"


@pytest.mark.parametrize("name", [n for n in PUBLIC if n not in CALLABLE])
def test_every_constant_is_of_a_documented_class(name):
    thing = getattr(diffparam, name)
    assert type(thing).__doc__
    if isinstance(thing, diffparam.AngularParam):
        assert thing.name in diffparam.parse_parameterization(thing.name).name


POSITIONAL_DEFAULTS = {  # a second datum: the error of which format, of which data, of which arithmetic
    *(("relative_error", "fmt"), ("gaussian_sensitivity", "sigma_data"), ("predict_error", "data"), ("calibrate", "dtype")),
}


@pytest.mark.parametrize("name", [n for n in CALLABLE if inspect.isfunction(THINGS[n])])
def test_functions_take_options_by_keyword(name):
    """Data first, options keyword-only; and no keyword passes through unchecked."""
    for parameter in inspect.signature(THINGS[name]).parameters.values():
        assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        optional = parameter.default is not parameter.empty
        assert parameter.kind is parameter.KEYWORD_ONLY or not optional or (name, parameter.name) in POSITIONAL_DEFAULTS


PROBE = """
import json, sys, time
import numpy, scipy.special, torch
before, start = set(sys.modules), time.perf_counter()
import diffparam
seconds = time.perf_counter() - start
print(json.dumps({"new": sorted(set(sys.modules) - before), "all": sorted(sys.modules), "seconds": seconds}))
"""


def test_importing_it_imports_torch_numpy_and_scipy_only():
    run = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    print(f"import diffparam beyond torch: {found['seconds']:.2f} s")
    families = {name.partition(".")[0] for name in found["new"]} - set(sys.stdlib_module_names)
    assert families <= {"diffparam", "torch", "numpy", "scipy"}
    assert "diffparam.solvers.ddim" in found["new"]  # the probe saw the import
    loaded = {name.partition(".")[0] for name in found["all"]}
    assert not loaded & {"sklearn", "diffusers", "transformers", "matplotlib", "safetensors", "mmar"}  # tqdm is torch's own
