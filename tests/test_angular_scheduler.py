"""AngularScheduler: the plans of the library behind the interface of diffusers, and diffusers' own schedulers beside it."""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import AysSchedules
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import UNIT, dtypes, samples
from torch import Tensor

from diffparam import (
    GaussianMixture,
    NonFiniteError,
    Schedule,
    SingularParameterization,
    StateSpace,
    parse_parameterization,
)
from diffparam.integrations._scheduler_settings import SOLVERS, STATES, SchedulerSettings
from diffparam.integrations.diffusers_scheduler import AngularScheduler
from diffparam.solvers.ddim import plan_ddim
from diffparam.solvers.ddpm import plan_ddpm
from diffparam.solvers.dpm_solver import plan_dpm_solver
from diffparam.solvers.heun import plan_heun
from diffparam.solvers.loop import sample

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # diffusers

PREDICTIONS = {
    **dict.fromkeys(("epsilon", "sample", "v_prediction", "flow", "score")),
    **{"edm": 0.5, "trigflow": 2.0, "optimal": 0.7},
}
"""Every prediction type, with the standard deviation of the data where it needs one."""
MODULES = ("ddim", "ddpm", "euler_discrete", "euler_ancestral_discrete", "heun_discrete", "dpmsolver_multistep")


class Widened:
    """A module whose ``float32`` is its float64."""

    def __init__(self, module: Any, wide: Any) -> None:
        self.module, self.float32 = module, wide

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' schedulers in float64: they write ``torch.float32`` for every table and for the sample within a step."""
    for name in (*MODULES, "flow_match_euler_discrete"):
        module = importlib.import_module(f"diffusers.schedulers.scheduling_{name}")
        monkeypatch.setattr(module, "torch", Widened(torch, torch.float64))
        monkeypatch.setattr(module, "np", Widened(np, np.float64))


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(x: Tensor, t: Tensor) -> Tensor:
    """Nonlinear, and told the time in float32 like any network."""
    return torch.tanh(0.7 * x + 0.001 * t.float().to(x.dtype))


def timeless(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(0.7 * x)


def run(scheduler: Any, x: Tensor, net: Callable[[Tensor, Tensor], Tensor] = network, **options: Any) -> Tensor:
    """A pipeline's loop from its second line on, ``set_timesteps`` being called before."""
    accepted = inspect.signature(scheduler.step).parameters
    options = {"generator": torch.Generator().manual_seed(7), **options}
    options = {name: value for name, value in options.items() if name in accepted}
    x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(net(model_input, t), t, x, **options, return_dict=False)[0]
    return x


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


# -- the same runs as diffusers ----------------------------------------------------------------------------------------

LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
TRAILING = {"timestep_spacing": "trailing"}
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SAME = [
    ("DDIMScheduler", {"clip_sample": False}, 20),
    ("DDIMScheduler", {}, 20),  # clips, as its default is
    ("DDIMScheduler", {**LATENT, **LEADING, "clip_sample": False, "set_alpha_to_one": False}, 20),
    ("DDIMScheduler", {**TRAILING, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, 20),
    ("DDIMScheduler", {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"}, 20),
    ("DDIMScheduler", {"trained_betas": [0.01, 0.1, 0.3, 0.6], "num_train_timesteps": 4}, 2),
    ("DDPMScheduler", {}, 20),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}, 20),
    ("DDPMScheduler", {"prediction_type": "v_prediction", "variance_type": "fixed_small_log"}, 20),
    ("EulerDiscreteScheduler", {}, 10),
    ("EulerDiscreteScheduler", {**LATENT, **LEADING}, 30),
    ("EulerDiscreteScheduler", {**LATENT, **TRAILING, "prediction_type": "v_prediction"}, 7),
    ("EulerDiscreteScheduler", {"prediction_type": "sample", "final_sigmas_type": "sigma_min"}, 10),
    ("EulerDiscreteScheduler", {**LATENT, "use_karras_sigmas": True}, 10),
    ("EulerDiscreteScheduler", {**LATENT, "use_exponential_sigmas": True}, 10),
    ("EulerDiscreteScheduler", {**LATENT, **LEADING, "use_beta_sigmas": True}, 10),
    (
        "EulerDiscreteScheduler",
        {
            **{"prediction_type": "v_prediction", "timestep_type": "continuous", "use_karras_sigmas": True},
            **{"sigma_min": 0.002, "sigma_max": 700.0},
        },
        10,
    ),
    ("EulerAncestralDiscreteScheduler", {**LATENT, **TRAILING}, 9),
    ("EulerAncestralDiscreteScheduler", {"prediction_type": "v_prediction"}, 10),
    ("HeunDiscreteScheduler", {}, 10),
    ("HeunDiscreteScheduler", {**LEADING, "clip_sample": True}, 10),
    ("HeunDiscreteScheduler", {"prediction_type": "v_prediction", "use_karras_sigmas": True}, 10),
    ("DPMSolverMultistepScheduler", {}, 20),
    ("DPMSolverMultistepScheduler", {**LATENT, **LEADING}, 20),
    ("DPMSolverMultistepScheduler", {**TRAILING, "prediction_type": "v_prediction", "final_sigmas_type": "sigma_min"}, 9),
    ("DPMSolverMultistepScheduler", {"prediction_type": "sample", "final_sigmas_type": "sigma_min"}, 20),
    ("DPMSolverMultistepScheduler", {"solver_order": 1}, 10),
    ("FlowMatchEulerDiscreteScheduler", {}, 10),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 7),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 1),
]


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(("name", "options", "steps"), SAME)
def test_a_run_is_that_of_diffusers(name: str, options: dict[str, Any], steps: int) -> None:
    theirs = getattr(diffusers, name)(**options)
    ours = AngularScheduler.from_config(theirs.config)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(steps)
    visited = theirs.timesteps[: len(ours.timesteps)]  # ours leaves out a last step that goes nowhere, from sigma_min to itself
    assert len(visited) >= steps - 1
    assert torch.allclose(ours.timesteps.double(), visited.double(), rtol=UNIT[torch.float32], atol=1e-12)
    assert ours.order == theirs.order
    x = randn(2, 3, 8, 8, seed=0)
    # Theirs loses u / sin^2 <= 1e-12 at beta_0 = 1e-4, and sigma = tan(phi) <= 700 is known to a relative u sigma.
    assert relative(run(ours, x), run(theirs, x)) < 1e-11


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("follow", [None, True])
def test_eta_and_clipping_are_those_of_ddim(prediction: str, clip: bool, follow: bool | None) -> None:
    theirs = diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=clip, clip_sample_range=0.6)
    ours = AngularScheduler.from_config(theirs.config)
    x = randn(2, 3, 8, 8, seed=0)
    options = {"eta": 0.7, "use_clipped_model_output": follow}
    results = []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(20)
        results.append(run(scheduler, x, **options))
    assert relative(results[1], results[0]) < 1e-11


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
def test_dpm_solver_sigmas_are_those_of_diffusers_and_the_network_is_told_their_time(spacing: str) -> None:
    """diffusers rounds these timesteps to whole ones, away from the time of its state; a network without time agrees."""
    theirs = diffusers.DPMSolverMultistepScheduler(**LATENT, **{f"use_{spacing}_sigmas": True})
    ours = AngularScheduler.from_config(theirs.config)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
    assert relative(ours.sigmas, theirs.sigmas) < 1e-12
    x = randn(2, 3, 8, 8, seed=0)
    assert relative(run(ours, x, timeless), run(theirs, x, timeless)) < 1e-11
    off = (ours.timesteps.double() - theirs.timesteps.double()).abs()
    assert 0.1 < off.max() < 1.0
    # Ours: a clean sample noised at the told time has the sigma of the state.
    noised = [ours.add_noise(torch.zeros(1).double(), torch.ones(1).double(), t) for t in ours.timesteps]
    assert torch.allclose(torch.cat(noised), ours.sigmas[:-1].atan().sin(), rtol=1e-14)


@pytest.mark.parametrize("steps", [8, 14])
def test_timesteps_between_those_of_training_are_those_of_diffusers(steps: int) -> None:
    """Here in its own float32: linspace of Euler visits fractions, which both round to float32."""
    theirs = diffusers.EulerDiscreteScheduler(**LATENT)
    ours = AngularScheduler.from_config(theirs.config)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(steps)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert bool((ours.timesteps % 1 != 0).any())
    # Its table is a product of up to 1000 factors of float32: 1000 * 2^-24 at most, and half of that in sigma.
    assert relative(ours.sigmas, theirs.sigmas.double()) < 1e-4
    assert relative(run(ours, randn(1, 4, seed=0)), run(theirs, randn(1, 4, seed=0))) < 1e-3
    fresh = AngularScheduler.from_config(ours.config)  # knows the rule and not the grid: the angle is that of the float32 time
    noise = fresh.add_noise(torch.zeros_like(ours.sigmas[1:]), torch.ones_like(ours.sigmas[1:]), ours.timesteps)
    assert torch.allclose(noise, ours.sigmas[:-1], rtol=1e-13)


@pytest.mark.usefixtures("in_float64")
def test_given_timesteps_and_sigmas_are_visited() -> None:
    theirs = diffusers.EulerDiscreteScheduler(**LATENT)
    ours = AngularScheduler.from_config(theirs.config)
    x = randn(1, 4, seed=0)
    for given_name, values in (
        ("timesteps", AysSchedules["StableDiffusionTimesteps"]),
        ("sigmas", AysSchedules["StableDiffusionSigmas"]),
    ):
        for scheduler in (theirs, ours):
            scheduler.set_timesteps(**{given_name: values})
        assert torch.allclose(ours.timesteps.double(), theirs.timesteps.double(), rtol=UNIT[torch.float32])
        assert relative(run(ours, x), run(theirs, x)) < 1e-11
    assert ours.sigmas.tolist() == pytest.approx(AysSchedules["StableDiffusionSigmas"], rel=1e-14, abs=0)
    ours.set_timesteps(sigmas=[10.0, 1.0, 0.5])
    assert ours.sigmas.tolist() == pytest.approx([10.0, 1.0, 0.5], rel=1e-14)
    ours.set_timesteps(timesteps=torch.tensor([900, 30]))
    assert ours.timesteps.tolist() == [900, 30]


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_the_shift_of_a_flow_is_that_of_diffusers(kind: str) -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    ours = AngularScheduler.from_config(theirs.config)
    given_sigmas = np.linspace(1.0, 0.1, 10)
    for options in ({"num_inference_steps": 6}, {"num_inference_steps": 10, "sigmas": given_sigmas}, {"sigmas": given_sigmas}):
        for scheduler in (theirs, ours):
            scheduler.set_timesteps(**options, mu=1.15)
        assert relative(ours.sigmas, theirs.sigmas) < 1e-14
        x, z = randn(2, 3, 4, 4, seed=0), randn(2, 3, 4, 4, seed=1)
        assert relative(run(ours, x), run(theirs, x)) < 1e-13
        for s in (theirs, ours):
            s.set_timesteps(**options, mu=1.15)
        t = theirs.timesteps[[2]]
        assert relative(ours.scale_noise(x, t, z), theirs.scale_noise(x, t, z)) < 1e-14
    with pytest.raises(ValueError, match="mu must be given"):
        ours.set_timesteps(4)
    plain = AngularScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0).config)
    plain.set_timesteps(4, mu=1.15)  # pipelines pass it always
    assert plain.sigmas[0] == 1.0
    plain.set_timesteps(timesteps=[750.0, 250.0])  # what the network is told, and nothing is shifted again
    assert plain.sigmas.tolist() == pytest.approx([0.75, 0.25, 0.0], rel=1e-15)


def test_a_flow_of_dpm_solver_is_told_the_time_of_its_state() -> None:
    theirs = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    ours = AngularScheduler.from_config(theirs.config)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(20)
    assert relative(ours.sigmas, theirs.sigmas.double()) < 4 * UNIT[torch.float32]
    assert relative(ours.timesteps.double(), 1000 * ours.sigmas[:-1]) < UNIT[torch.float32]
    assert torch.equal(theirs.timesteps, (1000 * theirs.sigmas[:-1].double()).long())  # theirs cuts the fraction off
    x = randn(1, 4, seed=0)
    assert relative(run(ours, x, timeless), run(theirs, x, timeless)) < 1e-4  # its sample is float32 within a step


# -- where diffusers leaves its own schedule ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noise_at_small_timesteps_is_there_in_every_dtype(dtype: torch.dtype) -> None:
    """diffusers casts alpha_bar before it subtracts it from 1: in bf16 1 - 0.9999 is 0."""
    theirs = diffusers.DDIMScheduler()
    ours = AngularScheduler.from_config(theirs.config)
    z = randn(4, 1024, seed=1).to(dtype)
    clean, t = torch.zeros_like(z), torch.tensor([0, 1, 10, 999])
    right = ours.add_noise(clean.double(), z.double(), t)
    sigma = torch.tensor([1 - (1 - 1e-4), 1 - (1 - 1e-4) * (1 - 1e-4 - 0.0199 / 999)]).sqrt()
    assert torch.allclose(right[:2].std(1) / z[:2].double().std(1), sigma.double(), rtol=1e-6)
    assert bool(((ours.add_noise(clean, z, t).double() - right).abs() <= 1.01 * UNIT[dtype] * right.abs() + 2.0**-25).all())
    lost = theirs.add_noise(clean, z, t).double()
    if dtype is torch.bfloat16:
        assert lost[:2].abs().max() == 0
    assert ((lost - right)[:2].norm() / right[:2].norm()) > 0.01
    assert relative(theirs.add_noise(clean.double(), z.double(), t), right) < 1e-4  # in float64 the two agree


@given(seed=st.integers(0, 99), dtype=dtypes(), t=st.integers(0, 999))
def test_noised_samples_and_velocities_are_rounded_once(seed: int, dtype: torch.dtype, t: int) -> None:
    scheduler = AngularScheduler()
    x, z = samples(seed, 2, 5, dtype=dtype)
    wide = torch.float32 if dtype.itemsize < 4 else dtype
    for method in (scheduler.add_noise, scheduler.get_velocity):
        actual = method(x, z, torch.tensor([t, 500]))
        assert actual.dtype is dtype
        assert torch.equal(actual, method(x.to(wide), z.to(wide), torch.tensor([t, 500])).to(dtype))
        assert torch.equal(actual[:1], method(x[:1], z[:1], t))
        exact = method(x.double(), z.double(), torch.tensor([t, 500]))
        # One rounding of the result, three of float32 or wider on the two terms before.
        bound = UNIT[dtype] * exact.abs() + 4 * UNIT[wide] * (x.double().abs() + z.double().abs()) + 2.0**-24
        assert bool(((actual.double() - exact).abs() <= bound).all())


def test_epsilon_at_zero_terminal_snr_is_refused_by_name() -> None:
    theirs = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False)
    theirs.set_timesteps(10)
    x = randn(1, 4, seed=0)
    assert not theirs.step(network(x, theirs.timesteps[0]), theirs.timesteps[0], x).prev_sample.isfinite().all()
    ours = AngularScheduler.from_config(theirs.config)
    with pytest.raises(SingularParameterization, match=r"singular at timestep 999 .* smaller timestep") as caught:
        ours.set_timesteps(10)
    assert (caught.value.timestep, caught.value.param) == (999, "epsilon")
    ours.set_timesteps(timesteps=[998, 500])  # the remedies
    assert bool(run(ours, x).isfinite().all())
    for name, sigma_data in PREDICTIONS.items():
        if name not in ("epsilon", "score"):
            fine = AngularScheduler.from_config(theirs.config, prediction_type=name, sigma_data=sigma_data)
            fine.set_timesteps(10)
            assert bool(run(fine, x).isfinite().all())


def test_sigma_space_at_zero_terminal_snr_is_refused_by_name() -> None:
    """diffusers puts alpha_bar at 2^-24 there and calls it 0."""
    theirs = diffusers.EulerDiscreteScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", **TRAILING)
    theirs.set_timesteps(10)
    assert theirs.sigmas[0] == pytest.approx(4096, rel=1e-3)
    ours = AngularScheduler.from_config(theirs.config)
    for refused in (lambda: ours.set_timesteps(10), lambda: ours.init_noise_sigma):
        with pytest.raises(ValueError, match=r"state must not be 've'.*timestep 999.*state='vp'"):
            refused()
    ours = AngularScheduler.from_config(theirs.config, state="vp")
    ours.set_timesteps(10)
    x = randn(2, 4, seed=0)
    assert relative(run(ours, x), run(theirs, x)) < 1e-2  # 1 / 4096 of signal, and float32
    assert ours.sigmas[0] == math.inf


def test_the_last_step_adds_no_noise() -> None:
    """With the upper variance and trailing spacing diffusers adds noise of variance 1 - alpha_bar to the finished sample."""
    theirs = diffusers.DDPMScheduler(variance_type="fixed_large", timestep_spacing="trailing", clip_sample=False)
    ours = AngularScheduler.from_config(theirs.config)
    x, last = torch.zeros(1, 4096), 99
    noise = {}
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
        assert scheduler.timesteps[-1] == last
        noise[scheduler] = scheduler.step(x, last, x, generator=torch.Generator().manual_seed(0)).prev_sample.std().item()
    assert noise[ours] == 0
    assert noise[theirs] == pytest.approx(math.sin(Schedule.linear().phi_at(last)), rel=5 / math.sqrt(2 * 4096))


# -- the library behind it ---------------------------------------------------------------------------------------------

PLANS = {"ddim": plan_ddim, "ddpm": plan_ddpm, "dpm_solver++2m": plan_dpm_solver, "heun": plan_heun}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_run_is_that_of_the_plan(prediction: str, solver: str, state: str) -> None:
    """Bit for bit: every prediction type, solver and convention."""
    sigma_data = PREDICTIONS[prediction]
    scheduler = AngularScheduler(prediction_type=prediction, sigma_data=sigma_data, solver=solver, state=state)
    scheduler.set_timesteps(8)
    param = parse_parameterization(prediction, sigma_data=sigma_data)
    plan = PLANS[solver](Schedule.linear().respace(8, "leading").with_state(StateSpace(state)), param=param)  # type: ignore
    assert scheduler.timesteps.tolist() == plan.timestep.tolist()
    x = randn(2, 4, seed=0)

    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(0.7 * scheduler.scale_model_input(x, t.flatten()[0]) + 0.001 * t.flatten()[0])

    theirs = sample(net, x * scheduler.init_noise_sigma, plan, generator=torch.Generator().manual_seed(7))
    assert torch.equal(run(scheduler, x, lambda x, t: torch.tanh(0.7 * x + 0.001 * t)), theirs)


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver++2m", "heun"])
def test_every_prediction_type_and_state_makes_the_same_images(solver: str) -> None:
    """The ideal network of a mixture, asked in eight ways and three conventions, from the same noise."""
    oracle = GaussianMixture(torch.tensor([[0.5, -1.0], [2.0, 0.3]]).double(), torch.tensor([0.3, 0.6]).double())
    schedule, eps = Schedule.scaled_linear(), randn(16, 2, seed=0)
    results = []
    for prediction, sigma_data in PREDICTIONS.items():
        for state in STATES:
            param = parse_parameterization(prediction, sigma_data=sigma_data)
            scheduler = AngularScheduler(
                **LATENT, prediction_type=prediction, sigma_data=sigma_data, solver=solver, state=state
            )
            scheduler.set_timesteps(12)
            x = scheduler.add_noise(torch.zeros_like(eps), eps, scheduler.timesteps[0])
            for t in scheduler.timesteps:
                told = oracle.output(scheduler.scale_model_input(x, t), schedule.phi_at(float(t)), param=param)
                x = scheduler.step(told, t, x).prev_sample
            results.append(x)
    # kappa is 1 / cos(phi) < 15 and 1 / sin(phi) < 35 here: some hundred roundings of that.
    assert max(relative(x, results[0]) for x in results[1:]) < 1e-11


@settings(max_examples=60)
@given(
    seed=st.integers(0, 99),
    prediction=st.sampled_from(list(PREDICTIONS)),
    solver=st.sampled_from(["ddim", "dpm_solver++2m", "heun"]),
    state=st.sampled_from(STATES),
    spacing=st.sampled_from(["leading", "linspace", "trailing", "fractional"]),
    steps=st.integers(2, 60),
)
def test_each_step_lands_on_the_timestep_visited_next(
    seed: int, prediction: str, solver: str, state: str, spacing: str, steps: int
) -> None:
    """A state that is noised x0 stays that along the line of one eps, whatever the grid: every solver is exact there."""
    sigma_data = PREDICTIONS[prediction]
    scheduler = AngularScheduler(
        prediction_type=prediction, sigma_data=sigma_data, solver=solver, state=state, timestep_spacing=spacing
    )
    scheduler.set_timesteps(steps)
    x0, eps = samples(seed, 2, 3)
    param, schedule = parse_parameterization(prediction, sigma_data=sigma_data), Schedule.linear()
    t = scheduler.timesteps
    at = [scheduler.add_noise(x0, eps, now) for now in t] + [x0]
    x = at[0]
    for k, now in enumerate(t):
        out = scheduler.step(param.target(x0, eps, schedule.phi_at(float(now))), now, x)
        x = out.prev_sample
        assert (x - at[k + 1]).abs().max() <= 1e-12 * at[0].abs().max() * schedule.phi[-1].tan()
        assert (out.pred_original_sample - x0).abs().max() <= 1e-12 * at[0].abs().max() * schedule.phi[-1].tan()


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_diffusers_lands_elsewhere(spacing: str) -> None:
    """The control of the test above: from t to t - 1000 // n, off the grid that it visits."""
    schedule, x0, eps = Schedule.linear(), randn(2, 3, seed=0), randn(2, 3, seed=1)
    missed = {}
    for cls in (AngularScheduler, diffusers.DDIMScheduler):
        scheduler = cls(timestep_spacing=spacing, clip_sample=False, prediction_type="v_prediction")
        scheduler.set_timesteps(7)
        missed[cls] = 0.0
        for now, then in itertools.pairwise(scheduler.timesteps):
            velocity = scheduler.get_velocity(x0, eps, now[None])
            landed = scheduler.step(velocity, now, scheduler.add_noise(x0, eps, now[None])).prev_sample
            missed[cls] = max(missed[cls], relative(landed, schedule.add_noise(x0, eps, int(then))))
    assert missed[AngularScheduler] < 1e-15
    assert missed[diffusers.DDIMScheduler] > 1e-3


@given(
    seed=st.integers(0, 99),
    dtype=dtypes(),
    solver=st.sampled_from(SOLVERS),
    state=st.sampled_from(STATES),
    clip=st.booleans(),
)
def test_a_step_is_rounded_once(seed: int, dtype: torch.dtype, solver: str, state: str, clip: bool) -> None:
    """Below float32 the arithmetic is that of float32, memory included, and the state is rounded at the end of each step."""
    narrow, wide = (AngularScheduler(solver=solver, state=state, clip_sample=clip) for _ in range(2))
    x, u = samples(seed, 2, 6, dtype=dtype)
    for scheduler in (narrow, wide):
        scheduler.set_timesteps(5)
    kept = torch.float32 if dtype.itemsize < 4 else dtype
    for t in narrow.timesteps[:4]:
        z = samples(seed + 1, 2, 6, dtype=dtype, count=1)[0]
        out = narrow.step(u, t, x, variance_noise=z)
        exact = wide.step(u.to(kept), t, x.to(kept), variance_noise=z.to(kept))
        assert out.prev_sample.dtype is out.pred_original_sample.dtype is dtype
        assert torch.equal(out.prev_sample, exact.prev_sample.to(dtype))
        assert torch.equal(out.pred_original_sample, exact.pred_original_sample.to(dtype))
        x = out.prev_sample


def test_an_output_in_bf16_moves_a_float64_state_in_float64() -> None:
    scheduler = AngularScheduler()
    scheduler.set_timesteps(5)
    x, u = randn(2, 3, seed=0), randn(2, 3, seed=1).bfloat16()
    t = scheduler.timesteps[0]
    out = scheduler.step(u, t, x).prev_sample
    assert out.dtype is torch.float64
    assert torch.equal(out, scheduler.step(u.double(), t, x).prev_sample)


@pytest.mark.parametrize("solver", SOLVERS)
def test_everything_stays_on_the_device_of_the_sample(solver: str) -> None:
    scheduler = AngularScheduler(solver=solver, state="ve", clip_sample=True)
    scheduler.set_timesteps(4, device="cpu")
    x = torch.empty(2, 3, device="meta")
    for t in scheduler.timesteps:
        assert scheduler.scale_model_input(x, t).is_meta
        assert scheduler.add_noise(x, x, t).is_meta
        x, original = scheduler.step(x, t, x, return_dict=False)
        assert x.is_meta
        assert original.is_meta


# -- the interface -----------------------------------------------------------------------------------------------------


def test_the_settings_are_the_options() -> None:
    options = [p for p in inspect.signature(AngularScheduler.__init__).parameters if p != "self"]
    assert options == [field.name for field in fields(SchedulerSettings)]
    assert all(f"        {name}: " in AngularScheduler.__doc__ for name in options)


def test_the_names_that_pipelines_ask_for() -> None:
    scheduler = AngularScheduler()
    assert (len(scheduler), scheduler.order, scheduler.init_noise_sigma, scheduler.step_index) == (1000, 1, 1.0, None)
    assert scheduler.timesteps.tolist() == list(range(999, -1, -1))
    theirs = diffusers.DDIMScheduler()
    assert torch.allclose(scheduler.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=1e-4)
    assert scheduler.sigmas.shape == (1001,)
    scheduler.set_timesteps(10, device="cpu")
    assert (scheduler.num_inference_steps, scheduler.step_index, scheduler.timesteps.dtype) == (10, 0, torch.int64)
    scheduler.set_begin_index(3)
    assert scheduler.begin_index == 3
    heun = AngularScheduler(solver="heun")
    heun.set_timesteps(10)
    assert (heun.order, len(heun.timesteps), heun.num_inference_steps) == (2, 19, 10)


@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_sigma_space_is_scaled_as_in_diffusers(spacing: str) -> None:
    theirs = diffusers.EulerDiscreteScheduler(timestep_spacing=spacing)
    ours = AngularScheduler.from_config(theirs.config)
    assert ours.config.state == "ve"
    assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=1e-5)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
    assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=1e-5)
    x, z, t = randn(2, 3, seed=0), randn(2, 3, seed=1), theirs.timesteps[4]
    theirs.set_begin_index(4)
    assert relative(ours.scale_model_input(x, t), theirs.scale_model_input(x, t)) < 1e-5
    assert relative(ours.add_noise(x, z, t), theirs.add_noise(x, z, t[None])) < 1e-5
    bf16 = ours.scale_model_input(x.bfloat16(), t)
    assert torch.equal(bf16, ours.scale_model_input(x.bfloat16().float(), t).bfloat16())
    with pytest.raises(ValueError, match="timestep must be given"):
        ours.scale_model_input(x)


def test_flow_networks_see_their_own_state_whatever_the_sampler_carries() -> None:
    eps, results = randn(3, 4, seed=0), []
    for state in (None, "vp", "flow"):
        scheduler = AngularScheduler(use_flow_sigmas=True, prediction_type="flow", state=state)
        scheduler.set_timesteps(6)
        results.append(run(scheduler, eps))
    assert torch.equal(results[0], results[2])
    assert relative(results[1], results[0]) < 1e-14
    with pytest.raises(ValueError, match="state must not be 've'"):
        AngularScheduler(use_flow_sigmas=True, prediction_type="flow", state="ve").set_timesteps(6)


def test_a_step_returns_an_object_or_a_pair() -> None:
    scheduler = AngularScheduler()
    scheduler.set_timesteps(4)
    x, u, t = randn(2, 3, seed=0), randn(2, 3, seed=1), scheduler.timesteps[0]
    out = scheduler.step(u, t, x)
    pair = scheduler.step(u, t, x, return_dict=False)
    assert torch.equal(out.prev_sample, pair[0])
    assert torch.equal(out.pred_original_sample, pair[1])
    for form in (int(t), float(t), t[None], np.int64(t)):
        assert torch.equal(scheduler.step(u, form, x).prev_sample, pair[0])


def test_noise_comes_from_the_generators_or_is_given() -> None:
    scheduler = AngularScheduler(solver="ddpm")
    scheduler.set_timesteps(4)
    x, u, t = randn(2, 3, seed=0), randn(2, 3, seed=1), scheduler.timesteps[0]

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(s) for s in (4, 5)]

    drawn = torch.cat([torch.randn((1, 3), generator=g, dtype=torch.float64) for g in generators()])
    each = scheduler.step(u, t, x, generator=generators()).prev_sample
    assert torch.equal(each, scheduler.step(u, t, x, variance_noise=drawn).prev_sample)
    with pytest.raises(ValueError, match="only one of generator and variance_noise"):
        scheduler.step(u, t, x, generator=generators(), variance_noise=drawn)
    with pytest.raises(ValueError, match="variance_noise and sample must have the same shape"):
        scheduler.step(u, t, x, variance_noise=drawn[:1])


@pytest.mark.parametrize("solver", ["dpm_solver++2m", "heun"])
def test_a_run_may_start_in_the_middle_and_start_again(solver: str) -> None:
    """As image-to-image pipelines do; a solver with memory then has none to read."""
    scheduler = AngularScheduler(solver=solver)
    grid = Schedule.linear().respace(20, "leading")
    scheduler.set_timesteps(20)
    middle = grid.timesteps[8].item()
    options = {} if solver == "heun" else {"lower_order_final": False}
    plan = PLANS[solver](grid.up_to(middle), param=parse_parameterization("epsilon"), **options)
    x = randn(2, 3, seed=0)
    start = scheduler.timesteps.tolist().index(middle) + (solver == "heun")
    assert start == len(scheduler.timesteps) - len(plan)

    def remaining(x: Tensor) -> Tensor:
        for t in scheduler.timesteps[start:]:
            x = scheduler.step(network(x, t), t, x).prev_sample
        assert scheduler.step_index == len(scheduler.timesteps)
        return x

    expected = sample(lambda x, t: network(x, t.flatten()[0]), x, plan)
    whole = run(scheduler, x)
    assert torch.equal(remaining(x), expected)
    assert torch.equal(remaining(x), expected)  # again, with nothing left over
    assert torch.equal(run(scheduler, x), whole)


def test_a_refused_step_changes_nothing() -> None:
    scheduler, other = (AngularScheduler(solver="dpm_solver++2m") for _ in range(2))
    x = y = randn(2, 3, seed=0)
    for s in (scheduler, other):
        s.set_timesteps(5)
    for t in scheduler.timesteps:
        with pytest.raises(NonFiniteError):
            scheduler.step(torch.full_like(x, math.nan), t, x)
        x = scheduler.step(network(x, t), t, x).prev_sample
        y = other.step(network(y, t), t, y).prev_sample
    assert torch.equal(x, y)


@pytest.mark.parametrize("steps", [14, 20])
def test_the_last_step_of_a_late_start_has_the_order_of_the_whole_run(steps: int) -> None:
    """Fewer than 15 in the whole run, not in what is left of it: only then is the last one, which ends above 0, first order."""
    scheduler = AngularScheduler(solver="dpm_solver++2m", final_sigmas_type="sigma_min")
    scheduler.set_timesteps(steps)
    x, (before, last) = randn(2, 3, seed=0), scheduler.timesteps[-2:]
    y = scheduler.step(network(x, before), before, x).prev_sample
    with_memory = scheduler.step(network(y, last), last, y).prev_sample
    scheduler.set_timesteps(steps)
    without = scheduler.step(network(y, last), last, y).prev_sample
    assert torch.equal(with_memory, without) == (steps < 15)
