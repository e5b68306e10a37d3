"""Samples that are left out: for which reason, how many, which, and when there are too many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

_SHOWN = 5
"""Examples kept of each reason."""
_LENGTH = 300
"""Characters kept of each."""


class Reason(StrEnum):
    """Why a sample is left out."""

    BAD_RECORD = "record is malformed"
    NOT_UTF8 = "text is not UTF-8"
    NO_IMAGE = "record has no image"
    NO_TEXT = "record has no text"
    EMPTY_CAPTION = "caption is empty"
    BAD_CONVERSATION = "conversation is malformed"
    MARKER_IN_TEXT = "marker of an image or of the chat format in a text"
    PATH_LEAVES_FOLDER = "path leaves the folder"
    DUPLICATE = "key occurs twice"
    NO_METADATA = "image without metadata"
    MISSING_FILE = "file is missing"
    UNREADABLE_FILE = "file cannot be read"
    EMPTY_FILE = "file is empty"
    NOT_AN_IMAGE = "file is not an image"
    BROKEN_IMAGE = "image is damaged"
    TOO_LARGE = "image is too large"
    TOO_SMALL = "image is too small"
    PIXEL_FORMAT = "pixels are not 8-bit"
    BROKEN_SHARD = "shard is damaged"
    NOT_FINITE = "tokens are not finite"


class BadSample(ValueError):
    """A sample that cannot be used.

    Attributes:
        reason: Why; None for an exception that crossed from a worker process, where only the message survives.
    """

    def __init__(self, message: str, reason: Reason | None = None) -> None:
        super().__init__(message)
        self.reason = reason

    @classmethod
    def of(cls, reason: Reason, where: str, detail: str = "") -> Self:
        """With the place, a file and a line or the like, in front of the message."""
        return cls(f"{where}: {reason}" + (f": {detail}" if detail else ""), reason)


class TooManySkipped(RuntimeError):
    """So many samples were left out that something must be wrong with all of them. The message holds the report."""


@dataclass(frozen=True)
class SkipLimit:
    """How many samples may be left out.

    Attributes:
        max_share: Of ``window`` samples in a row, delivered and left out, the share that may be left out; 1: any.
        window: Samples. Every window counts, not the first alone: a disk can fail in the tenth hour.
    """

    max_share: float = 0.5
    window: int = 1000

    def __post_init__(self) -> None:
        if not 0 <= self.max_share <= 1:
            raise ValueError(f"max_share must lie in [0, 1], got {self.max_share}; 0.5 is one half")
        if self.window < 1:
            raise ValueError(f"window must be at least 1 sample, got {self.window}")


class Skipped:
    """Counts of samples delivered and left out, with the first examples of each reason. Printed, it is a report.

    A sample that is left out in two epochs counts twice, as one that is delivered in both does.
    """

    def __init__(self) -> None:
        self.delivered = 0
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    @property
    def total(self) -> int:
        """Samples left out."""
        return sum(self.counts.values())

    @property
    def share(self) -> float:
        """Of all samples, those left out; 0 before the first."""
        seen = self.total + self.delivered
        return self.total / seen if seen else 0.0

    def add(self, bad: BadSample) -> None:
        """Count one that is left out."""
        self._absorb(str(bad.reason or Reason.BAD_RECORD), 1, [_printable(str(bad))])

    def merge(self, other: Skipped) -> None:
        """Add the counts of another, and its examples while there is room."""
        self.delivered += other.delivered
        for reason, count in other.counts.items():
            self._absorb(reason, count, other.examples[reason])

    @classmethod
    def merged(cls, parts: Iterable[Skipped]) -> Self:
        """The sum of several: of workers, or of ranks."""
        out = cls()
        for part in parts:
            out.merge(part)
        return out

    def check(self, max_share: float) -> None:
        """Raise TooManySkipped if more than a share is left out."""
        if self.share > max_share:
            raise TooManySkipped(
                f"at most {max_share:.0%} of the samples must be left out, got {self.total} of {self.total + self.delivered}; "
                f"correct the data, or raise max_share\n{self}"
            )

    def state_dict(self) -> dict[str, Any]:
        """As JSON values."""
        examples = {reason: list(texts) for reason, texts in self.examples.items()}
        return {"delivered": self.delivered, "counts": dict(self.counts), "examples": examples}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """What :meth:`state_dict` gave."""
        out = cls()
        out.delivered, out.counts = state["delivered"], dict(state["counts"])
        out.examples = {reason: list(texts) for reason, texts in state["examples"].items()}
        return out

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Skipped) and self.state_dict() == other.state_dict()

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        lines = [f"{self.total} of {self.total + self.delivered} samples left out"]
        for reason, count in sorted(self.counts.items(), key=lambda item: (-item[1], item[0])):
            lines += [f"  {count:>7}  {reason}", *(f"           {text}" for text in self.examples[reason])]
        return "\n".join(lines)

    def _absorb(self, reason: str, count: int, examples: list[str]) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + count
        kept = self.examples.setdefault(reason, [])
        kept += examples[: _SHOWN - len(kept)]


def _printable(text: str) -> str:
    """One line that any terminal and any JSON file can hold: file names and texts can be anything."""
    text = text if len(text) <= _LENGTH else f"{text[: _LENGTH - 3]}..."
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
