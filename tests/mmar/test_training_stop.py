"""Signals: the first asks, its echo is the same request, a later one leaves at once."""

from __future__ import annotations

import os
import signal

import pytest

from mmar.training import stop
from mmar.training.stop import StopRequest


def test_the_echo_of_a_signal_is_no_second_request() -> None:
    with StopRequest() as request:
        assert request.asked is None
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.asked == "SIGTERM"


def test_a_later_signal_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(stop.time, "monotonic", lambda: now[0])
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.asked == "SIGINT"
        now[0] += stop.ECHO_S + 0.1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
