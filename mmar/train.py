"""``python -m mmar.train CONFIG key=value ...``: train from a YAML configuration; under ``torchrun`` on many processes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmar.training.config import TrainingConfig, load_config


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, say where the result is. Status 2 for bad input, 1 for a run that failed, 0 otherwise."""
    parser = argparse.ArgumentParser(prog="mmar train", description="Train an MMAR from a YAML configuration.")
    parser.add_argument("config", help="YAML file; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="optimizer.lr=1e-4 and the like")
    parser.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint of the output folder")
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = load_config(arguments.config, arguments.overrides)
    except (ValueError, FileNotFoundError) as error:
        print(f"mmar train: {error}", file=sys.stderr)
        return 2
    from mmar.data.skipped import TooManySkipped
    from mmar.training.loop import NonFiniteLoss  # seconds of imports that a wrong configuration need not wait for
    from mmar.training.parallel import is_main, leave

    try:
        path = _with_needs(config, arguments.resume)
        if is_main():
            print(path)
    except (ValueError, FileNotFoundError) as error:
        print(f"mmar train: {error}", file=sys.stderr)
        return 2
    except (NonFiniteLoss, TooManySkipped, OSError) as error:
        print(f"mmar train: {error}", file=sys.stderr)
        return 1
    finally:
        leave()
    return 0


def _with_needs(config: TrainingConfig, resume: bool) -> Path:
    """Run what a configuration needs, where it is not finished, then itself; a signal ends the chain."""
    from mmar.training.loop import FINAL, train

    if config.needs is not None:
        before = load_config(config.needs)
        if not (Path(before.output) / FINAL).is_dir():
            print(f"first: {config.needs}", file=sys.stderr)
            path = _with_needs(before, resume=True)
            if path.name != FINAL:
                return path
    return train(config, resume=resume)


if __name__ == "__main__":
    sys.exit(main())
