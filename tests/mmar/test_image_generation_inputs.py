"""Drawing with known tokens, behind earlier images, with progress; and what is refused.

Tolerances are those of test_image_generation.py.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from generation_runs import (
    CAUSAL,
    EMPTY,
    FAMILIES,
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
from tiny_model import BLOCK, COUNT, rows, some_known, some_tokens, tiny_model
from torch import Tensor

from mmar.generation import ImageGenerationConfig, generate_image_tokens
from mmar.generation.order import draw_order
from mmar.model import MMARForConditionalGeneration

# -- in- and outpainting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_known_tokens_come_back_bit_for_bit(name: str) -> None:
    model, settings = lively_model(name), quick(name, guidance_scale=3.0)
    known, given = some_known(3), some_tokens(model, 3)
    damaged = given.clone()
    damaged[~known] = -7 if model.config.has_codes else torch.nan  # what stands at unknown places is not read
    got = generate(model, settings, known=known, known_tokens=damaged)
    assert torch.equal(got[known], given[known])
    assert got.isfinite().all()
    assert torch.equal(got, generate(model, settings, known=known, known_tokens=given))
    alone = generate(model, settings, prompts(PROMPTS[2]), [3], known=known[2:], known_tokens=given[2:])
    assert difference(got[2:], alone) <= 5 * TOLERANCE  # a row's known tokens have their noise from its own generator, too
    assert not torch.equal(got[~known], generate(model, settings)[~known])
    changed = generate(model, settings, known=known, known_tokens=some_tokens(model, 3, 9))
    assert not torch.equal(changed[~known], got[~known])  # they inform the rest


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_may_know_different_numbers_of_tokens(name: str) -> None:
    """Each then takes as many steps as it would alone."""
    model, settings = lively_model(name), quick(name)
    known, given = torch.zeros(3, COUNT, dtype=torch.bool), some_tokens(model, 3)
    known[0, :13], known[1, :6] = True, True
    together = generate(model, settings, known=known, known_tokens=given)
    for row, content in enumerate(PROMPTS):
        only = slice(row, row + 1)
        alone = generate(model, settings, prompts(content), [row + 1], known=known[only], known_tokens=given[only])
        assert difference(together[only], alone) <= TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_an_image_that_is_known_is_left_alone(name: str) -> None:
    model = lively_model(name)
    given = some_tokens(model, 3)
    everything = torch.ones(3, COUNT, dtype=torch.bool)
    assert torch.equal(generate(model, quick(name), known=everything, known_tokens=given), given)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models_read_known_tokens_in_raster_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = lively_model(name), record_calls(monkeypatch)
    batch, given = prompts(PROMPTS[0]), some_tokens(model, 1)
    known = torch.arange(COUNT)[None] % 3 == 0
    tokens = generate(model, quick(name), batch, known=known, known_tokens=given)
    with torch.no_grad():
        forced = model(*batch, image_tokens=tokens, output_image_states=True).image_states
    assert difference(torch.cat([z[0] for z, _ in seen], 1), forced[:, ~known[0]]) <= TOLERANCE


# -- images that are read -------------------------------------------------------------------------------------------------


def with_image(*contents: list[int]) -> tuple[Tensor, Tensor]:
    """Prompts that begin with an image."""
    return prompts(*([1, *BLOCK, *content] for content in contents))


@pytest.mark.parametrize("name", FAMILIES)
def test_earlier_images_are_read(name: str) -> None:
    model, settings = lively_model(name), quick(name)
    batch, read = with_image(*PROMPTS), some_tokens(model, 3)
    got = generate(model, settings, batch, image_tokens=read)
    assert difference(generate(model, settings, batch, image_tokens=read, use_prefix_cache=False), got) <= TOLERANCE
    swapped = generate(model, settings, batch, image_tokens=read[[1, 0, 2]])
    assert difference(swapped[2:], got[2:]) <= TOLERANCE
    assert difference(swapped[:2], got[:2]) > 20 * TOLERANCE
    mixed = prompts(PROMPTS[0], [1, *BLOCK, *PROMPTS[1]], PROMPTS[2])  # not all rows read one
    assert difference(generate(model, settings, mixed, image_tokens=read[1:2])[1], got[1]) <= TOLERANCE


@pytest.mark.parametrize("name", ["mmar", "chameleon"])
def test_earlier_images_are_read_as_in_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = lively_model(name), record_calls(monkeypatch)
    batch, read = with_image(PROMPTS[0]), some_tokens(model, 1)
    tokens = generate(model, quick(name), batch, image_tokens=read)
    known = torch.ones(2, COUNT, dtype=torch.bool)
    known[1] = model.config.is_causal
    targets = torch.tensor([False, True])
    with torch.no_grad():
        states = model(
            *batch, image_tokens=torch.cat([read, tokens]), known=known, image_targets=targets, output_image_states=True
        ).image_states[1]
    first = 0 if model.config.is_causal else int(draw_order(known[1:], "random", seeded(1))[0, 0])
    assert difference(seen[0][0][0, 0, 0], states[first]) <= TOLERANCE


@pytest.mark.parametrize("name", ["mmar", "transfusion-vit"])
def test_the_unconditional_branch_reads_the_same_images_or_none(name: str) -> None:
    model, settings = lively_model(name), quick(name, guidance_scale=3.0)
    batch, read = with_image(*PROMPTS[:2]), some_tokens(model, 2)
    same = {"uncond_input_ids": batch[0], "uncond_attention_mask": batch[1]}
    plain = generate(model, quick(name), batch, image_tokens=read)
    assert difference(generate(model, settings, batch, image_tokens=read, **same), plain) <= 5 * TOLERANCE
    without = generate(model, settings, batch, image_tokens=read)
    assert difference(without, plain) > 100 * TOLERANCE
    one_of_each = rows([1, 2, *BLOCK], [1, *BLOCK, *PROMPTS[1], *BLOCK])
    got = generate(
        model, settings, batch, image_tokens=read, uncond_input_ids=one_of_each[0], uncond_attention_mask=one_of_each[1]
    )
    assert difference(got[0], without[0]) <= 5 * TOLERANCE
    assert difference(got[1], plain[1]) <= 5 * TOLERANCE
    with pytest.raises(ValueError, match="must read the images of input_ids or none, got 1 images in row 0 beside 0"):
        generate(model, settings, prompts(*PROMPTS[:2]), uncond_input_ids=batch[0], uncond_attention_mask=batch[1])


# -- the course of a run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_progress_is_reported(name: str) -> None:
    seen: list[tuple[int, int, Tensor]] = []
    model = lively_model(name)
    known = torch.zeros(3, COUNT, dtype=torch.bool)
    known[1, :13] = True
    got = generate(model, quick(name), known=known, known_tokens=some_tokens(model, 3), on_step=lambda *now: seen.append(now))
    total = seen[0][1]
    assert [(done, whole) for done, whole, _ in seen] == [(i + 1, total) for i in range(len(seen))]
    # Two groups: 5 steps for 16 tokens and 3 for 3; one per token; one per solver step.
    expected = {"mmar": 5 + 3, "vq": 5 + 3, "raster": 2 * COUNT, "chameleon": 2 * COUNT, "transfusion-vit": 2 * 3}
    assert len(seen) == total == expected[name]
    # At its last step DDPM takes the clean tokens that the output implies, with gains that differ by rounding.
    assert difference(seen[-1][2], got) <= 1e-5
    assert not torch.equal(seen[0][2], seen[-1][2])


@pytest.mark.parametrize("name", ["mmar", "raster"])
def test_what_is_drawn_stays(name: str) -> None:
    seen: list[Tensor] = []
    generate(lively_model(name), quick(name), on_step=lambda done, total, tokens: seen.append(tokens))
    for before, after in itertools.pairwise(seen):
        drawn = before.ne(0)
        assert torch.equal(after[drawn], before[drawn])
        assert after.ne(0).sum() > drawn.sum()


@pytest.mark.parametrize("name", FAMILIES)
def test_images_need_no_gradient_and_leave_the_model_alone(name: str) -> None:
    model = lively_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    got = generate(model, quick(name))
    assert not got.requires_grad
    assert torch.is_grad_enabled()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["mmar", "raster"])
@pytest.mark.parametrize("positions", ["shared", "sequential"])
def test_both_kinds_of_positions_can_draw(name: str, positions: str) -> None:
    model = lively_model(name, positions)
    cached, recomputed = (generate(model, quick(name), use_prefix_cache=use) for use in (True, False))
    assert difference(cached, recomputed) <= TOLERANCE


@pytest.mark.parametrize("name", ["mmar", "raster"])
def test_guidance_and_head_steps_are_told_how_far_the_image_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = lively_model(name), record_calls(monkeypatch)
    known = torch.zeros(1, COUNT, dtype=torch.bool)
    known[:, :4] = True
    settings = quick(name, tokens_schedule="constant", **({"ar_steps": 3} if name == "mmar" else {}))
    generate(model, settings, prompts(PROMPTS[0]), known=known, known_tokens=some_tokens(model, 1))
    steps = [(step.index, step.total, step.known_share) for _, step in seen]
    if name == "mmar":
        assert steps == [(0, 3, 8 / 16), (1, 3, 12 / 16), (2, 3, 1.0)]
    else:
        assert steps == [(i, 16, (i + 1) / 16) for i in range(4, 16)]


# -- refusals -------------------------------------------------------------------------------------------------------------


def refused(model: MMARForConditionalGeneration, message: str, *, settings: Any = None, **options: Any) -> None:
    ids, mask = options.pop("batch", prompts(*PROMPTS))
    with pytest.raises(ValueError, match=message):
        generate_image_tokens(model, ids, mask, settings=settings or quick("mmar"), **options)


def test_prompts_that_do_not_fit_are_refused() -> None:
    model = lively_model()
    refused(model, "last image block of each row, got no block in row 1", batch=rows([1, 2, *BLOCK], [1, 20, 2]))
    refused(model, "16 image tokens and an end-of-image", batch=(torch.tensor([[1, 2, 5]]), None))
    guided = quick("mmar", guidance_scale=2.0)
    refused(model, "uncond_input_ids must be given for guidance_scale 2", settings=guided)
    refused(model, "must have 1 or 3 rows, as input_ids, got 2", settings=guided, uncond_input_ids=EMPTY.expand(2, -1))
    refused(model, "uncond_input_ids must hold the image to draw", settings=guided, uncond_input_ids=torch.tensor([[1, 2]]))
    refused(model, "the 0 images that are read, all but the last of each row, got 3", image_tokens=some_tokens(model, 3))
    refused(model, "image_tokens must be given for the 1 images", batch=with_image(PROMPTS[0]))


def test_known_tokens_that_do_not_fit_are_refused() -> None:
    model, known = lively_model(), some_known(3)
    refused(model, "must come together", known=known)
    refused(model, "must come together", known_tokens=some_tokens(model, 3))
    refused(model, r"known must be bool of shape \(3, 16\)", known=known[:2], known_tokens=some_tokens(model, 3))
    refused(model, r"floating point of shape \(3, 16, 12\)", known=known, known_tokens=some_tokens(model, 2))
    refused(model, "floating point of shape", known=known, known_tokens=some_tokens(model, 3).long())
    refused(model, "finite where known", known=known, known_tokens=some_tokens(model, 3) * torch.inf)
    codes = lively_model("vq")
    refused(codes, r"must lie in 0\.\.31 where known, got 32\.\.32", known=known, known_tokens=torch.full((3, 16), 32))
    refused(codes, "codes", known=known, known_tokens=torch.zeros(3, 16))


def test_models_that_cannot_draw_are_refused() -> None:
    refused(lively_model("understanding-only"), "got 'understanding_only'; it only reads them")
    refused(tiny_model().train(), r"got training mode; call model.eval\(\)")


def test_settings_that_the_objective_cannot_honour_are_refused() -> None:
    settings = ImageGenerationConfig
    refused(lively_model("raster"), "order must be raster or None", settings=settings(order="random"))
    refused(lively_model("chameleon"), "draws one token per step, got 5 for 16 tokens", settings=settings(ar_steps=5))
    refused(lively_model("mmar"), "top_k and top_p must be None", settings=settings(top_k=5))
    for options in ({"head_steps_end": 5}, {"guidance_schedule": "linear"}):
        refused(lively_model("transfusion-vit"), "draws all tokens at once", settings=settings(**options))
    assert generate(lively_model("raster"), quick("raster", ar_steps=COUNT, order="raster")).isfinite().all()
