"""compile(): capture -> pipeline -> plan per bucket -> lower -> CompiledModel. Read this file first."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gaudicc.buckets import Bucket, BucketForm, Buckets, BucketSet, parse_buckets
from gaudicc.capture import CapturedSide, capture_sides
from gaudicc.compiled import CompiledModel
from gaudicc.errors import InputError, PipelineError
from gaudicc.padding import poison
from gaudicc.padding.independence import divisible_sizes
from gaudicc.padding.trials import trials
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.passes.choose_branches import ChooseBranches
from gaudicc.passes.legalize_ops import LegalizeOps
from gaudicc.passes.pad import Pad
from gaudicc.passes.specialize import Specialize
from gaudicc.passes.static_state import StaticState
from gaudicc.pipeline import Observer, Pass, Pipeline
from gaudicc.program import Program
from gaudicc.runtime.select import open_device
from gaudicc.sided import admitted, compile_sides
from gaudicc.targets import load_target
from gaudicc.trace import CompileTrace, PassRecord
from gaudicc.verify import Level

log = logging.getLogger("gaudicc")


def compile(
    model: Any,
    example_inputs: Any = (),
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    autocast: torch.dtype | None = None,
    experts: str = "dispatch",
    target: str = "gaudi3",
    buckets: BucketForm = None,
    device: str = "auto",
    passes: Sequence[Pass] | None = None,
    verify: str = "ops",
    on_unsupported: str = "error",
    branches: str = "cost",
    outputs: str = "fresh",
    on_miss: str = "refuse",
    own_state: bool = True,
    static_state: bool = False,
    observer: Observer | None = None,
    dump: str | Path | None = None,
) -> CompiledModel:
    """Compiles a PyTorch model for inference on Gaudi.

    Args:
        model: an nn.Module in eval mode, a function, an ExportedProgram, or the path of a trusted `.pt2` file.
        example_inputs: a tuple of positional arguments, or a dict of keyword arguments.
        example_kwargs: keyword arguments.
        dynamic_shapes: None for static shapes; "auto"; or by argument name, `{"ids": {1: Dim("seq", min=1, max=512)}}`.
        autocast: `torch.bfloat16` compiles the model as it runs inside `torch.autocast` of that dtype.
        experts: `dispatch` computes a mixture's experts for the tokens that chose them, within rounding of every implementation
            that a transformers model names; `as-written` takes the named one, `eager` as a loop over all of them, bitwise.
        target: the chip whose op table decides what is legal: `gaudi2` or `gaudi3`.
        buckets: the physical sizes to record: a list of `{dim: size}`, a strategy word (`exp`, `lin`, `pad`, `optimal`) or
            `Buckets`. None with dynamic dims: `exp`, at most 32 graphs.
        device: where it runs: `auto` (a real Gaudi if one answers, else cpu), `cpu`, `hpu`, or `cuda`.
        passes: the passes in order, `DEFAULT_PIPELINE` by default; from `Specialize` on they run per bucket.
        verify: what is checked after each pass: `structure`, `shapes`, `ops`, `numerics`; `poison` also runs every bucket
            with NaN, infinity and extreme integers in all pads that are claimed harmless.
        on_unsupported: `error`, or `host` to leave such ops on the host between recorded graphs.
        branches: how an `if` on a tensor runs: `predicate` computes both sides and selects; `host` reads the condition and
            replays the graph of one side; `cost` takes whichever of them the machine model finds faster.
        outputs: `fresh` storage for every call, or `borrow`: valid until the next call.
        on_miss: a call that no bucket holds is refused by `refuse`; `split` serves it in several calls over a size, as the batch,
            for which it is proved that no row of it meets another; `record` compiles and records a bucket during the call,
            and says so in the log.
        own_state: give the compiled model buffers of its own, starting from the model's; False writes the model's own.
        static_state: hold caches that the model takes, grows by `torch.cat` and returns as state: whole buffers, written by
            row. Calls stay the same; a cache comes back as a view of the state, valid until the next call.
        observer: called with the record of each pass as it ends.
        dump: a folder for the printed program of every stage.

    Returns:
        The compiled model: called like the model.

    Raises:
        GaudiccError: a subclass that says what is wrong, where, and what to do.
    """
    level = Level.parse(verify)
    _one_of("on_unsupported", on_unsupported, ("error", "host"))
    _one_of("outputs", outputs, ("fresh", "borrow"))
    _one_of("on_miss", on_miss, ("refuse", "split", "record"))
    chip = load_target(target)
    opened, chosen = open_device(device)
    log.info(chosen)
    symbolic, static = split_pipeline(
        DEFAULT_PIPELINE if passes is None else passes,
        host=on_unsupported == "host",
        exact=buckets is not None and not isinstance(buckets, (str, Buckets)),
        caches=static_state,
        branches=branches,
    )
    sides = capture_sides(
        model, example_inputs, example_kwargs, dynamic_shapes=dynamic_shapes, autocast=autocast, experts=experts
    )
    if on_miss == "split" and (len(sides) > 1 or sides[0].raising):
        raise InputError("on_miss is 'split', but the model decides on sizes", hint="narrow the Dims to one side")
    observers = (observer,) if observer else ()

    def compile_side(side: CapturedSide, form: BucketForm, kind: type[CompiledModel]) -> CompiledModel:
        program = side.program
        program.target = chip
        bucket_set = admitted(side, plan_buckets(program, form))
        program.dimensions = tuple(
            dim if dim.high >= 0 else replace(dim, high=max(bucket[dim.name] for bucket in bucket_set))
            for dim in program.dimensions
        )
        program, records = _for_side(symbolic, side, bucket_set).run(program, level=level, observers=observers)
        final = program
        divided = divisible_sizes(unpadded(program, records)) if on_miss == "split" else ()

        def compile_bucket(bucket: Bucket) -> Program:
            static_program, more = _for_bucket(static, bucket).run(final, level=level, observers=observers)
            records.extend(more)
            return static_program

        programs = {bucket: compile_bucket(bucket) for bucket in bucket_set}
        tried = try_pads(records, programs) if level >= Level.POISON else ()
        return kind(
            program, programs, bucket_set, CompileTrace(records), opened,
            ensured=static.ensured, borrow=outputs == "borrow", own_state=own_state, divided=divided,
            notes=(chosen, *program.notes, *tried, *(f"a call that no bucket holds is divided over {d.name}" for d in divided)),
            compile_bucket=compile_bucket if on_miss == "record" else None,
        )  # fmt: skip

    compiled = compile_sides(sides, buckets, compile_side)
    if dump is not None:
        compiled.trace.dump(Path(dump))
    return compiled


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} is {value!r}", hint=f"choose one of {', '.join(allowed)}")


def try_pads(records: Sequence[PassRecord], programs: Mapping[Bucket, Program]) -> tuple[str, ...]:
    """Runs every bucket with poison in the pads, over calls whose lengths grow and shrink.

    Args:
        records: of the symbolic phase at least; the one of `pad` holds the program before and after padding.
        programs: the static program of every bucket.

    Returns:
        What was tried, for the notes.

    Raises:
        NumericsError: a pad changed a valid value.
    """
    record = next((record for record in records if record.name == Pad.name), None)
    if record is None or record.after.padded is None:
        return ()
    buckets = [bucket.as_dict() for bucket in programs]
    calls = list(trials(record.after, record.before, buckets))
    poison.check(record.after, record.before, calls, static=lambda sizes: programs[Bucket.of(sizes)])
    return (f"poison run: {len(calls)} calls over {len(buckets)} buckets, no pad changed a valid value",)


def unpadded(program: Program, records: Sequence[PassRecord]) -> Program:
    """What a program was before `pad` wrote lengths into it; the program itself where `pad` did not run."""
    return next((record.before for record in records if record.name == Pad.name), program)


def split_pipeline(
    passes: Sequence[Pass], *, host: bool = False, exact: bool = False, caches: bool = False, branches: str = "cost"
) -> tuple[Pipeline, Pipeline]:
    """Divides passes into the symbolic stretch and the one that runs per bucket, and proves both orders.

    Args:
        passes: in order; `Specialize` begins the second stretch.
        host: let `LegalizeOps` leave ops on the host.
        exact: let `Pad` leave a program that it refuses to exact shapes.
        caches: let `StaticState` hold caches that grow.
        branches: the form of `ChooseBranches`; `cost` leaves it as it is.

    Raises:
        InputError: there is no such form.
        PipelineError: `Specialize` is missing, or the order cannot be proved.
    """
    steps = [replace(step, host=True) if host and isinstance(step, LegalizeOps) else step for step in passes]
    steps = [replace(step, exact=True) if exact and isinstance(step, Pad) else step for step in steps]
    steps = [replace(step, caches=True) if caches and isinstance(step, StaticState) else step for step in steps]
    steps = [_with_form(step, branches) for step in steps]
    cut = next((i for i, step in enumerate(steps) if isinstance(step, Specialize)), None)
    if cut is None:
        raise PipelineError("the passes lack specialize", hint="put Specialize() where shapes become numbers")
    symbolic = Pipeline(tuple(steps[:cut]))
    return symbolic, Pipeline(tuple(steps[cut:]), initial=symbolic.ensured, phase="static")


def _with_form(step: Pass, branches: str) -> Pass:
    return replace(step, form=branches) if branches != "cost" and isinstance(step, ChooseBranches) else step


def _for_side(symbolic: Pipeline, side: CapturedSide, buckets: BucketSet) -> Pipeline:
    """The symbolic passes of one side of a model: state is as large as the largest bucket, and as all sides need."""
    sizes = [bucket.as_dict() for bucket in buckets]
    sizes.append({name: high for name, (_, high) in side.ranges.items()})
    largest = tuple((name, max(entry.get(name, 0) for entry in sizes)) for name in buckets.dims)
    steps = tuple(replace(step, largest=largest) if isinstance(step, StaticState) else step for step in symbolic.passes)
    return replace(symbolic, passes=steps)


def _for_bucket(static: Pipeline, bucket: Bucket) -> Pipeline:
    sizes = tuple(bucket.as_dict().items())
    steps = tuple(replace(step, sizes=sizes) if isinstance(step, Specialize) else step for step in static.passes)
    return Pipeline(steps, initial=static.initial, phase=str(bucket) or "static")


def plan_buckets(program: Program, form: BucketForm) -> BucketSet:
    """The buckets of a program: one without dims when it is static.

    Raises:
        InputError: the form does not fit the dimensions, or a dimension has no upper bound.
    """
    if not program.dimensions:
        if form is not None:
            raise InputError(
                "buckets are given, but no size is dynamic", hint="name the dynamic sizes in dynamic_shapes"
            )
        return BucketSet([Bucket((), ())])
    listed = (
        [dict(entry) for entry in form]
        if isinstance(form, (list, tuple)) and all(isinstance(e, Mapping) for e in form)
        else []
    )
    bounds: dict[str, tuple[int, int]] = {}
    for dim in program.dimensions:
        given = [entry[dim.name] for entry in listed if dim.name in entry]
        high = dim.high if dim.high >= 0 else max(given, default=-1)
        if high < 0:
            raise InputError(f"size {dim.name} has no upper bound", hint="give its Dim a max, or list the buckets")
        bounds[dim.name] = (dim.low, high)
    return parse_buckets(form, bounds)
