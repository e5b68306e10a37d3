"""Schedules: each table against its formula in 50 digits or in independent float64, and the operations on tables.

A table from betas is ``phi = atan2(sqrt(-expm1(L)), exp(L/2))`` with ``L`` a sum of terms of one sign: a relative error of at
most one unit 2^-53 per step in L, half of it in phi where phi is small, and less elsewhere. The first step has a few units.
"""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import UNIT, schedules

from diffparam import FLOW_STATE, VE, VP, NonFiniteError, Schedule, UnknownName
from diffparam.angle import HALF_PI

FEW = settings(max_examples=60)
U = 2.0**-53
DIGITS = 50


def exact_angles(betas) -> list[float]:
    """Angles of a list of mpmath betas, rounded at the end."""
    with mpmath.workdps(DIGITS):
        alpha_bar, angles = mpmath.mpf(1), []
        for beta in betas:
            alpha_bar *= 1 - beta
            angles.append(float(mpmath.atan2(mpmath.sqrt(1 - alpha_bar), mpmath.sqrt(alpha_bar))))
    return angles


def assert_angles(schedule: Schedule, expected, rel: float, per_step: float = 0.0) -> None:
    """Relative agreement to ``rel``, and ``per_step`` more with every step."""
    error = np.abs(schedule.phi.numpy() / np.asarray(expected) - 1)
    excess = error / (rel + per_step * np.arange(len(schedule)) + 1e-300)
    assert excess.max() <= 1, f"error is {excess.max():.3g} of its bound at step {excess.argmax()}"


# -- the tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_cosine_is_its_formula(steps):
    # Nichol & Dhariwal 2021, eq. 17: f(t) = cos^2((t/T + 0.008)/1.008 pi/2), beta = min(1 - f(t+1)/f(t), 0.999).
    with mpmath.workdps(DIGITS):

        def f(i):
            return mpmath.cos((mpmath.mpf(i) / steps + mpmath.mpf("0.008")) / mpmath.mpf("1.008") * mpmath.pi / 2) ** 2

        betas = [min(1 - f(i + 1) / f(i), mpmath.mpf("0.999")) for i in range(steps)]
    # The angles a and b of the first step are 0.0125 and known to 2^-53 of that, their difference 0.0016 to 8 units; later
    # angles grow to 1.5 with the same difference: 1000 units of beta, and as many of the sum.
    assert_angles(Schedule.cosine(steps), exact_angles(betas), rel=16 * U, per_step=2 * U)


def test_cosine_is_clipped_at_its_end_only():
    schedule = Schedule.cosine(1000)
    kept = schedule.alpha_bar[1:] / schedule.alpha_bar[:-1]
    assert kept[-1].item() == pytest.approx(0.001, rel=1e-10)  # cos(phi) near pi/2: 1e-16 / 5e-5 known, squared
    unclipped = Schedule.cosine(1000, max_beta=1.0)
    assert_angles(unclipped.take(range(999)), schedule.phi[:-1], rel=0)
    assert unclipped.phi[-1] > schedule.phi[-1]
    gentle = Schedule.cosine(1000, max_beta=0.02)
    clipped, free = (1 - s.alpha_bar[1:-1] / s.alpha_bar[:-2] for s in (gentle, unclipped))
    torch.testing.assert_close(clipped, free.clamp(max=0.02), rtol=0, atol=1e-10)
    assert (free > 0.02).sum() > 90  # tan of the angle above 0.02 / (pi / 1008): the last tenth of the steps


def test_linear_and_scaled_linear_are_their_formulas():
    for schedule, low, high, power in (
        (Schedule.linear(1000), "0.0001", "0.02", 1),
        (Schedule.scaled_linear(1000), "0.00085", "0.012", 2),
        (Schedule.linear(7, beta_start=0.1, beta_end=0.5), "0.1", "0.5", 1),
    ):
        with mpmath.workdps(DIGITS):
            ends = [mpmath.mpf(v) ** (mpmath.mpf(1) / power) for v in (low, high)]
            count = len(schedule)
            betas = [(ends[0] + (ends[1] - ends[0]) * i / (count - 1)) ** power for i in range(count)]
        assert_angles(schedule, exact_angles(betas), rel=8 * U, per_step=U)


def test_the_float32_tables_of_the_field_agree_to_float32():
    # The usual recipe, float32 throughout. cumprod over N steps: N 2^-24 of alpha_bar.
    betas = torch.linspace(1e-4, 0.02, 1000)
    usual = torch.cumprod(1.0 - betas, dim=0)
    ours = Schedule.linear(1000).alpha_bar
    torch.testing.assert_close(usual.double(), ours, rtol=1000 * UNIT[torch.float32], atol=0)
    # Negative control: 1 - alpha_bar of that recipe has lost digits at the first step, ours has not.
    exact = 1e-4
    assert abs((1 - usual[0].double()).item() / exact - 1) > 1e-5
    assert Schedule.linear(1000).sigma[0].item() ** 2 == pytest.approx(exact, rel=4 * U)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_rectified_flow_is_its_formula(shift):
    schedule = Schedule.rectified_flow(50, shift=shift)
    with mpmath.workdps(DIGITS):
        times = [shift * mpmath.mpf(i) / 50 / (1 + (mpmath.mpf(shift) - 1) * i / 50) for i in range(1, 51)]
        angles = [float(mpmath.atan2(t, 1 - t)) for t in times]
    np.testing.assert_allclose(schedule.timesteps.numpy(), [float(1000 * t) for t in times], rtol=8 * U)
    np.testing.assert_allclose(schedule.phi.numpy(), angles, rtol=16 * U)
    assert schedule.phi[-1] == HALF_PI
    assert schedule.timesteps[-1] == 1000.0
    assert schedule.state == FLOW_STATE
    # The state is (1 - t) x + t eps.
    x0, eps = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).unbind()
    t = float(times[20])
    noised = schedule.add_noise(x0, eps, schedule.timesteps[20].item())
    torch.testing.assert_close(noised, (1 - t) * x0 + t * eps, rtol=1e-15, atol=1e-15)


def test_karras_is_its_formula():
    schedule = Schedule.karras(18)
    with mpmath.workdps(DIGITS):
        low, high = (mpmath.mpf(v) ** (mpmath.mpf(1) / 7) for v in (0.002, 80.0))
        sigmas = [(low + (high - low) * i / 17) ** 7 for i in range(18)]
        angles = [float(mpmath.atan(s)) for s in sigmas]
        timesteps = [float(mpmath.log(s) / 4) for s in sigmas]
    assert_angles(schedule, angles, rel=32 * U)  # a seventh power: seven times the 3 roundings of its base
    np.testing.assert_allclose(schedule.timesteps.numpy(), timesteps, atol=32 * U)
    np.testing.assert_allclose(schedule.phi.tan()[[0, -1]].numpy(), [0.002, 80.0], rtol=200 * U)  # tan at 80: 81 units
    assert schedule.state == VE


@FEW
@given(schedules())
def test_every_schedule_rises_within_the_quarter_circle(schedule):
    assert schedule.phi.dtype is torch.float64
    assert schedule.phi.device.type == "cpu"
    assert bool((schedule.phi.diff() > 0).all())
    assert bool((schedule.timesteps.diff() > 0).all())
    assert schedule.phi[0] >= 0
    assert schedule.phi[-1] <= HALF_PI
    assert len(schedule) == len(schedule.timesteps)
    assert repr(len(schedule)) in repr(schedule)
    assert repr(schedule.name) in repr(schedule)


@FEW
@given(schedules())
def test_the_same_angles_in_other_terms(schedule):
    np.testing.assert_allclose((schedule.alpha**2 + schedule.sigma**2).numpy(), 1.0, rtol=4 * U)
    torch.testing.assert_close(schedule.alpha_bar, schedule.alpha**2, rtol=2 * U, atol=0)
    inner = schedule.phi < HALF_PI - 1e-3
    log_snr = -2 * schedule.phi.tan().log()
    # tan near pi/2 is known to 1e-16 / 1e-3.
    torch.testing.assert_close(schedule.log_snr[inner], log_snr[inner], rtol=0, atol=1e-12)
    assert bool((schedule.log_snr.diff() < 0).all())


# -- there and back ---------------------------------------------------------------------------------------------------


@FEW
@given(schedules())
def test_angles_lead_back_bit_for_bit(schedule):
    for values in (schedule.phi, schedule.phi.tolist(), schedule.phi.numpy()):
        assert torch.equal(Schedule.from_angles(values).phi, schedule.phi)


@FEW
@given(schedules())
def test_other_terms_lead_back(schedule):
    # What each table can say: sigma and log-SNR keep small angles and, up to pi/2 - 1e-3, large ones to 1e3 units; alpha_bar
    # keeps phi only to 2^-53 / sin(2 phi), because 1 - alpha_bar has lost digits where phi is small.
    schedule = schedule.up_to(schedule.timesteps[max(0, int((schedule.phi < HALF_PI - 1e-3).sum()) - 1)].item())
    assume(bool((schedule.phi < HALF_PI - 1e-3).all()) and bool((schedule.phi.diff() > 1e-9).all()))
    phi = schedule.phi
    from_sigmas = Schedule.from_sigmas(phi.tan())
    torch.testing.assert_close(from_sigmas.phi, phi, rtol=8 * U, atol=8 * U)
    assert from_sigmas.state == VE
    assert Schedule.from_sigmas(phi.tan(), state=VP).state == VP
    # d(phi) = sin(2 phi)/4 d(lambda), and lambda below 30 is known to 2^-49
    torch.testing.assert_close(Schedule.from_log_snr(schedule.log_snr).phi, phi, rtol=2.0**-49, atol=0)
    again = Schedule.from_alphas_cumprod(schedule.alpha_bar).phi
    assert bool(((again - phi).abs() <= 8 * U / (2 * phi).sin() + 4 * U).all())


@FEW
@given(st.lists(st.floats(1e-6, 0.3), min_size=1, max_size=30))
def test_betas_lead_back(betas):
    schedule = Schedule.from_betas(betas)
    # beta = 1 - a_t/a_s = sin(phi_t - phi_s) sin(phi_t + phi_s) / cos(phi_s)^2. The angles are known to about 30 units, so
    # their difference, and beta, to 30 phi / (phi_t - phi_s).
    phi = torch.cat([torch.zeros(1, dtype=torch.float64), schedule.phi])
    low, high = phi[:-1], phi[1:]
    recovered = (high - low).sin() * (high + low).sin() / low.cos() ** 2
    slack = (len(betas) + 8) * 4 * U * high / (high - low) / low.cos()
    assert bool(((recovered / torch.tensor(betas, dtype=torch.float64) - 1).abs() <= slack).all())


def test_extreme_signal_to_noise_does_not_overflow():
    # phi = atan(exp(-lambda/2)): at lambda = 700 exp(-350) = 1e-152 is fine, and at -60 pi/2 - 1e-13.
    lam = [700.0, 100.0, 0.0, -60.0]
    schedule = Schedule.from_log_snr(lam)
    with mpmath.workdps(DIGITS):
        assert_angles(schedule, [float(mpmath.atan(mpmath.exp(-mpmath.mpf(v) / 2))) for v in lam], rel=350 * 4 * U)
    assert Schedule.from_log_snr([1400.0, 0.0]).phi[0] == pytest.approx(math.exp(-700.0), rel=1e-12)


def test_small_angles_keep_their_digits():
    # Betas of 1e-12: 1 - alpha_bar in double has four digits left; phi = sqrt(beta) keeps all.
    schedule = Schedule.from_betas([1e-12, 1e-12])
    assert_angles(schedule, exact_angles([mpmath.mpf(1e-12)] * 2), rel=4 * U)
    naive = math.acos(math.sqrt((1 - 1e-12) * (1 - 1e-12)))
    assert abs(naive / schedule.phi[1].item() - 1) > 1e-6  # negative control


# -- zero terminal SNR ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Schedule.linear, Schedule.scaled_linear, Schedule.cosine], ids=["linear", "scaled", "cosine"])
def test_zero_terminal_snr_is_the_published_algorithm(make):
    schedule = make(1000)
    rescaled = schedule.rescale_zero_terminal_snr()
    # Lin et al. 2023, algorithm 1, on sqrt(alpha_bar), in 50 digits from the same angles.
    with mpmath.workdps(DIGITS):
        root = [mpmath.cos(mpmath.mpf(p)) for p in schedule.phi.tolist()]
        root = [(v - root[-1]) * root[0] / (root[0] - root[-1]) for v in root]
        expected = [float(mpmath.acos(v)) for v in root]
    # 1 - cos' is a difference whose terms it is at least a third of; about 8 roundings each, halved by the root.
    assert_angles(rescaled, expected, rel=32 * U)
    assert rescaled.phi[-1] == HALF_PI
    assert rescaled.phi[0] == schedule.phi[0]
    assert torch.equal(rescaled.timesteps, schedule.timesteps)
    assert "zero terminal SNR" in rescaled.name


@FEW
@given(schedules())
def test_zero_terminal_snr_only_adds_noise(schedule):
    rescaled = schedule.rescale_zero_terminal_snr()
    assert bool((rescaled.phi >= schedule.phi * (1 - 32 * U)).all())
    assert rescaled.phi[-1] == HALF_PI
    again = rescaled.rescale_zero_terminal_snr()
    torch.testing.assert_close(again.phi, rescaled.phi, rtol=64 * U, atol=0)  # nothing is left to do


# -- respacing --------------------------------------------------------------------------------------------------------


def improved_diffusion_stride(total: int, count: int) -> list[int]:
    """space_timesteps of improved diffusion for one section, in its own arithmetic: a running sum, rounded half to even."""
    stride, at, taken = (total - 1) / (count - 1), 0.0, []
    for _ in range(count):
        taken.append(round(at))
        at += stride
    return taken


COUNTS = st.tuples(st.integers(2, 1200), st.integers(2, 1200)).map(lambda c: (max(c), min(c)))


@FEW
@given(COUNTS)
def test_fractional_is_improved_diffusions_stride(counts):
    total, count = counts
    schedule = Schedule.from_angles(np.linspace(0.1, 1.5, total))
    assert schedule.respace(count, "fractional").timesteps.tolist() == improved_diffusion_stride(total, count)


def test_fractional_ties_follow_the_running_sum():
    # 999/20 = 49.95: ten strides are 499.5 exactly, which would round to 500, but the running sum arrives just below.
    schedule = Schedule.linear(1000)
    ours = schedule.respace(21).timesteps.tolist()
    assert ours == improved_diffusion_stride(1000, 21)
    assert ours[10] == 499
    assert round(10 * 999 / 20) == 500


@FEW
@given(COUNTS, st.sampled_from(["fractional", "linspace", "leading", "trailing"]))
def test_every_spacing_takes_that_many_rising_angles(counts, spacing):
    total, count = counts
    schedule = Schedule.from_angles(np.linspace(0.1, 1.5, total))
    kept = schedule.respace(count, spacing)
    assert len(kept) == count
    assert bool((kept.phi.diff() > 0).all())
    assert torch.equal(kept.phi, schedule.phi[kept.timesteps])  # each with its own timestep
    assert kept.state == schedule.state
    first, last = kept.timesteps[0].item(), kept.timesteps[-1].item()
    if spacing in ("fractional", "linspace"):
        assert (first, last) == (0, total - 1)
    elif spacing == "leading":
        assert first == 0
        assert kept.timesteps.diff().unique().tolist() == [total // count]
    else:
        assert last == total - 1
    if spacing != "leading":  # evenly: no gap differs from another by more than rounding to a whole number can make
        gaps = kept.timesteps.diff()
        assert gaps.max() - gaps.min() <= 2


@FEW
@given(COUNTS)
def test_spacings_are_those_of_diffusers(counts):
    total, count = counts
    schedule = Schedule.from_angles(np.linspace(0.1, 1.5, total))
    linspace = np.linspace(0, total - 1, count).round().astype(int)
    assert schedule.respace(count, "linspace").timesteps.tolist() == linspace.tolist()
    leading = (np.arange(0, count) * (total // count)).round().astype(int)
    assert schedule.respace(count, "leading").timesteps.tolist() == leading.tolist()
    if leading[-1] + 1 < total:
        assert schedule.respace(count, "leading", offset=1).timesteps.tolist() == (leading + 1).tolist()
    trailing = np.round(np.arange(total, 0, -total / count)).astype(int)[:count][::-1] - 1
    assert schedule.respace(count, "trailing").timesteps.tolist() == trailing.tolist()


@FEW
@given(schedules())
def test_all_steps_are_all_steps(schedule):
    for spacing in ("fractional", "linspace", "leading", "trailing"):
        assert torch.equal(schedule.respace(len(schedule), spacing).phi, schedule.phi)
    assert len(schedule.respace(1, "trailing")) == len(schedule.respace(1, "leading")) == 1
    assert schedule.respace(1, "trailing").phi[0] == schedule.phi[-1]


@FEW
@given(schedules(), st.data())
def test_parts_of_a_schedule(schedule, data):
    at = data.draw(st.integers(0, len(schedule) - 1))
    t = schedule.timesteps[at].item()
    assert torch.equal(schedule.up_to(t).phi, schedule.phi[: at + 1])
    assert schedule.take([at]).timesteps.tolist() == [t]
    assert schedule.with_state(VE).state == VE
    assert torch.equal(schedule.with_state(VE).phi, schedule.phi)


# -- timesteps to angles ----------------------------------------------------------------------------------------------


@FEW
@given(schedules(), st.data())
def test_a_timestep_finds_its_angle(schedule, data):
    index = data.draw(st.lists(st.integers(0, len(schedule) - 1), min_size=1, max_size=5))
    many = schedule.phi_at(schedule.timesteps[index])
    assert torch.equal(many, schedule.phi[index])
    for i in index:
        one = schedule.phi_at(schedule.timesteps[i].item())
        assert isinstance(one, float)
        assert one == schedule.phi[i].item()
    assert schedule.phi_at(schedule.timesteps[index].reshape(1, -1)).shape == (1, len(index))


@pytest.mark.parametrize("t", [-1, 10, 2.5, math.nan, torch.tensor([3, 11])])
def test_a_foreign_timestep_is_refused(t):
    with pytest.raises(ValueError, match=r"t must be a timestep of this schedule \(0 .. 9, 10 of them\), got .*; take it from"):
        Schedule.linear(10).phi_at(t)


# -- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_samples_get_their_noise(dtype, generator):
    # At t = 0 of the linear schedule sigma is 0.01. A narrow dtype can hold 0.01 z perfectly well.
    schedule = Schedule.linear(1000)
    count = 20_000
    x0 = torch.zeros(count, dtype=dtype)
    eps = torch.randn(count, generator=generator).to(dtype)
    noised = schedule.add_noise(x0, eps, 0)
    assert noised.dtype is dtype
    # One rounding of the sum: relative 2^-8 (bf16) of each value; the sample standard deviation itself 1/sqrt(2N), five of it.
    expected = schedule.sigma[0].item()
    assert noised.double().std().item() == pytest.approx(expected, rel=UNIT[dtype] + 5 / math.sqrt(2 * count))
    exact = expected * eps.double()
    normal = exact.abs() > torch.finfo(dtype).smallest_normal
    assert bool(((noised.double() / exact - 1).abs()[normal] <= UNIT[dtype] + 4 * UNIT[torch.float32]).all())


def test_casting_alpha_bar_to_bf16_adds_no_noise():
    # Negative control: what public schedulers do. alpha_bar = 1 - 1e-4 is 1 in bf16, which has spacing 1/256 below 1, so the
    # coefficient of the noise is sqrt(1 - 1) = 0 for every step with 1 - alpha_bar < 1/512.
    schedule = Schedule.linear(1000)
    cast = schedule.alpha_bar.to(torch.bfloat16)
    coefficient = (1 - cast) ** 0.5
    silent = coefficient == 0
    assert silent.sum() >= 5
    assert bool(silent[0])
    eps = torch.ones(4, dtype=torch.bfloat16)
    assert torch.equal((cast[0] ** 0.5) * eps + coefficient[0] * eps, eps)  # x0 = eps = 1: no noise was added
    for t in silent.nonzero().flatten().tolist():
        assert schedule.add_noise(torch.zeros(4, dtype=torch.bfloat16), eps, t).min() >= 0.0099


@FEW
@given(schedules(), st.data(), st.sampled_from(list(UNIT)))
def test_noise_per_batch_item(schedule, data, dtype):
    assume(schedule.state is not VE or schedule.phi[-1] < HALF_PI)
    index = data.draw(st.lists(st.integers(0, len(schedule) - 1), min_size=2, max_size=2))
    generator = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(2, 3, dtype=torch.float64, generator=generator).to(dtype) for _ in range(2))
    batched = schedule.add_noise(x0, eps, schedule.timesteps[index])
    assert batched.dtype is dtype
    scale = schedule.state.scale(schedule.phi)
    for row, i in enumerate(index):
        a = schedule.alpha[i] * (scale if schedule.state is VP else scale[i])
        b = schedule.sigma[i] * (scale if schedule.state is VP else scale[i])
        exact = a * x0[row].double() + b * eps[row].double()
        # Narrow: one rounding, and three of float32 in the terms. Wide: three of its own, and the coefficients' two.
        unit = UNIT[dtype] if dtype is torch.float64 else UNIT[torch.float32]
        bound = 6 * unit * (a * x0[row].double().abs() + b * eps[row].double().abs())
        bound = bound + UNIT[dtype] * exact.abs() * 1.01 + float(torch.finfo(dtype).tiny) * torch.finfo(dtype).eps
        assert bool(((batched[row].double() - exact).abs() <= bound).all())


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Schedule.from_betas([0.1, 1.2]), ValueError, r"betas must lie in \(0, 1\], got 1.2 at position 1"),
        (lambda: Schedule.from_betas([0.0]), ValueError, r"betas must lie in \(0, 1\], got 0.0 at position 0"),
        (lambda: Schedule.from_betas([1.0, 0.5]), ValueError, "phi must rise strictly, got 1.57.* then 1.57"),
        (lambda: Schedule.from_alphas_cumprod([0.9, -0.1]), ValueError, r"alphas_cumprod must lie in \[0, 1\], got -0.1"),
        (lambda: Schedule.from_alphas_cumprod([0.5, 0.9]), ValueError, "phi must rise strictly"),
        (lambda: Schedule.from_alphas_cumprod([0.9, 0.9]), ValueError, "phi must rise strictly.*equal neighbours"),
        (lambda: Schedule.from_sigmas([-1.0]), ValueError, r"sigmas must lie in \[0, inf\), got -1.0"),
        (lambda: Schedule.from_log_snr([0.0, math.inf]), NonFiniteError, "log_snr must be finite, got inf at position 1"),
        (lambda: Schedule.from_angles([]), ValueError, r"phi must be one-dimensional and not empty, got shape \(0,\)"),
        (lambda: Schedule.from_angles([[0.1]]), ValueError, r"phi must be one-dimensional and not empty, got shape \(1, 1\)"),
        (lambda: Schedule.from_angles([0.1, 1.6]), ValueError, r"phi must lie in \[0, pi/2\] radians, got 1.6"),
        (lambda: Schedule([0.1]), TypeError, "phi must be a float64 torch tensor, got list; see Schedule.from_angles"),
        (lambda: Schedule(torch.tensor([0.1])), TypeError, "phi must be float64, got torch.float32"),
        (lambda: Schedule.from_angles([0.1], timesteps=[1]), TypeError, "timesteps must be a torch tensor, got list; use"),
        (
            lambda: Schedule.from_angles([0.1], timesteps=torch.tensor([1, 2])),
            ValueError,
            r"timesteps must have the shape of phi \(1,\), got \(2,\)",
        ),
        (lambda: Schedule.from_angles([0.1, 0.2], timesteps=torch.tensor([2, 1])), ValueError, "timesteps must rise strictly"),
        (
            lambda: Schedule.from_angles([0.1, 0.2], timesteps=torch.tensor([1.0, math.nan])),
            ValueError,
            "timesteps must rise strictly, got 1.0 then nan",
        ),
        (lambda: Schedule.linear(10).take([3, 1]), ValueError, "phi must rise strictly"),
        (lambda: Schedule.linear(10).up_to(-1), ValueError, "t must be at least the first timestep 0, got -1"),
        (lambda: Schedule.linear(10).respace(11), ValueError, "num_steps must be at least 1 and at most 10, got 11"),
        (lambda: Schedule.linear(10).respace(2.0), TypeError, "num_steps must be a whole number, got float"),
        (lambda: Schedule.linear(10).respace(1), ValueError, "num_steps must be at least 2 for 'fractional'.*use 'trailing'"),
        (lambda: Schedule.linear(10).respace(5, "leeding"), UnknownName, "spacing must be one of .* mean 'leading'"),
        (lambda: Schedule.linear(10).respace(5, offset=1), ValueError, "offset must be 0 unless spacing is 'leading', got 1"),
        (lambda: Schedule.linear(10).respace(5, "leading", offset=7), ValueError, "offset must leave the last index below 10"),
        (
            lambda: Schedule.linear(1).rescale_zero_terminal_snr(),
            ValueError,
            "must have at least 2 steps to be rescaled, got 1",
        ),
        (lambda: Schedule.linear(0), ValueError, "num_steps must be at least 1, got 0"),
        (lambda: Schedule.linear(10, beta_start=-0.1), ValueError, r"beta_start must lie in \[0, inf\), got -0.1"),
        (lambda: Schedule.linear(10, beta_end="x"), TypeError, "beta_end must be a number, got str"),
        (lambda: Schedule.cosine(10, max_beta=0.0), ValueError, r"max_beta must lie in \(0, 1\], got 0.0"),
        (lambda: Schedule.rectified_flow(10, shift=0.0), ValueError, r"shift must lie in \(0, inf\), got 0.0"),
        (lambda: Schedule.karras(1), ValueError, "num_steps must be at least 2, got 1"),
        (lambda: Schedule.karras(5, sigma_min=2.0, sigma_max=1.0), ValueError, r"sigma_max must lie in \(2, inf\), got 1.0"),
    ],
)
def test_a_bad_schedule_is_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_pure_noise_in_sigma_space_is_refused():
    schedule = Schedule.cosine(10).rescale_zero_terminal_snr().with_state(VE)
    x = torch.zeros(2, 3)
    for t in (9, torch.tensor([0, 9])):
        with pytest.raises(ValueError, match="phi must be below pi/2 in sigma-space"):
            schedule.add_noise(x, x, t)
    assert bool(schedule.add_noise(x, x + 1, 8).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.int8])
def test_unsigned_timesteps_that_fall_are_refused(dtype):
    """Their differences wrap around."""
    phi = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    with pytest.raises(ValueError, match="timesteps must rise strictly, got 5 then 3"):
        Schedule(phi, torch.tensor([1, 5, 3], dtype=dtype))
    assert Schedule(phi, torch.tensor([1, 3, 5], dtype=dtype)).phi_at(3) == 0.2


def test_noising_can_be_mapped_and_compiled(generator):
    schedule = Schedule.cosine(100)
    x, eps = (torch.randn(4, 3, generator=generator) for _ in range(2))
    t = torch.tensor([0, 30, 60, 99])
    expected = schedule.add_noise(x, eps, t)
    assert torch.equal(torch.vmap(schedule.add_noise)(x, eps, t), expected)
    compiled = torch.compile(schedule.add_noise, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, eps, t), expected)
