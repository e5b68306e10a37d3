"""A model on many ranks: whole on each (DDP), or in parts (FSDP2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mmar.model import MMARForConditionalGeneration
from mmar.training.parallel import Processes


class Distributed:
    """A model as the ranks hold it. On one process it is the model, whatever the sharding is called.

    Args:
        model: On the CPU; changed in place.
        processes: That share it.
        sharding: ddp or fsdp; see :func:`shard`.
        gather_dtype: What the language model's trained parameters are gathered in; None: their own.

    Attributes:
        model: Has the parameters by name, whole or as shards.
        forward: What is called in training.
        is_sharded: Whether parameters are shards.
    """

    def __init__(
        self,
        model: MMARForConditionalGeneration,
        processes: Processes,
        sharding: str = "ddp",
        gather_dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.is_sharded = model, sharding == "fsdp" and processes.size > 1
        self.forward: Callable[..., Any] = model
        self._skeleton: nn.Module | None = None
        self._processes = processes
        if self.is_sharded:
            self._skeleton = _skeleton(model) if processes.is_main else None
            shard(model, processes.size, processes.device, gather_dtype)
        else:
            model.to(processes.device)

    def ready(self) -> None:
        """To be called when parameters are loaded: DDP takes those of rank 0 for all."""
        if self._processes.size > 1 and not self.is_sharded:
            self.forward = self._processes.accelerator.prepare_model(self.model)

    def accumulating(self) -> Any:
        """A context for a backward pass whose gradients need not be reduced yet; shards are reduced each time, for memory."""
        return self._processes.accelerator.no_sync(self.forward)

    def whole(self) -> MMARForConditionalGeneration | None:
        """A model with whole parameters for rank 0, None for the others; every rank has to ask.

        It is the model itself where that is whole.
        """
        if not self.is_sharded:
            return self.model if self._processes.is_main else None
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            full = whole_tensor(parameter.detach())
            if self._processes.is_main:
                tensors[name] = full.cpu()
        if self._skeleton is None:
            return None
        model = cast(MMARForConditionalGeneration, copy.deepcopy(self._skeleton))
        model.load_state_dict(tensors, strict=False, assign=True)  # not strict: tied weights have one name here and two there
        model.tie_weights()
        model.freeze()
        return model.to(self._processes.device)

    def release(self) -> None:
        """Let go of everything, before the process group is left."""
        self.model = self.forward = self._skeleton = None  # type: ignore[assignment]
        self._processes.accelerator.free_memory()


def shard(model: MMARForConditionalGeneration, ranks: int, device: torch.device, gather_dtype: torch.dtype | None) -> None:
    """Divide every parameter, trained or frozen, over the ranks, in place.

    A decoder layer is gathered when it runs, forward and backward, and let go again. Everything else is gathered once per pass:
    how often a rank runs EmbeddingViT (once per number of known tokens) and the head (not at all where nothing is drawn)
    depends on its data, and blocks gathered at each call meet other blocks of other ranks: gloo then aborts.

    Args:
        model: On the CPU; layers are moved one by one.
        ranks: How many.
        device: Of this rank.
        gather_dtype: Of the decoder layers' float32 parameters while they compute, and of the way there; sums are float32.
            Under autocast to the same dtype it changes no bit. None: as they are.
    """
    mesh = init_device_mesh(device.type, (ranks,))
    layers = MixedPrecisionPolicy()
    if gather_dtype is not None:
        layers = MixedPrecisionPolicy(gather_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in model.language_model.layers:
        layer.register_forward_hook(_with_every_parameter)  # before FSDP's hook, which lets go of the parameters
        fully_shard(layer, mesh=mesh, mp_policy=layers)
    fully_shard(model, mesh=mesh)


def like(target: Tensor, value: Tensor) -> Tensor:
    """A value, whole or a shard, as ``target`` is held: its shard of a whole value, or as it is."""
    if isinstance(target, DTensor) and not isinstance(value, DTensor) and value.ndim:
        return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    return value


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor; every rank has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _with_every_parameter(layer: nn.Module, arguments: tuple[Any, ...], hidden: Tensor) -> Tensor:
    """Adapters take part without images too, with weight 0: a rank without their gradients would reduce less than others."""
    if not (layer.training and torch.is_grad_enabled()):
        return hidden
    zeros = [parameter.flatten()[:1].sum() * 0.0 for parameter in _trained(layer)]
    return hidden + torch.stack(zeros).sum().to(hidden.dtype) if zeros else hidden


def _trained(module: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in module.parameters() if parameter.requires_grad)


def _skeleton(model: nn.Module) -> nn.Module:
    """A copy without memory for its parameters, buffers as they are."""
    empty: Mapping[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad) for p in model.parameters()
    }
    return copy.deepcopy(model, dict(empty))
