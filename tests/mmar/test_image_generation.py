"""Drawn images: what they depend on, what they do not, and that they are drawn with the z of training.

Tolerances: one pass of a two-layer model differs by 2e-5 of its scale with another order of sums (see test_model.py). A
diffusion step multiplies that by at most the derivative of the network, a few, and every image is 4 or 5 dependent steps:
2e-4. Codes are drawn with the same uniform numbers, and none of these few lies within 1e-5 of an edge: they are equal.
"""

from __future__ import annotations

import pytest
import torch
from generation_runs import (
    CAUSAL,
    DRAWING,
    EMPTY,
    FAMILIES,
    MASKED,
    PROMPTS,
    TOLERANCE,
    difference,
    generate,
    lively_model,
    prompts,
    quick,
    record_calls,
    seeded,
)
from tiny_model import BLOCK, COUNT, rows, some_tokens

from mmar.generation import generate_image_tokens
from mmar.generation.order import draw_order, tokens_per_step
from mmar.generation.prefix import PromptedModel
from mmar.generation.prompts import embed_prompts
from mmar.image_batch import ImageBatch

PRECISIONS = {"float32": 2e-5, "bfloat16": 0.08}


# -- the prefix cache -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", DRAWING)
def test_a_cached_prompt_gives_the_same_image(name: str, guidance: float) -> None:
    model, settings = lively_model(name), quick(name, guidance_scale=guidance)
    cached, recomputed = (generate(model, settings, use_prefix_cache=use) for use in (True, False))
    # Guidance combines two branches with weights 3 and -2.
    assert difference(cached, recomputed) <= TOLERANCE * (2 * guidance - 1)
    other = generate(model, settings, prompts(*PROMPTS[1:], PROMPTS[0]))
    assert difference(cached, other) > 20 * TOLERANCE * (2 * guidance - 1)  # the control: the prompt matters


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", DRAWING)
@torch.no_grad()
def test_states_behind_a_cached_prompt_are_those_of_a_whole_pass(name: str, precision: str) -> None:
    model, tolerance = lively_model(name), PRECISIONS[precision]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        line = embed_prompts(model, prompts(*PROMPTS))
        cached, whole = (PromptedModel(model, line, use_cache=use) for use in (True, False))
        first, second = (torch.randn(3, COUNT, 64, generator=g) for g in seeded(1, 2))
        before = cached.states(first)
        assert difference(cached.states(second).float(), whole.states(second).float()) <= tolerance
        assert torch.equal(cached.states(first), before)  # nothing of the second image stayed
        cached.extend(first[:, :1])
        assert difference(whole.states(first).float(), whole.states(second).float()) > 2 * tolerance


@torch.no_grad()
def test_an_image_left_in_the_cache_would_show() -> None:
    """The control of the test above: what forgetting to put the prompt's keys and values back would do."""
    model = lively_model("raster")  # causal, so that more tokens than the image has can be asked for
    prompted = PromptedModel(model, embed_prompts(model, prompts(PROMPTS[0])))
    first, second = (torch.randn(1, 4, 64, generator=g) for g in seeded(1, 2))
    right = prompted.states(second)[:, 1:]
    prompted.extend(first)
    assert difference(prompted.extend(second), right) > 0.1


def test_a_model_without_a_cache_cannot_be_extended() -> None:
    model = lively_model("raster")
    with torch.no_grad(), pytest.raises(RuntimeError, match="use_cache=False; use states"):
        PromptedModel(model, embed_prompts(model, prompts(PROMPTS[0])), use_cache=False).extend(torch.zeros(1, 1, 64))


# -- the z of training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["random", "raster"])
@pytest.mark.parametrize("ar_steps", [None, 5])
@pytest.mark.parametrize("name", MASKED)
def test_every_token_is_drawn_from_the_state_that_training_gives_it(
    name: str, ar_steps: int | None, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fed back with what was known at each step, the finished image has the same z, in any order."""
    model, seen = lively_model(name), record_calls(monkeypatch)
    settings = quick(name, ar_steps=ar_steps, order=order)
    ids, _ = prompts(PROMPTS[0], PROMPTS[0])
    tokens = generate(model, settings, (ids, None))
    known = torch.zeros(2, COUNT, dtype=torch.bool)
    places = draw_order(known, order, seeded(1, 2)).split(tokens_per_step(COUNT, ar_steps or COUNT), dim=1)
    assert len(seen) == len(places)
    for (z, _), drawn in zip(seen, places, strict=True):
        with torch.no_grad():
            states = model(ids, image_tokens=tokens, known=known, output_image_states=True).image_states
        assert difference(z[0], states.take_along_dim(drawn[..., None], 1)) <= TOLERANCE
        known = known.scatter(1, drawn, True)
        with torch.no_grad():  # the control: were the tokens known that are drawn, the state would be another
            later = model(ids, image_tokens=tokens, known=known, output_image_states=True).image_states
        assert difference(z[0], later.take_along_dim(drawn[..., None], 1)) > 20 * TOLERANCE
    assert known.all()


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_image_fed_back_gives_the_states_that_drew_it(
    name: str, use_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = lively_model(name), record_calls(monkeypatch)
    batch = prompts(*PROMPTS)
    tokens = generate(model, quick(name), batch, use_prefix_cache=use_cache)
    drawn = torch.cat([z[0] for z, _ in seen], dim=1)  # (B, N, H)
    with torch.no_grad():
        forced = model(*batch, image_tokens=tokens, output_image_states=True).image_states
        other = model(*batch, image_tokens=tokens.flip(1), output_image_states=True).image_states
    assert difference(drawn, forced) <= TOLERANCE
    assert difference(drawn[:, 1:], forced[:, :-1]) > 0.1  # each at its own place
    assert difference(drawn[:, :1], other[:, :1]) <= TOLERANCE  # the first token is drawn from the text alone
    assert difference(drawn, other) > 0.1


@pytest.mark.parametrize("name", ["transfusion", "transfusion-vit"])
@torch.no_grad()
def test_whole_images_are_denoised_by_the_model_that_was_trained(name: str) -> None:
    """The state that ``forward`` noises in training, put in by hand, has the same output."""
    model, (ids, mask) = lively_model(name), prompts(*PROMPTS)
    clean, t, every = some_tokens(model, 3), torch.full((3,), 600), torch.ones(3, dtype=torch.bool)
    images = ImageBatch(clean, every[:, None].expand(3, COUNT), every, t)
    eps = model.image_model.encode(images, seeded(5)[0]).eps
    trained = model(
        ids, mask, image_tokens=clean, image_timesteps=t, image_targets=every, generator=seeded(5)[0], output_image_states=True
    )
    head, prompted = model.image_model.head, PromptedModel(model, embed_prompts(model, (ids, mask)))
    x_t = head.schedule.add_noise(clean, eps, t)
    z, later = (prompted.states(model.image_model.input(x_t, head.step_of(time)))[:, 1:] for time in (t, t + 50))
    assert difference(z, trained.image_states) <= 2e-5
    assert difference(later, trained.image_states) > 1e-2


@pytest.mark.parametrize("name", MASKED)
def test_one_token_per_step_is_the_same_by_every_schedule(name: str) -> None:
    model = lively_model(name)
    one_by_one = generate(model, quick(name, ar_steps=None))
    for steps, schedule in ((COUNT, "cosine"), (COUNT, "linear"), (1000, "constant")):  # at most as many as there are tokens
        assert torch.equal(generate(model, quick(name, ar_steps=steps, tokens_schedule=schedule)), one_by_one)
    assert not torch.equal(generate(model, quick(name, ar_steps=COUNT // 4)), one_by_one)


# -- rows and padding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DRAWING)
def test_an_image_depends_on_its_row_alone(name: str) -> None:
    """Not on the other rows, nor on the side of the padding, nor on what stands after it."""
    model, settings = lively_model(name), quick(name, guidance_scale=3.0)
    tolerance = 5 * TOLERANCE
    right = generate(model, settings, prompts(*PROMPTS))
    left = generate(model, settings, rows(*([*content, *BLOCK, 7, 8, 9] for content in PROMPTS), side="left"))
    assert difference(right, left) <= tolerance
    for row in (1, 2):  # the shortest and the longest prompt
        alone = generate(model, settings, prompts(PROMPTS[row]), seeds=[row + 1])
        assert difference(right[row : row + 1], alone) <= tolerance
    another = generate(model, settings, prompts(PROMPTS[1]), seeds=[9])
    assert difference(right[1:2], another) > 20 * tolerance  # the control: the seed matters


@pytest.mark.parametrize("name", FAMILIES)
def test_seeds_decide(name: str) -> None:
    model, settings = lively_model(name), quick(name)
    batch = prompts(PROMPTS[0], PROMPTS[0], PROMPTS[0])
    one = generate(model, settings, batch)
    assert torch.equal(one, generate(model, settings, batch))
    assert not torch.equal(one, generate(model, settings, batch, seeds=[4, 5, 6]))
    for a, b in ((0, 1), (1, 2)):  # equal prompts are different images
        assert difference(one[a], one[b]) > 0.1
    torch.manual_seed(3)
    default = generate_image_tokens(model, *batch, settings=settings)
    torch.manual_seed(3)
    assert torch.equal(default, generate_image_tokens(model, *batch, settings=settings))
    assert not torch.equal(default, generate_image_tokens(model, *batch, settings=settings))


# -- guidance ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_no_guidance_reads_no_unconditional_prompt(name: str) -> None:
    model = lively_model(name)
    plain = generate(model, quick(name))
    assert torch.equal(plain, generate(model, quick(name, guidance_scale=1.0), uncond_input_ids=EMPTY))
    assert not torch.equal(plain, generate(model, quick(name, guidance_scale=3.0)))


@pytest.mark.parametrize("name", FAMILIES)
def test_guidance_away_from_the_prompt_itself_is_none(name: str) -> None:
    """u + omega (u - u) = u, so the unconditional branch is the second half of the batch, with its own padding and noise."""
    model, (ids, mask) = lively_model(name), prompts(*PROMPTS)
    same = {"uncond_input_ids": ids, "uncond_attention_mask": mask}
    plain = generate(model, quick(name))
    assert difference(generate(model, quick(name, guidance_scale=3.0), **same), plain) <= 5 * TOLERANCE
    assert difference(generate(model, quick(name, guidance_scale=3.0)), plain) > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["mmar", "chameleon", "transfusion-vit"])
def test_a_scale_of_zero_draws_the_unconditional_image(name: str) -> None:
    model = lively_model(name)
    got = generate(model, quick(name, guidance_scale=0.0))
    alone = generate(model, quick(name), (EMPTY.expand(3, -1), None))
    assert difference(got, alone) <= TOLERANCE
    assert difference(generate(model, quick(name)), alone) > 20 * TOLERANCE
