"""Mixture, tasks, average, optimizer state, configuration, checkpoint folders: each by what it promises."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

from mmar.data.example import DESCRIBE, Example
from mmar.data.order import StreamSettings
from mmar.processing.chat import GenerationSample, UnderstandingSample
from mmar.processing.text_tokenizer import train_tokenizer
from mmar.text_loss import IGNORED
from mmar.training import checkpoint_folder
from mmar.training.attention import attention_kernel
from mmar.training.checkpoint_folder import BrokenCheckpoint, list_checkpoints, load_checkpoint, load_latest, save_checkpoint
from mmar.training.config import DataSource, TrainingConfig, load_config, save_config
from mmar.training.ema import ExponentialMovingAverage
from mmar.training.mixture import GENERATION, TEXT, UNCONDITIONAL, UNDERSTANDING, Mixture
from mmar.training.optimizer import learning_rate, load_optimizer_tensors, make_optimizer, optimizer_tensors
from mmar.training.sources import make_stream
from mmar.training.tasks import Place, TaskPlan, make_row, places
from mmar.training.text_labels import answers, text_labels

# -- mixture --------------------------------------------------------------------------------------------------------------


@given(start=st.integers(0, 500), width=st.integers(1, 200))
def test_every_window_has_the_shares_of_the_paper(start: int, width: int) -> None:
    mixture = Mixture.paper()
    tasks = [next(mixture) for _ in range(start + width)][start:]
    counts = Counter(tasks)
    for task, share in ((UNDERSTANDING, 0.5), (GENERATION, 0.45), (UNCONDITIONAL, 0.05)):
        assert abs(counts[task] - share * width) <= 1 + 1e-9


@given(weights=st.dictionaries(st.sampled_from("abcd"), st.floats(0, 5), min_size=1), done=st.integers(0, 300))
def test_a_mixture_is_taken_up_where_it_was(weights: dict[str, float], done: int) -> None:
    if not sum(weights.values()) > 0:
        return
    mixture = Mixture(weights)
    for _ in range(done):
        next(mixture)
    again = Mixture(weights, done)
    assert [next(mixture) for _ in range(50)] == [next(again) for _ in range(50)]


def test_a_long_run_is_taken_up_at_once() -> None:
    far = Mixture({"a": 10.0, "b": 9.0, "c": 1.0}, 20 * 10**12 + 7)
    near = Mixture({"a": 10.0, "b": 9.0, "c": 1.0}, 7)
    assert [next(far) for _ in range(40)] == [next(near) for _ in range(40)]


@pytest.mark.parametrize("weights", [{}, {"a": -1.0}, {"a": float("nan")}, {"a": 0.0}])
def test_bad_weights_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        Mixture(weights)


# -- tasks -----------------------------------------------------------------------------------------------------------------


def test_steps_have_exact_shares_and_ranks_see_all_tasks() -> None:
    plan = TaskPlan(Mixture.paper(), 40, seed=0)
    even, odd = Counter(), Counter()
    for step in range(20):
        tasks = plan.step(step)
        assert Counter(tasks) == {UNDERSTANDING: 20, GENERATION: 18, UNCONDITIONAL: 2}
        even.update(tasks[::2])
        odd.update(tasks[1::2])
    assert min(even[GENERATION], odd[GENERATION]) > 120  # 180 each but for the shuffle; 0 without it


def test_a_plan_can_start_anywhere() -> None:
    plan, late = TaskPlan(Mixture.paper(), 7, seed=3), TaskPlan(Mixture.paper(), 7, seed=3)
    steps = [plan.step(i) for i in range(9)]
    assert late.step(8) == steps[8]


def test_ranks_share_the_samples_of_a_step() -> None:
    alone = places(5, 3, rank=0, world_size=1, count=8)
    pairs = [places(5, 3, rank=rank, world_size=2, count=4) for rank in range(2)]
    assert sorted(p.index for rank in pairs for p in rank) == [p.index for p in alone]
    mine = next(p for p in pairs[1] if p.index == 3)
    assert torch.equal(torch.rand(4, generator=mine.generator()), torch.rand(4, generator=alone[3].generator()))
    assert mine.random().random() == alone[3].random().random() != alone[2].random().random()


def test_text_rows_describe_what_they_ask_about() -> None:
    """Nineteen in twenty; else there would be nothing to find an answer in."""
    example = Example("x", Image.new("L", (8, 8)), "the digit two", (("odd or even?", "even"),), ("a handwritten 2",))
    first = [make_row(example, TEXT, Random(i), questions=1)[0]["content"] for i in range(400)]
    asked = {"odd or even?", *DESCRIBE}
    bare = sum(text in asked for text in first)
    assert 5 <= bare <= 40  # 20 expected, standard deviation 4.4
    assert {text.split(". ")[0] for text in first} - asked == {"the digit two", "a handwritten 2"}


def test_answers_are_what_a_text_row_learns() -> None:
    texts = ["user", "assistant", "what colour is it?", "dark red", "a ring"]
    tokenizer = train_tokenizer(texts, 300)
    row = (
        "<|im_start|>user\na ring. what colour is it?<|im_end|>\n<|im_start|>assistant\ndark red<|im_end|>\n"
        "<|im_start|>user\nassistant\n<|im_end|>\n<|im_start|>assistant\na ring<|im_end|>\n"
    )
    ids = tokenizer(row, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[answers(ids, tokenizer)]) == "dark red<|im_end|>a ring<|im_end|>"
    many, mask = ids.expand(400, -1), torch.ones_like(ids).expand(400, -1).clone()
    mask[:, -1] = 0
    labels = text_labels(many, mask, tokenizer, places(0, 0, rank=0, world_size=1, count=400))
    assert (labels[:, -1] == IGNORED).all()
    whole = (labels[:, :-1] != IGNORED).all(1)
    assert 5 <= int(whole.sum()) <= 40  # 20 expected, standard deviation 4.4
    assert torch.equal(labels[~whole][0] != IGNORED, answers(ids, tokenizer)[0])


def test_attention_in_float32_is_nearer_to_the_exact_one() -> None:
    """Its result is rounded once; the gradient too goes through float32."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 24, 8, dtype=torch.float64) for _ in range(3))
    mask = torch.ones(24, 24, dtype=torch.bool).tril()
    exact = scaled_dot_product_attention(q.bfloat16().double(), k.bfloat16().double(), v.bfloat16().double(), attn_mask=mask)

    def error() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            found = scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), value=v.bfloat16(), attn_mask=mask)
        assert found.dtype is torch.bfloat16
        return float((found.double() - exact).square().mean().sqrt())

    plain = error()
    with attention_kernel(torch.device("cpu"), torch.bfloat16):
        ours = error()
        assert functional.softmax(torch.zeros(2), 0).tolist() == [0.5, 0.5]
    assert ours <= plain
    assert ours <= 2.0**-9 * float(exact.abs().max())  # half a unit in the last place of the largest
    assert isinstance(attention_kernel(torch.device("cpu"), torch.float32), contextlib.nullcontext)


def test_rows_of_each_task() -> None:
    image = Image.new("L", (8, 8))
    example = Example("k", image, "a seven", (("which?", "seven"), ("even?", "no")), ("the digit seven",))
    bare = Example("k", image)
    place = Place(0, 0, 0)
    drawn = make_row(example, GENERATION, place.random(), questions=2)
    assert isinstance(drawn, GenerationSample)
    assert drawn.caption in ("a seven", "the digit seven")
    nothing = make_row(example, UNCONDITIONAL, place.random(), questions=2)
    assert isinstance(nothing, GenerationSample)
    assert nothing.caption is None
    reads = [make_row(example, UNDERSTANDING, Random(i), questions=1) for i in range(100)]
    assert all(isinstance(read, UnderstandingSample) and len(read.turns) == 1 for read in reads)
    described = sum(read.turns[0][0] in DESCRIBE for read in reads)
    assert 30 <= described <= 70  # 50 expected, standard deviation 5
    assert {read.turns[0] for read in reads} >= set(example.turns)
    for share in (0.0, 1.0):
        some = [make_row(example, UNDERSTANDING, Random(i), questions=1, describing=share) for i in range(20)]
        assert {row.turns[0][0] in DESCRIBE for row in some} == {share == 1.0}
    text = make_row(example, TEXT, Random(0), questions=2)
    assert [message["role"] for message in text] in (["user", "assistant"], ["user", "assistant"] * 2)
    with pytest.raises(ValueError, match="caption"):
        make_row(bare, UNDERSTANDING, place.random(), questions=1)
    with pytest.raises(ValueError, match="task"):
        make_row(example, "painting", place.random(), questions=1)


def test_a_conversation_that_fits_keeps_its_order() -> None:
    turns = (("which animal?", "a dog"), ("which colour?", "brown"), ("and its collar?", "red"))
    image = Image.new("L", (8, 8))
    kept = [make_row(Example("k", image, None, turns), UNDERSTANDING, Random(i), questions=3).turns for i in range(20)]
    assert all(row == list(turns) for row in kept)
    independent = Example("k", image, None, turns, meta={"families": ["a", "b", "c"]})
    orders = {tuple(make_row(independent, UNDERSTANDING, Random(i), questions=3).turns) for i in range(20)}
    assert len(orders) > 1


# -- average ---------------------------------------------------------------------------------------------------------------


def test_the_average_warms_up_and_follows() -> None:
    layer = nn.Linear(1, 1, bias=False)
    ema = ExponentialMovingAverage(layer, 0.9)
    shadow = float(layer.weight.detach())
    for n in range(40):
        with torch.no_grad():
            layer.weight.fill_(float(n))
        decay = min(0.9, (1 + n) / (10 + n))
        shadow = decay * shadow + (1 - decay) * n
        ema.update(layer)
    assert float(ema.shadow["weight"]) == pytest.approx(shadow, rel=1e-5)


def test_a_bf16_shadow_would_lose_every_update() -> None:
    """1 - 0.9999 of a difference of 1 is 1e-4, below half the last digit of 1 in bf16 (2^-9)."""
    layer = nn.Linear(1, 1, bias=False).bfloat16()
    with torch.no_grad():
        layer.weight.fill_(1.0)
    ema = ExponentialMovingAverage(layer, 0.9999)
    ema.updates = 10**6
    with torch.no_grad():
        layer.weight.fill_(2.0)
    ema.update(layer)
    assert float(ema.shadow["weight"]) == pytest.approx(1.0001, abs=1e-6)
    assert float(torch.lerp(torch.ones(1).bfloat16(), torch.full((1,), 2.0).bfloat16(), 1e-4)) == 1.0  # the control


def test_the_average_is_applied_and_taken_back() -> None:
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    ema = ExponentialMovingAverage(layer, 0.9)
    ema.shadow["weight"].fill_(7.0)
    own = layer.weight.detach().clone()
    with ema.applied(layer):
        assert (layer.weight == 7).all()
    assert torch.equal(layer.weight, own)
    assert set(ema.shadow) == {"weight"}
    with pytest.raises(ValueError, match="bias"):
        ema.load({"weight": own, "bias": own}, 3)


# -- optimizer -------------------------------------------------------------------------------------------------------------


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def _train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        net(torch.full((2, 3), float(step))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_optimizer_state_by_name_goes_on_to_the_bit() -> None:
    config = TrainingConfig().optimizer
    net = _net()
    optimizer = make_optimizer(net, config)
    _train(net, optimizer, 3)
    copy = _net()
    copy.load_state_dict(net.state_dict())
    again = make_optimizer(copy, config)
    load_optimizer_tensors(again, copy, optimizer_tensors(optimizer, net))
    _train(net, optimizer, 3)
    _train(copy, again, 3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), copy.parameters(), strict=True))
    with pytest.raises(ValueError, match="other"):
        load_optimizer_tensors(again, copy, {"other/exp_avg": torch.ones(1)})


def test_only_matrices_decay() -> None:
    decayed, plain = make_optimizer(_net(), TrainingConfig().optimizer).param_groups
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in plain["params"]} == {1}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.02, 0.0)


def test_the_rate_rises_stays_and_falls() -> None:
    config = TrainingConfig().optimizer
    config.lr, config.warmup, config.decay = 1.0, 4, 5
    rates = [learning_rate(config, step, 20) for step in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[14:] == pytest.approx([1.0, 1.0, 0.8, 0.6, 0.4, 0.2])


# -- configuration -----------------------------------------------------------------------------------------------------------


def _yaml(tmp_path: Path, text: str = "") -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("output: out\nmodel: {preset: mmar-tiny}\ndata: [{kind: digits}]\n" + text)
    return path


def test_configurations_layer_and_come_back(tmp_path: Path) -> None:
    base = _yaml(tmp_path, "steps: 7\noptimizer: {lr: 0.5}\n")
    above = tmp_path / "above.yaml"
    above.write_text("defaults: run.yaml\noptimizer: {warmup: 3}\n")
    config = load_config(above, ["steps=9"])
    assert (config.steps, config.optimizer.lr, config.optimizer.warmup) == (9, 0.5, 3)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    assert load_config(base).steps == 7


def test_the_tasks_of_a_file_replace_those_below_and_words_change_single_ones(tmp_path: Path) -> None:
    _yaml(tmp_path, "tasks: {generation: 3}\n")
    above = tmp_path / "above.yaml"
    above.write_text("defaults: run.yaml\nstage: instruction\ntasks: {understanding: 1}\n")
    assert load_config(above).tasks == {"understanding": 1.0, "generation": 0.0, "unconditional": 0.0}
    assert load_config(tmp_path / "run.yaml").tasks == {"understanding": 0.0, "generation": 3.0, "unconditional": 0.0}
    assert load_config(tmp_path / "run.yaml", ["tasks.understanding=2"]).tasks["generation"] == 3.0
    save_config(load_config(above), tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == load_config(above)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lr=1", "lr"),
        ("optimizer.lr=fast", "fast"),
        ("optimizer.lr=0", "optimizer.lr"),
        ("optimizer.decay=-5", "optimizer.decay must not be negative"),
        ("optimizer.weight_decay=.nan", "optimizer.weight_decay must not be negative"),
        ("saving.sample_steps=[0,0]", "saving.sample_steps must be at least 1"),
        ("steps=0", "steps"),
        ("precision=fp16", "precision"),
        ("stage=two", "stage"),
        ("tasks.painting=1", "painting"),
        ("masking.low=2", "low"),
        ("model.qwen2=x", "exactly one"),
        ("data=[]", "data"),
        ("ema=1", "ema"),
        ("describing=1.5", "describing"),
        ("saving.keep=0", "keep"),
        ("threads=0", "threads must be at least 1"),
        ("workers=-1", "workers must be at least 0"),
        ("model.size=mmar-0.5b", "model.size must be null without model.qwen2"),
        ("model={preset: null, checkpoint: x, language_model: y}", "model.language_model must be null without model.preset"),
        ("model={preset: null, qwen2: x, language_model: y}", "model.language_model must be null without model.preset"),
        ("stage=instruction", "tasks must be understanding alone in stage instruction, got .*generation"),
    ],
)
def test_bad_configurations_are_refused_by_key(word: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        load_config(_yaml(tmp_path), [word])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            DataSource("digits", options={"question": 2}),
            "data.options of digits must be among seed, questions, .* got question",
        ),
        (DataSource("scenes", options={"split": "test"}), "data.options of scenes must be among length, .* got split"),
        (
            DataSource("folder", "here", options={"limit": {}}),
            "data.options of folder must be among limits, max_share, got limit",
        ),
        (DataSource("folder", "here", options={"limits": {"pixels": 2}}), "data.options.limits must be among .* got pixels"),
        (
            DataSource("llava", "here.json", options={"strict": True}),
            "data.options of llava must be among folder, .* got strict",
        ),
        (
            DataSource("shards", "here", options={"settings": 1}),
            "data.options of shards must be among mixed, limits, got settings",
        ),
    ],
)
def test_options_that_a_source_does_not_have_are_named(source: DataSource, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_stream([source], StreamSettings())


def test_a_missing_file_or_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        load_config(tmp_path / "none.yaml")
    path = tmp_path / "bare.yaml"
    path.write_text("model: {preset: mmar-tiny}\ndata: [{kind: digits}]\n")
    with pytest.raises(ValueError, match="output"):
        load_config(path)


# -- checkpoints -------------------------------------------------------------------------------------------------------------

GROUPS = {"model": {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}, "ema": {"a": torch.zeros(3)}}


def test_a_checkpoint_comes_back_and_old_ones_go(tmp_path: Path) -> None:
    for step in (5, 10, 100, 15):
        save_checkpoint(tmp_path, step, GROUPS, {"x": [1, "two"]}, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-000000015", "checkpoint-000000100"]
    back = load_checkpoint(list_checkpoints(tmp_path)[0])
    assert (back.step, back.state) == (15, {"x": [1, "two"]})
    for group, tensors in GROUPS.items():
        assert all(
            torch.equal(back.tensors[group][k], v) and back.tensors[group][k].dtype == v.dtype for k, v in tensors.items()
        )


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage: str, tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, GROUPS, {}, keep=3)
    newest = list_checkpoints(tmp_path)[-1]
    victim = newest / ("manifest.json" if damage == "manifest" else "model.safetensors")
    data = bytearray(victim.read_bytes())
    if damage == "remove":
        victim.unlink()
    elif damage == "flip":
        data[-1] ^= 1
        victim.write_bytes(bytes(data))
    else:
        victim.write_bytes(bytes(data[: 0 if damage == "empty" else len(data) // 2]))
    with pytest.raises(BrokenCheckpoint):
        load_checkpoint(newest)
    found, complaints = load_latest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert len(complaints) == 1
    assert "000000002" in complaints[0]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, GROUPS, {}, keep=3)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_folder, "save_file", full)
    with pytest.raises(OSError, match=r"No space left.*--resume"):
        save_checkpoint(tmp_path, 2, GROUPS, {}, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-000000001"]
    assert load_latest(tmp_path)[0] is not None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_device_that_is_full_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checkpoint_folder.save_file

    def onto_full(tensors: dict, path: Path) -> None:
        real(tensors, path)
        path.unlink()
        path.symlink_to("/dev/full")
        path.write_bytes(b"x" * 4096)

    monkeypatch.setattr(checkpoint_folder, "save_file", onto_full)
    with pytest.raises(OSError, match="untouched"):
        save_checkpoint(tmp_path, 1, GROUPS, {}, keep=1)
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_kill_are_not_checkpoints(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, GROUPS, {}, keep=3)
    half = tmp_path / "unfinished-000000002"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    found, complaints = load_latest(tmp_path)
    assert found is not None
    assert (found.step, complaints) == (1, [])
    save_checkpoint(tmp_path, 2, GROUPS, {}, keep=3)
    assert not half.exists()


def test_states_are_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(tmp_path, 1, GROUPS, {"x": float("nan")}, keep=1)
    assert load_latest(tmp_path)[0] is None
    path = save_checkpoint(tmp_path, 2, GROUPS, {"x": 0.1}, keep=1)
    assert json.loads((path / "state.json").read_text()) == {"step": 2, "x": 0.1}
