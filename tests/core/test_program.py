"""The Program: regions that identical layers share, what is bound to them, and where each node comes from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gaudicc.calling import bind
from gaudicc.capture import capture
from gaudicc.errors import InputError
from gaudicc.nodes import call_region, is_op, module_of, op_name, outputs_of, regions_called, source_of, val, where
from gaudicc.program import InputKind, OutputKind

Make = Callable[..., nn.Module]


def test_identical_layers_are_one_body_called_with_each_layers_weights(make_stack: Make) -> None:
    program = capture(make_stack(4), (torch.randn(2, 8),))
    assert list(program.bodies) == ["block"]
    calls = regions_called(program.root.graph)
    assert [name for _, name in calls] == ["block"] * 4
    sources = {spec.name: spec.source for spec in program.inputs}
    for layer, (call, _) in enumerate(calls):
        weights = [arg for arg in call.all_input_nodes if arg.op == "placeholder" and arg.name != "x"]
        bound = {sources[arg.name] for arg in weights}
        assert bound == {f"layers.{layer}.{part}.{end}" for part in ("norm", "a", "b") for end in ("weight", "bias")}


def test_the_number_of_nodes_to_work_on_does_not_grow_with_the_layers(make_stack: Make) -> None:
    few, many = (capture(make_stack(n), (torch.randn(2, 8),)) for n in (2, 6))
    assert [len(body.graph.nodes) for body in few.bodies.values()] == [
        len(body.graph.nodes) for body in many.bodies.values()
    ]
    assert few.count_ops() == many.count_ops()


def test_layers_that_differ_are_bodies_of_their_own() -> None:
    class Layer(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.factor = factor

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.linear(x)) * self.factor + x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer(factor) for factor in (1.5, 2.5, 1.5, 2.5))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    model, x = Model().eval(), torch.randn(2, 8)
    program = capture(model, (x,))
    assert [name for _, name in regions_called(program.root.graph)] == ["layer", "layer_2", "layer", "layer_2"]
    torch.testing.assert_close(program.run({"x": x})[0], model(x))


def test_call_region_runs_the_body_on_its_operands(make_stack: Make) -> None:
    model, x = make_stack(2), torch.randn(2, 8)
    body = capture(model, (x,)).bodies["block"]
    layer = dict(model.named_modules())["layers.1"]
    weights = dict(layer.named_parameters())
    placeholders = [node.name for node in body.graph.nodes if node.op == "placeholder"]
    operands = [x if name == "x" else weights[name.replace("_", ".")] for name in placeholders]
    (result,) = call_region(body, *operands)
    torch.testing.assert_close(result, layer(x))


def test_a_mutated_buffer_is_state_with_an_output_that_writes_it(make_stack: Make) -> None:
    model, x = make_stack(2, state=True), torch.randn(2, 8)
    program = capture(model, (x,))
    kinds = {spec.source: spec.kind for spec in program.inputs}
    assert kinds["seen"] is InputKind.STATE
    assert kinds["head.weight"] is InputKind.WEIGHT
    assert kinds["x"] is InputKind.USER
    assert [(spec.kind, spec.target) for spec in program.outputs] == [
        (OutputKind.STATE, "seen"),
        (OutputKind.USER, None),
    ]
    new_state, _ = program.run({"x": x})
    torch.testing.assert_close(new_state, x.sum(0))
    assert not program.tensors["seen"].any(), "running a program writes nothing"


def test_weights_are_shared_with_the_model(make_stack: Make) -> None:
    model = make_stack(1)
    program = capture(model, (torch.randn(2, 8),))
    assert program.tensors["head.weight"].data_ptr() == dict(model.named_parameters())["head.weight"].data_ptr()


def test_each_node_knows_its_line_and_module(make_stack: Make) -> None:
    program = capture(make_stack(2), (torch.randn(2, 8),))
    nodes = [node for _, module in program.graphs() for node in module.graph.nodes if is_op(node)]
    assert all(str(source_of(node)).startswith("tests/conftest.py:") for node in nodes)
    head = next(node for node in program.root.graph.nodes if op_name(node) == "aten.linear")
    assert module_of(head) == "head"
    line = int(str(source_of(head)).rsplit(":", 1)[1])
    source, start = inspect.getsourcelines(type(make_stack(1)))
    assert "self.head(x)" in source[line - start]
    place = where(head, "a stage")
    assert (place.op, place.module, place.stage) == ("aten.linear", "head", "a stage")
    assert "during a stage" in str(place)


def helper(x: Tensor) -> Tensor:
    return torch.relu(x)


@pytest.mark.parametrize("wrapped", [False, True], ids=["function", "module"])
def test_a_line_outside_forward_is_the_users_too(wrapped: bool) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return helper(x)

    program = capture(Model().eval() if wrapped else helper, (torch.randn(2),))
    (relu,) = [node for node in program.root.graph.nodes if is_op(node)]
    assert "test_program.py" in str(source_of(relu))


def test_a_copy_has_graphs_of_its_own_and_the_same_weights(make_stack: Make) -> None:
    x = torch.randn(2, 8)
    program = capture(make_stack(3), (x,))
    copied = program.copy()
    names = [[node.name for node in module.graph.nodes] for _, module in program.graphs()]
    assert [[node.name for node in module.graph.nodes] for _, module in copied.graphs()] == names
    assert not {id(node) for _, m in program.graphs() for node in m.graph.nodes} & {
        id(node) for _, m in copied.graphs() for node in m.graph.nodes
    }
    assert all(copied.tensors[name] is tensor for name, tensor in program.tensors.items())
    assert torch.equal(copied.run({"x": x})[0], program.run({"x": x})[0])
    values = [val(node) for node in outputs_of(copied.root.graph)]
    assert [tuple(value.shape) for value in values] == [(2, 4)]


NAMES = ("a", "b", "c", "d")


@st.composite
def signatures(draw: st.DrawFn) -> inspect.Signature:
    """Signatures as Python accepts them: defaults last, then *args, keyword-only, **kwargs."""
    kinds = sorted(draw(st.lists(st.sampled_from([0, 1, 3]), max_size=4)))
    first_default = draw(st.integers(0, 4))
    parameters = []
    for i, kind in enumerate(kinds):
        optional = i >= first_default if kind != 3 else draw(st.booleans())
        default = i * 10 if optional else inspect.Parameter.empty
        parameters.append(inspect.Parameter(NAMES[i], inspect._ParameterKind(kind), default=default))
    if draw(st.booleans()):
        at = len([kind for kind in kinds if kind < 2])
        parameters.insert(at, inspect.Parameter("more", inspect.Parameter.VAR_POSITIONAL))
    if draw(st.booleans()):
        parameters.append(inspect.Parameter("named", inspect.Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters)


@given(signatures(), st.data())
def test_calls_that_mean_the_same_have_one_canonical_form(signature: inspect.Signature, data: st.DataObject) -> None:
    """Canonical arguments bind to the same values, and binding them again changes nothing."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    by_name = False
    for parameter in signature.parameters.values():
        given_value = data.draw(st.integers(0, 99))
        leave_out = parameter.default is not parameter.empty and data.draw(st.booleans())
        if parameter.kind is parameter.VAR_POSITIONAL:
            args += [] if by_name else data.draw(st.lists(st.integers(100, 199), max_size=2))
        elif parameter.kind is parameter.VAR_KEYWORD:
            kwargs.update(data.draw(st.dictionaries(st.sampled_from(["y", "z"]), st.integers(), max_size=2)))
        elif leave_out:
            by_name = True
        elif parameter.kind is parameter.KEYWORD_ONLY:
            kwargs[parameter.name] = given_value
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            if by_name:
                continue
            args.append(given_value)
        elif by_name or data.draw(st.booleans()):
            by_name = True
            kwargs[parameter.name] = given_value
        else:
            args.append(given_value)
    try:
        expected = signature.bind(*args, **kwargs)
    except TypeError:
        with pytest.raises(InputError, match="do not fit"):
            bind(signature, tuple(args), kwargs)
        return
    expected.apply_defaults()
    canonical = bind(signature, tuple(args), kwargs)
    again = signature.bind(*canonical[0], **canonical[1])
    again.apply_defaults()
    assert again.arguments == expected.arguments
    assert bind(signature, *canonical) == canonical
    assert list(canonical[1]) == sorted(canonical[1])
