"""The diffusion head, its linear layers and its loss: dtypes, exact identities, determinism."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from diffparam import EPSILON, FLOW, X0, GaussianMixture, Schedule, V, convert, loss_weight
from mmar import precision
from mmar.diffusion_head import DiffusionHead, sinusoidal_embedding
from mmar.diffusion_loss import diffusion_loss
from mmar.precision import Linear

SCHEDULE = Schedule.cosine(100)
BF16 = 2.0**-8
"""Unit roundoff of bf16."""


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained_like(width: int = 32, depth: int = 2) -> DiffusionHead:
    """A head whose zero layers have been moved off zero, so that every path carries signal."""
    torch.manual_seed(0)
    head = DiffusionHead(8, 5, width, depth)
    for layer in head.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.any():
            nn.init.normal_(layer.weight, std=0.1)
    return head


def inputs(rows: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    g = draws(1)
    return torch.randn(rows, 8, generator=g), torch.randint(100, (rows,), generator=g), torch.randn(rows, 5, generator=g)


# -- the head ---------------------------------------------------------------------------------------------------------


def test_the_output_is_exactly_zero_at_initialisation() -> None:
    x_t, t, z = inputs()
    u = DiffusionHead(8, 5, 32, 2)(x_t, t, z)
    assert torch.equal(u, torch.zeros(6, 8))
    assert trained_like()(x_t, t, z).abs().min() > 0  # the control


def test_rows_do_not_see_each_other() -> None:
    x_t, t, z = inputs()
    head = trained_like()
    together = head(x_t, t, z)
    # The same sums of at most 256 terms, blocked differently by the batch: 2^-24 each, outputs of order 1, five layers.
    for i in range(6):
        assert torch.allclose(together[i : i + 1], head(x_t[i : i + 1], t[i : i + 1], z[i : i + 1]), rtol=0, atol=1e-5)


def test_the_output_depends_on_state_time_and_condition() -> None:
    x_t, t, z = inputs()
    head = trained_like()
    u = head(x_t, t, z)
    for changed in (head(x_t + 1, t, z), head(x_t, t + 1, z), head(x_t, t, z + 1)):
        assert (changed - u).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_in_the_dtype_it_is_told(dtype: torch.dtype) -> None:
    x_t, t, z = inputs()
    assert trained_like()(x_t, t, z, dtype=dtype).dtype is dtype
    assert trained_like().to(dtype)(x_t, t, z).dtype is dtype  # by default that of the weights
    assert trained_like()(x_t.double(), t.double(), z.bfloat16(), dtype=dtype).dtype is dtype


def test_a_bf16_forward_pass_trains_float32_masters() -> None:
    x_t, t, z = inputs(64)
    grads = {}
    for dtype in (torch.float32, torch.bfloat16):
        head = trained_like()
        head(x_t, t, z, dtype=dtype).float().square().mean().backward()
        assert all(p.dtype is torch.float32 and p.grad is not None and p.grad.dtype is torch.float32 for p in head.parameters())
        grads[dtype] = torch.cat([p.grad.flatten() for p in head.parameters()])
    exact, rounded = grads[torch.float32], grads[torch.bfloat16]
    # Some 20 bf16 roundings on the way forth and back, each 2^-8 at most and independent: below 20 * 2^-8 / sqrt(3) = 5%.
    error = ((rounded - exact).norm() / exact.norm()).item()
    assert 2.0**-12 < error < 0.05  # and it was bf16: float32 would be off by 1e-6


def test_a_pure_bf16_head_has_bf16_gradients() -> None:
    x_t, t, z = inputs()
    head = trained_like().bfloat16()
    head(x_t, t, z).float().square().mean().backward()
    assert all(p.grad.dtype is torch.bfloat16 for p in head.parameters())


def test_the_embedding_tells_a_thousand_timesteps_apart_and_bf16_does_not() -> None:
    t = torch.arange(1000)
    assert len(sinusoidal_embedding(t, 256).unique(dim=0)) == 1000
    assert len(sinusoidal_embedding(t.double(), 256).unique(dim=0)) == 1000
    # 8 bits: all of 0 .. 256, every second up to 512, every fourth up to 1000.
    assert len(sinusoidal_embedding(t.bfloat16(), 256).unique(dim=0)) == 257 + 128 + 122


def test_the_embedding_is_float32_in_a_bf16_head() -> None:
    """Neighbouring late timesteps give different outputs, though bf16 has one number for both."""
    head = trained_like().bfloat16()
    x_t, _, z = inputs(1)
    late = [head(x_t, torch.tensor([t]), z) for t in (996, 997)]
    assert torch.tensor([996]).bfloat16() == torch.tensor([997]).bfloat16()
    assert not torch.equal(*late)


def test_the_embedding_is_cosines_then_sines_of_falling_rates() -> None:
    t = torch.tensor([0.0, 3.0, 999.0])
    got = sinusoidal_embedding(t, 8)
    rate = [10_000 ** (-i / 4) for i in range(4)]
    wanted = [[f(x * w) for f in (math.cos, math.sin) for w in rate] for x in t.tolist()]
    # float32 angles up to 999 rad are known to 999 * 2^-24 times a few.
    assert torch.allclose(got, torch.tensor(wanted), rtol=0, atol=4 * 999 * 2.0**-24)
    assert got.dtype is torch.float32


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("x_t", ((6, 7), (6,), (6, 5))),
        ("t", ((6, 8), (5,), (6, 5))),
        ("t", ((6, 8), (6, 1), (6, 5))),
        ("z", ((6, 8), (6,), (6, 4))),
        ("z", ((6, 8), (6,), (5, 5))),
        ("x_t", ((2, 3, 8), (2,), (2, 5))),
    ],
)
def test_a_shape_that_does_not_fit_is_named(name: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must have shape"):
        trained_like()(*(torch.zeros(s) for s in shapes))


def test_sizes_below_one_are_refused() -> None:
    for i, name in enumerate(("token_dim", "condition_dim", "width", "depth")):
        with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0"):
            DiffusionHead(*(0 if j == i else 4 for j in range(4)))


# -- linear layers ----------------------------------------------------------------------------------------------------


def bf16_layer(features: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    g = draws(2)
    return tuple(
        torch.randn(*s, generator=g).bfloat16() * k for s, k in (((64, features), 1.0), ((32, features), 0.1), ((32,), 1.0))
    )


def bounds(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The exact product and how far one rounding to bf16 of a float32 sum may be from it.

    Products of bf16 numbers are exact in float32. A sum of n terms in any order is off by at most n 2^-24 sum |terms|.
    """
    exact = functional.linear(x.double(), weight.double(), bias.double())
    size = functional.linear(x.double().abs(), weight.double().abs(), bias.double().abs())
    return exact, BF16 * exact.abs() + (1 + BF16) * (x.shape[1] + 1) * 2.0**-24 * size


def test_emulated_and_native_bf16_are_one_rounding_from_the_exact_product() -> None:
    x, weight, bias = bf16_layer()
    exact, bound = bounds(x, weight, bias)
    emulated = precision._rounded_once(functional.linear, x, weight, bias)
    native = functional.linear(x, weight, bias)
    assert emulated.dtype is native.dtype is torch.bfloat16
    assert ((emulated.double() - exact).abs() <= bound).all()
    assert ((native.double() - exact).abs() <= bound).all()
    assert (emulated != native).double().mean() < 0.01  # where the two sums straddle a midpoint
    summed_in_bf16 = bias.expand(64, 32)
    for i in range(x.shape[1]):
        summed_in_bf16 = summed_in_bf16 + x[:, i : i + 1] * weight[:, i]
    assert ((summed_in_bf16.double() - exact).abs() > bound).double().mean() > 0.5  # the control


@pytest.mark.parametrize("native", [True, False])
def test_the_layer_takes_either_road_and_casts_its_weights(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "native_bf16_matmul", lambda: native)
    layer = Linear(16, 4)
    x = torch.randn(3, 16, generator=draws(3))
    low = layer(x.bfloat16())
    exact, bound = bounds(x.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16())
    assert low.dtype is torch.bfloat16
    assert ((low.double() - exact).abs() <= bound).all()
    assert torch.equal(layer(x), functional.linear(x, layer.weight, layer.bias))
    low.float().sum().backward()
    assert layer.weight.grad.dtype is torch.float32
    assert Linear(16, 4, bias=False)(x.bfloat16()).shape == (3, 4)


@pytest.fixture
def without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU that has no bf16 instructions, where float32 products are asked for."""
    monkeypatch.setenv("MMAR_FLOAT32_PRODUCTS", "1")
    monkeypatch.setattr(precision, "native_bf16_matmul", lambda: False)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.usefixtures("without_instructions")
def test_products_of_any_layer_are_rounded_once(autocast: bool) -> None:
    """torch's own layers, matmul and bmm, with the gradients of the library's bf16 products, to the last bit or two."""
    layer = torch.nn.Linear(64, 32) if autocast else torch.nn.Linear(64, 32).bfloat16()
    x = torch.randn(4, 20, 64, generator=draws(3)).to(layer.weight.dtype).requires_grad_()

    def run(mode) -> list[Tensor]:
        with mode, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = layer(x)
            out = torch.bmm(y @ y.transpose(1, 2), torch.matmul(x, layer.weight.T))
        out.float().square().mean().backward()
        found = [y.detach(), out.detach(), x.grad, layer.weight.grad]
        x.grad = layer.weight.grad = None
        return found

    ours, native = run(precision.bf16_products(torch.device("cpu"))), run(contextlib.nullcontext())
    exact, bound = bounds(x.bfloat16().flatten(0, 1), layer.weight.bfloat16(), layer.bias.bfloat16())
    assert ((ours[0].flatten(0, 1).double() - exact).abs() <= bound).all()
    for one, other in zip(ours, native, strict=True):
        assert one.dtype is other.dtype
        assert (one - other).double().norm() < 4 * BF16 * other.double().norm()
    assert ours[0].dtype is torch.bfloat16


@pytest.mark.usefixtures("without_instructions")
def test_the_products_that_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name: each goes through the float32 product, a few rows and other dtypes do not."""
    taken: list[int] = []
    rounded = precision._rounded_once
    monkeypatch.setattr(precision, "_rounded_once", lambda f, x, *rest: taken.append(x.numel()) or rounded(f, x, *rest))
    x, square = (torch.randn(2, 32, 32, generator=draws(k)).bfloat16() for k in (3, 4))
    image, kernel = x.view(2, 2, 16, 32), torch.randn(2, 2, 3, 3, generator=draws(5)).bfloat16()
    with precision.bf16_products(torch.device("cpu")):
        calls = (
            *(lambda: functional.linear(x, square[0]), lambda: nn.Linear(32, 4).bfloat16()(x)),
            *(lambda: x @ square, lambda: x.matmul(square), lambda: torch.matmul(x, square)),
            *(lambda: torch.bmm(x, square), lambda: x.bmm(square)),
            *(lambda: functional.conv2d(image, kernel), lambda: functional.conv_transpose2d(image, kernel)),
        )
        for count, call in enumerate(calls, start=1):
            assert call().dtype is torch.bfloat16
            assert len(taken) == count
        _ = x.float() @ square.float()
    assert len(taken) == len(calls)


@pytest.mark.usefixtures("without_instructions")
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_are_rounded_once(transposed: bool) -> None:
    layer = (torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d)(6, 4, 3, stride=2, padding=1)
    x = torch.randn(5, 6, 9, 9, generator=draws(3))
    with precision.autocast("cpu", torch.bfloat16):
        ours = layer(x)
    wanted = copy.deepcopy(layer).bfloat16().double()(x.bfloat16().double())
    assert ours.dtype is torch.bfloat16
    assert ours.shape == wanted.shape
    # One rounding, and what float32 sums of 54 products leave where they cancel.
    assert ((ours.double() - wanted).abs() <= BF16 * wanted.abs() + 1e-6).all()
    ours.float().sum().backward()
    assert layer.weight.grad.dtype is torch.float32


@pytest.mark.usefixtures("without_instructions")
def test_what_is_no_bf16_product_is_left_alone() -> None:
    x, layer = torch.randn(20, 64, generator=draws(3)), torch.nn.Linear(64, 32)
    wanted, half = layer(x), copy.deepcopy(layer).half()
    in_half = half(x.half())
    with precision.bf16_products(torch.device("cpu")):
        assert torch.equal(layer(x), wanted)
        assert torch.equal(half(x.half()), in_half)
        with torch.autocast("cpu", torch.float16):
            assert layer(x).dtype is torch.float16
        few = torch.nn.Linear(64, 32).bfloat16()
        assert few(x[:3].bfloat16()).dtype is torch.bfloat16
    assert isinstance(precision.bf16_products(torch.device("cuda")), contextlib.nullcontext)


def test_with_instructions_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "native_bf16_matmul", lambda: True)
    assert isinstance(precision.bf16_products(torch.device("cpu")), contextlib.nullcontext)


def test_whether_bf16_is_native_is_read_from_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, native in (({"avx512_bf16"}, True), ({"bf16", "asimd"}, True), ({"avx2", "avx512f"}, False), (set(), False)):
        monkeypatch.setattr(precision, "_cpu_flags", lambda flags=flags: frozenset(flags))
        assert precision.native_bf16_matmul.__wrapped__() is native


# -- the loss ---------------------------------------------------------------------------------------------------------


def batch(rows: int = 64, dim: int = 8) -> tuple[Tensor, Tensor]:
    g = draws(4)
    return torch.randn(rows, dim, generator=g), torch.randn(rows, 5, generator=g)


def run(network, param=V, **options):
    tokens, z = batch()
    return diffusion_loss(network, tokens, z, SCHEDULE, param=param, generator=draws(5), **options)


def nothing(x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
    return torch.zeros_like(x_t)


def test_a_perfect_network_has_no_loss() -> None:
    """Tokens that are all one point leave nothing unknown, in any parameterization that is not singular."""
    point = GaussianMixture.gaussian(0.0, dim=8, mean=0.6)
    z = torch.zeros(64, 5)
    for param in (V, EPSILON, FLOW, X0):
        model = point.model(SCHEDULE, param)
        loss = diffusion_loss(
            lambda x_t, t, z, model=model: model(x_t, t), torch.full((64, 8), 0.6), z, SCHEDULE, param=param, generator=draws(6)
        )
        # x_t is float32: v is known to 2^-24 |x_t| / sin(phi), and sin(phi) is at least 0.02 here.
        assert loss.mean.item() < (4 * 4 * 2.0**-24 / math.sin(float(SCHEDULE.phi[0]))) ** 2


def test_a_silent_network_loses_the_energy_of_the_target() -> None:
    # E[u^2] = r^2 for unit-variance tokens. A mean of 512 squares of Gaussians: 5 sqrt(2 / 512) relative.
    for param, energy in ((V, 1.0), (EPSILON, 1.0), (FLOW, 2.0)):
        assert run(nothing, param).mean.item() == pytest.approx(energy, rel=5 * math.sqrt(2 / 512))


def test_the_unweighted_epsilon_loss_is_alpha_bar_times_the_v_loss() -> None:
    """The same denoiser said in two ways, row by row: a float32 conversion costs kappa = 1/alpha of 2^-24."""
    head = trained_like()

    def as_v(x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return head(x_t, t, z)

    def as_eps(x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return convert(head(x_t, t, z).double(), x_t.double(), SCHEDULE.phi_at(t), source=V, target=EPSILON)

    v, eps = run(as_v, V), run(as_eps, EPSILON)
    assert torch.equal(v.t, eps.t)
    alpha_bar = SCHEDULE.alpha_bar[v.t]
    seen = alpha_bar > 1e-6  # below, eps is equal to its target to float32
    assert seen.sum() > 50
    assert torch.allclose(eps.per_row[seen].double(), (alpha_bar * v.per_row)[seen], rtol=64 * 2.0**-24 * 1e3)
    assert not torch.allclose(eps.per_row[seen].double(), v.per_row[seen].double(), rtol=0.1)
    weight = loss_weight(SCHEDULE.phi, source=EPSILON, target=V)
    assert torch.allclose(weight[v.t], 1 / alpha_bar, rtol=1e-10)


def test_the_weight_is_that_of_the_rows_timestep() -> None:
    weight = torch.linspace(0.0, 3.0, len(SCHEDULE), dtype=torch.float64)
    plain, weighted = run(nothing), run(nothing, weight=weight)
    assert torch.equal(plain.per_row, weighted.per_row)  # what is reported is not weighted
    assert plain.mean.item() == pytest.approx(plain.per_row.mean().item(), rel=1e-6)
    assert weighted.mean.item() == pytest.approx((plain.per_row * weight[plain.t]).mean().item(), rel=1e-6)
    assert weighted.mean.item() != pytest.approx(plain.mean.item(), rel=0.05)


def test_every_condition_is_seen_at_k_noise_levels() -> None:
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def network(x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
        seen.append((x_t, t, z))
        return torch.zeros_like(x_t)

    loss = run(network, timesteps_per_token=3)
    (x_t, t, z), (tokens, conditions) = seen[0], batch()
    assert x_t.shape == (192, 8)
    assert loss.per_row.shape == loss.t.shape == t.shape == (192,)
    assert torch.equal(z, conditions.repeat_interleave(3, 0))
    # The rows are their own token, noised: cos(phi) x + sin(phi) eps leaves unit-variance noise.
    phi = SCHEDULE.phi_at(t)[:, None]
    eps = (x_t - phi.cos() * tokens.repeat_interleave(3, 0)) / phi.sin()
    assert eps.std().item() == pytest.approx(1.0, rel=5 / math.sqrt(2 * 192 * 8))
    wrong = (x_t - phi.cos() * tokens.repeat_interleave(3, 0).roll(1, 0)) / phi.sin()
    assert wrong.std().item() > 1.5


def test_timesteps_are_uniform() -> None:
    tokens, z = torch.zeros(20_000, 2), torch.zeros(20_000, 1)
    t = diffusion_loss(nothing, tokens, z, SCHEDULE, param=V, generator=draws(7)).t
    counts = torch.bincount(t, minlength=100).double()
    # Chi-squared with 99 degrees of freedom: mean 99, standard deviation sqrt(198).
    assert abs(((counts - 200) ** 2 / 200).sum().item() - 99) < 5 * math.sqrt(198)


def test_draws_follow_the_generator_and_no_other() -> None:
    before = torch.random.get_rng_state()
    tokens, z = batch()
    first, again, other = (diffusion_loss(nothing, tokens, z, SCHEDULE, param=V, generator=draws(s)) for s in (1, 1, 2))
    assert torch.equal(first.t, again.t)
    assert torch.equal(first.per_row, again.per_row)
    assert not torch.equal(first.t, other.t)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_loss_is_float32_whatever_the_network_computes_in() -> None:
    head = trained_like()
    loss = run(lambda x_t, t, z: head(x_t, t, z, dtype=torch.bfloat16))
    assert loss.mean.dtype is loss.per_row.dtype is torch.float32
    assert not loss.per_row.requires_grad
    loss.mean.backward()
    assert head.token_out.weight.grad.abs().max() > 0
    exact = run(lambda x_t, t, z: head(x_t, t, z))
    # The outputs differ by a few 2^-8 of their size, so the loss by a few percent at most, and it does differ.
    assert 0 < abs(loss.mean.item() / exact.mean.item() - 1) < 0.05
