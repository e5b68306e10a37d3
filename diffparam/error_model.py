"""Errors to inject: what a sampler's output, state or coefficients suffer before they are used."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffparam._checks import check_number
from diffparam.errors import UnknownName
from diffparam.rounding import BFLOAT16, FloatFormat, RoundingMode, _require_mode, parse_format, relative_error, round_to

Law = Literal["constant", "uniform", "gaussian", "rademacher"]
LAWS = ("constant", "uniform", "gaussian", "rademacher")


@runtime_checkable
class ErrorModel(Protocol):
    """Something that perturbs a tensor and knows the size of what it does."""

    @property
    def rms(self) -> float:
        """Root mean square relative error."""

    def apply(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``value`` with the error in it: same shape, dtype and device."""


@dataclass(frozen=True)
class RelativeError:
    """``value (1 + delta xi)``: eq. 5 and 17 with a law for the relative error.

    Args:
        delta: Root mean square relative error: a number, or ``machine_epsilon``, ``unit_roundoff``, ``rms`` of ``fmt``.
        law: ``constant`` (xi = 1, the paper's), ``uniform`` (in +-sqrt 3), ``gaussian``, ``rademacher`` (+-1); every law has
            mean square 1.
        fmt: The format that a named ``delta`` speaks of.

    The product is formed in at least float32; below that the dtype's own rounding comes on top.
    """

    delta: float | str
    law: Law = "constant"
    fmt: str | torch.dtype | FloatFormat = BFLOAT16

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", relative_error(self.delta, self.fmt))
        if self.law not in LAWS:
            raise UnknownName("law", self.law, LAWS)

    @property
    def rms(self) -> float:
        """Delta."""
        return float(self.delta)

    def apply(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``value (1 + delta xi)``, xi drawn from ``generator`` (of the device of ``value``)."""
        if self.law == "constant":
            return value * (1.0 + self.rms)
        dtype = value.dtype if value.dtype.itemsize >= 4 else torch.float32
        options: dict[str, Any] = {"generator": generator, "dtype": dtype, "device": value.device}
        if self.law == "gaussian":
            xi = torch.randn(value.shape, **options)
        elif self.law == "uniform":
            xi = (2.0 * torch.rand(value.shape, **options) - 1.0) * math.sqrt(3.0)
        else:
            xi = torch.where(torch.rand(value.shape, **options) < 0.5, -1.0, 1.0)
        return (value * (1.0 + self.rms * xi)).to(value.dtype)


@dataclass(frozen=True)
class RoundingError:
    """Exact emulation of storing the value in a format.

    Args:
        fmt: Format, by name, torch dtype or :class:`diffparam.rounding.FloatFormat`.
        mode: Rounding mode.
        saturate: Whether overflow becomes the largest value.
    """

    fmt: str | torch.dtype | FloatFormat = BFLOAT16
    mode: RoundingMode = "nearest"
    saturate: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "fmt", parse_format(self.fmt))
        _require_mode(self.mode)

    @property
    def rms(self) -> float:
        """Rms relative error for a log-uniform significand."""
        return parse_format(self.fmt).rms_of(self.mode)

    def apply(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``value`` rounded once; ``generator`` serves the stochastic mode."""
        return round_to(value, self.fmt, mode=self.mode, saturate=self.saturate, generator=generator)


@dataclass(frozen=True)
class AdditiveError:
    """``value + scale xi`` with Gaussian xi: the part of a network's error that does not shrink with its output.

    Args:
        scale: Standard deviation, in units of the value.
    """

    scale: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_number(self.scale, "scale", low=0.0))

    @property
    def rms(self) -> float:
        """scale: the rms relative error of a value of unit rms."""
        return self.scale

    def apply(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``value + scale xi``, xi drawn from ``generator``."""
        dtype = value.dtype if value.dtype.itemsize >= 4 else torch.float32
        xi = torch.randn(value.shape, generator=generator, dtype=dtype, device=value.device)
        return (value + self.scale * xi).to(value.dtype)
