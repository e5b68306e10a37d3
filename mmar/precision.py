"""Which dtype a layer computes in, and bf16 on a CPU that has no instructions for it.

bf16 forward with float32 master weights is ``layer(x.bfloat16())`` on a float32 module; pure bf16 is ``module.bfloat16()``.
On a CPU without bf16 instructions torch multiplies bf16 matrices six to ten times slower than float32 ones. There
:class:`Linear` computes in float32 and rounds once: what the instructions compute, up to the order of a sum. So do all products
and convolutions with ``MMAR_FLOAT32_PRODUCTS=1`` in the environment. Float32 copies are held for the backward pass.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_FEW_ROWS = 16
"""Below, reading the weights decides the time: measured on a CPU with AVX2, torch's own bf16 product is as fast or faster."""


class Linear(nn.Linear):
    """``nn.Linear`` whose weights are cast to the dtype of the input at each call; gradients reach the masters."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``, in the dtype of ``x``."""
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        if x.dtype is torch.bfloat16 and x.device.type == "cpu" and not native_bf16_matmul():
            return _rounded_once(functional.linear, x, weight, bias)
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


def bf16_products(device: torch.device) -> AbstractContextManager[Any]:
    """Within it, bf16 products of any layer are computed as fast as ``device`` can: on a CPU without bf16 instructions, and if
    the environment has ``MMAR_FLOAT32_PRODUCTS=1``, by :class:`Float32Products`, else as they are.

    Around a forward pass whose activations are kept: no mode reaches those that a backward pass computes again.
    """
    if device.type == "cpu" and os.environ.get("MMAR_FLOAT32_PRODUCTS") == "1" and not native_bf16_matmul():
        return Float32Products()
    return contextlib.nullcontext()


@contextlib.contextmanager
def autocast(device: torch.device | str, dtype: torch.dtype, *, enabled: bool = True) -> Iterator[None]:
    """``torch.autocast`` to ``dtype`` where ``enabled``; :func:`bf16_products` in either case, where ``dtype`` is bf16."""
    device = torch.device(device)
    products = bf16_products(device) if dtype is torch.bfloat16 else contextlib.nullcontext()
    with torch.autocast(device.type, dtype=dtype, enabled=enabled), products:
        yield


class Float32Products(TorchFunctionMode):
    """Within it, products of bf16 CPU tensors, autocast or not, are summed in float32 and rounded once.

    Those of linear layers, of two-dimensional convolutions, and ``matmul`` and ``bmm``, called with positional arguments as
    torch's own layers do. Attention in one kernel is left alone.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Compute products in float32, leave everything else alone."""
        options = kwargs or {}
        if func in _PRODUCTS and not options:
            tensors = [y is None or isinstance(y, Tensor) for y in args]  # a convolution's stride and the like come after them
            count = tensors.index(False) if False in tensors else len(args)
            x, *rest = _as_autocast(args[:count])
            if (
                x is not None
                and x.numel() >= _FEW_ROWS * x.shape[-1]
                and all(_is_bf16_on_cpu(y) for y in (x, *rest) if y is not None)
            ):
                return _rounded_once(lambda *operands: func(*operands, *args[count:]), x, *rest)
        return func(*args, **options)


_PRODUCTS = frozenset(
    {
        *(functional.linear, functional.conv2d, functional.conv_transpose2d),
        *(torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__),
    }
)


def _is_bf16_on_cpu(x: Tensor) -> bool:
    return x.dtype is torch.bfloat16 and x.device.type == "cpu"


def _as_autocast(operands: Sequence[Tensor | None]) -> list[Tensor | None]:
    """In bf16 where autocast to bf16 on the CPU would cast them."""
    if not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") is not torch.bfloat16:
        return list(operands)
    return [x.to(torch.bfloat16) if x is not None and x.dtype is torch.float32 else x for x in operands]


def _rounded_once(product: Callable[..., Tensor], x: Tensor, *rest: Tensor | None) -> Tensor:
    """What bf16 hardware computes: exact products of bf16 numbers, a float32 sum, one rounding at the end.

    Gradients likewise. The matrices must be on a CPU.
    """
    with torch.autocast("cpu", enabled=False):
        return product(x.float(), *(None if y is None else y.float() for y in rest)).to(x.dtype)


def _cpu_flags() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo") as lines:
            found = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    except OSError:  # not Linux
        return frozenset()
    return frozenset(found.partition(":")[2].split())
