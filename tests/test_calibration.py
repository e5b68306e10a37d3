"""A network's own error: what is fitted, and what it predicts on other inputs."""

from __future__ import annotations

import copy
import dataclasses
import math
import weakref
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, SCHEDULE, Mlp, Residual, WithTime, inputs, mean_square, seeded
from torch import Tensor, nn

from diffparam import EPSILON, FORMATS, OutputMoments, V, predict_v
from diffparam.calibration import Calibration, calibrate, cast_inputs
from diffparam.errors import NonFiniteError
from diffparam.module_precision import BorrowedModule
from diffparam.network_error import NetworkError
from diffparam.prediction.budget import predict_error
from diffparam.prediction.sensitivity import gaussian_sensitivity
from diffparam.prediction.trace import trace_sensitivity
from diffparam.solvers.ddim import plan_ddim
from diffparam.solvers.loop import sample
from diffparam.state import FLOW_STATE, VE

HIGH_NOISE = (500, 700, 900, 990, 999)
ALL = (0, 20, 100, 300, *HIGH_NOISE)

# -- what it predicts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_the_prediction_meets_the_error_on_other_inputs(name: str) -> None:
    """Measured another way: a deep copy in bf16.

    Two rms values over 1024 samples: had a sample one error only, each would have a standard error of
    sqrt(2 / 1024) / 2 = 2.2%; with 16 or more elements it is well below.
    """
    make, event, extra = NETWORKS[name]
    net = seeded(make)
    calibration = calibrate(net, inputs(HIGH_NOISE, event, extra, count=1024))
    low = copy.deepcopy(net).bfloat16()
    for batch in inputs(HIGH_NOISE, event, extra, count=1024, seed=2):
        x_t, t, *rest = batch
        with torch.no_grad():
            u, u_low = net(*batch), low(x_t.bfloat16(), t, *(z.bfloat16() for z in rest))
        measured = math.sqrt(mean_square(u_low.double() - u.double()))
        predicted = math.sqrt(calibration.at(float(t[0])).energy(mean_square(u)))
        assert 0.95 < predicted / measured < 1.05, int(t[0])
        # the control: one rounding of the output alone
        assert FORMATS["bfloat16"].rms * math.sqrt(mean_square(u)) < 0.6 * measured


def test_a_calibration_of_other_timesteps_fails() -> None:
    """The negative control: an output that shrinks with the timestep while its error does not has no one delta."""
    net = seeded(Mlp)

    def difference(x: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:  # large terms that cancel, as a network without noise
        return copy.deepcopy(net).to(dtype)(x.to(dtype), t) + (1 - t[:, None].double() / 1000).to(dtype) - 1

    def run(timesteps: tuple[int, ...], seed: int) -> Calibration:
        networks = partial(difference, dtype=torch.float32), partial(difference, dtype=torch.bfloat16)
        return calibrate(networks[0], inputs(timesteps, seed=seed), low=networks[1])

    seen, other = run(HIGH_NOISE, 1), run(HIGH_NOISE, 2)
    np.testing.assert_allclose(np.sqrt(seen.at(other.timesteps).energy(other.output_sq) / other.error_sq), 1.0, atol=0.05)
    one_delta = np.sqrt(NetworkError(seen.relative[0]).energy(other.output_sq) / other.error_sq)
    assert one_delta.max() > 1.1 or one_delta.min() < 0.9


@pytest.mark.parametrize(("delta", "scale"), [(0.02, 0.0), (0.0, 0.01), (0.02, 0.01), (0.002, 0.05)])
def test_the_two_parts_are_told_apart(delta: float, scale: float) -> None:
    """A network with an error of known law.

    The standard error of a least-squares line through N squares of a Gaussian error is about sqrt(2 / N) of the energy at the
    mean; slope and intercept have a few times that.
    """
    net, error, draws = seeded(Mlp), NetworkError(delta, scale), torch.Generator().manual_seed(3)
    exact = BorrowedModule(net, torch.float64)
    calibration = calibrate(
        net, inputs((100, 900), count=4096), reference=torch.float64, low=lambda x, t: error.apply(exact(x.double(), t), draws)
    )
    noise = 10 * math.sqrt(2 / (4096 * 16)) * calibration.error_sq.max()
    np.testing.assert_allclose(calibration.delta**2, delta**2, atol=noise / calibration.output_sq.min())
    np.testing.assert_allclose(calibration.scale**2, scale**2, atol=noise)
    assert np.array_equal(calibration.counts, [4096, 4096])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_measured_energy_is_always_met(name: str) -> None:
    make, event, extra = NETWORKS[name]
    calibration = calibrate(seeded(make), inputs(ALL, event, extra, count=8))
    energy = calibration.delta**2 * calibration.output_sq + calibration.scale**2
    np.testing.assert_allclose(energy, calibration.error_sq, rtol=1e-12)
    np.testing.assert_allclose(calibration.at(ALL).energy(calibration.output_sq), calibration.error_sq, rtol=1e-12)
    np.testing.assert_allclose(calibration.relative**2, calibration.error_sq / calibration.output_sq, rtol=1e-12)
    assert np.array_equal(calibration.timesteps, ALL)


def test_weights_that_are_bf16_already_err_less() -> None:
    """The rounding of the weights is part of the error unless they have been rounded: a known share, and none in float32."""
    net = seeded(Mlp)
    fresh = calibrate(net, inputs(ALL)).error_sq
    rounded = calibrate(copy.deepcopy(net).bfloat16(), inputs(ALL)).error_sq
    assert (rounded < 0.8 * fresh).all()
    assert (rounded > 0.1 * fresh).all()
    nothing = calibrate(net, inputs(ALL), torch.float32)
    assert not nothing.error_sq.any()
    assert not nothing.delta.any()
    assert not nothing.scale.any()
    tiny = calibrate(net, inputs(ALL), torch.float32, reference=torch.float64)
    assert (tiny.relative < 2.0**-20).all()
    assert (tiny.relative > 2.0**-27).all()


def test_autocast_is_a_low_precision_too() -> None:
    net = Residual(seeded(Mlp))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        batch = next(inputs((500,)))
        u_low = net(*batch)
    single = calibrate(net, inputs((500,)), autocast=True)
    assert single.error_sq[0] == pytest.approx(mean_square(u_low.double() - net(*batch).detach().double()), rel=1e-9)
    autocast, cast = calibrate(net, inputs(ALL), autocast=True), calibrate(net, inputs(ALL))
    assert (autocast.error_sq < 0.5 * cast.error_sq).all()  # x_t and the sum stay in float32
    assert (autocast.error_sq > 0.01 * cast.error_sq).all()
    wide = calibrate(net, inputs(ALL), autocast=True, reference=torch.float64)  # which autocast itself would leave alone
    np.testing.assert_allclose(wide.error_sq, autocast.error_sq, rtol=1e-3)


def test_an_autocast_of_the_caller_does_not_reach_the_reference() -> None:
    net = seeded(Mlp)
    outside = calibrate(net, inputs(ALL))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = calibrate(net, inputs(ALL))
    assert np.array_equal(inside.error_sq, outside.error_sq)


def test_float16_has_an_error_of_its_own() -> None:
    calibration = calibrate(seeded(Mlp), inputs((500, 900)), torch.float16)
    ratio = calibration.relative / calibrate(seeded(Mlp), inputs((500, 900))).relative
    assert (ratio > 0.08).all()  # three bits more: an eighth
    assert (ratio < 0.18).all()


# -- functions ---------------------------------------------------------------------------------------------------------


def test_a_function_is_calibrated_against_another_or_by_its_inputs() -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        assert t.dtype is torch.int64
        return (x * 1.1 + x.square()).tanh()

    by_inputs = calibrate(network, inputs(ALL), cast=cast_inputs)
    given_low = calibrate(network, inputs(ALL), low=lambda x, t: network(x, t))
    assert np.array_equal(by_inputs.error_sq, given_low.error_sq)
    assert (by_inputs.error_sq > 0).all()
    with pytest.raises(TypeError, match="low="):
        calibrate(network, inputs(ALL))


def test_inputs_are_cast_but_for_the_time() -> None:
    x, t, mask = torch.ones(2, 3), torch.tensor([0.1, 0.2], dtype=torch.float64), torch.tensor([True, False])
    nested = {"z": x, "more": [x, (mask, "text", None)]}
    got = cast_inputs((x, t, nested), torch.bfloat16)
    assert got[0].dtype is torch.bfloat16
    assert got[1] is t
    assert got[2]["z"].dtype is got[2]["more"][0].dtype is torch.bfloat16
    assert got[2]["more"][1] == (mask, "text", None)


def test_a_low_module_is_borrowed_too() -> None:
    net = seeded(Mlp)
    low = copy.deepcopy(net).bfloat16().train()
    assert np.array_equal(calibrate(net, inputs(ALL), low=low).error_sq, calibrate(net, inputs(ALL)).error_sq)
    assert low.training
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}


def test_both_precisions_see_the_same_random_numbers() -> None:
    def noisy(x: Tensor, t: Tensor) -> Tensor:
        return x.float() + torch.randn(x.shape)

    before = torch.random.get_rng_state()
    assert not calibrate(noisy, inputs(ALL), torch.float32, low=noisy).error_sq.any()
    assert torch.equal(torch.random.get_rng_state(), before)


# -- sums --------------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.lists(st.integers(1, 255), max_size=5, unique=True).map(sorted), st.randoms(use_true_random=False))
def test_the_result_does_not_depend_on_how_it_is_batched(cuts: list[int], random: Any) -> None:
    """Mixed timesteps, in any order and in any pieces: sums of at most 256 numbers, to a few units of float64."""
    x_t = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    t = torch.arange(256) % 3 * 100

    def network(x: Tensor, t: Tensor) -> Tensor:
        return x * (1 + t[:, None])

    pieces = [(x_t[a:b], t[a:b]) for a, b in pairwise([0, *cuts, 256])]
    random.shuffle(pieces)
    whole = calibrate(network, [(x_t, t)], cast=cast_inputs)
    got = calibrate(network, pieces, cast=cast_inputs)
    assert np.array_equal(got.timesteps, [0, 100, 200])
    for name in ("error_sq", "output_sq", "delta"):
        np.testing.assert_allclose(getattr(got, name), getattr(whole, name), rtol=1e-11, err_msg=name)
    assert np.array_equal(got.counts, whole.counts)


def test_nothing_is_kept_of_a_batch() -> None:
    """Of all outputs so far at most those of the batch at hand and the one before are alive; a list of them would be 2 x 20."""
    net, seen, most = seeded(Mlp), [], 0

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            nonlocal most
            u = self.net(x, t)
            seen.append(weakref.ref(u))
            most = max(most, sum(ref() is not None for ref in seen))
            return u

    calibrate(Watched(), inputs(tuple(range(0, 1000, 50)), count=8))
    assert len(seen) == 40
    assert most <= 4


def test_buckets_pool_their_timesteps() -> None:
    net, timesteps = seeded(Mlp), (0, 50, 99, 100, 500, 999)
    calibration = calibrate(net, inputs(timesteps), edges=(0, 100, 400, 500, 999))
    np.testing.assert_allclose(calibration.timesteps, [(0 + 50 + 99) / 3, 100, (500 + 999) / 2])
    assert np.array_equal(calibration.counts, [768, 256, 512])
    single = calibrate(net, inputs(timesteps))
    np.testing.assert_allclose(calibration.error_sq[0], single.error_sq[:3].mean(), rtol=1e-12)
    assert calibration.span == single.span == (0.0, 999.0)
    assert calibration.at(999).energy(1.0) > 0  # within what was measured, beyond the last mean timestep
    with pytest.raises(ValueError, match=r"t must lie within edges \[0, 400\], got 500"):
        calibrate(net, inputs(timesteps), edges=(0, 400))
    for wrong in ((0,), (3, 2), (1, 1)):
        with pytest.raises(ValueError, match="edges must be"):
            calibrate(net, inputs(timesteps), edges=wrong)


@pytest.mark.parametrize("state", [SCHEDULE.state, VE, FLOW_STATE])
@pytest.mark.parametrize("param", [EPSILON, V])
def test_moments_are_those_of_the_variance_preserving_state(state: Any, param: Any) -> None:
    net, schedule = seeded(Mlp), SCHEDULE.with_state(state)
    x_vp, t = next(inputs((700,)))
    phi = schedule.phi_at(700)
    x_t = x_vp.double() * state.scale(phi)
    got = calibrate(net, [(x_t.float(), t)], schedule=schedule, param=param).moments
    with torch.no_grad():
        v = predict_v(net(x_t.float(), t).double(), x_vp.double(), phi, param=param)
    wanted = OutputMoments.measure(x_vp.double(), v)
    # the state went through float32: relative 2^-24, and predict_v's gains are of order one here
    for name in ("x_sq", "x_v", "v_sq"):
        assert getattr(got, name)[0] == pytest.approx(getattr(wanted, name), rel=1e-5), name
    assert calibrate(net, inputs((700,))).moments is None


# -- at: from timesteps to an error model ------------------------------------------------------------------------------


def made(timesteps: list[float], error_sq: list[float], output_sq: list[float], share: list[float]) -> Calibration:
    t, e, u, s = (np.array(v, dtype=np.float64) for v in (timesteps, error_sq, output_sq, share))
    delta = np.sqrt(np.where(u > 0, s * e / np.where(u > 0, u, 1.0), 0.0))
    return Calibration(
        t, delta, np.sqrt((1 - s) * e), u, e, np.full(len(t), 9), (t[0], t[-1]), None, torch.bfloat16, torch.float32
    )


def test_between_timesteps_energies_are_interpolated_in_their_logarithms() -> None:
    calibration = made([0, 10], [1e-6, 1e-2], [1.0, 100.0], [1.0, 0.0])
    middle = calibration.at(5)
    # error 1e-4, output 10, half of it multiplicative: delta^2 = 0.5 x 1e-4 / 10, a^2 = 0.5 x 1e-4
    assert float(middle.delta) ** 2 == pytest.approx(0.5e-5)
    assert float(middle.scale) ** 2 == pytest.approx(0.5e-4)
    several = calibration.at([0, 5, 10])
    np.testing.assert_allclose(several.delta**2, [1e-6, 0.5e-5, 0.0])
    np.testing.assert_allclose(several.scale**2, [0.0, 0.5e-4, 1e-2])
    np.testing.assert_allclose(calibration.at(torch.tensor([0, 10])).delta, several.delta[[0, 2]])


def test_an_energy_of_zero_has_no_logarithm_and_needs_none() -> None:
    calibration = made([0, 10, 20], [0.0, 1e-4, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0])
    got = calibration.at([0, 5, 10, 20])
    np.testing.assert_allclose(got.energy(np.ones(4)), [0.0, 0.75e-4 - 0.5e-4 + 0.25e-4, 1e-4, 0.0])
    assert np.isfinite(calibration.relative).all()
    assert made([7], [1e-4], [1.0], [1.0]).at(7).energy(1.0) == pytest.approx(1e-4)
    assert made([7], [1e-4], [0.0], [0.0]).relative[0] == math.inf


def test_outside_of_what_was_measured_there_is_no_answer() -> None:
    calibration = made([10, 20], [1e-4, 1e-4], [1.0, 1.0], [1.0, 1.0])
    for t in (9.99, 20.01, math.nan):
        with pytest.raises(ValueError, match=r"where must lie in the calibrated timesteps \[10, 20\]"):
            calibration.at([15, t])
    plan = plan_ddim(SCHEDULE.respace(5), param=V)
    with pytest.raises(ValueError, match="got 999; calibrate on batches"):
        calibration.at(plan)
    with pytest.raises(ValueError, match="a plan, a timestep or a sequence"):
        calibration.at(np.full((2, 2), 15))
    with pytest.raises(ValueError, match="calibrate with schedule= and param="):
        calibration.moments_at([15])


# -- in a prediction ---------------------------------------------------------------------------------------------------


def test_a_prediction_takes_it() -> None:
    net, plan = seeded(Mlp), plan_ddim(SCHEDULE.respace(6), param=V)
    calibration = calibrate(net, inputs(ALL), schedule=SCHEDULE, param=V)
    error = calibration.at(plan)
    assert len(error) == len(plan)
    budget = predict_error(plan, 0.5, output=error, arithmetic=None, state=None)
    sizes = gaussian_sensitivity(plan, 0.5)
    assert budget.dominant == "output"
    expected = np.abs(sizes.output_gain) * np.sqrt(error.delta**2 * sizes.output_sq + error.scale**2)
    np.testing.assert_allclose(budget.sources["output"].final, expected, rtol=1e-12)
    assert budget.worst == math.inf
    assert not any(math.isnan(b) for b in budget.sources["output"].bounds)
    by_moments = predict_error(plan, calibration.moments_at(plan), output=error)
    assert 0 < by_moments.independent < by_moments.correlated < 1
    with pytest.raises(ValueError, match=r"mean_square must have one entry per call \(6\)"):
        predict_error(plan_ddim(SCHEDULE.respace(7), param=V), 0.5, output=error)


def test_each_part_of_the_error_has_its_own_gain() -> None:
    """Where gains and sizes of outputs go together, what scales with the output and what does not are amplified differently."""
    net = seeded(Mlp).double()
    plan = plan_ddim(SCHEDULE.respace(4), param=V)
    sizes = trace_sensitivity(lambda x, t: net(x, t) * x.square(), plan, next(inputs((999,)))[0])
    assert np.abs(sizes.relative_gain / np.sqrt(sizes.output_sq) / sizes.output_gain - 1).max() > 0.02

    def final(error: NetworkError) -> np.ndarray:
        return predict_error(plan, sizes, output=error, arithmetic=None, state=None).sources["output"].final

    both, relative, additive = final(NetworkError(0.01, 0.02)), final(NetworkError(0.01)), final(NetworkError(0.0, 0.02))
    np.testing.assert_allclose(both**2, relative**2 + additive**2, rtol=1e-12)
    np.testing.assert_allclose(relative, 0.01 * sizes.relative_gain, rtol=1e-12)
    np.testing.assert_allclose(additive, 0.02 * np.abs(sizes.output_gain), rtol=1e-12)


@pytest.mark.parametrize("rounded_before", [False, True])
def test_the_errors_of_a_run_add_up_as_far_as_they_are_the_weights(rounded_before: bool) -> None:
    """The same network in bf16 and in float32 over a whole run.

    Weights that are rounded are rounded alike in each call, and their errors add up: above the quadrature of independent ones,
    below the sum of all with one sign, as their measured correlation says. Of weights that are bf16 numbers only the
    activations round, nearly anew in each call.
    """
    net, plan = seeded(Mlp), plan_ddim(SCHEDULE.respace(50), param=V)
    low = copy.deepcopy(net).bfloat16()
    net = copy.deepcopy(low).float() if rounded_before else net
    x_init = torch.randn(256, 16, generator=torch.Generator().manual_seed(9))
    states: list[tuple[Tensor, Tensor]] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        states.append((x, t))
        return net(x, t)

    with torch.no_grad():
        exact = sample(network, x_init, plan)
        rounded = sample(lambda x, t: low(x.bfloat16(), t).float(), x_init, plan)
    sizes = trace_sensitivity(copy.deepcopy(net).double(), plan, x_init)
    error = calibrate(net, states, low=low, correlated=True).at(plan)
    source = predict_error(plan, sizes, output=error, arithmetic=None, state=None).sources["output"]
    measured = math.sqrt(mean_square(rounded.double() - exact.double()))
    assert source.predicted / measured == pytest.approx(1, abs=0.1)
    if rounded_before:
        assert 0.75 < source.independent / measured < 1.25
    else:
        assert 1.3 * source.independent < measured < source.correlated


def test_errors_of_a_known_correlation() -> None:
    """A constant error correlates with itself from timestep to timestep, one of alternating sign against itself, noise not."""
    net = seeded(Mlp)
    x = torch.randn(400, 16, generator=torch.Generator().manual_seed(1))
    x = x.bfloat16().float()
    batches = [(x, torch.full((400,), t)) for t in (100, 300, 500)]

    def correlation(error: Any) -> np.ndarray:
        found = calibrate(net, batches, low=lambda x, t: net(x.float(), t).double() + error(t), correlated=True).correlation
        assert found is not None
        return found

    np.testing.assert_allclose(correlation(lambda t: 1e-2), 1.0, atol=1e-6)
    signs = np.outer([1, -1, 1], [1, -1, 1])
    np.testing.assert_allclose(correlation(lambda t: 1e-2 if t[0] != 300 else -1e-2), signs, atol=1e-6)
    draws = torch.Generator().manual_seed(2)
    noisy = correlation(lambda t: 1e-2 * torch.randn(400, 16, generator=draws))
    np.testing.assert_allclose(noisy, np.eye(3), atol=5 / math.sqrt(6400))
    none = correlation(lambda t: 0.0 if t[0] == 300 else 1e-2)
    np.testing.assert_allclose(none, [[1, 0, 1], [0, 1, 0], [1, 0, 1]], atol=1e-6)


def test_correlation_is_taken_to_the_timesteps_of_a_plan() -> None:
    net, x = seeded(Mlp), torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    calibration = calibrate(net, [(x, torch.full((64,), t)) for t in (0, 400, 999)], correlated=True)
    plan = plan_ddim(SCHEDULE.respace(10), param=V)
    found = calibration.at(plan).correlation
    assert found.shape == (10, 10)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(np.diag(found), 1.0)
    first, last = calibration.at([400, 999]).correlation[0]
    assert (first, last) == (1.0, calibration.correlation[1, 2])
    middle = calibration.at([200.0, 999.0]).correlation[0, 1]
    assert middle == pytest.approx(calibration.correlation[:2, 2].mean(), rel=1e-9)
    assert calibration.at(400.0).correlation is None  # one call has nothing to correlate with
    assert calibrate(net, inputs(ALL)).correlation is None


@pytest.mark.parametrize("signs", [[1, 1, 1, 1], [1, -1, 1, -1]])
def test_correlated_errors_of_a_linear_run_add_with_their_signs(signs: list[int]) -> None:
    """The sum of what each does, which a kick at each call has been seen to do (``test_sensitivity``)."""
    plan = plan_ddim(SCHEDULE.respace(4), param=V)
    sizes = gaussian_sensitivity(plan, 0.5)
    error = NetworkError(np.zeros(4), np.full(4, 1e-3), np.outer(signs, signs))
    source = predict_error(plan, 0.5, output=error, arithmetic=None, state=None, timestep=None).sources["output"]
    assert source.predicted == pytest.approx(1e-3 * abs((np.array(signs) * sizes.output_gain).sum()), rel=1e-12)
    independent = predict_error(plan, 0.5, output=NetworkError(np.zeros(4), np.full(4, 1e-3), np.eye(4)), arithmetic=None)
    assert independent.sources["output"].predicted == pytest.approx(source.independent, rel=1e-12)


def test_correlated_errors_add_with_the_signs_of_their_gains() -> None:
    """A traced run whose gains change sign from call to call, into which the same error is put at each."""
    plan = plan_ddim(SCHEDULE.respace(6), param=V)
    flipped = dataclasses.replace(plan, gain_u=plan.gain_u * np.array([1, -1, 1, -1, 1, -1]))
    net = Mlp(4).double()
    x = torch.randn(300, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sizes = trace_sensitivity(net, flipped, x, generator=torch.Generator().manual_seed(2), probes=8)
    assert (sizes.output_alignment[0] < 0).any()
    error = 1e-6 * torch.randn(300, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        moved = sample(lambda x, t: net(x, t) + error, x, flipped) - sample(net, x, flipped)
    alike = NetworkError(np.zeros(6), np.full(6, 1e-6), np.ones((6, 6)))
    source = predict_error(flipped, sizes, output=alike, arithmetic=None, state=None, timestep=None).sources["output"]
    # The error's elements are independent, as the prediction takes them to be; its rms over 1200 of them.
    assert source.predicted / moved.square().mean().sqrt().item() == pytest.approx(1, abs=0.15)
    assert source.correlated > 1.5 * source.predicted  # the control: without signs


def test_errors_made_anew_do_not_come_to_correlate_between_timesteps() -> None:
    """Calibrated at five timesteps, asked for fifty calls: ten of them between two neighbours."""
    net, x = seeded(Mlp), torch.randn(400, 16, generator=torch.Generator().manual_seed(1))
    fresh = torch.Generator().manual_seed(2)
    batches = [(x, torch.full((400,), t)) for t in (0, 250, 500, 750, 999)]
    noisy = calibrate(
        net, batches, low=lambda x, t: net(x.float(), t) + 1e-2 * torch.randn(400, 16, generator=fresh), correlated=True
    )
    plan = plan_ddim(SCHEDULE.respace(50), param=V)
    source = predict_error(plan, 0.5, output=noisy.at(plan), arithmetic=None, state=None, timestep=None).sources["output"]
    assert source.predicted / source.independent == pytest.approx(1, abs=0.2)  # 6400 products: correlations of 1/80


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_an_overflow_of_float16_is_one() -> None:
    net = nn.Linear(4, 4)
    nn.init.constant_(net.weight, 3e4)
    with pytest.raises(NonFiniteError, match=r"torch.float16 .* at timestep 2"):
        calibrate(WithTime(net), [(torch.ones(2, 4), 2)], torch.float16)
    assert calibrate(WithTime(net), [(torch.ones(2, 4), 2)]).counts.tolist() == [2]


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "at least one batch"),
        ([torch.ones(2, 4)], TypeError, "batches must yield tuples"),
        ([(torch.ones(2, 4),)], TypeError, "batches must yield tuples"),
        ([(torch.ones(2, 4, dtype=torch.int64), 0)], TypeError, "x_t must have a floating-point dtype"),
        ([(torch.ones(0, 4), 0)], ValueError, "x_t must have shape"),
        ([(torch.ones(2, 4), torch.zeros(3))], ValueError, "t must be a number or have shape"),
        ([(torch.ones(2, 4), math.nan)], NonFiniteError, "t must be finite"),
    ],
)
def test_a_batch_that_cannot_be_used_is_refused(batches: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        calibrate(WithTime(nn.Linear(4, 4)), batches)


def test_options_that_do_not_fit_are_refused() -> None:
    net = WithTime(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="low and autocast"):
        calibrate(net, inputs((1, 2), (4,), count=8), low=net, autocast=True)
    with pytest.raises(ValueError, match="schedule and param"):
        calibrate(net, inputs((1, 2), (4,), count=8), schedule=SCHEDULE)
    with pytest.raises(ValueError, match="for autocast"):
        calibrate(net, inputs((1, 2), (4,), count=8), torch.float64, autocast=True)
    with pytest.raises(TypeError, match="dtype must be a floating-point"):
        calibrate(net, inputs((1, 2), (4,), count=8), torch.int8)
    with pytest.raises(TypeError, match="reference must be a floating-point"):
        calibrate(net, inputs((1, 2), (4,), count=8), reference="float32")
    with pytest.raises(TypeError, match="wrap it in a module"):
        calibrate(lambda x, t: (x,), inputs((1, 2), (4,), count=8), cast=cast_inputs)
    with pytest.raises(ValueError, match="one output per sample"):
        calibrate(lambda x, t: x[:3], inputs((1, 2), (4,), count=8), cast=cast_inputs)
    with pytest.raises(ValueError, match="one shape in both precisions"):
        calibrate(lambda x, t: x, inputs((1, 2), (4,), count=8), low=lambda x, t: x[:, :2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_too() -> None:
    net = seeded(Mlp).cuda()
    state = torch.cuda.get_rng_state()
    calibration = calibrate(net, [tuple(v.cuda() for v in batch) for batch in inputs(ALL)])
    assert torch.equal(torch.cuda.get_rng_state(), state)
    np.testing.assert_allclose(calibration.relative, calibrate(net.cpu(), inputs(ALL)).relative, rtol=0.1)


def test_batches_whose_errors_cannot_be_compared_are_refused() -> None:
    net, x = seeded(Mlp), torch.randn(8, 16)

    def batch(t: Any, rows: int = 8) -> tuple[Tensor, Tensor]:
        return x[:rows], torch.as_tensor(t).expand(rows)

    with pytest.raises(ValueError, match=r"one timestep each with correlated=True, got 1 to 2$"):
        calibrate(net, [(x, torch.tensor([1, 2] * 4))], correlated=True)
    with pytest.raises(ValueError, match="different timesteps with correlated=True, got 5 twice"):
        calibrate(net, [batch(5), batch(5)], correlated=True)
    with pytest.raises(ValueError, match=r"the same samples .* got outputs \(4, 16\) at t = 6 after \(8, 16\)"):
        calibrate(net, [batch(5), batch(6, 4)], correlated=True)
    with pytest.raises(ValueError, match="correlated must not be given together with edges"):
        calibrate(net, [batch(5)], edges=(0, 10), correlated=True)


@pytest.mark.parametrize(
    ("correlation", "message"),
    [
        (np.eye(3), "have shape \\(2, 2\\)"),
        ([[1, 2], [2, 1]], "symmetric within"),
        ([[1, 0.5], [0.4, 1]], "symmetric within"),
        ([[0.9, 0], [0, 1]], "symmetric within"),
        ([[1, math.nan], [math.nan, 1]], "symmetric within"),
    ],
)
def test_what_is_no_correlation_is_refused(correlation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"correlation must (be )?{message}"):
        NetworkError([0.1, 0.2], 0.0, correlation)


def test_a_correlation_needs_an_error_for_each_call() -> None:
    with pytest.raises(ValueError, match="correlation must come with a delta or scale for each call"):
        NetworkError(0.1, 0.0, [[1.0]])
