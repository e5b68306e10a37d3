"""Weights of a plain Qwen2 arrive complete, or not at all."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_qwen2 import PRECISIONS, bare_twin, embeddings, states, tiny_config, tiny_model
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from mmar.config import MMARConfig, PLoRAConfig
from mmar.language_model import MMARTextModel
from mmar.plora import TARGETS, image_expert_parameters
from mmar.qwen2_weights import load_qwen2_weights, qwen2_key_map, save_qwen2


def plain_qwen2(*, tied: bool = True) -> Qwen2ForCausalLM:
    torch.manual_seed(5)
    model = Qwen2ForCausalLM(tiny_config(tie_word_embeddings=tied)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model


def text_of(plain: Qwen2ForCausalLM) -> Tensor:
    return states(plain.model, embeddings())


def saved(folder: Path, plain: Qwen2ForCausalLM, **options: Any) -> Path:
    plain.save_pretrained(folder, **options)
    return folder


def test_key_map_renames_the_seven_linears_alone() -> None:
    names = qwen2_key_map(tiny_model())
    assert names["norm.weight"] == "norm.weight"
    assert names["layers.1.self_attn.q_proj.bias"] == "layers.1.self_attn.q_proj.base_layer.bias"
    renamed = {old for old, new in names.items() if old != new}
    assert renamed == {name for name in names if any(f".{target}." in name for target in TARGETS)}
    assert names.keys() == bare_twin(tiny_model()).state_dict().keys()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("plora", [None, PLoRAConfig(rank=2)], ids=["bare", "expert"])
def test_state_dict_of_a_causal_model(tied: bool, plora: PLoRAConfig | None) -> None:
    plain, model = plain_qwen2(tied=tied), MMARTextModel(tiny_config(tie_word_embeddings=tied), plora).eval()
    head = load_qwen2_weights(model, plain.state_dict())
    assert torch.equal(states(model, embeddings()), text_of(plain))
    assert torch.equal(head, plain.lm_head.weight)
    assert tied == torch.equal(head, model.embed_tokens.weight)


@pytest.mark.parametrize(("tied", "shard"), [(True, "1GB"), (False, "1GB"), (True, "10KB"), (False, "10KB")])
def test_folder(tmp_path: Path, tied: bool, shard: str) -> None:
    plain, model = plain_qwen2(tied=tied), tiny_model()
    expert = [parameter.clone() for parameter in image_expert_parameters(model)]
    head = load_qwen2_weights(model, saved(tmp_path, plain, max_shard_size=shard))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "10KB")
    assert torch.equal(states(model, embeddings()), text_of(plain))
    assert head is None if tied else torch.equal(head, plain.lm_head.weight)
    assert all(torch.equal(one, other) for one, other in zip(expert, image_expert_parameters(model), strict=True))


def test_state_dict_of_the_decoder_alone() -> None:
    plain, model = plain_qwen2(), tiny_model()
    assert load_qwen2_weights(model, plain.model.state_dict()) is None
    assert torch.equal(states(model, embeddings()), text_of(plain))


def test_the_dtype_of_the_model_is_kept() -> None:
    model, plain = tiny_model(PRECISIONS[1]), plain_qwen2()
    load_qwen2_weights(model, plain.state_dict())
    assert torch.equal(model.embed_tokens.weight, plain.model.embed_tokens.weight.bfloat16())


def spoil(weights: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    if how == "missing":
        return {k: v for k, v in weights.items() if "layers.1.mlp" not in k}
    if how == "surplus":
        return weights | {"model.layers.2.mlp.up_proj.weight": torch.zeros(1)}
    return weights | {"model.layers.0.mlp.up_proj.weight": torch.zeros(3, 4)}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"3 missing \(layers.1.mlp.down_proj.base_layer.weight, .*\); build the model with the text_config"),
        ("surplus", r"1 surplus \(model.layers.2.mlp.up_proj.weight\)"),
        ("shape", r"1 of wrong shape \(layers.0.mlp.up_proj.base_layer.weight of shape \(3, 4\) instead of \(48, 32\)\)"),
    ],
)
def test_all_or_nothing(how: str, message: str) -> None:
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        load_qwen2_weights(model, spoil(plain_qwen2().state_dict(), how))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_lost_shard(tmp_path: Path) -> None:
    saved(tmp_path, plain_qwen2(), max_shard_size="10KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=f"must be safetensors, got no .*{lost.name}; fetch the whole folder"):
        load_qwen2_weights(tiny_model(), tmp_path)


def test_a_shard_without_its_tensors(tmp_path: Path) -> None:
    saved(tmp_path, plain_qwen2(), max_shard_size="10KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    names = list(load_file(shard))
    save_file({}, shard)
    with pytest.raises(ValueError, match=rf"got {len(names)} missing"):
        load_qwen2_weights(tiny_model(), tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"got no .*model.safetensors"):
        load_qwen2_weights(tiny_model(), tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"num_attention_heads": 8, "head_dim": 4}, {"rms_norm_eps": 1e-5}, {"rope_theta": 1e6}, {"hidden_act": "gelu"}],
    ids=lambda change: next(iter(change)),
)
def test_arithmetic_that_weights_do_not_show(tmp_path: Path, change: dict[str, Any]) -> None:
    saved(tmp_path, plain_qwen2())
    config = json.loads((tmp_path / "config.json").read_text())
    if "rope_theta" in change:
        del config["rope_parameters"]  # as older versions of transformers wrote it
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match="text_config must be that of the checkpoint, got"):
        load_qwen2_weights(tiny_model(), tmp_path)


def test_another_kind_of_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="must be a Qwen2, got model_type 'llama'"):
        load_qwen2_weights(tiny_model(), tmp_path)


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("mmar-0.5b", {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}),
        ("mmar-7b", {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}),
    ],
)
def test_presets_agree_with_the_published_configs(preset: str, published: dict[str, Any]) -> None:
    """Of Qwen2-0.5B-Instruct and Qwen2-7B-Instruct, in the form in which they were published."""
    small = preset == "mmar-0.5b"
    rest = {
        "num_key_value_heads": 2 if small else 4,
        "vocab_size": 151936 if small else 152064,
        "tie_word_embeddings": small,
        "max_window_layers": 24 if small else 28,
        "sliding_window": 32768 if small else 131072,
    }
    same = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "use_sliding_window": False}
    theirs = Qwen2Config(**published, **rest, **same, max_position_embeddings=32768, initializer_range=0.02)
    ours = MMARConfig.preset(preset).text_config
    names = (*published, *rest.keys() - {"max_window_layers", "sliding_window"}, "rope_parameters", "hidden_act", "layer_types")
    assert {name: getattr(ours, name) for name in names} == {name: getattr(theirs, name) for name in names}


def test_a_model_without_memory() -> None:
    with torch.device("meta"):
        model = MMARTextModel(tiny_config(), PLoRAConfig(rank=2))
    with pytest.raises(ValueError, match="must have memory to load into, got parameters on the meta device"):
        load_qwen2_weights(model, plain_qwen2().state_dict())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_frozen_model_is_written_as_a_plain_qwen2(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    plain = plain_qwen2(tied=tied).to(dtype)
    model = MMARTextModel(tiny_config(tie_word_embeddings=tied), PLoRAConfig(rank=2)).to(dtype).eval()
    head = load_qwen2_weights(model, plain.state_dict())
    save_qwen2(model, tmp_path / "a", lm_head=None if tied else head)
    back = Qwen2ForCausalLM.from_pretrained(tmp_path / "a")
    assert back.dtype is dtype
    state = plain.state_dict()
    assert back.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in back.state_dict().items())
    assert back.config.rope_parameters == plain.config.rope_parameters
    assert (back.config.eos_token_id, back.config.pad_token_id) == (plain.config.eos_token_id, plain.config.pad_token_id)


def test_a_head_of_its_own_is_not_forgotten(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lm_head must be given where tie_word_embeddings is False, got None"):
        save_qwen2(MMARTextModel(tiny_config(tie_word_embeddings=False), None), tmp_path)
    assert not list(tmp_path.iterdir())
