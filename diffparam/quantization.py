r"""Formats that need a scale: int8 and fp8 by the largest magnitude, and blocks that share a power of two (OCP MX v1.0).

Their error depends on the largest magnitude of the values that share a scale, so the expected error of Gaussian values is an
integral over the law of that maximum, :math:`P(\max|x_i| < A) = (2\Phi(A/\sigma) - 1)^n`: given it, the other values are
Gaussian, cut off at A, and every cell of the format has its moment in closed form.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

from diffparam._checks import check_count, check_finite, check_sample
from diffparam.errors import UnknownName
from diffparam.rounding import FLOAT8_E4M3, FLOAT8_E5M2, FloatFormat, _ldexp, round_to
from diffparam.rounding_energy import _grid, _second_moment

FLOAT6_E2M3 = FloatFormat("float6_e2m3", 4, 0, 7.5, math.nan)
FLOAT6_E3M2 = FloatFormat("float6_e3m2", 3, -2, 28.0, math.nan)
FLOAT4_E2M1 = FloatFormat("float4_e2m1", 2, 0, 6.0, math.nan)
INT8 = FloatFormat("int8", 8, 1, 127 / 64, math.nan)
"""Multiples of 1/64 up to 127/64, as MX has them: a format all of whose values are subnormal; symmetric, without -128/64."""
ELEMENTS = {f.name: f for f in (INT8, FLOAT8_E4M3, FLOAT8_E5M2, FLOAT6_E2M3, FLOAT6_E3M2, FLOAT4_E2M1)}
_ALIASES = {
    "e4m3": "float8_e4m3", "fp8_e4m3": "float8_e4m3", "float8_e4m3fn": "float8_e4m3",
    "e5m2": "float8_e5m2", "fp8_e5m2": "float8_e5m2",
    "e2m3": "float6_e2m3", "fp6_e2m3": "float6_e2m3", "e3m2": "float6_e3m2", "fp6_e3m2": "float6_e3m2",
    "e2m1": "float4_e2m1", "fp4": "float4_e2m1", "fp4_e2m1": "float4_e2m1",
}  # fmt: skip
_NODES = 512
"""Quantiles of the largest magnitude over which expectations are taken."""
_OCTAVE = 32
"""Points of the table of a block's energy over one octave of the standard deviation, in which it is periodic."""


@dataclass(frozen=True)
class AmaxRounding:
    """``scale * round(value / scale)`` with ``scale = max|value| / largest of the format``: int8 and per-tensor-scaled fp8.

    The largest value is represented exactly and nothing overflows; zeros stay zeros. The scale itself is not rounded, and
    values of at most float32 are quantised as in exact arithmetic.

    Args:
        element: ``int8`` (symmetric, -127 to 127), ``float8_e4m3``, ``float8_e5m2``, or a narrower one of :data:`ELEMENTS`.
        count: Values that share a scale, for the predictions alone: the elements of the tensor, of a row, of a channel.
        over: Dimensions whose values share a scale: None for the whole tensor, ``(-1,)`` for each row, ``(0, 2, 3)`` for each
            channel of images.
    """

    element: str | torch.dtype | FloatFormat
    count: int
    over: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "element", parse_element(self.element))
        check_count(self.count, "count")
        if self.over is not None:
            over = (self.over,) if isinstance(self.over, int) else tuple(self.over)
            if not over or not all(isinstance(d, int) for d in over):
                raise ValueError(f"over must name at least one dimension, got {over}; None is all of them")
            object.__setattr__(self, "over", over)

    @property
    def scales_with_value(self) -> bool:
        """True for a float element, False for int8.

        The error of int8 is uniform within half a step, and the step is set by the largest of the values that share the scale:
        an element of a tenth of the size has the same error. A float element has the smaller step of its own binade.
        """
        return _is_float(parse_element(self.element))

    @property
    def rms(self) -> float:
        """Rms error of Gaussian values over their rms, the same at any size."""
        return math.sqrt(_amax_energy(parse_element(self.element), self.count))

    def energy(self, mean_square: Any) -> Any:
        """Proportional to the value's, the maximum of ``count`` Gaussian values being so."""
        return self.rms**2 * mean_square

    def bound(self, mean_square: Any) -> Any:
        """From max|x|^2 <= count E[x^2]: the relative bound of the format, plus half its smallest step at the largest scale."""
        fmt = parse_element(self.element)
        return _relative_bound(fmt) * np.sqrt(mean_square) + fmt.smallest_subnormal / 2 / fmt.max * np.sqrt(
            self.count * np.asarray(mean_square)
        )

    def apply(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``value`` quantised and dequantised.

        Raises:
            NonFiniteError: If a value is NaN or infinite; one such value would decide the scale of all.
        """
        fmt = parse_element(self.element)
        wide = _finite_and_wide(value)
        if not wide.numel():
            return value.clone()
        if not all(-wide.ndim <= d < wide.ndim for d in self.over or ()):
            raise ValueError(f"over must name dimensions of value {tuple(wide.shape)}, got {self.over}")
        amax = wide.abs().amax(self.over or tuple(range(wide.ndim)), keepdim=True)
        fraction, exponent = torch.frexp(amax)  # [1/2, 1): nothing overflows below, and products are exact
        fraction = torch.where(amax > 0, fraction, 1.0)
        # products first: they are exact, so a tie is a tie
        whole = round_to(_ldexp(wide, -exponent) * fmt.max / fraction, fmt, saturate=True)
        return _ldexp(whole * fraction / fmt.max, exponent).to(value.dtype)


@dataclass(frozen=True)
class BlockRounding:
    """Blocks along the last dimension, each ``2^shared`` times elements of a narrow format (OCP MX v1.0, section 6.3).

    ``shared = floor(log2 max|value|) - floor(log2 of the format's largest value)``, kept in E8M0 (-127 to 127); elements are
    rounded to nearest even and saturate, which meets those between the format's largest value and the next power of two. A last
    block may be shorter.

    Args:
        element: ``float8_e4m3``, ``float8_e5m2``, ``float6_e2m3``, ``float6_e3m2``, ``float4_e2m1`` or ``int8``.
        block: Values per block.
    """

    element: str | torch.dtype | FloatFormat
    block: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "element", parse_element(self.element))
        check_count(self.block, "block")

    @property
    def scales_with_value(self) -> bool:
        """For a float element; within a block of int8 all errors are of one size, whatever the element."""
        return _is_float(parse_element(self.element))

    @property
    def rms(self) -> float:
        """Rms error of standard normal values."""
        return math.sqrt(float(self.energy(1.0)))

    def energy(self, mean_square: Any) -> Any:
        """Expected square for full blocks of Gaussian values within the range of the shared exponent.

        Its ratio to the value's repeats with every power of two in the rms.
        """
        mean_square = np.asarray(mean_square, dtype=np.float64)
        octaves = np.log2(np.where(mean_square > 0, mean_square, 1.0)) / 2
        table = _block_table(parse_element(self.element), self.block)
        ratio = np.interp(np.mod(octaves, 1.0), np.arange(_OCTAVE + 1) / _OCTAVE, table)
        energy = ratio * mean_square
        return energy if energy.ndim else float(energy)

    def bound(self, mean_square: Any) -> Any:
        """From max|x|^2 <= block E[x^2]: the relative bound of rounding and of saturation, plus half a subnormal step."""
        fmt = parse_element(self.element)
        relative = max(_relative_bound(fmt), 1.0 - fmt.max / 2.0 ** (_emax(fmt) + 1))
        step = fmt.smallest_subnormal / 2
        largest = np.sqrt(self.block * np.asarray(mean_square)) / 2.0 ** _emax(fmt)
        return relative * np.sqrt(mean_square) + step * largest + step * 2.0**_SHARED_LOW

    def apply(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``value`` quantised and dequantised.

        Raises:
            NonFiniteError: If a value is NaN or infinite.
            ValueError: If a value is beyond what a shared exponent of 127 reaches (float64 alone has such).
        """
        fmt = parse_element(self.element)
        wide = _finite_and_wide(value)
        if not wide.numel():
            return value.clone()
        row = wide.reshape(1) if wide.ndim == 0 else wide
        length = row.shape[-1]
        blocks = torch.nn.functional.pad(row, (0, -length % self.block)).unflatten(-1, (-1, self.block))
        shared = self._shared_exponent(blocks, fmt)
        whole = round_to(_ldexp(blocks, -shared), fmt, saturate=True)
        return _ldexp(whole, shared).flatten(-2)[..., :length].reshape(value.shape).to(value.dtype)

    def _shared_exponent(self, blocks: Tensor, fmt: FloatFormat) -> Tensor:
        amax = blocks.abs().amax(-1, keepdim=True)
        shared = torch.frexp(amax).exponent - 1 - _emax(fmt)
        if bool((shared > _SHARED_HIGH).any()):
            raise ValueError(
                f"value must be below 2^{_SHARED_HIGH + _emax(fmt) + 1} for {fmt.name} with a shared exponent of 8 bits, "
                f"got {float(amax.max()):g}; scale it down"
            )
        return torch.where(amax > 0, shared, 0).clamp(min=_SHARED_LOW)


_SHARED_LOW, _SHARED_HIGH = -127, 127
"""Range of E8M0."""


def parse_element(name: str | torch.dtype | FloatFormat) -> FloatFormat:
    """The element format behind a name (int8, e4m3, e5m2, e2m3, e3m2, e2m1, ...), a torch dtype, or such a format itself."""
    if isinstance(name, FloatFormat):
        if name not in ELEMENTS.values():
            raise UnknownName("element", name.name, ELEMENTS)
        return name
    if isinstance(name, torch.dtype):
        name = str(name).removeprefix("torch.")
    if not isinstance(name, str):
        raise TypeError(f"element must be a name, a torch dtype or a FloatFormat, got {type(name).__name__} ({name!r})")
    key = name.strip().lower()
    key = _ALIASES.get(key, key)
    if key not in ELEMENTS:
        raise UnknownName("element", name, (*ELEMENTS, *_ALIASES))
    return ELEMENTS[key]


def amax_quantiles(count: int, nodes: int = _NODES) -> np.ndarray:
    """Quantiles of max|z_i| of ``count`` standard normal values at the middles of ``nodes`` equal shares of probability.

    ``P(max|z| < A) = (2 Phi(A) - 1)^count``; inverted in the tail, where no digit is lost for large counts.
    """
    probability = (np.arange(nodes) + 0.5) / nodes
    return -ndtri(-np.expm1(np.log(probability) / check_count(count, "count")) / 2.0)


def expected_amax(count: int) -> float:
    """E[max|z_i|] of ``count`` standard normal values: 0.80 for 1, 2.35 for 32, 3.80 for 4096."""
    return float(amax_quantiles(count).mean())


def _is_float(fmt: FloatFormat) -> bool:
    return fmt.smallest_normal < fmt.max


def _relative_bound(fmt: FloatFormat) -> float:
    return fmt.bound_of("nearest") if _is_float(fmt) else 0.0


def _emax(fmt: FloatFormat) -> int:
    """Exponent of the largest value."""
    return math.frexp(fmt.max)[1] - 1


def _finite_and_wide(value: Tensor) -> Tensor:
    check_sample(value, "value")
    check_finite(value, "value", "one such value would decide the scale of all that share it")
    return value.to(torch.float32 if value.device.type == "mps" else torch.float64)


def _below(fmt: FloatFormat, top: np.ndarray, std: np.ndarray) -> np.ndarray:
    """E[(round(u) - u)^2] of Gaussian u of deviation ``std`` known to be within +-top, for arrays of both; saturating."""
    grid = _grid(fmt)
    edges = np.concatenate([[0.0], (grid[:-1] + grid[1:]) / 2, [math.inf]])  # where rounding to grid[i] begins and ends
    top, std = top[:, None], std[:, None]
    low, high = np.minimum(edges[:-1], top), np.minimum(edges[1:], top)
    energy = _second_moment(low, high, grid, grid, std).sum(1)
    return np.maximum(energy, 0.0) / (ndtr(top / std) - 0.5)[:, 0]


@functools.cache
def _amax_energy(fmt: FloatFormat, count: int) -> float:
    """Error energy of standard normal values: the largest has none, the others are cut off at it."""
    amax = amax_quantiles(count)
    scale = amax / fmt.max
    return float((scale**2 * _below(fmt, np.full_like(amax, fmt.max), 1.0 / scale)).mean() * (1.0 - 1.0 / count))


@functools.cache
def _block_table(fmt: FloatFormat, block: int) -> np.ndarray:
    """Error energy over value energy for standard deviations 2^0 .. 2^1, ``(_OCTAVE + 1,)``."""
    return np.array([_block_energy(fmt, block, 2.0 ** (k / _OCTAVE)) / 4.0 ** (k / _OCTAVE) for k in range(_OCTAVE + 1)])


def _block_energy(fmt: FloatFormat, block: int, std: float) -> float:
    def shared(amax: np.ndarray) -> np.ndarray:
        return np.exp2(np.floor(np.log2(amax)) - _emax(fmt))

    amax = std * amax_quantiles(block)
    scale = shared(amax)
    others = (scale**2 * _below(fmt, amax / scale, std / scale)).mean()
    amax = std * amax_quantiles(block, 64 * _NODES)  # the largest value's own error is a sawtooth in it
    scale, grid = shared(amax), _grid(fmt)
    nearest = grid[np.searchsorted((grid[:-1] + grid[1:]) / 2, amax / scale)] * scale
    return float(others * (block - 1) + ((nearest - amax) ** 2).mean()) / block
