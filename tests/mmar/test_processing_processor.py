"""The processor: prompts, labels token by token, images in order, text that stays text, save and load."""

from __future__ import annotations

import copy
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, BatchFeature

from mmar.config import MMARConfig
from mmar.layout import ImageIds, sequence_layout
from mmar.processing import (
    ChatFormat,
    GenerationSample,
    MMARImageProcessor,
    MMARProcessor,
    TruncatedCaption,
    UnderstandingSample,
    add_image_tokens,
    train_tokenizer,
)
from mmar.processing.chat import CONTROL_TOKENS
from mmar.processing.text_tokenizer import SPECIAL_TOKENS

TEXTS = ["a red circle above a blue square", "What colour is the circle?", "Is there a green square? yes"] * 4
TINY = MMARConfig.preset("mmar-tiny")
N = TINY.image_config.count
IDS = ImageIds(TINY.image_token_id, TINY.boi_token_id, TINY.eoi_token_id, N)
PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
BLOCK = "<|vision_start|>" + "<|image_pad|>" * N + "<|vision_end|>"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
PROCESSOR = MMARProcessor.from_config(TINY, train_tokenizer(TEXTS))
BARE = MMARProcessor.from_config(TINY, train_tokenizer(TEXTS), chat=ChatFormat(system_prompt=None))

UNICODE = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)
PLAIN = UNICODE.filter(lambda text: not any(token in text for token in SPECIAL_TOKENS))
"""Hypothesis knows the strings of the code under test, and a control token counts in Hugging Face's way."""
TYPED = st.one_of(UNICODE, st.lists(st.sampled_from([*CONTROL_TOKENS, PLACEHOLDER, "\n", " ", "x"]), max_size=4).map("".join))


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def rows(batch: BatchFeature) -> list[str]:
    """Each row without padding, control tokens as they are."""
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [PROCESSOR.decode(ids[mask.bool()], skip_special_tokens=False) for ids, mask in pairs]


def learned(batch: BatchFeature) -> list[str]:
    return [PROCESSOR.decode(row[row != -100], skip_special_tokens=False) for row in batch["labels"]]


def seeds_of(pixels: Tensor) -> list[int]:
    """Which of the pictures stand where."""
    known = [PROCESSOR.image_processor(picture(seed))["pixel_values"][0] for seed in range(6)]
    return [next(i for i, image in enumerate(known) if torch.equal(image, each)) for each in pixels]


# -- prompts ----------------------------------------------------------------------------------------------------------


def test_a_generation_prompt_ends_with_the_image() -> None:
    batch = PROCESSOR.for_generation(["a red circle", None, ""])
    wanted = [
        f"{SYSTEM}<|im_start|>user\nGenerate an image: {c}<|im_end|>\n<|im_start|>assistant\n{BLOCK}"
        for c in ("a red circle", "")
    ]
    assert rows(batch) == [wanted[0], wanted[1], wanted[1]]
    assert torch.equal(batch["input_ids"][1], batch["input_ids"][2])
    assert (batch["attention_mask"].sum(-1) < batch["input_ids"].shape[1]).tolist() == [False, True, True]
    assert (batch["input_ids"][:, -1] == TINY.eoi_token_id).all()  # padded on the left: the images stand in the same columns
    assert (batch["input_ids"][batch["attention_mask"] == 0] == TINY.text_config.pad_token_id).all()
    assert sequence_layout(batch["input_ids"], batch["attention_mask"], ids=IDS).is_image[:, -N - 1 : -1].all()


def test_an_understanding_prompt_ends_where_the_answer_begins() -> None:
    batch = BARE.for_understanding([picture(0), [picture(1), picture(2)]], ["What?", "What colour is the circle?"])
    assert rows(batch) == [
        f"<|im_start|>user\n{BLOCK}What?<|im_end|>\n<|im_start|>assistant\n",
        f"<|im_start|>user\n{BLOCK}{BLOCK}What colour is the circle?<|im_end|>\n<|im_start|>assistant\n",
    ]
    assert batch["attention_mask"][:, -1].all()
    assert not batch["attention_mask"][0, 0]
    assert seeds_of(batch["pixel_values"]) == [0, 1, 2]


def test_images_may_travel_outside() -> None:
    assert set(BARE.for_understanding([None], ["What?"])) == {"input_ids", "attention_mask"}
    with pytest.raises(ValueError, match="images must be given for all placeholders or for none, got 1 of 2"):
        BARE.for_understanding([None, picture()], ["What?", "What?"])


# -- training ---------------------------------------------------------------------------------------------------------


def samples() -> list:
    return [
        GenerationSample("a red circle", picture(0)),
        UnderstandingSample([picture(1), picture(2)], [("What colour?", "red"), ("A square?", "yes, green")]),
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image", "image": picture(3)}]},
            {"role": "assistant", "content": "A circle"},
            {"role": "user", "content": "Draw one"},
            {"role": "assistant", "content": [{"type": "image", "image": picture(4)}]},
        ],
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_everything(side: str) -> None:
    batch = BARE.training_batch(samples(), padding_side=side)
    assert rows(batch) == [
        f"<|im_start|>user\nGenerate an image: a red circle<|im_end|>\n<|im_start|>assistant\n{BLOCK}<|im_end|>\n",
        f"<|im_start|>user\n{BLOCK}{BLOCK}What colour?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
        "<|im_start|>user\nA square?<|im_end|>\n<|im_start|>assistant\nyes, green<|im_end|>\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        f"<|im_start|>user\nLook:{BLOCK}<|im_end|>\n<|im_start|>assistant\nA circle<|im_end|>\n"
        f"<|im_start|>user\nDraw one<|im_end|>\n<|im_start|>assistant\n{BLOCK}<|im_end|>\n",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n",
    ]
    assert learned(batch) == ["", "red<|im_end|>yes, green<|im_end|>", "A circle<|im_end|>", ""]
    assert batch["image_targets"].tolist() == [True, False, False, False, True]
    assert batch["image_targets"].dtype is torch.bool
    assert seeds_of(batch["pixel_values"]) == [0, 1, 2, 3, 4]
    column = 0 if side == "left" else -1
    assert batch["attention_mask"][:, column].tolist() == [0, 0, 1, 0]
    sequence_layout(batch["input_ids"], batch["attention_mask"], ids=IDS)  # whole blocks, padding at the ends


def test_a_label_is_its_own_token_and_stands_only_on_answers() -> None:
    batch = BARE.training_batch(samples())
    labels, ids = batch["labels"], batch["input_ids"]
    assert labels.shape == ids.shape
    assert torch.equal(labels[labels != -100], ids[labels != -100])
    assert (labels[batch["attention_mask"] == 0] == -100).all()
    # Token by token: from behind "assistant\n" to <|im_end|>, both times, and nothing else.
    end, header = TINY.text_config.eos_token_id, BARE.tokenizer.encode("assistant\n")
    row = ids[1].tolist()
    wanted = [-100] * len(row)
    starts = [i + len(header) for i in range(len(row)) if row[i : i + len(header)] == header]
    for start in starts:
        stop = row.index(end, start) + 1
        wanted[start:stop] = row[start:stop]
    assert len(starts) == 2
    assert labels[1].tolist() == wanted


def test_a_batch_without_images_has_no_pixels() -> None:
    batch = BARE.training_batch([samples()[-1]])
    assert set(batch) == {"input_ids", "attention_mask", "labels", "image_targets"}
    assert batch["image_targets"].shape == (0,)
    outside = BARE.training_batch([GenerationSample("a circle"), UnderstandingSample([None], [("What?", "red")])])
    assert outside["image_targets"].tolist() == [True, False]
    assert "pixel_values" not in outside


@given(st.lists(st.tuples(TYPED, TYPED), min_size=1, max_size=3), TYPED.filter(bool))
def test_training_rows_start_with_the_prompts(turns: list[tuple[str, str]], caption: str) -> None:
    """What the model has learned to continue is to the token what it is asked to continue, whatever was typed."""
    (question, answer), *_ = turns
    batch = BARE.training_batch([UnderstandingSample([None], turns), GenerationSample(caption)])
    prompts = [BARE.for_understanding([None], [question]), BARE.for_generation([caption])]
    for row, prompt in zip(batch["input_ids"], prompts, strict=True):
        assert torch.equal(row[: prompt["input_ids"].shape[1]], prompt["input_ids"][0])
    first = prompts[0]["input_ids"].shape[1]
    ids = BARE.tokenizer.encode(answer, split_special_tokens=True)
    assert batch["labels"][0, :first].eq(-100).all()
    assert batch["labels"][0, first : first + len(ids) + 1].tolist() == [*ids, TINY.text_config.eos_token_id]


# -- text stays text --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(TYPED, TYPED), min_size=1, max_size=3), TYPED)
def test_control_tokens_that_somebody_typed_are_characters(turns: list[tuple[str, str]], caption: str) -> None:
    batch = BARE.training_batch([UnderstandingSample([None], turns), GenerationSample(caption)])
    ids = batch["input_ids"]
    assert (ids == TINY.image_token_id).sum(-1).tolist() == [N, N]
    assert ((ids == TINY.boi_token_id).sum(-1) == 1).all()
    assert ((ids == TINY.eoi_token_id).sum(-1) == 1).all()
    ends = (ids == TINY.text_config.eos_token_id).sum(-1).tolist()
    assert ends == [2 * len(turns), 2]
    said = "".join(unicodedata.normalize("NFC", answer) + "<|im_end|>" for _, answer in turns)
    assert learned(batch)[0] == said


def test_a_rendered_text_with_a_stray_marker_is_refused() -> None:
    """The way of Hugging Face, where control tokens count: the same caption would be an attack there."""
    typed = f"a circle {PLACEHOLDER}"
    message = [{"role": "user", "content": typed}]
    rendered = BARE.apply_chat_template(message)
    with pytest.raises(ValueError, match="images must be as many as placeholders, 1 in 1 texts, got 0"):
        BARE(text=rendered)
    safe = BARE.apply_chat_template(message, tokenize=True, return_dict=True, sanitize_control_tokens=True)
    assert torch.equal(safe["input_ids"], BARE.training_batch([message])["input_ids"])
    for stray in ("<|image_pad|>", "<|vision_start|>", "<|vision_end|><|image_pad|><|vision_start|>"):
        with pytest.raises(ValueError, match=r"got a stray .* in text 1: image tokens where none are allowed"):
            BARE(text=["fine", f"a {stray}"])


# -- Hugging Face's way -----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=3))
def test_apply_chat_template_gives_the_same_tokens(turns: list[tuple[str, str]]) -> None:
    # But for a line break at the start of an answer, which tokens of a whole text join to the one before it.
    turns = [(question, answer.lstrip()) for question, answer in turns]
    messages = UnderstandingSample([picture()], turns).messages(ChatFormat())
    ours = PROCESSOR.training_batch([messages])
    theirs = PROCESSOR.apply_chat_template([dict(m) for m in messages], tokenize=True, return_dict=True)
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(ours[name], theirs[name]), name


def test_a_call_expands_every_placeholder() -> None:
    texts = [f"{PLACEHOLDER}one {PLACEHOLDER}", "none", f"two{PLACEHOLDER}"]
    flat = [picture(0), picture(1), picture(2)]
    batch = PROCESSOR(text=texts, images=flat)
    assert rows(batch) == [text.replace(PLACEHOLDER, BLOCK) for text in texts]
    assert seeds_of(batch["pixel_values"]) == [0, 1, 2]
    grouped = PROCESSOR(text=texts, images=[flat[:2], [], flat[2:]])
    assert all(torch.equal(batch[name], grouped[name]) for name in batch)
    left = PROCESSOR(text=texts, images=flat, padding_side="left")
    assert rows(left) == rows(batch)
    assert left["attention_mask"][:, -1].all()
    arrays = torch.stack([torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()) for image in flat])
    assert torch.equal(PROCESSOR(text=texts, images=arrays)["pixel_values"], batch["pixel_values"])
    plain = PROCESSOR(text="none", return_tensors=None, padding=False)
    assert plain["input_ids"] == [PROCESSOR.tokenizer.encode("none")]
    assert set(PROCESSOR(images=flat)) == {"pixel_values"}
    padded = PROCESSOR(text="none", padding="max_length", max_length=30)
    assert padded["input_ids"].shape == (1, 30)


def test_paths_and_grey_arrays_are_images_of_a_call(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "image.png")
    grey = np.asarray(picture(2).convert("L"))
    batch = PROCESSOR(text=f"{PLACEHOLDER}{PLACEHOLDER}", images=[str(tmp_path / "image.png"), grey])
    assert seeds_of(batch["pixel_values"][:1]) == [1]
    message = {"role": "user", "content": [{"type": "image", "path": str(tmp_path / "image.png")}]}
    assert seeds_of(BARE.training_batch([[message]])["pixel_values"]) == [1]
    assert seeds_of(BARE.apply_chat_template([message], tokenize=True, return_dict=True)["pixel_values"]) == [1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({}, ValueError, "text or images must be given, got neither"),
        ({"text": []}, TypeError, "text must be a string or a list of at least one string"),
        ({"text": [3]}, TypeError, r"got \[3\]"),
        ({"text": PLACEHOLDER}, ValueError, "images must be as many as placeholders, 1 in 1 texts, got 0"),
        ({"text": "x", "images": picture()}, ValueError, "0 in 1 texts, got 1"),
        ({"text": [PLACEHOLDER, "x"], "images": [[], [picture()]]}, ValueError, r"placeholders \[1, 0\], got \[0, 1\]"),
        ({"text": [PLACEHOLDER, "x"], "images": [[picture()]]}, ValueError, r"placeholders \[1, 0\], got \[1\]"),
        ({"text": PLACEHOLDER, "images": [[picture()], picture()]}, ValueError, "all grouped by text in lists, or all single"),
        ({"text": "x", "truncation": True}, ValueError, "truncation must be off"),
        ({"text": "x", "text_kwargs": {"truncation": True}}, ValueError, "truncation"),
        ({"text": "x" * 50, "max_length": 20}, ValueError, "text 0 must have at most max_length = 20 tokens, got 50; shorten"),
        ({"text": "x", "paddding": True}, TypeError, "options must be among .* got paddding"),
        ({"text": "x", "videos": ["a"]}, ValueError, "videos and audio must be None"),
    ],
)
def test_calls_are_checked(call: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PROCESSOR(**call)


# -- length -----------------------------------------------------------------------------------------------------------


def test_a_row_that_is_too_long_is_an_error_with_its_length() -> None:
    length = BARE.for_generation(["a red circle"])["input_ids"].shape[1]
    BARE.for_generation(["a red circle"], max_length=length)
    with pytest.raises(
        ValueError, match=rf"captions\[1\]: the row must have at most max_length = {length} tokens, got \d+; shorten"
    ):
        BARE.for_generation(["a red circle", "a red circle above a blue square"], max_length=length)
    with pytest.raises(ValueError, match=r"samples\[0\]: the row must have at most max_length = 40 tokens"):
        BARE.training_batch([UnderstandingSample([None, None], [("x", "y")])], max_length=40, truncation="caption")
    with pytest.raises(ValueError, match=r"questions\[0\]: the row must have"):
        BARE.for_understanding([None], ["x" * 99], max_length=40)


def test_a_shortened_caption_is_announced() -> None:
    caption = "a red circle above a blue square"
    full = BARE.for_generation([caption])["input_ids"].shape[1]
    with pytest.warns(TruncatedCaption, match=rf"a row of {full} tokens must fit .* = {full - 2}: caption cut to") as record:
        batch = BARE.for_generation([caption, "a"], max_length=full - 2, truncation="caption")
    assert record[0].filename == __file__
    assert len(record) == 1
    shorter = rows(batch)[0].split("image: ")[1].split("<|im_end|>")[0]
    assert caption.startswith(shorter)
    assert 0 < len(shorter) < len(caption)
    assert batch["input_ids"].shape[1] == full - 2
    with pytest.warns(TruncatedCaption):
        trained = BARE.training_batch([GenerationSample(caption)], max_length=full, truncation="caption")
    assert trained["input_ids"].shape[1] == full
    assert trained["image_targets"].tolist() == [True]


@given(UNICODE.filter(bool), st.integers(0, 12))
def test_a_shortened_caption_is_a_beginning_of_whole_characters(caption: str, excess: int) -> None:
    full = BARE.for_generation([caption])["input_ids"].shape[1]
    bare = BARE.for_generation([None])["input_ids"].shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedCaption)
        try:
            batch = BARE.for_generation([caption], max_length=full - excess, truncation="caption")
        except ValueError as error:
            assert f"max_length must leave room for a caption beside {bare} tokens" in str(error)  # noqa: PT017
            return
    assert batch["input_ids"].shape[1] <= full - excess
    kept = rows(batch)[0].split("image: ", 1)[1].rsplit("<|im_end|>", 1)[0]
    beginnings = {unicodedata.normalize("NFC", caption[:end]) for end in range(1, len(caption) + 1)}
    assert kept in beginnings


def test_a_caption_never_becomes_unconditional() -> None:
    bare = BARE.for_generation([None])["input_ids"].shape[1]
    with pytest.raises(ValueError, match=rf"must leave room for a caption beside {bare} tokens of the format, got {bare - 1}"):
        BARE.for_generation(["a red circle"], max_length=bare - 1, truncation="caption")


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: p.for_generation("a circle"), TypeError, "captions must be a list, one entry per row, got str"),
        (lambda p: p.for_generation([]), ValueError, "captions must hold at least one entry, got none"),
        (lambda p: p.for_generation(["a", 3]), TypeError, r"captions\[1\]: caption must be a string, or None .* got int"),
        (
            lambda p: p.for_generation(["\ud800"]),
            ValueError,
            r"captions\[0\]: text must be valid Unicode, got a lone surrogate",
        ),
        (
            lambda p: p.for_generation(["a"], padding_side="middle"),
            ValueError,
            "padding_side must be left or right, got 'middle'",
        ),
        (lambda p: p.for_generation(["a"], truncation=True), ValueError, "truncation must be None or 'caption', got True"),
        (lambda p: p.for_understanding([None], ["a", "b"]), ValueError, "images must be as many as questions, got 1 and 2"),
        (lambda p: p.for_understanding([None], "a"), TypeError, "questions must be a list"),
        (
            lambda p: p.for_understanding([[]], ["a"]),
            ValueError,
            r"questions\[0\]: images must be a list of at least one image",
        ),
        (lambda p: p.for_understanding([None], [None]), TypeError, r"questions\[0\]: question must be a string"),
        (lambda p: p.for_understanding([Image.new("L", (0, 8))], ["a"]), ValueError, r"images\[0\]: images must have at least"),
        (lambda p: p.training_batch([]), ValueError, "samples must hold at least one entry, got none"),
        (lambda p: p.training_batch(GenerationSample("a")), TypeError, "samples must be a list.* got GenerationSample"),
        (lambda p: p.training_batch([GenerationSample("a"), "b"]), ValueError, r"samples\[1\]: messages must be a list"),
        (lambda p: p.training_batch([GenerationSample("a", 3)]), TypeError, "images must be Pillow images.* got int"),
        (
            lambda p: p.training_batch([GenerationSample("a", np.zeros((2, 3, 8, 8), dtype=np.uint8))]),
            ValueError,
            "an image must be one image, got 2 in 1 places",
        ),
    ],
)
def test_batches_are_checked(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(BARE)


def test_parts_are_checked() -> None:
    pixels, plain = MMARImageProcessor(8), train_tokenizer(TEXTS)
    with pytest.raises(ValueError, match="tokens_per_image must be at least 1, got 0"):
        MMARProcessor(pixels, plain, tokens_per_image=0)
    with pytest.raises(ValueError, match="chat_template must render"):
        MMARProcessor(pixels, plain, "{{ messages[0].content }}")
    with pytest.raises(TypeError, match="for argument tokenizer"):
        MMARProcessor(pixels, pixels)
    plain.pad_token = None
    with pytest.raises(ValueError, match="tokenizer must have a pad_token"):
        MMARProcessor(pixels, plain)


# -- configuration, save and load -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "channels", "count"), [("mmar-tiny", 3, 16), ("mmar-digits", 1, 16), ("mmar-scenes", 3, 64)])
def test_sizes_come_from_the_configuration(name: str, channels: int, count: int) -> None:
    config = MMARConfig.preset(name)
    processor = MMARProcessor.from_config(config, train_tokenizer(TEXTS), resample="lanczos", do_resize=False)
    size = config.image_config.image_size
    assert (processor.tokens_per_image, processor.image_processor.resample) == (count, "lanczos")
    batch = processor.training_batch([GenerationSample("a", Image.new("RGB", (size, size)))])
    assert batch["pixel_values"].shape == (1, channels, size, size)
    assert (batch["input_ids"] == config.image_token_id).sum() == count
    assert MMARProcessor.from_config(config, train_tokenizer(TEXTS), channels=1).image_processor.channels == 1
    with pytest.raises(ValueError, match=r"image_token_id is 9.* add_image_tokens\(\)"):
        MMARProcessor.from_config(MMARConfig.preset(name, image_token_id=9), train_tokenizer(TEXTS))


def test_the_defaults_are_the_papers_image() -> None:
    tokenizer = train_tokenizer(TEXTS)
    processor = MMARProcessor(MMARImageProcessor(), tokenizer)
    ids = processor.for_generation([None])["input_ids"]
    assert (ids == add_image_tokens(tokenizer, 512)["image_token_id"]).sum() == 256


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    chat = ChatFormat('Say "hi"\n{{ x }} é \\', "Draw {caption}!", "Q: {question}")
    processor = MMARProcessor.from_config(TINY, train_tokenizer(TEXTS), chat=chat)
    processor.save_pretrained(tmp_path)
    TINY.save_pretrained(tmp_path)  # a whole model's folder
    batch = processor.training_batch(samples())
    for loaded in (MMARProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is MMARProcessor
        assert loaded.chat == chat
        assert loaded.to_dict() == processor.to_dict()
        again = loaded.training_batch(samples())
        assert all(torch.equal(batch[name], again[name]) for name in batch)
        message = [{"role": "user", "content": "Hi"}]
        assert loaded.apply_chat_template(message) == loaded.tokenizer.apply_chat_template(message, tokenize=False)
        assert 'Say "hi"\n{{ x }} é \\<|im_end|>' in loaded.apply_chat_template(message)


def test_another_system_prompt_needs_another_template(tmp_path: Path) -> None:
    PROCESSOR.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"chat_template must render .* leave it out \(or None\)"):
        MMARProcessor.from_pretrained(tmp_path, system_prompt=None)
    loaded = MMARProcessor.from_pretrained(tmp_path, system_prompt=None, chat_template=None)
    assert rows(loaded.for_generation([None])) == rows(BARE.for_generation([None]))


def test_a_copy_and_a_description_work() -> None:
    again = copy.deepcopy(PROCESSOR)
    assert torch.equal(again.for_generation(["x"])["input_ids"], PROCESSOR.for_generation(["x"])["input_ids"])
    assert '"tokens_per_image": 16' in repr(PROCESSOR)
    assert PROCESSOR.model_input_names == ["pixel_values", "input_ids", "attention_mask"]


def test_decoding_drops_control_tokens_and_padding() -> None:
    batch = BARE.training_batch([GenerationSample("a circle"), UnderstandingSample([None], [("What?", "red ,  é .")])])
    assert BARE.batch_decode(batch["input_ids"]) == [
        "user\nGenerate an image: a circle\nassistant\n\n",
        "user\nWhat?\nassistant\nred ,  é .\n",
    ]
    assert BARE.decode(BARE.tokenizer.encode("x<|im_end|>")) == "x"
    assert BARE.decode(BARE.tokenizer.encode("x<|im_end|>"), skip_special_tokens=False) == "x<|im_end|>"
