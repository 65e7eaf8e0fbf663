"""`python -m gaudicc.bench.legal_models`: transformers models through the whole pipeline, judged, and what the passes add.

Each tiny model is captured at one size, compiled for gaudi3, run by the rule interpreter and compared with eager. What the passes
add is counted against the same program with its composites and our own ops taken apart and nothing else done, which is what
PyTorch itself would run: nodes and bytes with regions unfolded, and the machine model's time.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import fx, nn

from gaudicc.bench.legal_perception import MAPPINGS, perceiving, perceiving_types
from gaudicc.bench.legal_samples import CASTS
from gaudicc.capture import capture
from gaudicc.errors import CaptureError, GaudiccError, WeightChangedError
from gaudicc.interpreter import Result, interpret
from gaudicc.machine import load_chip
from gaudicc.machine.fx import works_of
from gaudicc.modelled import modelled_run
from gaudicc.models.transformers_models import Task, build, example_inputs, model_types
from gaudicc.nodes import call_region, is_op, val
from gaudicc.passes import DEFAULT_PIPELINE, CleanUp, Decompose, InsertBucketGuards, LowerSemanticOps, Specialize
from gaudicc.pipeline import Pass, Pipeline
from gaudicc.program import OutputKind, Program
from gaudicc.targets import load_target
from gaudicc.verify import Level

CHIP = "gaudi3"
BOUND = 1.15
TASKS = (*get_args(Task), *MAPPINGS)
TOLERANCE = 1e-3
UNCHANGED: tuple[Pass, ...] = (
    Decompose(),
    CleanUp(),
    InsertBucketGuards(),
    Specialize(),
    LowerSemanticOps(fused=False),
)


@dataclass(frozen=True, slots=True)
class Size:
    """How large a program is.

    Attributes:
        nodes: ops that the device runs, views left out, a region once per call.
        bytes: read and written by them.
        seconds: one run, modelled.
    """

    nodes: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one model.

    Attributes:
        model: the model type.
        status: `legal`, `presumed`, `refused`, `not captured`, `not built`, `fault` or `wrong`.
        detail: the presumed ops, or why.
        wide: tensors of float64 left in the program.
        before: its size with composites taken apart and nothing else done; None where there is no program.
        after: its size after all passes.
        ops: op -> calls in the graph as captured, bodies that layers share once.
    """

    model: str
    status: str
    detail: str = ""
    wide: int = 0
    before: Size | None = None
    after: Size | None = None
    ops: dict[str, int] = field(default_factory=dict)


def judge(name: str, task: str) -> Row:
    """Compiles one tiny model, runs it under the target's rules and compares it with eager."""
    try:
        model, inputs = _built(name, task)
        with torch.no_grad():
            expected = _floats(copy.deepcopy(model)(**copy.deepcopy(inputs)))
    except Exception as error:  # the model's own code, or the library's
        return Row(name, "not built", _line(error))
    try:
        program = _captured(model, inputs)
    except CaptureError as refusal:
        return Row(name, "not captured", refusal.what)
    program.target, ops = load_target(CHIP), program.count_ops()
    try:
        before = _size_before(program.copy())
        after, _ = Pipeline(DEFAULT_PIPELINE).run(program, level=Level.STRUCTURE)
        result = interpret(after.root, *after.feed(after.example), target=load_target(CHIP))
    except GaudiccError as refusal:
        return Row(name, "refused", f"{refusal.what} ({refusal.where})", ops=ops)
    except Exception as fault:
        return Row(name, "fault", _line(fault), ops=ops)
    returned = cast(Sequence[Any], result.outputs)
    ours = [value for spec, value in zip(after.outputs, returned, strict=True) if spec.kind is OutputKind.USER]
    status, detail = ("presumed", ", ".join(sorted(result.presumed))) if result.presumed else ("legal", "")
    if difference := _wrapped(after, result) or _difference(_floats(ours), expected):
        status, detail = "wrong", difference
    return Row(name, status, detail, _wide(after), before, size_of(after), ops)


def _built(name: str, task: str) -> tuple[nn.Module, dict[str, Any]]:
    if task in MAPPINGS:
        return perceiving(name, task)
    model = build(name, task=cast(Task, task))
    return model, example_inputs(model)


def _captured(model: nn.Module, inputs: dict[str, Any]) -> Program:
    """A model that scales its weights in its first call is captured after that, as the refusal says."""
    try:
        return capture(model, inputs)
    except WeightChangedError:
        with torch.no_grad():
            model(**copy.deepcopy(inputs))
        return capture(model, inputs)


def _wrapped(program: Program, result: Result) -> str:
    """What became of int64 in 32 bits: neither may a flag be set nor a value wrap."""
    returned = cast(Sequence[Any], result.outputs)
    flags = [value for spec, value in zip(program.outputs, returned, strict=True) if spec.kind is OutputKind.FLAG]
    if any(bool(flag.any()) for flag in flags):
        return "a flag is set that eager does not raise"
    wrapped = sorted(result.overflowed.keys() - CASTS)
    return f"int64 wraps in {', '.join(wrapped)}" if wrapped else ""


def size_of(program: Program) -> Size:
    """Counts a static program."""
    chip = load_chip(CHIP)
    works = [work for node in _unfolded(program.root) for work in works_of(node)]
    moved = [work.read_bytes + work.written_bytes for work in works]
    return Size(sum(map(bool, moved)), sum(moved), modelled_run(program, chip).timeline.makespan)


def _size_before(program: Program) -> Size | None:
    """The size before all passes; None where data decides on sizes, or an op is on complex numbers, which a Gaudi lacks."""
    try:
        return size_of(Pipeline(UNCHANGED).run(program, level=Level.STRUCTURE)[0])
    except GaudiccError:
        return None


def _unfolded(module: fx.GraphModule) -> Iterator[fx.Node]:
    """The ops of a graph, those of a region once per call."""
    for node in module.graph.nodes:
        if node.target is call_region:
            yield from _unfolded(getattr(module, str(node.args[0].target)))
        elif is_op(node):
            yield node


def _wide(program: Program) -> int:
    values = [val(node) for _, module in program.graphs() for node in module.graph.nodes if is_op(node)]
    return sum(isinstance(value, torch.Tensor) and value.dtype is torch.float64 for value in values)


def _floats(output: Any) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def _difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> str:
    if not ours or not theirs:
        return "nothing to compare"
    try:
        torch.testing.assert_close(ours[0], theirs[0], rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    except AssertionError as error:
        return _line(error)
    return ""


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def table(rows: Iterable[tuple[str, Row]], command: str) -> Iterator[str]:
    """The lines of the page."""
    import transformers

    yield f"<!-- {command} > docs/tables/model_legal.md -->"
    yield ""
    yield (
        f"transformers {transformers.__version__}, torch {torch.__version__}, tiny random weights, batch 2, 16 tokens "
        f"(images and sounds: default sizes, 2 layers, batch 1), {CHIP}, lazy mode. Legal: the rule interpreter ran every call "
        f"on evidence and the first result is eager's ({TOLERANCE:g}); presumed: no source speaks of the calls in the details. "
        "Nodes, bytes and modelled time before the passes (composites taken apart only) and after."
    )
    yield ""
    yield "| task | model type | result | nodes | bytes | modelled us | after / before | float64 | details |"
    yield "|---|---|---|---|---|---|---|---|---|"
    listed = list(rows)
    for task, row in listed:
        detail = row.detail.replace("|", "/").replace("\n", " ")
        yield f"| {task} | {row.model} | {row.status} | {_sizes(row)} | {row.wide} | {detail} |"
    yield ""
    built = [row for _, row in listed if row.status != "not built"]
    legal = [row for row in built if row.status in ("legal", "presumed")]
    slower = [row.model for row in built if ratio(row) > BOUND]
    yield f"{len(legal)} of {len(built)} legal or presumed; more than {BOUND} x in modelled time: {', '.join(slower) or 'none'}."


def ratio(row: Row) -> float:
    """Modelled time after the passes over that before; 0 where there is none."""
    return row.after.seconds / row.before.seconds if row.before and row.after else 0.0


def _sizes(row: Row) -> str:
    if not row.before or not row.after:
        return "- | - | - | -"
    a, b = row.before, row.after
    times = f"{a.seconds * 1e6:.1f} -> {b.seconds * 1e6:.1f}"
    return f"{a.nodes} -> {b.nodes} | {a.bytes} -> {b.bytes} | {times} | {ratio(row):.2f}"


def _judged(chosen: Iterable[tuple[str, str]], kept: Path | None) -> Iterator[tuple[str, Row]]:
    known = {}
    for line in kept.read_text().splitlines() if kept and kept.exists() else ():
        task, fields = json.loads(line)
        sizes = {key: Size(**fields[key]) if fields[key] else None for key in ("before", "after")}
        known[task, fields["model"]] = Row(**{**fields, **sizes})
    for task, name in chosen:
        if (task, name) not in known:
            row = known[task, name] = judge(name, task)
            print(f"{task} {name}: {row.status} {ratio(row):.2f} {row.detail}", file=sys.stderr)
            if kept:
                with kept.open("a") as file:
                    print(json.dumps([task, asdict(row)]), file=file)
        yield task, known[task, name]


def usage(rows: Iterable[Row]) -> dict[str, int]:
    """Op without its overload -> in how many models it is, the most frequent first."""
    counts = Counter(name for row in rows for name in {op.split(".")[1] for op in row.ops if op.startswith("aten.")})
    return dict(counts.most_common())


def _types(task: str) -> tuple[str, ...]:
    return perceiving_types(task) if task in MAPPINGS else model_types(cast(Task, task))


def main() -> int:
    """Judges the models asked for and prints the table.

    Returns:
        1 if a result was wrong or met a fault of ours, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--every", type=int, default=1, help="only every n-th model type of a task")
    parser.add_argument("--rows", type=Path, help="a file that rows are kept in: those that it has are not made again")
    parser.add_argument("--usage", type=Path, help="a JSON file to write: op -> in how many models it is")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    step = f" --every {options.every}" if options.every > 1 else ""
    tasks = "" if options.tasks == list(TASKS) else f" --tasks {' '.join(options.tasks)}"
    chosen = [(task, name) for task in options.tasks for name in _types(task)[:: options.every]]
    rows = list(_judged(chosen, options.rows))
    if options.usage:
        options.usage.write_text(json.dumps(usage(row for _, row in rows), indent=0) + "\n")
    print("\n".join(table(rows, f"python -m gaudicc.bench.legal_models{tasks}{step}")))
    return int(any(row.status in ("wrong", "fault") for _, row in rows))


if __name__ == "__main__":
    sys.exit(main())
