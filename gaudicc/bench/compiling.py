"""`gaudicc bench compile`: what compiling costs beside torch.export, by number of layers.

Identical layers are one region body, so passes, checks and lowering should cost the same for 8 layers and for 126;
flat torch.export walks every layer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from gaudicc.buckets import Bucket
from gaudicc.capture import capture
from gaudicc.cli.options import BenchCompileOptions
from gaudicc.cli.output import print_json, say
from gaudicc.compiler import split_pipeline
from gaudicc.lower import lower
from gaudicc.models import load
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.program import Program
from gaudicc.targets import load_target
from gaudicc.verify import Level


@dataclass(frozen=True, slots=True)
class Row:
    """Medians for one number of layers, measured on this CPU.

    Attributes:
        layers: decoder layers.
        export_s: flat torch.export of the model, seconds.
        capture_s: gaudicc's capture, torch.export included, seconds.
        pipeline_s: all passes, the checks after each of them, and lowering, seconds.
        bodies: unique region bodies of the program.
        nodes: nodes of all unique graphs at the end.
    """

    layers: int
    export_s: float
    capture_s: float
    pipeline_s: float
    bodies: int
    nodes: int

    @property
    def ratio(self) -> float:
        """Pipeline time over flat export time."""
        return self.pipeline_s / self.export_s


def measure(layers: int, rounds: int) -> Row:
    """Times the three for a tiny Llama of some depth, taking turns.

    Args:
        layers: decoder layers.
        rounds: turns; the median of each is kept.
    """
    model, inputs = load("llama", layers=layers)
    timings: dict[str, list[float]] = {"export": [], "capture": [], "pipeline": []}
    for _ in range(rounds):
        _timed(timings["export"], lambda: torch.export.export(model, (), dict(inputs), strict=False))
        program: Program = _timed(timings["capture"], lambda: capture(model, dict(inputs)))
        static: Program = _timed(timings["pipeline"], partial(_compile, program))
    medians = {name: statistics.median(values) for name, values in timings.items()}
    nodes = sum(len(module.graph.nodes) for _, module in static.graphs())
    return Row(layers, medians["export"], medians["capture"], medians["pipeline"], len(static.bodies), nodes)


def _timed(timings: list[float], work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = work()
    timings.append(time.perf_counter() - start)
    return result


def _compile(program: Program) -> Program:
    """What `gaudicc.compile` does after capture, for static shapes."""
    program.target = load_target("gaudi3")
    symbolic, static = split_pipeline(DEFAULT_PIPELINE)
    program, _ = symbolic.run(program, level=Level.OPS)
    program, _ = static.run(program, level=Level.OPS)
    lower(program, Bucket((), ()))
    return program


def run(options: BenchCompileOptions) -> int:
    """Runs the command.

    Returns:
        The exit code, 0.
    """
    measure(2, 1)  # imports and caches of the first compile are not what is asked
    rows = []
    for layers in options.layers:
        say(f"{layers} layers, {options.rounds} rounds")
        rows.append(measure(layers, options.rounds))
    if options.json:
        print_json([{**asdict(row), "ratio": row.ratio} for row in rows])
        return 0
    print("<!-- gaudicc bench compile > docs/tables/bench_compile.md -->\n")
    print(
        f"Tiny Llama, static shapes, torch {torch.__version__}, {torch.get_num_threads()} thread(s), medians of "
        f"{options.rounds} interleaved rounds, measured on CPU.\n"
    )
    print("| layers | torch.export s | capture s | passes, checks, lowering s | / torch.export | bodies | nodes |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        cells = (f"{row.export_s:.2f}", f"{row.capture_s:.2f}", f"{row.pipeline_s:.2f}", f"{row.ratio:.2f}")
        print(f"| {row.layers} | {' | '.join(cells)} | {row.bodies} | {row.nodes} |")
    return 0
