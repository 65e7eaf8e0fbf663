"""`gaudicc buckets plan`: a trace of requests and budgets -> a bucket plan, printed and exported.

Data goes to stdout, messages to stderr. The options are in `gaudicc.buckets.options`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from gaudicc.buckets.cost import BLOCK
from gaudicc.buckets.files import first_fit_cost, for_first_fit, plan_as_json, read_plan, vllm_bucket_file
from gaudicc.buckets.live import rows_of
from gaudicc.buckets.options import Phase, PlanOptions
from gaudicc.buckets.picture import draw
from gaudicc.buckets.planner import Plan, Planner
from gaudicc.buckets.pool import Budget, divide_pool
from gaudicc.buckets.scheduler import Server, at_load, clipped, replay
from gaudicc.buckets.show import heat_table
from gaudicc.buckets.space import Rows, Sample, Space, waste
from gaudicc.buckets.trace import read_trace, with_cached_prefixes
from gaudicc.buckets.training import Replays
from gaudicc.errors import InputError

LONGEST_CACHED = 0.9
"""The most of a prompt that `--cached-share` takes as cached."""


class Traffic(NamedTuple):
    """One phase of a trace: its space, the aligned shapes of its calls, and the sample to plan on."""

    space: Space
    seen: Sample
    sample: Sample


def plan(options: PlanOptions) -> int:
    """Runs the command.

    Returns:
        The exit code, 0.

    Raises:
        InputError: a file cannot be read or written, or a budget cannot be met.
    """
    exports = [_parse_export(entry) for entry in options.export]
    budget = _budget(options)
    traffic = traffic_of(options)
    plans = _plan_phases(options, budget, traffic)
    as_json = plan_as_json({name: made.buckets for name, made in plans.items()}, _figures(budget, plans, traffic))
    if options.json:
        print(as_json)
    else:
        _print_tables(budget, plans, traffic)
    for kind, path in exports:
        _write(path, _vllm(plans, traffic) if kind == "vllm" else as_json)
    if options.plot is not None:
        draw({name: (made, traffic[name].seen) for name, made in plans.items()}, options.plot)
        print(f"wrote {options.plot}", file=sys.stderr)
    return 0


def traffic_of(options: PlanOptions) -> dict[Phase, Traffic]:
    """Replays the trace, and what it might have been, through the server.

    Raises:
        InputError: the trace cannot be read or is not one, or makes no call of a phase that is asked for.
    """
    if options.replays < 0:
        raise InputError(f"the number of replays cannot be negative, got {options.replays}")
    server, rng = _server(options), np.random.default_rng(0)
    trace = with_cached_prefixes(read_trace(options.trace), options.cached_share, LONGEST_CACHED, BLOCK, rng)
    trace = at_load(clipped(trace, server), server)
    steps, replays = replay(trace, server), Replays.of(trace, server, options.replays, rng)
    wanted: tuple[Phase, ...] = ("prefill", "decode") if options.phase == "both" else (options.phase,)
    result: dict[Phase, Traffic] = {}
    for name in wanted:
        space = server.prefill_space() if name == "prefill" else server.decode_space()
        if not len(steps.rows(name)):
            raise InputError(f"the trace makes no {name} calls", hint="plan the other phase only: --phase")
        seen = Sample.of(steps.rows(name)).rounded(space)
        result[name] = Traffic(space, seen, replays.sample(name, space, seen, rng))
    return result


def _server(options: PlanOptions) -> Server:
    return Server(
        max_model_len=options.max_model_len,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_prefill_seqs=options.max_prefill_seqs,
        max_num_seqs=options.max_num_seqs,
        kv_blocks=options.kv_blocks,
        load=None if options.load == 0 else options.load,
    )


def _budget(options: PlanOptions) -> Budget:
    held = None if options.max_gib is None else options.max_gib * 2**30
    return Budget(options.max_graphs, device_bytes=held, compile_seconds=options.max_compile_seconds)


def _plan_phases(options: PlanOptions, budget: Budget, traffic: dict[Phase, Traffic]) -> dict[Phase, Plan]:
    recorded = read_plan(options.recorded) if options.recorded else {}
    planners: dict[Phase, Planner] = {}
    for name, (space, _, sample) in traffic.items():
        kept = recorded.get(name)
        if kept is not None and kept.dims != space.dims:
            raise InputError(f"the recorded {name} buckets are over {kept.dims}, this server's are over {space.dims}")
        planners[name] = Planner(space, sample, None if kept is None else rows_of(kept), options.worst_padding)
    if len(planners) == 2:
        prefill, decode = divide_pool(planners["prefill"], planners["decode"], budget)
        return {"prefill": prefill, "decode": decode}
    name, planner = next(iter(planners.items()))
    most = max(k for k in range(budget.graphs + 1) if budget.allows(*((k, 0) if name == "prefill" else (0, k))))
    return {name: planner.plan(most)}


def _uses(budget: Budget, plans: dict[Phase, Plan]) -> tuple[float, float]:
    counts = [len(plans[name].boxes) if name in plans else 0 for name in ("prefill", "decode")]
    return budget.uses(*counts)


def _figures(budget: Budget, plans: dict[Phase, Plan], traffic: dict[Phase, Traffic]) -> dict[str, object]:
    held, spent = _uses(budget, plans)
    figures: dict[str, object] = {
        name: {
            "graphs": len(made.boxes),
            "waste_percent": round(waste(made.space, made.boxes, traffic[name].seen), 4),
            "gap_percent": round(made.gap, 4),
        }
        for name, made in plans.items()
    }
    return {**figures, "device_gib": round(held / 2**30, 2), "compile_seconds": round(spent, 1)}


def _print_tables(budget: Budget, plans: dict[Phase, Plan], traffic: dict[Phase, Traffic]) -> None:
    console = Console()
    for name, made in plans.items():
        console.print(heat_table(made, traffic[name].seen, f"{name}: {len(made.boxes)} buckets"))
    held, spent = _uses(budget, plans)
    graphs = sum(len(made.boxes) for made in plans.values())
    console.print(
        f"{graphs} graphs, about {held / 2**30:.1f} GiB and {spent:.0f} s to compile (figures of an 8B Llama)"
    )


def _parse_export(entry: str) -> tuple[str, Path]:
    kind, _, path = entry.partition("=")
    if kind not in ("vllm", "json") or not path:
        raise InputError(f"--export {entry} is not understood", hint="write --export vllm=FILE or --export json=FILE")
    return kind, Path(path)


def _vllm(plans: dict[Phase, Plan], traffic: dict[Phase, Traffic]) -> str:
    rows: dict[Phase, Rows] = {}
    for name, made in plans.items():
        space, seen, sample = traffic[name]
        rows[name] = for_first_fit(space, made.boxes, sample)
        real = float(space.cost_of(seen.shapes) @ seen.weights)
        wasted = 100 * (first_fit_cost(space, rows[name], seen) / real - 1)
        print(
            f"vllm-gaudi takes the first bucket that fits: {name} waste there {wasted:.2f} % "
            f"with {len(rows[name])} buckets",
            file=sys.stderr,
        )
    return vllm_bucket_file(rows.get("prefill"), rows.get("decode"))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    print(f"wrote {path}", file=sys.stderr)
