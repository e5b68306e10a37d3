"""Floating-point formats and correct rounding to them.

A cast from float64 to bf16 or fp8 rounds twice (through float32) in torch and in ml_dtypes; :func:`round_to` rounds once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffparam._checks import check_count, check_number, check_sample
from diffparam.errors import UnknownName

RoundingMode = Literal["nearest", "toward_zero", "stochastic"]
MODES = ("nearest", "toward_zero", "stochastic")
DELTAS = ("machine_epsilon", "unit_roundoff", "rms")


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format.

    Args:
        name: What it is called.
        precision: Bits of the significand, the hidden one included.
        emin: Exponent of the smallest normal number.
        max: Largest finite value.
        overflow: Where larger values go without saturation: infinity, or NaN in formats without infinities.
        dtype: The torch dtype, where there is one.
    """

    name: str
    precision: int
    emin: int
    max: float
    overflow: float = math.inf
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_count(self.precision, "precision", low=1, high=52)
        check_number(self.max, "max", low=0.0, open_low=True)

    @property
    def machine_epsilon(self) -> float:
        """Spacing above 1, 2^(1 - precision): 1/128 for bf16, the paper's delta. The bound for chopping."""
        return 2.0 ** (1 - self.precision)

    @property
    def unit_roundoff(self) -> float:
        """Half the machine epsilon: bounds the relative error of rounding to nearest (sharply, u / (1 + u))."""
        return self.machine_epsilon / 2

    @property
    def rms(self) -> float:
        r"""Root mean square relative error of rounding to nearest, :math:`\epsilon/\sqrt{32\ln 2}` (1/603 for bf16).

        For a log-uniform significand m in [1, 2): the error is uniform in +-eps/2, of variance eps^2/12, and
        E[m^-2] = 3/(8 ln 2).
        """
        return self.machine_epsilon / math.sqrt(32.0 * math.log(2.0))

    @property
    def smallest_normal(self) -> float:
        """Below it the spacing is constant and the relative error has no bound."""
        return 2.0**self.emin

    @property
    def smallest_subnormal(self) -> float:
        """Spacing of the subnormal numbers."""
        return 2.0 ** (self.emin - self.precision + 1)

    def rms_of(self, mode: RoundingMode) -> float:
        """Rms relative error under a rounding mode: nearest rms, stochastic sqrt(2) rms, toward zero 2 rms."""
        _require_mode(mode)
        return self.rms * {"nearest": 1.0, "stochastic": math.sqrt(2.0), "toward_zero": 2.0}[mode]

    def bound_of(self, mode: RoundingMode) -> float:
        """Largest relative error of a normal number under a rounding mode."""
        _require_mode(mode)
        return self.unit_roundoff / (1 + self.unit_roundoff) if mode == "nearest" else self.machine_epsilon


FLOAT32 = FloatFormat("float32", 24, -126, float(torch.finfo(torch.float32).max), dtype=torch.float32)
TF32 = FloatFormat("tf32", 11, -126, (2 - 2.0**-10) * 2.0**127)
BFLOAT16 = FloatFormat("bfloat16", 8, -126, float(torch.finfo(torch.bfloat16).max), dtype=torch.bfloat16)
FLOAT16 = FloatFormat("float16", 11, -14, 65504.0, dtype=torch.float16)
FLOAT8_E4M3 = FloatFormat("float8_e4m3", 4, -6, 448.0, math.nan, torch.float8_e4m3fn)
FLOAT8_E5M2 = FloatFormat("float8_e5m2", 3, -14, 57344.0, dtype=torch.float8_e5m2)
FORMATS = {f.name: f for f in (FLOAT32, TF32, BFLOAT16, FLOAT16, FLOAT8_E4M3, FLOAT8_E5M2)}
_ALIASES = {
    "fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16",
    "e4m3": "float8_e4m3", "fp8_e4m3": "float8_e4m3", "float8_e4m3fn": "float8_e4m3",
    "e5m2": "float8_e5m2", "fp8_e5m2": "float8_e5m2",
}  # fmt: skip


def parse_format(name: str | torch.dtype | FloatFormat) -> FloatFormat:
    """The format behind a name (bf16, bfloat16, fp16, tf32, e4m3, ...), a torch dtype, or a format itself."""
    if isinstance(name, FloatFormat):
        return name
    if isinstance(name, torch.dtype):
        found = next((f for f in FORMATS.values() if f.dtype is name), None)
        if found is None:
            raise UnknownName("format", str(name), [str(f.dtype) for f in FORMATS.values() if f.dtype])
        return found
    if not isinstance(name, str):
        raise TypeError(f"format must be a name, a torch dtype or a FloatFormat, got {type(name).__name__} ({name!r})")
    key = name.strip().lower()
    key = _ALIASES.get(key, key)
    if key not in FORMATS:
        raise UnknownName("format", name, (*FORMATS, *_ALIASES))
    return FORMATS[key]


def relative_error(delta: str | float, fmt: str | torch.dtype | FloatFormat = "bfloat16") -> float:
    """A relative error by name or number.

    Args:
        delta: ``machine_epsilon`` (the paper's choice, eq. 27), ``unit_roundoff``, ``rms`` (of one rounding to nearest), or a
            number of at least 0.
        fmt: The format that a name speaks of.
    """
    if not isinstance(delta, str):
        return check_number(delta, "delta", low=0.0)
    if delta not in DELTAS:
        raise UnknownName("delta", delta, DELTAS, "A number is accepted too.")
    return float(getattr(parse_format(fmt), delta))


def round_to(
    x: Tensor,
    fmt: str | torch.dtype | FloatFormat,
    *,
    mode: RoundingMode = "nearest",
    saturate: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``x`` rounded once to ``fmt``, in the dtype of ``x``; exact for any input dtype, subnormals included.

    Args:
        x: Any shape, any floating-point dtype. NaN stays NaN.
        fmt: Target format.
        mode: ``nearest`` (ties to even), ``toward_zero``, or ``stochastic`` (up or down with the probability that makes the
            mean exact).
        saturate: What is beyond the largest value becomes that value; otherwise infinity, or NaN where the format has none.
            Rounding toward zero never leaves the finite range on its own.
        generator: Source of the random bits of ``stochastic``, on the device of ``x``.

    Returns:
        Same shape, dtype and device. Where the dtype of ``x`` has fewer digits and no more range than ``fmt`` nothing changes.
        A result that it cannot hold (float16's 65504 rounds to 65536 in bf16) is infinite: convert ``x`` first.
    """
    check_sample(x, "x")
    _require_mode(mode)
    fmt = parse_format(fmt)
    wide = x if x.dtype is torch.float64 else x.to(torch.float64 if x.device.type != "mps" else torch.float32)
    _, exponent = torch.frexp(wide)
    shift = (exponent - 1).clamp(min=fmt.emin) - (fmt.precision - 1)  # exponent of the last place
    scaled = _ldexp(wide, -shift)
    if mode == "nearest":
        whole = scaled.round()  # half to even
    elif mode == "toward_zero":
        whole = scaled.trunc()
    else:
        whole = (scaled + torch.rand(x.shape, generator=generator, dtype=wide.dtype, device=x.device)).floor()
        whole = torch.where(scaled == scaled.trunc(), scaled, whole)
    rounded = _ldexp(whole, shift)
    over = rounded.abs() > fmt.max
    if mode == "toward_zero":
        over = over & wide.isinf()
        rounded = torch.where(over, rounded, rounded.clamp(-fmt.max, fmt.max))
    limit = fmt.max if saturate else fmt.overflow
    rounded = torch.where(over, torch.copysign(torch.full_like(rounded, limit), wide), rounded)
    return torch.where(wide.isnan(), wide, torch.copysign(rounded, wide)).to(x.dtype)


def _ldexp(x: Tensor, exponent: Tensor) -> Tensor:
    """X * 2^exponent in two exact halves, so that the power of two itself cannot overflow."""
    half = torch.div(exponent, 2, rounding_mode="floor")
    return torch.ldexp(torch.ldexp(x, half), exponent - half)


def _require_mode(mode: str) -> None:
    if mode not in MODES:
        raise UnknownName("mode", mode, MODES)
