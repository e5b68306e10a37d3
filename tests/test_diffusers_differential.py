"""Against diffusers: the same steps given float64 tables, the same configs, and where it leaves its own grid."""

from __future__ import annotations

import itertools
import math
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from diffparam import (
    FLOW,
    FLOW_STATE,
    VE,
    AngularParam,
    GaussianMixture,
    Schedule,
    UnknownName,
    V,
    ddim_invert,
    ddim_sample,
    ddim_step,
    param_from_config,
    parse_parameterization,
    schedule_from_config,
)
from diffparam.integrations.diffusers_scheduler import AngularScheduler
from diffparam.solvers.loop import plan_ddim

U = 2.0**-53
"""Unit roundoff of float64."""
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SCHEDULES = {"linear": Schedule.linear(), "scaled_linear": Schedule.scaled_linear(), "cosine": Schedule.cosine()}


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def named(scheduler: Any) -> dict[str, Any]:
    """Its config as it would be saved: ``scheduler.config`` itself leaves the class out."""
    return {"_class_name": type(scheduler).__name__, **scheduler.config}


def in_float64(scheduler, schedule: Schedule):
    """The scheduler with its float32 table replaced, so that the formulas are compared and not the tables."""
    scheduler.alphas_cumprod = schedule.alpha_bar
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.initial_alpha_cumprod = scheduler.final_alpha_cumprod
    return scheduler


def tolerance(phi_t: float, phi_s: float, size: float) -> float:
    """What diffusers loses by forming 1 - alpha_bar from alpha_bar, known to a few u.

    sin(phi_t)^2 to a relative u / sin^2, and x0 and eps are divided by cos(phi_t) or sin(phi_t); with eta,
    sin(phi_s)^2 - sigma^2 is left over from a difference of size sin(phi_s)^2, down to sin(phi_s)^4 cos(phi_t)^2.
    """
    cos_t, sin_t, sin_s = math.cos(phi_t), math.sin(phi_t), math.sin(phi_s) or 1.0
    return 64 * U * size * (1 / cos_t + 1 / sin_t**2 + 1 / (sin_s**2 * cos_t))


# -- one step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_ddim_step_is_that_of_diffusers(name: str, prediction: str, eta: float) -> None:
    schedule, param = SCHEDULES[name], parse_parameterization(prediction)
    scheduler = in_float64(DDIMScheduler(prediction_type=prediction, clip_sample=False), schedule)
    scheduler.set_timesteps(20)  # divides 1000: its own grid and its steps agree
    u, x_t, z = (randn(4, 16, seed=s) for s in (1, 2, 3))
    relative = []
    for t in scheduler.timesteps.tolist():
        phi_t, phi_s = schedule.phi_at(t), schedule.phi_at(t - 50) if t >= 50 else 0.0
        noise = {"variance_noise": z} if eta else {}
        theirs = scheduler.step(u, t, x_t, eta=eta, **noise).prev_sample
        ours = ddim_step(u, x_t, phi_t, phi_s, param=param, eta=eta, noise=z if eta else None)
        difference = (ours - theirs).abs().max().item()
        assert difference < tolerance(phi_t, phi_s, size=4.0), t
        relative.append(difference / theirs.abs().max().item())
    assert sorted(relative)[10] < 1e-14  # at most timesteps nothing at all is lost


def test_the_comparison_notices_the_neighbouring_timestep() -> None:
    schedule = SCHEDULES["linear"]
    scheduler = in_float64(DDIMScheduler(prediction_type="v_prediction", clip_sample=False), schedule)
    scheduler.set_timesteps(20)
    u, x_t = randn(4, 16, seed=1), randn(4, 16, seed=2)
    theirs = scheduler.step(u, 500, x_t).prev_sample
    wrong = ddim_step(u, x_t, schedule.phi_at(500), schedule.phi_at(451), param=V)
    assert (wrong - theirs).abs().max().item() > 1e6 * tolerance(schedule.phi_at(500), schedule.phi_at(450), size=4.0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_eta_one_is_the_ddpm_step_of_diffusers(prediction: str) -> None:
    """Mean and noise: the posterior of consecutive training timesteps and of a coarser grid."""
    schedule, param = SCHEDULES["linear"], parse_parameterization(prediction)
    scheduler = in_float64(DDPMScheduler(prediction_type=prediction, clip_sample=False, variance_type="fixed_small"), schedule)
    u, x_t = randn(4, 16, seed=1), randn(4, 16, seed=2)
    for steps, times in ((1000, (999, 500, 40, 3)), (25, (960, 520, 40))):
        scheduler.set_timesteps(steps)
        for t in times:
            phi_t, phi_s = schedule.phi_at(t), schedule.phi_at(t - 1000 // steps)
            theirs = scheduler.step(u, t, x_t, generator=torch.Generator().manual_seed(5)).prev_sample
            ours = ddim_step(u, x_t, phi_t, phi_s, param=param, eta=1.0, noise=randn(4, 16, seed=5))
            assert (ours - theirs).abs().max().item() < tolerance(phi_t, phi_s, size=4.0), (steps, t)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_inversion_step_is_that_of_diffusers(prediction: str) -> None:
    schedule, param = SCHEDULES["scaled_linear"], parse_parameterization(prediction)
    scheduler = in_float64(DDIMInverseScheduler(prediction_type=prediction, clip_sample=False), schedule)
    scheduler.set_timesteps(20)
    u, x_t = randn(4, 16, seed=1), randn(4, 16, seed=2)
    for t in scheduler.timesteps.tolist()[1:]:  # its first step starts from clean data, where no angle is above 0
        phi_t, phi_s = schedule.phi_at(t - 50), schedule.phi_at(t)
        theirs = scheduler.step(u, t, x_t).prev_sample
        ours = ddim_step(u, x_t, phi_t, phi_s, param=param)
        assert (ours - theirs).abs().max().item() < tolerance(phi_t, phi_s, size=4.0), t


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_matching_step_is_that_of_diffusers(shift: float) -> None:
    schedule = Schedule.rectified_flow(1000, shift=shift)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    t = torch.tensor([0.95, 0.6, 0.25, 0.04, 0.0], dtype=torch.float64)
    u, x_t = randn(4, 16, seed=1), randn(4, 16, seed=2).float()  # it casts the sample to float32 whatever it is given
    for now, then in itertools.pairwise(t):
        scheduler.sigmas = torch.stack([now, then])
        scheduler.timesteps = 1000 * now[None]
        scheduler._step_index = 0
        theirs = scheduler.step(u, scheduler.timesteps[0], x_t).prev_sample
        phi_t, phi_s = (math.atan2(v, 1 - v) for v in (now.item(), then.item()))
        ours = ddim_step(u, x_t.double(), phi_t, phi_s, param=FLOW, state=FLOW_STATE)
        # No cancellation on either side: a few roundings of |x_t| + |u| < 8.
        assert (ours - theirs).abs().max().item() < 32 * U * 8
    sigmas = FlowMatchEulerDiscreteScheduler(shift=shift).sigmas.flip(0).double()
    ours = schedule.phi.tan() / (1 + schedule.phi.tan())
    assert torch.allclose(ours[:-1], sigmas[:-1], rtol=1e-6)  # its table is float32
    assert torch.allclose(schedule.timesteps, 1000 * sigmas, rtol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_an_edm_step_is_that_of_diffusers_and_its_names_mean_plus_and_minus_f(prediction: str) -> None:
    scheduler = EDMEulerScheduler(sigma_data=0.5, prediction_type=prediction)
    scheduler.set_timesteps(6)
    param = param_from_config(named(scheduler))
    u, x = randn(4, 16, seed=1), randn(4, 16, seed=2).float()
    for i, (now, then) in enumerate(itertools.pairwise(scheduler.sigmas.double())):
        scheduler.sigmas = scheduler.sigmas.double()
        scheduler._step_index, scheduler.is_scale_input_called = i, True
        clean = scheduler.precondition_outputs(x.double(), u, now)  # within step() c_skip * sample would be float32
        theirs = scheduler.step(u, scheduler.timesteps[i], x, pred_original_sample=clean).prev_sample
        ours = ddim_step(u, x.double(), math.atan(now), math.atan(then), param=param, state=VE)
        # The angle of sigma is a double: its cosine, and with it the scale 1 / cos, is known to a relative u sigma.
        assert (ours - theirs).abs().max().item() < 32 * U * 4 * max(1.0, now.item())
    assert param == (AngularParam.edm(0.5) if prediction == "epsilon" else -AngularParam.edm(0.5))


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_whole_run_is_that_of_diffusers(prediction: str) -> None:
    schedule, param = SCHEDULES["linear"], parse_parameterization(prediction)
    scheduler = in_float64(DDIMScheduler(prediction_type=prediction, clip_sample=False), schedule)
    scheduler.set_timesteps(50)
    grid = schedule.respace(50, "leading")
    assert scheduler.timesteps.tolist() == grid.timesteps.flip(0).tolist()
    model = GaussianMixture.gaussian(0.5, dim=4).model(schedule, param)
    x = theirs = randn(8, 4, seed=1)
    for t in scheduler.timesteps:
        theirs = scheduler.step(model(theirs, t.expand(8)), int(t), theirs).prev_sample
    # 50 steps, each off by at most the one-step tolerance: its largest at the last step, where sin(phi)^2 is 1e-4.
    assert (ddim_sample(model, x, grid, param=param) - theirs).abs().max().item() < 50 * tolerance(float(grid.phi[0]), 0.0, 4.0)


# -- where diffusers parts from its own grid ----------------------------------------------------------------------------


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 10), ("linspace", 20), ("trailing", 7)])
def test_diffusers_does_not_step_to_the_timestep_it_visits_next(spacing: str, steps: int) -> None:
    """Its DDIM step goes from t to t - 1000 // n, its grid to another timestep: the next network call is told a wrong time.

    Shown here so that nobody "fixes" the difference by copying it; our plan is a chain.
    """
    schedule = SCHEDULES["linear"]
    scheduler = in_float64(DDIMScheduler(prediction_type="v_prediction", clip_sample=False, timestep_spacing=spacing), schedule)
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.tolist()
    assert times == schedule.respace(steps, spacing).timesteps.flip(0).tolist()  # the same grid
    t, visited, stepped = times[0], times[1], times[0] - 1000 // steps
    assert visited != stepped
    u, x_t = randn(4, 16, seed=1), randn(4, 16, seed=2)
    theirs = scheduler.step(u, t, x_t).prev_sample
    lands = {s: ddim_step(u, x_t, schedule.phi_at(t), schedule.phi_at(s), param=V) for s in (visited, stepped)}
    small = tolerance(schedule.phi_at(t), schedule.phi_at(stepped), 4.0)
    assert (lands[stepped] - theirs).abs().max().item() < small
    assert (lands[visited] - theirs).abs().max().item() > 1e6 * small
    plan = plan_ddim(schedule.respace(steps, spacing), param=V)
    assert all(a.phi_s == b.phi_t for a, b in itertools.pairwise(plan))


def test_the_last_step_of_diffusers_may_stop_short_of_clean() -> None:
    """With trailing spacing the last timestep is n - 1 above 0, and t - 1000 // n need not be negative."""
    schedule = SCHEDULES["linear"]
    scheduler = in_float64(DDIMScheduler(clip_sample=False, timestep_spacing="trailing"), schedule)
    scheduler.set_timesteps(7)
    last = scheduler.timesteps[-1].item()
    assert (last, last - 1000 // 7) == (142, 0)
    assert plan_ddim(schedule.respace(7, "trailing"), param=V)[-1].phi_s == 0.0


# -- configs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("cls", [DDIMScheduler, DDPMScheduler])
def test_a_config_gives_the_table_of_its_scheduler(cls, kind: str, zero_snr: bool) -> None:
    scheduler = cls(beta_schedule=kind, rescale_betas_zero_snr=zero_snr)
    ours = schedule_from_config(scheduler.config)
    # float32: a product of 1000 factors, each off by 2^-24, and by another 2^-24 / alpha where beta was stored.
    theirs = scheduler.alphas_cumprod.double()
    factor = ours.alpha_bar.clone()
    factor[1:] /= ours.alpha_bar[:-1]
    bound = 4 * 2.0**-24 * (1 / factor.clamp(min=1e-30)).cumsum(0)
    assert ((ours.alpha_bar - theirs).abs() <= bound * ours.alpha_bar.clamp(min=1e-30) + 1e-12).all()
    assert len(ours) == 1000
    if zero_snr:
        assert ours.phi[-1].item() == math.pi / 2


def test_trained_betas_and_other_lengths_are_read() -> None:
    betas = [0.01, 0.2, 0.7]
    scheduler = DDIMScheduler(num_train_timesteps=3, trained_betas=betas)
    assert torch.allclose(schedule_from_config(scheduler.config).alpha_bar.float(), scheduler.alphas_cumprod, rtol=1e-6)
    assert len(schedule_from_config(DDPMScheduler(num_train_timesteps=77).config)) == 77
    assert len(schedule_from_config({})) == 1000


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_config_names_what_the_network_predicts(prediction: str) -> None:
    config = DDIMScheduler(prediction_type=prediction).config
    assert param_from_config(config) == parse_parameterization(prediction)
    assert param_from_config(named(FlowMatchEulerDiscreteScheduler())) == FLOW


def test_the_sigmas_of_edm_are_read() -> None:
    scheduler = EDMEulerScheduler(sigma_min=0.01, sigma_max=20.0, rho=5.0)
    scheduler.set_timesteps(9)
    ours = Schedule.karras(9, sigma_min=0.01, sigma_max=20.0, rho=5.0)
    assert torch.allclose(ours.phi.tan().flip(0), scheduler.sigmas[:-1].double(), rtol=1e-6)
    assert torch.allclose(ours.timesteps.flip(0), scheduler.timesteps.double(), rtol=1e-5, atol=1e-7)
    read = schedule_from_config(named(scheduler))
    assert read.phi[[0, -1]].tan().tolist() == pytest.approx([0.01, 20.0], rel=1e-14)
    assert read.state == VE


def test_configs_that_are_not_covered_are_refused() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'DDIMScheduler'"):
        schedule_from_config({"_class_name": "DDIMSchedulr"})
    with pytest.raises(UnknownName, match="beta_schedule"):
        schedule_from_config({"beta_schedule": "sigmoid"})
    with pytest.raises(ValueError, match="use_dynamic_shifting"):
        schedule_from_config(named(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)))
    with pytest.raises(UnknownName, match="sigma_schedule"):
        schedule_from_config(named(EDMEulerScheduler(sigma_schedule="exponential")))
    with pytest.raises(UnknownName, match="prediction_type"):
        param_from_config({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"})
    for read in (schedule_from_config, param_from_config):
        for scheduler in (FlowMatchEulerDiscreteScheduler(), EDMEulerScheduler()):
            with pytest.raises(ValueError, match="_class_name must be in the config"):
                read(scheduler.config)  # never read as a linear schedule of betas with epsilon
    with pytest.raises(TypeError, match="mapping"):
        schedule_from_config("scheduler_config.json")


def test_a_whole_inversion_is_that_of_diffusers() -> None:
    schedule = SCHEDULES["linear"]
    scheduler = in_float64(DDIMInverseScheduler(prediction_type="v_prediction", clip_sample=False), schedule)
    scheduler.set_timesteps(20)
    grid = schedule.respace(20, "leading")
    model = GaussianMixture.gaussian(0.5, dim=4).model(schedule, V)
    x = theirs = randn(8, 4, seed=1)
    for t in scheduler.timesteps.tolist()[1:]:
        told = torch.full((8,), t - 50)
        theirs = scheduler.step(model(theirs, told), t, theirs).prev_sample
    assert (ddim_invert(model, x, grid, param=V) - theirs).abs().max().item() < 20 * tolerance(float(grid.phi[0]), 1.0, 4.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, inside diffusers
@pytest.mark.parametrize("name", ["DDIM", "HeunDiscrete", "KDPM2Discrete", "LCM", "TCD"])
def test_a_sparse_config_means_the_defaults_of_its_class(name):
    name = f"{name}Scheduler"
    theirs = getattr(diffusers, name)().alphas_cumprod.double()
    ours = schedule_from_config({"_class_name": name}).alpha_bar
    assert torch.allclose(ours, theirs, rtol=1e-3)  # their table is a float32 product of a thousand factors


@pytest.mark.parametrize("name", ["CogVideoXDDIMScheduler", "IPNDMScheduler", "DDPMWuerstchenScheduler"])
def test_a_schedule_that_is_not_covered_is_refused_without_its_class_too(name: str) -> None:
    config = getattr(diffusers, name)().config
    with pytest.raises(ValueError, match=r"_class_name must be|option of the schedule"):
        schedule_from_config(config)


def test_a_shift_that_depends_on_the_image_is_refused_for_all_flow_sigmas() -> None:
    told = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "use_dynamic_shifting": True}
    with pytest.raises(ValueError, match="use_dynamic_shifting must be off"):
        schedule_from_config(told)


@pytest.mark.parametrize(
    "options",
    [
        {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        {"prediction_type": "optimal", "sigma_data": 0.5},
        {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow"},
    ],
)
def test_the_config_of_our_own_scheduler_is_read(options: dict[str, Any]) -> None:
    scheduler = AngularScheduler(**options)
    assert torch.equal(schedule_from_config(scheduler.config).phi, scheduler._training.phi)
    assert param_from_config(scheduler.config) == parse_parameterization(
        options["prediction_type"], sigma_data=options.get("sigma_data")
    )
