"""Profiles as text: one column a run, so that model and hardware lie side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from gaudicc.profile.activity import KINDS, Profile


def table(profiles: Sequence[Profile]) -> str:
    """Busy, overlap and bound of every run, then the largest ops of each."""
    head = ["", *(f"{profile.title} ({_kind(profile)})" for profile in profiles)]
    rows = [head, *_figures(profiles)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for profile in profiles:
        lines += ["", *_largest(profile)]
    return "\n".join(lines)


def as_json(profile: Profile) -> dict[str, Any]:
    """One profile as plain data, times in seconds."""
    return {**asdict(profile), "overlap_efficiency": profile.overlap_efficiency}


def _kind(profile: Profile) -> str:
    return "modelled" if profile.modelled else "from a trace"


def _figures(profiles: Sequence[Profile]) -> Iterator[list[str]]:
    yield ["window us", *(_us(profile.window) for profile in profiles)]
    yield ["bound us", *("-" if profile.bound is None else _us(profile.bound) for profile in profiles)]
    for kind in KINDS:
        if any(kind in profile.busy for profile in profiles):
            yield [f"{kind} busy", *(_share(profile.busy.get(kind, 0.0), profile) for profile in profiles)]
    yield ["MME and TPC at once", *(_share(profile.overlap, profile) for profile in profiles)]
    yield ["  of the shorter", *(f"{profile.overlap_efficiency:.0%}" for profile in profiles)]
    yield ["nothing busy", *(_share(profile.idle, profile) for profile in profiles)]


def _largest(profile: Profile) -> Iterator[str]:
    yield f"largest ops of {profile.title} ({_kind(profile)}):"
    for time in profile.largest:
        share = time.seconds / profile.window if profile.window else 0.0
        cells = f"{time.op:<28} {time.kind:<8} {time.count:>6} x  {_us(time.seconds):>12} us  {share:>5.1%}"
        yield f"  {cells}  {time.bound}".rstrip()


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f}"


def _share(seconds: float, profile: Profile) -> str:
    part = f" ({seconds / profile.window:.0%})" if profile.window else ""
    return f"{_us(seconds)} us{part}"
