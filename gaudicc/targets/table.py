"""Reads the target tables and overlays from JSON; every mistake is reported with its file and row."""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import NoReturn, TypeVar

from gaudicc.errors import TargetError, Where
from gaudicc.targets.conditions import CONDITIONS
from gaudicc.targets.dtypes import DEVICE, TOKENS
from gaudicc.targets.model import Compile, Engine, Kind, Lazy, Mode, OverlayRow, Row, Support

Json = dict[str, object]
E = TypeVar("E", bound=Enum)
FORMAT = 1
COLUMNS = ["op", "lazy", "compile", "kind", "operands", "engine", "dynamic", "when", "evidence", "source", "release"]
OVERLAY_FIELDS = {"op", "support", "dtypes", "modes", "when", "engine", "dynamic", "reason", "source", "release"}


class _Cell:
    """The values of one row, each taken with a check that names file and row when it fails."""

    def __init__(self, file: Path, number: int, values: Json) -> None:
        self.file, self.number, self.values = file, number, values

    def fail(self, what: str) -> NoReturn:
        _fail(self.file, f"row {self.number}: {what}")

    def text(self, name: str, default: str | None = None) -> str:
        value = self.values.get(name, default)
        if not isinstance(value, str):
            self.fail(f"{name} must be a string, not {value!r}")
        return value

    def required(self, name: str) -> str:
        return self.text(name) or self.fail(f"{name} must not be empty")

    def flag(self, name: str) -> bool:
        value = self.values.get(name, False)
        if not isinstance(value, bool):
            self.fail(f"{name} must be true or false, not {value!r}")
        return value

    def member(self, name: str, kind: type[E], default: str | None = None) -> E:
        value = self.text(name, default)
        try:
            return kind(value)
        except ValueError:
            self.fail(f"unknown {name} {value!r}; known: {', '.join(str(item.value) for item in kind)}")

    def op(self) -> str:
        op = self.text("op")
        if "::" not in op:
            self.fail(f"op must look like aten::add.Tensor, not {op!r}")
        return op

    def names(self, name: str, known: Iterable[str], separator: str = "|") -> tuple[str, ...]:
        names = tuple(part for part in self.text(name, "").split(separator) if part)
        if unknown := [part for part in names if part not in known]:
            self.fail(f"unknown {name} {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return names


def read_table(file: Path) -> tuple[str, dict[str, Row]]:
    """Read a chip's table.

    Args:
        file: a file made by `gaudicc.targets.make_tables`.

    Returns:
        The chip's name and its rows by op.

    Raises:
        TargetError: the file is not JSON of this format, or a row is malformed.
    """
    data = _load(file)
    chip, sources, rows = data.get("chip"), data.get("sources"), data.get("rows")
    if not isinstance(chip, str) or not isinstance(sources, list) or not isinstance(rows, list):
        _fail(file, "it must hold `chip`, `sources` and `rows`")
    if data.get("columns") != COLUMNS:
        _fail(file, f"its columns must be {', '.join(COLUMNS)}")
    table: dict[str, Row] = {}
    for number, values in enumerate(rows):
        if not isinstance(values, list) or len(values) != len(COLUMNS):
            _fail(file, f"row {number}: it must have {len(COLUMNS)} values")
        row = _row(_Cell(file, number, dict(zip(COLUMNS, values, strict=True))), sources)
        if row.op in table:
            _fail(file, f"row {number}: {row.op} stands there twice")
        table[row.op] = row
    return chip, table


def _row(cell: _Cell, sources: list[object]) -> Row:
    number = cell.values["source"]
    if not isinstance(number, int) or not 0 <= number < len(sources):
        cell.fail(f"source must be a number below {len(sources)}, not {number!r}")
    return Row(
        op=cell.op(),
        lazy=cell.member("lazy", Lazy),
        compile=cell.member("compile", Compile),
        kind=cell.member("kind", Kind),
        operands=_operands(cell),
        engine=cell.member("engine", Engine),
        dynamic=cell.flag("dynamic"),
        when=cell.names("when", CONDITIONS),
        evidence=cell.text("evidence"),
        source=str(sources[number]),
        release=cell.required("release"),
    )


def _operands(cell: _Cell) -> tuple[str, ...]:
    operands = tuple(cell.required("operands").split(";"))
    for operand in operands:
        if unknown := set(operand.removesuffix("*").split("|")) - TOKENS:
            cell.fail(f"unknown dtype {sorted(unknown)[0]!r} in operands; known: {', '.join(sorted(TOKENS))}")
    return operands


def read_overlay(file: Path) -> tuple[OverlayRow, ...]:
    """Read an overlay, `{"format": 1, "rows": [{"op": ..., "support": ..., ...}]}`; docs/targets.md lists the fields.

    Raises:
        TargetError: the file is not JSON of this format, or a row is malformed.
    """
    rows = _load(file).get("rows")
    if not isinstance(rows, list):
        _fail(file, "it must hold `rows`")
    return tuple(_overlay_row(file, number, values) for number, values in enumerate(rows))


def _overlay_row(file: Path, number: int, values: object) -> OverlayRow:
    if not isinstance(values, dict):
        _fail(file, f"row {number}: it must be an object")
    if unknown := sorted(set(values) - OVERLAY_FIELDS):
        _fail(file, f"row {number}: unknown field {unknown[0]!r}; known: {', '.join(sorted(OVERLAY_FIELDS))}")
    cell = _Cell(file, number, values)
    modes = cell.names("modes", {mode.value for mode in Mode}) or tuple(mode.value for mode in Mode)
    when = cell.names("when", CONDITIONS)
    if len(when) > 1:
        cell.fail("when takes one condition; write a row for each")
    return OverlayRow(
        op=cell.op(),
        support=cell.member("support", Support),
        dtypes=cell.names("dtypes", DEVICE),
        modes=tuple(Mode(mode) for mode in modes),
        when=when[0] if when else None,
        engine=cell.member("engine", Engine, Engine.TPC.value),
        dynamic=cell.flag("dynamic"),
        reason=cell.required("reason"),
        source=cell.required("source"),
        release=cell.required("release"),
    )


def _load(file: Path) -> Json:
    try:
        data = json.loads(file.read_text())
    except OSError as error:
        _fail(file, f"it cannot be read: {error.strerror}")
    except ValueError as error:
        _fail(file, f"it is not JSON: {error}")
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        _fail(file, f"its format must be {FORMAT}")
    return data


def _fail(file: Path, what: str) -> NoReturn:
    raise TargetError(
        f"the target file {file.name} is malformed: {what}",
        where=Where(source=str(file), stage="loading the target"),
        hint="docs/targets.md gives the format; tables are made by `python -m gaudicc.targets.make_tables`",
    )
