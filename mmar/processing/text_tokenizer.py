"""Text tokenizers: a small one trained here, or Qwen2's with the three tokens of images; and whether one fits a model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerBase, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from mmar.config import MMARConfig
from mmar.processing.chat import BOI, END_OF_TEXT, EOI, GENERATION_PROMPT, IM_END, IM_START, IMAGE

SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, "<|reserved|>", IMAGE, BOI, EOI)
"""Of a small tokenizer, by id: those that the small presets name."""

IMAGE_TOKENS = {"image_token_id": IMAGE, "boi_token_id": BOI, "eoi_token_id": EOI}
"""Fields of the configuration and their tokens, in the order in which a tokenizer gets them."""

_CHAT_WORDS = "user\nassistant\n" + GENERATION_PROMPT.replace("{caption}", "")


def train_tokenizer(texts: Iterable[str], vocab_size: int = 512, *, min_frequency: int = 2) -> Qwen2Tokenizer:
    """A byte-level BPE that cuts words as Qwen2 does, so that Qwen2's own tokenizer can take its place.

    The words of the chat format count once per text, so that they do not stay single bytes. The result depends on how often
    each text occurs, not on their order.

    Args:
        texts: Captions, questions and answers.
        vocab_size: Upper bound of the number of tokens; with few texts there are fewer.
        min_frequency: How often a pair must occur to become a token.

    Raises:
        TypeError: If ``texts`` is one string or holds something else.
        ValueError: If there are no texts, or no room for 256 bytes and the special tokens.
    """
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest} (256 bytes and the special tokens), got {vocab_size}")
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.decoder = decoders.ByteLevel()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    trained.train_from_iterator(_corpus(texts), trainer)
    model = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in (IM_END, END_OF_TEXT)],
    )


def add_image_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> dict[str, int]:
    """Give a tokenizer the three tokens of images, if it has them not, and return their ids.

    Qwen2's own tokenizer ends at 151645 and its embedding at 151935, so there is room: the ids are 151646 to 151648, those of
    the presets. Qwen2.5's has the tokens already.

    Args:
        tokenizer: Changed in place.
        vocab_size: Rows of the model's embedding, ``config.text_config.vocab_size``; padded, so larger than the tokenizer.

    Returns:
        ``image_token_id``, ``boi_token_id`` and ``eoi_token_id``, to be passed on to :class:`MMARConfig`.

    Raises:
        ValueError: If they would not fit; the tokenizer is left as it was.
    """
    known = tokenizer.added_tokens_encoder
    missing = [token for token in IMAGE_TOKENS.values() if token not in known]
    size = _size(tokenizer) + len(missing)
    if size > vocab_size:
        raise ValueError(
            f"vocab_size must be at least {size} to hold the tokenizer and {', '.join(missing) or 'no further token'}, "
            f"got {vocab_size}; train a smaller tokenizer, or pad the embedding of the language model"
        )
    tokenizer.add_tokens([AddedToken(token, special=True) for token in IMAGE_TOKENS.values()], special_tokens=True)
    return {field: tokenizer.added_tokens_encoder[token] for field, token in IMAGE_TOKENS.items()}


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: MMARConfig) -> None:
    """Raise one error that names everything in which a tokenizer and a model differ.

    Raises:
        ValueError: If ids of image tokens differ, the tokenizer is larger than the embedding, markers of the chat format are
            missing or not special, or the padding token or the end of a turn is missing or another one than the model's.
    """
    wrong = [*_wrong_ids(tokenizer, config), *_wrong_size(tokenizer, config), *_wrong_markers(tokenizer, config)]
    if wrong:
        raise ValueError(
            f"tokenizer must fit the configuration, but {'; '.join(wrong)}. add_image_tokens() gives a Qwen2 tokenizer what it "
            "lacks and returns the ids for MMARConfig; train_tokenizer() makes one for the small presets"
        )


def _corpus(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("texts must be an iterable of strings, got one string; put it into a list")
    texts = list(texts)
    if not texts:
        raise ValueError("texts must hold at least one text, got none")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"texts must hold strings, got {type(text).__name__}")
    return [*texts, *[_CHAT_WORDS] * len(texts)]


def _size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id: with gaps in the ids this is more than the number of tokens."""
    return max(len(tokenizer), 1 + max(tokenizer.added_tokens_decoder, default=-1))


def _wrong_ids(tokenizer: PreTrainedTokenizerBase, config: MMARConfig) -> list[str]:
    known = tokenizer.added_tokens_encoder
    ids = [(field, token, known.get(token), getattr(config, field)) for field, token in IMAGE_TOKENS.items()]
    return [
        f"{token} is {'missing' if has is None else f'token {has}'} and {field} is {wants}"
        for field, token, has, wants in ids
        if has != wants
    ]


def _wrong_size(tokenizer: PreTrainedTokenizerBase, config: MMARConfig) -> list[str]:
    text: Any = config.text_config
    size, room = _size(tokenizer), text.vocab_size
    return [f"it has {size} tokens and text_config.vocab_size is {room}"] if size > room else []


def _wrong_markers(tokenizer: PreTrainedTokenizerBase, config: MMARConfig) -> list[str]:
    known, tokens = tokenizer.added_tokens_encoder, tokenizer.added_tokens_decoder
    wrong = [f"the chat marker {token} is missing" for token in (IM_START, IM_END) if token not in known]
    present = (token for token in (IM_START, IM_END, *IMAGE_TOKENS.values()) if token in known)
    wrong += [f"{token} is not a special token" for token in present if not tokens[known[token]].special]
    if tokenizer.pad_token_id is None:
        wrong.append("it has no pad_token")
    if tokenizer.eos_token_id is None:
        wrong.append("it has no eos_token")
    elif tokenizer.eos_token != IM_END:
        wrong.append(f"its eos_token is {tokenizer.eos_token}, but answers end with {IM_END}")
    text: Any = config.text_config
    ends = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
    if IM_END in known and ends != [None] and known[IM_END] not in ends:
        wrong.append(f"{IM_END} is token {known[IM_END]} and text_config.eos_token_id is {text.eos_token_id}")
    return wrong
