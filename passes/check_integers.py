"""check-integers: every int64 value is proved to fit the 32 bits that a Gaudi computes it in, or checked."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import fx
from torch._decomp import decomposition_table

from gaudicc.calling import Raise
from gaudicc.errors import NumericsError, UnsupportedOpError, Where
from gaudicc.invariants import FUNCTIONAL, TYPED, WELL_FORMED, Invariant
from gaudicc.loop_flags import carry_flag
from gaudicc.nodes import CALLS, call_loop, op_name, output_of, outputs_of, source_of, val, where
from gaudicc.pipeline import Numerics, PassResult
from gaudicc.program import OutputKind, Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules.flags import with_flags
from gaudicc.rules.integer_checks import checked_form
from gaudicc.rules.integer_ranges import IntegerRanges, fills_beyond
from gaudicc.rules.intervals import Interval
from gaudicc.rules.wide_integers import WideIntegers
from gaudicc.verify import differs, in_range

aten = torch.ops.aten
_HINT = "compute it in float32 or int32, keep its operands small (torch.clamp, %), or declare what the arguments hold (ranges)"


@dataclass(frozen=True)
class CheckIntegers:
    """Proves that int64 values fit 32 bits, and checks at run time those that it cannot prove.

    In lazy mode a Gaudi stores and computes int64 in 32 bits, and what does not fit wraps without a word. Sizes, constants,
    declared arguments and what a tensor is used to index bound almost every integer of a model. The others get a second
    computation in floats, and a flag that the host raises as an OverflowError at the user's line. A remainder of what leaves
    32 bits, as hashes take it, is computed exactly in digits of 8 bits. Where 64 bits are kept, nothing wraps and no flag is set.

        %2 = aten.mul.Tensor(%x, %y)    ->    %2 = aten.mul.Tensor(%x, %y); %5 = aten.mul.Tensor(float(%x), float(%y))
                                              %9 = aten.any(aten.ge.Scalar(aten.abs(%5 - float(%2)), 2**31))  (an output)

    Refuses an op of int64 results that nothing bounds and that has no checked form.

    Attributes:
        ranges: `(argument, lowest, highest)`: what integer arguments hold; checked in the graph where a proof rests on it.
        kept: likewise of arguments and state that the caller itself keeps so; not checked again.
    """

    ranges: tuple[tuple[str, int, int], ...] = (("attention_mask", 0, 1),)
    kept: tuple[tuple[str, int, int], ...] = ()

    name: ClassVar[str] = "check-integers"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, FUNCTIONAL})
    ensures: ClassVar[frozenset[Invariant]] = frozenset()
    breaks: ClassVar[frozenset[Invariant]] = frozenset()
    numerics: ClassVar[Numerics] = Numerics.BITWISE

    def run(self, program: Program) -> PassResult:
        """Looks at all graphs; rewrites those with a value that is not proved."""
        kept = {path: Interval(low, high) for path, low, high in self.kept}
        ranges = _ranges(program, kept)
        apart = 0
        while count := sum(self._taken_apart(module, ranges) for _, module in list(program.graphs())):
            apart += count
            ranges = _ranges(program, kept)
        digits = WideIntegers(program, ranges)
        program = digits.run() if ranges.open else program
        if digits.rewritten:
            ranges, apart = _ranges(program, kept), apart + digits.rewritten
        declared = self._declared(program) if ranges.open else {}
        if declared:
            told = _ranges(program, {path: known for path, (_, known) in declared.items()} | kept)
            declared = declared if len(told.open) < len(ranges.open) else {}
            ranges = told if declared else ranges
        if not ranges.seen:
            return PassResult(program, False)
        proved = f"{ranges.seen - len(ranges.open)} of {ranges.seen} int64 results proved to fit 32 bits"
        if not ranges.open and not declared:
            return PassResult(program, bool(apart), (proved,))
        flags = self._checked(program, ranges)
        flags += self._arguments(program, declared)
        checked = f"{len(flags)} checks added" if flags else ""
        return PassResult(with_flags(program, flags), True, tuple(filter(None, (proved, checked))))

    def compare(self, before: Program, after: Program) -> None:
        """Compares all outputs but the flags on the example.

        Raises:
            NumericsError: an output differs.
        """
        inputs, old = in_range(before, before.example)
        new = after.run({**after.example, **inputs})
        for spec, a, b in zip(before.outputs, old, new, strict=False):
            if spec.kind is not OutputKind.FLAG and (difference := differs(a, b, bitwise=True)):
                raise NumericsError(f"pass {self.name} changed an output: {difference}", where=Where(stage=self.name))

    def _declared(self, program: Program) -> dict[str, tuple[str, Interval]]:
        """Path of an argument -> its placeholder and what its int64 values are declared to be."""
        said = {path: Interval(low, high) for path, low, high in self.ranges}
        holders = {node.name: node for node in program.root.graph.nodes if node.op == "placeholder"}
        return {
            spec.source: (spec.name, said[spec.source])
            for spec in program.user_inputs()
            if spec.source in said and getattr(val(holders[spec.name]), "dtype", None) is torch.int64
        }

    def _taken_apart(self, module: fx.GraphModule, ranges: IntegerRanges) -> int:
        """Ops of which nothing is known become their parts, where PyTorch says what those are; returns how many did."""
        rewriter, count = Rewriter(module), 0
        unknown = [node for node in module.graph.nodes if node in ranges.open and ranges.open[node] is None]
        for node in unknown:
            parts = decomposition_table.get(node.target)
            if parts is None or checked_form(node, 0) is not None:
                continue
            run = lambda args, kwargs, parts=parts: parts(*map(_own, args), **kwargs)  # noqa: E731
            result = rewriter.inline(run, node.args, dict(node.kwargs), like=node, composites=False)
            rewriter.replace_outputs(node, result) if isinstance(result, tuple) else rewriter.replace(node, result)
            count += 1
        rewriter.finish()
        return count

    def _checked(self, program: Program, ranges: IntegerRanges) -> list[_Flag]:
        """Bodies first: what one of them checks is a result more of each of its calls."""
        flags: dict[str, list[_Flag]] = {}
        for name, module in list(program.graphs()):
            rewriter = Rewriter(module)
            found = [self._check(rewriter, node, ranges) for node in list(module.graph.nodes) if node in ranges.open]
            for call in [node for node in module.graph.nodes if node.target in CALLS]:
                found += _handed_on(rewriter, call, flags.get(str(call.args[0].target), []))
            flags[name] = found
            if found and module is not program.root:
                output = output_of(module.graph)
                output.args = ((*outputs_of(module.graph), *(flag.node for flag in found)),)
                rewriter.finish()
        return flags["root"]

    def _check(self, rewriter: Rewriter, node: fx.Node, ranges: IntegerRanges) -> _Flag:
        entries = ranges.entries(node).high
        form = checked_form(node, entries)
        if form is None:
            what = f"nothing bounds the int64 values of {op_name(node)}"
            if fills_beyond(node):
                what = f"{op_name(node)} fills with a number that does not fit 32 bits"
            raise UnsupportedOpError(
                f"{what}, and the target computes int64 in them", where=where(node, self.name), hint=_HINT
            )
        source = source_of(node) or ""
        keys = list(node.kwargs)

        def run(*given: Any) -> Any:
            args = given[: len(given) - len(keys)]
            return form(*args, **dict(zip(keys, given[len(args) :], strict=True)))

        result, flag = rewriter.inline(run, *node.args, *node.kwargs.values(), like=node)
        error = OverflowError(f"a value of {op_name(node)} leaves the 32 bits in which a Gaudi computes int64")
        rewriter.replace(node, result)
        return _Flag(flag, Raise(error, source))

    def _arguments(self, program: Program, declared: dict[str, tuple[str, Interval]]) -> list[_Flag]:
        """One check for each argument that is declared."""
        rewriter = Rewriter(program.root)
        flags = []
        for path, (name, (low, high)) in declared.items():
            holder = next(node for node in program.root.graph.nodes if node.name == name)
            like = next(node for node in program.root.graph.nodes if node.op != "placeholder")
            run = lambda x, low=low, high=high: aten.any.default(aten.ne.Tensor(aten.clamp.default(x, low, high), x))  # noqa: E731
            error = ValueError(f"{path} is declared to hold {low} to {high}, and holds something else")
            flags.append(_Flag(rewriter.inline(run, holder, like=like), Raise(error, path)))
        return flags


def _ranges(program: Program, declared: Mapping[str, Interval]) -> IntegerRanges:
    found = IntegerRanges(program, declared)
    found.run()
    return found


def _own(arg: Any) -> Any:
    """A list that may be written to, as some of PyTorch's decompositions do."""
    return list(arg) if isinstance(arg, (list, tuple)) else arg


class _Flag(NamedTuple):
    """One check: the node of its flag, bool `[]`, and what is raised where it is set."""

    node: fx.Node
    meaning: Raise


def _handed_on(rewriter: Rewriter, call: fx.Node, flags: Sequence[_Flag]) -> list[_Flag]:
    """The flags of a body as results of one of its calls; of a loop, one for each trip."""
    found = []
    for flag in flags:
        place = len(call.meta["val"])
        if call.target is call_loop and call.args[1] is None:
            carry_flag(rewriter, call, getattr(rewriter.module, str(call.args[0].target)))  # type: ignore[union-attr]
            item = rewriter.emit(operator.getitem, call, place, like=output_of(rewriter.graph))
            found.append(_Flag(item, flag.meaning))
            continue
        like = val(flag.node)
        with like.fake_mode:
            shape = (val(call.args[1]) if isinstance(call.args[1], fx.Node) else call.args[1],)
            made = like.new_empty(shape if call.target is call_loop else ())
        call.meta["val"] = (*call.meta["val"], made)
        item = rewriter.emit(operator.getitem, call, place, like=output_of(rewriter.graph))
        if call.target is call_loop:
            item = rewriter.inline(aten.any.default, item, like=output_of(rewriter.graph))
        found.append(_Flag(item, flag.meaning))
    return found
