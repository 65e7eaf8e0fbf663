"""Prints the account of a run: what a Gaudi would have done, with the user's lines. Nothing in it was measured on a Gaudi."""

from __future__ import annotations

from collections.abc import Iterable

import torch  # noqa: F401 - before our own: in eager mode torch loads the device by itself, which needs them whole

from gaudicc.emulator.clock import Clock
from gaudicc.emulator.emulation import Emulation, current, started
from gaudicc.emulator.ledger import Entry, Kind
from gaudicc.targets.target import RELEASE

SHOWN = 12
"""Lines shown of each kind."""

NOTHING = "the program never imported habana_frameworks.torch: no device was emulated"


def render() -> str:
    """The account as text: totals, then the lines of each kind, the costliest first; all times are modelled."""
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
        moved, seconds = emulation.ledger.bytes(kind), emulation.ledger.seconds(kind)
        total = f"{kind.value}: {emulation.ledger.count(kind)}"
        total += (f", {_size(moved)} moved" if moved else "") + (f", {_time(seconds)} modelled" if seconds else "")
        lines.append(total)
        if kind is not Kind.HIT:
            lines.extend(_lines(entries))
    if len(lines) == 1:
        lines.append("nothing but work on the device that needed no compilation")
    return "\n".join([*lines, _modelled(emulation.clock)])


def _modelled(clock: Clock) -> str:
    """The modelled time of the program."""
    overlapped = f"the chip ran ops for {_time(clock.busy)} of it, the host issued them for {_time(clock.issuing)}"
    waited = f"and waited for the chip for {_time(clock.waiting)}"
    return f"Modelled time: {_time(clock.now)} without the program's own Python; {overlapped} {waited}"


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
            "modelled_seconds": entry.seconds,
        }
        for entry in emulation.ledger.entries()
    ]
    settings = emulation.settings
    clock = emulation.clock
    modelled = {"all": clock.now, "chip": clock.busy, "issuing": clock.issuing, "waiting": clock.waiting}
    return {
        "emulated": True,
        "target": settings.target,
        "lazy": settings.lazy,
        "release": RELEASE,
        "modelled_seconds": modelled,
        "entries": rows,
    }


def _finish(emulation: Emulation) -> None:
    """Count what was not there to be counted while it ran."""
    emulation.flush()
    presumed, emulation.judge.presumed = emulation.judge.presumed, type(emulation.judge.presumed)()
    for op, count in presumed.items():
        for _ in range(count):
            emulation.ledger.add(Kind.PRESUMED, op)


def _lines(entries: Iterable[Entry]) -> list[str]:
    """The costliest first, then the most frequent."""
    ordered = sorted(entries, key=lambda entry: (-entry.seconds, -entry.count, entry.what, entry.source))
    shown = [
        f"  {entry.count:>6} x  {entry.what}"
        + (f"  {_time(entry.seconds)}" if entry.seconds else "")
        + (f"  [{entry.source}]" if entry.source else "")
        for entry in ordered
    ]
    rest = len(shown) - SHOWN
    return [*shown[:SHOWN], f"          and {rest} more"] if rest > 0 else shown


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
