"""Lists of records in files: JSON lines, CSV, and LLaVA's JSON list. A line that cannot be read does not stop the others."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmar.data.records import decode_text, parse_object
from mmar.data.skipped import BadSample, Reason

Row = tuple[str, dict[str, Any] | BadSample]
"""Where a record is (file and line), and the record, or what is wrong with it."""


def read_rows(path: Path, name: str) -> Iterator[Row]:
    """The records of a file.

    Args:
        path: Ends in .jsonl, .csv or .json (a list).
        name: Of the file, for messages.

    Raises:
        ValueError: If the file as a whole cannot be read: another suffix, no list, a header that is wrong.
        FileNotFoundError: If it is not there.
    """
    readers = {".jsonl": _json_lines, ".csv": _csv, ".json": _json_list}
    if path.suffix not in readers:
        raise ValueError(f"a list of records must end in {', '.join(readers)}, got {str(path)!r}")
    return readers[path.suffix](path, name)


def _json_lines(path: Path, name: str) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{name}:{number}"
            if not line.strip():
                continue
            try:
                yield where, parse_object(decode_text(line, where), where)
            except BadSample as bad:
                yield where, bad


def _json_list(path: Path, name: str) -> Iterator[Row]:
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON in UTF-8, got an error: {error}; fetch the file again") from error
    if not isinstance(records, list):
        raise ValueError(f"{path} must be a JSON list of records, got {type(records).__name__}")
    for i, record in enumerate(records):
        where = f"{name}[{i}]"
        if isinstance(record, dict):
            yield where, record
        else:
            detail = f"it must be a JSON object, got {type(record).__name__}"
            yield where, BadSample.of(Reason.BAD_RECORD, where, detail)


def _csv(path: Path, name: str) -> Iterator[Row]:
    """Bytes that are not UTF-8 pass the reader as surrogates, which the check of the texts finds in their own row."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = _header(reader, path)
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                where = f"{name}:{reader.line_num}"
                yield where, BadSample.of(Reason.BAD_RECORD, where, f"it must be CSV, got an error: {error}")
                continue
            where = f"{name}:{reader.line_num}"
            if cells is None:
                return
            if len(cells) == len(header):
                yield where, dict(zip(header, cells, strict=True))
            elif cells:  # an empty line has none
                detail = f"a row must have {len(header)} cells, got {len(cells)}"
                yield where, BadSample.of(Reason.BAD_RECORD, where, detail)


def _header(reader: Any, path: Path) -> list[str]:
    try:
        header: list[str] = next(reader, [])
    except csv.Error as error:
        raise ValueError(f"the first line of {path} must be the names of columns, got an error: {error}") from error
    if "file_name" not in header or len(set(header)) < len(header):
        raise ValueError(f"the first line of {path} must name each column once and one file_name, got {header[:8]}")
    return header
