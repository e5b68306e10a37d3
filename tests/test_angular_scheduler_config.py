"""AngularScheduler from configurations: those of diffusers, its own, and wrong ones, each refused by name."""

from __future__ import annotations

import importlib
import json
import math
import sys
from dataclasses import fields
from typing import Any

import diffusers
import pytest
import torch
from test_angular_scheduler import LATENT, LEADING, SAME, randn, relative, run

from diffparam import VE, NonFiniteError, Schedule, UnknownName
from diffparam.integrations._scheduler_settings import SchedulerSettings
from diffparam.integrations.diffusers_scheduler import AngularScheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # diffusers


@pytest.mark.parametrize(("name", "options", "steps"), SAME[::3])
def test_a_config_survives_the_journey_there_and_back(name: str, options: dict[str, Any], steps: int, tmp_path) -> None:
    theirs = getattr(diffusers, name)(**options)
    ours = AngularScheduler.from_config(theirs.config)
    ours.save_pretrained(tmp_path)
    loaded = AngularScheduler.from_pretrained(tmp_path)
    again = AngularScheduler.from_config(ours.config)
    own = {field.name: ours.config[field.name] for field in fields(SchedulerSettings)}
    for copy in (loaded, again):
        assert {name: copy.config[name] for name in own} == own
    for scheduler in (ours, loaded):
        scheduler.set_timesteps(steps)
    x = randn(1, 3, 4, 4, seed=0)
    assert torch.equal(run(ours, x), run(loaded, x))
    back = type(theirs).from_config(ours.config)
    public = {key: value for key, value in theirs.config.items() if not key.startswith("_")}
    assert {key: back.config[key] for key in public} == public
    assert type(theirs) in ours.compatibles
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert AngularScheduler.from_config({**saved, "_class_name": name, **theirs.config}).config.solver == own["solver"]


def test_defaults_of_another_class_are_its_choice() -> None:
    """diffusers' from_config drops them: its DDIM of a default Euler config is leading, not linspace."""
    euler = diffusers.EulerDiscreteScheduler()
    assert euler.config.timestep_spacing == "linspace"
    assert diffusers.DDIMScheduler.from_config(euler.config).config.timestep_spacing == "leading"
    assert AngularScheduler.from_config(euler.config).config.timestep_spacing == "linspace"
    assert AngularScheduler.from_config({"_class_name": "EulerDiscreteScheduler"}).config.timestep_spacing == "linspace"


def test_a_config_without_its_class_is_told_by_its_options() -> None:
    for name in ("DDIMScheduler", "DDPMScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler"):
        config = getattr(diffusers, name)().config
        assert "_class_name" not in config
        assert AngularScheduler.from_config(config) is not None
    ddpm = diffusers.DDPMScheduler(variance_type="fixed_large").config
    mixed = diffusers.DDIMScheduler.from_config(ddpm).config  # as DDIMPipeline does
    assert "variance_type" in mixed
    assert AngularScheduler.from_config(mixed).config.solver == "ddim"
    assert AngularScheduler.from_config({"solver": "heun"}).config.solver == "heun"
    ambiguous = {
        k: v for k, v in {**diffusers.DDIMScheduler().config, **diffusers.DDPMScheduler().config}.items() if k[0] != "_"
    }
    with pytest.raises(ValueError, match="_class_name must be in the config, which could be of"):
        AngularScheduler.from_config(ambiguous)


def test_schedulers_with_another_solver_need_one_named() -> None:
    config = diffusers.PNDMScheduler(**LATENT, **LEADING, skip_prk_steps=True).config
    with pytest.raises(ValueError, match="solver must be given for the config of a PNDMScheduler"):
        AngularScheduler.from_config(config)
    ours = AngularScheduler.from_config(config, solver="dpm_solver++2m")
    assert (ours.config.beta_schedule, ours.config.steps_offset, ours.config.final_sigmas_type) == (
        "scaled_linear",
        1,
        "sigma_min",
    )


NOT_COVERED = [
    ("DDIMScheduler", {"thresholding": True}, "thresholding must be False"),
    ("DDPMScheduler", {"variance_type": "learned_range"}, "variance_type must be one of"),
    ("DDPMScheduler", {"beta_schedule": "sigmoid"}, "beta_schedule must be one of"),
    ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}, "interpolation_type must be 'linear'"),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}, "solver_order must be 1 or 2"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type must be"),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun"}, "solver_type must be 'midpoint'"),
    ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}, "lambda_min_clipped must be -inf"),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "use_lu_lambdas must be False"),
    ("DPMSolverMultistepScheduler", {"euler_at_final": True, "final_sigmas_type": "sigma_min"}, "euler_at_final must be off"),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "stochastic_sampling must be False"),
    ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}, "shift_terminal must be None"),
    ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}, "sigma_spacing must be None with use_flow_sigmas"),
]


@pytest.mark.parametrize(("name", "options", "message"), NOT_COVERED)
def test_what_is_not_covered_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AngularScheduler.from_config(getattr(diffusers, name)(**options).config)


WRONG = [
    ({"prediction_type": "epsilonn"}, UnknownName, "prediction_type must be one of .* Did you mean 'epsilon'"),
    ({"prediction_type": "velocity"}, UnknownName, "prediction_type .* ambiguous"),
    ({"prediction_type": "edm"}, ValueError, "sigma_data must be given for 'edm'"),
    ({"solver": "dpm_solver"}, UnknownName, r"solver must be one of .* Did you mean 'dpm_solver\+\+2m'"),
    ({"state": "vpp"}, UnknownName, "state must be one of .* Did you mean 'vp'"),
    ({"timestep_spacing": "trail"}, UnknownName, "timestep_spacing must be one of .* Did you mean 'trailing'"),
    ({"sigma_spacing": "kerras"}, UnknownName, "Did you mean 'karras'"),
    ({"beta_schedule": "liner"}, UnknownName, "Did you mean 'linear'"),
    ({"variance": "lower"}, UnknownName, "variance must be one of"),
    ({"num_train_timesteps": 0}, ValueError, "num_train_timesteps must be at least 1"),
    ({"trained_betas": [0.1, 0.2]}, ValueError, "trained_betas must hold num_train_timesteps = 1000 values, got 2"),
    ({"clip_sample_range": 0.0}, ValueError, "clip_sample_range"),
    ({"sigma_min": -1.0}, ValueError, "sigma_min must lie in"),
    ({"solver": "heun", "final_sigmas_type": "sigma_min"}, ValueError, "final_sigmas_type must be 'zero' with solver 'heun'"),
    ({"use_dynamic_shifting": True}, ValueError, "use_dynamic_shifting must be off"),
    ({"use_flow_sigmas": True, "rescale_betas_zero_snr": True}, ValueError, "rescale_betas_zero_snr must be False"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_wrong_options_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AngularScheduler(**options)


def test_wrong_configs_are_named() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'DDIMScheduler'"):
        AngularScheduler.from_config({"_class_name": "DDIMSchedulr"})
    with pytest.raises(UnknownName, match=r"option must be one of .* Did you mean 'solver'"):
        AngularScheduler.from_config(diffusers.DDIMScheduler().config, solvr="heun")
    with pytest.raises(TypeError, match="config must be a mapping"):
        AngularScheduler.from_config("scheduler_config.json")
    with pytest.raises(ValueError, match="config must be given"):
        AngularScheduler.from_config()
    scheduler, unused = AngularScheduler.from_config({"solver": "heun"}, return_unused_kwargs=True, subject=1)
    assert (scheduler.config.solver, unused["subject"]) == ("heun", 1)


GRIDS = [
    ({}, {}, "exactly one of num_inference_steps, timesteps and sigmas must be given, got none"),
    ({}, {"num_inference_steps": 3, "timesteps": [5]}, "got num_inference_steps and timesteps"),
    ({}, {"num_inference_steps": 1001}, "num_inference_steps must be at least 1 and at most 1000, got 1001"),
    ({}, {"timesteps": [5, 5]}, "timesteps must fall, got 5 then 5"),
    ({}, {"timesteps": []}, "timesteps must be one-dimensional and not empty"),
    ({}, {"timesteps": [1000, 5]}, r"timesteps must lie in \[0, 999\], got 1000"),
    ({}, {"timesteps": [7.5]}, "timesteps must be whole numbers unless interpolation_type is 'linear', got 7.5"),
    ({}, {"sigmas": [1.0]}, "sigmas must hold at least two"),
    ({}, {"sigmas": [1e4, 1.0, 0.0]}, r"sigmas must lie in \[0.0100005, 157.407\], .* got 10000"),
    ({}, {"sigmas": [1.0, -0.5]}, r"sigmas must lie in \[0, inf\), got \[1.0, -0.5\]"),
    ({"solver": "heun"}, {"sigmas": [9.0, 1.0, 0.5]}, "sigmas must end at 0 with solver 'heun', got 0.5"),
    ({"use_flow_sigmas": True}, {"sigmas": [1.0, 0.5, 0.0]}, r"sigmas must lie in \(0, 1\], .* without the end at 0"),
    ({"use_flow_sigmas": True}, {"sigmas": [1.5, 0.5]}, r"sigmas must lie in \(0, 1\]"),
    ({"final_sigmas_type": "sigma_min"}, {"timesteps": [0]}, "timesteps must hold one above the final angle"),
    ({"interpolation_type": "linear", "timestep_spacing": "linspace"}, {"num_inference_steps": 1}, "at least 2 for 'linspace'"),
    ({"skip_lowest": True}, {"num_inference_steps": 1000}, "must be below 1000 with skip_lowest"),
    (
        {"rescale_betas_zero_snr": True, "sigma_spacing": "karras", "timestep_spacing": "trailing"},
        {"num_inference_steps": 5},
        "sigma_max must be given where the terminal SNR is zero",
    ),
    (
        {"rescale_betas_zero_snr": True, "interpolation_type": "linear"},
        {"timesteps": [998.5]},
        "timesteps must be whole between the last two",
    ),
    ({"use_flow_sigmas": True}, {"timesteps": [1200.0]}, r"timesteps must lie in \[0, 1000\]"),
]


@pytest.mark.parametrize(("options", "call", "message"), GRIDS)
def test_wrong_grids_are_named(options: dict[str, Any], call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AngularScheduler(prediction_type="v_prediction", **options).set_timesteps(**call)


def test_values_that_are_not_finite_are_refused_and_traced() -> None:
    scheduler = AngularScheduler()
    with pytest.raises(NonFiniteError, match="timesteps must be finite"):
        scheduler.set_timesteps(timesteps=[math.nan])
    scheduler.set_timesteps(4)
    x, t = randn(2, 3, seed=0), scheduler.timesteps[0]
    bad = x.clone()
    bad[0, 1] = math.nan
    with pytest.raises(NonFiniteError, match=r"model_output must be finite, but 1 of its 6 .* made them at timestep 750"):
        scheduler.step(bad, t, x)
    with pytest.raises(NonFiniteError, match=r"sample must be finite, but 1 of its 6 .* before the step at timestep 750"):
        scheduler.step(x, t, bad)
    large = torch.full((1, 3), 60000.0, dtype=torch.float16)
    with pytest.raises(NonFiniteError, match=r"overflowed torch.float16 at timestep 750: use a wider dtype"):
        scheduler.step(-large, t, large)
    with pytest.raises(NonFiniteError, match="timesteps must be finite"):
        scheduler.add_noise(x, x, torch.tensor([math.nan, 0.0]))


def test_wrong_steps_are_named() -> None:
    scheduler = AngularScheduler()
    x = randn(2, 3, seed=0)
    with pytest.raises(ValueError, match="set_timesteps must be called before step"):
        scheduler.step(x, 999, x)
    scheduler.set_timesteps(4)
    t = scheduler.timesteps[0]
    with pytest.raises(ValueError, match=r"timestep must be one of this run's 4 \(750 .. 0\), got 751.0"):
        scheduler.step(x, 751, x)
    with pytest.raises(ValueError, match="in float32 at least"):
        scheduler.step(x, torch.tensor(750).bfloat16(), x)  # 752
    with pytest.raises(ValueError, match="timestep must be one number"):
        scheduler.step(x, scheduler.timesteps, x)
    with pytest.raises(ValueError, match="model_output and sample must have the same shape"):
        scheduler.step(x[:1], t, x)
    with pytest.raises(TypeError, match="sample must have a floating-point dtype"):
        scheduler.step(x, t, x.long())
    with pytest.raises(ValueError, match="eta must lie in"):
        scheduler.step(x, t, x, eta=-1.0)
    heun = AngularScheduler(solver="heun")
    heun.set_timesteps(4)
    with pytest.raises(ValueError, match=r"eta must be 0 with solver 'heun', got 0.5; only solver='ddim' takes one"):
        heun.step(x, t, x, eta=0.5)
    with pytest.raises(ValueError, match=r"timesteps must lie in \[0, 999\], got 1000"):
        scheduler.add_noise(x, x, 1000)


def test_diffusers_is_needed_by_this_module_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("diffusers_scheduler", "diffusers_config"):
        monkeypatch.delitem(sys.modules, f"diffparam.integrations.{name}")
    monkeypatch.setitem(sys.modules, "diffusers", None)  # what an import of it then fails on
    importlib.import_module("diffparam.integrations.diffusers_config")
    with pytest.raises(ImportError, match=r"AngularScheduler needs diffusers.*pip install diffusers"):
        importlib.import_module("diffparam.integrations.diffusers_scheduler")


def test_state_of_the_training_schedule_is_the_samplers() -> None:
    ours = AngularScheduler.from_config(diffusers.EulerDiscreteScheduler().config)
    x, z = randn(2, 3, seed=0), randn(2, 3, seed=1)
    assert relative(ours.add_noise(x, z, 500), Schedule.linear().with_state(VE).add_noise(x, z, 500)) < 1e-15
