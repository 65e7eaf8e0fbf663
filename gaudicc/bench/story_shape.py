"""The story's stages for a model of billions of parameters: calls of `compile_lm`, and whole answers; every figure is modelled.

The model goes through the real compile path on the meta device, with two layers: layers repeat, so the others cost what a
layer costs alone. The device computes the legal program's work in every stage; what differs is how the host drives it, and
in the last one the passes that give both engines work at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from gaudicc.buckets import Bucket
from gaudicc.capture import capture
from gaudicc.cli.planning_lm import PlannedLM, shape_model
from gaudicc.fake_values import fakes
from gaudicc.invariants import verdict_of
from gaudicc.lm.axes import exponential
from gaudicc.lm.state import Limits
from gaudicc.machine import CHIPS, Chip, known_decoders, load_chip, record_cost, vendor_schedule
from gaudicc.machine.fx_partition import stretch_of, stretches
from gaudicc.machine.fx_program import ProgramTasks
from gaudicc.machine.partition import Stretch, choose_partition
from gaudicc.machine.split import limits_of
from gaudicc.nodes import call_region, is_op
from gaudicc.program import Program
from gaudicc.targets import Engine, Support, load_target
from gaudicc.targets.calls import tensors_in

STAGES = ("as is, eager", "as is, lazy", "legalised, lazy", "recorded", "both engines busy")
PROMPT, ANSWER = 512, 128
READS, SAYS = f"prompt of {PROMPT}", f"a token after {PROMPT}"
# (title, kind, physical sizes); a token after 512 reads the context bucket above.
STEPS = (
    ("prompt of 64", "prefill", {"batch": 1, "queries": 64}),
    (READS, "prefill", {"batch": 1, "queries": PROMPT}),
    ("prompt of 2048", "prefill", {"batch": 1, "queries": 2048}),
    (SAYS, "decode", {"batch": 1, "context": 2 * PROMPT}),
    (f"a token after {PROMPT}, batch 32", "decode", {"batch": 32, "context": 2 * PROMPT}),
)
_LAYERS = 2
# Copies between host and device around a recorded call: token ids in, lengths in, the token out.
_COPIES = 3


@dataclass(frozen=True, slots=True)
class AsIs:
    """A forward of the model before any pass.

    Attributes:
        ops: that the front end dispatches; views are none.
        fallbacks: of them, ops that run on the host.
        moved: bytes that fallbacks move.
    """

    ops: int
    fallbacks: int
    moved: int


@dataclass(frozen=True, slots=True)
class Device:
    """A static program on the device.

    Attributes:
        seconds: of its work.
        nodes: that it runs.
        launches: sub-graphs.
        compile_seconds: of its recipes, each once.
    """

    seconds: float
    nodes: int
    launches: int
    compile_seconds: float


@dataclass(frozen=True, slots=True)
class ShapeRow:
    """One call on one chip.

    Attributes:
        step: what is computed.
        chip: where.
        as_is: before any pass.
        legal: the legal program.
        seconds: stage -> wall time of a call that finds its graphs compiled.
        compiling: seconds that a call of a new shape compiles for in lazy mode.
    """

    step: str
    chip: str
    as_is: AsIs
    legal: Device
    seconds: dict[str, float]
    compiling: float


def rows(name: str, said: Callable[[str], None] = lambda text: None) -> Iterator[ShapeRow]:
    """The calls of a model on each chip.

    Args:
        name: a name of `gaudicc.cli.planning_lm.shapes`.
        said: told what is done next.

    Raises:
        InputError: there is no such model.
    """
    model, layers = shape_model(name, _LAYERS), known_decoders()[name].layers
    for chip in map(load_chip, CHIPS):
        forms = [
            PlannedLM(model, max_batch=32, max_context=4096, target=chip.name, split=split) for split in (False, True)
        ]
        for title, kind, sizes in STEPS:
            said(f"{name} on {chip.name}: {title}")
            before = as_is(model, sizes.get("queries", 1), sizes["batch"], chip.name, layers)
            legal, split = (on_device(form.program(kind, Bucket.of(sizes)), chip, layers) for form in forms)
            seconds = dict(zip(STAGES, _seconds(before, legal, split, chip), strict=True))
            yield ShapeRow(title, chip.name, before, legal, seconds, record_cost(legal.nodes, chip).compile_seconds)


def as_is(model: torch.nn.Module, tokens: int, batch: int, target: str, layers: int) -> AsIs:
    """Counts a forward of `[batch, tokens]` ids as the user wrote it, with so many layers."""
    ids = torch.zeros(batch, tokens, dtype=torch.int64, device="meta")
    program = capture(model, (), {"input_ids": ids, "use_cache": False})
    program.target = load_target(target)
    calls = {id(body): 0 for body in program.bodies.values()} | {id(program.root): 1}
    for node in program.root.graph.nodes:
        if node.target is call_region:
            calls[id(getattr(program.root, str(node.args[0].target)))] += layers // _LAYERS
    ops = fallbacks = moved = 0
    for _, module in program.graphs():
        for node in filter(is_op, module.graph.nodes):
            verdict, times = verdict_of(node, program), calls[id(module)]
            if verdict.engine is Engine.NONE:
                continue
            ops += times
            if verdict.support is Support.NO:
                fallbacks += times
                moved += times * sum(t.numel() * t.element_size() for t in _values(node))
    return AsIs(ops, fallbacks, moved)


def _values(node: fx.Node) -> list[torch.Tensor]:
    operands: Any = fakes(node.args)
    return [*tensors_in(operands), *tensors_in(node.meta["val"])]


def on_device(program: Program, chip: Chip, layers: int) -> Device:
    """What a program of two layers takes with so many: each more is one layer alone, since it reads all of the one before."""
    found = ProgramTasks(chip)
    found.graph(program.root, {})
    seconds = vendor_schedule(found.tasks, limits_of(chip)).makespan
    nodes, launches = len(found.tasks), 2  # what is before the layers, and behind them
    compiling = record_cost(nodes, chip).compile_seconds
    for calls in stretches(program.root):
        stretch = stretch_of(program.root, calls, chip)
        (layer,) = stretch.layers.values()
        more = layers - len(calls)
        seconds, nodes = seconds + more * layer.seconds, nodes + more * layer.nodes
        whole = Stretch([stretch.order[0]] * layers, stretch.layers, stretch.gains)
        best = choose_partition(whole, chip).best
        launches += best.launches
        compiling += best.compile_seconds - record_cost(len(calls) * layer.nodes, chip).compile_seconds
    return Device(seconds, nodes, launches, compiling)


def _seconds(before: AsIs, legal: Device, split: Device, chip: Chip) -> Iterator[float]:
    """Wall time of a call by stage: the host or the device, whichever takes longer, and what crosses between them.

    Each node hands over to the next, as fitted on published decode steps; slices hide the hand-overs that they add.
    """
    host = chip.host
    handing = legal.nodes * host.handoff_seconds
    leaving = before.fallbacks * 2 * host.transfer_latency + before.moved / host.pcie_bandwidth
    yield max(legal.seconds + handing, before.ops * host.eager_op_seconds) + leaving
    yield max(legal.seconds + handing, before.ops * host.lazy_op_seconds) + leaving
    yield max(legal.seconds + handing, legal.nodes * host.lazy_op_seconds)
    for form in (legal, split):
        driving = host.replay_seconds + max(form.seconds + handing, form.launches * host.replay_seconds)
        yield driving + _COPIES * host.transfer_latency


def answer_seconds(every: Sequence[ShapeRow], chip: str) -> dict[str, float]:
    """Stage -> seconds of one whole answer: a prompt of 512 tokens, then 128 tokens, one of them by the prefill."""
    found = {row.step: row.seconds for row in every if row.chip == chip}
    return {stage: found[READS][stage] + (ANSWER - 1) * found[SAYS][stage] for stage in STAGES}


def compiles(every: Sequence[ShapeRow], lengths: Sequence[int], chip: Chip) -> dict[str, tuple[int, float]]:
    """Graphs compiled, and seconds, for answers of 128 tokens to prompts of these lengths.

    Lazy mode compiles a graph for each length of a prompt and each length of the cache that it has not seen; recorded graphs
    are compiled before, one for each bucket of `compile_lm` up to batch 32 and 4096 tokens.

    Returns:
        Stage -> count, seconds.
    """
    found = {row.step: row for row in every if row.chip == chip.name}
    read, said = found[READS], found[SAYS]
    prompts = len(set(lengths))
    caches = len({length + more for length in lengths for more in range(1, ANSWER)})
    axes = exponential(Limits(32, 4096, 1))
    buckets = len(axes.batch) * len(axes.queries), len(axes.batch) * len(axes.context)
    each = chip.host.compile_seconds_per_node
    return {
        "as is, lazy": (prompts + caches, (prompts * read.as_is.ops + caches * said.as_is.ops) * each),
        "legalised, lazy": (prompts + caches, (prompts * read.legal.nodes + caches * said.legal.nodes) * each),
        "recorded, before serving": (
            sum(buckets), buckets[0] * read.legal.compile_seconds + buckets[1] * said.legal.compile_seconds
        ),
        "recorded, while serving": (0, 0.0),
    }  # fmt: skip


def shape_table(name: str, every: Sequence[ShapeRow], lengths: Sequence[int]) -> str:
    """The calls, a whole answer, and what a stream of prompts of these lengths compiles, as Markdown."""
    stages = " | ".join(f"{stage}, ms" for stage in STAGES)
    head = (
        f"| {name}, modelled | chip | ops as is | fallbacks | nodes | launches | {stages} | a new shape compiles, ms |"
    )
    lines = [head, f"|{'---|' * (head.count('|') - 1)}"]
    for row in every:
        cells = [row.step, row.chip, row.as_is.ops, row.as_is.fallbacks, row.legal.nodes, row.legal.launches]
        times = [f"{row.seconds[stage] * 1e3:.1f}" for stage in STAGES]
        lines.append(f"| {' | '.join([*map(str, cells), *times, f'{row.compiling * 1e3:.0f}'])} |")
    lines += ["", f"| prompt of {PROMPT}, answer of {ANSWER} tokens | {stages.replace(', ms', ', ms a token')} |"]
    lines.append(f"|{'---|' * (len(STAGES) + 1)}")
    for chip in dict.fromkeys(row.chip for row in every):
        whole = answer_seconds(every, chip)
        lines.append(f"| {chip} | {' | '.join(f'{whole[stage] / ANSWER * 1e3:.2f}' for stage in STAGES)} |")
    lines += [
        "",
        f"| {len(lengths)} prompts, answers of {ANSWER} tokens | graphs compiled | seconds of it |",
        "|---|---|---|",
    ]
    for stage, (count, seconds) in compiles(every, lengths, load_chip(every[0].chip)).items():
        lines.append(f"| {stage} | {count:,} | {seconds:,.0f} |")
    return "\n".join(lines)
