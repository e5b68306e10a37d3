r"""What a record says about an image: caption and questions, in Hugging Face's and in LLaVA's words.

A record is a row of ``metadata.jsonl`` or ``metadata.csv``, an entry of LLaVA's list, or the ``.txt`` and ``.json`` beside an
image in a shard. ``text`` (or ``caption``) is the caption, or a list of captions that say the same. ``conversations`` is
LLaVA's::

    [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A cat."}, ...]

Empty strings, nulls and empty lists count as absent: a table has a cell for every column. Spaces around texts are removed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from mmar.data.skipped import BadSample, Reason
from mmar.processing.chat import CONTROL_TOKENS

IMAGE_MARKER = "<image>"
"""LLaVA's place of the image."""
CAPTION_KEYS = ("text", "caption")
_SPEAKERS = ("human", "gpt")


@dataclass(frozen=True)
class Texts:
    """As in :class:`mmar.data.example.Example`."""

    caption: str | None
    captions: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]


def parse_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BadSample: If it is none.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise BadSample.of(Reason.BAD_RECORD, where, f"it must be JSON, got {text[:60]!r} ({error})") from error
    if not isinstance(value, dict):
        raise BadSample.of(Reason.BAD_RECORD, where, f"it must be a JSON object, got {type(value).__name__}")
    return value


def decode_text(data: bytes, where: str) -> str:
    """UTF-8, with or without a byte-order mark.

    Raises:
        BadSample: If it is not.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSample.of(Reason.NOT_UTF8, where, str(error)) from error


def check_utf8(text: str, where: str) -> None:
    """Raise a BadSample if UTF-8 has no bytes for a text: half a surrogate pair is valid JSON, and no tokenizer takes it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadSample.of(Reason.NOT_UTF8, where, str(error)) from error


def texts_of(record: Mapping[str, Any], where: str) -> Texts:
    """Caption and turns of a record.

    Args:
        record: The record; other keys are not looked at.
        where: File and line, for messages.

    Raises:
        BadSample: If a text is of the wrong type, not UTF-8 or holds a marker, the conversation is malformed, or there is
            neither caption nor conversation.
    """
    captions = _captions(record, where)
    conversations = record.get("conversations")
    turns = turns_of(conversations, where) if conversations not in (None, "", []) else ()
    if not captions and not turns:
        if any(record.get(key) is not None for key in CAPTION_KEYS):
            raise BadSample.of(Reason.EMPTY_CAPTION, where)
        raise BadSample.of(Reason.NO_TEXT, where, f"it must have text or conversations, got {_keys(record)}")
    return Texts(captions[0] if captions else None, tuple(captions[1:]), turns)


def turns_of(conversations: Any, where: str) -> tuple[tuple[str, str], ...]:
    """Pairs (question, answer) of a conversation in LLaVA's format, without the image's marker.

    Args:
        conversations: A list, or JSON of it.
        where: File and line, for messages.

    Raises:
        BadSample: If roles do not alternate from human to gpt, a text is empty, or the first question alone does not hold the
            one marker of the image.
    """
    if isinstance(conversations, str):
        conversations = parse_object(f'{{"list": {conversations}}}', where)["list"]
    if not isinstance(conversations, list):
        detail = f"conversations must be a list, got {type(conversations).__name__}"
        raise BadSample.of(Reason.BAD_CONVERSATION, where, detail)
    said = [_said(message, i, where) for i, message in enumerate(conversations)]
    if not said or len(said) % 2:
        raise BadSample.of(Reason.BAD_CONVERSATION, where, f"every question must have an answer, got {len(said)} messages")
    if said[0].count(IMAGE_MARKER) != 1:
        detail = f"the first question must hold {IMAGE_MARKER} once, got {said[0].count(IMAGE_MARKER)} times"
        raise BadSample.of(Reason.BAD_CONVERSATION, where, detail)
    said[0] = said[0].replace(IMAGE_MARKER, "")
    clean = [_clean(text, where) for text in said]
    if not all(clean):
        raise BadSample.of(Reason.BAD_CONVERSATION, where, f"value must not be empty, got {clean.index('')} of them before one")
    return tuple(zip(clean[::2], clean[1::2], strict=True))


def relative_path(name: Any, where: str) -> str:
    """The name of an image, inside the folder that it is relative to.

    Links are followed when the file is opened: they are the doing of whoever owns the disk, not of the record.

    Raises:
        BadSample: If there is no name, it is not UTF-8, or it leads out of the folder on any system.
    """
    if not isinstance(name, str) or not name.strip():
        raise BadSample.of(Reason.NO_IMAGE, where, f"an image must have a name, got {name!r:.60}")
    check_utf8(name, where)
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise BadSample.of(Reason.PATH_LEAVES_FOLDER, where, f"it must be relative without .., got {name!r:.100}")
    return posix.as_posix()


def _captions(record: Mapping[str, Any], where: str) -> list[str]:
    """All captions, each once, in order."""
    out: list[str] = []
    for key in CAPTION_KEYS:
        value = record.get(key)
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str | None):
                detail = f"{key} must be a string or a list of strings, got {type(text).__name__}"
                raise BadSample.of(Reason.BAD_RECORD, where, detail)
            out.append(_clean(text or "", where))
    return list(dict.fromkeys(filter(None, out)))


def _said(message: Any, i: int, where: str) -> str:
    if not isinstance(message, dict) or not isinstance(message.get("value"), str):
        detail = f"message {i} must be a dict with from and value, got {message!r:.60}"
        raise BadSample.of(Reason.BAD_CONVERSATION, where, detail)
    if message.get("from") != _SPEAKERS[i % 2]:
        detail = f"message {i} must be from {_SPEAKERS[i % 2]}, got {message.get('from')!r:.60}"
        raise BadSample.of(Reason.BAD_CONVERSATION, where, detail)
    text: str = message["value"]
    return text


def _clean(text: str, where: str) -> str:
    """Checked and without spaces around."""
    check_utf8(text, where)
    for marker in (IMAGE_MARKER, *CONTROL_TOKENS):
        if marker in text:
            raise BadSample.of(Reason.MARKER_IN_TEXT, where, f"a text must not hold {marker}")
    return text.strip()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a key that occurs twice JSON's readers silently take the last value."""
    out = dict(pairs)
    if len(out) < len(pairs):
        raise ValueError(f"a key must occur once, got {_keys(dict.fromkeys(key for key, _ in pairs))} for {len(pairs)} values")
    return out


def _keys(record: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, list(record)[:8])) or "nothing"
