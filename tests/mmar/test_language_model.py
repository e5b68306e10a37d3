"""Qwen2 with an image expert: text is plain Qwen2, gradients are the expert's, recomputation and meta device are right."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_qwen2 import (
    BATCH,
    LENGTH,
    PRECISIONS,
    RANK,
    Precision,
    bare_twin,
    causal_mask,
    embeddings,
    loss,
    scattered,
    states,
    suffix,
    tiny_config,
    tiny_model,
)
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, Qwen2Config

import mmar.language_model
from mmar.config import PLoRAConfig
from mmar.language_model import MMARTextModel
from mmar.plora import KEYWORD, image_expert_layers, image_expert_parameters

each_precision = pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.name)
FLOAT32, BF16 = PRECISIONS[:2]


# -- text -------------------------------------------------------------------------------------------------------------------


@each_precision
def test_text_is_plain_qwen2(precision: Precision) -> None:
    model, ids = tiny_model(precision), torch.arange(BATCH * LENGTH).view(BATCH, LENGTH)
    with precision.on():
        assert torch.equal(model(input_ids=ids).last_hidden_state, bare_twin(model)(input_ids=ids).last_hidden_state)


def test_hidden_states_are_returned_on_request() -> None:
    out = tiny_model()(
        inputs_embeds=embeddings(), attention_mask=causal_mask(), image_token_mask=scattered(), output_hidden_states=True
    )
    assert len(out.hidden_states) == 3


def test_without_an_expert_the_mask_changes_nothing() -> None:
    bare = MMARTextModel(tiny_config(), None).eval()
    assert not any(image_expert_layers(bare))
    assert torch.equal(states(bare, embeddings(), scattered()), states(bare, embeddings()))
    assert not any(parameter.requires_grad for parameter in bare.parameters())


@torch.no_grad()
def test_cached_calls_equal_one_call() -> None:
    """Text, then image tokens; the mask covers the new tokens only."""
    model, x, cache = tiny_model(), embeddings(), DynamicCache(config=tiny_config())
    mask, attend, position = suffix(4), causal_mask()["full_attention"], torch.arange(LENGTH)[None].expand(BATCH, -1)
    common = {"past_key_values": cache, "use_cache": True}

    def call(part: slice, image_tokens: Tensor | None) -> Tensor:
        seen = {"full_attention": attend[:, :, part, : part.stop]}
        out = model(
            inputs_embeds=x[:, part],
            attention_mask=seen,
            position_ids=position[:, part],
            image_token_mask=image_tokens,
            **common,
        )
        return out.last_hidden_state

    text, image = call(slice(0, LENGTH - 4), None), call(slice(LENGTH - 4, LENGTH), mask[:, -4:])
    whole = states(model, x, mask)
    # 100 roundings of 2^-24 on states of size 4, as attention sums over other shapes.
    torch.testing.assert_close(torch.cat([text, image], 1), whole, rtol=0, atol=4 * 100 * 2**-24)
    assert (states(model, x) - whole).abs().max() > 0.1  # what forgetting the mask would give


# -- gradients --------------------------------------------------------------------------------------------------------------


def loss_gradients(model: MMARTextModel, precision: Precision, *masks: Tensor) -> list[Tensor]:
    """Of the sum over one forward pass per mask, all before the one backward pass."""
    model.zero_grad()
    passes = [states(model, embeddings(precision, seed), mask, precision) for seed, mask in enumerate(masks)]
    torch.stack([loss(out) for out in passes]).sum().backward()
    return [parameter.grad.clone() for parameter in image_expert_parameters(model)]


def test_gradients_are_in_the_expert_alone() -> None:
    model = tiny_model().train()
    loss_gradients(model, FLOAT32, scattered())
    with_gradient = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    assert with_gradient == {name for name in model.state_dict() if ".lora_" in name}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == with_gradient


@each_precision
@pytest.mark.parametrize("implementation", ["gather", "mask"])
def test_checkpointing_gives_the_same_gradients(precision: Precision, implementation: str) -> None:
    """Two micro-batches with different masks before one backward pass: each recomputation finds its own mask."""
    model = tiny_model(precision, implementation).train()
    masks = scattered(2), scattered(3)
    plain = loss_gradients(model, precision, *masks)
    model.activation_checkpointing_enable()
    calls: list[int] = []
    model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    again = loss_gradients(model, precision, *masks)
    assert len(calls) == 2 * len(masks)  # it was recomputed
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert all(grad.any() for grad in plain)


def test_a_hook_on_the_decoder_layer_would_not_do() -> None:
    """The control of the test above: such hooks stay outside the recomputation, which then finds the mask of the last call."""
    model = tiny_model(implementation="mask").train()
    for layer in model.layers:
        take = next(iter(layer.self_attn._forward_pre_hooks.values()))
        layer.self_attn._forward_pre_hooks.clear()
        layer.self_attn._forward_pre_hooks_with_kwargs.clear()
        layer.register_forward_pre_hook(take, with_kwargs=True)
    masks = scattered(2), scattered(3)
    plain = loss_gradients(model, FLOAT32, *masks)
    model.activation_checkpointing_enable()
    again = loss_gradients(model, FLOAT32, *masks)
    assert any((one - other).abs().max() > 0.01 * one.abs().max() for one, other in zip(plain, again, strict=True))


def test_training_moves_the_expert_alone() -> None:
    model = tiny_model().train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss_gradients(model, FLOAT32, scattered())
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if ".lora_" in name}


# -- building and loading ---------------------------------------------------------------------------------------------------


def starts_as_lora(model: MMARTextModel) -> bool:
    """``lora_B`` is zero, ``lora_A`` uniform within 1 / sqrt(fan-in), of standard deviation 1 / sqrt(3 fan-in)."""
    for layer in image_expert_layers(model):
        down, up = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight
        bound = down.shape[1] ** -0.5
        spread = float(down.std()) / (bound / 3**0.5)
        if up.any() or not down.abs().max() <= bound or not 0.75 < spread < 1.25:  # 192 draws at least: 5 / sqrt(384) = 0.26
            return False
    return True


@pytest.fixture
def nan_in_new_memory() -> Callable[[], None]:
    """Memory that nobody initialises holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def without_the_expert(folder: Path) -> Path:
    """A saved model whose checkpoint has lost its adapters."""
    tiny_model().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if ".lora_" not in k}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_expert_starts_as_lora() -> None:
    assert starts_as_lora(MMARTextModel(tiny_config(), PLoRAConfig(rank=RANK)))
    assert not starts_as_lora(tiny_model())


class Parent(PreTrainedModel):
    """A model with a text model inside, whose ``post_init`` initialises what is not initialised yet."""

    config_class = Qwen2Config

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.inner = MMARTextModel(config, PLoRAConfig(rank=RANK))
        self.post_init()


def test_expert_starts_as_lora_within_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert starts_as_lora(Parent(tiny_config()).inner)
    monkeypatch.setattr(mmar.language_model, "start_adapter", lambda _: False)
    assert not starts_as_lora(Parent(tiny_config()).inner)


@pytest.mark.usefixtures("nan_in_new_memory")
def test_loading_on_the_meta_device_leaves_nothing_uninitialised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = without_the_expert(tmp_path)
    assert torch.empty(3).isnan().all()
    loaded = MMARTextModel.from_pretrained(folder, plora=PLoRAConfig(rank=RANK))
    assert starts_as_lora(loaded)
    assert torch.equal(loaded.layers[0].mlp.up_proj.base_layer.weight, tiny_model().layers[0].mlp.up_proj.base_layer.weight)
    assert all(tensor.isfinite().all() for tensor in [*loaded.state_dict().values(), *loaded.buffers()])
    monkeypatch.setattr(mmar.language_model, "start_adapter", lambda _: False)  # transformers' own rule: normal everywhere
    assert not starts_as_lora(MMARTextModel.from_pretrained(folder, plora=PLoRAConfig(rank=RANK)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    model.save_pretrained(tmp_path)
    loaded = MMARTextModel.from_pretrained(tmp_path, plora=PLoRAConfig(rank=RANK, alpha=9.0), dtype=dtype)
    loaded.freeze_base()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == {
        n for n in loaded.state_dict() if "lora_" in n
    }
    x = embeddings().to(dtype)
    assert torch.equal(states(model, x, scattered()), states(loaded, x, scattered()))


def test_frozen_base_in_bf16() -> None:
    """Under autocast the same numbers as from a float32 base that holds bf16 numbers; the expert stays float32."""
    model, autocast = tiny_model(), PRECISIONS[2]
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16().float()
    expected = states(model, embeddings(), scattered(), autocast)
    model.cast_base(torch.bfloat16)
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in image_expert_parameters(model)} == {torch.float32}
    assert torch.equal(states(model, embeddings(), scattered(), autocast), expected)


def test_rope_stays_float32(tmp_path: Path) -> None:
    """Whichever way a model becomes bf16."""
    exact = tiny_model().rotary_emb.inv_freq
    exact_model = tiny_model()
    exact_model.save_pretrained(tmp_path)
    loaded = MMARTextModel.from_pretrained(tmp_path, plora=PLoRAConfig(rank=RANK), dtype=torch.bfloat16)
    for model in (
        tiny_model().bfloat16(),
        tiny_model().to(torch.bfloat16),
        torch.nn.Sequential(tiny_model()).bfloat16()[0],
        loaded,
    ):
        assert model.dtype is torch.bfloat16
        assert torch.equal(model.rotary_emb.inv_freq, exact)
    plain = bare_twin(tiny_model()).bfloat16().rotary_emb.inv_freq
    assert (plain - exact).abs().max() > 0
    assert tiny_model().to("meta").rotary_emb.inv_freq.is_meta


# -- misuse -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [scattered()[:, 1:], scattered()[:1], scattered().long()], ids=["length", "batch", "dtype"])
@pytest.mark.parametrize("plora", [None, PLoRAConfig(rank=2)])
def test_a_wrong_mask_is_refused(mask: Tensor, plora: PLoRAConfig | None) -> None:
    model = MMARTextModel(tiny_config(), plora)
    with pytest.raises(ValueError, match=rf"image_token_mask must be bool of shape \({BATCH}, {LENGTH}\), one entry per token"):
        states(model, embeddings(), mask)


def test_image_tokens_need_an_attention_mask() -> None:
    position = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    with pytest.raises(ValueError, match="attention_mask must be given with image_token_mask and position_ids, got None"):
        tiny_model()(inputs_embeds=embeddings(), position_ids=position, image_token_mask=scattered())


def test_eager_attention_would_add_a_bool_mask() -> None:
    model = MMARTextModel(tiny_config(attn_implementation="eager"), PLoRAConfig(rank=2))
    with pytest.raises(ValueError, match="attn_implementation must be sdpa for a bool attention_mask, got eager"):
        states(model, embeddings(), scattered())


def test_the_rows_do_not_reach_the_attention_function() -> None:
    """The hook takes them out: a backend would not know what to do with them."""
    model, seen = tiny_model(), []
    model.layers[0].self_attn.register_forward_pre_hook(lambda _, __, kwargs: seen.append(KEYWORD in kwargs), with_kwargs=True)
    states(model, embeddings(), scattered())
    assert seen == [False]
