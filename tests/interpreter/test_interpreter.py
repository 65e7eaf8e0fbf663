import operator

import pytest
import torch
from torch import fx
from torch.export import export

from gaudicc.errors import UnsupportedOpError
from gaudicc.interpreter import interpret
from gaudicc.nodes import call_region
from gaudicc.targets import Mode, load_target

TARGET = load_target("gaudi3")
aten = torch.ops.aten


def graph_of(module: torch.nn.Module, *args: torch.Tensor) -> fx.GraphModule:
    program = export(module, args)
    assert not program.state_dict
    graph: fx.GraphModule = program.graph_module
    return graph


def one_op(target: object, *, method: bool = False) -> fx.GraphModule:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_method("relu", (x,)) if method else graph.call_function(target, (x,)),))  # type: ignore[arg-type]
    return fx.GraphModule({}, graph)


class Block(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.nn.functional.layer_norm(x, [8])
        h = torch.nn.functional.scaled_dot_product_attention(h, h, h)
        return x + torch.nn.functional.silu(h)


def test_a_legal_graph_equals_eager() -> None:
    x = torch.randn(2, 4, 8)
    result = interpret(graph_of(Block(), x), x, target=TARGET)
    assert result.legal
    assert result.bytes_moved == 0
    assert isinstance(result.outputs, (tuple, list))
    torch.testing.assert_close(result.outputs[0], Block()(x))


def test_the_refusal_names_op_and_line() -> None:
    class Bad(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.histc(x, 4)

    x = torch.randn(8)
    graph = graph_of(Bad(), x)
    line = Bad.forward.__code__.co_firstlineno + 1
    with pytest.raises(UnsupportedOpError) as caught:
        interpret(graph, x, target=TARGET)
    assert "aten::histc" in str(caught.value)
    assert f"test_interpreter.py:{line}" in str(caught.value)
    result = interpret(graph, x, target=TARGET, on_unsupported="host")
    assert result.bytes_moved == 8 * 4 + 4 * 4
    assert not result.legal


def test_a_float64_output_keeps_its_dtype_and_loses_its_bits() -> None:
    class Wide(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (1 / 3)

    x = torch.randn(5, dtype=torch.float64)
    result = interpret(graph_of(Wide(), x), x, target=TARGET)
    assert isinstance(result.outputs, (tuple, list))
    assert result.outputs[0].dtype is torch.float64
    assert torch.equal(result.outputs[0], (x.float() * (1 / 3)).double())


def test_int64_inputs_wrap_on_arrival_and_are_counted() -> None:
    class Same(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 0

    x = torch.tensor([2**32 + 5])
    lazy = interpret(graph_of(Same(), x), x, target=TARGET)
    kept = interpret(graph_of(Same(), x), x, target=TARGET, mode=Mode.COMPILE)
    assert (lazy.outputs[0].item(), dict(lazy.overflowed)) == (5, {"x": 1})  # type: ignore[index]
    assert (kept.outputs[0].item(), dict(kept.overflowed)) == (2**32 + 5, {})  # type: ignore[index]


def test_regions_are_entered_and_judged() -> None:
    body = one_op(aten.neg.default)
    graph = fx.Graph()
    carried = graph.placeholder("x")
    for _ in range(3):
        call = graph.call_function(call_region, (graph.get_attr("layer"), carried))
        carried = graph.call_function(operator.getitem, (call, 0))
    graph.output((carried,))
    result = interpret(fx.GraphModule({"layer": body}, graph), torch.ones(2), target=TARGET)
    assert result.calls == 3
    assert torch.equal(result.outputs[0], -torch.ones(2))  # type: ignore[index]


def test_arithmetic_on_sizes_is_free() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    size = graph.call_function(aten.sym_size.int, (x, 0))
    twice = graph.call_function(operator.mul, (size, 2))
    graph.output((graph.call_function(aten.expand.default, (x, [twice, 3])),))
    result = interpret(fx.GraphModule({}, graph), torch.ones(1, 3), target=TARGET)
    assert result.legal
    assert result.outputs[0].shape == (2, 3)  # type: ignore[index]


@pytest.mark.parametrize("target", [bool, float, operator.neg, torch.relu, aten.item.default])
def test_python_on_tensors_is_refused(target: object) -> None:
    with pytest.raises(UnsupportedOpError):
        interpret(one_op(target), torch.ones(1), target=TARGET, on_unsupported="host")


def test_methods_and_modules_are_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="method relu"):
        interpret(one_op(None, method=True), torch.ones(1), target=TARGET)
    graph = fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU()))
    with pytest.raises(UnsupportedOpError, match="module 0"):
        interpret(graph, torch.ones(1), target=TARGET)


def test_control_flow_is_refused_by_name() -> None:
    class Branch(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t - 1, (x,))
            return result

    x = torch.ones(3)
    with pytest.raises(UnsupportedOpError, match="cond"):
        interpret(graph_of(Branch(), x), x, target=TARGET)
