"""Training starts from a Qwen2 folder as it is published: with a tokenizer that knows no images."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from mmar import cli, train
from mmar.pipeline import MMARPipeline
from mmar.processing.text_tokenizer import IMAGE_TOKENS

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def published_qwen2(folder: Path) -> Path:
    """Two layers, and byte-level BPE with Qwen2's own special tokens alone."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    words.train_from_iterator(["a seven", "which digit is it?"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=SPECIAL[0], eos_token=SPECIAL[2], additional_special_tokens=SPECIAL[1:]
    )
    tokenizer.save_pretrained(folder)
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**sizes, **heads)).save_pretrained(folder)
    return folder


def test_a_published_qwen2_is_trained_around_and_left_as_it_was(tmp_path: Path) -> None:
    folder = published_qwen2(tmp_path / "qwen2")
    assert not set(IMAGE_TOKENS.values()) & set(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    config = tmp_path / "run.yaml"
    config.write_text(
        f"output: {tmp_path / 'run'}\nmodel: {{qwen2: {folder}, size: mmar-digits}}\ndata: [{{kind: digits}}]\n"
        "steps: 2\nbatch_size: 2\nsaving: {samples_every: 0, log_every: 1}\n"
    )
    assert train.main([str(config)]) == 0
    pipeline = MMARPipeline.from_pretrained(tmp_path / "run" / "final")
    assert set(IMAGE_TOKENS.values()) <= set(pipeline.processor.tokenizer.get_vocab())
    before = Qwen2ForCausalLM.from_pretrained(folder).state_dict()
    after = pipeline.model.state_dict()
    table = after["language_model.embed_tokens.weight"]
    assert torch.equal(table, before["model.embed_tokens.weight"].to(table.dtype))
    words = ["a seven", "--model", str(tmp_path / "run" / "final"), "--seed", "0", "--out", str(tmp_path / "seven.png")]
    assert cli.main(["generate", *words, "--compute-dtype", "float32"]) == 0  # of a run in bf16
    assert (tmp_path / "seven.png").exists()
