"""The console command ``mmar``: a table of subcommands, each imported when it is asked for.

Exit status: 0 good, 1 a run that failed, 2 bad input. Messages go to stderr, results to stdout.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

BAD, INTERRUPTED, UNREAD = 2, 130, 141


@dataclass(frozen=True)
class Subcommand:
    """Where a subcommand is.

    Attributes:
        module: Has ``main(argv) -> int``.
        summary: A line of ``mmar --help``.
        extra: Optional dependencies of the distribution that it needs.
    """

    module: str
    summary: str
    extra: str = "mmar"


SUBCOMMANDS = {
    "train": Subcommand("mmar.train", "train a model from a YAML configuration"),
    "generate": Subcommand("mmar.commands.generate", "draw pictures from captions, or paint over a picture"),
    "chat": Subcommand("mmar.commands.chat", "ask questions about a picture"),
    "reconstruct": Subcommand("mmar.commands.reconstruct", "a picture before and after the image tokenizer"),
    "cache-latents": Subcommand("mmar.commands.cache_latents", "encode the pictures of a data set once"),
    "latent-statistics": Subcommand("mmar.commands.latent_statistics", "measure the scale of an image tokenizer"),
    "info": Subcommand("mmar.commands.info", "what a checkpoint is, and whether its sampler is safe in bf16"),
    "demo": Subcommand("mmar.demo.app", "a local web page that draws and answers", extra="demo"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status; see the module."""
    try:
        status = _main(argv)
        sys.stdout.flush()  # here, where a reader that has gone away is no traceback: mmar --help | head -1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again at its end
        return UNREAD
    return status


def _main(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if not arguments or arguments[0] not in SUBCOMMANDS:
        got = repr(arguments[0]) if arguments else "none"
        return _complain("mmar", f"the subcommand must be one of {', '.join(SUBCOMMANDS)}, got {got}; see mmar --help")
    return _run(arguments[0], arguments[1:])


def _run(name: str, arguments: list[str]) -> int:
    subcommand = SUBCOMMANDS[name]
    try:
        return int(import_module(subcommand.module).main(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("mmar", "diffparam"):
            raise
        return _complain(
            f"mmar {name}",
            f"{error.name} must be installed, got no such package; pip install 'diffparam[{subcommand.extra}]'",
        )


def _complain(prog: str, message: str) -> int:
    print(f"{prog}: {message}", file=sys.stderr)
    return BAD


def _help() -> str:
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:{width}}  {subcommand.summary}" for name, subcommand in SUBCOMMANDS.items()]
    return "\n".join(
        ["usage: mmar SUBCOMMAND ...", "", "MMAR draws pictures and answers questions about them.", "", *lines, "", _EPILOG]
    )


_EPILOG = "mmar SUBCOMMAND --help says more. Exit status: 0 good, 1 a run that failed, 2 bad input."


if __name__ == "__main__":
    sys.exit(main())
