"""`python -m gaudicc.bench.legal`: what becomes of PyTorch's own operator samples on gaudi3.

Every sample of `op_db` in a dtype is captured as a function of one op, legalised, run by the rule interpreter and compared
with eager. An entry counts by its worst sample.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils import _pytree as pytree

from gaudicc.capture import capture
from gaudicc.errors import GaudiccError, InternalError
from gaudicc.interpreter import interpret
from gaudicc.invariants import SHAPES_GUARDED
from gaudicc.nodes import is_op
from gaudicc.passes import BoundDynamicOps, CleanUp, Decompose, LegalizeDtypes, LegalizeOps, Specialize
from gaudicc.pipeline import CAPTURED, Pipeline
from gaudicc.program import OutputKind, Program
from gaudicc.targets import load_target
from gaudicc.verify import Level

TARGET = load_target("gaudi3")
UNINITIALISED = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}
ENTRIES = [entry for entry in op_db if not entry.name.startswith("jiterator")]
PASSES = (BoundDynamicOps(), Decompose(), CleanUp(), Specialize(), LegalizeDtypes(), LegalizeOps())
# Relative and absolute. In bfloat16 a composite rounds between its parts, where the CPU may have one kernel that does not.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.int64: 1e-4, torch.bool: 1e-4}
# Which of equal entries eager picks follows from the order of its sort: a place is compared by the value that stands there.
PICKS = {"topk": 1, "kthvalue": 1, "mode": 0}  # entry -> where its arguments give the dim
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
    leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def function(*tensors: torch.Tensor) -> Any:
        values = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            values[place] = tensor
        first, args, kwargs = pytree.tree_unflatten(values, spec)
        with patch.object(torch, "manual_seed"):  # some entries seed the generator in every call, which capture refuses
            return pytree.tree_map(_as_real, entry(first, *args, **kwargs))

    program = capture(function, tuple(leaves[place] for place in places))
    program.target = TARGET
    pipeline = Pipeline(PASSES, initial=CAPTURED | {SHAPES_GUARDED})
    program, records = pipeline.run(program, level=Level.STRUCTURE)
    return program, [note for record in records for note in record.notes]


def judge(entry: Any, sample: Any) -> Outcome:
    """Compiles one sample, runs it under the target's rules and compares it with eager."""
    expected = _eager(entry, sample)
    try:
        program, notes = compile_sample(entry, sample)
        torch.manual_seed(0)
        result = interpret(program.root, *program.feed(program.example), target=TARGET)
    except InternalError as fault:
        return Outcome(Status.FAULT, str(fault))
    except GaudiccError as refusal:
        return Outcome(Status.REFUSED, refusal.what)
    except Exception as fault:
        return Outcome(Status.FAULT, f"{type(fault).__name__}: {fault}")
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


def _user_outputs(program: Program, returned: Any) -> list[Any]:
    """What the caller gets: outputs whose length only data knows are cut, as the host does."""
    pairs = list(zip(program.outputs, returned, strict=True))
    outputs = [value for spec, value in pairs if spec.kind is OutputKind.USER]
    for spec, value in pairs:
        if spec.kind is OutputKind.LENGTH:
            position, dim = map(int, str(spec.target).split(":"))
            outputs[position] = outputs[position].narrow(dim, 0, int(value))
    return outputs


def _picked(entry: Any, sample: Any, results: list[Any]) -> list[Any]:
    """Results in which places are replaced by what stands there."""
    x, position = sample.input, PICKS.get(entry.name)
    if position is None or not x.dim():
        return results
    values, places = results
    dim = sample.kwargs.get("dim", sample.args[position] if len(sample.args) > position else -1)
    return [values, x.gather(dim, places if places.dim() == x.dim() else places.unsqueeze(dim))]


def _eager(entry: Any, sample: Any) -> list[torch.Tensor]:
    torch.manual_seed(0)
    first, args, kwargs = pytree.tree_map(_copied, (sample.input, sample.args, sample.kwargs))
    with torch.no_grad():
        result = entry(first, *args, **kwargs)
    return [_as_real(leaf) for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


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


def _difference(ours: list[Any], theirs: list[torch.Tensor], *, undefined: bool) -> str:
    tensors = [value for value in ours if isinstance(value, torch.Tensor)]
    if len(tensors) != len(theirs):
        return f"{len(tensors)} results, eager gives {len(theirs)}"
    for left, right in zip(tensors, theirs, strict=True):
        left, right = (torch.zeros_like(left), torch.zeros_like(right)) if undefined else (left, right)
        try:
            close = max(TOLERANCES.get(right.dtype, 0), TOLERANCES[torch.float32])
            torch.testing.assert_close(left, right, rtol=close, atol=close, equal_nan=True)
        except AssertionError as error:
            return " ".join(str(error).split())
    return ""


@dataclass(frozen=True, slots=True)
class Row:
    """What became of an entry.

    Attributes:
        name: the entry with its variant.
        samples: how many were judged.
        worst: the first of the worst outcomes.
        counts: samples by status.
    """

    name: str
    samples: int
    worst: Outcome
    counts: dict[Status, int]


def judge_entry(index: int, dtype: torch.dtype = torch.float32, limit: int | None = None) -> Row:
    """Judges the samples of an entry.

    Args:
        index: into `ENTRIES`.
        dtype: of the samples; the entry must have it.
        limit: at most about so many samples, evenly spread; None for all.
    """
    warnings.simplefilter("ignore")
    entry = ENTRIES[index]
    samples = list(entry.sample_inputs("cpu", dtype))
    step = max(1, len(samples) // limit) if limit else 1
    outcomes = [judge(entry, sample) for sample in samples[::step]]
    worst = max(outcomes, key=lambda outcome: outcome.status)
    return Row(name_of(entry), len(outcomes), worst, dict(Counter(outcome.status for outcome in outcomes)))


def table(rows: Sequence[Row], dtype: str, limit: int | None) -> Iterator[str]:
    """The lines of the table, what falls short first."""
    counts = Counter(row.worst.status for row in rows)
    short = dtype == "float32"
    options = ("" if short else f" --dtype {dtype}") + (f" --samples {limit}" if limit else "")
    file = "op_db_legal.md" if short else f"op_db_legal_{dtype}.md"
    yield f"<!-- python -m gaudicc.bench.legal{options} > docs/tables/{file} -->"
    yield ""
    chosen = f"at most about {limit} of each entry, evenly spread" if limit else "all"
    judged = sum(row.samples for row in rows)
    close = max(TOLERANCES[DTYPES[dtype]], TOLERANCES[torch.float32])
    yield (
        f"PyTorch {torch.__version__}'s operator samples, {dtype} ({chosen}: {judged}), gaudi3, lazy mode. Each is captured as a "
        f"function of one op, legalised, run by the rule interpreter and compared with eager ({close:g}; of drawn and "
        "uninitialised values only the types; complex results as pairs of reals; results whose length only data knows are cut "
        "by the host). An entry counts by its worst sample."
    )
    yield ""
    yield "| status | entries | share |"
    yield "|---|---|---|"
    for status in Status:
        yield f"| {status.name.lower()} | {counts[status]} | {counts[status] / len(rows):.1%} |"
    yield f"| legal (the first three) | {(legal := _legal(counts))} | {legal / len(rows):.1%} |"
    yield ""
    yield "| entry | worst | samples by status | rules, presumed ops or the reason |"
    yield "|---|---|---|---|"
    for row in sorted(rows, key=lambda row: (-row.worst.status, row.name)):
        spread = ", ".join(f"{status.name.lower()} {count}" for status, count in sorted(row.counts.items()))
        detail = row.worst.detail.splitlines()[0].replace("|", "/") if row.worst.detail else ""
        yield f"| {row.name} | {row.worst.status.name.lower()} | {spread} | {detail} |"


def _legal(counts: Mapping[Status, int]) -> int:
    return counts[Status.NATIVE] + counts[Status.DECOMPOSED] + counts[Status.RULE]


def _said(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows; each is told on stderr as it comes, for the whole takes long."""
    for row in rows:
        print(f"{row.name}: {row.worst.status.name.lower()} {row.worst.detail}", file=sys.stderr)
        yield row


def main() -> int:
    """Judges all entries and prints the table.

    Returns:
        1 if a sample was wrong or met a fault of ours, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=None, help="at most about so many samples of each entry")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the samples")
    parser.add_argument("--entries", nargs="+", default=(), help="names of entries; all by default")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    dtype = DTYPES[options.dtype]
    chosen = [i for i, each in enumerate(ENTRIES) if dtype in each.dtypes]
    chosen = [i for i in chosen if not options.entries or ENTRIES[i].name in options.entries]
    judged = partial(judge_entry, dtype=dtype, limit=options.samples)
    with multiprocessing.get_context("spawn").Pool(options.workers, torch.set_num_threads, (1,)) as pool:
        rows = list(_said(pool.imap(judged, chosen)))
    print("\n".join(table(rows, options.dtype, options.samples)))
    return int(any(row.worst.status >= Status.FAULT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
