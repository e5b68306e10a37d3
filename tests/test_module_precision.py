"""A network that is evaluated in another precision is left exactly as it was, however that ends."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from networks import Mlp, WithTime, seeded
from torch import Tensor, nn
from torch.nn import functional

from diffparam.calibration import calibrate, cast_inputs
from diffparam.errors import NonFiniteError
from diffparam.module_precision import BorrowedModule


class Everything(nn.Module):
    """All that could be left behind: tied and frozen weights, buffers that change, caches, random numbers, a GRU's list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)
        self.norm, self.gru = nn.BatchNorm1d(4), nn.GRU(4, 4, batch_first=True)  # bf16 LSTMs are not on every CPU
        self.narrow = nn.Parameter(torch.ones(4, dtype=torch.float16))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("replaced", torch.ones(4))
        self.register_buffer("absent", None)
        self.cache: Tensor | None = None
        self.interrupt: Callable[[int], None] = lambda calls: None

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        self.replaced = self.replaced * 2
        self.cache = x
        self.new_attribute = x
        h = functional.dropout(self.norm(self.first(x)), 0.5, training=True)
        h = self.second(h) * self.narrow.to(x.dtype) * self.replaced
        self.interrupt(int(t[0]))
        return self.gru(h[:, None])[0][:, 0]


def everything() -> Everything:
    net = seeded(Everything).train()
    net.norm.eval()
    net.first.weight.grad = torch.full((4, 4), 3.0)
    net.first.register_forward_hook(lambda module, args, out: None)
    net.first.weight.register_hook(lambda grad: grad)
    return net


def snapshot(net: nn.Module) -> list[Any]:
    """Objects by identity, tensors by place and by bits."""
    out: list[Any] = [torch.random.get_rng_state().tolist()]
    for name, module in net.named_modules():
        out += [name, id(module), module.training, sorted(vars(module)), [(k, id(v)) for k, v in module._forward_hooks.items()]]
    for name, tensor in (*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)):
        grad = None if tensor.grad is None else (id(tensor.grad), tensor.grad.tolist())
        hooks = None if tensor._backward_hooks is None else list(map(id, tensor._backward_hooks.values()))
        out += [
            name,
            id(tensor),
            type(tensor),
            tensor.data_ptr(),
            tensor._version,
            tensor.dtype,
            tensor.requires_grad,
            grad,
            hooks,
        ]
        out.append(tensor.detach().clone().view(torch.uint8).tolist() if tensor.ndim else tensor.item())
    out += [[id(w) for w in net.gru._flat_weights], id(net.cache)]
    return out


def four(timesteps: tuple[int, ...] = (1, 2, 3)) -> Iterator[tuple[Tensor, Tensor]]:
    for t in timesteps:
        yield torch.linspace(-1.0, 1.0, 32).reshape(8, 4), torch.full((8,), t)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("reference", [torch.float32, torch.float64])
def test_the_network_is_left_as_it_was(reference: torch.dtype, autocast: bool) -> None:
    net = everything()
    before = snapshot(net)
    calibration = calibrate(net, four(), reference=reference, autocast=autocast)
    assert snapshot(net) == before
    assert (calibration.error_sq > 0).all()
    net(*next(four()))  # the control: a plain forward pass leaves its traces
    assert snapshot(net) != before


@pytest.mark.parametrize("at_call", range(6))
def test_it_is_left_as_it_was_when_interrupted(at_call: int) -> None:
    """In the middle of each of the six evaluations of three batches."""
    net, calls = everything(), 0

    def stop(t: int) -> None:
        nonlocal calls
        calls += 1
        if calls > at_call:
            raise KeyboardInterrupt

    net.interrupt = stop
    before = snapshot(net)
    with pytest.raises(KeyboardInterrupt):
        calibrate(net, four())
    assert calls == at_call + 1
    assert snapshot(net) == before


def test_it_is_left_as_it_was_when_the_batches_or_a_hook_fail() -> None:
    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        yield from four((1,))
        raise KeyboardInterrupt

    net = everything()
    before = snapshot(net)
    with pytest.raises(KeyboardInterrupt):
        calibrate(net, broken())
    assert snapshot(net) == before

    def fail(module: nn.Module, args: Any, out: Tensor) -> None:
        if out.dtype is torch.bfloat16:
            raise RuntimeError("hook")

    net.second.register_forward_hook(fail)
    before = snapshot(net)
    with pytest.raises(RuntimeError, match="hook"):
        calibrate(net, four())
    assert snapshot(net) == before


def test_it_is_left_as_it_was_when_interrupted_between_any_two_lines() -> None:
    """A KeyboardInterrupt before each line that changes something, up to where the restoring begins."""
    source, start = inspect.getsourcelines(BorrowedModule._borrowed)
    restoring = start + next(i for i, line in enumerate(source) if line.strip() == "finally:")
    code, steps = inspect.unwrap(BorrowedModule._borrowed).__code__, 0
    net = everything()
    borrowed, batch = BorrowedModule(net, torch.bfloat16), cast_inputs(next(four()), torch.bfloat16)
    before = snapshot(net)

    def run(stop_at: int) -> int:
        count = 0

        def trace(frame: Any, event: str, arg: Any) -> Any:
            nonlocal count
            if frame.f_code is not code:
                return None
            if event == "line" and frame.f_lineno < restoring:
                count += 1
                if count == stop_at:
                    raise KeyboardInterrupt
            return trace

        old = sys.gettrace()
        sys.settrace(trace)
        try:
            with torch.no_grad(), torch.random.fork_rng():
                borrowed(*batch)
        finally:
            sys.settrace(old)
        return count

    steps = run(0)
    assert steps > 60  # each parameter, buffer and module is a step
    for stop_at in range(1, steps + 1):
        with pytest.raises(KeyboardInterrupt):
            run(stop_at)
        assert snapshot(net) == before, stop_at


def test_weights_are_held_once_more_and_not_twice() -> None:
    net = seeded(Mlp)
    assert not BorrowedModule(net, torch.float32)._casts  # the reference is the network itself
    assert len(BorrowedModule(net, torch.bfloat16)._casts) == len(list(net.parameters()))
    assert len(BorrowedModule(everything(), torch.bfloat16)._casts) == len(list(everything().parameters()))  # tied: one cast


def test_it_is_evaluated_in_evaluation_mode() -> None:
    """Dropout would make the two evaluations different networks. The same random numbers make them the same again."""
    net = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 4))
    seen = []
    net[1].register_forward_hook(lambda module, args, out: seen.append(module.training))
    calibrate(WithTime(net), four())
    assert seen == [False] * 6
    assert net[1].training


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_output_that_is_not_finite_names_its_timestep_and_precision(bad: float) -> None:
    net = everything()
    before = snapshot(net)

    def spoil(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        hit = (args[1] == 7)[:, None] & (out.dtype is torch.bfloat16)
        return torch.where(hit, bad, out)

    handle = net.register_forward_hook(spoil)
    x_t = torch.ones(8, 4)
    with pytest.raises(NonFiniteError, match=r"its output in torch.bfloat16 is NaN or infinite at timestep 7"):
        calibrate(net, [(x_t, torch.tensor([1, 2, 3, 4, 5, 6, 7, 8]))])
    handle.remove()
    assert snapshot(net) == before
