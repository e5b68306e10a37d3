"""Losses of image tokens against their formulas: which tokens, which noise, which weight, which state z.

The networks are the model's; noise, targets, weights and means are formed here from the paper's equations. Tolerance: means of
some 1000 float32 numbers of order 1, each off by 2^-24 times the few sums behind it: 1e-5 relative.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from tiny_model import BLOCK, CHANNELS, COUNT, rows, some_known, some_tokens, tiny_model
from torch import Tensor
from torch.nn import functional

from mmar.image_batch import ImageBatch, image_batch
from mmar.model import MMARForConditionalGeneration
from mmar.output import MMAROutput

REL = 1e-5
QUESTION = [1, 20, 21, 2]
CONTINUOUS = ["mmar", "epsilon", "raster"]


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def three_images(model: MMARForConditionalGeneration, **options: Any) -> tuple[MMAROutput, Tensor, Tensor]:
    """Two images that are drawn around one that is read: the output, which tokens have a loss, and all tokens."""
    ids, mask = rows(QUESTION + BLOCK + BLOCK, [*BLOCK, 30, 2])
    tokens, targets = some_tokens(model, 3), torch.tensor([True, False, True])
    known = some_known(3, masked=6)
    known[0, known[0].nonzero()[0]] = False  # seven masked tokens in the first image, six in the last
    known[1] = True
    unknown = ~known if model.config.is_masked else targets[:, None].expand(-1, COUNT)
    inputs = {"known": known if model.config.is_masked else None, "image_targets": targets, "output_image_states": True}
    with torch.no_grad():
        return model(ids, mask, image_tokens=tokens, **{**inputs, **options}), unknown, tokens


@torch.no_grad()
def squared_errors(model: MMARForConditionalGeneration, z: Tensor, tokens: Tensor, index: Tensor, eps: Tensor) -> Tensor:
    """Equation 8, or its epsilon form, for rows ``z (R, H)``, ``tokens (R, C)`` at steps ``index (R,)``."""
    head, schedule = model.image_model.head, model.config.schedule_config.build()
    alpha, sigma = (part[index, None].float() for part in (schedule.alpha, schedule.sigma))
    is_v = model.config.diffusion_head_config.prediction_type == "v_prediction"
    target = alpha * eps - sigma * tokens if is_v else eps
    u = head.head(alpha * tokens + sigma * eps, schedule.timesteps[index], head.projector(z))
    return (u - target).square().mean(-1)


# -- which state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mmar", "vq", "transfusion", "raster", "chameleon", "understanding-only"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_z_is_the_state_at_the_tokens_own_place_or_one_before(name: str, side: str) -> None:
    model, hidden = tiny_model(name), []
    model.language_model.register_forward_hook(lambda _module, _args, out: hidden.append(out.last_hidden_state))
    ids, mask = rows(QUESTION + BLOCK + BLOCK, [*BLOCK, 30, 2], side=side)
    with torch.no_grad():
        z = model(ids, mask, image_tokens=some_tokens(model, 3), output_image_states=True).image_states
    begins = [(int(r), int(c)) for r, c in (ids == 5).nonzero()]
    shift = 0 if model.config.is_causal else 1
    assert len(z) == len(begins) == 3
    for image, (r, c) in zip(z, begins, strict=True):
        assert torch.equal(image, hidden[0][r, c + shift : c + shift + COUNT])


# -- diffusion ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("repeat", [1, 3])
def test_the_loss_of_tokens_is_that_of_the_paper(name: str, repeat: int) -> None:
    """Over the masked tokens of drawn images (all of them in raster order), each at K noise levels."""
    model = tiny_model(name)
    out, unknown, tokens = three_images(model, timesteps_per_token=repeat, generator=seeded(3)[0])
    z, x = out.image_states[unknown].repeat_interleave(repeat, 0), tokens[unknown].repeat_interleave(repeat, 0)
    (g,) = seeded(3)
    index, eps = torch.randint(1000, (len(x),), generator=g), torch.randn(len(x), CHANNELS, generator=g)
    wanted = squared_errors(model, z, x, index, eps)
    assert len(wanted) == repeat * (32 if name == "raster" else 13)
    assert out.image_count == len(wanted) // repeat
    assert torch.equal(out.image_timesteps, index)
    assert torch.allclose(out.image_rows, wanted, rtol=REL, atol=REL)
    assert float(out.image_loss) == pytest.approx(float(wanted.mean()), rel=REL)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_each_drawn_image_has_the_noise_of_its_own_generator(name: str) -> None:
    model = tiny_model(name)
    out, unknown, tokens = three_images(model, timesteps_per_token=2, generator=seeded(3, 4, 5))
    wanted, indices = [], []
    for image, g in zip((0, 2), seeded(3, 5), strict=True):
        x, z = (part[image][unknown[image]].repeat_interleave(2, 0) for part in (tokens, out.image_states))
        index, eps = torch.randint(1000, (len(x),), generator=g), torch.randn(len(x), CHANNELS, generator=g)
        indices.append(index)
        wanted.append(squared_errors(model, z, x, index, eps))
    assert torch.equal(out.image_timesteps, torch.cat(indices))
    assert torch.allclose(out.image_rows, torch.cat(wanted), rtol=REL, atol=REL)


@pytest.mark.parametrize("name", ["epsilon", "transfusion"])
def test_another_loss_space_weighs_timesteps_and_leaves_rows_alone(name: str) -> None:
    """An epsilon head with the loss of v: 1 / alpha_bar, on 20 steps, so that a neighbour's weight would be another."""
    options = {"schedule_config": {"num_train_timesteps": 20, "image_first_timesteps": 10}}
    plain = three_images(tiny_model(name, **options), generator=seeded(3)[0])[0]
    space = {"prediction_type": "epsilon", "loss_space": "v_prediction"}
    model = tiny_model(name, **options, diffusion_head_config=space)
    weighted = three_images(model, generator=seeded(3)[0])[0]
    assert torch.equal(weighted.image_rows, plain.image_rows)
    alpha_bar = model.config.schedule_config.build().alpha_bar
    wanted = (plain.image_rows / alpha_bar[plain.image_timesteps]).mean()
    assert float(weighted.image_loss) == pytest.approx(float(wanted), rel=REL)
    assert float(weighted.image_loss) > 2 * float(plain.image_loss)


def test_the_head_computes_in_the_dtype_of_autocast_or_of_its_weights() -> None:
    """And the time, x_t and the error stay float32 around it."""
    for precision, wanted in (("float32", torch.float32), ("autocast", torch.bfloat16), ("pure", torch.bfloat16)):
        model, seen = tiny_model(), []
        model.image_model.head.head.register_forward_pre_hook(partial(recorded, seen), with_kwargs=True)
        if precision == "pure":
            model.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            out, _, _ = three_images(model)
        ((x_t, t, _), options) = seen[0]
        assert options == {"dtype": wanted}
        assert x_t.dtype is torch.float32
        assert not t.is_floating_point()
        assert out.image_rows.dtype is out.image_loss.dtype is torch.float32


def test_timesteps_per_token_below_one_are_refused() -> None:
    for count in (0, -1):
        with pytest.raises(ValueError, match="timesteps_per_token must be at least 1"):
            three_images(tiny_model(), timesteps_per_token=count)


def recorded(seen: list[Any], _module: Any, args: Any, options: Any) -> None:
    """A hook that keeps what a module is called with."""
    seen.append((args, options))


# -- codes --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vq", "chameleon"])
def test_the_loss_of_codes_is_cross_entropy(name: str) -> None:
    model = tiny_model(name)
    out, unknown, codes = three_images(model)
    layer = model.image_model.head.out
    with torch.no_grad():
        probabilities = (out.image_states[unknown] @ layer.weight.T + layer.bias).double().softmax(-1)
    wanted = -probabilities.gather(1, codes[unknown][:, None])[:, 0].log()
    assert len(wanted) == out.image_count == (32 if name == "chameleon" else 13)
    assert torch.allclose(out.image_rows.double(), wanted, rtol=REL, atol=REL)
    assert float(out.image_loss) == pytest.approx(float(wanted.mean()), rel=REL)
    assert out.image_timesteps is None


@pytest.mark.parametrize("name", ["vq", "chameleon"])
def test_codes_are_scored_in_float32(name: str) -> None:
    out, _, _ = three_images(tiny_model(name).to(torch.bfloat16))
    assert out.image_rows.dtype is out.image_loss.dtype is torch.float32


# -- whole images -------------------------------------------------------------------------------------------------------------


def noised(model: MMARForConditionalGeneration, **options: Any) -> tuple[MMAROutput, Tensor, Tensor, Tensor]:
    """The output of :func:`three_images`, and the tokens and steps that the language model's input got, and all tokens."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = model.image_model.input.register_forward_pre_hook(lambda _module, args: seen.append(args))
    out, _, tokens = three_images(model, **options)
    hook.remove()
    return out, *seen[0], tokens


@pytest.mark.parametrize("name", ["transfusion", "transfusion-vit"])
@pytest.mark.parametrize("given", [False, True])
def test_whole_images_are_noised_and_denoised_at_one_level_each(name: str, given: bool) -> None:
    model = tiny_model(name)
    schedule, timesteps = model.config.schedule_config.build(), torch.tensor([700, 0, 999]) if given else None
    out, x_t, steps, tokens = noised(model, image_timesteps=timesteps, generator=seeded(3)[0])
    (g,) = seeded(3)
    uniform, eps = torch.rand(3, generator=g, dtype=torch.float64), torch.randn(tokens.shape, generator=g)
    wanted = (uniform * torch.tensor([1000, 500, 1000])).long() if timesteps is None else timesteps
    assert torch.equal(steps, wanted)
    alpha, sigma = (part[wanted].float()[:, None, None] for part in (schedule.alpha, schedule.sigma))
    assert torch.allclose(x_t, alpha * tokens + sigma * eps, rtol=REL, atol=1e-6)
    layer = model.image_model.head.out
    with torch.no_grad():
        errors = (out.image_states @ layer.weight.T + layer.bias - eps).square().mean(-1)  # (3, N)
    assert torch.allclose(out.image_rows.view(3, COUNT), errors, rtol=REL, atol=REL)
    assert torch.equal(out.image_timesteps.view(3, COUNT), wanted[:, None].expand(-1, COUNT))
    assert float(out.image_loss) == pytest.approx(float(errors.mean()), rel=REL)
    assert out.image_count == 3 * COUNT


def test_whole_images_predict_what_the_configuration_says() -> None:
    model = tiny_model("transfusion", diffusion_head_config={"prediction_type": "v_prediction"})
    out, _, steps, tokens = noised(model, generator=seeded(3)[0])
    (g,) = seeded(3)
    torch.rand(3, generator=g, dtype=torch.float64)
    eps, phi = torch.randn(tokens.shape, generator=g), model.config.schedule_config.build().phi[steps][:, None, None].float()
    layer = model.image_model.head.out
    with torch.no_grad():
        errors = (out.image_states @ layer.weight.T + layer.bias - (phi.cos() * eps - phi.sin() * tokens)).square().mean(-1)
    assert torch.allclose(out.image_rows.view(3, COUNT), errors, rtol=REL, atol=REL)


def test_images_that_are_read_are_noised_below_their_limit() -> None:
    """1000 draws each: uniform to 5 sigma of the mean, width / sqrt(12 x 1000)."""
    model = tiny_model("transfusion", schedule_config={"image_first_timesteps": 200}).train()
    for target, limit in ((True, 1000), (False, 200)):
        tokens = torch.zeros(1000, COUNT, CHANNELS)
        images = ImageBatch(tokens, torch.ones(1000, COUNT, dtype=torch.bool), torch.full((1000,), target))
        with torch.no_grad():
            timesteps = model.image_model.encode(images, seeded(0)[0]).timesteps
        assert 0 <= int(timesteps.min()) < 0.02 * limit  # 1 - (1 - 0.02)^1000 is 1 to nine digits
        assert 0.98 * limit < int(timesteps.max()) < limit
        assert abs(float(timesteps.double().mean()) - (limit - 1) / 2) < 5 * limit / math.sqrt(12 * 1000)


@pytest.mark.parametrize("name", ["transfusion", "transfusion-vit"])
def test_images_that_are_only_read_are_clean_outside_training(name: str) -> None:
    model, nothing = tiny_model(name), torch.zeros(3, dtype=torch.bool)
    out, x_t, steps, tokens = noised(model, image_targets=nothing)
    assert torch.equal(x_t, tokens)
    assert steps.tolist() == [0, 0, 0]
    assert out.image_loss is out.image_rows is None
    out, x_t, _, _ = noised(model.train(), image_targets=nothing)
    assert not torch.equal(x_t, tokens)  # in training they have a loss
    assert out.image_count == 3 * COUNT


def test_a_noised_context_is_read_noised() -> None:
    """The same weights as MMAR: features are those of noised tokens, in training below the limit."""
    limits = {"schedule_config": {"num_train_timesteps": 8, "image_first_timesteps": 4}}
    plain, noised = tiny_model(**limits), tiny_model(noised_context=True, **limits)
    assert plain.state_dict().keys() == noised.state_dict().keys()
    tokens, known = some_tokens(plain, 3), some_known(3)
    schedule, targets = plain.config.schedule_config.build(), torch.tensor([True] * 3)

    def features(model: MMARForConditionalGeneration, values: Tensor, timesteps: Tensor | None = None) -> Tensor:
        batch = ImageBatch(values, known, targets, timesteps)
        return model.image_model.encode(batch, seeded(5, 6, 7)).features

    levels = torch.tensor([0, 3, 7])
    uniforms, eps = (torch.stack(parts) for parts in zip(*(uniform_and_noise(s) for s in seeded(5, 6, 7)), strict=True))
    with torch.no_grad():
        assert torch.equal(features(noised, tokens), features(plain, tokens))  # asked, not trained: clean
        given = features(noised, tokens, levels)
        assert torch.equal(given, features(plain, schedule.add_noise(tokens, eps, schedule.timesteps[levels])))
        noised.train(), plain.train()
        drawn = schedule.timesteps[(uniforms * 4).long()]
        assert torch.equal(features(noised, tokens), features(plain, schedule.add_noise(tokens, eps, drawn)))
        assert not torch.equal(features(noised, tokens), features(plain, tokens))


def uniform_and_noise(source: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.rand((), generator=source, dtype=torch.float64), torch.randn(COUNT, CHANNELS, generator=source)


def test_only_masked_diffusion_has_a_noised_context() -> None:
    for name in ("transfusion", "raster", "vq"):
        with pytest.raises(ValueError, match="noised_context must be False for"):
            tiny_model(name, noised_context=True)


def test_the_time_table_goes_by_steps_whatever_the_timesteps_are_called() -> None:
    model = tiny_model("transfusion", schedule_config={"name": "rectified_flow"})
    schedule = model.config.schedule_config.build()
    assert float(schedule.timesteps[0]) != 0  # timestep and step differ
    out, x_t, steps, tokens = noised(model, generator=seeded(3)[0])
    (g,) = seeded(3)
    uniform, eps = torch.rand(3, generator=g, dtype=torch.float64), torch.randn(tokens.shape, generator=g)
    assert torch.equal(steps, (uniform * torch.tensor([1000, 500, 1000])).long())
    assert torch.equal(out.image_timesteps.view(3, COUNT)[:, 0], schedule.timesteps[steps])
    t = ((steps + 1) / 1000)[:, None, None]
    assert torch.allclose(x_t, (1 - t) * tokens + t * eps, rtol=REL, atol=1e-6)


# -- the joint loss -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_training", [False, True])
def test_factors_of_the_two_losses(is_training: bool) -> None:
    model = tiny_model(image_loss_weight=0.5).train(is_training)
    ids, mask = rows(QUESTION + BLOCK + BLOCK, [*BLOCK, 30, 2])
    labels = ids.masked_fill((mask == 0) | (ids != 30), -100)
    out, _, _ = three_images(model, labels=labels, loss_weights=(3.0, 7.0), generator=seeded(0)[0])
    assert float(out.loss) == pytest.approx(3.0 * float(out.text_loss) + 3.5 * float(out.image_loss), rel=REL)
    assert out.text_count == 1


def test_the_loss_of_text_is_that_of_the_state_before() -> None:
    model, hidden = tiny_model(), []
    model.language_model.register_forward_hook(lambda _module, _args, out: hidden.append(out.last_hidden_state))
    labels = torch.full((2, len(QUESTION) + 2 * len(BLOCK)), -100)
    answer, begin = torch.tensor([30, 2]), len(BLOCK)
    labels[1, begin : begin + 2] = answer
    out, _, _ = three_images(model, labels=labels)
    with torch.no_grad():
        wanted = functional.cross_entropy((hidden[0][1, begin - 1 : begin + 1] @ model.lm_head.weight.T).double(), answer)
    assert float(out.text_loss) == pytest.approx(float(wanted), rel=REL)
    assert out.text_count == 2


# -- the images of a batch ----------------------------------------------------------------------------------------------------


def batch_of(name: str, tokens: Tensor, per_row: list[int], **options: Tensor) -> ImageBatch | None:
    return image_batch(tiny_model(name).config, torch.tensor(per_row), tokens, **options)


def test_images_grouped_by_row_are_taken_row_by_row() -> None:
    tokens = some_tokens(tiny_model(), 6).view(3, 2, COUNT, CHANNELS)
    found = batch_of("mmar", tokens, [1, 0, 2])
    assert found is not None
    assert torch.equal(found.tokens, torch.stack([tokens[0, 0], tokens[2, 0], tokens[2, 1]]))
    codes = some_tokens(tiny_model("vq"), 6).view(3, 2, COUNT)
    found = batch_of("vq", codes, [0, 1, 2])
    assert found is not None
    assert torch.equal(found.tokens, torch.stack([codes[1, 0], codes[2, 0], codes[2, 1]]))


def test_images_that_no_row_shows_are_refused() -> None:
    tokens = some_tokens(tiny_model(), 6).view(3, 2, COUNT, CHANNELS)
    for grouped, per_row in ((tokens, [1, 1, 0]), (tokens[:, :1], [1, 2, 0]), (tokens[:2], [1, 2, 0]), (tokens, [0, 0, 0])):
        with pytest.raises(ValueError, match="image_tokens must hold the images of 3 rows"):
            batch_of("mmar", grouped, per_row)


def test_images_are_targets_where_a_token_is_unknown() -> None:
    known = torch.ones(3, COUNT, dtype=torch.bool)
    known[1, 3] = False
    found = batch_of("mmar", some_tokens(tiny_model(), 3), [3], known=known)
    assert found is not None
    assert found.targets.tolist() == [False, True, False]
    found = batch_of("raster", some_tokens(tiny_model(), 3), [3])
    assert found is not None
    assert not found.targets.any()


def test_a_single_bad_number_is_refused() -> None:
    tokens, codes = some_tokens(tiny_model(), 3), some_tokens(tiny_model("vq"), 3)
    for bad in (math.nan, math.inf):
        spoilt = tokens.clone()
        spoilt[2, 1, 3] = bad
        with pytest.raises(ValueError, match="finite"):
            batch_of("mmar", spoilt, [3])
    for code in (-1, 32):
        spoilt = codes.clone()
        spoilt[1, 2] = code
        with pytest.raises(ValueError, match=r"0\.\.31"):
            batch_of("vq", spoilt, [3])
    for code in (0, 31):
        assert batch_of("vq", torch.full_like(codes, code), [3]) is not None


def test_noise_levels_are_for_whole_images_and_whole_numbers() -> None:
    tokens, timesteps = some_tokens(tiny_model(), 3), torch.tensor([1, 2, 3])
    found = batch_of("transfusion", tokens, [3], timesteps=timesteps)
    assert found is not None
    assert torch.equal(found.timesteps, timesteps)
    with pytest.raises(ValueError, match="timesteps must be None for 'masked_diffusion'"):
        batch_of("mmar", tokens, [3], timesteps=timesteps)
    for bad in (timesteps.float(), timesteps[:2]):
        with pytest.raises(ValueError, match=r"timesteps must be torch\.int64"):
            batch_of("transfusion", tokens, [3], timesteps=bad)
