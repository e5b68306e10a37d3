"""What lmms-eval asks for, in the words of MMAR's pipeline; needs no package of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

LONGEST_ANSWER = 1024
"""Tokens where a task says nothing, as lmms-eval's own models have it."""

_UNDERSTOOD = ("until", "max_new_tokens", "temperature", "top_p", "num_beams", "do_sample", "top_k", "repetition_penalty")
_IGNORED = ("image_aspect_ratio",)
"""How other models cut images into tiles; MMAR's image processor has one way."""


@dataclass(frozen=True)
class Prompt:
    """A question with its images.

    Attributes:
        images: At least one.
        text: The question.
        options: As the task gives them.
    """

    images: list[Any]
    text: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, images: Sequence[Any] | None, text: str, options: Mapping[str, Any]) -> Self:
        """A checked prompt.

        Raises:
            ValueError: If there is no image, or an option is unknown.
        """
        if not images:
            raise ValueError(f"a question must come with at least one image, got none with {text[:80]!r}")
        unknown = sorted(set(options) - {*_UNDERSTOOD, *_IGNORED})
        if unknown:
            raise ValueError(f"generation_kwargs must be among {', '.join(_UNDERSTOOD)}, got {', '.join(unknown)}")
        return cls(list(images), text.strip(), options)

    @classmethod
    def of_messages(cls, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Self:
        """From chat messages; only a user's are understood.

        Args:
            messages: ``{"role": "user", "content": [{"type": "image", "url": image}, {"type": "text", "text": "..."}]}``.
            options: As the task gives them.

        Raises:
            ValueError: If a message is another's, or a part neither text nor image.
        """
        parts = [part for message in messages for part in _parts(message)]
        images = [part["url"] for part in parts if part["type"] == "image"]
        return cls.of(images, "\n".join(part["text"].strip() for part in parts if part["type"] == "text"), options)


def generation_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """For :meth:`MMARPipeline.answer_batch`, and ``until``, the texts to stop at."""
    until = options.get("until") or []
    temperature = options.get("temperature")
    sampled = bool(options.get("do_sample", bool(temperature))) and temperature != 0
    out: dict[str, Any] = {
        "until": [until] if isinstance(until, str) else list(until),
        "max_new_tokens": int(options.get("max_new_tokens") or LONGEST_ANSWER),
        "do_sample": sampled,
    }
    names = ("num_beams", "repetition_penalty", *(("temperature", "top_p", "top_k") if sampled else ()))
    return out | {name: options[name] for name in names if options.get(name) is not None}


def stopped(text: str, until: Sequence[str]) -> str:
    """What stands before the first of some texts."""
    for stop in until:
        if stop:
            text = text.split(stop, 1)[0]
    return text.strip()


def _parts(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    if message["role"] != "user":
        raise ValueError(f"messages must be the user's, got one of role {message['role']!r}; few-shot examples are not read")
    wrong = [part["type"] for part in message["content"] if part["type"] not in ("text", "image")]
    if wrong:
        raise ValueError(f"a message must hold text and images, got {', '.join(wrong)}")
    parts: Sequence[Mapping[str, Any]] = message["content"]
    return parts
