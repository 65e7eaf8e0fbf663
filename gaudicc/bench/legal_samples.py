"""What becomes of one of PyTorch's own operator samples on gaudi3: captured, legalised, run by the rules and compared with eager.

Nothing here is printed: `gaudicc.bench.legal` makes the table.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from unittest.mock import patch

import torch
from torch.testing._internal import common_methods_invocations
from torch.utils import _pytree as pytree

from gaudicc.calls import inputs_by_name
from gaudicc.capture import capture
from gaudicc.errors import GaudiccError, InternalError
from gaudicc.interpreter import Result, interpret
from gaudicc.invariants import SHAPES_GUARDED
from gaudicc.nodes import is_op, op_name
from gaudicc.passes import BoundDynamicOps, CheckIntegers, CleanUp, Decompose, LegalizeDtypes, LegalizeOps, Specialize
from gaudicc.pipeline import CAPTURED, Pipeline
from gaudicc.program import OutputKind, Program
from gaudicc.targets import load_target
from gaudicc.verify import Level

TARGET = load_target("gaudi3")
UNINITIALISED = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}
# No list: capture copies the lists beside a function, and all that they reach.
ENTRIES = tuple(entry for entry in common_methods_invocations.op_db if not entry.name.startswith("jiterator"))
PASSES = (BoundDynamicOps(), Decompose(), CleanUp(), CheckIntegers(), Specialize(), LegalizeDtypes(), LegalizeOps())
# Relative and absolute. In bfloat16 a composite rounds between its parts, where the CPU may have one kernel that does not.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.int64: 1e-4, torch.bool: 1e-4}
# Which of equal entries eager picks follows from the order of its sort: a place is compared by the value that stands there.
PICKS = {"topk": 1, "kthvalue": 1, "mode": 0}  # entry -> where its arguments give the dim
# A float that is not finite becomes any integer; one that is has a flag.
CASTS = frozenset(("aten::_to_copy", "aten::to.dtype"))
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCES}
RULE, DECOMPOSITION = ": rule ", "decompos"


class Status(IntEnum):
    """What becomes of a sample, from good to bad; an entry has the worst of its samples."""

    NATIVE = 0
    DECOMPOSED = 1
    RULE = 2
    PRESUMED = 3
    REFUSED = 4
    FAULT = 5
    WRONG = 6


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a sample or an entry.

    Attributes:
        status: the worst that happened.
        detail: the rules applied, the ops presumed, or why it was refused.
    """

    status: Status
    detail: str = ""


def name_of(entry: Any) -> str:
    """An entry's name with its variant."""
    return f"{entry.name}.{entry.variant_test_name}".rstrip(".")


def compile_sample(entry: Any, sample: Any) -> tuple[Program, list[str]]:
    """Captures and legalises one call of an entry.

    Returns:
        The legal program and what the passes noted.
    """
    op = entry.op  # not the entry: capture copies what a function can reach
    leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def function(*tensors: torch.Tensor) -> Any:
        values = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            values[place] = tensor
        first, args, kwargs = pytree.tree_unflatten(values, spec)
        with patch.object(torch, "manual_seed"):  # some entries seed the generator in every call, which capture refuses
            return pytree.tree_map(_as_real, op(first, *args, **kwargs))

    program = capture(function, tuple(leaves[place] for place in places))
    program.target = TARGET
    pipeline = Pipeline(PASSES, initial=CAPTURED | {SHAPES_GUARDED})
    program, records = pipeline.run(program, level=Level.STRUCTURE)
    return program, [note for record in records for note in record.notes]


Compiled = dict[Any, tuple[Program, list[str]]]


def judge(entry: Any, sample: Any, known: Compiled | None = None) -> Outcome:
    """Compiles one sample, runs it under the target's rules and compares it with eager.

    Args:
        entry: of the database.
        sample: one of its samples.
        known: programs of samples before, which are run again on samples that differ in tensor values only; filled.
    """
    expected = _eager(entry, sample)
    key, tensors = _key(sample)
    known = {} if known is None else known
    try:
        if key not in known:
            known[key] = compile_sample(entry, sample)
        program, notes = known[key]
        torch.manual_seed(0)
        result = interpret(program.root, *program.feed(inputs_by_name(program, tensors)), target=TARGET)
    except InternalError as fault:
        return Outcome(Status.FAULT, str(fault))
    except GaudiccError as refusal:
        return Outcome(Status.REFUSED, refusal.what)
    except Exception as fault:
        return Outcome(Status.FAULT, f"{type(fault).__name__}: {fault}")
    if raised := _raised(program, result):
        return raised
    outputs = _user_outputs(program, result.outputs)
    outputs, expected = (_picked(entry, sample, results) for results in (outputs, expected))
    if difference := _difference(outputs, expected, undefined=entry.name in UNINITIALISED or _is_random(program)):
        return Outcome(Status.WRONG, difference)
    if result.presumed:
        return Outcome(Status.PRESUMED, ", ".join(sorted(result.presumed)))
    rules = [note.split(RULE)[1].split(" applied")[0] for note in notes if RULE in note]
    rules += ["on pairs of reals" for note in notes if "pairs of reals" in note]
    if rules:
        return Outcome(Status.RULE, ", ".join(sorted(set(rules))))
    return Outcome(Status.DECOMPOSED if any(DECOMPOSITION in note for note in notes) else Status.NATIVE)


def _key(sample: Any) -> tuple[Any, list[torch.Tensor]]:
    """What the program of a sample depends on, and the tensors that it does not depend on the values of."""
    leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    first = {id(tensor): i for i, tensor in reversed(list(enumerate(tensors)))}
    parts = [(first[id(leaf)], *_form(leaf)) if isinstance(leaf, torch.Tensor) else repr(leaf) for leaf in leaves]
    return (spec, tuple(parts)), tensors


def _form(tensor: torch.Tensor) -> tuple[Any, ...]:
    strides = tensor.stride() if tensor.layout is torch.strided else None
    return tensor.shape, strides, tensor.dtype, tensor.layout, tensor.is_conj(), tensor.is_neg()


def _raised(program: Program, result: Result) -> Outcome | None:
    """What becomes of a sample whose int64 values do not fit 32 bits: the host raises, and nothing may wrap unseen."""
    returned: Any = result.outputs
    flags = [value for spec, value in zip(program.outputs, returned, strict=True) if spec.kind is OutputKind.FLAG]
    errors = (
        [entry.error for entry, flag in zip(program.calling.raises, flags[0].tolist(), strict=True) if flag]
        if flags
        else []
    )
    if others := [error for error in errors if not isinstance(error, OverflowError)]:
        return Outcome(Status.WRONG, f"raises {others[0]!r}, eager does not")
    if errors:
        return Outcome(Status.REFUSED, f"raises at run time: {errors[0]}")
    wrapped = [name for name in sorted(result.overflowed.keys() - CASTS) if "empty" not in name]
    constants = [name for name in wrapped if "::" not in name] or list(_wide_numbers(program))
    if wrapped and constants:
        return Outcome(Status.REFUSED, f"refused when it is recorded: {constants[0]} holds a number beyond 32 bits")
    if wrapped:
        return Outcome(Status.WRONG, f"int64 wraps in {', '.join(wrapped)}")
    return None


def _wide_numbers(program: Program) -> Iterator[str]:
    """Ops of which an argument is a whole number beyond 32 bits."""
    for node in (node for _, module in program.graphs() for node in module.graph.nodes if is_op(node)):
        if any(type(arg) is int and not -(2**31) <= arg < 2**31 for arg in (*node.args, *node.kwargs.values())):
            yield op_name(node)


def _user_outputs(program: Program, returned: Any) -> list[Any]:
    """What the caller gets: outputs whose length only data knows are cut, as the host does."""
    pairs = list(zip(program.outputs, returned, strict=True))
    outputs = [value for spec, value in pairs if spec.kind is OutputKind.USER]
    for spec, value in pairs:
        if spec.kind is OutputKind.LENGTH:
            position, dim = map(int, str(spec.target).split(":"))
            outputs[position] = outputs[position].narrow(dim, 0, int(value))
    for index, value in sorted(program.calling.literals.items()):
        if isinstance(value, _VALUES):
            outputs.insert(index, value)
    return outputs


_VALUES = (torch.Tensor, int, float)


def _picked(entry: Any, sample: Any, results: list[Any]) -> list[Any]:
    """Results in which places are replaced by what stands there."""
    x, position = sample.input, PICKS.get(entry.name)
    if position is None or not x.dim():
        return results
    values, places = results
    dim = sample.kwargs.get("dim", sample.args[position] if len(sample.args) > position else -1)
    return [values, x.gather(dim, places if places.dim() == x.dim() else places.unsqueeze(dim))]


def _eager(entry: Any, sample: Any) -> list[Any]:
    torch.manual_seed(0)
    first, args, kwargs = pytree.tree_map(_copied, (sample.input, sample.args, sample.kwargs))
    with torch.no_grad():
        result = entry(first, *args, **kwargs)
    return [_as_real(leaf) for leaf in pytree.tree_leaves(result) if isinstance(leaf, _VALUES)]


def _as_real(leaf: Any) -> Any:
    """A complex result as pairs of reals: a model on a Gaudi cannot return it otherwise."""
    return torch.view_as_real(leaf.resolve_conj()) if isinstance(leaf, torch.Tensor) and leaf.is_complex() else leaf


def _copied(leaf: Any) -> Any:
    """A copy for ops that write to their arguments; of dense tensors with the same strides and gaps."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return copy.deepcopy(leaf) if leaf.layout is torch.strided else leaf.clone()


def _is_random(program: Program) -> bool:
    """Whether its values are drawn: then only their types are compared, for every device has a generator of its own."""
    ops = [node.target for _, module in program.graphs() for node in module.graph.nodes if is_op(node)]
    return any(torch.Tag.nondeterministic_seeded in op.tags for op in ops)


def _difference(ours: list[Any], theirs: list[Any], *, undefined: bool) -> str:
    values: list[Any] = [value for value in ours if isinstance(value, _VALUES)]
    if len(values) != len(theirs):
        return f"{len(values)} results, eager gives {len(theirs)}"
    for left, right in zip(values, theirs, strict=True):
        if not isinstance(right, torch.Tensor):  # a number, which the host reads from a tensor of no dims
            left = left.item() if isinstance(left, torch.Tensor) else left
        elif undefined:
            left, right = torch.zeros_like(left), torch.zeros_like(right)
        try:
            dtype = right.dtype if isinstance(right, torch.Tensor) else torch.float32
            close = max(TOLERANCES.get(dtype, 0), TOLERANCES[torch.float32])
            torch.testing.assert_close(left, right, rtol=close, atol=close, equal_nan=True)
        except AssertionError as error:
            return " ".join(str(error).split())
    return ""
