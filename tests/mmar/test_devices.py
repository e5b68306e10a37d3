"""Everything on one device: what a GPU would refuse is refused here, without one (see pretend_device.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pretend_device import NAME, Elsewhere, move, pretended_device
from tiny_model import BLOCK, rows, some_known, some_tokens, tiny_model
from torch import Tensor

from diffparam import Schedule
from mmar.generation import ImageGenerationConfig, generate_image_tokens
from mmar.generation.text import answer_questions
from mmar.timestep_statistics import TimestepStatistics

EVERY = ["mmar", "epsilon", "vq", "transfusion", "transfusion-vit", "raster", "chameleon", "understanding-only"]


def there(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: Elsewhere(value) if isinstance(value, Tensor) else value for name, value in inputs.items()}


@pytest.mark.parametrize("own_generators", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_losses_are_formed_where_the_model_is(name: str, own_generators: bool) -> None:
    """And are what they are on the CPU: the pretended device computes there, with another attention kernel, 2^-24 a sum."""
    model = tiny_model(name).train()
    ids, mask = rows([1, 20, *BLOCK, 1, 30, 31], [*BLOCK, *BLOCK, 22, 2])
    known = some_known(3)
    known[1] = True
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "image_tokens": some_tokens(model, 3),
        "image_targets": torch.tensor([name != "understanding-only", False, name != "understanding-only"]),
        "known": known if model.config.is_masked else None,
        "labels": ids.masked_fill(ids < 20, -100),
    }

    def generator() -> Any:
        sources = [torch.Generator().manual_seed(seed) for seed in range(3)]
        return sources if own_generators else sources[0]

    with torch.no_grad():
        wanted = model(**inputs, generator=generator())
    move(model)
    with pretended_device():
        found = model(**there(inputs), generator=generator())
        statistics = TimestepStatistics(Schedule.cosine())
        statistics.update(found.image_rows, found.image_timesteps)
    assert found.loss.device.type == NAME
    assert float(found.loss.inner) == pytest.approx(float(wanted.loss), rel=1e-5)
    assert int(statistics.count.sum()) == (0 if wanted.image_timesteps is None else len(wanted.image_timesteps))


@pytest.mark.parametrize("use_prefix_cache", [False, True])
@pytest.mark.parametrize("name", EVERY[:-1])
def test_images_are_drawn_where_the_model_is(name: str, use_prefix_cache: bool) -> None:
    model = tiny_model(name)
    options = {"ar_steps": 2} if model.config.is_masked else {}
    settings = ImageGenerationConfig(guidance_scale=2.0, head_steps=2, max_timestep=500, **options)
    prompts = {
        "input_ids": torch.tensor([[1, 20, *BLOCK], [21, 22, *BLOCK]]),
        "uncond_input_ids": torch.tensor([[1, *BLOCK]]),
    }

    def drawn(inputs: dict[str, Any]) -> Tensor:
        g = torch.Generator().manual_seed(0)
        return generate_image_tokens(model, settings=settings, generator=g, use_prefix_cache=use_prefix_cache, **inputs)

    wanted = drawn(prompts)
    move(model)
    with pretended_device():
        found = drawn(there(prompts))
    assert found.device.type == NAME
    # Up to sixteen tokens that depend on each other, in a model that nobody trained: roundings grow, but the image is the same.
    assert (
        float((found.inner == wanted if model.config.has_codes else (found.inner - wanted).abs() < 0.05).float().mean()) > 0.8
    )


@pytest.mark.parametrize("name", EVERY)
def test_questions_are_answered_where_the_model_is(name: str) -> None:
    model, questions = tiny_model(name), [torch.tensor([1, 20]), torch.tensor([3, 40, 41])]
    prefix = {"input_ids": torch.tensor([[1, 20, *BLOCK, 1, 30]]), "image_tokens": some_tokens(model, 1)}
    options = {"max_new_tokens": 3, "do_sample": False}
    wanted = answer_questions(model, **prefix, questions=[questions], **options)
    move(model)
    with pretended_device():
        found = answer_questions(model, **there(prefix), questions=[[Elsewhere(q) for q in questions]], **options)
    assert [answer.tolist() for answer in found[0]] == [answer.tolist() for answer in wanted[0]]


def test_tensors_of_two_devices_do_not_meet() -> None:
    """The controls: what the tests above would not have let pass, and what a GPU allows."""
    here, index = torch.randn(3), torch.tensor([0, 2])
    away = Elsewhere(torch.randn(3))
    with pretended_device():
        for mixed in (lambda: away + here, lambda: torch.stack([away, here]), lambda: here[Elsewhere(index)]):
            with pytest.raises(RuntimeError, match="on one device"):
                mixed()
        assert (away + here.to(NAME)).device.type == NAME
        assert (away * torch.tensor(2.0)).device.type == NAME
        assert away[index].device.type == NAME
        assert away.cpu().device.type == "cpu"
        assert torch.arange(3, device=away.device).device.type == NAME
