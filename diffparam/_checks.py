"""Checks at the door: one rule per function, each message says the rule, the value and the remedy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffparam.angle import HALF_PI, Angle, is_traced
from diffparam.errors import NonFiniteError


def check_phi(phi: Any, name: str = "phi") -> Angle:
    """An angle of the state: float64, radians, in [0, pi/2]. Numbers come back as float."""
    if isinstance(phi, (int, float)) and not isinstance(phi, bool):
        if not 0.0 <= phi <= HALF_PI:
            _refuse_phi(name, phi)
        return float(phi)
    if isinstance(phi, np.ndarray):
        if phi.dtype != np.float64:
            _refuse_dtype(name, phi.dtype)
        if phi.size and not (phi.min() >= 0 and phi.max() <= HALF_PI):
            _refuse_phi(name, float(phi[~((phi >= 0) & (phi <= HALF_PI))].flat[0]))
        return phi
    if isinstance(phi, Tensor):
        if phi.dtype is not torch.float64:
            _refuse_dtype(name, phi.dtype)
        if phi.device.type not in ("cpu", "meta"):
            raise ValueError(f"{name} must lie on the CPU, got {phi.device}; pass {name}.cpu() (not every device has float64)")
        if not is_traced(phi) and phi.numel():
            inside = (phi.detach() >= 0) & (phi.detach() <= HALF_PI)
            if not bool(inside.all()):
                _refuse_phi(name, float(phi.detach()[~inside].flatten()[0]))
        return phi
    raise TypeError(f"{name} must be a float, a numpy float64 array or a torch float64 tensor, got {type(phi).__name__}")


def _refuse_phi(name: str, value: float) -> None:
    if value != value:
        raise NonFiniteError(f"{name} must be finite, got nan; angles come from Schedule.phi")
    raise ValueError(f"{name} must lie in [0, pi/2] radians, got {value!r}; angles come from Schedule.phi")


def _refuse_dtype(name: str, dtype: object) -> None:
    raise TypeError(
        f"{name} must be float64, got {dtype}; a float32 angle loses cos(phi) near pi/2: take Schedule.phi as it is"
    )


def check_number(value: Any, name: str, *, low: float = -math.inf, high: float = math.inf, open_low: bool = False) -> float:
    """A finite real number in the given range, as float."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} ({value!r})")
    number = float(value)
    if not math.isfinite(number):
        raise NonFiniteError(f"{name} must be finite, got {number!r}")
    if number < low or number > high or (open_low and number == low):
        left = "(" if open_low or low == -math.inf else "["
        right = ")" if high == math.inf else "]"
        raise ValueError(f"{name} must lie in {left}{low:g}, {high:g}{right}, got {number!r}")
    return number


def check_count(value: Any, name: str, *, low: int = 1, high: int | None = None) -> int:
    """A whole number in the given range."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__} ({value!r})")
    if value < low or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high}"
        raise ValueError(f"{name} must be at least {low}{upper}, got {value}")
    return int(value)


def check_sample(value: Any, name: str) -> Tensor:
    """A real floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must have a floating-point dtype, got {value.dtype}; convert it with .float()")
    return value


def check_pair(a: Any, b: Any, names: tuple[str, str]) -> None:
    """Two real floating-point tensors of one shape and device."""
    check_sample(a, names[0])
    check_sample(b, names[1])
    if a.shape != b.shape:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}; "
            "they are never broadcast against each other"
        )
    if a.device != b.device:
        raise ValueError(f"{names[0]} and {names[1]} must be on one device, got {a.device} and {b.device}")


def check_finite(value: Tensor, name: str, remedy: str) -> None:
    """Refuse NaN and infinity; skipped where ``value`` has no numbers to read."""
    if is_traced(value):
        return
    total = (value.sum() if value.dtype.itemsize >= 4 else value.sum(dtype=torch.float32)).item()
    if not math.isfinite(total) and not bool(torch.isfinite(value).all()):  # the sum alone may overflow
        bad = (~torch.isfinite(value.detach())).sum().item()
        raise NonFiniteError(f"{name} must be finite, but {bad} of its {value.numel()} values are NaN or infinite; {remedy}")


def check_increments(increments: bool, arithmetic: Any) -> None:
    """An update as a change of the state is for arithmetic that rounds."""
    if increments and arithmetic is None:
        raise ValueError("increments must come with arithmetic, the format that it is for, got None; add arithmetic='bfloat16'")


def everywhere(holds: Any) -> bool:
    """Whether a comparison of angles holds at each of them; believed where it cannot be read."""
    return holds if isinstance(holds, bool) else is_traced(holds) or bool(holds.all())
