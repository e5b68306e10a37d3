"""Checks of texts that were rendered already: the way of Hugging Face's processors, where control tokens count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers.processing_utils import ProcessingKwargs
from transformers.utils.chat_template_utils import render_jinja_template

from mmar.processing.chat import BOI, EOI, IMAGE, Piece, render

PLACEHOLDER = BOI + IMAGE + EOI
"""An image in a rendered text."""

OPTIONS = frozenset(
    {"padding", "padding_side", "max_length", "pad_to_multiple_of", "return_tensors", "add_special_tokens", "input_data_format"}
    | {"sanitize_control_tokens", "return_offsets_mapping", "return_text_replacement_offsets", "return_mm_token_type_ids"}
)
"""What a call of the processor takes; the second line is what ``apply_chat_template`` passes on."""


_PROBE: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "question"}]},
    {"role": "assistant", "content": "answer"},
    {"role": "user", "content": "caption"},
    {"role": "assistant", "content": [{"type": "image"}]},
]


def joined(pieces: Sequence[Piece]) -> str:
    """The text of a rendered conversation, a placeholder for each image."""
    return "".join(PLACEHOLDER if piece.kind == "image" else piece.text for piece in pieces)


def check_template(template: str, system_prompt: str | None) -> None:
    """A jinja template must render what the chat format does, or training and ``apply_chat_template`` would differ.

    Raises:
        ValueError: If it renders a conversation with images otherwise, or not at all.
    """
    wanted = joined(render(_PROBE, system_prompt=system_prompt, add_generation_prompt=True))
    try:
        got = render_jinja_template([_PROBE], chat_template=template, add_generation_prompt=True)[0][0]
    except (TemplateError, TypeError) as error:
        got = repr(error)
    if got != wanted:
        raise ValueError(
            f"chat_template must render conversations as the chat format does, {wanted!r}, got {got!r}; leave it out (or None) "
            "for the one that fits system_prompt, and give apply_chat_template() another one where it is needed"
        )


def check_options(options: dict[str, Any]) -> None:
    """Refuse options that would cut a text, and those that the base class would ignore with a line in the log.

    Raises:
        ValueError: If truncation is asked for.
        TypeError: If an option is unknown.
    """
    if options.get("truncation"):
        raise ValueError(
            "truncation must be off: it would cut images apart; shorten the texts, or let for_generation() and "
            "training_batch() cut captions (truncation='caption')"
        )
    unknown = sorted(set(options) - OPTIONS - {"truncation"} - set(ProcessingKwargs.__annotations__))
    if unknown:
        raise TypeError(f"options must be among {', '.join(sorted(OPTIONS))}, got {', '.join(unknown)}")


def check_placeholders(text: list[str], images: list[Any]) -> None:
    """Every text must hold whole placeholders, as many as there are images.

    Args:
        text: Rendered texts.
        images: One entry per image, or a list per text.

    Raises:
        ValueError: If a marker of images stands alone, or the numbers differ.
    """
    counts = [row.count(PLACEHOLDER) for row in text]
    for i, (row, count) in enumerate(zip(text, counts, strict=True)):
        strays = [token for token in (IMAGE, BOI, EOI) if row.count(token) != count]
        if strays:
            raise ValueError(
                f"text must hold image tokens as {PLACEHOLDER} only, got a stray {strays[0]} in text {i}: image tokens where "
                "none are allowed"
            )
    groups = [isinstance(image, list) for image in images]
    if any(groups) and not all(groups):
        raise ValueError("images must be all grouped by text in lists, or all single, got both")
    if any(groups):
        if [len(group) for group in images] != counts:
            raise ValueError(f"images of each text must be as many as its placeholders {counts}, got {[*map(len, images)]}")
    elif len(images) != sum(counts):
        raise ValueError(f"images must be as many as placeholders, {sum(counts)} in {len(text)} texts, got {len(images)}")
