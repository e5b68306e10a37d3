"""Errors to inject: what a sampler's output, state or coefficients suffer before they are used."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from diffparam._checks import check_number
from diffparam.errors import UnknownName
from diffparam.rounding import BFLOAT16, FloatFormat, RoundingMode, _require_mode, parse_format, relative_error, round_to
from diffparam.rounding_energy import compensated_energy, rounding_energy

Law = Literal["constant", "uniform", "gaussian", "rademacher"]
LAWS = ("constant", "uniform", "gaussian", "rademacher")


@runtime_checkable
class ErrorModel(Protocol):
    """Something that perturbs a tensor and knows the size of what it does."""

    @property
    def rms(self) -> float:
        """Root mean square relative error."""

    @property
    def scales_with_value(self) -> bool:
        """Whether the error of a value is proportional to that value, or independent of it."""

    def energy(self, mean_square: Any) -> Any:
        """Expected square of the error of a zero-mean Gaussian value of this mean square; numbers or arrays."""

    def bound(self, mean_square: Any) -> Any:
        """What the rms of the error never exceeds for values of this mean square; infinite where there is no such number."""

    def apply(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``value`` with the error in it: same shape, dtype and device."""


def check_error_model(value: Any, name: str) -> ErrorModel | None:
    """An error model or None; a format is :class:`RoundingError` of it."""
    if value is not None and (not isinstance(value, ErrorModel) or isinstance(value, type | FloatFormat)):
        raise TypeError(
            f"{name} must be an error model or None, got {type(value).__name__} ({value!r}); rounding to a format is "
            "RoundingError(format)"
        )
    return value


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

    scales_with_value = True

    def energy(self, mean_square: Any) -> Any:
        """delta^2 times the value's."""
        return self.rms**2 * mean_square

    def bound(self, mean_square: Any) -> Any:
        """Delta times the largest xi of the law, which a Gaussian has not."""
        largest = {"constant": 1.0, "rademacher": 1.0, "uniform": math.sqrt(3.0), "gaussian": math.inf}[self.law]
        root = np.sqrt(mean_square)
        if self.rms and math.isinf(largest):
            return np.where(root > 0, math.inf, 0.0)[()]
        return self.rms * largest * root if self.rms else 0.0 * root

    def apply(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``value (1 + delta xi)``, xi drawn from ``generator`` (of the device of ``value``)."""
        dtype = value.dtype if value.dtype.itemsize >= 4 else torch.float32
        if self.law == "constant":
            return (value.to(dtype) * (1.0 + self.rms)).to(value.dtype)
        options: dict[str, Any] = {"generator": generator, "dtype": dtype, "device": value.device}
        if self.law == "gaussian":
            xi = torch.randn(value.shape, **options)
        elif self.law == "uniform":
            xi = (2.0 * torch.rand(value.shape, **options) - 1.0) * math.sqrt(3.0)
        else:
            xi = 1.0 - 2.0 * (torch.rand(value.shape, **options) < 0.5).to(dtype)
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

    scales_with_value = True

    def energy(self, mean_square: Any) -> Any:
        """:func:`diffparam.rounding_energy`."""
        return rounding_energy(parse_format(self.fmt), mean_square, mode=self.mode)

    def bound(self, mean_square: Any) -> Any:
        """The format's largest relative error, plus that of a subnormal."""
        fmt = parse_format(self.fmt)
        tiny = fmt.smallest_subnormal * (0.5 if self.mode == "nearest" else 1.0)
        return fmt.bound_of(self.mode) * np.sqrt(mean_square) + tiny

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

    scales_with_value = False

    def energy(self, mean_square: Any) -> Any:
        """scale^2."""
        return self.scale**2 + 0.0 * mean_square

    def bound(self, mean_square: Any) -> Any:
        """Infinite: a Gaussian has no largest value."""
        return (math.inf if self.scale else 0.0) + 0.0 * mean_square

    def apply(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``value + scale xi``, xi drawn from ``generator``."""
        dtype = value.dtype if value.dtype.itemsize >= 4 else torch.float32
        xi = torch.randn(value.shape, generator=generator, dtype=dtype, device=value.device)
        return (value + self.scale * xi).to(value.dtype)


@dataclass(frozen=True)
class CompensatedRounding:
    """Storing the value in two numbers of a format, the second what the first left over (a compensated, Kahan-style state).

    Args:
        fmt: Format of both.
    """

    fmt: str | torch.dtype | FloatFormat = BFLOAT16

    def __post_init__(self) -> None:
        object.__setattr__(self, "fmt", parse_format(self.fmt))

    scales_with_value = True

    @property
    def rms(self) -> float:
        """One rounding's times that of its remainder, which is uniform in a cell: the machine epsilon over sqrt 28."""
        fmt = parse_format(self.fmt)
        return fmt.rms * fmt.machine_epsilon / math.sqrt(28.0)

    def energy(self, mean_square: Any) -> Any:
        """:func:`diffparam.rounding_energy.compensated_energy`."""
        return compensated_energy(parse_format(self.fmt), mean_square)

    def bound(self, mean_square: Any) -> Any:
        """The square of the format's largest relative error, plus that of a subnormal."""
        fmt = parse_format(self.fmt)
        return fmt.bound_of("nearest") ** 2 * np.sqrt(mean_square) + fmt.smallest_subnormal

    def apply(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``high + low``, in the dtype of ``value``, which must hold both; what overflows ``fmt`` goes where ``fmt`` says."""
        high = round_to(value, self.fmt)
        return torch.where(high.isfinite(), high + round_to(value - high, self.fmt), high)
