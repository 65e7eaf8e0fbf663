"""Flattening knows no device: what it computes ahead lies where the captured value lay."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gaudicc.runtime.cpu_flatten import flatten
from gaudicc.runtime.device import Segment


@pytest.mark.parametrize("filled", [torch.ops.aten.zeros_like.default, torch.ops.aten.ones_like.default])
def test_what_is_computed_ahead_is_on_the_models_device(filled: torch._ops.OpOverload) -> None:
    """Fake tensors refuse to mix devices as a GPU does, and need none."""
    place = torch.device("cuda:0")
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    start = graph.call_function(filled, (x,))
    steps = graph.call_function(torch.ops.aten.arange.default, (4,), {"device": place})
    places = graph.call_function(torch.ops.aten.add.Tensor, (start, steps))
    graph.output((graph.call_function(torch.ops.aten.mul.Tensor, (x, places)),))
    with FakeTensorMode():
        for node in graph.nodes:
            if node.op != "output":
                node.meta["val"] = torch.empty(4, dtype=torch.int64, device=place)
        flat = flatten(Segment(torch.fx.GraphModule(torch.nn.Module(), graph), {}, {}))
    assert len(flat.bound) == 3
    assert {constant.device for constant in flat.bound.values()} == {place}
    assert [node.target for node in flat.graph.nodes if node.op == "call_function"] == [torch.ops.aten.mul.Tensor]
