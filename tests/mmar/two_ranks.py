"""Training runs on two processes of this machine, forked from a server that has torch imported."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

from mmar.training.config import TrainingConfig


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def train_on_ranks(runs: Sequence[tuple[TrainingConfig, bool]], *, said: Path, size: int = 2) -> list[int]:
    """Each run, resumed or not, one after the other on the same ranks; exit codes of the ranks."""
    context, port = get_context("forkserver"), free_port()
    context.set_forkserver_preload(["mmar.training.loop"])
    ranks = [context.Process(target=_rank, args=(rank, size, port, list(runs), said)) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(600)
        if process.is_alive():
            process.kill()
            process.join()
    return [int(process.exitcode or 0) for process in ranks]


def _rank(rank: int, size: int, port: int, runs: list[tuple[TrainingConfig, bool]], said: Path) -> None:
    """As torchrun starts it."""
    with said.with_suffix(f".{rank}").open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="localhost", MASTER_PORT=str(port)
    )
    from mmar.training.loop import train
    from mmar.training.parallel import leave

    try:
        for config, resume in runs:
            train(config, resume=resume)
    finally:
        leave()
