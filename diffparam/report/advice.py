"""What would help: changes to a run, each tried on the prediction before it is given."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffparam.error_model import ErrorModel, RoundingError
from diffparam.parameterization import AngularParam, V
from diffparam.report.assess import Assessment, assess
from diffparam.report.run import Run
from diffparam.rounding import FLOAT32

WORTH_SAYING = 2.0
"""How much smaller the error must become before a change that does not make the run safe is mentioned."""
NEAR = 10.0
"""A safe run is left alone if its error is this much below the tolerance."""
LARGE_KAPPA = 100.0
"""Above it an imperfect network is in trouble in any precision."""


@dataclass(frozen=True)
class Advice:
    """A change and what it is predicted to do.

    Attributes:
        text: In words.
        change: By option: ``param``, ``output``, ``arithmetic``, ``increments``, ``state``, ``timestep``, ``steps`` or
            ``start``.
        error: Predicted error of the final sample with it.
        safe: Whether the run is then safe.
    """

    text: str
    change: dict[str, str | float]
    error: float
    safe: bool


@dataclass(frozen=True, eq=False)
class _Change:
    text: str
    option: dict[str, str | float]
    run: Run
    row: Assessment


def advise(run: Run, now: Assessment, others: Sequence[tuple[AngularParam, Assessment]]) -> tuple[Advice, ...]:
    """Changes that make an unsafe run safe, single ones if possible; else those that at least halve its error. Best first.

    Args:
        run: The run as configured.
        now: Its assessment.
        others: Other parameterizations, already assessed in the same run.
    """
    was_safe = not now.objections(run.tolerance)
    if was_safe and now.error * NEAR <= run.tolerance:
        return ()
    tried = [*_one_change(run, now, others)]
    if not was_safe and not any(_is_safe(change) for change in tried):
        tried += _more_changes(run, now)
    safe = [change for change in tried if _is_safe(change)]
    helpful = safe if safe and not was_safe else [c for c in safe or tried if c.row.error * WORTH_SAYING <= now.error]
    by_error = sorted(helpful, key=lambda change: change.row.error)
    return tuple(Advice(c.text, c.option, c.row.error, _is_safe(c)) for c in by_error)


def _is_safe(change: _Change) -> bool:
    return not change.row.objections(change.run.tolerance)


def _one_change(run: Run, now: Assessment, others: Sequence[tuple[AngularParam, Assessment]]) -> Iterator[_Change]:
    if others:
        param, best = min(others, key=lambda pair: _rank(pair[1], run.tolerance))
        yield _Change(f"train the network to predict {param.name}", {"param": param.name}, replace(run, param=param), best)
    if is_narrow(run.output):
        only = " (this helps against rounding only)" if now.kappa_max > LARGE_KAPPA else ""
        text = f"keep the network's last layer, its output and guidance in float32{only}"
        yield _tried(text, {"output": "float32"}, run)
    for option, text in _WIDER.items():
        if is_narrow(getattr(run, option)):
            yield _tried(text, {option: "float32"}, run)
    if is_narrow(run.arithmetic) and not run.increments:
        yield _tried("compute the update as a change of the sample, x + ((a - 1) x + b u)", {"increments": True}, run)
    yield from _later_start(run, now)
    yield from _fewer_steps(run, now)


_WIDER = {
    "state": "store the sample in float32 between the steps",
    "arithmetic": "compute the update in float32, with coefficients from float64",
    "timestep": "pass the timestep in float32",
}


def _more_changes(run: Run, now: Assessment) -> Iterator[_Change]:
    """Everything outside the network in float32, alone and with one more change."""
    narrow = [option for option in _WIDER if is_narrow(getattr(run, option))]
    if not narrow:
        return
    text = "; ".join(_WIDER[name] for name in narrow)
    option: dict[str, str | float] = dict.fromkeys(narrow, "float32")
    wide = _tried(text, option, run)
    if len(narrow) > 1:
        yield wide
    if not _is_safe(wide):
        for change in (*_one_change(wide.run, wide.row, ()), *_best_param(wide.run)):
            yield replace(change, text=f"{text}; {change.text}", option={**option, **change.option})


def _best_param(run: Run) -> Iterator[_Change]:
    param = V if run.sigma_data == 1 else AngularParam.optimal(run.sigma_data)
    changed = replace(run, param=param)
    yield _Change(f"train the network to predict {param.name}", {"param": param.name}, changed, assess(changed))


def _rank(row: Assessment, tolerance: float) -> tuple[bool, float]:
    """Safe ones first, then by error to two digits, so that of equals the first, and better known, is taken."""
    return bool(row.objections(tolerance)), float(f"{row.error:.1e}")


def _tried(text: str, option: dict[str, str | float], run: Run) -> _Change:
    changes: Any = option
    changed = replace(run, **changes)
    return _Change(text, option, changed, assess(changed))


def is_narrow(error: Any) -> bool:
    """Whether a format, or an error model, is worse than float32."""
    if error is None:
        return False
    if isinstance(error, ErrorModel):
        return error.rms > RoundingError(FLOAT32).rms
    return bool(error.precision < FLOAT32.precision)


def _later_start(run: Run, now: Assessment) -> Iterator[_Change]:
    """Leave out the noisy steps that are not safe."""
    limit = now.largest_safe_timestep
    if limit is None:
        return
    keep = run.grid.timesteps <= limit
    if not bool(keep.any()) or bool(keep.all()):
        return
    changed = replace(run, grid=run.grid.up_to(limit))
    start = float(changed.grid.timesteps[-1])
    text = (
        f"start at timestep {start:g} (safe up to {limit:g}); pure noise as the start then leaves out a signal of "
        f"{math.cos(float(changed.grid.phi[-1])):.2g}"
    )
    yield _Change(text, {"start": start}, changed, assess(changed))


def _fewer_steps(run: Run, now: Assessment) -> Iterator[_Change]:
    """Halve the steps until no update of a rounded state is lost."""
    count = len(run.grid)
    if not any(flag.kind == "stagnation" for flag in now.flags):
        return
    while count > 8:
        count = math.ceil(count / 2)
        index = np.linspace(0, len(run.grid) - 1, count).round().astype(np.int64)
        changed = replace(run, grid=run.grid.take(index))
        row = assess(changed)
        if not any(flag.kind == "stagnation" for flag in row.flags):
            text = f"take {count} steps instead of {len(run.grid)}, so that no update is lost"
            yield _Change(text, {"steps": float(count)}, changed, row)
            return
