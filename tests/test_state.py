"""State conventions: one angle, three scales."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import assert_within, inner_phis, is_regular, params, phis, rounding_bound, samples

from diffparam import FLOW, FLOW_STATE, VE, VP, Schedule, StateSpace, UnknownName, ddim_coefficients, ddim_step
from diffparam.angle import HALF_PI

FEW = settings(max_examples=80)
STATES = [VP, VE, FLOW_STATE]
states = st.sampled_from(STATES)


@FEW
@given(inner_phis(1e-3))
def test_scales_are_those_of_the_definitions(phi):
    # (signal, noise) of each convention, and of the sum they are to have.
    for state, condition in (
        (VP, lambda a, b: a**2 + b**2),  # variances add to 1
        (VE, lambda a, b: a),  # the signal is untouched
        (FLOW_STATE, lambda a, b: a + b),  # a straight line between data and noise
    ):
        scale = state.scale(phi)
        assert condition(scale * math.cos(phi), scale * math.sin(phi)) == pytest.approx(1.0, rel=4e-16)
    assert VE.scale(phi) * math.sin(phi) == pytest.approx(math.tan(phi), rel=1e-15)  # Karras' sigma


@pytest.mark.parametrize("state", STATES, ids=lambda s: s.kind)
def test_scales_answer_in_kind(state):
    angles = [0.0, 0.4, 1.5]
    numbers = [state.scale(phi) for phi in angles]
    assert all(isinstance(n, float) for n in numbers)
    for phi in (np.array(angles), torch.tensor(angles, dtype=torch.float64)):
        scale = state.scale(phi)
        np.testing.assert_allclose(np.broadcast_to(scale, 3), numbers, rtol=1e-15)  # an ulp for each library's cosine
        assert state is VP or type(scale) is type(phi)


def test_sigma_space_has_no_pure_noise():
    for phi in (HALF_PI, np.array([0.1, HALF_PI]), torch.tensor([0.1, HALF_PI], dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"phi must be below pi/2 in sigma-space, got pi/2 where sigma is infinite; use"):
            VE.scale(phi)
        assert np.all(np.asarray(FLOW_STATE.scale(phi)) > 0.7)  # 1/(cos + sin) is at least 1/sqrt(2)
    assert VE.scale(math.nextafter(HALF_PI, 0)) > 1e15  # just below is a number, if a large one


@FEW
@given(params(), states, inner_phis(), inner_phis(), st.integers(0, 10**6))
def test_a_step_in_any_convention_is_the_vp_step_scaled(param, state, phi_t, phi_s, seed):
    # scale_s step(x_t / scale_t): three more roundings than the VP step, whose own are 12.
    assume(is_regular(param, phi_t))
    u, x_t = samples(seed, 6)
    vp = ddim_coefficients(phi_t, phi_s, param=param)
    to, per = state.scale(phi_s), state.scale(phi_t)
    scaled = ddim_step(u, x_t * per, phi_t, phi_s, param=param, state=state)
    expected = to * ddim_step(u, x_t, phi_t, phi_s, param=param)
    assert_within(scaled, expected, rounding_bound(32, to * vp.gain_u * u, to * vp.gain_x * x_t))


@FEW
@given(states, inner_phis(), st.floats(0.1, 1.0), st.integers(0, 10**6))
def test_the_noise_of_a_step_scales_too(state, phi_t, fraction, seed):
    phi_s = phi_t * fraction
    vp = ddim_coefficients(phi_t, phi_s, param=FLOW, eta=1.0)
    other = ddim_coefficients(phi_t, phi_s, param=FLOW, eta=1.0, state=state)
    assert other.noise == pytest.approx(state.scale(phi_s) * vp.noise, rel=1e-15)


@pytest.mark.parametrize("state", STATES, ids=lambda s: s.kind)
def test_a_deterministic_step_draws_nothing(state, generator):
    # eta = 0 must not touch the generator, nor need one, in any convention, for numbers and tensors of angles.
    u, x_t = samples(1, 3, 2)
    before = generator.get_state()
    for phi_t, phi_s in ((0.9, 0.3), (torch.full((3,), 0.9, dtype=torch.float64), torch.full((3,), 0.3, dtype=torch.float64))):
        assert ddim_coefficients(phi_t, phi_s, param=FLOW, state=state).noise == 0.0
        ddim_step(u, x_t, phi_t, phi_s, param=FLOW, state=state, generator=generator)
    assert torch.equal(generator.get_state(), before)
    ddim_step(u, x_t, 0.9, 0.3, param=FLOW, state=state, eta=0.5, generator=generator)
    assert not torch.equal(generator.get_state(), before)  # negative control


@FEW
@given(phis(), states, st.integers(0, 10**6))
def test_noised_samples_are_scaled_vp_samples(phi, state, seed):
    assume(state is not VE or phi < HALF_PI)
    x0, eps = samples(seed, 6)
    schedule = Schedule.from_angles([phi])
    scale = state.scale(phi)
    x_t = schedule.with_state(state).add_noise(x0, eps, 0)
    a, b = scale * math.cos(phi) * x0, scale * math.sin(phi) * eps
    assert_within(x_t, a + b, rounding_bound(8, a, b))


def test_states_are_values():
    assert StateSpace("ve") == VE != VP
    assert pickle.loads(pickle.dumps(FLOW_STATE)) == FLOW_STATE
    assert len({VP, VE, FLOW_STATE, StateSpace("vp")}) == 3
    with pytest.raises(UnknownName, match=r"kind must be one of vp, ve, flow; got 'flwo'\. Did you mean 'flow'"):
        StateSpace("flwo")
