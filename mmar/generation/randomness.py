"""Random numbers of one image come from its own generator, so that no other image of the batch has a say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def row_generators(generator: Generators, rows: int) -> list[torch.Generator]:
    """One generator for each row.

    Args:
        generator: One per row, used as they are; or one, from which each row in turn draws the seed of its own, so that row i
            depends on the generator and on i alone; None: torch's default generator takes its place.
        rows: Images.

    Raises:
        ValueError: If there are not as many generators as rows.
    """
    if isinstance(generator, Sequence):
        if len(generator) != rows:
            raise ValueError(f"generator must be one, or one for each of the {rows} rows, got {len(generator)}")
        if len({id(source) for source in generator}) < rows:
            raise ValueError("generator must be a different one for each row, got one twice; seed one for each row")
        return list(generator)
    device = "cpu" if generator is None else generator.device
    seeds = [int(torch.randint(2**63 - 1, (), generator=generator, device=device)) for _ in range(rows)]
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw_normal(sources: Sequence[torch.Generator], shape: Sequence[int], device: torch.device) -> Tensor:
    """``(rows, *shape)`` standard normal numbers, float32."""
    drawn = (torch.randn(*shape, generator=source, device=source.device) for source in sources)
    return torch.stack([row.to(device) for row in drawn])


def draw_uniform(sources: Sequence[torch.Generator], shape: Sequence[int], device: torch.device) -> Tensor:
    """``(rows, *shape)`` uniform numbers in [0, 1), float64."""
    drawn = (torch.rand(*shape, generator=source, device=source.device, dtype=torch.float64) for source in sources)
    return torch.stack([row.to(device) for row in drawn])
