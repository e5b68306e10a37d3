"""Which dtype a layer computes in, and linear layers that compute in the dtype of their input whatever their weights are.

bf16 forward with float32 master weights is ``layer(x.bfloat16())`` on a float32 module; pure bf16 is ``module.bfloat16()``.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional


class Linear(nn.Linear):
    """``nn.Linear`` whose weights are cast to the dtype of the input at each call; gradients reach the masters."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``, in the dtype of ``x``."""
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        if x.dtype is torch.bfloat16 and x.device.type == "cpu" and not native_bf16_matmul():
            return _accumulated_in_float32(x, weight, bias)
        return functional.linear(x, weight, bias)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of autocast on the device of ``weight`` where it is on, else the dtype of ``weight``."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


@functools.cache
def native_bf16_matmul() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AVX512-BF16 or AMX on x86, bf16 on ARM)."""
    flags = _cpu_flags()
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & flags)


def _accumulated_in_float32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What bf16 hardware computes: exact products of bf16 numbers, a float32 sum, one rounding at the end.

    Without bf16 instructions this float32 product is several times faster than the library's bf16 one.
    """
    return functional.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def _cpu_flags() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo") as lines:
            found = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    except OSError:  # not Linux
        return frozenset()
    return frozenset(found.partition(":")[2].split())
