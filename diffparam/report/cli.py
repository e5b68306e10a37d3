"""The console command: ``diffparam report`` and ``diffparam convert``.

Exit status: 0 safe (converted), 1 unsafe (no such conversion), 2 bad input. Safe means: the configured run has no singular
step, no flag of kind unsafe, collision, stagnation, overflow or large, and its predicted rms error of the final sample is at
most --tolerance of the sample's rms.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from diffparam.report.config_file import read_config
from diffparam.report.convert import Converted, convert_layer, convert_tensors
from diffparam.report.document import Report, report
from diffparam.report.errors import BadInput, NotARescaling
from diffparam.report.parse import (
    SCHEDULES,
    nearest,
    parse_assignments,
    parse_error,
    parse_format_or_none,
    parse_schedule,
    parse_signed,
)
from diffparam.report.plot import plot_report
from diffparam.report.run import SOLVERS
from diffparam.report.scheduler import read_scheduler
from diffparam.report.scheduler_options import DEFAULTS
from diffparam.schedule import SPACINGS, Schedule
from diffparam.state import StateSpace

SAFE, UNSAFE, BAD = 0, 1, 2
LONGEST_LINE = 600


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; see the module."""
    try:
        options = _parser().parse_args(arguments)
        status, text = options.run(options)
    except KeyboardInterrupt:
        return 130
    except NotARescaling as error:
        return _complain(error, UNSAFE)
    except (ValueError, TypeError, ArithmeticError, ImportError, OSError, MemoryError) as error:
        return _complain(error, BAD)
    try:
        _print(text)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has enough (| head)
        _silence_stdout()
    return int(status)


def _complain(error: BaseException, status: int) -> int:
    text = str(error) or type(error).__name__
    line = "".join(c if c.isprintable() else " " if c in "\n\t" else repr(c)[1:-1] for c in text)
    line = line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 4] + " ..."
    print(f"diffparam: {line}".encode(errors="backslashreplace").decode(), file=sys.stderr)
    return status


def _silence_stdout() -> None:
    """So that the interpreter's own flush at exit does not fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


# -- diffparam report -------------------------------------------------------------------------------------------------


def _report(options: argparse.Namespace) -> tuple[int, str]:
    schedule = _source(options)
    found = report(
        schedule,
        None if options.prediction is None else parse_signed(options.prediction, options.sigma_data),
        steps=options.steps,
        spacing=options.spacing,
        solver=options.solver,
        eta=options.eta,
        guidance=options.guidance,
        sigma_data=options.sigma_data,
        output=_parsed(parse_error, "--output", options.output),
        arithmetic=_parsed(parse_format_or_none, "--arithmetic", options.arithmetic),
        state=_parsed(parse_error, "--state", options.state),
        timestep=_parsed(parse_format_or_none, "--timestep", options.timestep),
        increments=options.increments,
        tolerance=options.tolerance,
        loss_tolerance=options.loss_tolerance,
    )
    if options.plot is not None:
        plot_report(found, options.plot)
    return SAFE if found.safe else UNSAFE, _told_report(found, options.json)


def _parsed(parse: Callable[[str], Any], option: str, text: str) -> Any:
    try:
        return parse(text)
    except (ValueError, ArithmeticError) as error:
        raise BadInput(f"{option}: {error}") from None


def _told_report(found: Report, target: str | None) -> str:
    """What goes to the terminal, after JSON has gone to its file."""
    text = json.dumps(found.to_dict(), indent=1, allow_nan=False)
    if target is not None and target != "-":
        Path(target).write_text(f"{text}\n", encoding="utf-8")
    return text if target == "-" else str(found)


def _source(options: argparse.Namespace) -> Schedule | dict[str, Any]:
    """What the command speaks of: a named schedule, or a config from a file, a folder or a class's defaults."""
    if options.json not in (None, "-") and not options.json.endswith(".json"):
        raise BadInput(f"--json FILE must end in .json, got {options.json!r}; put a bare --json last, or write --json=-")
    if (options.target is None) == (options.schedule is None):
        raise BadInput("give either a scheduler (a config file, a folder or a class name) or --schedule, got " + (
            "both" if options.target else "neither"
        ))  # fmt: skip
    if options.schedule is not None:
        if options.set:
            raise BadInput(
                "--set must go with a scheduler, got it with --schedule; its options are --train-steps and --prediction"
            )
        return parse_schedule(options.schedule, options.train_steps)
    if options.train_steps is not None:
        raise BadInput("--train-steps must go with --schedule; of a scheduler say --set num_train_timesteps=N")
    if options.json not in (None, "-") and os.path.realpath(options.json) == os.path.realpath(options.target):
        raise BadInput(f"--json must not overwrite the config, got {options.json!r}")
    config, changes = _config(options.target), parse_assignments(options.set)
    whole = {**config, **changes}
    own = DEFAULTS.get(str(whole.get("_class_name")), {})
    foreign = [key for key in changes if key != "_class_name" and key not in own]
    if own and foreign:
        raise BadInput(
            f"the key of --set must be an option of {whole['_class_name']}, got {foreign[0]!r}, which it does not have"
            f"{nearest(foreign[0], own)}"
        )
    return whole


def _config(target: str) -> dict[str, Any]:
    if os.path.lexists(target) or not target.isidentifier():
        return read_config(target)
    if target not in DEFAULTS:
        raise BadInput(
            f"the scheduler must be a file, a folder or a class that is known, got {target!r}{nearest(target, DEFAULTS)}"
        )
    return {"_class_name": target}


# -- diffparam convert ------------------------------------------------------------------------------------------------


def _convert(options: argparse.Namespace) -> tuple[int, str]:
    source, target = (parse_signed(name, options.sigma_data) for name in (options.source, options.target))
    about_angles = (options.phi, options.timestep, options.schedule, options.scheduler, options.state_space)
    if options.layer is None:
        if options.rows is not None:
            raise BadInput("--rows must go with --layer")
        done = convert_tensors(
            options.input,
            options.out,
            source=source,
            target=target,
            phi=options.phi,
            timestep=options.timestep,
            schedule=_schedule(options),
            state=None if options.state_space is None else StateSpace(options.state_space),
            overwrite=options.overwrite,
        )
    else:
        if any(value is not None for value in about_angles):
            raise BadInput("--layer must go without angles and timesteps; a layer does not know them")
        done = convert_layer(
            options.input,
            options.out,
            layer=options.layer,
            source=source,
            target=target,
            rows=None if options.rows is None else _rows(options.rows),
            overwrite=options.overwrite,
        )
    return SAFE, _told(done, source.name, target.name)


def _told(done: Converted, source: str, target: str) -> str:
    how = "" if done.factor is None else f" times {done.factor!r}"
    rounded = "" if done.factor is None else ", exactly" if done.exact else ", rounded once"
    return f"{', '.join(done.tensors)}{how}: {source} -> {target}{rounded}; written to {done.path}"


def _schedule(options: argparse.Namespace) -> Schedule | None:
    if options.schedule is not None and options.scheduler is not None:
        raise BadInput("give one of --schedule and --scheduler, got both")
    if options.train_steps is not None and options.schedule is None:
        raise BadInput("--train-steps must go with --schedule; a scheduler's config has its own num_train_timesteps")
    if options.scheduler is not None:
        return read_scheduler(_config(options.scheduler)).training
    return None if options.schedule is None else parse_schedule(options.schedule, options.train_steps)


def _rows(text: str) -> tuple[int, int]:
    start, _, stop = text.partition(":")
    try:
        return int(start), int(stop)
    except ValueError:
        raise BadInput(f"--rows must be START:STOP, got {text!r}") from None


# -- the command line -------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Complaints in one line, as all others."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see {self.prog} --help")


def _print(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="backslashreplace").decode(encoding))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="diffparam", description="What low precision does to a diffusion sampler, before it runs.")
    commands = parser.add_subparsers(required=True, metavar="report|convert")
    _add_report(commands.add_parser("report", help="is a sampler safe, from where, and what would help", **_EPILOG))
    _add_convert(commands.add_parser("convert", help="stored outputs, or a checkpoint, in another parameterization", **_EPILOG))
    return parser


_EPILOG: Any = {
    "description": __doc__.partition("\n\n")[2],
    "formatter_class": argparse.RawDescriptionHelpFormatter,
}


def _add_report(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("target", nargs="?", help="scheduler_config.json, a folder with one (a pipeline's too), or a class, e.g. DDIMScheduler")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the scheduler; may be repeated")
    add("--schedule", metavar="NAME", help=f"instead of a scheduler: {', '.join(SCHEDULES)}")
    add("--train-steps", type=_number(int), metavar="N", help="timesteps of that schedule")
    add("--steps", type=_number(int), metavar="N", help="sampling steps (50)")
    add("--spacing", metavar="NAME", help=f"{', '.join(SPACINGS)}")
    add("--prediction", metavar="NAME", help="what the network outputs; -NAME (as --prediction=-flow) is its negative")
    add("--solver", metavar="NAME", help=", ".join(SOLVERS))
    add("--eta", type=_number(float), default=0.0, help="noise of ddim (0)")
    add("--guidance", type=_number(float), default=1.0, metavar="OMEGA", help="classifier-free guidance scale (1, none)")
    add("--sigma-data", type=_number(float), metavar="STD", help="standard deviation of the data per element (1)")
    add("--output", default="bfloat16", metavar="FORMAT", help="of the network's output, or a measured relative error, or none")
    add("--arithmetic", default="float32", metavar="FORMAT", help="of the update (float32)")
    add("--state", default="float32", metavar="FORMAT", help="of the stored sample (float32)")
    add("--timestep", default="float32", metavar="FORMAT", help="in which the network is told the time (float32)")
    add("--increments", action="store_true", help="the update is computed as a change of the sample, x + ((a - 1) x + b u)")
    add("--tolerance", type=_number(float), default=0.01, help="largest safe error of the final sample, of its rms (0.01)")
    add("--loss-tolerance", type=_number(float), default=0.01, help="largest safe loss floor of one step (0.01)")
    add("--plot", metavar="FILE", help="draw it: .png, .svg or .pdf (needs matplotlib)")
    add("--json", nargs="?", const="-", metavar="FILE", help="print JSON instead of the table, or write it to FILE as well")
    parser.set_defaults(run=_report)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("input", help=".safetensors with tensors u and x_t, or with --layer a checkpoint")
    add("out", help=".safetensors to write")
    add("--source", required=True, metavar="NAME", help="what u, or the layer, is; -NAME (as --source=-flow) is its negative")
    add("--target", required=True, metavar="NAME", help="what it shall be")
    add("--sigma-data", type=_number(float), metavar="STD", help="of edm, trigflow and optimal (1)")
    add(
        "--layer",
        metavar="NAME",
        help="multiply NAME.weight and NAME.bias, where the target is a constant multiple of the source",
    )
    add("--rows", metavar="START:STOP", help="output channels of the layer to change (all)")
    add("--phi", type=_number(float), metavar="RADIANS", help="angle of all states; else tensor phi or timestep in the file")
    add("--timestep", type=_number(float), metavar="T", help="timestep of all states")
    add("--schedule", metavar="NAME", help="what timesteps mean: " + ", ".join(SCHEDULES))
    add("--train-steps", type=_number(int), metavar="N", help="timesteps of that schedule")
    add("--scheduler", metavar="PATH|CLASS", help="or a scheduler, as for report")
    add("--state-space", metavar="KIND", help="convention of x_t: vp, ve or flow (the schedule's, or vp)")
    add("--overwrite", action="store_true", help="replace an existing output file")
    parser.set_defaults(run=_convert)


def _number(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no {'whole ' if kind is int else ''}number") from None

    return number


if __name__ == "__main__":
    sys.exit(main())
