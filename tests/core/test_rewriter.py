"""The rewriter: what it creates carries its provenance and type; nothing else in passes and rules creates nodes."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.export import Dim

from gaudicc.capture import capture
from gaudicc.errors import InternalError, UnsupportedOpError
from gaudicc.fake_values import fake_mode_of, propagate
from gaudicc.nodes import call_region, module_of, op_name, outputs_of, source_of, val
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter, drop_dead_nodes, shape_text

aten = torch.ops.aten


class Scaled(nn.Module):
    """`linear(x) * 2 + x`, in a submodule so that nodes have a path."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y * 2 + x


def captured(dynamic: bool = False) -> tuple[Program, fx.Node]:
    """The program of `Scaled`, and its multiplication."""
    shapes = {"x": {0: Dim("b", min=1, max=8)}} if dynamic else None
    program = capture(Scaled().eval(), (torch.randn(3, 4),), dynamic_shapes=shapes)
    return program, named(program, "aten.mul.Tensor")


def named(program: Program, name: str) -> fx.Node:
    found: fx.Node
    (found,) = [node for node in program.root.graph.nodes if op_name(node) == name]
    return found


def test_emit_carries_line_path_and_value() -> None:
    program, mul = captured(dynamic=True)
    rewriter = Rewriter(program.root)
    new = rewriter.emit(aten.add.Tensor, mul.args[0], mul.args[0], like=mul)
    assert rewriter.modified
    assert source_of(new) == source_of(mul)
    assert source_of(new) is not None
    assert module_of(new) == module_of(mul)
    assert (val(new).shape, val(new).stride(), val(new).dtype) == (val(mul).shape, val(mul).stride(), val(mul).dtype)
    assert val(new).fake_mode is fake_mode_of(program.root.graph)


def test_inline_splices_plain_pytorch_with_the_provenance_of_what_it_stands_for() -> None:
    program, _ = captured()
    linear = named(program, "aten.linear")
    x = torch.randn(3, 4)
    (expected,) = program.run({"x": x})
    before = set(program.root.graph.nodes)
    rewriter = Rewriter(program.root)
    x_node, weight, bias = linear.args
    new = rewriter.inline(lambda a, w, b: torch.einsum("ij,kj->ik", a, w) + b, x_node, weight, bias, like=linear)
    created = set(program.root.graph.nodes) - before
    assert len(created) > 1
    assert all(source_of(node) == source_of(linear) and module_of(node) == "inner" for node in created)
    assert all("val" in node.meta for node in created)
    rewriter.replace(linear, new)
    assert rewriter.finish()
    torch.testing.assert_close(program.run({"x": x}), (expected,))


def test_inline_passes_literals_and_nested_arguments_and_returns_tuples() -> None:
    program, mul = captured()
    source = mul.args[0]
    rewriter = Rewriter(program.root)
    first, second = rewriter.inline(
        lambda pair, dim, options: (torch.cat(pair, dim), pair[0] * options["by"]),
        [source, source], 1, {"by": 3}, like=mul,
    )  # fmt: skip
    assert tuple(val(first).shape) == (3, 8)
    assert tuple(val(second).shape) == (3, 4)


def test_parts_that_depend_on_a_dynamic_size_are_refused() -> None:
    """They would be right on the example's side of the decision only, and nothing would say so."""

    def decides(x: Tensor) -> Tensor:
        return x + 1 if x.shape[0] % 3 else x - 1

    program, node = captured(dynamic=True)
    with pytest.raises(UnsupportedOpError, match="decided by the example's sizes"):
        Rewriter(program.root).inline(decides, node, like=node)
    static, node = captured()
    Rewriter(static.root).inline(decides, node, like=node)


def test_replace_keeps_every_user() -> None:
    program, mul = captured()
    users = list(mul.users)
    rewriter = Rewriter(program.root)
    new = rewriter.emit(aten.add.Tensor, mul.args[0], mul.args[0], like=mul)
    rewriter.replace(mul, new)
    assert list(new.users) == users
    assert mul not in program.root.graph.nodes


def test_replace_by_a_number_reaches_into_lists() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_zeros([2, x.shape[0]]) + x.sum()

    program = capture(Model().eval(), (torch.randn(5),), dynamic_shapes={"x": {0: Dim("n", min=2, max=9)}})
    size = next(node for node in program.root.graph.nodes if isinstance(node.meta.get("val"), torch.SymInt))
    rewriter = Rewriter(program.root)
    rewriter.replace(size, 5)
    rewriter.finish()
    zeros = next(node for node in program.root.graph.nodes if "new_zeros" in op_name(node))
    assert list(zeros.args[1]) == [2, 5]


def test_replace_refuses_another_type_and_names_the_place() -> None:
    program, mul = captured()
    rewriter = Rewriter(program.root)
    half = rewriter.emit(aten._to_copy.default, mul.args[0], dtype=torch.float16, like=mul)
    with pytest.raises(InternalError, match=r"f16\[3, 4\] in place of f32\[3, 4\]") as caught:
        rewriter.replace(mul, half)
    assert "test_rewriter.py" in str(caught.value.where.source)


@pytest.mark.parametrize("like", [lambda x: x.sum(0, keepdim=True), lambda x: x[:, :2]], ids=["shorter", "narrower"])
def test_replace_refuses_another_shape(like: Callable[[Tensor], Tensor]) -> None:
    program, mul = captured()
    rewriter = Rewriter(program.root)
    other = rewriter.inline(like, mul.args[0], like=mul)
    with pytest.raises(InternalError, match="in place of"):
        rewriter.replace(mul, other)


@given(st.permutations([0, 1, 2]), st.permutations([0, 1, 2]))
def test_replace_brings_a_value_to_the_layout_that_its_users_were_typed_with(old: list[int], new: list[int]) -> None:
    """For any two layouts of equal values, what reads the replacement sees the old strides."""

    def laid_out(x: Tensor, order: list[int]) -> Tensor:
        back = [order.index(dim) for dim in range(3)]
        return x.permute(order).contiguous().permute(back)

    program = capture(lambda x: laid_out(x, old).relu(), (torch.randn(2, 3, 4),))
    relu = named(program, "aten.relu")
    source = relu.args[0]
    assert isinstance(source, fx.Node)
    strides = val(relu).stride()
    placeholder = next(iter(program.root.graph.nodes))
    rewriter = Rewriter(program.root)
    if source is placeholder:
        return
    rewriter.replace(source, rewriter.inline(lambda x: laid_out(x, new), placeholder, like=source))
    rewriter.finish()
    assert val(relu.args[0]).stride() == strides  # type: ignore[arg-type]
    x = torch.randn(2, 3, 4)
    (result,) = program.run({placeholder.name: x})
    assert torch.equal(result, x.relu())
    assert result.stride() == strides


def test_replace_outputs_gives_each_item_its_own() -> None:
    program = capture(lambda x: tuple(x.chunk(2, 1)), (torch.randn(2, 4),))
    chunk = named(program, "aten.chunk")
    rewriter = Rewriter(program.root)
    halves = rewriter.inline(lambda x: (x[:, 2:], x[:, :2]), chunk.args[0], like=chunk)
    rewriter.replace_outputs(chunk, (halves[1], halves[0]))
    rewriter.finish()
    x = torch.randn(2, 4)
    name = program.user_inputs()[0].name
    assert all(torch.equal(a, b) for a, b in zip(program.run({name: x}), x.chunk(2, 1), strict=True))


def test_splice_refuses_tensors_that_a_bundle_could_not_name() -> None:
    program, mul = captured()
    constant = torch.ones(4)
    with pytest.raises(InternalError, match="get_attr"):
        Rewriter(program.root).inline(lambda x: x + constant, mul.args[0], like=mul)


def test_a_graph_without_tensors_cannot_be_rewritten() -> None:
    graph = fx.Graph()
    graph.output((1,))
    with pytest.raises(InternalError, match="without any tensor"):
        fake_mode_of(graph)


def test_dead_nodes_go_and_effects_stay() -> None:
    program, mul = captured()
    rewriter = Rewriter(program.root)
    dead = rewriter.emit(aten.relu.default, mul, like=mul.next)
    effect = rewriter.emit(aten._assert_async.msg, dead, "must hold", like=mul.next)
    assert not drop_dead_nodes(program.root.graph)
    program.root.graph.erase_node(effect)
    assert drop_dead_nodes(program.root.graph)
    assert dead not in program.root.graph.nodes


def test_propagate_gives_new_values_to_root_and_bodies(make_stack: Callable[..., nn.Module]) -> None:
    program = capture(make_stack(3), (torch.randn(2, 8),))
    mode = fake_mode_of(program.root.graph)
    values = [val(node) for node in program.root.graph.nodes if node.op == "placeholder"]
    at = [spec.name for spec in program.inputs].index("x")
    values[at] = mode.from_tensor(torch.randn(7, 8))
    (result,) = propagate(program.root, values, mode)
    assert tuple(result.shape) == (7, 4)
    shapes = [val(node).shape[0] for node in outputs_of(program.bodies["block"].graph)]
    assert shapes == [7]


def test_shapes_are_printed_with_the_users_names() -> None:
    program = capture(Scaled().eval(), (torch.randn(3, 4),), dynamic_shapes={"x": {0: Dim("batch", min=1, max=8)}})
    (dim,) = program.dimensions
    text = shape_text(val(named(program, "aten.mul.Tensor")), {dim.symbol: dim.name})
    assert text == "f32[batch, 4]"


TOP = Path(__file__).parents[2]
CREATORS = {"create_node", "call_function", "call_method", "call_module", "get_attr", "placeholder", "node_copy"}


FILES = sorted([*TOP.glob("passes/*.py"), *TOP.glob("gaudicc/rules/*.py")])


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_passes_and_rules_create_nodes_through_the_rewriter_only(file: Path) -> None:
    calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    methods = [call for call in calls if isinstance(call, ast.Attribute)]
    # A folded constant, a state buffer and a size become inputs, which no line of the user's stands for. Bodies are
    # made of nodes that there are.
    inputs, bodies = {"placeholder"}, {"placeholder", "node_copy", "get_attr", "call_function"}
    allowed = inputs if file.name in ("clean_up.py", "holding.py", "predication.py", "wide_integers.py") else set()
    allowed = bodies if file.name in ("layers.py", "canonicalize_layers.py", "bodies.py") else allowed
    creating = [f"line {call.lineno}: {call.attr}" for call in methods if call.attr in CREATORS - allowed]
    assert not creating


def test_getitem_and_sizes_are_typed_too() -> None:
    program = capture(lambda x: x.unbind(0)[0] + 1, (torch.randn(2, 3),))
    unbind = named(program, "aten.unbind.int")
    rewriter = Rewriter(program.root)
    item = rewriter.emit(operator.getitem, unbind, 1, like=unbind.next)
    assert tuple(val(item).shape) == (3,)
    assert item.target is not call_region
