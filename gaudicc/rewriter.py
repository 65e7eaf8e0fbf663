"""The only way passes create nodes: each new node carries the source line, module path and a fake value.

A rewrite is written as plain PyTorch (`inline`), traced on the fake values of the nodes it replaces and
spliced in, so that a rule reads like the code a user would have written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from gaudicc.errors import InternalError, UnsupportedOpError
from gaudicc.fake_results import FakeResults, call_key, unshared
from gaudicc.fake_values import fake_mode_of, fakes, guess, trace
from gaudicc.nodes import op_name, output_of, where, writes

_CARRIED = ("stack_trace", "nn_module_stack", "slice", "merge")


class Rewriter:
    """Rewrites one graph.

    Args:
        module: the graph module to rewrite in place.

    Attributes:
        modified: whether anything was changed so far.
        restrided: whether a replacement is laid out otherwise than what it replaces, so that views of it have other strides.
        results: what ops gave so far; may be shared with the rewriter of a copy.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.graph = module.graph
        self.modified = False
        self.restrided = False
        self.results = FakeResults()
        self._traced: dict[Any, fx.GraphModule] = {}

    def emit(self, op: Any, *args: Any, like: fx.Node, **kwargs: Any) -> fx.Node:
        """Creates one call before `like`, with its provenance and a fake value.

        Args:
            op: an op overload, `operator.getitem` or size arithmetic.
            *args: nodes and literals.
            like: the node whose source line and module path the new one carries.
            **kwargs: nodes and literals.

        Returns:
            The new node.
        """
        with self.graph.inserting_before(like):
            node = self.graph.call_function(op, args, kwargs)
        self._carry(node, like)
        mode = fake_mode_of(self.graph)
        with mode, torch.no_grad(), enable_python_dispatcher():
            node.meta["val"] = self.results.of(op, fakes(args), fakes(kwargs))
        self.modified = True
        return node

    def inline(self, function: Callable[..., Any], *args: Any, like: fx.Node, composites: bool = True) -> Any:
        """Traces `function` on the fake values of `args` and splices the result in before `like`.

        Args:
            function: plain PyTorch; may return a tensor or a tuple of tensors.
            *args: nodes, or literals (passed to the function as they are), or lists of these.
            like: the node that the new nodes stand for.
            composites: keep composite ops whole; otherwise every one is broken into its parts.

        Returns:
            The node, or tuple of nodes, that `function` returned.
        """
        unique, key = _nodes_of(args), None
        if isinstance(function, FunctionType) and function.__closure__ is None:  # calls alike have one trace
            places = fx.map_arg(args, lambda node: ("node", unique.index(node)))
            key = call_key(function, composites, places, fakes(unique))
        traced = None if key is None else self._traced.get(key)
        if traced is None:
            traced, _ = self.preview(function, *args, composites=composites)
            if key is not None:
                self._traced[key] = traced
        return self.splice(traced, unique, like=like)

    def preview(
        self, function: Callable[..., Any], *args: Any, composites: bool = True
    ) -> tuple[fx.GraphModule, list[fx.Node]]:
        """What `inline` would splice in: the traced graph, and the node for each of its placeholders."""
        unique = _nodes_of(args)

        def on_values(*values: Any) -> Any:
            known = dict(zip(unique, values, strict=True))
            result = function(*fx.map_arg(args, known.__getitem__))
            return tuple(result) if isinstance(result, (tuple, list)) else result  # a named tuple would become a node

        mode = fake_mode_of(self.graph)
        return trace(on_values, [node.meta["val"] for node in unique], mode, composites=composites), unique

    def splice(
        self, traced: fx.GraphModule, operands: Iterable[Any], *, like: fx.Node, keep_provenance: bool = False
    ) -> Any:
        """Copies the body of `traced` before `like`, its placeholders replaced by `operands`.

        Args:
            traced: the graph to copy in.
            operands: one node or literal per placeholder.
            like: the node that the copied nodes stand for.
            keep_provenance: keep the source lines of `traced` (inlined user code) instead of those of `like`.

        Returns:
            What `traced` returns, in terms of this graph.

        Raises:
            InternalError: the traced graph holds a tensor constant, which a bundle could not name.
        """
        traced.graph.eliminate_dead_code()
        values: dict[fx.Node, Any] = {}
        feed = iter(operands)
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(feed)
            elif node.op == "call_function":
                with self.graph.inserting_before(like):
                    copied = self.graph.node_copy(node, values.__getitem__)
                if not keep_provenance:
                    copied.meta = {"val": unshared(node.meta.get("val"))}  # a check of errors has no result
                    self._carry(copied, like)
                values[node] = copied
            elif node.op != "output":
                raise InternalError(f"a rewrite must not hold {node.op} nodes (found {node.target})")
        self.modified = True
        result = fx.map_arg(output_of(traced.graph).args[0], values.__getitem__)
        return tuple(result) if isinstance(result, list) else result

    def replace(self, old: fx.Node, new: Any) -> None:
        """Lets every user of `old` read `new` instead, and erases `old`.

        Users were typed with the strides of `old`, so a `new` laid out otherwise is copied to that layout first. Where
        `old` was a slice of something larger, the copy has no gaps: see `restrided`.

        Args:
            old: the node to remove.
            new: a node, or a literal number for a size.

        Raises:
            InternalError: `new` has another shape or dtype.
        """
        if isinstance(new, fx.Node):
            if old.users:
                new = self._laid_out_like(old, new)
                self.restrided |= strides_text(old.meta["val"]) != strides_text(new.meta["val"])
            old.replace_all_uses_with(new)
        else:
            for user in list(old.users):
                swap = lambda node: new if node is old else node  # noqa: E731
                user.args = fx.map_arg(user.args, swap)
                user.kwargs = fx.map_arg(user.kwargs, swap)
        self.graph.erase_node(old)
        self.modified = True

    def replace_outputs(self, old: fx.Node, new: tuple[Any, ...]) -> None:
        """Replaces a node with several results: its `getitem` users read the matching entry of `new`.

        Raises:
            UnsupportedOpError: a result is read that `new` lacks.
        """
        for user in list(old.users):
            index = int(user.args[1])  # type: ignore[arg-type]
            if index >= len(new):
                raise UnsupportedOpError(f"result {index} of {op_name(old)} has no form of its own", where=where(old))
            self.replace(user, new[index])
        self.graph.erase_node(old)
        self.modified = True

    def take(self, other: Rewriter) -> None:
        """Puts the graph of another rewriter, made of a copy of this one's, in place of its own."""
        self.module.graph = self.graph = other.graph
        self.modified, self.restrided = self.modified or other.modified, self.restrided or other.restrided

    def finish(self) -> bool:
        """Removes dead nodes and recompiles; returns whether the graph was changed."""
        if self.modified:
            drop_dead_nodes(self.graph)
            self.module.recompile()
        return self.modified

    def _laid_out_like(self, old: fx.Node, new: fx.Node) -> fx.Node:
        before, after = old.meta["val"], new.meta["val"]
        if not isinstance(before, torch.Tensor):
            return new
        ranks_differ = before.dim() != after.dim()
        if before.dtype != after.dtype or ranks_differ or any(map(_known_to_differ, before.shape, after.shape)):
            raise InternalError(
                f"{new.target} gives {shape_text(after)} in place of {shape_text(before)}", where=where(old)
            )
        if strides_text(before) == strides_text(after):
            return new
        # Outermost dim first; sizes of 1 have a stride without meaning.
        order = sorted(range(before.dim()), key=lambda dim: guess(before.stride(dim)), reverse=True)
        back = [order.index(dim) for dim in range(before.dim())]
        aten = torch.ops.aten
        moved = self.emit(aten.permute.default, new, order, like=old)
        copied = self.emit(aten.clone.default, moved, like=old, memory_format=torch.contiguous_format)
        return self.emit(aten.permute.default, copied, back, like=old)

    def _carry(self, node: fx.Node, like: fx.Node) -> None:
        for key in _CARRIED:
            if key in like.meta:
                node.meta[key] = like.meta[key]


def _nodes_of(args: Any) -> list[fx.Node]:
    flat: list[fx.Node] = []
    fx.map_arg(args, flat.append)
    return list(dict.fromkeys(flat))


def strides_text(value: Any) -> tuple[str, ...]:
    """Strides for comparison: symbolic ones are equal if they are written alike."""
    return tuple(str(step) for step in value.stride()) if isinstance(value, torch.Tensor) else ()


def drop_dead_nodes(graph: fx.Graph) -> bool:
    """Erases nodes without users, except placeholders, the output, mutations and assertions.

    Returns:
        Whether anything was erased.
    """
    erased = False
    for node in reversed(list(graph.nodes)):
        if node.users or node.op in ("placeholder", "output") or _has_effect(node):
            continue
        graph.erase_node(node)
        erased = True
    return erased


def _has_effect(node: fx.Node) -> bool:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return writes(node) or target in _EFFECTS
    return isinstance(target, torch._ops.HigherOrderOperator)


# Asserts read on the host are the model's own; they are turned into flags by capture, never dropped in silence.
_EFFECTS = {torch.ops.aten._assert_async.msg, torch.ops.aten._assert_scalar.default}


def _known_to_differ(a: Any, b: Any) -> bool:
    """Whether two sizes differ on the example; of data-dependent sizes nothing is known."""
    known = all(isinstance(size, int) or size.node.hint is not None for size in (a, b))
    return known and guess(a) != guess(b)


def shape_text(value: Any, names: Mapping[str, str] | None = None) -> str:
    """A value's type as printed, e.g. `bf16[1, 32, S, 128]`; sizes are written with the user's names."""
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(size_text(size, names) for size in value.shape)
        return f"{_DTYPES.get(value.dtype, str(value.dtype).removeprefix('torch.'))}[{sizes}]"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(shape_text(item, names) for item in value)})"
    return {torch.SymInt: "int", torch.SymFloat: "float", torch.SymBool: "bool"}.get(type(value), type(value).__name__)


def size_text(size: Any, names: Mapping[str, str] | None = None) -> str:
    """One size as printed: a number, or an expression over named sizes."""
    text = str(size)
    for symbol, name in (names or {}).items():
        text = text.replace(symbol, name)
    return text


_DTYPES = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
    torch.complex64: "c64",
    torch.complex128: "c128",
}
