"""`python -m gaudicc.bench.legal`: what becomes of PyTorch's own operator samples on gaudi3.

Every float32 sample of `op_db` is captured as a function of one op, legalised, run by the rule interpreter and compared with
eager. An entry counts by its worst sample.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils import _pytree as pytree

from gaudicc.capture import capture
from gaudicc.errors import GaudiccError, InternalError
from gaudicc.interpreter import interpret
from gaudicc.invariants import SHAPES_GUARDED
from gaudicc.nodes import is_op
from gaudicc.passes import CleanUp, Decompose, LegalizeDtypes, LegalizeOps, Specialize
from gaudicc.pipeline import CAPTURED, Pipeline
from gaudicc.program import OutputKind, Program
from gaudicc.targets import load_target
from gaudicc.verify import Level

TARGET = load_target("gaudi3")
UNINITIALISED = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}
ENTRIES = [entry for entry in op_db if torch.float32 in entry.dtypes and not entry.name.startswith("jiterator")]
PASSES = (Decompose(), CleanUp(), Specialize(), LegalizeDtypes(), LegalizeOps())
TOLERANCE = 1e-4
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
    returned: Any = result.outputs
    outputs = [value for spec, value in zip(program.outputs, returned, strict=True) if spec.kind is OutputKind.USER]
    if difference := _difference(outputs, expected, undefined=entry.name in UNINITIALISED or _is_random(program)):
        return Outcome(Status.WRONG, difference)
    if result.presumed:
        return Outcome(Status.PRESUMED, ", ".join(sorted(result.presumed)))
    rules = [note.split(RULE)[1].split(" applied")[0] for note in notes if RULE in note]
    rules += ["on pairs of reals" for note in notes if "pairs of reals" in note]
    if rules:
        return Outcome(Status.RULE, ", ".join(sorted(set(rules))))
    return Outcome(Status.DECOMPOSED if any(DECOMPOSITION in note for note in notes) else Status.NATIVE)


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
            torch.testing.assert_close(left, right, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
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


def judge_entry(index: int, limit: int | None = None) -> Row:
    """Judges the samples of an entry.

    Args:
        index: into `ENTRIES`.
        limit: at most about so many samples, evenly spread; None for all.
    """
    warnings.simplefilter("ignore")
    entry = ENTRIES[index]
    samples = list(entry.sample_inputs("cpu", torch.float32))
    step = max(1, len(samples) // limit) if limit else 1
    outcomes = [judge(entry, sample) for sample in samples[::step]]
    worst = max(outcomes, key=lambda outcome: outcome.status)
    return Row(name_of(entry), len(outcomes), worst, dict(Counter(outcome.status for outcome in outcomes)))


def table(rows: Sequence[Row], limit: int | None) -> Iterator[str]:
    """The lines of the table, what falls short first."""
    counts = Counter(row.worst.status for row in rows)
    option = f" --samples {limit}" if limit else ""
    yield f"<!-- python -m gaudicc.bench.legal{option} > docs/tables/op_db_legal.md -->"
    yield ""
    chosen = f"at most about {limit} of each entry, evenly spread" if limit else "all"
    judged = sum(row.samples for row in rows)
    yield (
        f"PyTorch {torch.__version__}'s operator samples, float32 ({chosen}: {judged}), gaudi3, lazy mode. Each is captured as a "
        "function of one op, legalised, run by the rule interpreter and compared with eager (1e-4; of drawn and uninitialised "
        "values only the types; complex results as pairs of reals). An entry counts by its worst sample."
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


def main() -> int:
    """Judges all entries and prints the table.

    Returns:
        1 if a sample was wrong or met a fault of ours, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=None, help="at most about so many samples of each entry")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(options.workers, torch.set_num_threads, (1,)) as pool:
        rows = pool.map(partial(judge_entry, limit=options.samples), range(len(ENTRIES)), chunksize=1)
    print("\n".join(table(rows, options.samples)))
    return int(any(row.worst.status >= Status.FAULT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
