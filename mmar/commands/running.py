"""How a subcommand runs: complaints in one line on stderr, and the exit status."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from safetensors import SafetensorError

GOOD, FAILED, BAD, INTERRUPTED = 0, 1, 2, 130
LONGEST_LINE = 1200

_BAD_INPUT = (ValueError, TypeError, NotImplementedError, ImportError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
_FAILURES = (OSError, RuntimeError, ArithmeticError, MemoryError, SafetensorError)


class CommandParser(argparse.ArgumentParser):
    """Complaints in one line, as all others."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise ValueError(f"{message}; see {self.prog} --help")


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None, work: Callable[[argparse.Namespace], None]) -> int:
    """Parse and work.

    Returns:
        0; 2 for bad input and 1 for a failure, each after a line on stderr; 130 after an interruption.
    """
    try:
        work(parser.parse_intermixed_args(argv))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader has enough (| head)
        _silence_stdout()
    except _BAD_INPUT as error:
        return _complain(parser.prog, error, BAD)
    except _FAILURES as error:
        return _complain(parser.prog, error, FAILED)
    return GOOD


def _complain(prog: str, error: BaseException, status: int) -> int:
    text = " ".join((str(error) or type(error).__name__).split())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    line = line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 4]} ..."
    print(f"{prog}: {line}".encode(errors="backslashreplace").decode(), file=sys.stderr)
    return status


def say(text: str) -> None:
    """Print at once, whatever characters the terminal knows: an answer can hold any."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="backslashreplace").decode(encoding), flush=True)


def _silence_stdout() -> None:
    """So that the interpreter's own flush at exit does not fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def whole_number(least: int) -> Callable[[str], int]:
    """For ``type=`` of an option: a whole number of at least ``least``."""

    def parse(text: str) -> int:
        if not text.strip().removeprefix("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text[:40]!r}")
        return int(text)

    return parse


def number(text: str) -> float:
    """For ``type=`` of an option."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text[:40]!r}") from None


def assignments(words: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` words: the value as JSON, or as the word it is.

    Raises:
        ValueError: If a word has no key.
    """
    out: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not (equals and key):
            raise ValueError(f"--set must be given as KEY=VALUE, got {word!r}")
        try:
            out[key] = json.loads(text)
        except json.JSONDecodeError:
            out[key] = text
    return out
