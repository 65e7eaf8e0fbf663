"""The CSVs of Gaudi's own profiler: hardware events, and analysed nodes.

Columns as in the samples of HabanaAI/Intel_Gaudi3_Software (MIT), `synapse/scripts/trace_analyzer/tests/data`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from gaudicc.errors import InputError
from gaudicc.profile.activity import Activity
from gaudicc.profile.chrome import kind_of

_EVENTS = {"Name", "Engine", "Event type", "Timestamp[usec]"}
_NODES = {"Unit", "Node Name", "Op Type", "Start", "End"}


def read_native(path: Path) -> list[Activity]:
    """Reads either CSV; which one is told by its columns.

    Raises:
        InputError: the file cannot be read, has other columns, or names no engine.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = {name.strip() for name in reader.fieldnames or ()}
            rows = [{(key or "").strip(): (value or "").strip() for key, value in row.items()} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error, TypeError, AttributeError) as error:
        raise InputError(
            f"cannot read {path} as CSV: {error}", hint="give a CSV of hl-prof or synprof_parser"
        ) from error
    read = _hardware_events if columns >= _EVENTS else _analysed_nodes if columns >= _NODES else None
    if read is None:
        wanted = f"{sorted(_EVENTS)} or {sorted(_NODES)}"
        raise InputError(f"{path} has the columns {sorted(columns)}", hint=f"give a CSV with {wanted}")
    try:
        found = list(read(rows))
    except ValueError as error:
        raise InputError(f"{path}: {error}", hint="the file may be cut off") from error
    if not found:
        raise InputError(f"no row of {path} is of an engine", hint="profile with hardware trace on")
    return found


def _hardware_events(rows: list[dict[str, str]]) -> Iterator[Activity]:
    """Pairs of BEGIN and END of one name on one engine; instants and counters are passed over."""
    begun: dict[tuple[str, str], list[float]] = {}
    for row in sorted(rows, key=lambda row: float(row["Timestamp[usec]"] or 0)):
        kind = kind_of(row["Engine"])
        if kind is None or row["Event type"] not in ("BEGIN", "END"):
            continue
        key, now = (row["Engine"], row["Name"]), float(row["Timestamp[usec]"]) * 1e-6
        if row["Event type"] == "BEGIN":
            begun.setdefault(key, []).append(now)
        elif not begun.get(key):
            raise ValueError(f"{row['Name']} ends on {row['Engine']} and never began")
        else:
            yield Activity(kind, row["Engine"], row["Name"], begun[key].pop(), now, row.get("Operation") or row["Name"])


def _analysed_nodes(rows: list[dict[str, str]]) -> Iterator[Activity]:
    """One row a node, over all engines of its unit."""
    for row in rows:
        kind = kind_of(row["Unit"])
        if kind is not None:
            start, end = float(row["Start"]) * 1e-6, float(row["End"]) * 1e-6
            yield Activity(kind, row["Unit"], row["Node Name"], start, end, row["Op Type"] or row["Node Name"])
