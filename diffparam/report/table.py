"""A report as text for a terminal and as HTML for a notebook."""

from __future__ import annotations

import math
import textwrap
from html import escape
from typing import TYPE_CHECKING

from diffparam.report.advice import LARGE_KAPPA, is_narrow
from diffparam.report.assess import SOURCES, WORDS, Assessment, percent

if TYPE_CHECKING:
    from diffparam.report.document import Report

WIDTH = 118
_SHORT = {"arithmetic": "arith.", "coefficients": "coeff.", "timestep": "time"}
_HEAD = ("", "predicts", "κ max", "error", *(_SHORT.get(name, name) for name in SOURCES), "mostly", "safe t ≤", "unsafe t here")


def text_of(report: Report) -> str:
    """Settings, table, verdict, advice and notes, wrapped at :data:`WIDTH` characters, without a last newline."""
    cells = [_HEAD, *(_cells(row, i == report.configured) for i, row in enumerate(report.rows))]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_HEAD))]
    table = []
    for line in cells:
        parts = [
            text.ljust(width) if i in _LEFT else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        table.append("  ".join(parts).rstrip())
    body = [_settings(report), "", *table, "", *_verdict(report)]
    return "\n".join([*body, *_advice(report), *_notes(report)])


_LEFT = (0, 1, 9, 11)


def html_of(report: Report) -> str:
    """The same as HTML; every name is escaped."""
    head = "".join(f"<th>{escape(name)}</th>" for name in _HEAD)
    rows = []
    for i, row in enumerate(report.rows):
        marked = i == report.configured
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in _cells(row, marked))
        rows.append(f'<tr style="font-weight: bold">{cells}</tr>' if marked else f"<tr>{cells}</tr>")
    lines = [*_verdict(report), *_advice(report), *_notes(report)]
    return (
        f"<div><p>{escape(_settings(report))}</p><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>{''.join(f'<p>{escape(line)}</p>' for line in lines if line)}</div>"
    )


def _settings(report: Report) -> str:
    run, formats = report.run, report.run.formats()
    spread = "" if run.guidance == 1 else f"; guidance {run.guidance:g} multiplies output errors by {_spread(run.guidance):.3g}"
    noise = f" (eta {run.eta:g})" if run.eta else ""
    return _wrap(
        f"{run.name}: {len(run.grid)} steps of {run.solver}{noise} out of {len(run.training)}, t = "
        f"{run.grid.timesteps[-1]:g} .. {run.grid.timesteps[0]:g}; "
        + ", ".join(f"{k} {v}" for k, v in formats.items())
        + f"; data of standard deviation {run.sigma_data:g}{spread}"
    )


def _spread(guidance: float) -> float:
    return math.hypot(guidance, guidance - 1.0)


def _cells(row: Assessment, configured: bool) -> tuple[str, ...]:
    mark = ">" if configured else ""
    limit = "none" if row.largest_safe_timestep is None else f"{row.largest_safe_timestep:g}"
    if row.singular_timestep is not None:
        at = f"singular at {row.singular_timestep:g}"
        return (mark, row.param, "inf", "-", *("-" for _ in SOURCES), "-", limit, at)
    errors = [f"{row.sources[name]:.1e}" if name in row.sources else "-" for name in SOURCES]
    return (
        mark,
        row.param,
        f"{row.kappa_max:.4g}",
        f"{row.error:.1e}",
        *errors,
        row.dominant,
        limit,
        _timesteps(row.unsafe_timesteps),
    )


def _timesteps(steps: tuple[float, ...]) -> str:
    if not steps:
        return "none"
    if len(steps) <= 3:
        return ", ".join(f"{t:g}" for t in steps)
    return f"{len(steps)} in {min(steps):g} .. {max(steps):g}"


def _verdict(report: Report) -> list[str]:
    row, run = report.row, report.run
    if report.safe:
        return [
            _wrap(
                f"SAFE: {row.param} leaves an error of {percent(row.error)} of the final sample's rms (tolerance "
                f"{percent(run.tolerance)}), mostly from {WORDS[row.dominant]}."
            )
        ]
    return [_wrap(f"UNSAFE: {reason}.") for reason in report.objections]


def _advice(report: Report) -> list[str]:
    if not report.advice:
        return [] if report.safe else ["No change of formats, start or parameterization that was tried makes this run safe."]
    lines = []
    for advice in report.advice:
        after = f"error {percent(advice.error)}" + (", safe" if advice.safe else ", still unsafe")
        lines.append(_wrap(f"Advice: {advice.text}: {after}."))
    return lines


def _notes(report: Report) -> list[str]:
    row = report.row
    spoken_of = ["correlation", "grid"]
    if is_narrow(report.run.timestep):  # float32 moves every timestep that is no whole number, by nothing that counts
        spoken_of.append("off_grid")
    notes = [flag.reason for flag in row.flags if flag.kind in spoken_of]
    notes += report.run.notes
    if math.isfinite(row.kappa_max) and row.kappa_max > LARGE_KAPPA:
        notes.append(
            f"kappa = {row.kappa_max:.3g} at timestep {row.kappa_timestep:g} multiplies every relative error of the output, "
            "that of an imperfect network too, in float32 as well; rounding is the part that is predicted here"
        )
    if report.run.formats()["output"] != "exact":
        notes.append(
            "one error per network output is counted; a network that computes in low precision inside errs more: measure it "
            "and pass the relative error as output"
        )
    return [_wrap(f"Note: {note}.") for note in notes]


def _wrap(text: str) -> str:
    return "\n".join(textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
