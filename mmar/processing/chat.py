"""Qwen2's chat format with images: conversations as pieces to encode, and the same as a jinja template.

A message is ``{"role": ..., "content": ...}`` as in Hugging Face's libraries; content is a string or a list of parts
``{"type": "text", "text": ...}`` and ``{"type": "image", "image": ...}``. An image in the user's turn is read, one in the
assistant's turn is generated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE, BOI, EOI = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
CONTROL_TOKENS = (END_OF_TEXT, IM_START, IM_END, IMAGE, BOI, EOI)

QWEN2_SYSTEM_PROMPT = "You are a helpful assistant."
GENERATION_PROMPT = "Generate an image: {caption}"
QUESTION_PROMPT = "{question}"
IMAGE_SOURCES = ("image", "path", "url", "base64")
"""Keys of an image part that may hold the image; what it is, a path or an image, is for the image processor to see."""

Message = Mapping[str, Any]


@dataclass(frozen=True)
class ChatFormat:
    """The words around captions and questions.

    Attributes:
        system_prompt: Inserted where a conversation does not start with a system message; None: nothing. Qwen2-Instruct's
            own by default: the language model is frozen, so it should see what it was tuned on. A model trained from scratch
            has no use for it, and with a small tokenizer it is as long as an image: use None there.
        generation_prompt: What asks for an image; holds ``{caption}`` once.
        question_prompt: What asks about an image; holds ``{question}`` once.
    """

    system_prompt: str | None = QWEN2_SYSTEM_PROMPT
    generation_prompt: str = GENERATION_PROMPT
    question_prompt: str = QUESTION_PROMPT

    def __post_init__(self) -> None:
        for name, field in (("generation_prompt", "{caption}"), ("question_prompt", "{question}")):
            value = getattr(self, name)
            if not isinstance(value, str) or value.count(field) != 1:
                raise ValueError(f"{name} must be a string that holds {field} once, got {value!r}")
        for name in ("system_prompt", "generation_prompt", "question_prompt"):
            found = [token for token in CONTROL_TOKENS if token in (getattr(self, name) or "")]
            if found:
                raise ValueError(f"{name} must be plain text, got {found[0]}; the chat format adds control tokens itself")


@dataclass(frozen=True)
class GenerationSample:
    """An image and its caption.

    Attributes:
        caption: What the image shows; None or empty: unconditional.
        image: Anything the image processor takes; None where only the tokens of the image travel, outside the processor.
    """

    caption: str | None
    image: Any = None

    def messages(self, chat: ChatFormat) -> list[Message]:
        """The caption in the user's turn, the image in the assistant's."""
        if self.caption is not None and not isinstance(self.caption, str):
            raise TypeError(f"caption must be a string, or None for unconditional, got {type(self.caption).__name__}")
        prompt = chat.generation_prompt.replace("{caption}", self.caption or "")
        return [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": [{"type": "image", "image": self.image}]},
        ]


@dataclass(frozen=True)
class UnderstandingSample:
    """Images and what is asked about them.

    Attributes:
        images: The images, read before the first question; None for each whose tokens travel outside the processor.
        turns: Pairs ``(question, answer)``, in one sequence. An answer of None leaves the last question open.
    """

    images: Sequence[Any]
    turns: Sequence[tuple[str, str | None]]

    def messages(self, chat: ChatFormat) -> list[Message]:
        """Images and the first question in the user's turn, then answers and further questions."""
        self._check()
        messages: list[Message] = []
        parts = [{"type": "image", "image": image} for image in self.images]
        for question, answer in self.turns:
            text = chat.question_prompt.replace("{question}", question)
            messages.append({"role": "user", "content": [*parts, {"type": "text", "text": text}]})
            parts = []
            if answer is not None:
                messages.append({"role": "assistant", "content": answer})
        return messages

    def _check(self) -> None:
        if not isinstance(self.images, list | tuple) or not self.images:
            raise ValueError(f"images must be a list of at least one image, got {self.images!r}")
        if not self.turns:
            raise ValueError("turns must hold at least one pair (question, answer), got none")
        for i, turn in enumerate(self.turns):
            if not isinstance(turn, list | tuple) or len(turn) != 2:
                raise TypeError(f"turns must hold pairs (question, answer), got {turn!r}")
            question, answer = turn
            if not isinstance(question, str):
                raise TypeError(f"question must be a string, got {type(question).__name__}")
            if answer is not None and not isinstance(answer, str):
                raise TypeError(f"answer must be a string, or None to leave it open, got {type(answer).__name__}")
            if answer is None and i < len(self.turns) - 1:
                raise ValueError(f"an answer of None must be the last, got it in turn {i} of {len(self.turns)}")


@dataclass(frozen=True)
class Piece:
    """What is encoded as one: pieces next to each other never share a token.

    Attributes:
        kind: Plain text (control tokens in it are text as well), a control token, or an image.
        text: The text or the control token; the image itself is not kept here.
        is_target: Whether the model is trained to produce it: an answer that stands after an image, the end of such an
            answer, or an image in the assistant's turn.
    """

    kind: Literal["text", "control", "image"]
    text: str = ""
    is_target: bool = False


def render(messages: Sequence[Message], *, system_prompt: str | None, add_generation_prompt: bool = False) -> list[Piece]:
    """A conversation as pieces; joined, they are what :func:`chat_template` renders.

    Answers before any image are no targets: the frozen language model without adapters computes them, their gradient is
    exactly zero. The header of the assistant's turn and the answer are separate pieces, so a training row starts with the
    very tokens of the prompt that the answer follows at inference.

    Args:
        messages: The conversation.
        system_prompt: See :class:`ChatFormat`.
        add_generation_prompt: End with the header of an assistant's turn.

    Raises:
        ValueError: If a role, a part or the order is not allowed.
        TypeError: If a message or a text has the wrong type.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f"messages must be a list of at least one message, got {messages!r}")
    pieces: list[Piece] = []
    for i, message in enumerate(messages):
        role, parts = _checked(message)
        if role == "system" and i:
            raise ValueError(f"the system message must come first, got one at position {i}")
        if i == 0 and role != "system" and system_prompt is not None:
            pieces += _turn("system", [Piece("text", system_prompt)], after_image=False)
        pieces += _turn(role, parts, after_image=any(piece.kind == "image" for piece in pieces))
    if add_generation_prompt:
        pieces += [Piece("control", IM_START), Piece("text", "assistant\n")]
    return pieces


def images_of(messages: Sequence[Message]) -> list[Any]:
    """The images of a conversation in order, None for a part that holds none."""
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    return [_source(part) for part in parts if part["type"] == "image"]


def chat_template(system_prompt: str | None) -> str:
    """A jinja template that renders each image as one placeholder between its markers.

    On conversations of text it renders what Qwen2-Instruct's published template does if ``system_prompt`` is Qwen2's.
    """
    turn = "" if system_prompt is None else f"{IM_START}system\n{system_prompt}{IM_END}\n"
    literal = json.dumps(turn, ensure_ascii=False)  # a JSON string is a jinja string
    return _TEMPLATE.replace("SYSTEM_TURN", literal)


_TEMPLATE = """\
{%- for message in messages -%}
    {%- if loop.first and message['role'] != 'system' -%}
        {{- SYSTEM_TURN -}}
    {%- endif -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['content'] is not defined -%}
        {{- raise_exception('a message must have content, got none') -}}
    {%- elif message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'text' -%}
                {{- part['text'] -}}
            {%- elif part['type'] == 'image' and message['role'] != 'system' -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- else -%}
                {{- raise_exception('type of a part must be text or image, got ' + part['type']) -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def _turn(role: str, parts: list[Piece], *, after_image: bool) -> list[Piece]:
    """``<|im_start|>role``, a line break, the parts, ``<|im_end|>``, a line break."""
    header = Piece("text", role + "\n")
    if role != "assistant":
        return [Piece("control", IM_START), *_joined([header, *parts]), Piece("control", IM_END), Piece("text", "\n")]
    body: list[Piece] = []
    for part in _joined(parts):
        after_image = after_image or part.kind == "image"
        body.append(Piece(part.kind, part.text, is_target=after_image))
    answered = bool(body) and body[-1].kind == "text" and body[-1].is_target
    return [Piece("control", IM_START), header, *body, Piece("control", IM_END, is_target=answered), Piece("text", "\n")]


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Texts next to each other become one."""
    out: list[Piece] = []
    for piece in pieces:
        if out and out[-1].kind == piece.kind == "text":
            out[-1] = Piece("text", out[-1].text + piece.text)
        else:
            out.append(piece)
    return out


def _checked(message: Message) -> tuple[str, list[Piece]]:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise TypeError(f"a message must be a dict with role and content, got {message!r}")
    role, content = message["role"], message["content"]
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"role must be system, user or assistant, got {role!r}")
    if isinstance(content, str):
        return role, [Piece("text", content)]
    if not isinstance(content, list | tuple):
        raise TypeError(f"content must be a string or a list of parts, got {type(content).__name__} in the {role}'s message")
    parts = [_part(part) for part in content]
    if role == "system" and any(part.kind == "image" for part in parts):
        raise ValueError("content of the system message must be text, got an image; put it into the user's turn")
    return role, parts


def _part(part: Any) -> Piece:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image":
        _source(part)
        return Piece("image")
    if kind != "text":
        raise ValueError(f"a part must be a dict of type text or image, got {part!r}")
    if not isinstance(part.get("text"), str):
        raise TypeError(f"text of a part must be a string, got {type(part.get('text')).__name__}")
    return Piece("text", part["text"])


def _source(part: Message) -> Any:
    unknown = sorted(set(part) - {"type", *IMAGE_SOURCES})
    if unknown:
        raise ValueError(f"an image part must hold its image under {', '.join(IMAGE_SOURCES)}, got {', '.join(unknown)}")
    given = {key: part[key] for key in IMAGE_SOURCES if part.get(key) is not None}
    if len(given) > 1:
        raise ValueError(f"an image part must hold one image, got {' and '.join(given)}")
    return next(iter(given.values()), None)
