"""Checkpoints: what is loaded is what was saved, or an error; a new model on a Qwen2 says what that Qwen2 says."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_model import BLOCK, some_known, some_tokens, tiny_config, tiny_model
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

import mmar
import mmar.auto
from diffparam.report.cli import main as diffparam
from mmar.checkpoint import CheckpointMismatch
from mmar.config import MMARConfig
from mmar.model import MMARForConditionalGeneration
from mmar.processing import add_image_tokens, train_tokenizer

EVERY = ["mmar", "vq", "transfusion-vit", "understanding-only"]
SMALL = {
    "projector_config": {"vis_blocks": 1},
    "text_config": {"num_hidden_layers": 1, "layer_types": None},
    "embedding_vit_config": {"num_hidden_layers": 1},
    "diffusion_head_config": {"depth": 1},
}
PT = {"format": "pt"}
"""Metadata that transformers looks for."""
IDS = torch.tensor([[1, 20, 21, 2, *BLOCK, 1, 30, 31]])


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """transformers reports on stderr what is an error here."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def outputs(model: MMARForConditionalGeneration) -> dict[str, Tensor]:
    """Logits, states and the image loss of fixed tokens, noise and mask."""
    objective, tokens = model.config.image_objective, some_tokens(model, 1)
    known = some_known(1) if model.config.is_masked else None
    targets = None if objective == "understanding_only" else torch.ones(1, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        out = model(IDS, image_tokens=tokens, known=known, image_targets=targets, generator=generator, output_image_states=True)
    named = {"logits": out.logits, "states": out.image_states, "loss": out.image_loss}
    return {name: value for name, value in named.items() if value is not None}


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a checkpoint."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, PT)


def edit(path: Path, **changes: Any) -> None:
    """Change top-level entries of a JSON file; None takes one out."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# -- there and back --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tied", "dtype"),
    [
        *(("mmar", tied, dtype) for tied in (True, False) for dtype in (torch.float32, torch.bfloat16)),
        *((name, True, torch.float32) for name in EVERY[1:]),
    ],
)
def test_what_is_saved_comes_back_to_the_bit(name: str, tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(name, text_config={"tie_word_embeddings": tied}).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = MMARForConditionalGeneration.from_pretrained(tmp_path)
    wanted = outputs(model)
    assert wanted.keys() == outputs(loaded).keys()
    assert all(torch.equal(value, wanted[key]) for key, value in outputs(loaded).items())
    tensors = [dict((*m.named_parameters(), *m.named_buffers())) for m in (model, loaded)]
    assert tensors[0].keys() == tensors[1].keys()  # the buffers that are not in the file as well
    for key, value in tensors[0].items():
        assert torch.equal(value, tensors[1][key]), key
        assert value.dtype is tensors[1][key].dtype, key
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
    assert (loaded.lm_head.weight is loaded.language_model.embed_tokens.weight) is tied
    assert not loaded.training


def test_weights_load_in_another_dtype(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = MMARForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    for (key, theirs), (_, ours) in zip(loaded.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(theirs, ours.bfloat16()), key
    frequencies = loaded.language_model.rotary_emb.inv_freq  # rounded, they would turn distant tokens too far
    assert torch.equal(frequencies, model.language_model.rotary_emb.inv_freq)


def test_several_files_are_one_checkpoint(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    loaded = MMARForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(outputs(loaded)["logits"], outputs(model)["logits"])


@pytest.mark.parametrize("name", EVERY)
def test_what_is_frozen_stays_frozen(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    loaded = MMARForConditionalGeneration.from_pretrained(tmp_path)
    trained = [key for key, parameter in loaded.named_parameters() if parameter.requires_grad]
    assert trained == [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert not any("base_layer" in key or "embed_tokens" in key or "lm_head" in key for key in trained)
    assert loaded.num_parameters(only_trainable=True) == sum(
        p.numel() for key, p in loaded.named_parameters() if key in trained
    )
    assert 0 < loaded.num_parameters(only_trainable=True) < loaded.num_parameters()


def test_the_report_is_there_for_those_who_ask(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    loaded, report = MMARForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not loaded.lm_head.weight.requires_grad


# -- the strict door -------------------------------------------------------------------------------------------------------


def own_tensors(model: MMARForConditionalGeneration) -> list[str]:
    """Names of all but Qwen2's."""
    return [key for key in model.state_dict() if not key.startswith(("language_model.", "lm_head.")) or "lora_" in key]


@pytest.mark.parametrize("name", ["mmar", "vq", "transfusion"])
def test_each_missing_tensor_is_an_error(name: str, tmp_path: Path) -> None:
    """Each in turn, through the state dict; some through the file, which is the slower way to the same door."""
    model = tiny_model(name, **SMALL)
    model.save_pretrained(tmp_path)
    complete = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}  # tied
    keys = own_tensors(model)
    assert len(keys) > 20
    if name != "mmar":
        keys = sorted(set(keys) - set(own_tensors(tiny_model(**SMALL))))
    for key in [*keys, "language_model.layers.0.mlp.up_proj.base_layer.weight", "language_model.embed_tokens.weight"]:
        rest = {other: value for other, value in complete.items() if other != key}
        with pytest.raises(CheckpointMismatch, match=rf"missing \({re.escape(key)}[,)]"):
            MMARForConditionalGeneration.from_pretrained(None, config=model.config, state_dict=rest)
    for key in keys[::10]:
        save_file({other: value for other, value in complete.items() if other != key}, tmp_path / "model.safetensors", PT)
        with pytest.raises(CheckpointMismatch, match=re.escape(f"1 missing ({key})")):
            MMARForConditionalGeneration.from_pretrained(tmp_path)
    save_file(complete, tmp_path / "model.safetensors", PT)
    MMARForConditionalGeneration.from_pretrained(tmp_path)  # the control


def test_all_misfits_are_in_one_message(tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors["boundary.weight"]
        tensors["image_model.extra.weight"] = torch.zeros(1)
        tensors["image_model.head.head.token_out.bias"] = torch.zeros(3)

    tiny_model().save_pretrained(tmp_path)
    rewrite(tmp_path, spoil)
    with pytest.raises(CheckpointMismatch) as caught:
        MMARForConditionalGeneration.from_pretrained(tmp_path)
    for words in (
        "1 missing (boundary.weight)",
        "1 surplus (image_model.extra.weight)",
        "1 of wrong shape (image_model.head.head.token_out.bias (3,) instead of (12,))",
    ):
        assert words in str(caught.value)
    with pytest.raises(ValueError, match="ignore_mismatched_sizes must be False"):
        MMARForConditionalGeneration.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


@pytest.mark.parametrize("name", EVERY)
def test_no_parameter_is_left_uninitialised(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the strict door: what transformers alone would start anew does start, by the rules of the layers."""
    tiny_model(name).save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: [tensors.pop(key) for key in list(tensors) if key != "language_model.norm.weight"])
    empty = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: empty(*args, **kwargs).fill_(torch.nan))
    loaded = PreTrainedModel.from_pretrained.__func__(MMARForConditionalGeneration, tmp_path)  # type: ignore[attr-defined]
    for key, tensor in (*loaded.named_parameters(), *loaded.named_buffers()):
        assert bool(tensor.isfinite().all()), key
    torch.manual_seed(0)
    fresh = dict(MMARForConditionalGeneration(loaded.config).named_parameters())
    for key, parameter in loaded.named_parameters():
        # Standard deviations of at least 48 draws agree within 5 / sqrt(2 x 48) of each other, times sqrt 2: a factor of 2.
        spread, wanted = (float(p.detach().float().std(correction=0)) for p in (parameter, fresh[key]))
        assert wanted / 2 <= spread <= 2 * wanted, key


# -- what the weights mean -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v")
    tiny_model().save_pretrained(folder)
    return folder


def other_head(**options: Any) -> MMARConfig:
    return tiny_config(diffusion_head_config=options)


@pytest.mark.parametrize(
    "options",
    [
        {"prediction_type": "epsilon"},
        {"config": other_head(prediction_type="epsilon")},
        {"diffusion_head_config": {"prediction_type": "epsilon", "width": 48, "depth": 2}},
    ],
)
def test_another_prediction_type_is_refused(saved: Path, options: dict[str, Any]) -> None:
    for loader in (MMARForConditionalGeneration, AutoModel):
        with pytest.raises(
            CheckpointMismatch, match=r"prediction_type epsilon instead of v_prediction.*sample with the checkp"
        ):
            loader.from_pretrained(saved, **options)


def test_the_same_prediction_type_by_another_name_is_the_same(saved: Path) -> None:
    MMARForConditionalGeneration.from_pretrained(saved, prediction_type="v")
    MMARForConditionalGeneration.from_pretrained(saved, prediction_type="optimal", sigma_data=1.0)


def test_the_conversion_that_the_message_names_is_exact(saved: Path, tmp_path: Path) -> None:
    """EDM's F at sigma_data = 1 is -v: the converted head gives the bits of the old one, with the other sign."""
    with pytest.raises(CheckpointMismatch) as caught:
        MMARForConditionalGeneration.from_pretrained(saved, prediction_type="edm", sigma_data=1.0)
    command = re.search(r"diffparam (convert .*?);", str(caught.value))
    assert command is not None
    arguments = shlex.split(command[1])
    files = {"model.safetensors": saved / "model.safetensors", "new.safetensors": tmp_path / "model.safetensors"}
    assert diffparam([str(files.get(argument, argument)) for argument in arguments]) == 0
    config = json.loads((saved / "config.json").read_text())
    config["diffusion_head_config"] |= {"prediction_type": "edm", "sigma_data": 1.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    old = MMARForConditionalGeneration.from_pretrained(saved)
    new = MMARForConditionalGeneration.from_pretrained(tmp_path, prediction_type="edm", sigma_data=1.0)
    x_t, t, z = torch.randn(5, 12), torch.tensor([0, 1, 500, 998, 999]), torch.randn(5, 64)
    u = [model.image_model.head(x_t, t, model.image_model.head.condition(z)) for model in (old, new)]
    assert torch.equal(u[1], -u[0])
    assert bool(u[0].any())
    assert torch.allclose(outputs(new)["loss"], outputs(old)["loss"], rtol=1e-6)  # the same error of the same prediction


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(image_loss_weight=3.0),
        tiny_config(plora_config={"implementation": "mask"}),
        other_head(timesteps_per_token=8, loss_space="sample"),
        tiny_config(text_config={"attention_dropout": 0.1, "eos_token_id": 7}),
    ],
)
def test_options_of_training_may_differ(saved: Path, config: MMARConfig) -> None:
    loaded = MMARForConditionalGeneration.from_pretrained(saved, config=config)
    assert torch.equal(outputs(loaded)["states"], outputs(MMARForConditionalGeneration.from_pretrained(saved))["states"])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (tiny_config(image_positions="sequential"), "image_positions 'sequential' instead of 'shared'"),
        (tiny_config(plora_config={"alpha": 4.0}), "plora_config.alpha 4.0 instead of 8.0"),
        (tiny_config(plora_config={"rank": 4}), "plora_config.rank 4 instead of 8"),
        (tiny_config(image_config={"tokenizer": "kl-16"}), "image_config.tokenizer 'kl-16' instead of 'patches'"),
        (tiny_config(image_token_id=8), "image_token_id 8 instead of 4"),
        (tiny_config(schedule_config={"name": "linear"}), "schedule_config.name 'linear' instead of 'cosine'"),
        (tiny_config(text_config={"rms_norm_eps": 1e-5}), "text_config.rms_norm_eps 1e-05 instead of 1e-06"),
        (tiny_config(text_config={"num_attention_heads": 8}), "text_config.num_attention_heads 8 instead of 4"),
        (tiny_config("raster"), "image_objective 'causal_diffusion' instead of 'masked_diffusion'"),
    ],
)
def test_what_gives_the_weights_another_meaning_may_not(saved: Path, config: MMARConfig, words: str) -> None:
    """All of these but the rank would load without a word: the shapes are the same."""
    with pytest.raises(CheckpointMismatch, match=re.escape(words)):
        MMARForConditionalGeneration.from_pretrained(saved, config=config)


# -- transformers' Auto classes --------------------------------------------------------------------------------------------


def test_auto_classes_know_the_model(saved: Path) -> None:
    assert type(AutoConfig.from_pretrained(saved)) is MMARConfig
    for auto in (AutoModel, AutoModelForImageTextToText):
        model = auto.from_pretrained(saved)
        assert type(model) is MMARForConditionalGeneration
        assert not model.lm_head.weight.requires_grad


def test_public_names() -> None:
    assert {name: type(getattr(mmar, name)).__name__ for name in mmar.__all__} == {
        "ImageGenerationConfig": "type",
        "ImageTokenizer": "ABCMeta",
        "MMARConfig": "type",
        "MMARForConditionalGeneration": "type",
        "MMARPipeline": "type",
        "MMARProcessor": "type",
        "answer_questions": "function",
        "generate_image_tokens": "function",
        "load_image_tokenizer": "function",
    }
    assert set(mmar.__all__) <= set(dir(mmar))
    with pytest.raises(AttributeError, match="no attribute 'MMARConfiguration'"):
        mmar.MMARConfiguration  # noqa: B018


def test_the_package_alone_loads_nothing_and_the_head_no_transformers() -> None:
    program = (
        "import sys, mmar; before = set(sys.modules) & {'torch', 'transformers', 'mmar.config'}; import mmar.diffusion_head; "
        "print(before or 'nothing', 'transformers' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "nothing False\n"


# -- a new model on a Qwen2 ------------------------------------------------------------------------------------------------

OLD_CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "max_window_layers": 24,
    "rope_parameters": None,
    "layer_types": None,
    "dtype": None,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "use_sliding_window": False,
    "key_of_another_program": 3,
}
"""What Qwen2's own folders looked like, over what transformers writes today."""


def qwen2_folder(folder: Path, *, tied: bool = True, dtype: torch.dtype = torch.float32, shard: str = "1GB") -> Path:
    torch.manual_seed(1)
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 2, "rope_parameters": {"rope_theta": 1e6}}
    config = Qwen2Config(**sizes, **heads, tie_word_embeddings=tied, initializer_range=0.2)
    plain = Qwen2ForCausalLM(config).to(dtype)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    plain.save_pretrained(folder, max_shard_size=shard)
    return folder


def small(**options: Any) -> dict[str, Any]:
    """The other parts, for ``from_qwen2``."""
    return {"preset": "mmar-tiny", **options}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("is_old", [False, True])
def test_text_is_that_of_the_qwen2(tied: bool, is_old: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = qwen2_folder(tmp_path, tied=tied, dtype=dtype, shard="20KB" if is_old else "1GB")
    if is_old:
        edit(folder / "config.json", **OLD_CONFIG)
    plain = Qwen2ForCausalLM.from_pretrained(folder, dtype=dtype)
    model = MMARForConditionalGeneration.from_qwen2(folder, dtype=dtype, **small())
    ids = torch.randint(7, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, *[1] * 7], [1] * 9])
    with torch.no_grad():
        wanted = plain(ids, attention_mask=mask).logits
        assert torch.equal(model(ids, mask).logits, wanted)
        assert model.config.text_config.rope_parameters["rope_theta"] == 1e6
        plain.model.layers[1].mlp.down_proj.weight[0, 0] += 0.5
        assert not torch.equal(model(ids, mask).logits, plain(ids, attention_mask=mask).logits)  # the control
        model.save_pretrained(folder / "mmar")
        again = MMARForConditionalGeneration.from_pretrained(folder / "mmar")
        assert torch.equal(again(ids, mask).logits, wanted)


def test_the_rest_of_a_new_model_is_as_at_the_start_of_training(tmp_path: Path) -> None:
    model = MMARForConditionalGeneration.from_qwen2(qwen2_folder(tmp_path), **small(plora_config={"rank": 4}))
    assert model.config.plora_config.rank == 4
    assert model.config.diffusion_head_config.width == 48  # of the preset
    assert model.config.text_config.hidden_size == 32  # of the folder
    for name, parameter in model.named_parameters():
        base = name.startswith(("language_model.", "lm_head.")) and "lora_" not in name
        assert parameter.requires_grad is not base, name
        if "lora_B" in name or "token_out" in name:
            assert not parameter.any(), name
    assert outputs(model)["loss"].isfinite()


def test_image_ids_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    """A Qwen2 tokenizer without the tokens of images gets them behind its last; the file stays as it is."""
    folder, tokenizer = qwen2_folder(tmp_path), train_tokenizer(["a red square"] * 3, 280)
    tokenizer.save_pretrained(folder)
    model = MMARForConditionalGeneration.from_qwen2(folder, **small())
    assert (model.config.image_token_id, model.config.boi_token_id, model.config.eoi_token_id) == (4, 5, 6)
    learned = json.loads((folder / "tokenizer.json").read_text())["model"]
    kept = [token for token, i in learned["vocab"].items() if not 3 <= i <= 6]
    vocab, merges = {token: i for i, token in enumerate(kept)}, [tuple(pair) for pair in learned["merges"]]
    markers = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra_special_tokens": ["<|im_start|>"]}
    Qwen2Tokenizer(vocab=vocab, merges=merges, **markers).save_pretrained(folder)
    before = (folder / "tokenizer.json").read_bytes()
    model = MMARForConditionalGeneration.from_qwen2(folder, **small())
    wanted = add_image_tokens(type(tokenizer).from_pretrained(folder), 300)
    assert {name: getattr(model.config, name) for name in wanted} == wanted
    assert sorted(wanted.values()) == [len(kept), len(kept) + 1, len(kept) + 2]
    assert (folder / "tokenizer.json").read_bytes() == before
    explicit = {"image_token_id": 7, "boi_token_id": 8, "eoi_token_id": 9}
    assert MMARForConditionalGeneration.from_qwen2(folder, **small(**explicit)).image_ids.boi == 8


def test_end_tokens_come_along_and_sampling_options_do_not(tmp_path: Path) -> None:
    folder = qwen2_folder(tmp_path)
    edit(folder / "generation_config.json", eos_token_id=[2, 0], pad_token_id=0, do_sample=True, repetition_penalty=1.1)
    generation = MMARForConditionalGeneration.from_qwen2(folder, **small()).generation_config
    assert (generation.eos_token_id, generation.pad_token_id) == ([2, 0], 0)
    assert not generation.do_sample
    assert generation.repetition_penalty in (None, 1.0)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda f: edit(f / "config.json", model_type="qwen3"), ValueError, "must be qwen2, got 'qwen3'"),
        (lambda f: edit(f / "config.json", quantization_config={"bits": 4}), ValueError, "must be that of unquantized weights"),
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "must hold config.json"),
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "model.safetensors"),
        (lambda f: edit(f / "config.json", tie_word_embeddings=False), ValueError, "must hold lm_head.weight"),
        (
            lambda f: rewrite(f, lambda t: t.update({"lm_head.weight": torch.zeros(300, 32)})),
            ValueError,
            "must be the embedding",
        ),
        (lambda f: rewrite(f, lambda t: t.pop("model.norm.weight")), ValueError, "1 missing"),
        (lambda f: rewrite(f, lambda t: t.update({"model.norm.bias": torch.zeros(32)})), ValueError, "1 surplus"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    spoil: Callable[[Path], object], error: type[Exception], words: str, tmp_path: Path
) -> None:
    spoil(qwen2_folder(tmp_path))
    with pytest.raises(error, match=words):
        MMARForConditionalGeneration.from_qwen2(tmp_path, **small())


# -- gradient checkpointing ------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Calls:
    """How often layers run."""

    decoder: int = 0
    vit: int = 0


def gradients(model: MMARForConditionalGeneration, autocast: bool) -> tuple[dict[str, Tensor], Calls]:
    calls = Calls()

    def count(kind: str) -> Callable[..., None]:
        return lambda *_: setattr(calls, kind, getattr(calls, kind) + 1)

    vit = model.image_model.input.embedding_vit.blocks[0]
    hooks = [
        model.language_model.layers[0].self_attn.register_forward_hook(count("decoder")),  # recomputing stops before the end
        vit.attention.register_forward_hook(count("vit")),
    ]
    model.train()
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(
            IDS,
            image_tokens=some_tokens(model, 1),
            known=some_known(1) if model.config.is_masked else None,
            image_targets=torch.ones(1, dtype=torch.bool),
            labels=IDS.masked_fill(IDS < 20, -100),
            generator=torch.Generator().manual_seed(0),
        ).loss
    loss.backward()
    for hook in hooks:
        hook.remove()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, calls


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["mmar", "transfusion-vit"])
def test_checkpointing_gives_the_same_gradients(name: str, autocast: bool) -> None:
    model = tiny_model(name)
    plain, once = gradients(model, autocast)
    model.activation_checkpointing_enable()
    recomputed, twice = gradients(model, autocast)
    assert (once.decoder, once.vit) == (1, 1)
    assert (twice.decoder, twice.vit) == (2, 2)  # it was on
    assert plain.keys() == recomputed.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for key, gradient in plain.items():
        assert torch.equal(gradient, recomputed[key]), key  # the same operations on the same numbers
    model.activation_checkpointing_disable()
    assert gradients(model, autocast)[1] == once
