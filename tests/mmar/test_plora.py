"""The image expert touches image tokens, all of them, and nothing else; peft's own layers are the reference.

Where two ways multiply matrices with different numbers of rows, a BLAS may sum in another order. Such comparisons use small
whole numbers, whose sums are exact in float32, so that equality holds to the bit on every machine.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from tiny_qwen2 import (
    ALPHA,
    BATCH,
    LENGTH,
    PRECISIONS,
    RANK,
    WIDTH,
    Precision,
    bare_twin,
    embeddings,
    loss,
    peft_twin,
    scattered,
    states,
    suffix,
    tiny_model,
)
from torch import Tensor, nn

from mmar.config import MMARConfig, PLoRAConfig
from mmar.language_model import MMARTextModel
from mmar.plora import (
    TARGETS,
    ImageRows,
    PLoRALinear,
    add_image_expert,
    image_expert_layers,
    image_expert_parameters,
    merged_image_expert,
)

IMPLEMENTATIONS = ("gather", "mask")
FLOAT32 = PRECISIONS[0]
ALL, NONE = torch.ones(BATCH, LENGTH, dtype=torch.bool), torch.zeros(BATCH, LENGTH, dtype=torch.bool)

each_precision = pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.name)
each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def whole_numbers(tensor: Tensor, seed: int) -> Tensor:
    """From -2 to 2, in the dtype of ``tensor``."""
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, tensor.shape, generator=draws).to(tensor.dtype)


def exact_model(precision: Precision = FLOAT32, implementation: str = "gather") -> MMARTextModel:
    model = tiny_model(precision, implementation)
    for seed, parameter in enumerate(model.parameters()):
        parameter.data = whole_numbers(parameter, seed)
    return model


def first_layer(model: nn.Module) -> PLoRALinear:
    return next(image_expert_layers(model))


def run(layer: PLoRALinear, x: Tensor, mask: Tensor | None, precision: Precision = FLOAT32) -> Tensor:
    layer.inbox.rows = None if mask is None else ImageRows.from_mask(mask)
    with precision.on():
        return layer(x)


def adapter_gradients(model: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in image_expert_parameters(model)]


# -- against peft -----------------------------------------------------------------------------------------------------------


@each_precision
@each_implementation
def test_all_image_tokens_is_plain_lora(precision: Precision, implementation: str) -> None:
    model, x = tiny_model(precision, implementation), embeddings(precision)
    expected = states(peft_twin(model), x, precision=precision)
    assert torch.equal(states(model, x, ALL, precision), expected)
    almost = ALL.clone()
    almost[1, 4] = False
    for other in (None, almost):  # the mask is looked at
        assert (states(model, x, other, precision) - expected).abs().max() > 0.1


@each_precision
@each_implementation
@pytest.mark.parametrize("count", [1, 4, LENGTH - 1])
def test_text_then_image_is_activated_lora_layer(precision: Precision, implementation: str, count: int) -> None:
    """peft's aLoRA adapts the last tokens of each row."""
    model = exact_model(precision, implementation)
    x = whole_numbers(embeddings(precision), 99)
    activated = peft_twin(model, alora_invocation_tokens=[1], task_type="CAUSAL_LM").base_model.model.layers[0].self_attn.q_proj
    with precision.on():
        expected = activated(x, alora_offsets=[count] * BATCH)
    assert torch.equal(run(first_layer(model), x, suffix(count), precision), expected)
    assert not torch.equal(run(first_layer(model), x, suffix(count + 1), precision), expected)


@each_implementation
def test_text_then_image_is_activated_lora_model(implementation: str) -> None:
    model, x = tiny_model(implementation=implementation), embeddings()
    activated = peft_twin(model, alora_invocation_tokens=[1], task_type="CAUSAL_LM")
    expected = states(activated, x, alora_offsets=[4] * BATCH)
    # States reach 4; two layers of about ten sums each, whose order may differ: 100 roundings of 2^-24 at most.
    torch.testing.assert_close(states(model, x, suffix(4)), expected, rtol=0, atol=4 * 100 * 2**-24)
    assert (states(model, x, suffix(5)) - expected).abs().max() > 0.1


# -- text -------------------------------------------------------------------------------------------------------------------


@each_precision
@each_implementation
@pytest.mark.parametrize("poison", [None, float("inf"), float("nan")])
def test_rows_of_text_keep_their_bits(precision: Precision, implementation: str, poison: float | None) -> None:
    layer, x, mask = first_layer(tiny_model(precision, implementation)), embeddings(precision), scattered()
    if poison is not None:
        layer.lora_B["default"].weight.data.fill_(poison)
    with precision.on():
        base = layer.base_layer(x)
    out = run(layer, x, mask, precision)
    assert out.dtype == base.dtype
    assert torch.equal(out[~mask], base[~mask])
    assert (~torch.isfinite(out[mask])).any() if poison is not None else ((out - base)[mask].abs() > 0.01).any(-1).all()


EXACT_LAYERS = {name: first_layer(exact_model(implementation=name)) for name in IMPLEMENTATIONS}


@given(st.lists(st.booleans(), min_size=BATCH * LENGTH, max_size=BATCH * LENGTH), st.sampled_from(IMPLEMENTATIONS))
def test_any_mask_adapts_its_rows_alone(bits: list[bool], implementation: str) -> None:
    layer, mask, x = EXACT_LAYERS[implementation], torch.tensor(bits).view(BATCH, LENGTH), whole_numbers(embeddings(), 99)
    base, adapted = run(layer, x, None), run(layer, x, ALL)
    assert torch.equal(run(layer, x, mask), torch.where(mask[..., None], adapted, base))


@each_precision
@each_implementation
def test_text_before_and_beside_images_is_plain_qwen2(precision: Precision, implementation: str) -> None:
    """A whole model: the text before an image, and a row of text beside rows with images."""
    model, x, mask = tiny_model(precision, implementation), embeddings(precision), suffix(4)
    mask[1] = False
    plain = states(bare_twin(model), x, precision=precision)
    found = states(model, x, mask, precision)
    assert torch.equal(found[:, :-4], plain[:, :-4])
    assert torch.equal(found[1], plain[1])
    assert ((found - plain)[mask].abs() > 0.01).any(-1).all()


# -- gather and mask --------------------------------------------------------------------------------------------------------


@each_precision
def test_gather_is_mask_to_the_bit(precision: Precision) -> None:
    x, mask = whole_numbers(embeddings(precision), 99), scattered()
    gather, select = (first_layer(exact_model(precision, name)) for name in IMPLEMENTATIONS)
    assert torch.equal(run(gather, x, mask, precision), run(select, x, mask, precision))


def test_gather_and_mask_have_the_same_gradients() -> None:
    found = {}
    for implementation in IMPLEMENTATIONS:
        model, x = tiny_model(implementation=implementation), embeddings().requires_grad_()
        loss(states(model, x, scattered())).backward()
        found[implementation] = [x.grad, *adapter_gradients(model)]
    for one, other in zip(found["gather"], found["mask"], strict=True):
        # Sums over 30 tokens and two layers in another order: a few hundred roundings of 2^-24 of the largest entry.
        torch.testing.assert_close(one, other, rtol=0, atol=300 * 2**-24 * float(other.abs().max()))
        assert other.abs().max() > 0.01


@each_implementation
def test_gather_computes_the_image_rows_alone(implementation: str) -> None:
    """What the choice is about: rows that enter ``lora_A``."""
    layer, seen = first_layer(tiny_model(implementation=implementation)), []
    layer.lora_A["default"].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:-1].numel()))
    mask = suffix(2)
    run(layer, embeddings(), mask)
    assert seen == [int(mask.sum()) if implementation == "gather" else mask.numel()]


# -- masks without work -----------------------------------------------------------------------------------------------------


@each_precision
@each_implementation
def test_no_image_tokens_leave_zero_gradients(precision: Precision, implementation: str) -> None:
    """Zero, not None: distributed training then needs no search for unused parameters."""
    model, x = tiny_model(precision, implementation).train(), embeddings(precision).requires_grad_()
    out = states(model, x, NONE, precision)
    assert torch.equal(out, states(bare_twin(model), x, precision=precision))
    loss(out).backward()
    assert all(grad is not None and not grad.any() for grad in adapter_gradients(model))


@each_implementation
@pytest.mark.parametrize("mask", [None, NONE], ids=["no mask", "all false"])
def test_without_image_tokens_the_expert_is_not_computed(implementation: str, mask: Tensor | None) -> None:
    model, calls = tiny_model(implementation=implementation), []
    for layer in image_expert_layers(model):
        layer.lora_A["default"].register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        states(model, embeddings(), mask)
    assert not calls
    with torch.no_grad():
        states(model, embeddings(), suffix(1))
    assert len(calls) == len(TARGETS) * len(model.layers)


def test_without_a_mask_the_expert_has_no_gradients() -> None:
    model = tiny_model().train()
    loss(states(model, embeddings().requires_grad_())).backward()
    assert adapter_gradients(model) == [None] * (2 * len(TARGETS) * len(model.layers))


@each_implementation
def test_all_true_is_not_indexed(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError

    layer = first_layer(tiny_model(implementation=implementation))
    for name in ("index_select", "index_add", "index_copy"):
        monkeypatch.setattr(Tensor, name, refuse)
    run(layer, embeddings(), ALL)
    if implementation == "gather":
        with pytest.raises(AssertionError):
            run(layer, embeddings(), suffix(1))


# -- merging ----------------------------------------------------------------------------------------------------------------


def test_merging_into_the_base_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(TypeError, match="must not be merged into the base weights, which text uses too"):
        first_layer(model).merge()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TypeError, match="merged_image_expert"):
        first_layer(model).merge(safe_merge=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@each_precision
@torch.no_grad()
def test_merged_expert_equals_the_expert(precision: Precision) -> None:
    model, x = tiny_model(precision), embeddings(precision)
    before = copy.deepcopy(model.state_dict())
    expected, text = states(model, x, ALL, precision), states(model, x, precision=precision)
    mixed = states(model, x, scattered(), precision)
    with precision.on(), merged_image_expert(model):
        assert first_layer(model)._merged_weight.dtype == precision.compute
        for layer in image_expert_layers(model):
            layer.lora_A["default"].register_forward_pre_hook(lambda *_: calls.append(1))
        calls: list[int] = []
        merged = states(model, x, ALL, precision)
        assert not calls  # the second weight was used
        assert torch.equal(states(model, x, precision=precision), text)
        assert torch.equal(states(model, x, scattered(), precision), mixed)
        assert calls
    # Weights and products are rounded elsewhere, 14 layers with 2 to 4 roundings each: 50 unit roundoffs of the states.
    unit_roundoff = torch.finfo(precision.compute).eps / 2
    torch.testing.assert_close(merged, expected, rtol=0, atol=50 * unit_roundoff * float(expected.float().abs().max()))
    assert (text - expected).abs().max() > 1
    assert torch.equal(states(model, x, ALL, precision), expected)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_merged_expert_is_not_used_where_gradients_are() -> None:
    model, x = tiny_model(), embeddings()
    with merged_image_expert(model):
        out = states(model, x, ALL)
    assert torch.equal(out, states(model, x, ALL))
    loss(out).backward()
    assert all(grad.any() for grad in adapter_gradients(model))


def test_merged_expert_ends_with_its_block() -> None:
    model = tiny_model()

    def fail() -> None:
        with merged_image_expert(model, dtype=torch.bfloat16):
            assert first_layer(model)._merged_weight.dtype is torch.bfloat16
            raise RuntimeError("out")

    with pytest.raises(RuntimeError, match="out"):
        fail()
    assert all(layer._merged_weight is None for layer in image_expert_layers(model))
    assert not [name for name in model.state_dict() if "merged" in name]


# -- where the expert stands ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "millions"), [("mmar-0.5b", 281.5), ("mmar-7b", 3229.6)])
def test_parameters_of_the_paper(preset: str, millions: float) -> None:
    config = MMARConfig.preset(preset)
    with torch.device("meta"):
        model = MMARTextModel(config.text_config, config.plora_config)
    count = sum(parameter.numel() for parameter in image_expert_parameters(model))
    assert abs(count / 1e6 - millions) < 0.1


def test_expert_is_on_the_seven_linears_of_each_layer() -> None:
    model = tiny_model()
    adapted = [name for name, module in model.named_modules() if isinstance(module, PLoRALinear)]
    parts = {"self_attn": TARGETS[:4], "mlp": TARGETS[4:]}
    assert adapted == [f"layers.{i}.{part}.{name}" for i in range(2) for part, names in parts.items() for name in names]
    assert {layer.scaling["default"] for layer in image_expert_layers(model)} == {ALPHA / RANK}


def test_alpha_is_the_rank_by_default() -> None:
    layer = first_layer(MMARTextModel(tiny_model().config, PLoRAConfig(rank=4)))
    assert layer.scaling == {"default": 1.0}
    assert layer.lora_A["default"].weight.shape == (4, WIDTH)


def test_a_copy_reads_its_own_mask() -> None:
    """A hook that is a closure would feed the original's layers."""
    model, x = tiny_model(), embeddings()
    clone = copy.deepcopy(model)
    expected = states(model, x, scattered())
    states(model, x, ALL)
    assert torch.equal(states(clone, x, scattered()), expected)
    assert clone.layers[0].mlp.up_proj.inbox is clone.layers[0].self_attn.q_proj.inbox
    assert clone.layers[0].mlp.up_proj.inbox is not model.layers[0].mlp.up_proj.inbox


# -- misuse -----------------------------------------------------------------------------------------------------------------


def lora(**options: Any) -> LoraConfig:
    config = LoraConfig(r=2, target_modules=list(TARGETS), **options)
    config._register_custom_module({nn.Linear: PLoRALinear})
    return config


def test_a_second_expert_is_refused() -> None:
    with pytest.raises(ValueError, match="must not have an image expert yet"):
        add_image_expert(tiny_model(), PLoRAConfig(rank=2))


def test_a_decoder_without_one_of_the_linears_is_refused() -> None:
    bare = bare_twin(tiny_model())
    del bare.layers[1].mlp.up_proj
    with pytest.raises(ValueError, match="in each decoder layer, got 13 of 14"):
        add_image_expert(bare, PLoRAConfig(rank=2))


def test_layers_made_by_peft_alone_refuse_to_run() -> None:
    model = inject_adapter_in_model(lora(), bare_twin(tiny_model()))
    with pytest.raises(RuntimeError, match="must be told which rows are image tokens"):
        states(model, embeddings())


def test_variants_of_lora_are_refused() -> None:
    with pytest.raises(ValueError, match="must be plain LoRA, got DoraLinearVariant"):
        inject_adapter_in_model(lora(use_dora=True), bare_twin(tiny_model()))


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must have the leading shape of the activations \(3, 10\), got \(3, 9\)"):
        run(first_layer(tiny_model()), embeddings(), ALL[:, 1:])


def test_disabled_adapters_leave_the_base() -> None:
    layer, x = first_layer(tiny_model()), embeddings()
    layer.enable_adapters(False)
    assert torch.equal(run(layer, x, ALL), layer.base_layer(x))
