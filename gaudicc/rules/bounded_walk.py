"""One walk over a graph that gives tensors of unknown length a largest one, and a count."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols, statically_known_true

from gaudicc.calling import Raise
from gaudicc.nodes import output_of, source_of, val
from gaudicc.padding.rules.pointwise import pointwise
from gaudicc.padding.sizes import SIZE_OPS, Arithmetic, expression
from gaudicc.rewriter import Rewriter
from gaudicc.rules.bounded import Number, Refused, Rows, ends, first, fit_known_length, number_dtype, values
from gaudicc.rules.bounded_forms import FORMS, NUMBERS
from gaudicc.rules.intervals import INF
from gaudicc.rules.ranges import Ranges, promises_of
from gaudicc.rules.unknown_sizes import READS, is_dynamic, selects_nothing, takes, too_tight, unknown_dims

aten = torch.ops.aten


@dataclass
class BoundingWalk:
    """One walk over a graph, in order.

    Attributes:
        rewriter: of the graph.
        constants: placeholder name -> tensor, for what never changes.
        rows: the nodes of unknown length, and what stands for them.
        numbers: the numbers that were read from tensors.
        flags: conditions on which the host raises.
        late: those that it looks at last.
        bounded: how many tensors got a largest length.
        inline: traces functions of tensors where the walk stands.
    """

    rewriter: Rewriter
    constants: dict[str, torch.Tensor]
    rows: dict[fx.Node, Rows] = field(default_factory=dict)
    numbers: dict[fx.Node, Any] = field(default_factory=dict)
    flags: list[tuple[Raise, fx.Node]] = field(default_factory=list)
    late: list[tuple[Raise, fx.Node]] = field(default_factory=list)
    bounded: int = 0

    def __post_init__(self) -> None:
        self.inline = _Inline(self)
        self.ranges = Ranges(self.constants)
        self._told = Ranges(self.constants, promises_of(self.rewriter.graph))

    def run(self) -> None:
        """Rewrites the nodes in order."""
        for node in list(self.rewriter.graph.nodes):
            self.node: fx.Node = node
            if node.op == "call_function":
                self._visit(node)
        self.node = output_of(self.rewriter.graph)
        self.flags += self.late
        self.rewriter.modified = True

    def _visit(self, node: fx.Node) -> None:
        if selects_nothing(node):
            self._empty(node)
            return
        known = any(arg in self.rows or arg in self.numbers for arg in node.all_input_nodes)
        if node in self.numbers or (not known and not is_dynamic(node)):
            return
        if node.target is aten._assert_scalar.default:
            self._assert(node)
        elif str(node.target).startswith(("aten.sym_constrain_range", "aten._assert_tensor_metadata")):
            self.rewriter.graph.erase_node(node)
        elif not isinstance(val(node), (torch.Tensor, tuple, list)):
            self.numbers[node] = self._number(node)
        else:
            self._tensor(node)

    def _empty(self, node: fx.Node) -> None:
        """In place of what selects nothing, tensors without elements."""
        results = val(node) if isinstance(val(node), (tuple, list)) else (val(node),)
        kinds = [(list(result.shape), result.dtype) for result in results]
        made = self.inline(lambda: tuple(aten.full.default(shape, 0, dtype=dtype) for shape, dtype in kinds))
        if isinstance(val(node), (tuple, list)):
            self.rewriter.replace_outputs(node, made)
        else:
            self.rewriter.replace(node, made[0])

    # -- numbers ---------------------------------------------------------------------------------------------------

    def _number(self, node: fx.Node) -> Any:
        args = [self._operand(arg) for arg in node.args]
        if node.target in READS:
            source = args[0]
            if not isinstance(source, fx.Node):
                raise Refused("a number is read from a tensor of unknown length")
            most = min(_promised(node), self._told.of(source).high)
            held = self.inline(lambda x: aten.reshape.default(x, []), source)
            return Number(held, *self.ranges.of(source), most)
        if node.target is aten.sym_size.int and isinstance(args[0], Rows):
            rows: Rows = args[0]
            is_length = args[1] % val(rows.value).dim() == rows.dim
            return Number(rows.length, 0, ends(rows.bound)[1]) if is_length else self._size(rows.value, args[1])
        if node.target is aten.sym_storage_offset.default:  # torch only asserts that it is not negative
            return Number(None, 0)
        target, args = (operator.sub, [0, *args]) if node.target is operator.neg else (node.target, args)
        if target in NUMBERS and all(isinstance(arg, (int, Number)) or _is_size(arg) for arg in args):
            return self._arithmetic(target, args)
        if node.target is torch.sym_not and isinstance(args[0], Number):
            return Number(self.inline(aten.logical_not.default, args[0].node), 0, 1)
        if node.target is torch.sym_ite and isinstance(args[0], Number):
            held = self.inline(lambda c, *t: aten.where.self(c.ne(0), *map(_as_tensor, t)), *map(_held, args))
            (low, high), (low2, high2) = map(_ends, args[1:])
            return Number(held, min(low, low2), max(high, high2))
        raise Refused("it has no form on a number read from a tensor")

    def _size(self, tensor: fx.Node, dim: int) -> Any:
        """A size that no data decides."""
        size = val(tensor).shape[dim]
        return size if isinstance(size, int) else self.rewriter.emit(aten.sym_size.int, tensor, dim, like=self.node)

    def _arithmetic(self, function: Any, args: list[Any]) -> Any:
        if all(isinstance(arg, int) for arg in args):
            return function(*args)
        if not any(isinstance(arg, Number) for arg in args):
            return self.rewriter.emit(function, *args, like=self.node)
        (low, high), (low2, high2) = (_ends(arg) for arg in args)
        name = getattr(function, "__name__", "")
        compared = {"ge": (low >= high2, high < low2), "le": (high <= low2, low > high2)}.get(name, (False, False))
        if any(compared):
            return compared[0]
        made = {"add": (low + low2, high + high2), "sub": (low - high2, high - low2)}.get(name, (-INF, INF))
        if name == "mul" and min(low, low2) >= 0 and max(high, high2) < INF:
            made = (low * low2, high * high2)
        nodes = list(map(_held, args))
        if None in nodes:
            return Number(None, *made)
        form = NUMBERS[function]
        return Number(self.inline(lambda *t: form(*map(_as_tensor, t)), *nodes), *made, _promised(self.node))

    def _assert(self, node: fx.Node) -> None:
        """A condition that torch checks at run time: dropped where it always holds, otherwise a flag."""
        condition = True if too_tight(node.args[0]) else self._operand(node.args[0])
        if isinstance(condition, Number) and condition.node is None:
            pass  # of where a view begins, which the op that makes the view has demanded
        elif isinstance(condition, Number):
            error = RuntimeError(str(node.args[1]))
            failed = self.inline(lambda c: aten.eq.Scalar(c, 0), condition.node)
            own = "Runtime assertion failed" in str(error)  # torch's, where what is eager may raise another exception
            (self.late if own else self.flags).append((Raise(error, source_of(node) or ""), failed))
        elif not condition:
            raise Refused("an assert never holds")
        self.rewriter.graph.erase_node(node)

    # -- tensors ---------------------------------------------------------------------------------------------------

    def _tensor(self, node: fx.Node) -> None:
        args, kwargs = self._operand(list(node.args)), self._operand(dict(node.kwargs))
        if node in self.rows:  # an item of an op with several results
            return
        result = val(node)
        shape = (result if isinstance(result, torch.Tensor) else result[0]).shape
        dims = unknown_dims(shape)
        if any(isinstance(arg, Number) and arg.node is None for arg in args):
            raise Refused("the offset of a view is used")
        if not isinstance(node.target, torch._ops.OpOverload) or not takes(node, shape):
            raise Refused("it has several lengths that only data knows")
        dim = dims[-1] if dims else None
        form = FORMS.get(node.target)
        if form is None and pointwise(node.target):
            result = self._pointwise(node, args, kwargs, dim)
        elif form is None:
            raise Refused("it has no form on tensors of unknown length")
        else:
            self.inline.shape, self.inline.length = shape, 0 if dim is None else shape[dim]
            self.inline.promised = INF if dim is None else ends(shape[dim])[1]
            result = form(self.inline, args, kwargs, dim)
            if isinstance(result, Rows) and dim is None:
                result = self._as_long_as(result, shape[result.dim])
        if isinstance(result, Rows):
            self.rows[node] = replace(result, symbol=str(val(node).shape[result.dim]))
            self.bounded += 1
        elif isinstance(result, tuple):
            for user in list(node.users):
                part = result[user.args[1]]  # type: ignore[index]
                if isinstance(part, Rows):
                    self.rows[user] = replace(part, symbol=str(val(user).shape[part.dim]))
                else:
                    self.rewriter.replace(user, part)
        elif any(_depends_on_data(step) for step in val(node).stride()):
            self.rewriter.restrided = True  # nothing is laid out so any more
            node.replace_all_uses_with(result)
            self.rewriter.graph.erase_node(node)
        else:
            self.rewriter.replace(node, result)

    def _as_long_as(self, rows: Rows, size: Any) -> fx.Node:
        """What data chooses, where the program goes on only if it is so long; the host raises where it is not."""
        if unknown_dims([size]) or not statically_known_true(rows.bound >= size):
            raise Refused(f"the program only goes on if it is {size}")
        known = self._emitted(size)
        differs = self.inline(lambda n, s: aten.ne.Scalar(n, s), rows.length, known)
        self.inline.demand(differs, RuntimeError(f"what is selected has to be {size} long"))
        sizes = [user for user in self.node.users if user.target is aten.sym_size.int and user.args[1] == rows.dim]
        self.numbers.update(dict.fromkeys(sizes, known))  # what torch asserts of it
        node: fx.Node = self.inline(lambda t, s: aten.slice.Tensor(t, rows.dim, 0, s), rows.value, known)
        return node

    def _emitted(self, size: int | torch.SymInt) -> int | fx.Node:
        """A size that no data decides, computed here from those of the inputs."""
        inputs = self.rewriter.graph.find_nodes(op="placeholder")
        places = {str(side): (node, dim) for node in inputs for dim, side in enumerate(getattr(val(node), "shape", ()))}
        emit = partial(self.rewriter.emit, like=self.node)
        size_of = Arithmetic(
            lambda symbol: emit(aten.sym_size.int, *places[str(symbol)]), lambda word, a, b: emit(SIZE_OPS[word], a, b)
        )
        made: int | fx.Node = size_of.build(expression(size))
        return made

    def _pointwise(self, node: fx.Node, args: Any, kwargs: Any, dim: int | None) -> Any:
        op: Any = node.target
        numbers = [arg for arg in args if isinstance(arg, Number)]
        if numbers:
            op = getattr(op.overloadpacket, "Tensor", op) if op._overloadname in ("Scalar", "Tensor") else None
            if op is None or kwargs:
                raise Refused("it takes a number read from a tensor")
            dtype = number_dtype(node, args)
            args = [
                self.inline(lambda t: aten._to_copy.default(t, dtype=dtype), arg.node)
                if isinstance(arg, Number)
                else arg
                for arg in args
            ]
        args = fit_known_length(self.inline, args)
        length = None if dim is None else first(args).length
        made = self.inline(lambda *a: op(*a, **kwargs), *values(args))
        return made if dim is None or length is None else Rows(made, dim, length)

    def _operand(self, arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            return self.rows.get(arg) or self.numbers.get(arg, arg)
        if isinstance(arg, (list, tuple)):
            return [self._operand(item) for item in arg]
        if isinstance(arg, dict):
            return {key: self._operand(item) for key, item in arg.items()}
        return arg


@dataclass
class _Inline:
    """See `bounded.Inline`."""

    walk: BoundingWalk
    promised: float = INF
    length: Any = 0
    shape: Sequence[Any] = ()

    def __call__(self, function: Any, *args: Any) -> Any:
        return self.walk.rewriter.inline(function, *args, like=self.walk.node)

    def is_at_most(self, size: Any) -> bool:
        return statically_known_true(self.length <= size)

    def range_of(self, node: fx.Node) -> tuple[float, float]:
        return self.walk.ranges.of(node)

    def demand(self, failed: fx.Node, error: Exception) -> None:
        self.walk.flags.append((Raise(error, source_of(self.walk.node) or ""), failed))


def _depends_on_data(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and bool(free_unbacked_symbols(size))


def _promised(node: fx.Node) -> float:
    """The most that the user says a number is."""
    return ends(val(node))[1] if isinstance(val(node), torch.SymInt) else INF


def _held(value: Any) -> Any:
    return value.node if isinstance(value, Number) else value


def _as_tensor(value: Any) -> Any:
    return value if isinstance(value, torch.Tensor) else aten.full.default([], value, dtype=torch.int64)


def _ends(value: Any) -> tuple[float, float]:
    if isinstance(value, fx.Node):
        return ends(val(value))
    return (value.low, value.high) if isinstance(value, Number) else (value, value)


def _is_size(arg: Any) -> bool:
    return isinstance(arg, fx.Node) and isinstance(val(arg), torch.SymInt)
