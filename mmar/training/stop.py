"""Ending a run on request: Ctrl-C and SIGTERM finish the step, save and leave with status 0; a second one leaves at once."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self

ECHO_S = 1.0
"""Seconds in which a further signal is the same request: job schedulers send one to a process and to its group."""


class StopRequest:
    """Within it, the first signal only sets a flag.

    Attributes:
        asked: Name of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._asked_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked, self._asked_at = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._asked_at > ECHO_S:
            raise KeyboardInterrupt
