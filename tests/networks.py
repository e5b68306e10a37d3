"""Small real networks of (x_t, t) and inputs for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffparam import Schedule
from mmar.diffusion_head import DiffusionHead

SCHEDULE = Schedule.cosine(1000)


class Mlp(nn.Module):
    """Two hidden layers on (x_t, t)."""

    def __init__(self, dim: int = 16, width: int = 64) -> None:
        super().__init__()
        self.up, self.middle, self.out = nn.Linear(dim + 2, width), nn.Linear(width, width), nn.Linear(width, dim)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        angle = t.to(torch.float64)[:, None] / 300
        time = torch.cat([angle.sin(), angle.cos()], 1).to(x_t.dtype)
        h = functional.silu(self.up(torch.cat([x_t, time], 1)))
        return self.out(h + functional.silu(self.middle(h)))


class Residual(nn.Module):
    """The input plus a network of it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t + self.net(x_t, t)


class ConvNet(nn.Module):
    """One residual block on images."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(2, width)
        self.middle, self.out = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.time = nn.Linear(1, width)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        h = self.up(x_t) + self.time((t[:, None] / 1000).to(x_t.dtype))[:, :, None, None]
        return self.out(h + functional.silu(self.middle(functional.silu(self.norm(h)))))


def diffusion_head() -> DiffusionHead:
    """MMAR's, with numbers in the layers that start at zero."""
    head = DiffusionHead(16, 8, width=32, depth=2)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.15)
    return head


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "mlp": (Mlp, (16,), ()),
    "diffusion_head": (diffusion_head, (16,), (8,)),
    "conv_net": (ConvNet, (3, 6, 6), ()),
}


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def inputs(
    timesteps: tuple[int, ...],
    event: tuple[int, ...] = (16,),
    extra: tuple[int, ...] = (),
    *,
    count: int = 256,
    seed: int = 1,
) -> Iterator[tuple[Tensor, ...]]:
    """Noised data at each timestep."""
    draws = torch.Generator().manual_seed(seed)
    for t in timesteps:
        x0, eps = (torch.randn(count, *event, generator=draws) for _ in range(2))
        condition = (torch.randn(count, *extra, generator=draws),) if extra else ()
        yield SCHEDULE.add_noise(0.5 * x0, eps, t), torch.full((count,), t), *condition


def mean_square(x: Tensor) -> float:
    return float(x.double().square().mean())


class WithTime(nn.Module):
    """A network of x_t alone, called with the time too."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x)
