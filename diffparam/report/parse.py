"""Words of a command line as the library's values."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from diffparam.error_model import RelativeError
from diffparam.errors import UnknownName
from diffparam.names import parse_parameterization
from diffparam.parameterization import AngularParam
from diffparam.report.config_file import parse_json
from diffparam.report.errors import BadInput
from diffparam.report.scheduler_options import DEFAULTS
from diffparam.rounding import FloatFormat, parse_format
from diffparam.schedule import Schedule

SCHEDULES = ("cosine", "linear", "scaled_linear", "rectified_flow", "karras")
MAX_TRAINING_STEPS = 1_000_000


def parse_signed(name: str, sigma_data: float | None = None) -> AngularParam:
    """:func:`diffparam.parse_parameterization`, with ``-`` in front for the negative, as in ``-flow`` (x - eps).

    ``sigma_data`` is 1 by default for the names that take one, and not looked at by the others.
    """
    bare = name.strip().removeprefix("-")
    try:
        param = parse_parameterization(bare)
    except UnknownName:
        raise
    except ValueError:  # edm, trigflow and optimal
        param = parse_parameterization(bare, sigma_data=1.0 if sigma_data is None else sigma_data)
    return -param if name.strip().startswith("-") else param


def parse_error(text: str) -> Any:
    """A format's name, a number as the rms relative error that was measured, or ``none``."""
    if text.strip().lower() in ("none", "exact"):
        return None
    try:
        delta = float(text)
    except ValueError:
        return parse_format(text)
    return RelativeError(delta, "gaussian")


def parse_format_or_none(text: str) -> FloatFormat | None:
    """A format's name, or ``none``."""
    return None if text.strip().lower() in ("none", "exact") else parse_format(text)


def parse_schedule(name: str, steps: int | None) -> Schedule:
    """A schedule by its name, of ``steps`` timesteps (its own number by default)."""
    if name not in SCHEDULES:
        raise UnknownName("schedule", name, SCHEDULES)
    if steps is None:
        return getattr(Schedule, name)()
    if not 1 <= steps <= MAX_TRAINING_STEPS:
        raise BadInput(f"train-steps must lie in [1, {MAX_TRAINING_STEPS}], got {steps}")
    return getattr(Schedule, name)(steps)


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """``key=value`` pairs: the value as JSON, or as the word it is.

    Raises:
        BadInput: If there is no ``=``, or no scheduler has such an option (a mistyped key would change nothing).
    """
    known = {"_class_name", *(key for options in DEFAULTS.values() for key in options)}
    out: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise BadInput(f"--set must be given as KEY=VALUE, got {assignment!r}")
        if key not in known:
            raise BadInput(f"the key of --set must be an option of a scheduler, got {key!r}{nearest(key, known)}")
        out[key] = _value(text)
    return out


def nearest(name: str, known: Iterable[str]) -> str:
    """``. Did you mean ...?`` for the end of a message, or a full stop."""
    by_lower = {word.lower(): word for word in sorted(known)}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f". Did you mean {by_lower[near[0]]!r}?" if near else "."


def _value(text: str) -> Any:
    if text in ("-Infinity", "Infinity", "NaN"):  # words that JSON readers take for numbers; -Infinity is one option's off
        return float(text.lower())
    try:
        return parse_json(text, "--set")
    except BadInput:
        return text
