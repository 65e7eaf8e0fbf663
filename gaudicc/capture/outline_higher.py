"""Capture, after export: torch's own `cond`, `while_loop` and `scan` become what mending makes of Python's `if` and loops."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

import torch
from torch import fx

from gaudicc.errors import DynamicControlFlowError
from gaudicc.fake_values import fake_mode_of, trace
from gaudicc.graph_module import copy_graph
from gaudicc.nodes import call_loop, loop_values, val, where
from gaudicc.rewriter import Rewriter
from gaudicc.rules.predication import guard, hinders

aten = torch.ops.aten
hops = torch.ops.higher_order


def outline_higher(root: fx.GraphModule) -> None:
    """Rewrites the calls of these three operators in a graph; the bodies of loops become submodules of `root`.

    Raises:
        DynamicControlFlowError: one of them has another in it, or hands on what is no tensor.
    """
    forms: dict[Any, Callable[[Rewriter, fx.Node], tuple[Any, ...]]] = {
        hops.cond: _cond,
        hops.while_loop: _while_loop,
        hops.scan: _scan,
    }
    rewriter = Rewriter(root)
    for node in list(root.graph.nodes):
        if node.target in forms:
            rewriter.replace_outputs(node, forms[node.target](rewriter, node))
    rewriter.finish()


def _cond(rewriter: Rewriter, node: fx.Node) -> tuple[Any, ...]:
    """Both sides, merged by `where`; on the side that is not taken nothing can fail."""
    pred, then, orelse, operands = cast(Any, node.args)
    sides = [_part(rewriter, node, side) for side in (then, orelse)]
    for side in sides:
        if reason := hinders(side):
            _refuse(node, f"a side of it cannot run where it is not taken: {reason}", "use an `if`")
        guard(side)
    for i, results in enumerate(zip(*([val(out) for out in _results(side)] for side in sides), strict=True)):
        if any(not isinstance(value, torch.Tensor) for value in results) or _type(results[0]) != _type(results[1]):
            _refuse(node, f"result {i} differs in type or shape between its sides", "pad to one shape, or use an `if`")

    def both(pred: torch.Tensor, *values: Any) -> tuple[torch.Tensor, ...]:
        holds = pred.reshape([])
        results = zip(sides[0](holds, *values), sides[1](torch.logical_not(holds), *values), strict=True)
        return tuple(torch.where(holds, a, b) for a, b in results)

    if not isinstance(pred, fx.Node) or not isinstance(val(pred), torch.Tensor):
        _refuse(node, "its predicate is no tensor", "give it a bool tensor of one element")
    return _tuple(rewriter.inline(both, pred, *operands, like=node))


def _while_loop(rewriter: Rewriter, node: fx.Node) -> tuple[Any, ...]:
    """A loop that goes on while its first carried value is true."""
    test, step, carried, read = cast(Any, node.args)
    cond, body = (_part(rewriter, node, part) for part in (test, step))
    count = len(carried)
    _refuse_numbers(node, carried)

    def trip(_number: torch.Tensor, _go: torch.Tensor, *given: Any) -> tuple[torch.Tensor, ...]:
        state, rest = given[:count], given[count:]
        new = _tuple(body(*state, *rest))
        return _decision(cond(*new, *rest)), *new

    go = rewriter.inline(lambda *given: _decision(cond(*given)), *carried, *read, like=node)
    return _loop(rewriter, node, trip, None, [go, *carried], list(read))[1:]


def _scan(rewriter: Rewriter, node: fx.Node) -> tuple[Any, ...]:
    """A loop over the rows of its inputs."""
    step, carried, rows, read = cast(Any, node.args)
    body = _part(rewriter, node, step)
    count, inputs = len(carried), len(rows)
    _refuse_numbers(node, [*carried, *rows])

    def trip(number: torch.Tensor, *given: Any) -> tuple[torch.Tensor, ...]:
        state, whole, rest = given[:count], given[count : count + inputs], given[count + inputs :]
        here = [aten.index_select.default(tensor, 0, number.reshape([1])).squeeze(0) for tensor in whole]
        return _tuple(body(*state, *here, *rest))

    size = val(rows[0]).shape[0]
    limit = size if isinstance(size, int) else rewriter.emit(aten.sym_size.int, rows[0], 0, like=node)
    return _loop(rewriter, node, trip, limit, list(carried), [*rows, *read])


def _loop(
    rewriter: Rewriter, node: fx.Node, trip: Callable[..., Any], limit: Any, carried: list[Any], read: list[Any]
) -> tuple[Any, ...]:
    """Makes the body of a loop of a function, and calls it; gives one node for each result."""
    mode = fake_mode_of(rewriter.graph)
    with mode:
        state = [torch.empty_like(val(value), memory_format=torch.contiguous_format) for value in carried]
        number = torch.empty((), dtype=torch.int64)
    values = [val(value) if isinstance(value, fx.Node) else value for value in read]
    body = trace(trip, [number, *state, *values], mode)
    results = [val(out) for out in _results(body)]
    if any(_type(old) != _type(new) for old, new in zip(state, results, strict=False)):
        _refuse(node, "what its trips hand on changes its type or shape", "carry one state of fixed shapes and dtypes")
    children = dict(rewriter.module.named_children())
    name = next(n for n in ("loop", *(f"loop_{i}" for i in range(2, 10_000))) if n not in children)
    rewriter.module.add_submodule(name, body)
    with rewriter.graph.inserting_before(node):
        attribute = rewriter.graph.get_attr(name)
        call = rewriter.graph.call_function(call_loop, (attribute, limit, None, len(carried), *carried, *read))
    with mode:
        size = val(limit) if isinstance(limit, fx.Node) else limit
        call.meta = {**node.meta, "val": loop_values(size, len(carried), results)}
    rewriter.modified = True
    return tuple(rewriter.emit(operator.getitem, call, i, like=node) for i in range(len(results)))


def _part(rewriter: Rewriter, node: fx.Node, part: fx.Node) -> fx.GraphModule:
    """A copy of one of the graphs that such an operator is given."""
    module: fx.GraphModule = getattr(rewriter.module, str(part.target))
    if any(isinstance(inner.target, torch._ops.HigherOrderOperator) for inner in module.graph.nodes):
        _refuse(node, "another operator of torch's that takes functions stands in it", "use `if`, `while` and `for`")
    return copy_graph(module)


def _results(module: fx.GraphModule) -> Sequence[fx.Node]:
    output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    return _tuple(output.args[0])


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _decision(value: Any) -> torch.Tensor:
    """What the test of a loop gives, as a bool `[]`."""
    test = _tuple(value)[0]
    return torch.full([], test, dtype=torch.bool) if isinstance(test, bool) else test.reshape([]).ne(0)


def _type(value: torch.Tensor) -> tuple[torch.dtype, tuple[str, ...]]:
    return value.dtype, tuple(map(str, value.shape))


def _refuse_numbers(node: fx.Node, values: Sequence[Any]) -> None:
    if not all(isinstance(value, fx.Node) and isinstance(val(value), torch.Tensor) for value in values):
        _refuse(node, "it carries a number", "carry a tensor of no dims")


def _refuse(node: fx.Node, what: str, hint: str) -> NoReturn:
    name = cast(Any, node.target).name()
    raise DynamicControlFlowError(f"{name} is refused: {what}", where=where(node), hint=hint)
