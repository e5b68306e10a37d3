"""Running a module in another precision, and leaving it exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class BorrowedModule:
    """``module`` as a function that evaluates it in ``dtype`` and puts everything back after each call.

    The module's own parameters and buffers are never written to: during a call their places are taken by casts (parameters,
    made once, only where the dtype differs) and by copies (buffers), and every submodule is in evaluation mode. Afterwards,
    however the call ends, the same objects are in the same places: parameters with their gradients and hooks, buffers,
    training flags, and attributes that the forward pass has set or replaced (a cache in the wrong precision). What it
    changes *inside* such an attribute, as in a list, stays.

    Args:
        module: Any module whose floating-point parameters can be cast.
        dtype: Precision of parameters and buffers; None to leave them in theirs.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype | None = None) -> None:
        self.module, self.dtype = module, dtype
        self._casts: dict[int, nn.Parameter] = {}  # by identity, so that tied weights stay tied
        for parameter in module.parameters():
            if self._differs(parameter):
                self._casts[id(parameter)] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)

    def __call__(self, *args: Any) -> Any:
        """The module's output for ``args``, which must already be in its precision."""
        with self._borrowed():
            return self.module(*args)

    def _differs(self, tensor: Tensor) -> bool:
        return self.dtype is not None and tensor.is_floating_point() and tensor.dtype is not self.dtype

    @contextmanager
    def _borrowed(self) -> Iterator[None]:
        """The casts in place of the originals; all is noted before anything is changed."""
        modules = list(self.module.modules())
        parameters = [(m, name, p) for m in modules for name, p in m._parameters.items() if p is not None]
        buffers = [(m, name, b) for m in modules for name, b in m._buffers.items() if b is not None]
        attributes = [(m, dict(vars(m))) for m in modules]
        try:
            for module, name, parameter in parameters:
                if id(parameter) in self._casts:
                    setattr(module, name, self._casts[id(parameter)])  # not _parameters[name]: an RNN keeps a list of its own
            for module, name, buffer in buffers:
                setattr(module, name, buffer.detach().to(self.dtype if self._differs(buffer) else buffer.dtype, copy=True))
            for module in modules:
                module.training = False
            yield
        finally:
            for module, before in attributes:  # first: a list that an RNN had swapped takes the original weights below
                for name in vars(module).keys() - before.keys():
                    del vars(module)[name]
                vars(module).update(before)
            for module, name, tensor in (*parameters, *buffers):
                setattr(module, name, tensor)
