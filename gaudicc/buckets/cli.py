"""`gaudicc buckets plan`: a trace of requests and budgets -> a bucket plan, printed and exported.

The command line is the fields of `PlanOptions`; data goes to stdout, messages to stderr.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console

from gaudicc.buckets.bucket import BucketSet
from gaudicc.buckets.cost import BLOCK
from gaudicc.buckets.files import first_fit_cost, for_first_fit, plan_as_json, read_plan, vllm_bucket_file
from gaudicc.buckets.live import rows_of
from gaudicc.buckets.planner import Plan, Planner, with_prior
from gaudicc.buckets.pool import Budget, divide_pool
from gaudicc.buckets.scheduler import Server, Steps, at_load, clipped, replay
from gaudicc.buckets.show import heat_table, plot
from gaudicc.buckets.space import Rows, Sample, Space
from gaudicc.buckets.trace import Trace, read_trace, resampled, with_cached_prefixes
from gaudicc.errors import InputError

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Plan buckets for the traffic of a trace.

    Attributes:
        trace: CSV of requests with the columns arrival_s, input_len, output_len and, optionally, cached_len.
        max_graphs: most graphs in all.
        phase: plan prefill, decode, or both from one pool.
        max_gib: most device memory that all graphs may hold, GiB.
        max_compile_seconds: most time to compile and record all graphs, one after the other.
        worst_padding: most padded over real cost of any shape seen, as a ratio.
        max_model_len: longest prompt plus output, tokens.
        max_num_batched_tokens: most padded prompt tokens of one prefill call.
        max_prefill_seqs: most prompts of one prefill call.
        max_num_seqs: most sequences that decode together.
        kv_blocks: KV-cache blocks of 128 tokens in device memory.
        load: share of saturated throughput that arrivals are scaled to; 0 keeps the trace's own times.
        cached_share: share of requests given a random cached prefix, for traces without cached_len.
        replays: replays on resampled requests to plan on besides the trace itself.
        recorded: plan file whose buckets are recorded already and stay.
        export: files to write, each vllm=FILE or json=FILE.
        plot: picture to write; needs matplotlib.
        json: print the plan as JSON instead of tables.
    """

    trace: Path
    max_graphs: int = 80
    phase: Literal["both", "prefill", "decode"] = "both"
    max_gib: float | None = None
    max_compile_seconds: float | None = None
    worst_padding: float | None = None
    max_model_len: int = 8192
    max_num_batched_tokens: int = 2048
    max_prefill_seqs: int = 1
    max_num_seqs: int = 128
    kv_blocks: int = 4107
    load: float = 0.75
    cached_share: float = 0.0
    replays: int = 8
    recorded: Path | None = None
    export: tuple[str, ...] = ()
    plot: Path | None = None
    json: bool = False

    def server(self) -> Server:
        """The server that the trace is replayed through."""
        return Server(
            max_model_len=self.max_model_len,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_prefill_seqs=self.max_prefill_seqs,
            max_num_seqs=self.max_num_seqs,
            kv_blocks=self.kv_blocks,
            load=self.load or None,
        )

    def budget(self) -> Budget:
        """The budget that both phases share."""
        held = None if self.max_gib is None else self.max_gib * 2**30
        return Budget(self.max_graphs, device_bytes=held, compile_seconds=self.max_compile_seconds)


def plan(options: PlanOptions) -> int:
    """Runs the command.

    Returns:
        The exit code, 0.

    Raises:
        InputError: a file cannot be read or written, or a budget cannot be met.
    """
    exports = [_parse_export(entry) for entry in options.export]
    samples = phase_samples(options)
    plans = _plan_phases(options, samples)
    sets: dict[str, BucketSet] = {name: made.buckets for name, made in plans.items()}
    if options.json:
        print(plan_as_json(sets, _figures(plans)))
    else:
        console = Console()
        for name, made in plans.items():
            console.print(heat_table(made, samples[name][1], f"{name}: {len(made.boxes)} buckets"))
    for kind, path in exports:
        _write(path, _vllm(plans, samples) if kind == "vllm" else plan_as_json(sets, _figures(plans)))
    if options.plot is not None:
        plot({name: (made, samples[name][1]) for name, made in plans.items()}, options.plot)
    return 0


def phase_samples(options: PlanOptions) -> dict[Phase, tuple[Space, Sample, Sample]]:
    """Per phase: its space, the shapes of the trace itself, and the sample to plan on."""
    server, rng = options.server(), np.random.default_rng(0)
    trace = read_trace(options.trace)
    if options.cached_share:
        trace = with_cached_prefixes(trace, options.cached_share, 0.9, BLOCK, rng)
    trace = at_load(clipped(trace, server), server)
    streams = [replay(trace, server), *(_replayed(trace, server, rng) for _ in range(options.replays))]
    wanted: tuple[Phase, ...] = ("prefill", "decode") if options.phase == "both" else (options.phase,)
    result: dict[Phase, tuple[Space, Sample, Sample]] = {}
    for name in wanted:
        space = server.prefill_space() if name == "prefill" else server.decode_space()
        seen = [Sample.of(rows).rounded(space) for steps in streams if len(rows := _rows(steps, name))]
        if not seen:
            raise InputError(f"the trace makes no {name} calls", hint="plan the other phase only: --phase")
        result[name] = (space, seen[0], with_prior(space, seen[0], seen[1:], rng))
    return result


def _replayed(trace: Trace, server: Server, rng: np.random.Generator) -> Steps:
    return replay(resampled(trace, rng), server)


def _rows(steps: Steps, phase: Phase) -> Rows:
    return steps.prefill if phase == "prefill" else steps.decode


def _plan_phases(options: PlanOptions, samples: dict[Phase, tuple[Space, Sample, Sample]]) -> dict[Phase, Plan]:
    recorded = read_plan(options.recorded) if options.recorded else {}
    planners: dict[Phase, Planner] = {}
    for name, (space, _, sample) in samples.items():
        kept = recorded.get(name)
        if kept is not None and kept.dims != space.dims:
            raise InputError(f"the recorded {name} buckets are over {kept.dims}, this server's are over {space.dims}")
        planners[name] = Planner(space, sample, None if kept is None else rows_of(kept), options.worst_padding)
    budget = options.budget()
    if len(planners) == 2:
        both = divide_pool(planners["prefill"], planners["decode"], budget)
        return {"prefill": both[0], "decode": both[1]}
    name, planner = next(iter(planners.items()))
    most = max(k for k in range(budget.graphs + 1) if budget.allows(*((k, 0) if name == "prefill" else (0, k))))
    return {name: planner.plan(most)}


def _figures(plans: dict[Phase, Plan]) -> dict[str, object]:
    return {
        name: {"graphs": len(made.boxes), "waste_percent": round(made.waste, 4), "gap_percent": round(made.gap, 4)}
        for name, made in plans.items()
    }


def _parse_export(entry: str) -> tuple[str, Path]:
    kind, _, path = entry.partition("=")
    if kind not in ("vllm", "json") or not path:
        raise InputError(f"--export {entry} is not understood", hint="write --export vllm=FILE or --export json=FILE")
    return kind, Path(path)


def _vllm(plans: dict[Phase, Plan], samples: dict[Phase, tuple[Space, Sample, Sample]]) -> str:
    rows: dict[Phase, Rows] = {}
    for name, made in plans.items():
        space, seen, sample = samples[name]
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
