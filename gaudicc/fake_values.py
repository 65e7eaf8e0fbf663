"""Fake values: a PyTorch function traced on them to ATen, and a graph's values recomputed from new ones of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import fx
from torch._C import DispatchKey
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental import _config as symbolic_config
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from gaudicc.errors import InternalError, UnsupportedOpError, Where
from gaudicc.fake_views import reshapes_for_all_sizes
from gaudicc.nodes import call_loop, call_region, loop_operands, loop_values, output_of, writes


def ones_are_sizes() -> AbstractContextManager[Any]:
    """Stops tracing from taking a dynamic size for at least 2, which answers `x.shape[0] == 1` for every size.

    A size of 1 or 2 would be taken for 2. torch before 2.8 has no such switch.
    """
    if not hasattr(symbolic_config, "backed_size_oblivious"):
        return nullcontext()
    return symbolic_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined, no-any-return]


def fake_mode_of(graph: fx.Graph) -> FakeTensorMode:
    """The fake mode that all values of a graph belong to.

    Raises:
        InternalError: no node has a fake tensor.
    """
    for node in graph.nodes:
        value = node.meta.get("val")
        for leaf in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(leaf, FakeTensor):
                return leaf.fake_mode
    raise InternalError("a graph without any tensor cannot be rewritten")


def fakes(arg: Any) -> Any:
    """Replaces every node in an argument by its fake value."""
    return fx.map_arg(arg, lambda node: node.meta["val"])


def trace(
    function: Callable[..., Any], values: Iterable[Any], mode: FakeTensorMode, *, composites: bool = True
) -> fx.GraphModule:
    """Traces a PyTorch function on fake values to ATen.

    Args:
        function: takes `values` as positional arguments.
        values: fake tensors, SymInts or plain Python values of `mode`.
        mode: the fake mode of the surrounding graph.
        composites: keep composite ops whole; otherwise every one is broken into its parts.

    Returns:
        A graph with one placeholder per value; nodes carry `val`.

    Raises:
        UnsupportedOpError: what is traced depends on a decision about a dynamic size.
    """
    operands = list(values)
    known = len(mode.shape_env.guards) if mode.shape_env is not None else 0
    # The fused CPU kernels of attention are no parts that another device could run.
    with mode, torch.no_grad(), enable_python_dispatcher(), sdpa_kernel(SDPBackend.MATH), reshapes_for_all_sizes():
        follow = partial(make_fx, tracing_mode="real", pre_dispatch=composites)
        traced = follow(function)(*operands)
        if prims := {node.target for node in traced.graph.nodes if _is_prim(node)}:
            # PyTorch's decompositions may end in primitives that only its own compilers know; in eager these are ATen calls.
            table = {prim: partial(prim._op_dk, DispatchKey.CompositeExplicitAutograd) for prim in prims}
            follow = partial(follow, decomposition_table=table)
            traced = follow(function)(*operands)
        if any(map(writes, traced.graph.nodes)):  # parts of PyTorch's composites write to their own intermediates
            traced = follow(dispatch_functionalize(function))(*operands)
    guards = mode.shape_env.guards[known:] if mode.shape_env is not None else []
    if decided := [guard.expr for guard in guards if _chooses(guard)]:
        raise UnsupportedOpError(
            f"its parts are other ones unless {decided[0]}, which PyTorch decided by the example's sizes",
            hint="make that size static, or write the line with simpler ops",
        )
    return traced


# Where torch decides on sizes to tell the layout of one op's result, which every bucket computes anew.
_LAYOUTS = ("fake_impls.py", "fake_tensor.py", "_meta_registrations.py")


def _chooses(guard: Any) -> bool:
    """Whether a decision on sizes may have chosen between ops. torch before 2.7 does not say where one was taken."""
    place = getattr(getattr(guard, "sloc", None), "framework_loc", None)
    return place is not None and not place.filename.endswith(_LAYOUTS) and "contiguous" not in place.name


def _is_prim(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "prims"


def propagate(module: fx.GraphModule, values: Iterable[Any], mode: FakeTensorMode) -> tuple[Any, ...]:
    """Recomputes the fake value of every node from new values of the placeholders.

    Region bodies are propagated once per distinct set of operand shapes: their own values follow from their call sites.

    Args:
        module: the graph; its nodes' `val` are overwritten.
        values: one fake value per placeholder.
        mode: the fake mode of `values`.

    Returns:
        The values of the outputs.
    """
    feed = iter(values)
    known: dict[fx.Node, Any] = {}
    memo: dict[Any, tuple[Any, ...]] = {}
    # Nobody binds the sizes that an op's own parts invent on the way, as those of `repeat_interleave` do.
    ignoring = mode.shape_env.ignore_fresh_unbacked_symbols() if mode.shape_env is not None else nullcontext()
    with mode, torch.no_grad(), enable_python_dispatcher(), ignoring:
        for node in module.graph.nodes:
            if node.op == "placeholder":
                known[node] = next(feed)
            elif node.op == "get_attr":
                known[node] = getattr(module, str(node.target))
            elif node.op == "output":
                continue
            elif node.target is call_region:
                body, *operands = (fx.map_arg(arg, known.__getitem__) for arg in node.args)
                key = (id(body), tuple(_shape_key(value) for value in operands))
                if key not in memo:
                    memo[key] = propagate(body, operands, mode)
                known[node] = memo[key]
            elif node.target is call_loop:
                known[node] = _propagate_loop(fx.map_arg(node.args, known.__getitem__), mode)
            else:
                args = fx.map_arg(node.args, known.__getitem__)
                kwargs = fx.map_arg(node.kwargs, known.__getitem__)
                known[node] = node.target(*args, **kwargs)
                node.meta["computed"] = (known[node], node.target, args, kwargs)
            if node.op != "get_attr":
                node.meta["val"] = known[node]
    result = fx.map_arg(output_of(module.graph).args[0], known.__getitem__)
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def propagate_anew(module: fx.GraphModule) -> None:
    """Recomputes the fake value of every node: what is laid out otherwise than before gives other views."""
    values = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
    propagate(module, values, fake_mode_of(module.graph))


def is_computed(node: fx.Node) -> bool:
    """Whether `propagate` computed a node's value with this very op from these very operands, so that it needs no check."""
    value, *call = node.meta.get("computed", (None,))
    return value is not None and value is node.meta["val"] and _same(call, [node.target, node.args, node.kwargs])


def _same(old: Any, new: Any) -> bool:
    if isinstance(new, fx.Node):
        new = new.meta.get("val")
    if isinstance(new, (tuple, list)):
        return isinstance(old, (tuple, list)) and len(old) == len(new) and all(map(_same, old, new))
    if isinstance(new, dict):
        return isinstance(old, dict) and old.keys() == new.keys() and all(_same(old[key], new[key]) for key in new)
    return old is new or (type(old) is type(new) and isinstance(new, _LITERALS) and bool(old == new))


_LITERALS = (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)


def _propagate_loop(args: Any, mode: FakeTensorMode) -> tuple[Any, ...]:
    body, limit, _, carried, *operands = args
    return loop_values(limit, carried, propagate(body, loop_operands(carried, operands), mode))


def _shape_key(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(str(size) for size in value.shape), value.dtype, tuple(str(step) for step in value.stride())
    return str(value)


def guess(size: Any) -> int:
    """A number for a size that is only compared with others of the same tensor: itself, or its example value.

    Raises:
        UnsupportedOpError: the size is read from data, so that it has no example value.
    """
    if not isinstance(size, torch.SymInt):
        return int(size)
    if size.node.hint is None:
        raise UnsupportedOpError(
            f"the size {size} depends on the values of a tensor", where=Where(stage="the rewriter")
        )
    return int(size.node.hint)
