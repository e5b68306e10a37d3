"""Saying which sample an error or a warning is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class TruncatedCaption(UserWarning):
    """A caption was shortened, as ``truncation="caption"`` asked."""


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put ``where`` in front of the message of a TypeError or ValueError."""
    try:
        yield
    except TypeError as error:
        raise TypeError(f"{where}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def checked_list(values: Any, name: str) -> list[Any]:
    """The entries of a batch.

    Raises:
        TypeError: If they are no list: one string would be taken for its letters.
        ValueError: If there are none.
    """
    if not isinstance(values, list | tuple):
        raise TypeError(f"{name} must be a list, one entry per row, got {type(values).__name__}")
    if not values:
        raise ValueError(f"{name} must hold at least one entry, got none")
    return list(values)
