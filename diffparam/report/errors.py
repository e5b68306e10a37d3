"""What the commands refuse, told apart by their exit status."""

from __future__ import annotations


class BadInput(ValueError):
    """The input cannot be read or makes no sense (exit status 2)."""


class NotARescaling(ValueError):
    """The target output is no constant multiple of the source output (exit status 1)."""
