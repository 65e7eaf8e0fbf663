"""Readers of some rows of a concatenation read the parts that hold them, and the values stay what they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from gaudicc.fake_values import propagate, trace
from gaudicc.nodes import val
from gaudicc.rewriter import Rewriter
from gaudicc.rules.parts import fused_products, read_parts, retype, split_products

aten = torch.ops.aten


def traced(function: object, inputs: list[Tensor]) -> fx.GraphModule:
    mode = FakeTensorMode()
    return trace(function, [mode.from_tensor(x) for x in inputs], mode)  # type: ignore[arg-type]


def checked(
    function: object, inputs: list[Tensor], rewrite: Callable[[Rewriter], None] = read_parts, tolerance: float = 0.0
) -> fx.GraphModule:
    """The graph rewritten; its values are what they were, and typed as they are."""
    module = traced(function, inputs)
    before = module(*inputs)
    rewriter = Rewriter(module)
    rewrite(rewriter)
    retype(rewriter)
    rewriter.finish()
    module.recompile()
    after = module(*inputs)
    torch.testing.assert_close(after, before, rtol=tolerance, atol=tolerance)
    types = [(tuple(val(n).shape), val(n).stride()) for n in module.graph.nodes if n.op == "call_function"]
    mode = FakeTensorMode()
    propagate(module, [mode.from_tensor(x) for x in inputs], mode)
    assert types == [(tuple(val(n).shape), val(n).stride()) for n in module.graph.nodes if n.op == "call_function"]
    return module


def read_by_output(module: fx.GraphModule) -> set[str]:
    """Names of the inputs that the result waits for."""
    (output,) = module.graph.find_nodes(op="output")
    found, left = set[str](), list(output.all_input_nodes)
    while left:
        node = left.pop()
        found |= {node.name} if node.op == "placeholder" else set()
        left += node.all_input_nodes
    return found


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    layout=st.permutations(range(3)),
    heads=st.sampled_from([None, 1, 2]),
    swap=st.booleans(),
    data=st.data(),
)
def test_values_stay_and_no_other_part_is_waited_for(
    sizes: list[int], layout: list[int], heads: int | None, swap: bool, data: st.DataObject
) -> None:
    total = sum(sizes)
    low = data.draw(st.integers(0, total - 1))
    high = data.draw(st.integers(low + 1, total + 2))
    inputs = [torch.randn(2, size, 4) for size in sizes]

    def function(*parts: Tensor) -> Tensor:
        moved = aten.cat.default([aten.permute.default(part, layout) for part in parts], layout.index(1))
        x = aten.permute.default(moved, [layout.index(i) for i in range(3)])
        dim = 1
        if heads is not None:
            x = aten.cat.default([x[..., :2], x[..., 2:]], 2).contiguous().view(2, total, heads, -1)
            if swap:
                x, dim = aten.transpose.int(x, 1, 2), 2
        out: Tensor = aten.slice.Tensor(x, dim, low, high).exp()
        return out

    module = checked(function, inputs)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    needed = [i for i, start in enumerate(starts) if start < high and start + sizes[i] > low]
    names = [node.name for node in module.graph.find_nodes(op="placeholder")]
    if heads is None:
        assert read_by_output(module) == {names[i] for i in needed}
    else:
        assert read_by_output(module) >= {names[i] for i in needed}


def test_heads_apart_and_rows_together_are_seen_through() -> None:
    """What split-attention puts together: blocks of rows, beside each other by head."""
    inputs = [torch.randn(1, 2, 3, 4) for _ in range(4)]

    def function(*blocks: Tensor) -> Tensor:
        laid = [aten.transpose.int(block, 1, 2) for block in blocks]
        halves = [aten.cat.default(laid[:2], 1), aten.cat.default(laid[2:], 1)]
        whole = aten.transpose.int(aten.cat.default(halves, 2), 1, 2)
        joined = aten.view.default(aten.transpose.int(whole, 1, 2), [1, 6, 16])
        out: Tensor = aten.slice.Tensor(joined, 1, 3, 6).exp()
        return out

    module = checked(function, inputs)
    names = [node.name for node in module.graph.find_nodes(op="placeholder")]
    assert read_by_output(module) == {names[1], names[3]}


@pytest.mark.parametrize("step", [1, 2])
def test_every_second_row_is_left_alone(step: int) -> None:
    inputs = [torch.randn(4, 2), torch.randn(4, 2)]
    module = checked(lambda a, b: aten.slice.Tensor(aten.cat.default([a, b]), 0, 0, 4, step).exp(), inputs)
    assert len(read_by_output(module)) == step


def test_what_is_handed_out_keeps_its_layout() -> None:
    inputs = [torch.randn(2, 3), torch.randn(2, 3)]
    module = checked(lambda a, b: aten.slice.Tensor(aten.cat.default([a, b], 1), 1, 0, 3), inputs)
    assert len(read_by_output(module)) == 2


@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    gap=st.integers(0, 2),
    bias=st.booleans(),
    again=st.booleans(),
    at_once=st.booleans(),
)
def test_a_fused_product_becomes_one_a_piece(
    sizes: list[int], gap: int, bias: bool, again: bool, at_once: bool
) -> None:
    gap *= not at_once
    total = sum(sizes) + gap
    x, w, b = torch.randn(1, 5, 4), torch.randn(total, 4), torch.randn(total)

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        whole = aten.linear.default(x, w, b if bias else None)
        starts = [gap + sum(sizes[:i]) for i in range(len(sizes))]
        pieces = [aten.slice.Tensor(whole, 2, low, low + size) for low, size in zip(starts, sizes, strict=True)]
        if at_once:
            pieces = list(aten.split_with_sizes.default(whole, sizes, -1))
        if again:
            pieces.append(aten.slice.Tensor(whole, -1, starts[0], starts[0] + sizes[0]))
        views = [aten.transpose.int(aten.view.default(p, [1, 5, 1, p.shape[-1]]), 1, 2) for p in pieces]
        out: Tensor = aten.cat.default([view.exp() for view in views], -1)
        return out

    module = checked(function, [x, w, b], split_products, tolerance=1e-6)
    found = module.graph.find_nodes(op="call_function", target=aten.linear.default)
    assert sorted(val(n).shape[-1] for n in found) == sorted([*sizes, *sizes[: 1 if again else 0]])
    assert sum(n.target is aten.slice.Tensor for n in module.graph.nodes) == len(found) * (2 if bias else 1)


@pytest.mark.parametrize("second", [(2, 6), (4, 8, 2), None], ids=["overlap", "every second", "read whole"])
def test_a_product_that_is_read_otherwise_stays_whole(second: tuple[int, ...] | None) -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        whole = aten.linear.default(x, w)
        other = whole if second is None else aten.slice.Tensor(whole, 1, *second)
        out: Tensor = aten.slice.Tensor(whole, 1, 0, 4).sum() + other.sum()
        return out

    graph = traced(function, [torch.randn(3, 4), torch.randn(8, 4)]).graph
    assert not list(fused_products(graph))
