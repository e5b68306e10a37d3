"""The gradients of one step: means over all tokens of all ranks and micro-batches."""

from __future__ import annotations

import contextlib
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmar.precision import bf16_products
from mmar.timestep_statistics import TimestepStatistics
from mmar.training.attention import attention_kernel
from mmar.training.batches import Batch
from mmar.training.config import TrainingConfig
from mmar.training.parallel import Processes
from mmar.training.sharding import Distributed, whole_tensor


@dataclass(frozen=True)
class Gradients:
    """What a step found, the same on all ranks but for ``is_finite``.

    Attributes:
        text_loss: Mean over all answer tokens.
        image_loss: Mean over all image tokens that have a loss.
        text_tokens: Answer tokens.
        image_tokens: Image tokens that have a loss.
        norm: Of the gradient, before it is clipped.
        is_finite: Whether losses and norm are, on this rank.
    """

    text_loss: float
    image_loss: float
    text_tokens: float
    image_tokens: float
    norm: float
    is_finite: bool


class GradientStep:
    """Runs micro-batches forward and backward.

    Args:
        config: Of the run.
        distributed: The model.
        processes: That share each step.
        statistics: Loss per timestep of this rank; None: not collected.
    """

    def __init__(
        self, config: TrainingConfig, distributed: Distributed, processes: Processes, statistics: TimestepStatistics | None
    ) -> None:
        self.config, self.distributed, self.processes = config, distributed, processes
        self.statistics = statistics

    def run(self, batches: list[Batch]) -> Gradients:
        """Fill ``grad`` of the trained parameters with the mean of the step, clipped."""
        counts = [float(sum(b.text_count for b in batches)), float(sum(b.image_count for b in batches))]
        totals = self.processes.sum(counts)
        losses = torch.zeros(2, dtype=torch.float64)
        is_finite = True
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with contextlib.nullcontext() if last else self.distributed.accumulating():
                parts, good = self._backward(batch, totals)
            losses += parts
            is_finite = is_finite and good
        text, image = self.processes.sum(losses.tolist())
        norm = float(whole_tensor(torch.nn.utils.clip_grad_norm_(self.trained(), self.config.optimizer.clip)))
        return Gradients(text, image, totals[0], totals[1], norm, is_finite and math.isfinite(norm))

    def trained(self) -> list[torch.nn.Parameter]:
        """Parameters that have gradients."""
        return [p for p in self.distributed.model.parameters() if p.requires_grad]

    def count_flops(self, batch: Batch) -> float:
        """Floating-point operations of a step, from a forward and backward pass that leaves nothing behind.

        Not counted while training: under the counter torch takes other kernels, and a resumed run would differ in last digits.
        """
        sources = [torch.Generator().set_state(source.get_state()) for source in batch.generators] or None
        model, repeat = self.distributed.model, self.config.timesteps_per_token
        with FlopCounterMode(display=False) as counter:
            with self._autocast():
                loss = model(**batch.inputs, generator=sources, timesteps_per_token=repeat).loss
            if self.distributed.is_sharded:  # shards get their gradients from FSDP's hooks, which autograd.grad passes by
                loss.backward()
            else:
                torch.autograd.grad(loss, self.trained())
        if self.distributed.is_sharded:
            model.zero_grad()
        return float(counter.get_total_flops()) * self.config.accumulation * self.processes.size

    def _backward(self, batch: Batch, totals: list[float]) -> tuple[Tensor, bool]:
        """Gradients of a micro-batch; its part of the two means over the whole step, and whether they are finite."""
        shares = [c / max(1.0, t) for c, t in zip((batch.text_count, batch.image_count), totals, strict=True)]
        size = self.processes.size
        weights = (shares[0] * size, shares[1] * size)  # the reduction divides by the number of ranks
        arguments = {"timesteps_per_token": self.config.timesteps_per_token, "generator": batch.generators or None}
        with self._products(), self._autocast(), self._attention():
            output = self.distributed.forward(**batch.inputs, **arguments, loss_weights=weights)
        output.loss.backward()
        found = (output.text_loss, output.image_loss)
        parts = [0.0 if v is None else float(v.detach()) * share for v, share in zip(found, shares, strict=True)]
        good = all(math.isfinite(v) for v in parts)
        if good and self.statistics is not None:
            self.statistics.update(output.image_rows, output.image_timesteps)
        return torch.tensor(parts, dtype=torch.float64), good

    # With gradient_checkpointing layers are computed again in the backward pass, where no mode reaches: neither has one.

    def _products(self) -> AbstractContextManager[Any]:
        is_plain = self.config.precision == "float32" or self.config.gradient_checkpointing
        return contextlib.nullcontext() if is_plain else bf16_products(self.processes.device)

    def _attention(self) -> AbstractContextManager[Any]:
        if self.config.gradient_checkpointing:
            return contextlib.nullcontext()
        dtype = torch.float32 if self.config.precision == "float32" else torch.bfloat16
        return attention_kernel(self.processes.device, dtype)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
