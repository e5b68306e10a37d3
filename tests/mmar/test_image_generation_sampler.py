"""From states to tokens: solvers, guidance, codes, precision, and the settings that choose among them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from generation_runs import FAMILIES, PROMPTS, difference, generate, lively_model, prompts, quick, seeded
from tiny_model import tiny_model
from torch import Tensor

from diffparam import EPSILON, VP, AngularParam, Schedule, V, guide, largest_safe_timestep, plan_dpm_solver, sample
from mmar.generation import ImageGenerationConfig, solver, token_sampler
from mmar.generation.solver import solver_plan, starting_schedule
from mmar.generation.token_sampler import ArStep, CodeSampler, DiffusionTokenSampler

CPU = torch.device("cpu")
SIGMA = 0.5
CHANNELS = 4
ONLY = ArStep(0, 1, 1.0)


class GaussianHead:
    """The ideal head for tokens that are normal around z with standard deviation SIGMA, for any parameterization."""

    def __init__(self, param: AngularParam, schedule: Schedule | None = None) -> None:
        self.schedule, self.param = Schedule.cosine() if schedule is None else schedule, param
        self.seen: list[Tensor] = []

    def condition(self, z: Tensor) -> Tensor:
        return z

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        self.seen.append(x_t)
        phi = self.schedule.phi_at(t)
        cos, sin = (f(phi).to(x_t.device)[:, None] for f in (torch.cos, torch.sin))
        noise_of = x_t.double() - cos * condition.double()  # of the token's deviation from z
        v = cos * sin * (1 - SIGMA**2) / ((cos * SIGMA) ** 2 + sin**2) * noise_of - sin * condition.double()
        if self.param is V:
            return v.float()
        return (sin * x_t.double() + cos * v).float()  # epsilon


def draw(head: Any, z: Tensor, settings: ImageGenerationConfig, step: ArStep = ONLY, seeds: tuple[int, ...] = (1,)) -> Tensor:
    return DiffusionTokenSampler(head, settings, head.param, CHANNELS)(z, step, seeded(*seeds))


def unit_states(tokens: int, branches: int = 1, rows: int = 1) -> Tensor:
    return torch.zeros(branches, rows, tokens, CHANNELS)


# -- diffusion --------------------------------------------------------------------------------------------------------


SOLVERS = [
    {"solver": "ddpm"},
    {"solver": "ddim"},
    {"solver": "ddim", "eta": 1.0},
    {"solver": "dpm_solver"},
    {"solver": "heun"},
]


@pytest.mark.parametrize("options", SOLVERS, ids=lambda o: "-".join(map(str, o.values())))
def test_every_solver_draws_the_distribution_of_the_head(options: dict[str, Any]) -> None:
    """N = 16384 numbers: mean 0.7 +- 5 SIGMA/sqrt(N), standard deviation SIGMA (1 +- 5/sqrt(2 N)), and what 100 steps cost.

    A first-order solver is off by a few times the step, pi/200, in the log of the standard deviation: 3.3 % for DDPM with its
    posterior variance, 1.4 % for DDIM.
    """
    z = unit_states(4096) + 0.7
    got = draw(GaussianHead(V), z, ImageGenerationConfig(**options))
    assert got.shape == (1, 4096, CHANNELS)
    assert got.dtype is torch.float32
    assert abs(float(got.mean()) - 0.7) < 5 * SIGMA / math.sqrt(16384) + 1e-3
    assert abs(float(got.std()) / SIGMA - 1) < 5 / math.sqrt(2 * 16384) + 0.035
    again = draw(GaussianHead(V), z, ImageGenerationConfig(**{**options, "head_steps": 99}))
    assert not torch.equal(again, got)  # the number of steps matters


def test_solvers_differ_and_agree_where_they_should() -> None:
    z = unit_states(64) + 0.7
    got = {i: draw(GaussianHead(V), z, ImageGenerationConfig(**options)) for i, options in enumerate(SOLVERS)}
    for a in got:
        for b in got:
            # DDPM is DDIM at eta = 1, so these two are one solver.
            assert (difference(got[a], got[b]) < 1e-5) is (a == b or {a, b} == {0, 2})


def test_the_arithmetic_is_diffparam_s() -> None:
    """A deterministic run from the first draw of the row's generator, whatever stands beside it."""
    head, z = GaussianHead(V), unit_states(8) + 0.7
    got = draw(head, z, ImageGenerationConfig(solver="dpm_solver", head_steps=12))
    noise = torch.randn(1, 8, CHANNELS, generator=seeded(1)[0])[0]
    plan = plan_dpm_solver(Schedule.cosine().respace(12), param=V)
    assert torch.equal(got[0], sample(lambda x, t: head(x, t, z[0, 0]), noise, plan))


def test_temperature_scales_the_noise_of_the_steps() -> None:
    """This head is linear, so with the same noises a run is linear in the temperature; sums of 100 terms, 2^-24 each."""
    z, g = unit_states(256) + 0.7, {}
    for temperature in (0.0, 0.5, 1.0, 2.0):
        g[temperature] = draw(GaussianHead(V), z, ImageGenerationConfig(temperature=temperature))
    for temperature in (0.5, 2.0):
        assert difference(g[temperature], g[0.0] + temperature * (g[1.0] - g[0.0])) < 100 * 2**-24 * 2
    assert float(g[0.0].std()) < 0.01 * float(g[1.0].std())  # hardly anything is left of the first noise


def test_both_branches_see_one_state_and_so_one_noise() -> None:
    head = GaussianHead(V)
    z = torch.stack([unit_states(3)[0] + 1.0, unit_states(3)[0] - 1.0])
    draw(head, z, ImageGenerationConfig(guidance_scale=3.0, head_steps=5))
    assert len(head.seen) == 5
    for x_t in head.seen:
        conditional, unconditional = x_t.chunk(2)
        assert torch.equal(conditional, unconditional)
        assert not torch.equal(conditional[0], conditional[1])  # while tokens have noises of their own


def test_guidance_moves_away_from_the_unconditional_branch() -> None:
    """For normal tokens of one width around z_c and z_u the output is affine in z: guidance draws around the same mixture."""
    z = torch.stack([unit_states(2048)[0] + 1.0, unit_states(2048)[0] - 0.5])
    for omega in (0.0, 1.0, 3.0):
        got = draw(GaussianHead(V), z, ImageGenerationConfig(guidance_scale=omega))
        # 8192 numbers: 5 SIGMA / sqrt(8192) = 0.028.
        assert float(got.mean()) == pytest.approx(-0.5 + 1.5 * omega, abs=0.03)


def test_linear_guidance_starts_at_none() -> None:
    """With the share 0 known, two branches give what one does; at 1 the whole scale."""
    z = torch.stack([unit_states(5)[0] + 1.0, unit_states(5)[0] - 1.0])
    linear, constant = (ImageGenerationConfig(guidance_scale=4.0, guidance_schedule=s) for s in ("linear", "constant"))
    alone = draw(GaussianHead(V), z[:1], constant)
    assert difference(draw(GaussianHead(V), z, linear, ArStep(0, 9, 0.0)), alone) < 1e-5
    assert difference(draw(GaussianHead(V), z, linear, ArStep(4, 9, 0.5)), alone) > 0.1
    full = draw(GaussianHead(V), z, linear, ArStep(8, 9, 1.0))
    assert torch.equal(full, draw(GaussianHead(V), z, constant, ArStep(0, 9, 0.1)))


def test_rows_draw_from_their_own_generators() -> None:
    together = draw(GaussianHead(V), unit_states(5, rows=3), ImageGenerationConfig(head_steps=7), seeds=(1, 2, 3))
    alone = draw(GaussianHead(V), unit_states(5), ImageGenerationConfig(head_steps=7), seeds=(2,))
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together[0], together[1])


# -- precision --------------------------------------------------------------------------------------------------------


def rounding_cost(param: AngularParam, head_steps: int = 10, **options: Any) -> float:
    """What a sampler in bf16 changes, beside the spread of the tokens."""
    z, given = unit_states(512) + 0.3, {"solver": "ddim", "head_steps": head_steps, **options}
    exact, rounded = (
        draw(GaussianHead(param), z, ImageGenerationConfig(sampler_dtype=dtype, **given)) for dtype in ("float32", "bfloat16")
    )
    return float((rounded - exact).square().mean().sqrt() / SIGMA)


def test_a_sampler_in_bf16_costs_epsilon_more_than_v() -> None:
    """x0 = (x - sin eps) / cos: a rounding of eps is multiplied by 1/cos(phi), 2e4 at t = 999; for v by 1 everywhere.

    Seen 0.005 for v and 0.046 for epsilon, 0.016 from its largest safe timestep; at 500 cos(phi) is 0.7 and neither is better.
    """
    v, epsilon = rounding_cost(V), rounding_cost(EPSILON)
    assert 0 < v < 0.02
    assert epsilon > 4 * v
    assert rounding_cost(EPSILON, max_timestep="safe") < epsilon / 2
    assert rounding_cost(EPSILON, max_timestep=500) < 2 * rounding_cost(V, max_timestep=500)


def test_a_step_in_bf16_is_a_change_of_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control is the plain update: in 50 steps its gains of v are near 1, of which bf16 keeps little, and at t = 999 those
    of epsilon are hundreds, with opposite signs, and do not cancel any more: nothing is left of the image.
    """
    v, epsilon = (rounding_cost(param, head_steps=50) for param in (V, EPSILON))
    monkeypatch.setattr(solver, "sample", lambda *args, increments, **options: sample(*args, **options))
    assert v < 0.7 * rounding_cost(V, head_steps=50)
    assert epsilon < 0.1
    assert rounding_cost(EPSILON, head_steps=50) > 0.5


@pytest.mark.parametrize("name", ["mmar", "transfusion-vit"])
@pytest.mark.parametrize("sampler_dtype", ["float32", "bfloat16"])
def test_guidance_is_computed_in_the_sampler_s_dtype(name: str, sampler_dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[torch.dtype] = set()

    def recorded(u_uncond: Tensor, u_cond: Tensor, omega: float) -> Tensor:
        seen.update({u_uncond.dtype, u_cond.dtype})
        return guide(u_uncond, u_cond, omega)

    monkeypatch.setattr(solver, "guide", recorded)
    with torch.autocast("cpu", torch.bfloat16):
        generate(lively_model(name), quick(name, guidance_scale=2.0, sampler_dtype=sampler_dtype), prompts(PROMPTS[0]))
    assert seen == {getattr(torch, sampler_dtype)}


@pytest.mark.parametrize("name", ["mmar", "raster", "transfusion-vit"])
def test_tokens_and_solver_are_float32_whatever_the_model_is(name: str) -> None:
    """A result that bf16 can hold in every number would be one that was rounded to it."""
    settings = quick(name, guidance_scale=2.0)
    exact = generate(lively_model(name), settings)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = generate(lively_model(name), settings)
        rounded = generate(lively_model(name), quick(name, guidance_scale=2.0, sampler_dtype="bfloat16"))
    pure = generate(tiny_model(name).bfloat16(), settings)
    for got in (exact, mixed, pure):
        assert got.dtype is torch.float32
        assert got.isfinite().all()
        assert not torch.equal(got, got.bfloat16().float())
    assert rounded.dtype is torch.float32
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert not torch.equal(mixed, exact)
    assert not torch.equal(mixed, rounded)


@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_models_draw_with_and_without_a_cache(name: str) -> None:
    model = tiny_model(name).bfloat16()
    got = [generate(model, quick(name, guidance_scale=2.0), use_prefix_cache=use) for use in (True, False)]
    if not model.config.has_codes:  # 0.08 for the states of one pass, through guidance with weights 2 and -1
        assert difference(*got) < 3 * 0.08


# -- where sampling starts ------------------------------------------------------------------------------------------------


def test_sampling_starts_at_most_at_max_timestep() -> None:
    schedule = Schedule.cosine()
    plan = solver_plan(ImageGenerationConfig(max_timestep=980), schedule, V, 10)
    assert (plan.timestep[0], plan.timestep[-1], len(plan)) == (980, 0, 10)
    assert solver_plan(ImageGenerationConfig(), schedule, V, 1).timestep.tolist() == [999]
    safe = starting_schedule(ImageGenerationConfig(max_timestep="safe"), schedule, EPSILON).timesteps[-1].item()
    assert safe == largest_safe_timestep(schedule, param=EPSILON, delta="unit_roundoff")
    assert 900 < safe < 999
    assert len(starting_schedule(ImageGenerationConfig(max_timestep="safe"), schedule, V)) == 1000  # v is safe everywhere


def test_a_singular_start_names_the_remedy() -> None:
    """Rectified flow ends in pure noise, where epsilon says nothing about the data."""
    flow = Schedule.rectified_flow()
    with pytest.raises(ValueError, match="max_timestep must be below 1000 for epsilon with ddpm, got None; 'safe' finds one"):
        solver_plan(ImageGenerationConfig(), flow, EPSILON, 10)
    with pytest.raises(ValueError, match="max_timestep must be below 1000 for v_prediction with heun"):
        solver_plan(ImageGenerationConfig(solver="heun"), flow, V, 10)
    for options in ({"max_timestep": "safe"}, {"max_timestep": 990}):
        assert len(solver_plan(ImageGenerationConfig(**options), flow, EPSILON, 10)) == 10
    with pytest.raises(ValueError, match="head_steps must be at most the 1000 timesteps of the schedule, got 1001"):
        solver_plan(ImageGenerationConfig(), flow, V, 1001)


@pytest.mark.parametrize("name", ["mmar", "transfusion"])
def test_every_objective_can_follow_rectified_flow(name: str) -> None:
    """Its 4 timesteps are 250.0 .. 1000.0, and the time table of whole-image models has 4 rows."""
    flow = {"name": "rectified_flow", "num_train_timesteps": 4, "image_first_timesteps": 2}
    model = tiny_model(name, schedule_config=flow, diffusion_head_config={"prediction_type": "v_prediction"})
    got = generate(model, ImageGenerationConfig(head_steps=4, ar_steps=4))
    assert got.isfinite().all()
    if name == "transfusion":
        head = model.image_model.head
        assert head.step_of(head.schedule.timesteps).tolist() == list(range(4))
        ids, mask = prompts(*PROMPTS)
        seen = model(ids, mask, image_tokens=got, image_targets=torch.ones(3, dtype=torch.bool), generator=seeded(1)[0])
        assert torch.isin(seen.image_timesteps, head.schedule.timesteps).all()
        assert model(ids, mask, image_tokens=got).image_loss is None  # clean at step 0, without a loss
        # From pure noise, unguided and with v, the last of 4 steps ends at the clean tokens: of order 1, not 1 / cos(phi).
        assert float(got.std()) < 3


def test_rectified_flow_is_drawn_in_its_own_convention() -> None:
    """Its state is (1 - t) x + t eps; a network told that draws what one on the same angles draws with unit variance."""
    flow = Schedule.rectified_flow()

    class Scaled(GaussianHead):
        def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            return super().__call__(x_t / flow.state.scale(float(flow.phi_at(t)[0])), t, condition)

    settings, z = ImageGenerationConfig(solver="ddim", max_timestep=700, head_steps=20), unit_states(6) + 0.4
    unit = draw(GaussianHead(V, flow.with_state(VP)), z, settings)
    assert difference(draw(Scaled(V, flow), z, settings), unit) < 1e-5
    assert difference(draw(GaussianHead(V, flow), z, settings), unit) > 1e-2  # the control: not told


# -- codes ------------------------------------------------------------------------------------------------------------


class FixedLogits:
    """A codebook head that is its own input."""

    def __call__(self, z: Tensor) -> Tensor:
        return z


def draw_codes(logits: Tensor, seed: int = 1, step: ArStep = ONLY, **options: Any) -> Tensor:
    """``(branches, n, K)`` logits to ``(n,)`` codes."""
    return CodeSampler(FixedLogits(), ImageGenerationConfig(**options))(logits[:, None], step, seeded(seed))[0]


LOGITS = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0])


def frequencies(codes: Tensor) -> Tensor:
    return codes.bincount(minlength=len(LOGITS)) / len(codes)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_codes_follow_the_softmax(temperature: float) -> None:
    """20000 draws: 5 sqrt(p (1 - p) / 20000) <= 0.018."""
    wanted = (LOGITS / temperature).softmax(-1)
    got = frequencies(draw_codes(LOGITS.expand(1, 20000, -1), temperature=temperature))
    assert (got - wanted).abs().max() < 0.018
    assert (got - LOGITS.div(3.0).softmax(-1)).abs().max() > 0.05  # another temperature would show


def test_few_codes_can_be_kept() -> None:
    many = LOGITS.expand(1, 5000, -1)
    for options, kept in (({"top_k": 2}, [2, 4]), ({"top_p": 0.5}, [2]), ({"top_p": 0.7}, [2, 4]), ({"top_k": 9}, range(5))):
        got = draw_codes(many, **options)
        assert sorted(got.unique().tolist()) == sorted(kept)
    two = LOGITS[[2, 4]].softmax(-1)[0]
    assert float((draw_codes(many, top_k=2) == 2).float().mean()) == pytest.approx(float(two), abs=5 * 0.5 / math.sqrt(5000))


def test_temperature_zero_takes_the_most_probable() -> None:
    many = torch.randn(1, 50, 7, generator=seeded(3)[0])
    assert torch.equal(draw_codes(many, temperature=0.0), many[0].argmax(-1))
    assert torch.equal(draw_codes(many, top_k=1), many[0].argmax(-1))
    assert not torch.equal(draw_codes(many), many[0].argmax(-1))


def test_impossible_codes_are_never_drawn() -> None:
    logits = torch.full((1, 5000, 64), -torch.inf)
    logits[..., [0, 31, 63]] = torch.tensor([0.0, -20.0, 0.0])
    assert sorted(draw_codes(logits).unique().tolist()) == [0, 63]


def test_the_smallest_uniform_number_is_no_way_to_an_impossible_code(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([[[-torch.inf, -torch.inf, 0.0, 1.0]]])
    for uniform, code in ((0.0, 2), (1.0 - 2.0**-53, 3)):
        monkeypatch.setattr(token_sampler, "draw_uniform", lambda *_, u=uniform: torch.full((1, 1), u, dtype=torch.float64))
        assert draw_codes(logits).tolist() == [code]


def test_logits_are_guided() -> None:
    g = seeded(4)[0]
    both = torch.randn(2, 40, 7, generator=g)
    mixed = (both[1] + 3.0 * (both[0] - both[1]))[None]
    assert torch.equal(draw_codes(both, guidance_scale=3.0), draw_codes(mixed))
    assert torch.equal(
        draw_codes(both, guidance_scale=3.0, guidance_schedule="linear", step=ArStep(0, 4, 0.0)), draw_codes(both[:1])
    )
    assert not torch.equal(draw_codes(both, guidance_scale=3.0), draw_codes(both[:1]))


@pytest.mark.parametrize("name", ["vq", "chameleon"])
def test_a_codebook_model_listens_to_its_settings(name: str) -> None:
    model = lively_model(name)
    plain = generate(model, quick(name))
    assert plain.dtype is torch.int64
    assert 0 <= int(plain.min()) <= int(plain.max()) < 32
    greedy = generate(model, quick(name, temperature=0.0))
    assert torch.equal(greedy, generate(model, quick(name, top_k=1)))
    assert not torch.equal(greedy, plain)


# -- a whole model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", SOLVERS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("name", ["mmar", "transfusion-vit"])
def test_every_solver_draws_images(name: str, options: dict[str, Any]) -> None:
    model, batch = lively_model(name), prompts(PROMPTS[0])
    got = generate(model, quick(name, **options), batch)
    assert got.isfinite().all()
    assert not torch.equal(got, generate(model, quick(name, **options, head_steps=5), batch))
    assert torch.equal(got, generate(model, quick(name, **options), batch))


def test_late_tokens_may_take_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    model = tiny_model()
    original: Callable[..., Tensor] = type(model.image_model.head).forward

    def counted(self: Any, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        calls.append(len(x_t))
        return original(self, x_t, t, condition)

    monkeypatch.setattr(type(model.image_model.head), "forward", counted)
    settings = quick("mmar", ar_steps=4, tokens_schedule="constant", head_steps=9, head_steps_end=3)
    generate(model, settings, prompts(PROMPTS[0]))
    assert len(calls) == 9 + 7 + 5 + 3
    calls.clear()
    generate(model, quick("mmar", ar_steps=4, tokens_schedule="constant", head_steps=9), prompts(PROMPTS[0]))
    assert len(calls) == 4 * 9


# -- settings -------------------------------------------------------------------------------------------------------------


def test_settings_survive_a_file(tmp_path: Path) -> None:
    settings = ImageGenerationConfig(ar_steps=8, solver="ddim", eta=0.5, max_timestep="safe", top_p=0.9, guidance_scale=4)
    settings.save(tmp_path / "new")
    assert ImageGenerationConfig.load(tmp_path / "new") == settings
    assert ImageGenerationConfig.from_dict(settings.to_dict()) == settings
    assert ImageGenerationConfig.from_dict({}) == ImageGenerationConfig() == ImageGenerationConfig.preset("paper")
    assert ImageGenerationConfig.preset("fast", ar_steps=8).ar_steps == 8


def test_the_defaults_are_the_paper_s() -> None:
    """256 x 100 calls of the head per image; fast, by which a pipeline of masked diffusion draws, 80 times fewer."""
    paper, fast = (ImageGenerationConfig.preset(name) for name in ("paper", "fast"))
    assert (paper.ar_steps, paper.head_steps, paper.solver, paper.temperature) == (None, 100, "ddpm", 1.0)
    steps = fast.ar_steps_for(256)
    assert 256 * paper.head_steps / sum(fast.head_steps_at(i, steps) for i in range(steps)) == 80
    assert ImageGenerationConfig.default_for(tiny_model("mmar").config) == fast
    for other in ("chameleon", "transfusion", "vq", "raster"):
        config = tiny_model(other).config
        ImageGenerationConfig.default_for(config).check_for(config)
        assert ImageGenerationConfig.default_for(config) == paper


def test_steps_as_a_share_of_the_tokens() -> None:
    share = ImageGenerationConfig(ar_steps=0.25)
    assert [share.ar_steps_for(tokens) for tokens in (256, 16, 6, 1)] == [64, 4, 2, 1]
    model = tiny_model("mmar")
    steps = 4 / model.config.image_config.count
    options = {"head_steps": 2, "solver": "ddim"}
    got, same = (generate(model, ImageGenerationConfig(ar_steps=given, **options)) for given in (steps, 4))
    assert torch.equal(got, same)
    assert not torch.equal(got, generate(model, ImageGenerationConfig(ar_steps=2, **options)))  # the control
    with pytest.raises(ValueError, match="ar_steps must be None"):
        share.check_for(tiny_model("chameleon").config)


def test_schedules_over_the_steps() -> None:
    settings = ImageGenerationConfig(head_steps=50, head_steps_end=5, guidance_scale=3.0, guidance_schedule="linear")
    assert [settings.head_steps_at(i, 10) for i in range(10)] == [50, 45, 40, 35, 30, 25, 20, 15, 10, 5]
    assert settings.head_steps_at(0, 1) == 50
    assert [settings.guidance_at(share) for share in (0.0, 0.5, 1.0)] == [1.0, 2.0, 3.0]
    constant = ImageGenerationConfig(guidance_scale=3.0)
    assert [constant.guidance_at(share) for share in (0.0, 1.0)] == [3.0, 3.0]
    assert constant.head_steps_at(9, 10) == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ar_steps": 0}, "ar_steps must be a whole number of at least 1 or a share between 0 and 1 or None, got 0"),
        ({"ar_steps": 1.0}, "or a share between 0 and 1 or None, got 1.0"),
        ({"head_steps": 2.5}, "head_steps must be a whole number of at least 1, got 2.5"),
        ({"head_steps": None}, "head_steps must be"),
        ({"top_k": True}, "top_k must be"),
        ({"order": "spiral"}, "order must be one of None, random, raster, got 'spiral'"),
        ({"solver": "euler"}, "solver must be one of ddpm, ddim, dpm_solver, heun"),
        ({"tokens_schedule": "sigmoid"}, "tokens_schedule must be"),
        ({"guidance_schedule": "cosine"}, "guidance_schedule must be"),
        ({"sampler_dtype": "float16"}, "sampler_dtype must be"),
        ({"guidance_scale": -1.0}, "guidance_scale must be a finite number of at least 0, got -1.0"),
        ({"guidance_scale": math.nan}, "guidance_scale must be"),
        ({"temperature": math.inf}, "temperature must be"),
        ({"eta": 0.5}, "eta must be 0, or at most 1 for ddim, got 0.5 for ddpm"),
        ({"eta": 1.5, "solver": "ddim"}, "eta must be"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]"),
        ({"max_timestep": "large"}, "max_timestep must be"),
        ({"steps": 5}, "options must be among ar_steps, .*; got steps"),
    ],
)
def test_settings_check_themselves(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageGenerationConfig.from_dict(options)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="paper, fast, got 'slow'"):
        ImageGenerationConfig.preset("slow")
