"""Layers repeat: three are simulated, and all that follow are the third again, where the third was the second again."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import fx

from gaudicc.machine.fx_partition import stretches
from gaudicc.machine.timeline import Event, Timeline

# Of the time of one repetition: what starts may differ by from one to the next, by rounding.
_ROUNDING = 1e-9
# Repetitions that are simulated.
KEPT = 3

T = TypeVar("T")
Unit = Sequence[fx.Node]
"""Calls that follow one another: a layer, or several of different kinds that take turns."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """Calls that repeat.

    Attributes:
        kept: the units that are simulated.
        left: those that follow, each like the last one kept.
    """

    kept: tuple[Unit, ...]
    left: tuple[Unit, ...]

    def stands_for(self) -> dict[fx.Node, fx.Node]:
        """Call that is left out -> the one whose results stand for its own."""
        return {call: same for unit in self.left for call, same in zip(unit, self.kept[-1], strict=True)}

    def names(self, known: Mapping[str, T]) -> dict[str, T]:
        """What is known of the tasks of the last unit kept, for those that are left out."""
        inside = [(name.partition("/"), value) for name, value in known.items()]
        found = {}
        for call, same in self.stands_for().items():
            found.update({f"{call.name}/{rest}": value for (of, _, rest), value in inside if of == same.name})
        return found


def repeats_of(root: fx.GraphModule, kept: int = KEPT) -> Iterator[Repeat]:
    """Every stretch of calls of which more than `kept` units are alike."""
    for calls in stretches(root):
        names = [str(call.args[0].target) for call in calls]  # type: ignore[union-attr]
        period = _period(names)
        units = [calls[i : i + period] for i in range(0, len(calls) - period + 1, period)]
        if len(units) > kept:
            yield Repeat(tuple(units[:kept]), tuple(units[kept:]))


def _period(names: Sequence[Hashable]) -> int:
    """After how many calls the bodies come again, one after the other."""
    sizes = range(1, len(names) + 1)
    return next(size for size in sizes if all(a == b for a, b in zip(names, names[size:], strict=False)))


def with_repeats(timeline: Timeline, repeat: Repeat) -> Timeline | None:
    """The run of all units from that of the first ones.

    Args:
        timeline: of tasks that are named after their calls, as `ProgramTasks` names those of a root graph.
        repeat: the units.

    Returns:
        The run; None if the last unit did not run as the one before it did, so that nothing is known of the next.
    """
    kept = [_events_of(timeline, unit) for unit in repeat.kept]
    before, last = kept[-2:]
    if not last or before.keys() != last.keys():
        return None
    begin = min(event.start for event in last.values())
    interval = begin - min(event.start for event in before.values())
    if any(abs(event.start - before[key].start - interval) > _ROUNDING * interval for key, event in last.items()):
        return None
    inside, moved = {event.task.name for unit in kept for event in unit.values()}, interval * len(repeat.left)
    events = [
        event if event.start < begin or event.task.name in inside else _moved(event, event.task.name, moved)
        for event in timeline.events
    ]
    for count, unit in enumerate(repeat.left, 1):
        events += [
            _moved(event, f"{unit[place].name}/{rest}", interval * count) for (place, rest), event in last.items()
        ]
    return replace(timeline, events=tuple(sorted(events, key=lambda event: event.start)))


def _events_of(timeline: Timeline, unit: Unit) -> dict[tuple[int, str], Event]:
    """(Position of the call, task within it) -> when it ran."""
    places = {call.name: place for place, call in enumerate(unit)}
    found = {}
    for event in timeline.events:
        call, _, rest = event.task.name.partition("/")
        if call in places:
            found[places[call], rest] = event
    return found


def _moved(event: Event, name: str, seconds: float) -> Event:
    return Event(replace(event.task, name=name), event.start + seconds, event.end + seconds)
