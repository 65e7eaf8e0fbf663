"""`python -m gaudicc.bench.buckets [TRACE.csv ...]`: the bucket planner beside exp, lin and pad, at equal graph counts.

Planned on the first half of each trace, judged on the second. *default* is the best of the three rules with only the
number of buckets set; *tuned* has every knob searched on the first half (`gaudicc.buckets.peers`); *hindsight* is the
planner given the second half. Costs are those of `gaudicc.buckets.cost`; seconds are CPU time of this process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

import gaudicc.buckets
from gaudicc.bench.traffic import Problem, distance, effective_size, scheduled, whole_prompts
from gaudicc.buckets.live import LiveCounts, replan
from gaudicc.buckets.peers import best_default, tuned_buckets
from gaudicc.buckets.planner import Plan, Planner
from gaudicc.buckets.pool import Budget, divide_pool
from gaudicc.buckets.space import Rows, Sample, total_cost, waste

SHIPPED = Path(gaudicc.buckets.__file__).parent / "data" / "azure2023_conv_2000.csv"
BARS: dict[str, Callable[[int], float]] = {
    "decode": lambda _: 2.0,
    "prefill": lambda count: 1.5 if count >= 16 else 1.3,
    "prefill 3-D": lambda count: 1.2 if count >= 16 else 1.1,
    "pool": lambda _: 1.7,
}
"""How many times less waste than the tuned rules a plan should have, by problem and count."""
JUDGED_FROM = 0.5
"""Waste of the tuned rules, in percent, below which there is too little left to compare."""
PARTS = 8
"""Re-planning: parts of the second half, with a new plan before each."""


@dataclass(frozen=True, slots=True)
class Options:
    """Compare bucket plans on traces and write a Markdown page.

    Attributes:
        traces: CSV files of requests; by default the sample that is shipped.
        counts: numbers of graphs.
        output: file to write; by default stdout.
    """

    traces: Annotated[tuple[Path, ...], tyro.conf.Positional] = (SHIPPED,)
    counts: tuple[int, ...] = (8, 16, 32, 64, 128)
    output: Path | None = None


def main(options: Options) -> None:
    """Runs the comparison and writes the page."""
    lines = list(_page(options.traces, options.counts))
    text = "\n".join(lines) + "\n"
    if options.output is None:
        sys.stdout.write(text)
    else:
        options.output.write_text(text)


def _page(traces: Sequence[Path], counts: Sequence[int]) -> Iterator[str]:
    names = " ".join(trace.name for trace in traces)
    yield from ("# Bucket plans against tuned rules", "", f"Made by `python -m gaudicc.bench.buckets {names}`.", "")
    yield "Waste is padded over real *modelled* cost, less one, in percent, on the second half of each trace; the plan"
    yield "and the rules' knobs come from the first half. `x` is tuned waste over planned waste and is judged where the"
    yield f"tuned waste is at least {JUDGED_FROM} %. `gap` is how far the plan may be from the best on its level grid,"
    yield "in percent of total cost. `s` is CPU seconds of plan and bound. What each column is: docs/buckets.md."
    problems = {trace: scheduled(trace) for trace in traces}
    for name in ("decode", "prefill", "prefill 3-D"):
        head = ("trace", "graphs", "default", "tuned", "plan", "hindsight", "x", "bar", "met", "gap", "s")
        yield from _table(f"{name} ({', '.join(next(iter(problems.values()))[name].space.dims)})", head)
        for trace in traces:
            yield from _compared(name, problems[trace][name], counts)
    yield from _table(
        "pool: decode and prefill share the graphs", ("trace", "graphs", "tuned", "plan", "x", "bar", "met", "s")
    )
    for trace in traces:
        yield from _pooled(problems[trace]["prefill"], problems[trace]["decode"], counts)
    head = (
        "trace",
        "step",
        "graphs",
        "default",
        "tuned",
        "plan",
        "hindsight",
        "plan : hindsight",
        "KS",
        "n_eff / graphs",
    )
    yield from _table("whole prompts, one dimension (exact)", head)
    for trace in traces:
        for step in (128, 16):
            yield from _one_dimension(whole_prompts(trace, step), step, counts)
    head = ("trace", "problem", "graphs", "plan once", "re-planned", "hindsight")
    yield from _table(f"re-planned {PARTS} times from live counts, same number of graphs", head)
    for trace in traces:
        replanned = {"whole prompts": whole_prompts(trace, 128), **problems[trace]}
        for name, problem in replanned.items():
            yield from _replanned(name, problem, counts)


def _table(title: str, head: Sequence[str]) -> Iterator[str]:
    yield from ("", f"## {title[0].upper()}{title[1:]}", "", _row(*head), _row(*("---" for _ in head)))


def _row(*cells: object) -> str:
    shown = (f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells)
    return f"| {' | '.join(shown)} |"


def _verdict(name: str, count: int, tuned: float, ours: float) -> tuple[object, object, object]:
    """The columns x, bar and met."""
    ratio, bar = tuned / max(ours, 1e-9), BARS[name](count)
    if tuned < JUDGED_FROM:
        return ratio, bar, "not judged"
    return ratio, bar, "yes" if ratio >= bar else "**no**"


def _timed(problem: Problem, count: int) -> tuple[Plan, float]:
    start = time.process_time()
    plan = Planner(problem.space, problem.planned).plan(count)
    return plan, time.process_time() - start


def _compared(name: str, problem: Problem, counts: Sequence[int]) -> Iterator[str]:
    space, second = problem.space, problem.second
    tuned = tuned_buckets(space, problem.first, counts)
    hindsight = Planner(space, second)
    for count in counts:
        plan, seconds = _timed(problem, count)
        rows = (best_default(space, problem.first, count), tuned[count], plan.boxes, hindsight.plan(count).boxes)
        default, best, ours, ideal = (waste(space, boxes, second) for boxes in rows)
        verdict = _verdict(name, count, best, ours)
        yield _row(problem.trace, count, default, best, ours, ideal, *verdict, max(plan.gap, 0.0), seconds)


def _pooled(prefill: Problem, decode: Problem, counts: Sequence[int]) -> Iterator[str]:
    ladder = sorted({max(1, count * eighths // 8) for count in counts for eighths in range(1, 8)})
    tuned = [tuned_buckets(p.space, p.first, ladder) for p in (prefill, decode)]
    paid = [
        {n: total_cost(p.space, boxes[n], p.first) for n in ladder}
        for p, boxes in zip((prefill, decode), tuned, strict=True)
    ]
    for count in counts:
        pairs = [(i, j) for i in ladder for j in ladder if i + j <= count]
        first, second = min(pairs, key=lambda pair: paid[0][pair[0]] + paid[1][pair[1]])
        start = time.process_time()
        plans = divide_pool(*(Planner(p.space, p.planned) for p in (prefill, decode)), Budget(count))
        seconds = time.process_time() - start
        best = _joint_waste((prefill, tuned[0][first]), (decode, tuned[1][second]))
        ours = _joint_waste((prefill, plans[0].boxes), (decode, plans[1].boxes))
        yield _row(prefill.trace, count, best, ours, *_verdict("pool", count, best, ours), seconds)


def _joint_waste(*parts: tuple[Problem, Rows]) -> float:
    padded = sum(total_cost(problem.space, boxes, problem.second) for problem, boxes in parts)
    real = sum(_real(problem) for problem, _ in parts)
    return 100.0 * (padded / real - 1.0)


def _real(problem: Problem) -> float:
    second = problem.second
    return float(problem.space.cost_of(second.shapes) @ second.weights)


def _one_dimension(problem: Problem, step: int, counts: Sequence[int]) -> Iterator[str]:
    space, second = problem.space, problem.second
    tuned = tuned_buckets(space, problem.first, counts)
    apart, size = distance(problem.first, second.rounded(space)), effective_size(space, problem.first)
    for count in counts:
        ideal = Planner(space, second).plan(count).boxes
        rows = (
            best_default(space, problem.first, count),
            tuned[count],
            Planner(space, problem.planned).plan(count).boxes,
        )
        wasted = [waste(space, boxes, second) for boxes in (*rows, ideal)]
        yield _row(problem.trace, step, count, *wasted, wasted[2] / wasted[3], apart, size / count)


def _replanned(name: str, problem: Problem, counts: Sequence[int]) -> Iterator[str]:
    space, second = problem.space, problem.second
    for count in counts:
        once = waste(space, Planner(space, problem.planned).plan(count, bounded=False).boxes, second)
        ideal = waste(space, Planner(space, second).plan(count, bounded=False).boxes, second)
        yield _row(problem.trace, name, count, once, _live_waste(problem, count), ideal)


def _live_waste(problem: Problem, count: int) -> float:
    """Waste on the second half when each part of it is served by a plan made from all calls before it."""
    space, live = problem.space, LiveCounts(problem.space.dims)
    plan, paid = Planner(space, problem.planned).plan(count, bounded=False), 0.0
    for part in np.array_split(problem.stream, PARTS):
        paid += total_cost(space, plan.boxes, Sample.of(part))
        for sizes in part:
            live.add(dict(zip(space.dims, map(int, sizes), strict=True)))
        plan = replan(space, None, problem.planned.joined(live.sample()), count)
    return 100.0 * (paid / _real(problem) - 1.0)


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m gaudicc.bench.buckets"))
