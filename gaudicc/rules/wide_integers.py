"""int64 that leaves 32 bits on the way and comes back by a remainder: computed exactly, in digits of 8 bits.

Hashes of tokens multiply by large primes, let the sum wrap in 64 bits, and take the remainder by the size of a table. No
check can save them: they leave 32 bits at every call. Eight digits of a number modulo 2**64, each in a tensor of its own,
are multiplied and added by hand as on paper, and no value on the way leaves 32 bits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import count, zip_longest
from typing import Any, cast

import torch
from torch import Tensor, fx

from gaudicc.nodes import is_op, val
from gaudicc.program import FOLDED, InputKind, InputSpec, Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules.integer_ranges import IntegerRanges
from gaudicc.rules.intervals import INT32, Interval

aten = torch.ops.aten
DIGITS = 8
BASE = 256
MOST_MODULUS = 2**20
"""Beyond it the sum of eight digits, each times a remainder, would leave 32 bits itself."""
_MOST_SUMMED = 2**20
_MOST_FOLDED = 2**17

Digits = list[Any]  # of int64 tensors that hold 0 to 255, the lowest first; those that are missing are 0


@dataclass
class WideIntegers:
    """Rewrites the remainders in a program's root whose operands may leave 32 bits.

    Attributes:
        program: its int64 constants are known.
        ranges: of it, computed.
        rewritten: how many remainders there were.
    """

    program: Program
    ranges: IntegerRanges
    rewritten: int = 0
    _specs: list[InputSpec] = field(default_factory=list)
    _folded: set[fx.Node] = field(default_factory=set)

    def run(self) -> Program:
        """Returns the program, its root rewritten, with the digits of constants among its inputs."""
        self._held = {
            spec.name: self.program.tensors[spec.source]
            for spec in self.program.inputs
            if spec.kind is InputKind.CONSTANT
        }
        self._rewriter = Rewriter(self.program.root)
        for node in self.program.root.graph.find_nodes(op="call_function", target=aten.remainder.Scalar):
            modulus = node.args[1]
            if isinstance(modulus, int) and 0 < modulus <= MOST_MODULUS and val(node).dtype is torch.int64:
                self._remainder(node, modulus)
        if not self.rewritten:
            return self.program
        self._rewriter.finish()
        return replace(self.program, inputs=(*self._specs, *self._read_inputs()))

    def _remainder(self, node: fx.Node, modulus: int) -> None:
        wide: Any = node.args[0]
        leaves: dict[fx.Node, fx.Node] = {}
        if not self._leaves_32_bits(wide) or not self._collect(wide, leaves):
            return

        def run(*given: Tensor) -> Tensor:
            known = dict(zip(leaves, given, strict=True))
            return _modulo(self._digits(wide, known), modulus)

        made = self._rewriter.inline(run, *leaves.values(), like=node)
        self._rewriter.replace(node, made)
        self.rewritten += 1

    def _leaves_32_bits(self, node: Any) -> bool:
        if not isinstance(node, fx.Node):
            return False
        value = self._value(node)
        return node in self.ranges.open if value is None else _is_wide(value)

    def _collect(self, node: Any, leaves: dict[fx.Node, fx.Node]) -> bool:
        """Finds what an expression is made of, each with the node that it is read from; False where it has no digits."""
        if not isinstance(node, fx.Node):
            return isinstance(node, int) and not isinstance(node, bool)
        if not isinstance(val(node), Tensor) or val(node).dtype not in (torch.int64, torch.int32):
            return False
        if node in leaves:
            return True
        value = self._value(node)
        if value is not None and _is_wide(value):
            leaves[node] = self._constant(value, node)
            self._folded.add(node)
        elif node not in self.ranges.open:
            leaves[node] = node
        elif node.target in _SUMS:
            return val(node.args[0]).numel() <= _MOST_SUMMED and self._collect(node.args[0], leaves)  # type: ignore[arg-type]
        elif node.target not in _OPS or node.kwargs:
            return False
        else:
            return all(self._collect(arg, leaves) for arg in node.args)
        return True

    def _digits(self, node: Any, known: Mapping[fx.Node, Tensor]) -> Digits:
        if not isinstance(node, fx.Node):
            return _of_number(node)
        if node in known:
            if node in self._folded:
                return [aten.select.int(known[node], 0, place) for place in range(DIGITS)]
            return _of_small(known[node], self.ranges.held.get(node, INT32))
        if node.target in _SUMS:
            return _carried([_summed(node, digit) for digit in self._digits(node.args[0], known)])
        return _OPS[node.target](*(self._digits(arg, known) for arg in node.args))

    def _value(self, node: fx.Node) -> Tensor | None:
        """What a node computes of constants, in 64 bits; None where it reads anything else."""
        if node.name in self._held:
            return self._held[node.name]
        if node.op == "placeholder" or not is_op(node) or not isinstance(val(node), Tensor):
            return None
        op, size = cast(torch._ops.OpOverload, node.target), val(node).numel()
        if torch.Tag.nondeterministic_seeded in op.tags or not isinstance(size, int) or size > _MOST_FOLDED:
            return None
        values = {arg: self._value(arg) for arg in node.all_input_nodes}
        if any(value is None for value in values.values()):
            return None
        args: Any = fx.map_arg(node.args, values.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, values.__getitem__)
        value: Tensor = op(*args, **kwargs)
        self._held[node.name] = value
        return value

    def _constant(self, value: Tensor, node: fx.Node) -> fx.Node:
        """The digits of a constant, `[8, ...]`, as an input of the root."""
        digits = torch.stack([(value >> 8 * place) & (BASE - 1) for place in range(DIGITS)])
        source = next(name for i in count() if (name := f"{FOLDED}{i}") not in self.program.tensors)
        graph = self._rewriter.graph
        with graph.inserting_before(next(iter(graph.nodes))):
            placeholder = graph.placeholder(source.replace(".", "_"))
        with val(node).fake_mode:
            placeholder.meta["val"] = torch.empty(digits.shape, dtype=torch.int64)
        self.program.tensors[source] = digits
        self._specs.insert(0, InputSpec(placeholder.name, InputKind.CONSTANT, source))
        return placeholder

    def _read_inputs(self) -> list[InputSpec]:
        """The inputs but for constants that nobody reads any more: what they hold may not fit the device."""
        holders = {node.name: node for node in self._rewriter.graph.find_nodes(op="placeholder")}
        kept = []
        for spec in self.program.inputs:
            if spec.kind is InputKind.CONSTANT and not holders[spec.name].users:
                self._rewriter.graph.erase_node(holders[spec.name])
                continue
            kept.append(spec)
        self.program.root.recompile()
        return kept


def _is_wide(value: Tensor) -> bool:
    if value.dtype is not torch.int64 or not value.numel():
        return False
    low, high = (int(end) for end in value.aminmax())
    return not Interval(low, high).within(INT32)


def _of_number(number: int) -> Digits:
    digits = [number >> 8 * place & (BASE - 1) for place in range(DIGITS)]
    return [digit or None for digit in digits]


def _of_small(x: Tensor, held: Interval) -> Digits:
    """Of values that fit 32 bits; two's complement where they may be negative."""
    x = x if x.dtype is torch.int64 else aten._to_copy.default(x, dtype=torch.int64)
    places = 4 if held.low < 0 else max((int(held.high).bit_length() + 7) // 8, 1)
    digits = [_low(x if not place else aten.bitwise_right_shift.Tensor_Scalar(x, 8 * place)) for place in range(places)]
    if held.low >= 0:
        return [*digits, *[None] * (DIGITS - places)]
    sign = _low(aten.bitwise_right_shift.Tensor_Scalar(x, 31))
    return [*digits, *[sign] * (DIGITS - places)]


def _low(x: Tensor) -> Tensor:
    return aten.bitwise_and.Scalar(x, BASE - 1)  # type: ignore[no-any-return]


def _carried(columns: list[Any]) -> Digits:
    """Digits of columns that hold more than a digit, or less than nothing; what leaves 64 bits is dropped."""
    digits: Digits = []
    carry: Any = None
    for column in columns:
        total = _plus(column, carry)
        if isinstance(total, Tensor):
            digits.append(_low(total))
            carry = aten.bitwise_right_shift.Tensor_Scalar(total, 8)
        else:
            digits.append(None if total is None else total & (BASE - 1) or None)
            carry = None if total is None else total >> 8 or None
    return digits


def _summed(node: fx.Node, digit: Any) -> Any:
    """What a sum makes of one digit, which is a number where it is the same in all entries."""
    if isinstance(digit, int):
        return digit * (val(node.args[0]).numel() // max(val(node).numel(), 1))  # type: ignore[arg-type]
    return None if digit is None else node.target(digit, *node.args[1:])  # type: ignore[operator]


def _plus(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b


def _added(a: Digits, b: Digits) -> Digits:
    return _carried([_plus(x, y) for x, y in zip_longest(a, b)])


def _negated(a: Digits) -> Digits:
    return _carried([None if x is None else -x for x in a])


def _subtracted(a: Digits, b: Digits) -> Digits:
    return _added(a, _negated(b))


def _multiplied(a: Digits, b: Digits) -> Digits:
    columns: list[Any] = [None] * DIGITS
    for i, x in enumerate(a):
        for j, y in enumerate(b[: DIGITS - i]):
            if x is not None and y is not None:
                columns[i + j] = _plus(columns[i + j], x * y)
    return _carried(columns)


def _modulo(digits: Digits, modulus: int) -> Tensor:
    """The remainder of a number in two's complement, with the sign of the modulus."""
    terms = [digit * (BASE**place % modulus) for place, digit in enumerate(digits) if isinstance(digit, Tensor)]
    number = sum(digit << 8 * place for place, digit in enumerate(digits) if isinstance(digit, int))
    if isinstance(digits[-1], Tensor):
        negative = aten.bitwise_right_shift.Tensor_Scalar(digits[-1], 7)
        terms.append(negative * (-(BASE**DIGITS) % modulus))
    total = reduce(operator.add, terms) + number % modulus
    return aten.remainder.Scalar(total, modulus)  # type: ignore[no-any-return]


_OPS: dict[Any, Callable[..., Digits]] = {
    aten.mul.Tensor: _multiplied, aten.mul.Scalar: _multiplied, aten.add.Tensor: _added, aten.add.Scalar: _added,
    aten.sub.Tensor: _subtracted, aten.sub.Scalar: _subtracted, aten.neg.default: _negated,
}  # fmt: skip
_SUMS = (aten.sum.default, aten.sum.dim_IntList)
