"""The solvers against diffusers in float64, step by step and as whole runs; and where diffusers does something else.

Its schedulers hold float32 tables. They are replaced by our float64 ones, so that formulas are compared and not tables.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler
from torch import Tensor

from diffparam import (
    FLOW,
    FLOW_STATE,
    VE,
    VP,
    GaussianMixture,
    Schedule,
    V,
    parse_parameterization,
    plan_ddpm,
    plan_dpm_solver,
    plan_heun,
    sample,
)
from diffparam.solvers.step import advance

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""diffusers hands torch tensors to np.array."""
U = 2.0**-53
"""Unit roundoff of float64."""
PREDICTIONS = ("epsilon", "sample", "v_prediction")
LINEAR = Schedule.linear()
DATA = GaussianMixture(
    torch.tensor([[-1.0, 0.5, 0.0], [1.0, 0.0, -0.5]], dtype=torch.float64), torch.tensor([0.5, 0.3], dtype=torch.float64)
)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- DDPM -------------------------------------------------------------------------------------------------------------

VARIANCES = {"posterior": "fixed_small", "upper": "fixed_large"}


def ddpm(prediction: str, variance: str, steps: int, **options: Any) -> DDPMScheduler:
    scheduler = DDPMScheduler(prediction_type=prediction, clip_sample=False, variance_type=VARIANCES[variance], **options)
    scheduler.alphas_cumprod, scheduler.one = LINEAR.alpha_bar, torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(steps)
    return scheduler


def ddpm_tolerance(phi_t: float, phi_s: float, size: float) -> float:
    """What diffusers loses by forming 1 - alpha_bar_t, 1 - alpha_bar_s and 1 - alpha_t / alpha_s from numbers known to a few u.

    The first two are known to u / sin^2, beta to u / beta; x0 is divided by cos(phi_t).
    """
    beta = math.sin(phi_t - phi_s) * math.sin(phi_t + phi_s) / math.cos(phi_s) ** 2
    return 64 * U * size / math.cos(phi_t) * (1 + 1 / beta + 1 / math.sin(phi_t) ** 2 + 1 / max(math.sin(phi_s), 1e-2) ** 2)


@pytest.mark.parametrize("steps", [1000, 50])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_ddpm_step_is_that_of_diffusers(prediction: str, variance: str, steps: int) -> None:
    scheduler = ddpm(prediction, variance, steps)
    grid = LINEAR.respace(steps, "leading")
    plan = plan_ddpm(grid, param=parse_parameterization(prediction), variance=variance)
    assert scheduler.timesteps.tolist() == plan.timestep.tolist()
    u, x = randn(4, 8, seed=1), randn(4, 8, seed=2)
    for k in {0, 1, steps // 2, steps - 2, steps - 1}:
        step = plan[k]
        theirs = scheduler.step(u, step.timestep, x, generator=seeded()).prev_sample
        ours, _ = advance(step.coefficients, u, x, None, generator=seeded())
        assert (ours - theirs).abs().max().item() < ddpm_tolerance(step.phi_t, step.phi_s, 4.0), step.timestep
        if step.coefficients.noise:
            other, _ = advance(step.coefficients, u, x, None, generator=seeded(8))
            assert (other - theirs).abs().max().item() > 1e-3  # and the noise is in it


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_whole_ddpm_run_is_that_of_diffusers(prediction: str, variance: str) -> None:
    scheduler, param = ddpm(prediction, variance, 50), parse_parameterization(prediction)
    plan = plan_ddpm(LINEAR.respace(50, "leading"), param=param, variance=variance)
    model = DATA.model(LINEAR, param)
    x = theirs = randn(8, 3, seed=1)
    ours = sample(model, x, plan, generator=seeded())
    draws = seeded()
    for t in scheduler.timesteps:
        theirs = scheduler.step(model(theirs, t.expand(8)), t, theirs, generator=draws).prev_sample
    # 50 steps, each off by at most the largest one-step tolerance; the ancestral chain does not amplify.
    largest = max(ddpm_tolerance(step.phi_t, step.phi_s, 4.0) for step in plan)
    assert (ours - theirs).abs().max().item() < 50 * largest < 1e-7


@pytest.mark.parametrize(("spacing", "options"), [("trailing", {}), ("leading", {"steps_offset": 1})])
def test_diffusers_adds_noise_to_its_final_sample_where_the_last_timestep_is_not_zero(spacing: str, options: dict) -> None:
    """It asks for t > 0, not for a step that ends at t > 0; with the large variance that noise is as large as sin(phi_t).

    Shown so that nobody "fixes" the difference: no variance of ours is above 0 at a clean end.
    """
    scheduler = ddpm("v_prediction", "upper", 10, timestep_spacing=spacing, **options)
    last = int(scheduler.timesteps[-1])
    assert last > 0
    u, x = randn(4, 8, seed=1), randn(4, 8, seed=2)
    theirs = scheduler.step(u, last, x, generator=seeded()).prev_sample
    grid = LINEAR.respace(10, spacing, offset=options.get("steps_offset", 0))
    step = plan_ddpm(grid, param=V, variance="upper")[-1]
    assert (step.timestep, step.coefficients.noise) == (last, 0.0)
    ours, _ = advance(step.coefficients, u, x, None)
    phi = LINEAR.phi_at(last)
    z = torch.randn(4, 8, dtype=torch.float64, generator=seeded())
    assert (theirs - ours - math.sin(phi) * z).abs().max().item() < 64 * U * 4 / math.sin(phi) ** 2
    assert (theirs - ours).abs().max().item() > 0.5 * math.sin(phi)


# -- DPM-Solver++ -----------------------------------------------------------------------------------------------------


class Float64Dpm:
    """diffusers' DPM-Solver++(2M) with float64 sigmas, by its own methods.

    Its ``step`` cannot be used: it casts the sample to float32 before the update (shown below).
    """

    def __init__(self, grid: Schedule, prediction: str, **options: Any) -> None:
        flow = prediction == "flow_prediction"
        self.scheduler = DPMSolverMultistepScheduler(
            prediction_type=prediction, final_sigmas_type="zero", use_flow_sigmas=flow, **options
        )
        self.scheduler.set_timesteps(len(grid))
        noise, signal = grid.phi.flip(0).sin(), grid.phi.flip(0).cos()
        sigmas = noise / (noise + signal) if flow else noise / signal
        self.scheduler.sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
        self.count, self.before = len(grid), None

    def step(self, u: Tensor, k: int, x: Tensor) -> Tensor:
        self.scheduler._step_index = k
        clean = self.scheduler.convert_model_output(u, sample=x)
        if k in (0, self.count - 1):
            after = self.scheduler.dpm_solver_first_order_update(clean, sample=x)
        else:
            after = self.scheduler.multistep_dpm_solver_second_order_update([self.before, clean], sample=x)
        self.before = clean
        return after


@pytest.mark.parametrize("steps", [6, 14, 15, 40])
@pytest.mark.parametrize("prediction", [*PREDICTIONS, "flow_prediction"])
def test_a_whole_dpm_solver_run_is_that_of_diffusers(prediction: str, steps: int) -> None:
    flow = prediction == "flow_prediction"
    grid = Schedule.rectified_flow(1000).take(range(20, 990)).respace(steps) if flow else LINEAR.respace(steps)
    param = FLOW if flow else parse_parameterization(prediction)
    theirs = Float64Dpm(grid, prediction)
    model = DATA.model(grid, param)
    plan = plan_dpm_solver(grid, param=param)
    assert grid.state == (FLOW_STATE if flow else VP)
    x = y = randn(8, 3, seed=1)
    for k, step in enumerate(plan):
        y = theirs.step(model(y, torch.full((8,), step.timestep)), k, y)
    ours = sample(model, x, plan)
    # Sigmas are known to u tan(phi) < 200 u, x0 of epsilon is divided by cos(phi) > 0.006; 40 steps, gains of a mixture to 1e2.
    assert (ours - y).abs().max().item() < 40 * 64 * U * 200 * 1e2
    assert (ours - y).abs().max().item() < 1e-8


@pytest.mark.parametrize("steps", [6, 14, 15, 40])
def test_the_order_of_each_step_is_chosen_as_diffusers_does(steps: int) -> None:
    """Its public ``step`` in float32, with its own table: float32 accuracy, and far less than a wrong order costs."""
    scheduler = DPMSolverMultistepScheduler(prediction_type="v_prediction", final_sigmas_type="zero")
    scheduler.set_timesteps(steps)
    grid = LINEAR.take(sorted(scheduler.timesteps.tolist()))
    model, x = DATA.model(grid, V), randn(8, 3, seed=1)
    y, plan = x.float(), plan_dpm_solver(grid, param=V)
    for t in scheduler.timesteps:
        y = scheduler.step(model(y, t.expand(8)), t, y).prev_sample
    ours = sample(model, x, plan)
    assert (ours - y).abs().max().item() < 2e-4
    first_order = sample(model, x, plan_ddpm(grid, param=V, temperature=0.0))
    assert (first_order - y).abs().max().item() > 1e-2


def test_diffusers_takes_a_float64_sample_through_float32() -> None:
    """The update of a float64 sample is float32's; ours keeps the digits."""
    grid = LINEAR.respace(20)
    exact = Float64Dpm(grid, "v_prediction")
    u, x = randn(4, 8, seed=1), randn(4, 8, seed=2)
    wanted = exact.step(u, 0, x)
    exact.scheduler._step_index = 0
    theirs = exact.scheduler.step(u, exact.scheduler.timesteps[0], x).prev_sample
    ours, _ = advance(plan_dpm_solver(grid, param=V)[0].coefficients, u, x, None)
    assert theirs.dtype is torch.float64
    assert 2.0**-26 < (theirs - wanted).abs().max().item() < 2.0**-22
    # sigma = tan(phi) and back: u tan(phi), with tan(phi) = 160 at the first step.
    assert (ours - wanted).abs().max().item() < 64 * U * 4 * 160


def test_diffusers_starts_below_zero_terminal_snr() -> None:
    """Where alpha_bar is exactly zero it puts 2**-24 in its table: sigma = 4096. Our plan begins at pi/2."""
    scheduler = DPMSolverMultistepScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    scheduler.set_timesteps(20)
    assert scheduler.sigmas[0].item() == pytest.approx(4096, rel=1e-6)
    grid = LINEAR.rescale_zero_terminal_snr().respace(20)
    assert plan_dpm_solver(grid, param=V).phi_t[0] == math.pi / 2
    assert math.atan(scheduler.sigmas[0].item()) < math.pi / 2 - 2e-4


# -- Heun -------------------------------------------------------------------------------------------------------------


def heun(grid: Schedule, prediction: str) -> HeunDiscreteScheduler:
    """diffusers' Heun with float64 sigmas, each but the first twice and a zero at the end."""
    scheduler = HeunDiscreteScheduler(prediction_type=prediction)
    scheduler.set_timesteps(len(grid))
    sigmas = grid.phi.tan().flip(0)
    assert len(scheduler.sigmas) == 2 * len(grid)
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2), torch.zeros(1, dtype=torch.float64)])
    scheduler._step_index = 0
    return scheduler


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_whole_heun_run_is_that_of_diffusers(prediction: str) -> None:
    """Network calls included: as many, at the same angles, in the same order."""
    grid, param = LINEAR.respace(15).with_state(VE), parse_parameterization(prediction)
    scheduler, plan = heun(grid, prediction), plan_heun(grid, param=param)
    model = DATA.model(grid, param)
    x = y = randn(8, 3, seed=1) * VE.scale(plan.phi_t[0].item())
    for step in plan:
        assert scheduler.sigmas[scheduler.step_index].item() == pytest.approx(math.tan(step.phi_t), rel=1e-15)
        y = scheduler.step(model(y, torch.full((8,), step.timestep)), step.timestep, y).prev_sample
    ours = sample(model, x, plan)
    # Sigma-space states begin at 160 times 4; sigmas are known to 160 u; then 29 calls and gains of a mixture to 1e2.
    assert (ours - y).abs().max().item() < 29 * 64 * U * 160 * 4 * 1e2
    assert (ours - y).abs().max().item() < 1e-8


def test_the_halves_of_a_heun_step_are_those_of_diffusers() -> None:
    """With any numbers for outputs: the Euler point, then the corrected one, and not the other way round."""
    grid = LINEAR.respace(15).with_state(VE)
    scheduler, plan = heun(grid, "v_prediction"), plan_heun(grid, param=V)
    x, memory, seen = randn(4, 8, seed=1), None, []
    theirs = x
    for k, step in enumerate(plan):
        u = randn(4, 8, seed=10 + k)
        theirs = scheduler.step(u, step.timestep, theirs).prev_sample
        x, memory = advance(step.coefficients, u, x, memory)
        seen.append((x - theirs).abs().max().item() / theirs.abs().max().item())
    assert max(seen) < 1e-11
    assert all(a.phi_s == b.phi_t for a, b in pairwise(plan))
