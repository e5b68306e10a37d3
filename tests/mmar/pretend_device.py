"""A pretended accelerator: tensors that lie on the CPU, say they are elsewhere, and refuse to meet those that are here.

What a GPU answers with "expected all tensors to be on the same device" is found without one. The device is called lazy: beside
cpu and meta the one name whose tensors torch (2.13 at least) indexes without a backend.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "lazy"
_COPIES = {"_to_copy", "copy_", "to"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""An index may lie on the CPU, as on a GPU; the values may not."""


class Elsewhere(Tensor):
    """A CPU tensor that says it is on the pretended device."""

    inner: Tensor
    __torch_function__: ClassVar = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=NAME
        )
        made.inner = inner
        return made

    def __init__(self, inner: Tensor) -> None:
        pass

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Watch(TorchDispatchMode):
    """Factories, which have no tensor to tell them where they are."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, device = func._schema.name.split("::")[1], kwargs.get("device")
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    away = [value for value in tensors if isinstance(value, Elsewhere)]
    checked = [args[0], *args[2:]] if name in _INDEXING else tensors
    here = [v for v in checked if isinstance(v, Tensor) and not isinstance(v, Elsewhere) and v.ndim]  # numbers may come along
    if away and here and name not in _COPIES:
        shapes = [[tuple(value.shape) for value in values] for values in (away, here)]
        raise RuntimeError(f"expected all tensors of {func} on one device, got shapes {shapes[0]} there and {shapes[1]} here")
    goes_there = bool(away) if device is None else torch.device(device).type == NAME
    inside = {**kwargs, "device": torch.device("cpu")} if device is not None else kwargs
    out = func(*tree_map(_inner, args), **tree_map(_inner, inside))
    if name.endswith("_") and isinstance(args[0], Tensor):
        return args[0]
    same = {id(value.inner): value for value in away}
    return tree_map(lambda v: same.get(id(v)) or Elsewhere(v) if isinstance(v, Tensor) and goes_there else v, out)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Elsewhere) else value


class _Autocast(contextlib.ContextDecorator):
    """torch knows no autocast for this device; it is off."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        self.context = contextlib.nullcontext() if device_type == NAME else _autocast(device_type, *args, **kwargs)

    def __enter__(self) -> Any:
        return self.context.__enter__()

    def __exit__(self, *error: Any) -> Any:
        return self.context.__exit__(*error)


_autocast, _is_autocast_enabled, _tensor = torch.autocast, torch.is_autocast_enabled, torch.tensor


def _new_tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
    there = device is not None and torch.device(device).type == NAME
    return Elsewhere(_tensor(data, *args, **kwargs)) if there else _tensor(data, *args, device=device, **kwargs)


@contextlib.contextmanager
def pretended_device() -> Iterator[None]:
    """Within it, without gradients, the device exists."""
    with (
        mock.patch("torch.autocast", _Autocast),
        mock.patch("torch.is_autocast_enabled", lambda kind="cpu": kind != NAME and _is_autocast_enabled(kind)),
        mock.patch("torch.tensor", _new_tensor),
        torch.no_grad(),
        _Watch(),
    ):
        yield


def move(module: nn.Module) -> None:
    """Parameters and buffers, as ``module.to(device)``; there is no way back."""
    for part in module.modules():
        for values, wrap in ((part._parameters, lambda t: nn.Parameter(t, requires_grad=False)), (part._buffers, lambda t: t)):
            values.update({name: wrap(Elsewhere(value.detach())) for name, value in values.items() if value is not None})
