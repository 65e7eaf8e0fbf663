"""`python -m gaudicc.bench.buckets [TRACE.csv ...]`: the bucket planner beside exp, lin and pad, at equal graph counts.

Planned on the first half of each trace, judged on the second. *default* is the best of the three rules with only the
number of buckets set; *tuned* has every knob searched on the first half (`gaudicc.buckets.peers`); *hindsight* is the
planner given the second half. Costs are those of `gaudicc.buckets.cost`; seconds are CPU time of this process.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

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
STEPS = (128, 16)
MOST_DRIFT, LEAST_SAMPLES, NEAR = 0.1, 12, 1.4
"""In one dimension a plan should cost at most 0.1 point more than the best rule and, where the halves' KS distance and
the effective sample size per graph allow, waste at most this many times what hindsight does."""
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
    ladder = sorted({*counts, *(max(1, count * eighths // 8) for count in counts for eighths in range(1, 8))})
    tuned = {
        (trace, name): tuned_buckets(problem.space, problem.first, counts if name == "prefill 3-D" else ladder)
        for trace in traces
        for name, problem in problems[trace].items()
    }
    for name in ("decode", "prefill", "prefill 3-D"):
        head: tuple[str, ...] = (
            "trace",
            "graphs",
            "default",
            "tuned",
            "plan",
            "hindsight",
            "x",
            "bar",
            "met",
            "gap",
            "s",
        )
        yield from _table(f"{name} ({', '.join(problems[traces[0]][name].space.dims)})", head)
        for trace in traces:
            yield from _compared(name, problems[trace][name], tuned[trace, name], counts)
    head = ("trace", "graphs", "tuned", "plan", "hindsight", "x", "bar", "met", "s")
    yield from _table("pool: decode and prefill share the graphs", head)
    for trace in traces:
        prefill, decode = (Peers(problems[trace][name], tuned[trace, name]) for name in ("prefill", "decode"))
        yield from _pooled(prefill, decode, counts)
    yield from _one_dimension(traces, counts)
    head = ("trace", "problem", "graphs", "plan once", "re-planned", "hindsight")
    yield from _table(f"re-planned {PARTS} times from live counts, same number of graphs", head)
    for trace in traces:
        for name, problem in {"whole prompts": whole_prompts(trace, 128), **problems[trace]}.items():
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


def _compared(name: str, problem: Problem, tuned: dict[int, Rows], counts: Sequence[int]) -> Iterator[str]:
    space, second = problem.space, problem.second
    hindsight = Planner(space, second)
    for count in counts:
        plan, seconds = _timed(problem, count)
        rows = (best_default(space, problem.first, count), tuned[count], plan.boxes, hindsight.plan(count).boxes)
        default, best, ours, ideal = (waste(space, boxes, second) for boxes in rows)
        verdict = _verdict(name, count, best, ours)
        yield _row(problem.trace, count, default, best, ours, ideal, *verdict, max(plan.gap, 0.0), seconds)


class Peers(NamedTuple):
    """A problem and the tuned rules' buckets for it, by count."""

    problem: Problem
    tuned: dict[int, Rows]

    def paid(self, count: int) -> float:
        """Cost of the first half with so many tuned buckets."""
        return total_cost(self.problem.space, self.tuned[count], self.problem.first)


def _pooled(prefill: Peers, decode: Peers, counts: Sequence[int]) -> Iterator[str]:
    paid = {count: (prefill.paid(count), decode.paid(count)) for count in prefill.tuned}
    for count in counts:
        pairs = [(i, j) for i in paid for j in paid if i + j <= count]
        first, second = min(pairs, key=lambda pair: paid[pair[0]][0] + paid[pair[1]][1])
        start = time.process_time()
        plans = _divided(prefill.problem, decode.problem, count, lambda problem: problem.planned)
        seconds = time.process_time() - start
        best = _joint_waste((prefill.problem, prefill.tuned[first]), (decode.problem, decode.tuned[second]))
        known = _divided(prefill.problem, decode.problem, count, lambda problem: problem.second)
        ours, ideal = (
            _joint_waste((prefill.problem, queries.boxes), (decode.problem, steps.boxes))
            for queries, steps in (plans, known)
        )
        yield _row(prefill.problem.trace, count, best, ours, ideal, *_verdict("pool", count, best, ours), seconds)


def _divided(prefill: Problem, decode: Problem, count: int, sample: Callable[[Problem], Sample]) -> tuple[Plan, Plan]:
    queries, steps = (Planner(problem.space, sample(problem)) for problem in (prefill, decode))
    return divide_pool(queries, steps, Budget(count))


def _joint_waste(*parts: tuple[Problem, Rows]) -> float:
    padded = sum(total_cost(problem.space, boxes, problem.second) for problem, boxes in parts)
    real = sum(_real(problem) for problem, _ in parts)
    return 100.0 * (padded / real - 1.0)


def _real(problem: Problem) -> float:
    second = problem.second
    return float(problem.space.cost_of(second.shapes) @ second.weights)


def _one_dimension(traces: Sequence[Path], counts: Sequence[int]) -> Iterator[str]:
    names = ("default", "tuned", "plan", "hindsight", "plan : hindsight")
    head = ("trace", "step", "graphs", *names, "met", "KS", "n_eff / graphs")
    yield from _table("whole prompts, one dimension (exact)", head)
    for trace, step in itertools.product(traces, STEPS):
        problem = whole_prompts(trace, step)
        space, second = problem.space, problem.second
        tuned = tuned_buckets(space, problem.first, counts)
        apart, size = distance(problem.first, second.rounded(space)), effective_size(space, problem.first)
        for count in counts:
            plan, ideal = (Planner(space, sample).plan(count).boxes for sample in (problem.planned, second))
            rows = (best_default(space, problem.first, count), tuned[count], plan, ideal)
            default, best, ours, hindsight = (waste(space, boxes, second) for boxes in rows)
            near = apart > MOST_DRIFT or size / count < LEAST_SAMPLES or ours <= NEAR * hindsight
            met = "yes" if ours <= min(default, best) + 0.1 and near else "**no**"
            ratio = ours / hindsight
            yield _row(problem.trace, step, count, default, best, ours, hindsight, ratio, met, apart, size / count)


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
