"""From a static program to a modelled run: its nodes as tasks on engines, scheduled by the graph compiler's own policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gaudicc.machine import Chip, Engine, OpWork, Timeline, lower_bound, vendor_schedule
from gaudicc.machine.fx_program import ProgramTasks
from gaudicc.machine.split import limits_of
from gaudicc.profile.activity import Activity
from gaudicc.program import Program


@dataclass(frozen=True)
class ModelledRun:
    """A program as the machine model runs it.

    Attributes:
        timeline: when each task ran.
        activities: the same in the common form.
        bound: seconds that no schedule of these tasks beats.
        works: what the tasks compute, in the order of the program.
    """

    timeline: Timeline
    activities: tuple[Activity, ...]
    bound: float
    works: tuple[OpWork, ...]


def modelled_run(program: Program, chip: Chip) -> ModelledRun:
    """Schedules a static program.

    Args:
        program: after the static passes of one bucket.
        chip: the machine.

    Returns:
        The run, modelled; every engine of a kind works on one node at a time, so there is one lane a kind.
    """
    found = ProgramTasks(chip)
    found.graph(program.root, {})
    timeline = vendor_schedule(found.tasks, limits_of(chip))
    return ModelledRun(timeline, tuple(_activities(timeline, found.ops)), lower_bound(found.tasks), tuple(found.works))


def _activities(timeline: Timeline, ops: Mapping[str, tuple[str, str]]) -> Iterator[Activity]:
    """The timeline in the common form."""
    for event in timeline.events:
        kind = event.task.engine.value
        op, bound = ops[event.task.name]
        yield Activity(kind, LANES[event.task.engine], event.task.name, event.start, event.end, op, bound)


# Named as in traces of real devices; one lane stands for all engines of its kind.
LANES = {
    Engine.MME: "[HD0] MME",
    Engine.TPC: "[HD0] TPC",
    Engine.DMA: "[HD0] EDMA",
    Engine.NETWORK: "[HD0] NIC",
    Engine.HOST: "Host",
}
