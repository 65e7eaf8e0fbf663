"""From a trace of a model to constants of the chip: what the model says of each engine, beside what the trace shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gaudicc.errors import InputError
from gaudicc.machine import Chip, Engine, OpWork, op_cost
from gaudicc.machine.fit import Observation
from gaudicc.profile.activity import Profile

_SHOWN_BY = {Engine.TPC: "memory.hbm_efficiency", Engine.MME: "mme.sustained"}
"""Engine -> the constant that its busy time shows, in the order in which they are fitted: products read memory too."""
# A shorter part of the window, in which nothing works, is none: times in traces are rounded.
_ROUNDING = 1e-6


def observations(works: Sequence[OpWork], trace: Profile, runs: int = 1) -> list[Observation]:
    """What a trace shows of a chip.

    Args:
        works: what the model computes in one run, attention unsplit.
        trace: of the same model at the same sizes.
        runs: how many runs of it the trace holds.

    Returns:
        The busy time of each engine, and the time in which nothing works, shared among the nodes.

    Raises:
        InputError: the trace has nothing on an engine that the model uses.
    """
    found = []
    for engine, constant in _SHOWN_BY.items():
        busy = trace.busy.get(engine.value, 0.0) / runs
        if busy:
            found.append(Observation(f"{engine.value} busy", (constant,), busy, _busy(works, engine)))
    if not found:
        raise InputError(f"{trace.title} shows neither MME nor TPC", hint="profile with the hardware trace on")
    if trace.idle > _ROUNDING * trace.window:
        idle = trace.idle / runs
        found.append(Observation("nothing busy", ("host.handoff_seconds",), idle, _handed_on(works)))
    return found


def _busy(works: Sequence[OpWork], engine: Engine) -> Callable[[Chip], float]:
    def predict(chip: Chip) -> float:
        costs = (op_cost(work, chip) for work in works)
        return sum(cost.seconds for cost in costs if cost.engine is engine)

    return predict


def _handed_on(works: Sequence[OpWork]) -> Callable[[Chip], float]:
    def predict(chip: Chip) -> float:
        nodes = sum(op_cost(work, chip).engine is not Engine.NONE for work in works)
        return nodes * chip.host.handoff_seconds

    return predict
