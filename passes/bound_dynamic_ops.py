"""bound-dynamic-ops: tensors whose length only data knows become tensors of their largest length, and a count."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from gaudicc.calling import Raise
from gaudicc.errors import UnsupportedOpError
from gaudicc.invariants import FUNCTIONAL, TYPED, WELL_FORMED, Invariant
from gaudicc.nodes import call_region, op_name, output_of, outputs_of, source_of, val, where
from gaudicc.padding.rules.pointwise import pointwise
from gaudicc.pipeline import Numerics, PassResult
from gaudicc.program import InputKind, OutputKind, OutputSpec, Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules.bounded import Number, Refused, Rows, ends, first, refuse_known_lengths, values
from gaudicc.rules.bounded_forms import FORMS, NUMBERS
from gaudicc.rules.ranges import INF, range_of

aten = torch.ops.aten
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_READS = (aten.item.default, aten._local_scalar_dense.default)
_HINT = "keep the full size and mask instead of selecting, or fix the sizes in dynamic_shapes"


@dataclass(frozen=True)
class BoundDynamicOps:
    """Bounds the ops whose output is as long as data says, where the program implies a largest length.

    A Gaudi replays graphs of fixed shape, and runs `nonzero` and boolean selection on the host. The largest length of what
    a mask selects is the mask's size: rows are moved to the front by a running count, and their number goes along; ops that
    would mix them with what lies behind mask it first. Numbers read by `.item()` stay tensors of no dims, asserts on them
    become flags that the host raises, and outputs are cut by the host. Where sizes are dynamic besides, a largest length is one
    of them.

        %2 = aten.nonzero(%1)    ->    %n = aten.select(aten.cumsum(%1, 0), 0, -1); %2 = aten.scatter(%0, 0, %slots, %places)

    Refuses by line an op that has no form on such tensors, a length that nothing bounds, and, beside dynamic sizes, a result of
    unknown length.
    """

    name: ClassVar[str] = "bound-dynamic-ops"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, FUNCTIONAL})
    ensures: ClassVar[frozenset[Invariant]] = frozenset()
    breaks: ClassVar[frozenset[Invariant]] = frozenset()
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def run(self, program: Program) -> PassResult:
        """Walks the root once, after inlining the bodies that hold such ops."""
        if not any(_is_dynamic(node) for _, module in program.graphs() for node in module.graph.nodes):
            return PassResult(program, False)
        _inline_regions(program.root)
        fixed = {spec.name: program.tensors[spec.source] for spec in program.inputs if spec.kind is InputKind.CONSTANT}
        walk = _Walk(Rewriter(program.root), fixed)
        try:
            bounded = walk.run(program)
        except Refused as reason:
            what = f"the size of what {op_name(walk.node)} gives depends on the values of a tensor, and {reason}"
            raise UnsupportedOpError(what, where=where(walk.node, self.name), hint=_HINT) from reason
        return PassResult(bounded, True, (f"{walk.bounded} tensors of unknown length bounded",))


def _is_dynamic(node: fx.Node) -> bool:
    value = node.meta.get("val")
    leaves = value if isinstance(value, (tuple, list)) else (value,)
    return any(_unknown_dims(leaf) or (isinstance(leaf, _SYMBOLS) and free_unbacked_symbols(leaf)) for leaf in leaves)


def _unknown_dims(value: Any) -> list[int]:
    if not isinstance(value, torch.Tensor):
        return []
    return [i for i, size in enumerate(value.shape) if isinstance(size, torch.SymInt) and free_unbacked_symbols(size)]


def _inline_regions(root: fx.GraphModule) -> None:
    """Inlines the bodies that hold such ops: their lengths are no operands of a shared body."""
    rewriter = Rewriter(root)
    for node in list(root.graph.nodes):
        if node.target is not call_region:
            continue
        body = getattr(root, str(node.args[0].target))
        _inline_regions(body)
        if any(map(_is_dynamic, body.graph.nodes)):
            rewriter.replace_outputs(node, rewriter.splice(body, node.args[1:], like=node, keep_provenance=True))
    rewriter.finish()
    read = {node.target for node in root.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in root.named_children() if name not in read]:
        delattr(root, name)


@dataclass
class _Walk:
    """One walk over a graph, in order."""

    rewriter: Rewriter
    constants: dict[str, torch.Tensor]
    rows: dict[fx.Node, Rows] = field(default_factory=dict)
    numbers: dict[fx.Node, Any] = field(default_factory=dict)
    flags: list[tuple[Raise, fx.Node]] = field(default_factory=list)
    bounded: int = 0

    def __post_init__(self) -> None:
        self._inline = _Inline(self)

    def run(self, program: Program) -> Program:
        graph = self.rewriter.graph
        for node in list(graph.nodes):
            self.node: fx.Node = node
            if node.op == "call_function":
                self._visit(node)
        self.node = output_of(graph)
        outputs = self._outputs(program)
        self.rewriter.modified = True
        self.rewriter.finish()
        calling = program.calling
        raises = (*calling.raises, *(entry for entry, _ in self.flags))
        return replace(program, outputs=outputs, calling=replace(calling, raises=raises))

    def _visit(self, node: fx.Node) -> None:
        known = any(arg in self.rows or arg in self.numbers for arg in node.all_input_nodes)
        if not known and not _is_dynamic(node):
            return
        if node.target is aten._assert_scalar.default:
            self._assert(node)
        elif str(node.target).startswith(("aten.sym_constrain_range", "aten._assert_tensor_metadata")):
            self.rewriter.graph.erase_node(node)
        elif not isinstance(val(node), (torch.Tensor, tuple, list)):
            self.numbers[node] = self._number(node)
        else:
            self._tensor(node)

    # -- numbers ---------------------------------------------------------------------------------------------------

    def _number(self, node: fx.Node) -> Any:
        args = [self._operand(arg) for arg in node.args]
        if node.target in _READS:
            low, high = range_of(args[0], self.constants)
            return Number(self._inline(lambda x: aten.reshape.default(x, []), args[0]), low, high)
        if node.target is aten.sym_size.int and isinstance(args[0], Rows):
            rows: Rows = args[0]
            is_length = args[1] % val(rows.value).dim() == rows.dim
            return Number(rows.length, 0, ends(rows.bound)[1]) if is_length else self._size(rows.value, args[1])
        if node.target is aten.sym_storage_offset.default:  # torch only asserts that it is not negative
            return Number(None, 0)
        if node.target in NUMBERS and all(isinstance(arg, (int, Number)) or _is_size(arg) for arg in args):
            return self._arithmetic(node.target, args)
        if node.target is torch.sym_not and isinstance(args[0], Number):
            return Number(self._inline(aten.logical_not.default, args[0].node), 0, 1)
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
        nodes = [arg.node if isinstance(arg, Number) else arg for arg in args]
        if None in nodes:
            raise Refused("the offset of a view is used")
        form = NUMBERS[function]
        return Number(self._inline(lambda *t: form(*map(_as_tensor, t)), *nodes), *made)

    def _assert(self, node: fx.Node) -> None:
        """A condition that torch checks at run time: dropped where it always holds, otherwise a flag."""
        condition = self._operand(node.args[0])
        if isinstance(condition, Number):
            error = RuntimeError(str(node.args[1]))
            failed = self._inline(lambda c: aten.eq.Scalar(c, 0), condition.node)
            self.flags.append((Raise(error, source_of(node) or ""), failed))
        elif not condition:
            raise Refused("an assert never holds")
        self.rewriter.graph.erase_node(node)

    # -- tensors ---------------------------------------------------------------------------------------------------

    def _tensor(self, node: fx.Node) -> None:
        args, kwargs = self._operand(list(node.args)), self._operand(dict(node.kwargs))
        if node in self.rows:  # an item of an op with several results
            return
        result = val(node)
        dims = _unknown_dims(result if isinstance(result, torch.Tensor) else result[0])
        if len(dims) > 1 or not isinstance(node.target, torch._ops.OpOverload):
            raise Refused("it has several lengths that only data knows")
        dim = dims[0] if dims else None
        form = FORMS.get(node.target)
        if form is None and pointwise(node.target):
            result = self._pointwise(node, args, kwargs, dim)
        elif form is None:
            raise Refused("it has no form on tensors of unknown length")
        else:
            if node.target in (aten.repeat_interleave.Tensor, aten.repeat_interleave.self_Tensor):
                repeats = args[node.target is aten.repeat_interleave.self_Tensor]
                kwargs = {"high": range_of(repeats, self.constants)[1] if isinstance(repeats, fx.Node) else INF}
            result = form(self._inline, args, kwargs, dim)
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
        else:
            self.rewriter.replace(node, result)

    def _pointwise(self, node: fx.Node, args: Any, kwargs: Any, dim: int | None) -> Any:
        op: Any = node.target
        numbers = [arg for arg in args if isinstance(arg, Number)]
        if numbers:
            op = getattr(op.overloadpacket, "Tensor", op) if op._overloadname in ("Scalar", "Tensor") else None
            if op is None or kwargs:
                raise Refused("it takes a number read from a tensor")
            dtype = val(node).dtype
            args = [
                self._inline(lambda t: aten._to_copy.default(t, dtype=dtype), arg.node)
                if isinstance(arg, Number)
                else arg
                for arg in args
            ]
        refuse_known_lengths(args)
        made = self._inline(lambda *a: op(*a, **kwargs), *values(args))
        return made if dim is None else Rows(made, dim, first(args).length)

    # -- outputs ---------------------------------------------------------------------------------------------------

    def _outputs(self, program: Program) -> tuple[OutputSpec, ...]:
        """What the root returns: the largest tensors, then their lengths; flags in one tensor."""
        found: list[fx.Node] = []
        specs: list[OutputSpec] = []
        flags = [failed for _, failed in self.flags]
        lengths: list[tuple[fx.Node, OutputSpec]] = []
        for value, spec in zip(outputs_of(self.rewriter.graph), program.outputs, strict=True):
            if value in self.numbers or (value in self.rows and spec.kind is not OutputKind.USER):
                raise Refused("a number read from a tensor, or a state of unknown length, is returned")
            if spec.kind is OutputKind.FLAG:
                flags = [*self._inline(lambda t: aten.unbind.int(t, 0), value), *flags]
                continue
            if value in self.rows:
                rows = self.rows[value]
                if program.dimensions:
                    raise Refused("it is a result, and sizes are dynamic besides")
                output = sum(known.kind is OutputKind.USER for known in specs)
                lengths.append((rows.length, OutputSpec(OutputKind.LENGTH, f"{output}:{rows.dim}")))
            found.append(self.rows[value].value if value in self.rows else value)
            specs.append(spec)
        if flags:
            lengths.append((self._inline(lambda *t: aten.stack.default(list(t)), *flags), OutputSpec(OutputKind.FLAG)))
        output_of(self.rewriter.graph).args = ((*found, *(node for node, _ in lengths)),)
        return (*specs, *(spec for _, spec in lengths))

    # -- both ------------------------------------------------------------------------------------------------------

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

    walk: _Walk

    def __call__(self, function: Any, *args: Any) -> Any:
        return self.walk.rewriter.inline(function, *args, like=self.walk.node)

    def demand(self, failed: fx.Node, error: Exception) -> None:
        self.walk.flags.append((Raise(error, source_of(self.walk.node) or ""), failed))


def _as_tensor(value: Any) -> Any:
    return value if isinstance(value, torch.Tensor) else aten.full.default([], value, dtype=torch.int64)


def _ends(value: Any) -> tuple[float, float]:
    if isinstance(value, fx.Node):
        return ends(val(value))
    return (value.low, value.high) if isinstance(value, Number) else (value, value)


def _is_size(arg: Any) -> bool:
    return isinstance(arg, fx.Node) and isinstance(val(arg), torch.SymInt)
