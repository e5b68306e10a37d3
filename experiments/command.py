"""The command line every experiment has: a preset, where the record goes, whether to take up an unfinished run."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.record import RECORDS, make_record, write_json

RUNS = Path(__file__).parent.parent / "runs"


def run_command(
    experiment: str,
    description: str,
    presets: Mapping[str, Any],
    run: Callable[..., dict[str, Any]],
    show: Callable[[dict[str, Any]], str],
    argv: Sequence[str] | None = None,
) -> None:
    """Parse the command line, run a preset, write its record and print its tables.

    Args:
        experiment: Name of the script and of its records.
        description: First line of its help.
        presets: Config by preset name; each has a ``device``.
        run: ``run(config, folder=..., resume=...)`` to the results; ``folder`` keeps what is finished.
        show: Record to the text printed on stdout.
        argv: Arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--preset", choices=presets, default="quick", help="size of the run (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="where to write the record (default: experiments/records/)")
    parser.add_argument("--resume", action="store_true", help="use the finished jobs of an interrupted run of this preset")
    arguments = parser.parse_args(argv)
    config = presets[arguments.preset]
    out = arguments.out or RECORDS / f"{experiment}-{arguments.preset}.json"
    start = time.monotonic()
    try:
        results = run(config, folder=RUNS / experiment, resume=arguments.resume)
    except KeyboardInterrupt:
        print(f"interrupted; finished jobs are kept, take them up with --preset {arguments.preset} --resume", file=sys.stderr)
        raise SystemExit(130) from None
    record = make_record(experiment, config, results, duration_s=time.monotonic() - start, device=config.device)
    record["resumed"] = arguments.resume
    write_json(record, out)
    print(show(record))
    print(f"\nrecord: {out}")
