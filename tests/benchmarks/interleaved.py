"""What the timing scripts share: competitors in turns, and a command with a quick preset and a record."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments.record import make_record, write_json


def medians(competitors: dict[str, Callable[[], Any]], turns: int, bar: tqdm) -> dict[str, float]:
    """Median seconds of one call of each, in turns after one untimed round: a busy neighbour meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for call in competitors.values():
        call()
    for _ in range(turns):
        for name, call in competitors.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
        bar.update(1)
    return {name: statistics.median(values) for name, values in times.items()}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch uses one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_benchmark(
    name: str,
    description: str,
    full: Any,
    quick: Any,
    run: Callable[[Any], dict[str, Any]],
    show: Callable[[dict[str, Any]], str],
    argv: Sequence[str] | None = None,
) -> None:
    """Parse the command line, measure, print, and write a record if asked to.

    Args:
        name: Of the script and its record.
        description: First line of its help.
        full: Config that counts.
        quick: Config that shows that it runs.
        run: Config to results.
        show: Results to the text printed on stdout.
        argv: Arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="one turn of everything: shows that it runs, measures little")
    parser.add_argument("--out", type=Path, help=f"write a JSON record there (experiments/records/{name}-cpu.json)")
    arguments = parser.parse_args(argv)
    config = quick if arguments.quick else full
    start = time.monotonic()
    results = run(config)
    print(show(results))
    if arguments.out:
        write_json(make_record(name, config, results, duration_s=time.monotonic() - start, device="cpu"), arguments.out)
