"""Chrome trace JSON (Perfetto, torch.profiler): written from a run, read from a device's.

Fields as the bridge writes them: HabanaAI/gaudi-pytorch-bridge 1.19.0, `backend/profiling/json_file_parser.cpp`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gaudicc.errors import InputError
from gaudicc.profile.activity import KINDS, Activity

# What names an engine in a lane; names carry decoration that varies by generation, so these are looked for inside.
_MARKS = (("MME", "MME"), ("TPC", "TPC"), ("DMA", "DMA"), ("NIC", "NETWORK"), ("NETWORK", "NETWORK"), ("HOST", "HOST"))


MODELLED = " (modelled)"
"""Ends the title of a run that no device made: it is shown, and never read as a trace."""


def kind_of(lane: str) -> str | None:
    """The kind of engine that a lane's name speaks of, or None."""
    return next((kind for mark, kind in _MARKS if mark in lane.upper()), None)


def write_chrome(path: Path, runs: Iterable[tuple[str, Iterable[Activity]]]) -> None:
    """Writes runs below each other, one process a run and one thread a lane.

    Args:
        path: the file.
        runs: (title, what ran).
    """
    events: list[dict[str, Any]] = []
    for pid, (title, activities) in enumerate(runs):
        events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": title}})
        threads: dict[str, int] = {}
        for entry in activities:
            if entry.lane not in threads:
                # As in a device's own trace: kind of engine x 1000 + index.
                threads[entry.lane] = 1000 * KINDS.index(entry.kind) + len(threads)
                named = {"ph": "M", "name": "thread_name", "pid": pid, "tid": threads[entry.lane]}
                events.append({**named, "args": {"name": entry.lane}})
            timed = {"ts": entry.start * 1e6, "dur": (entry.end - entry.start) * 1e6}
            args = {"op": entry.op, **({"bound": entry.bound} if entry.bound else {})}
            place = {"pid": pid, "tid": threads[entry.lane], "cat": "Kernel"}
            events.append({"ph": "X", "name": entry.name, **timed, **place, "args": args})
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}))


def parse_chrome(text: str, path: Path) -> list[Activity]:
    """Reads what the engines did; lanes of the host's own threads are passed over.

    Args:
        text: of the file.
        path: what to call it in errors.

    Raises:
        InputError: the text is no such trace, or no lane in it is an engine.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"cannot read {path} as JSON: {error}", hint="give the trace that the profiler wrote"
        ) from error
    events = data.get("traceEvents") if isinstance(data, dict) else data
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise InputError(f"{path} holds no list of trace events", hint="give a Chrome trace, e.g. of torch.profiler")
    names = _names(events)
    found = list(_complete(events, names, path))
    if not found and any(name.endswith(MODELLED) for name in names.values()):
        raise InputError(f"{path} was modelled, no device made it", hint="give the trace that the profiler wrote")
    if not found:
        lanes = ", ".join(sorted(set(names.values()))) or "none"
        raise InputError(f"no lane of {path} is an engine of a Gaudi; lanes: {lanes}", hint="profile with activity HPU")
    return found


Place = tuple[str, str | None]
"""Process and thread; files write their numbers as numbers or as text."""


def _names(events: list[dict[str, Any]]) -> dict[Place, str]:
    """(pid, tid) -> name of the lane, from the metadata of threads, then of processes (tid None)."""
    names: dict[Place, str] = {}
    for event in events:
        if event.get("ph") == "M" and event.get("name") in ("process_name", "thread_name"):
            process, thread = _place(event)
            names[process, thread if event["name"] == "thread_name" else None] = str(_args(event).get("name", ""))
    return names


def _args(event: dict[str, Any]) -> dict[str, Any]:
    args = event.get("args")
    return args if isinstance(args, dict) else {}


def _number(event: dict[str, Any], name: str, path: Path) -> float:
    """A time of an event in microseconds; an event without duration is an instant."""
    try:
        return float(event.get(name, 0) if name == "dur" else event[name])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path}: the event {event.get('name')!r} has {name} = {event.get(name)!r}, which is no time",
            hint="the trace is damaged; profile again",
        ) from error


def _complete(events: list[dict[str, Any]], names: dict[Place, str], path: Path) -> Iterator[Activity]:
    """Complete events, and pairs of begin and end, on the lanes of engines."""
    begun: dict[Place, list[dict[str, Any]]] = {}
    on_engines = [event for event in events if event.get("ph") in ("X", "B", "E") and _lane(event, names)[0]]
    for event in sorted(on_engines, key=lambda each: _number(each, "ts", path)):
        place, (kind, lane) = _place(event), _lane(event, names)
        if event["ph"] == "B":
            begun.setdefault(place, []).append(event)
        elif event["ph"] == "E":
            if not begun.get(place):
                raise InputError(f"{path}: an event ends on {lane} that never began", hint="the trace may be cut off")
            begin = begun[place].pop()
            yield _activity(begin, kind, lane, _number(begin, "ts", path), _number(event, "ts", path))
        else:
            start = _number(event, "ts", path)
            yield _activity(event, kind, lane, start, start + _number(event, "dur", path))
    for left in [event for events_left in begun.values() for event in events_left]:
        raise InputError(
            f"{path}: {left.get('name')} begins on {_lane(left, names)[1]} and never ends",
            hint="the trace may be cut off",
        )


def _place(event: dict[str, Any]) -> Place:
    return str(event.get("pid")), str(event.get("tid"))


def _lane(event: dict[str, Any], names: dict[Place, str]) -> tuple[str, str]:
    """(Kind of engine, name) of an event's lane; the kind is empty if it is no engine of a device."""
    place = _place(event)
    thread, process = names.get(place, ""), names.get((place[0], None), "")
    kind = None if process.endswith(MODELLED) else kind_of(thread) or kind_of(process)
    return kind or "", f"{process} {thread or place[1]}".strip()


def _activity(event: dict[str, Any], kind: str, lane: str, start: float, end: float) -> Activity:
    args = _args(event)
    op = str(args.get("op") or args.get("Operation") or event.get("name", ""))
    return Activity(kind, lane, str(event.get("name", "")), start * 1e-6, end * 1e-6, op, str(args.get("bound", "")))
