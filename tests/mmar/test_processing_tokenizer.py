"""The small tokenizer, Qwen2's with image tokens, and whether a tokenizer fits a model."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AddedToken, AutoTokenizer, Qwen2Tokenizer

from mmar.config import MMARConfig
from mmar.processing import add_image_tokens, check_tokenizer, train_tokenizer
from mmar.processing.rows import RowEncoder
from mmar.processing.text_tokenizer import SPECIAL_TOKENS

TEXTS = ["a red circle above a blue square", "What colour is the circle?", "a digit seven", "Is there a green square? yes"] * 4
SMALL = train_tokenizer(TEXTS)
TINY = MMARConfig.preset("mmar-tiny")


def fingerprint(tokenizer: Qwen2Tokenizer) -> str:
    return hashlib.md5(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def qwen2_like(**options: object) -> Qwen2Tokenizer:
    """As Qwen2's own: the markers of chats last, none for images."""
    tokenizer = Qwen2Tokenizer(
        vocab={chr(i): i - 33 for i in range(33, 127)},
        merges=[],
        pad_token="<|endoftext|>",
        **{"eos_token": "<|im_end|>", "extra_special_tokens": ["<|im_start|>"], **options},
    )
    assert "<|image_pad|>" not in tokenizer.get_vocab()
    return tokenizer


# -- training ---------------------------------------------------------------------------------------------------------


def test_special_tokens_have_the_ids_of_the_small_presets() -> None:
    assert [SMALL.added_tokens_encoder[token] for token in SPECIAL_TOKENS] == list(range(7))
    assert (SMALL.pad_token_id, SMALL.eos_token_id, SMALL.bos_token_id) == (0, 2, None)
    for name in ("mmar-tiny", "mmar-digits", "mmar-scenes"):
        check_tokenizer(SMALL, MMARConfig.preset(name))


def test_training_is_deterministic_and_order_does_not_matter() -> None:
    assert fingerprint(train_tokenizer(TEXTS)) == fingerprint(train_tokenizer(TEXTS[::-1])) == fingerprint(SMALL)
    assert fingerprint(train_tokenizer(iter(TEXTS))) == fingerprint(SMALL)
    assert fingerprint(train_tokenizer(TEXTS[1:])) != fingerprint(SMALL)  # the control


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_normalised(text: str) -> None:
    ids = SMALL.encode(text, split_special_tokens=True)
    assert SMALL.decode(ids, clean_up_tokenization_spaces=False) == unicodedata.normalize("NFC", text)
    assert all(7 <= i < len(SMALL) for i in ids)  # also of text that spells a control token


def test_words_of_texts_and_of_chats_are_tokens() -> None:
    for word in ("assistant", "user", " circle", " image"):
        assert len(SMALL.encode(word)) == 1, word
    assert len(SMALL.encode("hovercraft")) > 3
    assert len(SMALL.encode("<|image_pad|><|vision_start|>")) == 2


def test_words_are_cut_as_qwen2_cuts_them() -> None:
    """Digits stand alone and a word takes the space before it, whatever was frequent."""
    tokenizer = train_tokenizer(["12 12 12 red circle"] * 50)
    assert tokenizer.tokenize("12 red circle") == ["1", "2", "Ġred", "Ġcircle"]


def test_the_vocabulary_is_bounded() -> None:
    assert len(train_tokenizer(TEXTS, 263)) == 263  # bytes and special tokens
    assert len(train_tokenizer(TEXTS, 280)) == 280
    assert len(train_tokenizer(["a"], 10_000)) < 300
    with pytest.raises(ValueError, match=r"vocab_size must be at least 263 .* got 262"):
        train_tokenizer(TEXTS, 262)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("a red circle", TypeError, "got one string"),
        ([], ValueError, "at least one text"),
        (["a", None], TypeError, "must hold strings, got NoneType"),
    ],
)
def test_texts_are_checked(texts: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        train_tokenizer(texts)


def test_it_is_saved_and_loaded_as_qwen2s(tmp_path: Path) -> None:
    SMALL.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is Qwen2Tokenizer
    assert fingerprint(loaded) == fingerprint(SMALL)
    text = "a red circle <|image_pad|><|im_end|> 12 é"
    assert loaded.encode(text) == SMALL.encode(text)
    assert loaded.encode(text, split_special_tokens=True) == SMALL.encode(text, split_special_tokens=True)
    check_tokenizer(loaded, TINY)


# -- tokens of images -------------------------------------------------------------------------------------------------


def test_qwen2_gets_the_next_three_ids_in_the_order_of_the_configuration(tmp_path: Path) -> None:
    tokenizer = qwen2_like()
    size = len(tokenizer)
    ids = add_image_tokens(tokenizer, size + 3)
    assert list(ids.values()) == [size, size + 1, size + 2]
    default = MMARConfig()
    own = [getattr(default, name) for name in ids]
    assert [i - own[0] for i in own] == [0, 1, 2]  # so Qwen2's 151646 and on are the defaults
    assert own[0] == 151646
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert each.encode("hi<|image_pad|><|vision_start|><|vision_end|>")[-3:] == list(ids.values())
        assert each.decode([*each.encode("hi"), *ids.values()], skip_special_tokens=True) == "hi"
        assert not set(each.encode("<|image_pad|>", split_special_tokens=True)) & set(ids.values())


def test_adding_twice_changes_nothing() -> None:
    tokenizer = qwen2_like()
    ids = add_image_tokens(tokenizer, 200)
    before = tokenizer.backend_tokenizer.to_str()
    assert add_image_tokens(tokenizer, 200) == ids
    assert tokenizer.backend_tokenizer.to_str() == before
    assert list(add_image_tokens(SMALL, 512).values()) == [4, 5, 6]


def test_tokens_that_do_not_fit_leave_the_tokenizer_alone() -> None:
    tokenizer = qwen2_like()
    size = len(tokenizer)
    with pytest.raises(ValueError, match=rf"vocab_size must be at least {size + 3} .*<\|image_pad\|>.* got {size + 2}"):
        add_image_tokens(tokenizer, size + 2)
    assert len(tokenizer) == size


def test_ids_fit_the_configuration_they_are_passed_to() -> None:
    tokenizer = qwen2_like()
    ids = add_image_tokens(tokenizer, 128)
    text = {"vocab_size": 128, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    check_tokenizer(tokenizer, MMARConfig.preset("mmar-tiny", text_config=text, **ids))


# -- the check --------------------------------------------------------------------------------------------------------


def test_everything_that_differs_is_named_at_once() -> None:
    with pytest.raises(ValueError, match="tokenizer must fit the configuration") as error:
        check_tokenizer(qwen2_like(eos_token="<|endoftext|>", extra_special_tokens=[]), MMARConfig.preset("mmar-tiny"))
    for part in (
        "<|image_pad|> is missing and image_token_id is 4",
        "<|im_start|> is missing",
        "its eos_token is <|endoftext|>",
    ):
        assert part in str(error.value)
    assert "add_image_tokens()" in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_token_id": 3}, r"<\|image_pad\|> is token 4 and image_token_id is 3\."),
        ({"boi_token_id": 6, "eoi_token_id": 5}, r"<\|vision_start\|> is token 5 and boi_token_id is 6; <\|vision_end\|> is"),
        ({"text_config": {"vocab_size": 300}}, f"it has {len(SMALL)} tokens and text_config.vocab_size is 300"),
        ({"text_config": {"eos_token_id": 0}}, r"<\|im_end\|> is token 2 and text_config.eos_token_id is 0"),
        ({"text_config": {"eos_token_id": [0, 1]}}, r"text_config.eos_token_id is \[0, 1\]"),
    ],
)
def test_a_difference_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_tokenizer(SMALL, MMARConfig.preset("mmar-tiny", **options))


def test_several_ends_of_text_are_fine() -> None:
    check_tokenizer(SMALL, MMARConfig.preset("mmar-tiny", text_config={"eos_token_id": [2, 0]}))


def test_a_missing_padding_token_is_named() -> None:
    tokenizer = train_tokenizer(TEXTS)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="it has no pad_token"):
        check_tokenizer(tokenizer, TINY)


def test_a_marker_that_is_no_special_token_is_named_and_repaired() -> None:
    """Else it would count where somebody typed it."""
    tokenizer = qwen2_like()
    tokenizer.add_tokens([AddedToken("<|image_pad|>", special=False)])
    typed = tokenizer.encode("<|image_pad|>", split_special_tokens=True)
    assert typed == [tokenizer.added_tokens_encoder["<|image_pad|>"]]
    with pytest.raises(ValueError, match=r"<\|image_pad\|> is not a special token"):
        check_tokenizer(tokenizer, TINY)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in ("<|vision_start|>", "<|vision_end|>")])
    with pytest.raises(ValueError, match=r"control tokens must be special tokens, got plain <\|image_pad\|>; add_image_tokens"):
        RowEncoder(tokenizer, 4)
    add_image_tokens(tokenizer, 200)
    RowEncoder(tokenizer, 4)
    assert len(tokenizer.encode("<|image_pad|>", split_special_tokens=True)) == len("<|image_pad|>")
