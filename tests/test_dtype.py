"""Dtypes, transforms and compilation: the result is the sample's, the coefficients are float64, nothing else interferes.

A narrow sample is computed on in float32 and rounded once, so its error is one unit of its own dtype on the result plus a few
of float32 on the terms. Tolerances count exactly that.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import NARROW, UNIT, assert_within, dtypes, inner_phis, is_regular, params, rounding_bound, samples

from diffparam import (
    EPSILON,
    FLOW,
    SCORE,
    VE,
    X0,
    AngularParam,
    Schedule,
    V,
    convert,
    ddim_coefficients,
    ddim_step,
    guide,
    predict_x0,
)
from diffparam.conversion import conversion_gains

FEW = settings(max_examples=60)
F32 = UNIT[torch.float32]
EDM = AngularParam.edm(0.5)
PRECONDITIONED = AngularParam.from_preconditioning(lambda s: 1 / (1 + s * s), lambda s: s / (1 + s * s) ** 0.5)


def one_rounding(exact, dtype, *terms):
    """One unit of ``dtype`` on the result, 6 of float32 on the terms (coefficients, products, sum), subnormals absolute."""
    arithmetic = UNIT[torch.float64] if dtype is torch.float64 else F32
    smallest = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    return rounding_bound(1.01, exact, unit=UNIT[dtype]) + rounding_bound(8, *terms, unit=arithmetic) + smallest


# -- dtype of the result ----------------------------------------------------------------------------------------------


@FEW
@given(params(), dtypes(), inner_phis(), inner_phis(), st.booleans(), st.integers(0, 10**6))
def test_a_step_is_rounded_once(param, dtype, phi_t, phi_s, batched, seed):
    assume(is_regular(param, phi_t, floor=0.05))
    u, x_t = samples(seed, 3, 5, dtype=dtype)
    angles = [torch.full((3,), p, dtype=torch.float64) if batched else p for p in (phi_t, phi_s)]
    x_s = ddim_step(u, x_t, *angles, param=param)
    assert x_s.dtype is dtype
    step = ddim_coefficients(phi_t, phi_s, param=param)
    terms = step.gain_u * u.double(), step.gain_x * x_t.double()
    # A wide dtype has no rounding beyond its arithmetic; float64 allows for psi of another library, 2^-50 / 0.05^2.
    bound = one_rounding(sum(terms), dtype, *terms) + 2.0**-49 * 400 * (
        u.double().abs() / param.r_at(phi_t) + x_t.double().abs()
    )
    assert_within(x_s, sum(terms), bound)


def test_a_step_with_every_operation_in_bf16_is_not():
    # Negative control: the same step as bf16 arithmetic would do it, each product and the sum rounded.
    u, x_t = samples(1, 4000, dtype=torch.bfloat16)
    step = ddim_coefficients(0.8, 0.6, param=EPSILON)
    exact = step.gain_u * u.double() + step.gain_x * x_t.double()

    def rms(value):
        return (value.double() - exact).square().mean().sqrt().item()

    once = rms(exact.to(torch.bfloat16))
    assert rms(ddim_step(u, x_t, 0.8, 0.6, param=EPSILON)) < 1.001 * once
    assert rms(step.gain_u * u + step.gain_x * x_t) > 1.3 * once


@FEW
@given(dtypes(), st.integers(0, 10**6), st.sampled_from([0.3, 1.0]))
def test_a_stochastic_step_is_rounded_once(dtype, seed, eta):
    u, x_t, z = samples(seed, 3, 5, dtype=dtype, count=3)
    x_s = ddim_step(u, x_t, 0.9, 0.5, param=V, eta=eta, noise=z)
    assert x_s.dtype is dtype
    step = ddim_coefficients(0.9, 0.5, param=V, eta=eta)
    terms = [g * v.double() for g, v in zip((step.gain_u, step.gain_x, step.noise), (u, x_t, z), strict=True)]
    assert_within(x_s, sum(terms), one_rounding(sum(terms), dtype, *terms))


@FEW
@given(dtypes(), dtypes(), st.integers(0, 10**6))
def test_the_state_sets_the_dtype(of_state, of_output, seed):
    # A bf16 network with a float32 state steps in float32: nothing of the state is lost.
    x_t, u = samples(seed, 4)
    x_t, u = x_t.to(of_state), u.to(of_output)
    step = ddim_coefficients(0.9, 0.5, param=V)
    terms = step.gain_u * u.double(), step.gain_x * x_t.double()
    x_s = ddim_step(u, x_t, 0.9, 0.5, param=V)
    assert x_s.dtype is of_state
    assert_within(x_s, sum(terms), one_rounding(sum(terms), of_state, *terms))
    x0 = predict_x0(u, x_t, 0.9, param=V)
    assert x0.dtype is of_state


@FEW
@given(params(), params(), dtypes(), inner_phis(), st.integers(0, 10**6))
def test_conversions_and_targets_are_rounded_once(a, b, dtype, phi, seed):
    assume(is_regular(a, phi, floor=0.05) and is_regular(b, phi))
    u, x_t = samples(seed, 5, dtype=dtype)
    g_u, g_x = conversion_gains(phi, source=a, target=b)
    assume(max(abs(g_u), abs(g_x)) < 1e3)  # float16 ends at 65504
    terms = g_u * u.double(), g_x * x_t.double()
    converted = convert(u, x_t, phi, source=a, target=b)
    assert converted.dtype is dtype
    assert_within(converted, sum(terms), one_rounding(sum(terms), dtype, *terms))
    c, d = b.coefficients(phi)
    assume(max(abs(c), abs(d)) < 1e3)
    terms = c * u.double(), d * x_t.double()
    target = b.target(u, x_t, phi)
    assert target.dtype is dtype
    assert_within(target, sum(terms), one_rounding(sum(terms), dtype, *terms))


@pytest.mark.parametrize("dtype", list(UNIT))
@pytest.mark.parametrize("shape", [(2,), (2, 1), (1,), ()])
def test_float64_angles_do_not_promote_the_sample(dtype, shape):
    # A float64 (batch, 1) coefficient times a float32 sample is float64 in torch: the trap of every hand-written sampler.
    u, x_t = samples(2, 2, 3, dtype=dtype)
    phi = torch.full(shape, 0.7, dtype=torch.float64)
    assert ddim_step(u, x_t, phi, phi / 2, param=V).dtype is dtype
    assert convert(u, x_t, phi, source=V, target=FLOW).dtype is dtype
    assert V.target(u, x_t, phi).dtype is dtype
    assert Schedule.linear(10).add_noise(u, x_t, torch.full(shape, 3)).dtype is dtype
    if dtype is not torch.float64 and shape == (2, 1):
        assert (phi * x_t).dtype is torch.float64  # negative control


@pytest.mark.parametrize("dtype", NARROW)
def test_autocast_changes_nothing(dtype):
    u, x_t = samples(3, 4, 4, dtype=torch.float32)
    phi = torch.linspace(0.3, 1.2, 4, dtype=torch.float64)
    plain = ddim_step(u, x_t, phi, phi / 2, param=V), convert(u, x_t, 0.7, source=V, target=FLOW), guide(u, x_t, 3.0)
    with torch.autocast("cpu", dtype=dtype):
        cast = ddim_step(u, x_t, phi, phi / 2, param=V), convert(u, x_t, 0.7, source=V, target=FLOW), guide(u, x_t, 3.0)
        assert (u @ x_t).dtype is dtype  # negative control: autocast was on
    for a, b in zip(plain, cast, strict=True):
        assert torch.equal(a, b)


def test_the_default_dtype_changes_nothing():
    u, x_t = samples(4, 3)
    plain = ddim_step(u, x_t, 0.9, 0.3, param=EDM), Schedule.cosine(10).phi
    try:
        torch.set_default_dtype(torch.float16)
        again = ddim_step(u, x_t, 0.9, 0.3, param=EDM), Schedule.cosine(10).phi
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)


def test_inputs_are_left_alone():
    u, x_t = samples(5, 2, 3)
    copies = u.clone(), x_t.clone()
    phi = torch.tensor([0.5, 0.9], dtype=torch.float64)
    for angle in (0.5, phi):
        ddim_step(u, x_t, angle, angle / 2, param=V)
        ddim_step(u, x_t, angle, angle / 2, param=V, eta=1.0, noise=u)
        convert(u, x_t, angle, source=V, target=X0)
        V.target(u, x_t, angle)
    guide(u, x_t, 2.0)
    assert torch.equal(u, copies[0])
    assert torch.equal(x_t, copies[1])
    assert phi.tolist() == [0.5, 0.9]


@pytest.mark.parametrize("device", ["cpu", "meta", *(["cuda"] if torch.cuda.is_available() else [])])
def test_the_sample_sets_the_device(device):
    # Angles and coefficients live on the CPU in float64; the sample and the result where the sample is.
    u, x_t = (v.to(device) for v in samples(10, 2, 3, dtype=torch.float32))
    phi = torch.tensor([0.5, 0.9], dtype=torch.float64)
    for angle in (0.5, phi):
        for value in (
            ddim_step(u, x_t, angle, angle / 2, param=SCORE),
            ddim_step(u, x_t, angle, angle / 2, param=SCORE, eta=1.0, noise=u),
            convert(u, x_t, angle, source=V, target=EDM),
            V.target(u, x_t, angle),
            Schedule.linear(10).add_noise(u, x_t, torch.tensor([1, 9], device="cpu" if device == "meta" else device)),
        ):
            assert (value.device.type, value.dtype) == (device, torch.float32)
    if device != "cpu":
        with pytest.raises(ValueError, match="u and x_t must be on one device, got"):
            convert(u, x_t.cpu() if device == "cuda" else torch.zeros(2, 3), 0.5, source=V, target=X0)


def test_shapes_without_elements_or_dimensions():
    empty, point = torch.zeros(0, 3), torch.tensor(2.0)
    assert ddim_step(empty, empty, 0.9, 0.3, param=V).shape == (0, 3)
    assert ddim_step(point, point, 0.9, 0.3, param=V).shape == ()
    assert convert(point, point, torch.tensor(0.9, dtype=torch.float64), source=V, target=X0).shape == ()


def test_expanded_and_strided_samples():
    # A sample that is a view of one number must not be written to, nor give another result than its copy.
    u, x_t = samples(6, 4, 6)
    views = (u[:, ::2], x_t[:1, :3].expand(4, 3))
    got = ddim_step(*views, 0.9, 0.3, param=FLOW)
    assert torch.equal(got, ddim_step(*(v.contiguous() for v in views), 0.9, 0.3, param=FLOW))


def test_meta_tensors_pass_without_numbers():
    x = torch.empty(2, 3, device="meta", dtype=torch.bfloat16)
    assert ddim_step(x, x, 0.9, 0.3, param=V).shape == (2, 3)
    assert convert(x, x, 0.9, source=V, target=X0).dtype is torch.bfloat16
    phi = torch.empty(2, device="meta", dtype=torch.float64)
    assert ddim_step(x, x, phi, phi, param=SCORE).device.type == "meta"


# -- torch.func and autograd ------------------------------------------------------------------------------------------

CALLS = {
    "step of eps": lambda u, x, a, b: ddim_step(u, x, a, b, param=EPSILON),
    "step of the score": lambda u, x, a, b: ddim_step(u, x, a, b, param=SCORE),
    "step of edm": lambda u, x, a, b: ddim_step(u, x, a, b, param=EDM),
    "step of a preconditioner": lambda u, x, a, b: ddim_step(u, x, a, b, param=PRECONDITIONED),
    "stochastic step": lambda u, x, a, b: ddim_step(u, x, a, b, param=V, eta=0.7, noise=u),
    "step in sigma-space": lambda u, x, a, b: ddim_step(u, x, a, b, param=V, state=VE),
    "conversion": lambda u, x, a, b: convert(u, x, a, source=FLOW, target=EDM),
    "target": lambda u, x, a, b: SCORE.target(u, x, a),
    "guided conversion": lambda u, x, a, b: convert(guide(u, x, 3.0), x, b, source=V, target=X0),
}


def batch(dtype=torch.float32):
    u, x_t = samples(7, 3, 4, dtype=dtype)
    return u, x_t, torch.tensor([0.4, 0.8, 1.2], dtype=torch.float64), torch.tensor([0.1, 0.3, 1.1], dtype=torch.float64)


@pytest.mark.parametrize("name", CALLS)
def test_vmap_over_everything(name):
    u, x_t, a, b = batch()
    expected = CALLS[name](u, x_t, a, b)
    torch.testing.assert_close(torch.func.vmap(CALLS[name])(u, x_t, a, b), expected, rtol=8 * F32, atol=8 * F32)


@pytest.mark.parametrize("name", CALLS)
def test_vmap_over_one_argument(name):
    u, x_t, _, _ = batch()
    call = CALLS[name]
    stacked = torch.func.vmap(lambda v: call(v, x_t[0], 0.8, 0.3))(u)
    torch.testing.assert_close(stacked, torch.stack([call(v, x_t[0], 0.8, 0.3) for v in u]), rtol=8 * F32, atol=8 * F32)
    stacked = torch.func.vmap(lambda v: call(u[0], v, 0.8, 0.3))(x_t)
    torch.testing.assert_close(stacked, torch.stack([call(u[0], v, 0.8, 0.3) for v in x_t]), rtol=8 * F32, atol=8 * F32)


@pytest.mark.parametrize("name", CALLS)
def test_gradients_are_right(name):
    # gradcheck: central differences in float64 against autograd, for samples and angles alike.
    inputs = tuple(v.detach().requires_grad_() for v in batch(torch.float64))
    assert torch.autograd.gradcheck(CALLS[name], inputs)


@FEW
@given(params(), inner_phis(), inner_phis(), st.integers(0, 10**6))
def test_the_jacobian_of_a_step_is_its_gains(param, phi_t, phi_s, seed):
    assume(is_regular(param, phi_t, floor=0.01))
    u, x_t = samples(seed, 3)
    step = ddim_coefficients(phi_t, phi_s, param=param)
    by_u, by_x = torch.func.jacrev(lambda u, x: ddim_step(u, x, phi_t, phi_s, param=param), argnums=(0, 1))(u, x_t)
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(by_u, step.gain_u * eye, rtol=1e-15, atol=0)
    torch.testing.assert_close(by_x, step.gain_x * eye, rtol=1e-15, atol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, inside jvp
@pytest.mark.parametrize("dtype", list(UNIT))
def test_forward_and_backward_modes_agree(dtype):
    u, x_t = samples(8, 4, dtype=dtype)
    _, tangent = torch.func.jvp(lambda u: ddim_step(u, x_t, 0.9, 0.3, param=V), (u,), (torch.ones_like(u),))
    leaf = u.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ddim_step(leaf, x_t, 0.9, 0.3, param=V).sum(), leaf)
    assert tangent.dtype is gradient.dtype is dtype
    gain = ddim_coefficients(0.9, 0.3, param=V).gain_u
    for slope in (tangent, gradient):
        torch.testing.assert_close(slope.double(), torch.full((4,), gain, dtype=torch.float64), rtol=2 * UNIT[dtype], atol=0)


def test_gradients_reach_a_frozen_state():
    # u needs a gradient, x_t does not, and the other way round: no in-place trick may stand in the way.
    for grad_u, grad_x in ((True, False), (False, True)):
        u, x_t = samples(9, 4)
        u.requires_grad_(grad_u)
        x_t.requires_grad_(grad_x)
        ddim_step(u, x_t, 0.9, 0.3, param=V).sum().backward()
        step = ddim_coefficients(0.9, 0.3, param=V)
        leaf, gain = (u, step.gain_u) if grad_u else (x_t, step.gain_x)
        torch.testing.assert_close(leaf.grad, torch.full((4,), gain, dtype=torch.float64), rtol=1e-15, atol=0)


# -- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", CALLS)
def test_compiles_whole_with_tensor_angles(name):
    u, x_t, a, b = batch()
    compiled = torch.compile(CALLS[name], fullgraph=True, backend="eager")
    assert torch.equal(compiled(u, x_t, a, b), CALLS[name](u, x_t, a, b))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", ["step of edm", "stochastic step", "conversion"])
def test_compiles_whole_with_its_gradient(name):
    u, x_t, _, _ = batch()
    call = CALLS[name]

    def slope(function):
        leaf = u.clone().requires_grad_()
        return torch.autograd.grad(function(leaf, x_t, 0.8, 0.3).square().sum(), leaf)[0]

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(slope(compiled), slope(call), rtol=8 * F32, atol=8 * F32)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_step_still_knows_its_shapes():
    u, x_t, a, b = batch()
    compiled = torch.compile(CALLS["step of eps"], backend="eager")
    with pytest.raises(ValueError, match="one value per batch item"):
        compiled(u, x_t, a[:2], b[:2])


# -- numpy ------------------------------------------------------------------------------------------------------------


@FEW
@given(params(), st.lists(inner_phis(), min_size=3, max_size=3), dtypes(), st.integers(0, 10**6))
def test_numpy_angles_are_tensor_angles(param, angles, dtype, seed):
    assume(is_regular(param, *angles, floor=0.05))
    u, x_t = samples(seed, 3, 2, dtype=dtype)
    array = np.array(angles)
    left = ddim_step(u, x_t, array, array / 2, param=param)
    right = ddim_step(u, x_t, torch.as_tensor(array), torch.as_tensor(array) / 2, param=param)
    assert left.dtype is dtype
    step = ddim_coefficients(array, array / 2, param=param)
    gains = (torch.tensor([[g] for g in gain]) for gain in (step.gain_u, step.gain_x))
    terms = [g * v.double() for g, v in zip(gains, (u, x_t), strict=True)]
    # psi of another library may differ by 2^-50, amplified twice by 1/sin(theta): in units of w, where u counts as u/r.
    for row, angle in enumerate(angles):
        library = 2.0**-49 / param.sin_theta(angle) ** 2 * (u[row].double().abs() / param.r_at(angle) + x_t[row].double().abs())
        rounding = one_rounding(sum(terms)[row], dtype, *(term[row] for term in terms))
        assert_within(left[row], right[row], 2 * rounding + library)
