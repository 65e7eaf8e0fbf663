"""How far the schedulers are from the optimum: random small bundles, ours and the vendor's beside the exact method.

    python -m gaudicc.machine.yardstick > docs/tables/machine_schedule.md

All times are of the model.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean

from gaudicc.machine.cost import Engine
from gaudicc.machine.exact import exact_schedule
from gaudicc.machine.schedule import list_schedule, program_schedule, vendor_schedule
from gaudicc.machine.timeline import Task, lower_bound

SHAPES = ("attention", "graph", "chains")
_SEED = 20260


@dataclass(frozen=True, slots=True)
class Comparison:
    """One bundle, schedules over the optimum.

    Attributes:
        shape: one of `SHAPES`.
        tasks: its size.
        ours: list scheduling's makespan over the optimum.
        vendor: the graph compiler's policy's.
        program: program order's.
        optimum: the optimum over the lower bound.
        proved: the optimum is proved.
    """

    shape: str
    tasks: int
    ours: float
    vendor: float
    program: float
    optimum: float
    proved: bool


def random_bundle(noise: random.Random, shape: str) -> list[Task]:
    """A bundle of 9 to 25 tasks on two engines.

    Args:
        noise: where its numbers come from.
        shape: slices MME -> TPC -> MME, a random graph, or chains that alternate engines.

    Returns:
        The tasks.
    """
    both = (Engine.MME, Engine.TPC)
    tasks: list[Task] = []
    if shape == "attention":
        scores, softmax, values = (noise.uniform(1, 10) for _ in range(3))
        for i in range(noise.randint(3, 8)):
            size = noise.uniform(0.5, 1.5)
            tasks.append(Task(f"scores{i}", Engine.MME, scores * size, slice=i))
            tasks.append(Task(f"softmax{i}", Engine.TPC, softmax * size, (f"scores{i}",), slice=i))
            tasks.append(Task(f"values{i}", Engine.MME, values * size, (f"softmax{i}",), slice=i))
    elif shape == "graph":
        count = noise.randint(9, 24)
        for i in range(count):
            after = tuple(f"op{j}" for j in range(i) if noise.random() < 2 / count)
            tasks.append(Task(f"op{i}", noise.choice(both), noise.uniform(1, 10), after))
    else:
        length = noise.randint(3, 5)
        for i in range(noise.randint(3, 5)):
            for j in range(length):
                after = (f"op{i}_{j - 1}",) if j else ()
                tasks.append(Task(f"op{i}_{j}", both[(i + j) % 2], noise.uniform(1, 10), after, slice=i))
    return tasks


def compare(count: int, seed: int = _SEED) -> list[Comparison]:
    """Schedules this many random bundles every way."""
    noise = random.Random(seed)
    found = []
    for index in range(count):
        shape = SHAPES[index % len(SHAPES)]
        tasks = random_bundle(noise, shape)
        exact = exact_schedule(tasks)
        best = exact.timeline.makespan
        found.append(
            Comparison(
                shape,
                len(tasks),
                list_schedule(tasks).makespan / best,
                vendor_schedule(tasks).makespan / best,
                program_schedule(tasks).makespan / best,
                best / lower_bound(tasks),
                exact.proved,
            )
        )
    return found


def report(count: int = 200) -> str:
    """The table as Markdown."""
    return "\n".join(_report(compare(count))) + "\n"


def _report(found: list[Comparison]) -> Iterator[str]:
    yield "# Machine model: schedulers against the optimum"
    yield ""
    yield "Made by `python -m gaudicc.machine.yardstick`. Makespan over the exact optimum, mean (worst); *modelled*."
    yield ""
    yield "| bundles | count | proved | ours | vendor's policy | program order | optimum / lower bound |"
    yield "|---|---|---|---|---|---|---|"
    for shape in (*SHAPES, "all"):
        rows = [row for row in found if shape in (row.shape, "all")]
        cells = (
            f"{mean(values):.3f} ({max(values):.3f})"
            for values in (
                [row.ours for row in rows],
                [row.vendor for row in rows],
                [row.program for row in rows],
                [row.optimum for row in rows],
            )
        )
        proved = sum(row.proved for row in rows)
        yield f"| {shape} | {len(rows)} | {proved} | {' | '.join(cells)} |"


if __name__ == "__main__":
    print(report(), end="")
