"""The image expert on disk: peft's format, which peft itself does not mistake for an ordinary LoRA."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_qwen2 import ALPHA, BATCH, LENGTH, PRECISIONS, RANK, embeddings, scattered, states, tiny_config, tiny_model
from transformers import Qwen2ForCausalLM

from mmar.adapter_files import CONFIG, PREFIX, WEIGHTS, load_adapter, save_adapter
from mmar.config import PLoRAConfig
from mmar.language_model import MMARTextModel
from mmar.plora import TARGETS, image_expert_parameters
from mmar.qwen2_weights import load_qwen2_weights

ALL = torch.ones(BATCH, LENGTH, dtype=torch.bool)


def causal_model(text_model: MMARTextModel) -> Qwen2ForCausalLM:
    """Plain Qwen2 with the base weights of ``text_model``."""
    plain = Qwen2ForCausalLM(tiny_config()).eval()
    weights = {k.replace(".base_layer.", "."): v for k, v in text_model.state_dict().items() if ".lora_" not in k}
    plain.model.load_state_dict(weights)
    return plain


@pytest.fixture(autouse=True)
def _peft_beside_transformers() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def edit(folder: Path, **options: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def ordinary_lora(folder: Path, seed: int = 3, **options: Any) -> PeftModel:
    """Trained and saved by peft, on the base weights of the tiny model."""
    config = LoraConfig(**{"r": RANK, "lora_alpha": int(ALPHA), "target_modules": list(TARGETS), **options})
    model = get_peft_model(causal_model(tiny_model()), config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return model.eval()


# -- round trip -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS[:2], ids=lambda p: p.name)
def test_round_trip(tmp_path: Path, precision: Any) -> None:
    model, other = tiny_model(precision), tiny_model(precision, seed=1)
    save_adapter(model, tmp_path)
    base = {k: v.clone() for k, v in other.state_dict().items() if ".lora_" not in k}
    assert not any(torch.equal(a, b) for a, b in zip(*map(image_expert_parameters, (model, other)), strict=True))
    load_adapter(other, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(*map(image_expert_parameters, (model, other)), strict=True))
    assert all(torch.equal(base[name], other.state_dict()[name]) for name in base)
    assert all(parameter.requires_grad for parameter in image_expert_parameters(other))


def test_files_are_what_peft_writes(tmp_path: Path) -> None:
    """Names of files, names of tensors and options, but for ``peft_type``."""
    save_adapter(tiny_model(), tmp_path / "ours")
    ordinary_lora(tmp_path / "peft")
    ours, theirs = (load_file(tmp_path / name / WEIGHTS) for name in ("ours", "peft"))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    ours, theirs = (json.loads((tmp_path / name / CONFIG).read_text()) for name in ("ours", "peft"))
    different = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    assert different - {"target_modules"} == {"peft_type", "auto_mapping"}  # a set; and the class of the base, which peft notes
    assert set(ours["target_modules"]) == set(theirs["target_modules"])


# -- peft -------------------------------------------------------------------------------------------------------------------


def test_peft_refuses_the_folder_and_says_why(tmp_path: Path) -> None:
    model = tiny_model()
    save_adapter(model, tmp_path)
    plain = causal_model(model)
    ways = {
        "PeftModel": lambda: PeftModel.from_pretrained(plain, tmp_path),
        "PeftConfig": lambda: PeftConfig.from_pretrained(tmp_path),
        "LoraConfig": lambda: LoraConfig.from_pretrained(tmp_path),
        "transformers": lambda: plain.load_adapter(str(tmp_path)),
    }
    for way in ways.values():
        with pytest.raises(KeyError, match=r"image tokens only.*load it with mmar.adapter_files.load_adapter"):
            way()


def test_read_as_an_ordinary_lora_on_purpose(tmp_path: Path) -> None:
    """As the module says: another ``peft_type``. Without that edit peft would have adapted text without a word."""
    model = tiny_model()
    save_adapter(model, tmp_path)
    edit(tmp_path, peft_type="LORA")
    lora = PeftModel.from_pretrained(causal_model(model), tmp_path).eval()
    found = states(lora.base_model.model.model, embeddings())
    assert torch.equal(found, states(model, embeddings(), ALL))
    assert (found - states(model, embeddings())).abs().max() > 0.1


# -- ordinary LoRAs ---------------------------------------------------------------------------------------------------------


def test_an_ordinary_lora_is_refused(tmp_path: Path) -> None:
    ordinary_lora(tmp_path)
    with pytest.raises(ValueError, match=r"got 'LORA': .* adapts text as well; load_adapter\(..., convert=True\) takes it"):
        load_adapter(tiny_model(), tmp_path)


def test_an_ordinary_lora_is_converted_on_request(tmp_path: Path) -> None:
    lora, model = ordinary_lora(tmp_path), tiny_model()
    before = states(model, embeddings())
    load_adapter(model, tmp_path, convert=True)
    assert torch.equal(states(model, embeddings(), ALL), states(lora.base_model.model.model, embeddings()))
    assert torch.equal(states(model, embeddings()), before)


def test_a_lora_of_the_decoder_alone_is_converted_too(tmp_path: Path) -> None:
    ordinary_lora(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    shorter = {name.replace(PREFIX, "base_model.model."): value for name, value in weights.items()}
    save_file(shorter, tmp_path / WEIGHTS)
    model = tiny_model()
    load_adapter(model, tmp_path, convert=True)
    assert torch.equal(
        model.layers[1].mlp.up_proj.lora_A["default"].weight, weights[PREFIX + "layers.1.mlp.up_proj.lora_A.weight"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 4}, "r must be 6, as in the model, got 4; build the model with the rank and alpha of the adapter"),
        ({"lora_alpha": 4}, "lora_alpha must be 9, as in the model, got 4"),
        ({"target_modules": ["q_proj", "v_proj"]}, "target_modules must be down_proj, .*, as in the model, got q_proj, v_proj"),
        ({"use_rslora": True}, "must be plain LoRA, got use_rslora=True"),
        ({"use_dora": True}, "must be plain LoRA, got use_dora=True"),
        ({"rank_pattern": {"q_proj": 2}}, "must be plain LoRA, got rank_pattern="),
        ({"modules_to_save": ["lm_head"]}, "must be plain LoRA, got modules_to_save="),
    ],
)
def test_only_a_lora_that_means_the_same_is_converted(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    ordinary_lora(tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        load_adapter(tiny_model(), tmp_path, convert=True)


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"init_lora_weights": "gaussian"}, {"task_type": "CAUSAL_LM"}])
def test_options_of_training_do_not_matter(tmp_path: Path, options: dict[str, Any]) -> None:
    ordinary_lora(tmp_path, **options)
    load_adapter(tiny_model(), tmp_path, convert=True)


def test_other_methods_are_refused(tmp_path: Path) -> None:
    save_adapter(tiny_model(), tmp_path)
    edit(tmp_path, peft_type="OFT")
    for convert in (False, True):
        with pytest.raises(ValueError, match="got 'OFT'; other methods cannot be converted"):
            load_adapter(tiny_model(), tmp_path, convert=convert)


# -- misfits ----------------------------------------------------------------------------------------------------------------

KEY = PREFIX + "layers.0.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({KEY: None}, r"28 tensors of the model, got 1 missing \(layers.0.mlp.up_proj.lora_A.weight\); load it into the model"),
        ({PREFIX + "layers.7.mlp.up_proj.lora_A.weight": torch.zeros(2)}, r"1 surplus \(layers.7.mlp.up_proj.lora_A.weight\)"),
        (
            {KEY: torch.zeros(RANK, 3)},
            r"1 of wrong shape \(layers.0.mlp.up_proj.lora_A.weight of shape \(6, 3\) instead of \(6, 32\)\)",
        ),
        ({KEY: None, "lora": torch.zeros(1)}, "28 missing .*, 28 surplus"),
    ],
    ids=["missing", "surplus", "shape", "foreign"],
)
def test_all_or_nothing(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    model = tiny_model(seed=1)
    save_adapter(tiny_model(), tmp_path)
    weights = load_file(tmp_path / WEIGHTS) | change
    save_file({name: value for name, value in weights.items() if value is not None}, tmp_path / WEIGHTS)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        load_adapter(model, tmp_path)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("rank", "alpha", "name"), [(4, ALPHA, "r must be 4"), (RANK, 6.0, "lora_alpha must be 6")])
def test_another_rank_or_scale_is_refused(tmp_path: Path, rank: int, alpha: float, name: str) -> None:
    save_adapter(tiny_model(), tmp_path)
    with pytest.raises(ValueError, match=name):
        load_adapter(tiny_model(rank=rank, alpha=alpha), tmp_path)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_lost_file(tmp_path: Path, name: str) -> None:
    save_adapter(tiny_model(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"got no {name}"):
        load_adapter(tiny_model(), tmp_path)


def test_a_model_without_an_expert(tmp_path: Path) -> None:
    bare = MMARTextModel(tiny_config(), None)
    for call in (save_adapter, load_adapter):
        with pytest.raises(ValueError, match="model must have an image expert, got none"):
            call(bare, tmp_path)


def test_expert_and_base_together_make_the_model_anew(tmp_path: Path) -> None:
    """The two files that a user has: a plain Qwen2 and an adapter folder."""
    model = tiny_model()
    causal_model(model).save_pretrained(tmp_path / "qwen2")
    save_adapter(model, tmp_path / "expert")
    again = MMARTextModel(tiny_config(), PLoRAConfig(rank=RANK, alpha=ALPHA)).eval()
    load_qwen2_weights(again, tmp_path / "qwen2")
    load_adapter(again, tmp_path / "expert")
    assert torch.equal(states(again, embeddings(), scattered()), states(model, embeddings(), scattered()))
