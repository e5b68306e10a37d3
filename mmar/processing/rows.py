"""Rows of token ids: pieces of a conversation encoded, shortened where that is allowed, padded to a batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from mmar.processing.chat import (
    BOI,
    CONTROL_TOKENS,
    EOI,
    IM_END,
    IM_START,
    IMAGE,
    GenerationSample,
    Message,
    Piece,
    UnderstandingSample,
)
from mmar.processing.errors import TruncatedCaption

Sample = GenerationSample | UnderstandingSample | Sequence[Message]
Side = Literal["left", "right"]
Truncation = Literal["caption"]
IGNORED = -100
"""Label of what is not learned, as in torch's cross entropy."""


@dataclass(frozen=True)
class Row:
    """A conversation in tokens.

    Attributes:
        ids: Token ids.
        labels: As many: the id where text is learned, else -100.
        image_targets: For each image whether it is to be generated.
    """

    ids: list[int]
    labels: list[int]
    image_targets: list[bool]


class RowEncoder:
    """Pieces to ids. Text is encoded as text: a control token that somebody typed becomes the characters it consists of.

    An encoder serves one batch: it remembers each text, and most texts of a batch are the words of the format.

    Args:
        tokenizer: With the markers of the chat format and the tokens of images.
        tokens_per_image: Placeholders of an image.

    Raises:
        ValueError: If the tokenizer lacks a control token, or one is not special.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens_per_image: int) -> None:
        if tokens_per_image < 1:
            raise ValueError(f"tokens_per_image must be at least 1, got {tokens_per_image}")
        known = tokenizer.added_tokens_encoder
        missing = [token for token in (IM_START, IM_END, IMAGE, BOI, EOI) if token not in known]
        if missing:
            raise ValueError(f"tokenizer must have {', '.join(missing)}, got none; add_image_tokens() adds those of images")
        plain = [
            token for token in CONTROL_TOKENS if token in known and not tokenizer.added_tokens_decoder[known[token]].special
        ]
        if plain:  # then a typed one would be taken for a control token
            raise ValueError(
                f"control tokens must be special tokens, got plain {', '.join(plain)}; add_image_tokens() repairs it"
            )
        if tokenizer.pad_token_id is None:
            raise ValueError("tokenizer must have a pad_token, got none; Qwen2's is <|endoftext|>")
        self.tokenizer, self.control = tokenizer, known
        self.image_block = [known[BOI], *[known[IMAGE]] * tokens_per_image, known[EOI]]
        self._seen: dict[str, list[int]] = {}

    def encode(self, pieces: Sequence[Piece]) -> Row:
        """The row of a rendered conversation."""
        ids: list[int] = []
        labels: list[int] = []
        for piece in pieces:
            new = self._ids(piece)
            ids += new
            labels += new if piece.is_target and piece.kind != "image" else [IGNORED] * len(new)
        return Row(ids, labels, [piece.is_target for piece in pieces if piece.kind == "image"])

    def pad(self, rows: Sequence[Row], side: Side) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask``, ``(B, L)`` long."""
        ids = _padded([row.ids for row in rows], self.tokenizer.pad_token_id, side)
        return {"input_ids": ids, "attention_mask": _padded([[1] * len(row.ids) for row in rows], 0, side)}

    def pad_labels(self, rows: Sequence[Row], side: Side) -> Tensor:
        """``(B, L)`` long."""
        return _padded([row.labels for row in rows], IGNORED, side)

    def _ids(self, piece: Piece) -> list[int]:
        if piece.kind == "image":
            return self.image_block
        if piece.kind == "control":
            return [self.control[piece.text]]
        if piece.text not in self._seen:
            self._seen[piece.text] = self._text_ids(piece.text)
        return self._seen[piece.text]

    def _text_ids(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text must be valid Unicode, got a lone surrogate at {error.start} of {text!r:.80}") from error
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids


def fitted(
    sample: Sample,
    build: Callable[[Sample], Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    truncation: Truncation | None,
) -> Row:
    """The row of a sample; its caption is shortened if it must be and may be, with a warning at the caller's caller.

    Raises:
        ValueError: If the row is too long and no caption may be shortened, or nothing of it would be left: that would be an
            unconditional sample.
    """
    if truncation not in (None, "caption"):
        raise ValueError(f"truncation must be None or 'caption', got {truncation!r}")
    row = build(sample)
    if max_length is None or len(row.ids) <= max_length:
        return row
    caption = sample.caption if truncation == "caption" and isinstance(sample, GenerationSample) else None
    if not caption:
        check_length(len(row.ids), max_length, "the row")
    for kept in _beginnings(tokenizer, caption or "", len(row.ids) - max_length):
        shorter = build(GenerationSample(kept))
        if len(shorter.ids) <= max_length:
            message = f"a row of {len(row.ids)} tokens must fit into max_length = {max_length}: caption cut to {kept!r}"
            warnings.warn(message, TruncatedCaption, stacklevel=3)
            return shorter
    bare = len(build(GenerationSample(None)).ids)
    raise ValueError(f"max_length must leave room for a caption beside {bare} tokens of the format, got {max_length}")


def check_length(tokens: int, max_length: int | None, what: str) -> None:
    """Refuse a row that is too long: cutting it could cut an image or an answer.

    Raises:
        ValueError: If ``tokens`` is more than ``max_length``.
    """
    if max_length is not None and tokens > max_length:
        raise ValueError(
            f"{what} must have at most max_length = {max_length} tokens, got {tokens}; shorten the text, raise max_length, or "
            "let truncation='caption' cut captions of images to be generated"
        )


def _padded(rows: list[list[int]], fill: int, side: Side) -> Tensor:
    if side not in ("left", "right"):
        raise ValueError(f"padding_side must be left or right, got {side!r}")
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill, padding_side=side)


def _beginnings(tokenizer: PreTrainedTokenizerBase, text: str, excess: int) -> Iterator[str]:
    """Beginnings of a text that are at least ``excess`` tokens shorter, longest first; never empty, no half characters."""
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, split_special_tokens=True)
    kept = max(0, len(encoded["input_ids"]) - excess)
    ends = {end for _, end in encoded["offset_mapping"][:kept] if end}
    yield from (text[:end] for end in sorted(ends, reverse=True))
