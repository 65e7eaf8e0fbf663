"""A modelled run in the common form, its lanes named as in traces of real devices."""

from __future__ import annotations

from gaudicc.machine import Engine
from gaudicc.modelled import ModelledRun
from gaudicc.profile.activity import Activity

# One lane stands for all engines of its kind.
LANES = {
    Engine.MME: "[HD0] MME",
    Engine.TPC: "[HD0] TPC",
    Engine.DMA: "[HD0] EDMA",
    Engine.NETWORK: "[HD0] NIC",
    Engine.HOST: "Host",
}


def activities_of(run: ModelledRun) -> tuple[Activity, ...]:
    """What ran when, and on which lane."""
    return tuple(
        Activity(task.engine.value, LANES[task.engine], task.name, event.start, event.end, *run.ops[task.name])
        for event in run.timeline.events
        for task in (event.task,)
    )
