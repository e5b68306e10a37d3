"""The invariants of MMAR: what may look at what, what stays frozen, what every part of a batch is worth.

Tolerances: two runs of a two-layer model differ by the order of sums of at most 256 terms, 2^-24 each, in states of order 1
(after the last norm), through about twenty layers: 2e-5 in float32; 20 x 2^-8 = 0.08 in bf16.
"""

from __future__ import annotations

import pytest
import torch
from tiny_model import BLOCK, COUNT, rows, some_known, some_tokens, tiny_model
from torch import Tensor
from transformers import DynamicCache, Qwen2ForCausalLM

from mmar.masking import draw_known
from mmar.model import MMARForConditionalGeneration

PRECISIONS = {"float32": 2e-5, "bfloat16": 0.08}
EVERY = ["mmar", "epsilon", "vq", "vq-projector", "transfusion", "transfusion-vit", "raster", "chameleon", "understanding-only"]
QUESTION = [1, 20, 21, 2]
ANSWER = [1, 30, 31, 32, 2]


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Within a tolerance of unit-scale numbers."""
    return bool((a.float() - b.float()).abs().max() <= tolerance * max(1.0, float(b.float().abs().max())))


@torch.no_grad()
def logits(model: MMARForConditionalGeneration, ids: Tensor, tokens: Tensor | None, known: Tensor | None = None) -> Tensor:
    out = model(ids, image_tokens=tokens, known=known).logits
    assert out is not None
    return out


@torch.no_grad()
def states(
    model: MMARForConditionalGeneration, ids: Tensor, tokens: Tensor, known: Tensor | None = None, **options: Tensor
) -> Tensor:
    out = model(ids, image_tokens=tokens, known=known, output_image_states=True, **options).image_states
    assert out is not None
    return out


# -- text ----------------------------------------------------------------------------------------------------------------


def test_text_alone_is_plain_qwen2_bit_for_bit() -> None:
    model = tiny_model()
    plain = Qwen2ForCausalLM(model.config.text_config).eval()
    theirs = {k.replace("language_model.", "model.").replace("base_layer.", ""): v for k, v in model.state_dict().items()}
    plain.load_state_dict({k: v for k, v in theirs.items() if k in plain.state_dict()})
    ids, mask = rows(QUESTION + ANSWER, ANSWER)
    ours = model(ids, mask).logits
    assert torch.equal(ours, plain(ids, attention_mask=mask).logits)
    assert torch.equal(ours.bfloat16(), plain(ids, attention_mask=mask).logits.bfloat16())
    plain.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1.0
    assert not torch.equal(ours, plain(ids, attention_mask=mask).logits)  # the control


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_text_before_an_image_does_not_know_it(name: str, precision: str) -> None:
    model, before = tiny_model(name), [*QUESTION, 5]
    ids = torch.tensor([QUESTION + BLOCK + ANSWER])
    with autocast(precision):
        a, b = (logits(model, ids, some_tokens(model, 1, seed)) for seed in (1, 2))
    assert torch.equal(a[:, : len(before)], b[:, : len(before)])
    assert not torch.equal(a[:, len(before) + COUNT :], b[:, len(before) + COUNT :])  # text after it does


def test_keys_and_values_of_the_prefix_do_not_depend_on_the_image() -> None:
    model = tiny_model()
    ids = torch.tensor([QUESTION + BLOCK])
    caches = []
    for seed in (1, 2):
        cache = DynamicCache(config=model.config.text_config)
        with torch.no_grad():
            model(ids, image_tokens=some_tokens(model, 1, seed), past_key_values=cache, use_cache=True)
        caches.append(cache)
    for a, b in zip(caches[0].layers, caches[1].layers, strict=True):
        assert torch.equal(a.keys[:, :, : len(QUESTION) + 1], b.keys[:, :, : len(QUESTION) + 1])
        assert torch.equal(a.values[:, :, : len(QUESTION) + 1], b.values[:, :, : len(QUESTION) + 1])
        assert not torch.equal(a.values[:, :, len(QUESTION) + 1 :], b.values[:, :, len(QUESTION) + 1 :])


@pytest.mark.parametrize("name", EVERY)
def test_nothing_later_leaks_into_anything_earlier(name: str) -> None:
    model = tiny_model(name)
    tokens = some_tokens(model, 2)
    first = torch.tensor([QUESTION + BLOCK + QUESTION + BLOCK + ANSWER])
    other = first.clone()
    other[0, -3:] = torch.tensor([40, 41, 42])
    changed = torch.stack([tokens[0], some_tokens(model, 1, 9)[0]])
    end = len(QUESTION) * 2 + len(BLOCK) + 1
    base = logits(model, first, tokens)
    assert torch.equal(base[:, :-3], logits(model, other, tokens)[:, :-3])
    assert torch.equal(base[:, :end], logits(model, first, changed)[:, :end])
    assert not torch.equal(base[:, end:], logits(model, first, changed)[:, end:])


# -- image tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mmar", "vq"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_model_is_permutation_equivariant_over_image_tokens(name: str, precision: str) -> None:
    """Raster order with masks in place is the paper's shuffled order: positions come from the tables alone."""
    model = tiny_model(name)
    ids, tokens, known = torch.tensor([QUESTION + BLOCK]), some_tokens(model, 1), some_known(1)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))
    with autocast(precision):
        base = states(model, ids, tokens, known)
        shuffled_only = states(model, ids, tokens[:, order], known[:, order])
        for table in (model.image_model.input.position, model.image_model.input.embedding_vit.position):
            table.weight.data = table.weight.data[order]
        shuffled = states(model, ids, tokens[:, order], known[:, order])
    assert close(shuffled, base[:, order], PRECISIONS[precision])
    assert not close(shuffled_only, base[:, order], 3 * PRECISIONS[precision])  # the control: the tables do matter


def test_the_second_table_is_the_masked_tokens_only_position() -> None:
    model = tiny_model()
    ids, tokens, known = torch.tensor([QUESTION + BLOCK]), some_tokens(model, 1), some_known(1)
    assert not close(*states(model, ids, tokens, known)[0, ~known[0]][:2], 1e-2)
    model.image_model.input.position.weight.data.zero_()
    z = states(model, ids, tokens, known)[0, ~known[0]]
    assert close(z, z[:1].expand_as(z), PRECISIONS["float32"])


def test_sequential_positions_are_another_signal() -> None:
    model = tiny_model(image_positions="sequential")
    model.image_model.input.position.weight.data.zero_()
    z = states(model, torch.tensor([QUESTION + BLOCK]), some_tokens(model, 1), some_known(1))[0, ~some_known(1)[0]]
    assert not close(z, z[:1].expand_as(z), 10 * PRECISIONS["float32"])


@pytest.mark.parametrize("name", ["mmar", "vq"])
def test_masked_tokens_have_no_influence(name: str) -> None:
    model = tiny_model(name)
    ids, tokens, known = torch.tensor([QUESTION + BLOCK]), some_tokens(model, 1), some_known(1)
    other = some_tokens(model, 1, 9)
    mixed = torch.where(known[..., None] if tokens.ndim == 3 else known, tokens, other)
    base = states(model, ids, tokens, known)
    assert torch.equal(base, states(model, ids, mixed, known))
    assert not torch.equal(base, states(model, ids, other, known))


@pytest.mark.parametrize("name", ["raster", "chameleon"])
def test_causal_states_see_only_the_tokens_before_theirs(name: str) -> None:
    model = tiny_model(name)
    ids, tokens, other = torch.tensor([QUESTION + BLOCK]), some_tokens(model, 1), some_tokens(model, 1, 9)
    base = states(model, ids, tokens)
    for i in (0, 5, COUNT - 1):
        mixed = torch.cat([tokens[:, :i], other[:, i:]], dim=1)
        z = states(model, ids, mixed)
        assert close(z[:, : i + 1], base[:, : i + 1], PRECISIONS["float32"])
        assert i + 1 == COUNT or not close(z[:, i + 1 :], base[:, i + 1 :], 1e-2)


@torch.no_grad()
def test_positions_and_features_start_at_one_scale() -> None:
    """A table at 0.02 beside features of order 1 leaves a model that cannot tell places apart (measured: chance)."""
    torch.manual_seed(0)
    entry = tiny_model().image_model.input
    tokens, known = torch.randn(64, COUNT, 12), torch.ones(64, COUNT, dtype=torch.bool)
    features = entry.embedding_vit.token_in(tokens)
    assert 0.5 < float(features.std() / entry.embedding_vit.position.weight.std()) < 2
    assert 0.5 < float(entry.embedding_vit(tokens, known).std() / entry.position.weight.std()) < 2


def test_each_image_has_its_own_begin_and_end() -> None:
    model, ids = tiny_model(), torch.tensor([QUESTION + BLOCK])
    embeds, table = model.embed_text(ids)[0], model.language_model.embed_tokens.weight
    begin = len(QUESTION)
    assert torch.equal(embeds[:begin], table[ids[0, :begin]])
    assert torch.equal(embeds[begin], model.boundary.weight[0])
    assert torch.equal(embeds[-1], model.boundary.weight[1])
    assert not embeds[begin + 1 : -1].any()


def test_the_expert_meets_image_tokens_alone() -> None:
    model, seen = tiny_model(), []
    ids, mask = rows(QUESTION + BLOCK + BLOCK, ANSWER)
    model.language_model.register_forward_pre_hook(lambda _module, _args, kw: seen.append(kw), with_kwargs=True)
    logits(model, ids, some_tokens(model, 2))
    assert torch.equal(seen[0]["image_token_mask"], ids == 4)
    other = torch.arange(ids.shape[1]).expand_as(ids)
    base = model(ids, mask, image_tokens=some_tokens(model, 2)).logits
    moved = model(ids, mask, position_ids=other, image_tokens=some_tokens(model, 2)).logits
    assert torch.equal(seen[2]["position_ids"], other)  # a caller's positions are taken
    assert not torch.equal(base, moved)


def test_begin_and_end_of_image_are_text_to_the_expert() -> None:
    """Their keys and values are those of the bare Qwen2, whatever the expert has learned."""
    model, ids, caches = tiny_model(), torch.tensor([BLOCK]), []
    for _ in range(2):
        cache = DynamicCache(config=model.config.text_config)
        with torch.no_grad():
            model(ids, image_tokens=some_tokens(model, 1), past_key_values=cache, use_cache=True)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.zero_()
        caches.append(cache.layers[0])  # of the first layer: nothing has been mixed yet
    for a, b in ((caches[0].keys, caches[1].keys), (caches[0].values, caches[1].values)):
        assert torch.equal(a[:, :, [0, -1]], b[:, :, [0, -1]])
        assert not torch.equal(a[:, :, 1:-1], b[:, :, 1:-1])


# -- batches ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_does_not_depend_on_its_padding_or_neighbours(name: str, precision: str, side: str) -> None:
    model = tiny_model(name)
    contents = [QUESTION + BLOCK + ANSWER, BLOCK + ANSWER + ANSWER + ANSWER, ANSWER]
    ids, mask = rows(*contents, side=side)
    tokens = some_tokens(model, 2)
    with torch.no_grad(), autocast(precision):
        together = model(ids, mask, image_tokens=tokens).logits
        for i, content in enumerate(contents):
            alone = logits(model, torch.tensor([content]), tokens[i : i + 1] if i < 2 else None)
            assert close(together[i, mask[i] == 1], alone[0], PRECISIONS[precision])
        wrong = logits(model, torch.tensor([contents[0]]), tokens[1:])
    assert not close(together[0, mask[0] == 1], wrong[0], PRECISIONS[precision])  # the control


def test_images_grouped_by_row_are_the_same_images() -> None:
    model = tiny_model()
    ids, mask = rows(BLOCK + BLOCK + ANSWER, QUESTION + BLOCK)
    tokens = some_tokens(model, 3)
    grouped = torch.stack([tokens[:2], torch.stack([tokens[2], torch.full_like(tokens[2], torch.nan)])])
    with torch.no_grad():
        a, b = model(ids, mask, image_tokens=tokens).logits, model(ids, mask, image_tokens=grouped).logits
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", EVERY)
def test_the_joint_loss_is_the_sum_of_its_parts(name: str) -> None:
    model = tiny_model(name, image_loss_weight=0.5)
    ids, mask = rows(QUESTION + BLOCK, BLOCK + ANSWER)
    known = some_known(2)
    known[1] = True
    targets = torch.tensor([name != "understanding-only", False])
    labels = torch.where(torch.arange(ids.shape[1])[None] >= len(BLOCK), ids, -100)
    labels[0], labels[mask == 0] = -100, -100
    is_masked = model.config.is_masked
    out = model(
        ids,
        mask,
        image_tokens=some_tokens(model, 2),
        known=known if is_masked else None,
        image_targets=targets,
        labels=labels,
        generator=torch.Generator().manual_seed(0),
    )
    assert out.text_count == len(ANSWER)
    parts = out.text_loss + (0.0 if out.image_loss is None else 0.5 * out.image_loss)
    assert out.loss.dtype is torch.float32
    assert float(out.loss.detach()) == pytest.approx(float(parts.detach()), rel=1e-6)
    with torch.no_grad():
        text = model(
            ids[1:], mask[1:], image_tokens=some_tokens(model, 2)[1:], labels=labels[1:], image_timesteps=None
        ).text_loss
    if name not in ("transfusion", "transfusion-vit"):  # they noise the image of a training batch
        assert float(text) == pytest.approx(float(out.text_loss.detach()), rel=1e-4)


def test_timesteps_are_repeated_over_masked_tokens_only() -> None:
    model = tiny_model()
    ids, known = torch.tensor([QUESTION + BLOCK] * 3), some_known(3)
    out = model(ids, image_tokens=some_tokens(model, 3), known=known, timesteps_per_token=5)
    assert out.image_count == int((~known).sum()) == 30
    assert out.image_rows.shape == out.image_timesteps.shape == (150,)
    assert out.image_rows.dtype is torch.float32
    assert float(out.image_rows.mean()) == pytest.approx(float(out.image_loss.detach()), rel=1e-6)


def test_one_seed_one_loss() -> None:
    model = tiny_model()

    def loss(seed: int) -> float:
        g = torch.Generator().manual_seed(seed)
        out = model(torch.tensor([BLOCK]), image_tokens=some_tokens(model, 1), known=some_known(1), generator=g)
        return float(out.loss.detach())

    assert loss(0) == loss(0) != loss(1)


# -- training ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_changes_what_is_trained_and_nothing_else(name: str, precision: str) -> None:
    model = tiny_model(name).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ids, mask = rows(QUESTION + BLOCK, BLOCK + ANSWER)
    known = some_known(2)
    known[1] = True
    labels = torch.where(torch.arange(ids.shape[1])[None] >= len(BLOCK), ids, -100)
    labels[0], labels[mask == 0] = -100, -100
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    with autocast(precision):
        out = model(
            ids,
            mask,
            image_tokens=some_tokens(model, 2),
            known=known if model.config.is_masked else None,
            image_targets=torch.tensor([name != "understanding-only", False]),
            labels=labels,
        )
    out.loss.backward()
    optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert changed == trained
    assert all("base_layer" not in n and "embed_tokens" not in n and "codebook" not in n for n in trained)
    assert any("lora_A" in n for n in trained)
    assert any("image_model" in n for n in trained)


@pytest.mark.parametrize("name", EVERY)
def test_batches_of_text_or_of_images_alone_give_every_parameter_a_gradient(name: str) -> None:
    """Zeros where there is nothing to learn, so that all ranks reduce the same parameters."""
    model = tiny_model(name).train()
    text = torch.tensor([ANSWER])
    model(text, labels=text).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    assert not any(p.grad.any() for p in trained)  # text before any image trains nothing in a frozen model
    if name == "understanding-only":
        return
    targets = torch.tensor([True])
    known = some_known(1) if model.config.is_masked else None
    model(torch.tensor([BLOCK]), image_tokens=some_tokens(model, 1), known=known, image_targets=targets).loss.backward()
    assert all(p.grad is not None for p in trained)
    assert any(p.grad.any() for p in trained)


def test_text_before_an_image_has_no_trainable_path() -> None:
    model = tiny_model().train()
    ids = torch.tensor([ANSWER + BLOCK])
    labels = torch.where(torch.arange(ids.shape[1])[None] < len(ANSWER), ids, -100)
    model(ids, image_tokens=some_tokens(model, 1), labels=labels).loss.backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", ["mmar", "epsilon"])
def test_pure_bf16_computes_losses_in_float32(name: str) -> None:
    model = tiny_model(name).to(torch.bfloat16)
    out = model(torch.tensor([QUESTION + BLOCK]), image_tokens=some_tokens(model, 1), known=some_known(1))
    assert out.image_loss.dtype is torch.float32
    assert out.loss.isfinite()


def test_the_answers_head_runs_on_answers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny_model(), []
    model.lm_head.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape))
    ids = torch.tensor([BLOCK + ANSWER])
    labels = torch.where(torch.arange(ids.shape[1])[None] >= len(BLOCK), ids, -100)
    model(ids, image_tokens=some_tokens(model, 1), labels=labels)
    assert seen == [(len(ANSWER), 64)]


def test_last_logits_are_the_last_of_all_logits() -> None:
    model, ids = tiny_model(), torch.tensor([BLOCK + ANSWER])
    tokens = some_tokens(model, 1)
    with torch.no_grad():
        every, last = (model(ids, image_tokens=tokens, logits_to_keep=keep).logits for keep in (0, 2))
    assert every.shape[1] == ids.shape[1]
    assert last.shape[1] == 2
    assert close(last, every[:, -2:], PRECISIONS["float32"])


# -- bad input ---------------------------------------------------------------------------------------------------------------


def test_bad_images_are_refused_by_name() -> None:
    model, ids = tiny_model(), torch.tensor([BLOCK])
    tokens = some_tokens(model, 1)
    cases = [
        ({"image_tokens": None}, "image_tokens must be given"),
        ({"image_tokens": tokens.expand(2, -1, -1)}, "1 images"),
        ({"image_tokens": tokens[:, :4]}, "image tokenizer 'patches'"),
        ({"image_tokens": tokens * torch.nan}, "finite"),
        ({"known": torch.ones(1, 4, dtype=torch.bool)}, "known"),
        ({"known": torch.ones(1, COUNT)}, "known"),
        ({"known": ~torch.ones(1, COUNT, dtype=torch.bool), "image_targets": torch.tensor([False])}, "targets"),
        ({"labels": torch.zeros(1, 3, dtype=torch.int64)}, "labels"),
    ]
    for options, words in cases:
        with pytest.raises(ValueError, match=words):
            model(ids, **{"image_tokens": tokens, **options})
    with pytest.raises(TypeError, match="floating point"):
        model(ids, image_tokens=tokens.long())
    with pytest.raises(ValueError, match="stray"):
        model(torch.tensor([[1, 4, 2]]), image_tokens=tokens)


@pytest.mark.parametrize("marker", [4, 5, 6])
def test_image_markers_are_no_answers(marker: int) -> None:
    """``labels = input_ids.clone()``, the habit of text models, would train answers on placeholders."""
    model, ids = tiny_model(), torch.tensor([BLOCK + ANSWER])
    with pytest.raises(ValueError, match="labels must be -100 on image tokens"):
        model(ids, image_tokens=some_tokens(model, 1), labels=ids)
    labels = ids.masked_fill(ids != marker, -100)
    with pytest.raises(ValueError, match="labels must be -100 on image tokens"):
        model(ids, image_tokens=some_tokens(model, 1), labels=labels)


def test_images_start_a_cache() -> None:
    model, ids = tiny_model(), torch.tensor([BLOCK])
    cache = DynamicCache(config=model.config.text_config)
    model(torch.tensor([QUESTION]), past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="must come with the call that starts the cache"):
        model(ids, image_tokens=some_tokens(model, 1), past_key_values=cache, use_cache=True)


def test_text_behind_a_cache_says_where_it_is() -> None:
    """By the length of the cache it would stand 15 positions too far: every token of an image has the same one."""
    model, ids, tokens = tiny_model(), torch.tensor([BLOCK + ANSWER]), some_tokens(tiny_model(), 1)
    cache = DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        whole = model(ids, image_tokens=tokens).logits[:, len(BLOCK) :]
        model(ids[:, : len(BLOCK)], image_tokens=tokens, past_key_values=cache, use_cache=True)
        with pytest.raises(ValueError, match="position_ids must be given with a filled cache"):
            model(ids[:, len(BLOCK) :], past_key_values=cache, use_cache=True)
        positions = model.layout(ids).position_ids[:, len(BLOCK) :]
        rest = model(ids[:, len(BLOCK) :], position_ids=positions, past_key_values=cache, use_cache=True).logits
    assert close(rest, whole, PRECISIONS["float32"])


@pytest.mark.parametrize("attention", ["eager", "flash_attention_2", "flex_attention"])
def test_attention_that_would_misread_the_mask_is_refused(attention: str) -> None:
    model = tiny_model()
    model.language_model.config._attn_implementation = attention
    with pytest.raises(ValueError, match=f"attn_implementation must be sdpa .* got {attention}"):
        model(torch.tensor([BLOCK]), image_tokens=some_tokens(model, 1))


def test_codes_are_checked_against_the_codebook() -> None:
    model = tiny_model("vq")
    with pytest.raises(ValueError, match=r"0\.\.31"):
        model(torch.tensor([BLOCK]), image_tokens=torch.full((1, COUNT), 32))
    with pytest.raises(TypeError, match="codes"):
        model(torch.tensor([BLOCK]), image_tokens=torch.zeros(1, COUNT))
    raster = tiny_model("raster")
    with pytest.raises(ValueError, match="True everywhere"):
        raster(torch.tensor([BLOCK]), image_tokens=some_tokens(raster, 1), known=draw_known(1, COUNT, 0.5))


def test_a_reading_model_draws_nothing() -> None:
    model = tiny_model("understanding-only")
    with pytest.raises(ValueError, match="draws no images"):
        model(torch.tensor([BLOCK]), image_tokens=some_tokens(model, 1), image_targets=torch.tensor([True]))


@pytest.mark.parametrize("name", ["mmar", "transfusion", "raster"])
def test_an_image_with_its_own_generator_meets_the_same_noise_in_every_batch(name: str) -> None:
    model = tiny_model(name)
    ids, tokens, known = torch.tensor([QUESTION + BLOCK] * 3), some_tokens(model, 3), some_known(3)
    options = {"known": known if model.config.is_masked else None, "image_targets": torch.ones(3, dtype=torch.bool)}

    def rows(order: list[int], seeds: list[int]) -> Tensor:
        sources = [torch.Generator().manual_seed(seeds[i]) for i in order]
        chosen = {k: None if v is None else v[order] for k, v in options.items()}
        with torch.no_grad():
            out = model(ids[order], image_tokens=tokens[order], generator=sources, **chosen)
        return out.image_rows.view(len(order), -1)

    together = rows([0, 1, 2], [7, 8, 9])
    assert close(rows([2, 0], [7, 8, 9]), together[[2, 0]], PRECISIONS["float32"])
    assert not close(rows([2, 0], [7, 8, 10]), together[[2, 0]], 1e-2)  # the control
    with pytest.raises(ValueError, match="one for each of the 3 images"):
        model(ids, image_tokens=tokens, generator=[torch.Generator()], **options)
