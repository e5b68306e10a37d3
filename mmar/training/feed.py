"""What each step is fed with: the batches of this rank, and where the data stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mmar.data.loader import StreamLoader
from mmar.data.order import StreamSettings
from mmar.masking import MaskRatio
from mmar.training.batches import Batch, BatchMaker, Item, NoRows
from mmar.training.build import Parts
from mmar.training.config import TrainingConfig
from mmar.training.mixture import TEXT, Mixture
from mmar.training.parallel import Processes
from mmar.training.positions import moved
from mmar.training.sources import make_stream
from mmar.training.tasks import Place, TaskPlan, places

ATTEMPTS = 20
"""Batches in a row without any row that end a run."""


def as_list(items: list[Item]) -> list[Item]:
    """Batches are made in the main process, where the image tokenizer is."""
    return items


class Feed:
    """Batches of a run.

    Args:
        config: Of the run.
        parts: Model, processor, image tokenizer.
        processes: That share each step's samples.

    Attributes:
        loader: Reads examples.
        maker: Makes batches of them.
        plan: Tasks of each step.
    """

    def __init__(self, config: TrainingConfig, parts: Parts, processes: Processes) -> None:
        self.config, self.parts, self.processes = config, parts, processes
        size = config.batch_size * config.accumulation * processes.size
        self.plan = TaskPlan(Mixture({TEXT: 1.0} if config.stage == "text" else config.tasks), size, config.seed)
        self.maker = self._make_maker()
        self.loader = self._make_loader()

    def batches(self, items: Iterator[list[Item]], step: int) -> list[Batch]:
        """The micro-batches of this rank in a step.

        Args:
            items: Iterator of ``loader``.
            step: Its number.
        """
        config, processes = self.config, self.processes
        count = config.batch_size * config.accumulation
        tasks = self.plan.step(step)
        here = places(config.seed, step, rank=processes.rank, world_size=processes.size, count=count)
        batches = []
        for number in range(config.accumulation):
            mine = here[number * config.batch_size : (number + 1) * config.batch_size]
            batches.append(self._batch(items, mine, tasks, number))
        return batches

    def _batch(self, items: Iterator[list[Item]], here: list[Place], tasks: list[str], number: int) -> Batch:
        """The next samples that make a row at least: a small batch may be of rows that are all too long."""
        for attempt in range(ATTEMPTS):
            read = next(items)[: len(here)]
            mine = here[: len(read)]
            try:
                return self.maker.make(read, [tasks[place.index] for place in mine], mine, number)
            except NoRows:
                if attempt == ATTEMPTS - 1:
                    raise
        raise RuntimeError("ATTEMPTS must be at least 1")

    def state_dict(self) -> dict[str, Any]:
        """Positions of all ranks; each has to ask. JSON values."""
        return {
            "world_size": self.processes.size,
            "loaders": self.processes.gather(self.loader.state_dict()),
            "left_out": self.processes.gather(dict(self.maker.left_out)),
        }

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go to a position, of any number of ranks.

        Args:
            state: From :meth:`state_dict`.
            step: At which it was taken.
        """
        rank, size = self.processes.rank, self.processes.size
        if self.processes.is_main:
            for counts in state["left_out"]:
                self.maker.left_out.update(counts)
        if state["world_size"] == size:
            self.loader.load_state_dict(state["loaders"][rank])
            return
        place = moved(state["loaders"], rank=rank, size=size)
        if place is not None:
            self.processes.say(f"{state['world_size']} ranks before, {size} now: the data go on where they were")
            self.loader.load_state_dict(place)
        else:
            self.processes.say(f"{state['world_size']} ranks before, {size} now: the data go on in an order of their own")
            self.loader = self._make_loader(first_epoch=1 + step)

    def _make_maker(self) -> BatchMaker:
        config, masking = self.config, self.config.masking
        ratio = MaskRatio(masking.shape, masking.low, masking.high, masking.width)  # type: ignore[arg-type]
        dtype = None if config.precision == "float32" else torch.bfloat16
        parts, device = self.parts, self.processes.device
        return BatchMaker(
            parts.model.config,
            parts.processor,
            parts.image_tokenizer,
            ratio,
            config.questions,
            config.describing,
            config.max_length,
            device,
            dtype,
        )

    def _make_loader(self, first_epoch: int = 0) -> StreamLoader[Item, list[Item]]:
        config, processes = self.config, self.processes
        settings = StreamSettings(
            config.seed, rank=processes.rank, world_size=processes.size, strict=config.strict, first_epoch=first_epoch
        )
        stream = make_stream(config.data, settings, self.parts.image_tokenizer)
        return StreamLoader(stream, config.batch_size, as_list, num_workers=config.workers)
