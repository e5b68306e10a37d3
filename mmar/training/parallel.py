"""The processes of a run: who this one is, and what all of them do together."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

T = TypeVar("T")


class Processes:
    """One process, or the ranks that ``torchrun`` started; gloo on a CPU.

    Attributes:
        accelerator: Of accelerate, which finds the ranks and their devices.
        rank: Of this process.
        size: How many there are.
        device: Of this process.
    """

    def __init__(self) -> None:
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
        self.rank, self.size = int(self.accelerator.process_index), int(self.accelerator.num_processes)
        self.device = torch.device(self.accelerator.device)

    @property
    def is_main(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print once."""
        self.accelerator.print(text)

    # -- together: every rank calls these, in the same order ------------------------------------------------------------------

    def sum(self, values: list[float]) -> list[float]:
        """Over all ranks, float64."""
        if self.size == 1:
            return [float(value) for value in values]
        return self.sum_tensor(torch.tensor(values, dtype=torch.float64)).tolist()

    def sum_tensor(self, values: Tensor) -> Tensor:
        """Over all ranks; on the CPU."""
        if self.size == 1:
            return values
        total: Tensor = self.accelerator.reduce(values.to(self.device), "sum")
        return total.cpu()

    def anyone(self, flag: bool) -> bool:
        """Whether the flag is up on a rank."""
        return self.sum([float(flag)])[0] > 0

    def gather(self, value: T) -> list[T]:
        """Of every rank, in their order."""
        gathered: list[T] = gather_object([value])
        return gathered

    def on_main(self, work: Callable[[], T]) -> T:
        """What ``work`` gives on rank 0, on all ranks; an exception there is raised on all, so that none waits for another."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except Exception as error:
                outcome[1] = error
        broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def wait(self) -> None:
        """For all ranks."""
        self.accelerator.wait_for_everyone()


def is_main() -> bool:
    """Whether this process is rank 0, or alone."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def leave() -> None:
    """Leave the process group, at the end of a program; nothing where there is none.

    Wrapped models must be gone before: with one alive, gloo's threads abort the interpreter at its exit, at random.
    """
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
