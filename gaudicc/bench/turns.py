"""Timing of several things that take turns, so that other load on the machine falls on all of them alike."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Turn:
    """One execution, or the median of many.

    Attributes:
        wall_s: seconds that passed.
        cpu_s: seconds of CPU of this process and, where it had any, of its children.
    """

    wall_s: float
    cpu_s: float


def timed(work: Work) -> Turn:
    """Times one execution."""
    wall, cpu = time.perf_counter(), _cpu()
    work()
    return Turn(time.perf_counter() - wall, _cpu() - cpu)


def _cpu() -> float:
    spent = os.times()
    return time.process_time() + spent.children_user + spent.children_system


def take_turns(works: Mapping[str, Work], rounds: int, *, repeat: int = 1) -> dict[str, Turn]:
    """Medians of several executions of each, after two that are not counted.

    Args:
        works: name -> what to execute.
        rounds: turns of each.
        repeat: executions in one turn, for what is always done many times in a row; one execution is what is returned.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in works}
    for number in range(rounds + 2):
        for name, work in works.items():
            turn = timed(partial(_often, work, repeat))
            if number >= 2:
                turns[name].append(turn)
    return {
        name: Turn(
            statistics.median(t.wall_s for t in all_) / repeat, statistics.median(t.cpu_s for t in all_) / repeat
        )
        for name, all_ in turns.items()
    }


def _often(work: Work, times: int) -> None:
    for _ in range(times):
        work()
