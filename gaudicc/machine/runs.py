"""Published runs and what the model says of them: what `fit` calibrates with and `validate` reports.

`measurements.csv` copies figures that others published, each with its source; `use` keeps apart the rows that calibrate
from those that validate. Nobody here has run anything on a Gaudi.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gaudicc.machine.chip import Chip
from gaudicc.machine.cost import OpClass, OpWork, op_cost
from gaudicc.machine.decoder import Step, decoder_step, known_decoders
from gaudicc.machine.gemm import Gemm
from gaudicc.machine.workload import Workload, run_cost

# Attention reads the KV cache in pieces of this many positions: the peers' runs set `bucket_size` to it.
KV_BUCKET = 128
# Efficiency of a plain roofline, the default style of GenZ.
ROOFLINE_EFFICIENCY = 0.8


@dataclass(frozen=True, slots=True)
class Run:
    """One published figure.

    Attributes:
        id: name of the row.
        chip: `gaudi2` or `gaudi3`.
        cards: chips of the tensor-parallel group.
        kind: `gemm`, `prefill`, `decode`, `decode_batched` or `static`.
        model: a name of `known_decoders`, or MxNxK of a GEMM.
        batch: sequences.
        prompt: tokens of each prompt.
        new_tokens: tokens generated for each.
        dtype: of weights and products.
        kv_dtype: of the KV cache.
        value: the figure: TFLOPS, ms or tokens a second.
        calibrates: whether `fit` may look at it.
        source: where it was published.
    """

    id: str
    chip: str
    cards: int
    kind: str
    model: str
    batch: int
    prompt: int
    new_tokens: int
    dtype: str
    kv_dtype: str
    value: float
    calibrates: bool
    source: str

    @property
    def seconds(self) -> float:
        """The figure as the time of one GEMM, one first token, or one whole generation."""
        if self.kind == "gemm":
            return 2 * self.product.macs / (self.value * 1e12)
        if self.kind == "prefill":
            return self.value / 1e3
        return self.batch * self.new_tokens / self.value

    @property
    def product(self) -> Gemm:
        """The GEMM of a row of kind `gemm`."""
        m, n, k = (int(size) for size in self.model.split("x"))
        return Gemm(m, n, k, dtype=self.dtype)


@cache
def published_runs() -> tuple[Run, ...]:
    """All rows of the data file beside this module."""
    with Path(__file__).with_name("measurements.csv").open() as file:
        return tuple(
            Run(
                row["id"],
                row["chip"],
                int(row["cards"]),
                row["kind"],
                row["model"],
                int(row["batch"] or 0),
                int(row["prompt"] or 0),
                int(row["new_tokens"] or 0),
                row["dtype"],
                row["kv_dtype"],
                float(row["value"]),
                row["use"] == "calibration",
                row["source"],
            )
            for row in csv.DictReader(file)
        )


@cache
def workloads(run: Run) -> tuple[tuple[Workload, int], ...]:
    """The calls of a run: (ops, how often they run), prefill first.

    Decoding is priced at a few context lengths, evenly spread, each with the steps it stands for.
    """
    if run.kind == "gemm":
        gemm = run.product
        size = gemm.element_bytes
        read = (gemm.m + gemm.n) * gemm.k * size
        op = OpWork("gemm", OpClass.GEMM, run.dtype, gemm, read_bytes=read, written_bytes=2 * gemm.m * gemm.n)
        return ((Workload.of([op]), 1),)
    model = known_decoders()[run.model]

    def call(tokens: int, context: int) -> Workload:
        return decoder_step(model, Step(run.batch, tokens, context, run.dtype, run.kv_dtype, run.cards))

    calls = [(call(run.prompt, run.prompt), 1)]
    lengths: dict[int, int] = {}
    for token in range(1, run.new_tokens):
        context = -(-(run.prompt + token) // KV_BUCKET) * KV_BUCKET
        lengths[context] = lengths.get(context, 0) + 1
    return (*calls, *((call(1, context), steps) for context, steps in lengths.items()))


def predicted_seconds(run: Run, chip: Chip) -> float:
    """What the model says of a run, in the sense of `Run.seconds`."""
    if run.kind == "gemm":
        return op_cost(workloads(run)[0][0].parts[0][0][0], chip).seconds
    (prefill, _), *steps = workloads(run)
    host = chip.host.step_seconds
    decode = sum(max(run_cost(workload, chip).seconds, host) * times for workload, times in steps)
    return run_cost(prefill, chip).seconds + host + decode


def roofline_seconds(run: Run, chip: Chip) -> float:
    """What a plain roofline says: for each op the longer of flops and bytes, both at 0.8 of the peak."""
    total = 0.0
    for workload, times in workloads(run):
        for ops, repeats in workload.parts:
            for op in ops:
                total += _roofline(op, chip) * repeats * times
    return total


def _roofline(op: OpWork, chip: Chip) -> float:
    cost = op_cost(op, chip)
    peak = chip.mme.peak_flops(op.dtype) if op.gemm else chip.tpc.peak_flops(2)
    if op.op_class is OpClass.ALL_REDUCE:
        return 0.0
    return max(cost.flops / peak, cost.hbm_bytes / chip.memory.hbm_bandwidth) / ROOFLINE_EFFICIENCY
