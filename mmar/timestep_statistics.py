"""Loss per timestep, collected over training: the data of the paper's figure 3A."""

from __future__ import annotations

import torch
from torch import Tensor

from diffparam import AngularParam, Schedule, V, loss_weight


class TimestepStatistics:
    """Running count, mean and variance of the loss at each timestep, float64 on the CPU.

    Args:
        schedule: Of the training; its timesteps are the bins.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.count = torch.zeros(len(schedule), dtype=torch.int64)
        self.sum = torch.zeros(len(schedule), dtype=torch.float64)
        self.sum_of_squares = torch.zeros(len(schedule), dtype=torch.float64)

    def update(self, rows: Tensor | None, timesteps: Tensor | None) -> None:
        """Add ``image_rows (rows,)`` at ``image_timesteps (rows,)`` of an output; nothing where there were none."""
        if rows is None or timesteps is None:
            return
        rows = rows.detach().double().cpu()
        if not bool(rows.isfinite().all()):
            raise ValueError("rows must be finite, got NaN or infinity in the loss; stop and look at the batch")
        bins, timesteps = self.schedule.timesteps, timesteps.cpu()
        index = torch.searchsorted(bins, timesteps.to(bins.dtype)).clamp_max(len(bins) - 1)
        if not bool((bins[index] == timesteps).all()):
            raise ValueError("timesteps must be those of the schedule, got others; collect with the schedule of the training")
        self.count += torch.bincount(index, minlength=len(self.count))
        self.sum.index_add_(0, index, rows)
        self.sum_of_squares.index_add_(0, index, rows.square())

    def mean(self, *, source: AngularParam | None = None, target: AngularParam = V) -> Tensor:
        """Mean loss per timestep ``(len(schedule),)``, NaN where nothing was seen.

        Args:
            source: What the output meant; None leaves the loss in its own space.
            target: Space to express the loss in: figure 3A shows that of v for both heads.
        """
        mean = self.sum / self.count
        if source is None:
            return mean
        weight: Tensor = loss_weight(self.schedule.phi, source=source, target=target)
        return mean * weight

    def standard_error(self) -> Tensor:
        """Of the mean, per timestep, in the loss's own space; NaN below two rows."""
        variance = (self.sum_of_squares / self.count - (self.sum / self.count).square()).clamp_min(0.0)
        return (variance / (self.count - 1)).sqrt()

    def state_dict(self) -> dict[str, Tensor]:
        """To be saved with a checkpoint."""
        return {"count": self.count, "sum": self.sum, "sum_of_squares": self.sum_of_squares}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what :meth:`state_dict` gave.

        Raises:
            ValueError: If it belongs to a schedule of another length.
        """
        if len(state["count"]) != len(self.count):
            raise ValueError(f"state must have {len(self.count)} timesteps, got {len(state['count'])}; schedules differ")
        self.count, self.sum = state["count"].clone(), state["sum"].clone()
        self.sum_of_squares = state["sum_of_squares"].clone()
