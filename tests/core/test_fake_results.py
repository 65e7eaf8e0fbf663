"""Fake results: what is remembered is what the op gives, and no two results are one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from gaudicc.fake_results import FakeResults, call_key, unshared
from gaudicc.fake_values import trace
from gaudicc.rewriter import Rewriter

aten = torch.ops.aten
CALLS: tuple[tuple[Any, tuple[Any, ...]], ...] = (
    (aten.exp.default, ()), (aten.mul.Scalar, (1,)), (aten.mul.Scalar, (1.0,)), (aten.mul.Scalar, (True,)),
    (aten.slice.Tensor, (0, 1, 3)), (aten.slice.Tensor, (1, 1, 3)), (aten.transpose.int, (0, 1)),
    (aten.select.int, (0, 1)), (aten.sum.dim_IntList, ([0],)), (aten.split.Tensor, (2,)), (aten.topk.default, (1,)),
    (aten._to_copy.default, ()), (aten.unsqueeze.default, (0,)), (aten.as_strided.default, ([2, 2], [1, 2], 3)),
)  # fmt: skip


def layout(value: Any) -> Any:
    if isinstance(value, FakeTensor):
        size = value.untyped_storage().nbytes()
        return value.shape, value.stride(), value.storage_offset(), value.dtype, value.device, size
    return [layout(item) for item in value]


@given(
    st.lists(st.tuples(st.sampled_from(CALLS), st.integers(0, 3)), min_size=2, max_size=30),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64]),
)
def test_what_is_remembered_is_what_the_op_gives(calls: list[Any], dtype: torch.dtype) -> None:
    results, mode = FakeResults(), FakeTensorMode()
    with mode, torch.no_grad(), enable_python_dispatcher():
        base = torch.empty(6, 6, dtype=dtype)
        values = [base, base.t(), base[1:5, 2:6], torch.empty(4, 7, dtype=dtype)]
        found = []
        for (op, rest), index in calls:
            kwargs = {"dtype": torch.float32} if op is aten._to_copy.default else {}
            made = results.of(op, (values[index], *rest), kwargs)
            assert layout(made) == layout(op(values[index], *rest, **kwargs))
            found += list(made) if isinstance(made, (tuple, list)) else [made]
    assert len(set(map(id, found))) == len(found)
    assert all(value.fake_mode is mode for value in found)


def test_a_call_is_made_once_unless_it_writes() -> None:
    results, made = FakeResults(), list[torch.Tensor]()
    with FakeTensorMode():
        x = torch.empty(4)
        assert results.of(aten.add_.Tensor, (x, x), {}) is x
        made += [results.of(aten.exp.default, (x,), {}) for _ in range(3)]
    assert call_key(aten.exp.default, made[0]) == call_key(aten.exp.default, made[1])
    assert unshared(made[0]) is not made[0]
    assert layout(unshared(made[0])) == layout(made[0])


@pytest.mark.parametrize("parts", [(1, 1.0), (1, True), ([1, 2], [1, [2]]), (None, 0), ("a", "b")])
def test_what_differs_has_another_key(parts: tuple[Any, Any]) -> None:
    one, other = parts
    assert call_key(one) != call_key(other)


def _combine(a: Any, b: Any, c: Any) -> Any:
    return torch.matmul(a, a) - b * 2 + c, b + c


@given(st.lists(st.tuples(*[st.sampled_from([0, 1, 2, "zero", "one"])] * 3), min_size=1, max_size=6))
def test_calls_alike_share_a_trace_and_nothing_else(calls: list[tuple[Any, Any, Any]]) -> None:
    """The same function is inlined on the same and on other operands, literals among them."""
    inputs = [torch.randn(3, 3) for _ in range(3)]

    def operand(value: Any, among: Any) -> Any:
        return {"zero": 0, "one": 1}[value] if isinstance(value, str) else among[value]

    calls = [
        (0 if isinstance(a, str) else a, b, 1 if isinstance(b, str) and isinstance(c, str) else c) for a, b, c in calls
    ]

    def plain(*xs: Tensor) -> list[Tensor]:
        return [part for call in calls for part in _combine(*(operand(value, xs) for value in call))]

    mode = FakeTensorMode()
    module = trace(lambda *xs: [xs[0].neg()], [mode.from_tensor(x) for x in inputs], mode)
    rewriter, output = Rewriter(module), next(n for n in module.graph.nodes if n.op == "output")
    places = module.graph.find_nodes(op="placeholder")
    made: list[fx.Node] = []
    for call in calls:
        made += rewriter.inline(_combine, *(operand(value, places) for value in call), like=output)
    values = [node.meta["val"] for node in module.graph.nodes if node.op == "call_function"]
    assert len(set(map(id, values))) == len(values)
    output.args = (made,)
    rewriter.finish()
    torch.testing.assert_close(list(module(*inputs)), plain(*inputs))
