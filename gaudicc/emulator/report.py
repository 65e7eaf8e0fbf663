"""Prints the account of a run: what a Gaudi would have done, with the user's lines. Nothing in it was measured on a Gaudi."""

from __future__ import annotations

from collections.abc import Iterable

from gaudicc.emulator.emulation import Emulation, current, started
from gaudicc.emulator.ledger import Entry, Kind
from gaudicc.targets.target import RELEASE

SHOWN = 12
"""Lines shown of each kind."""

NOTHING = "the program never imported habana_frameworks.torch: no device was emulated"


def render() -> str:
    """The account as text: totals, then the lines of each kind, the most frequent first."""
    if not started():
        return NOTHING
    emulation = current()
    _finish(emulation)
    mode = "lazy" if emulation.settings.lazy else "eager"
    lines = [f"What a {emulation.settings.target} would have done ({mode} mode, tables of release {RELEASE}; emulated)"]
    for kind in Kind:
        entries = emulation.ledger.entries(kind)
        if not entries:
            continue
        moved = emulation.ledger.bytes(kind)
        total = emulation.ledger.count(kind)
        lines.append(f"{kind.value}: {total}" + (f", {_size(moved)} moved" if moved else ""))
        if kind is not Kind.HIT:
            lines.extend(_lines(entries))
    if len(lines) == 1:
        lines.append("nothing but work on the device that needed no compilation")
    return "\n".join(lines)


def as_json() -> dict[str, object]:
    """The account as plain data: mode, chip, and one row for each kind, thing and line."""
    if not started():
        return {"emulated": False, "entries": []}
    emulation = current()
    _finish(emulation)
    rows = [
        {
            "kind": entry.kind.name.lower(),
            "what": entry.what,
            "source": entry.source,
            "count": entry.count,
            "bytes": entry.bytes,
        }
        for entry in emulation.ledger.entries()
    ]
    settings = emulation.settings
    return {"emulated": True, "target": settings.target, "lazy": settings.lazy, "release": RELEASE, "entries": rows}


def _finish(emulation: Emulation) -> None:
    """Count what was not there to be counted while it ran."""
    emulation.flush()
    presumed, emulation.judge.presumed = emulation.judge.presumed, type(emulation.judge.presumed)()
    for op, count in presumed.items():
        for _ in range(count):
            emulation.ledger.add(Kind.PRESUMED, op)


def _lines(entries: Iterable[Entry]) -> list[str]:
    ordered = sorted(entries, key=lambda entry: (-entry.count, entry.what, entry.source))
    shown = [
        f"  {entry.count:>6} x  {entry.what}" + (f"  [{entry.source}]" if entry.source else "") for entry in ordered
    ]
    rest = len(shown) - SHOWN
    return [*shown[:SHOWN], f"          and {rest} more"] if rest > 0 else shown


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
