"""The CSVs of Gaudi's own profiler: hardware events, and analysed nodes.

Columns as in the samples of HabanaAI/Intel_Gaudi3_Software (MIT), `synapse/scripts/trace_analyzer/tests/data`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from gaudicc.errors import InputError
from gaudicc.profile.activity import Activity
from gaudicc.profile.chrome import kind_of

_EVENTS = {"Name", "Engine", "Event type", "Timestamp[usec]"}
_NODES = {"Unit", "Node Name", "Op Type", "Start", "End"}


def parse_native(text: str, path: Path) -> list[Activity]:
    """Reads either CSV; which one is told by its columns.

    Args:
        text: of the file.
        path: what to call it in errors.

    Raises:
        InputError: the text has other columns, is cut off, or names no engine.
    """
    try:
        header, *lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    except csv.Error as error:
        raise InputError(
            f"cannot read {path} as CSV: {error}", hint="give a CSV of hl-prof or synprof_parser"
        ) from error
    columns = [name.strip() for name in header]
    read = _hardware_events if _EVENTS.issubset(columns) else _analysed_nodes if _NODES.issubset(columns) else None
    if read is None:
        wanted = f"{sorted(_EVENTS)} or {sorted(_NODES)}"
        raise InputError(f"{path} has the columns {sorted(columns)}", hint=f"give a CSV with {wanted}")
    filled = (zip_longest(columns, map(str.strip, line[: len(columns)]), fillvalue="") for line in lines if line)
    try:
        found = list(read([dict(row) for row in filled]))
    except ValueError as error:
        raise InputError(f"{path}: {error}", hint="the file may be cut off") from error
    if not found:
        raise InputError(f"no row of {path} is of an engine", hint="profile with hardware trace on")
    return found


def _microseconds(row: dict[str, str], column: str) -> float:
    try:
        return float(row[column])
    except ValueError:
        name = row.get("Name") or row.get("Node Name")
        raise ValueError(f"the row of {name} has {column} = {row[column]!r}, which is no time") from None


def _hardware_events(rows: list[dict[str, str]]) -> Iterator[Activity]:
    """Pairs of BEGIN and END of one name on one engine; instants and counters are passed over."""
    begun: dict[tuple[str, str], list[float]] = {}
    spans = [row for row in rows if row["Event type"] in ("BEGIN", "END") and kind_of(row["Engine"])]
    for row in sorted(spans, key=lambda row: _microseconds(row, "Timestamp[usec]")):
        kind = kind_of(row["Engine"]) or ""
        key, now = (row["Engine"], row["Name"]), _microseconds(row, "Timestamp[usec]") * 1e-6
        if row["Event type"] == "BEGIN":
            begun.setdefault(key, []).append(now)
        elif not begun.get(key):
            raise ValueError(f"{row['Name']} ends on {row['Engine']} and never began")
        else:
            yield Activity(kind, row["Engine"], row["Name"], begun[key].pop(), now, row.get("Operation") or row["Name"])
    if left := next((key for key, starts in begun.items() if starts), None):
        raise ValueError(f"{left[1]} begins on {left[0]} and never ends")


def _analysed_nodes(rows: list[dict[str, str]]) -> Iterator[Activity]:
    """One row a node, over all engines of its unit."""
    for row in rows:
        kind = kind_of(row["Unit"])
        if kind is not None:
            start, end = _microseconds(row, "Start") * 1e-6, _microseconds(row, "End") * 1e-6
            yield Activity(kind, row["Unit"], row["Node Name"], start, end, row["Op Type"] or row["Node Name"])
