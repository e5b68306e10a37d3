"""One contract for every parameterization x schedule x error model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffparam import (
    EPSILON,
    FLOW,
    SCORE,
    X0,
    AdditiveError,
    AngularParam,
    ErrorModel,
    GaussianMixture,
    RelativeError,
    RoundingError,
    Schedule,
    SingularParameterization,
    Trajectory,
    V,
    ddim_sample,
    ddim_step,
    step_error_gain,
)

SIGMA_DATA = 0.5
DATA = GaussianMixture.gaussian(SIGMA_DATA, dim=4)
PARAMS = [EPSILON, X0, V, FLOW, SCORE, AngularParam.edm(0.8), AngularParam.optimal(2.0), -V]
SCHEDULES = [
    Schedule.cosine().respace(5),
    Schedule.linear().respace(5, "trailing"),
    Schedule.linear().rescale_zero_terminal_snr().respace(5),
    Schedule.rectified_flow(5, shift=3.0),
    Schedule.karras(5),
]
ERRORS = [
    RelativeError("rms", "constant"),
    RelativeError("rms", "uniform"),
    RelativeError("rms", "gaussian"),
    RelativeError("rms", "rademacher"),
    RoundingError("bfloat16"),
    RoundingError("float16"),
    RoundingError("bfloat16", "stochastic"),
    RoundingError("bfloat16", "toward_zero"),
    AdditiveError(0.01),
]


def draws(seed: int = 11) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(schedule: Schedule, dtype: torch.dtype = torch.float64, count: int = 16) -> Tensor:
    """States at the last angle of the schedule, in its convention."""
    phi = float(schedule.phi[-1])
    source = draws(7)
    x0 = DATA.sample(count, source)
    x = math.cos(phi) * x0 + math.sin(phi) * torch.randn(x0.shape, dtype=torch.float64, generator=source)
    return (x * schedule.state.scale(phi)).to(dtype)


def is_singular(param: AngularParam, schedule: Schedule) -> bool:
    """Whether output and state are one direction at an angle of the schedule: the last is the only candidate here."""
    return schedule.phi[-1].item() == math.pi / 2 and param in (EPSILON, SCORE)


def label(value: object) -> str:
    """A readable test id."""
    if isinstance(value, RelativeError):
        return f"relative-{value.law}"
    if isinstance(value, RoundingError):
        return f"{value.fmt.name}-{value.mode}"
    return getattr(value, "name", type(value).__name__).replace(", ", "-").replace(" ", "-")


EVERY = [(param, schedule) for param in PARAMS for schedule in SCHEDULES]
REGULAR = [(param, schedule) for param, schedule in EVERY if not is_singular(param, schedule)]
on_every = pytest.mark.parametrize(("param", "schedule"), EVERY, ids=label)
on_regular = pytest.mark.parametrize(("param", "schedule"), REGULAR, ids=label)
with_every_error = pytest.mark.parametrize("error", ERRORS, ids=label)


def sample(param: AngularParam, schedule: Schedule, dtype: torch.dtype = torch.float64, **options) -> Tensor:
    network = DATA.model(schedule, param)
    return ddim_sample(network, start(schedule, dtype), schedule, param=param, generator=draws(), **options)


@on_every
def test_it_samples_or_says_at_once_where_it_cannot(param: AngularParam, schedule: Schedule) -> None:
    if is_singular(param, schedule):
        with pytest.raises(SingularParameterization) as caught:
            ddim_sample(lambda x, t: 1 / 0, start(schedule), schedule, param=param)
        assert caught.value.timestep == schedule.timesteps[-1]
        assert caught.value.param == param.name
    else:
        assert sample(param, schedule).isfinite().all()


@on_regular
def test_all_networks_describe_one_trajectory(param: AngularParam, schedule: Schedule) -> None:
    # Per step a few 2^-53 of terms of size kappa |x_t|, in units of the VP state; |x| < 5 of 64 normal numbers.
    kappa = sum(param.condition_number(phi) for phi in schedule.phi.tolist())
    assert torch.allclose(sample(param, schedule), sample(V, schedule), rtol=0, atol=64 * 2.0**-53 * 5 * kappa)


@on_regular
@with_every_error
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_shape_dtype_and_finiteness_survive_every_error(
    param: AngularParam, schedule: Schedule, error: ErrorModel, dtype: torch.dtype
) -> None:
    for place in ("output_error", "state_error", "coefficient_error"):
        got = sample(param, schedule, dtype, **{place: error})
        assert (got.dtype, got.shape) == (dtype, (16, 4))
        assert got.isfinite().all()


@on_regular
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_an_error_of_size_zero_is_no_error(param: AngularParam, schedule: Schedule, dtype: torch.dtype) -> None:
    clean = sample(param, schedule, dtype)
    for nothing in (RelativeError(0.0), RelativeError(0.0, "gaussian"), AdditiveError(0.0)):
        for place in ("output_error", "state_error", "coefficient_error"):
            assert torch.equal(sample(param, schedule, dtype, **{place: nothing}), clean)
    assert not torch.equal(sample(param, schedule, dtype, output_error=RelativeError(0.1)), clean)  # the control


@on_regular
@with_every_error
def test_one_error_in_the_output_is_the_one_predicted(param: AngularParam, schedule: Schedule, error: ErrorModel) -> None:
    """rms(error) = gain * rms(u) * error.rms for a relative error and gain * scale for an additive one (eq. 18)."""
    count = 20_000  # times 4 channels
    phi_t, phi_s = float(schedule.phi[-1]), float(schedule.phi[-2])
    x_t = start(schedule, count=count) / schedule.state.scale(phi_t)
    u = DATA.output(x_t, phi_t, param=param)
    clean = ddim_step(u, x_t, phi_t, phi_s, param=param)
    moved = ddim_step(u, x_t, phi_t, phi_s, param=param, output_error=error, generator=draws())
    gain = abs(step_error_gain(phi_t, phi_s, param=param))
    size = u.square().mean().sqrt().item()
    if isinstance(error, RoundingError) and size < 16 * error.fmt.smallest_normal:
        # Among the subnormal numbers no relative error is promised: half a spacing, plus what float64 makes of x_s.
        bound = gain * (error.fmt.unit_roundoff * u.abs() + error.fmt.smallest_subnormal / 2) + 4 * 2.0**-53 * x_t.abs()
        assert ((moved - clean).abs() <= bound).all()
        return
    predicted = gain * (error.scale if isinstance(error, AdditiveError) else size * error.rms)
    got = (moved - clean).square().mean().sqrt().item()
    # 80000 draws: five standard errors are 5 sqrt(8) / (2 sqrt(80000)) = 2.5% for the Gaussian law of a Gaussian output.
    # Rounding: rms is that of a log-uniform significand, off by 0.3% for a Gaussian one, and toward zero by another part of
    # order eps = 1/128.
    assert got == pytest.approx(predicted, rel=0.03)


@on_regular
def test_two_runs_of_one_seed_are_one_run(param: AngularParam, schedule: Schedule) -> None:
    noisy = {"output_error": RelativeError(0.01, "gaussian"), "state_error": RoundingError("bf16", "stochastic")}
    records = Trajectory(), Trajectory()
    first, second = (sample(param, schedule, eta=0.5, record=record, **noisy) for record in records)
    assert torch.equal(first, second)
    assert records[0].phi == records[1].phi
    assert all(torch.equal(a, b) for a, b in zip(records[0].outputs, records[1].outputs, strict=True))


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s.phi[-1] < math.pi / 2], ids=label)
def test_rounded_output_costs_what_kappa_says(schedule: Schedule) -> None:
    """At the noisy end, against v: the ratio of the errors is the ratio of kappa rms(u/r), not of anything else."""
    phi_t, phi_s = float(schedule.phi[-1]), float(schedule.phi[-2])
    x_t = start(schedule, count=20_000) / schedule.state.scale(phi_t)

    def cost(param: AngularParam) -> tuple[float, float]:
        u = DATA.output(x_t, phi_t, param=param)
        clean = ddim_step(u, x_t, phi_t, phi_s, param=param)
        moved = ddim_step(u, x_t, phi_t, phi_s, param=param, output_error=RoundingError("bf16"))
        size = (u / param.r_at(phi_t)).square().mean().sqrt().item()
        return (moved - clean).square().mean().sqrt().item(), size * param.condition_number(phi_t)

    for param in (FLOW, X0, EPSILON):
        (error, kappa), (error_v, kappa_v) = cost(param), cost(V)
        assert error / error_v == pytest.approx(kappa / kappa_v, rel=0.03)
