"""Segments as calls of pieces, and state written in place: equal to the segment itself, run on the CPU."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import gaudicc
from gaudicc.errors import LoweringError
from gaudicc.nodes import call_region
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.passes.partition_layers import PartitionLayers
from gaudicc.plan import Record
from gaudicc.runtime.device import Segment
from gaudicc.runtime.hpu_memory import refuse_shared_state
from gaudicc.runtime.hpu_pieces import DeviceProgram, Name, split
from gaudicc.runtime.hpu_state import write_state
from gaudicc.runtime.hpu_workspace import workspace_bytes

aten = torch.ops.aten
COPIES = (aten.copy_.default, aten.clone.default)


def segment_of(function: Callable[..., Any], state: dict[str, Tensor], inputs: dict[str, Tensor]) -> Segment:
    """A function of state and inputs that returns `(outputs, new state)` as a segment; the graph is functional ATen."""
    from torch.fx.experimental.proxy_tensor import make_fx

    names = [*state, *inputs]

    def flat(*values: Tensor) -> tuple[Any, ...]:
        outputs, new = function(*values)
        return (*outputs, *new)

    traced = make_fx(flat)(*state.values(), *inputs.values())
    for node, name in zip(traced.graph.find_nodes(op="placeholder"), names, strict=True):
        node.name = node.target = name
    values = iter([*state.values(), *inputs.values()])
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            value = next(values)
            node.meta["val"] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
            node.meta["val"] = node.target(*args, **{k: "meta" if k == "device" else v for k, v in kwargs.items()})
    traced.recompile()
    results: Any = traced.graph.output_node().args[0]
    count = len(results) - len(state)
    return Segment(traced, dict(state), {name: count + i for i, name in enumerate(state)})


def outlined(segment: Segment, size: int, together: int = 1) -> Segment:
    """The same segment with every `size` calls in a region of their own, and so many regions in a sub-graph."""
    old, graph = segment.graph.graph, fx.Graph()
    values: dict[fx.Node, Any] = {}
    bodies: dict[str, Any] = {}
    for node in old.find_nodes(op="placeholder"):
        values[node] = graph.node_copy(node)
    calls = [node for node in old.nodes if node.op == "call_function"]
    for start in range(0, len(calls), size):
        group = calls[start : start + size]
        body, inner = fx.Graph(), {}
        reads = list(dict.fromkeys(arg for node in group for arg in node.all_input_nodes if arg not in group))
        results = [node for node in group if any(user not in group for user in node.users)]
        for node in reads:
            inner[node] = body.placeholder(node.name)
            inner[node].meta["val"] = node.meta["val"]
        for node in group:
            inner[node] = body.node_copy(node, inner.__getitem__)
        body.output(tuple(inner[node] for node in results))
        bodies[f"body_{start}"] = fx.GraphModule({}, body)
        place = graph.get_attr(f"body_{start}")
        call = graph.call_function(call_region, (place, *(values[node] for node in reads)))
        call.meta["val"] = tuple(node.meta["val"] for node in results)
        call.meta["subgraph"] = start // (size * together)
        for i, node in enumerate(results):
            values[node] = graph.call_function(operator.getitem, (call, i))
            values[node].meta["val"] = node.meta["val"]
    graph.output(fx.map_arg(old.output_node().args[0], values.__getitem__))
    return Segment(fx.GraphModule(bodies, graph), segment.bound, segment.state)


def run(program: DeviceProgram, segment: Segment, inputs: dict[str, Tensor]) -> list[Any]:
    """Carries a program out on the CPU, state being written as on the device."""
    given = {**segment.bound, **inputs}
    values: dict[Name, Any] = {**{Name(name): tensor for name, tensor in given.items()}, **program.constants}
    program.run(values, lambda call, operands: tuple(fx.GraphModule({}, call.piece.graph)(*operands)))
    return [values[each] if isinstance(each, Name) else each for each in program.outputs]


def prepared(segment: Segment) -> DeviceProgram:
    program = split(segment, lambda flat: None)
    write_state(program, segment.state)
    return program


def check(
    function: Callable[..., Any],
    state: dict[str, Tensor],
    inputs: dict[str, Tensor],
    region: int = 0,
    together: int = 1,
) -> DeviceProgram:
    """Outputs and state are those of the function, at two calls in a row.

    With so many ops in a region, if any, and so many regions in a sub-graph.
    """
    segment = segment_of(function, {name: tensor.clone() for name, tensor in state.items()}, inputs)
    segment = outlined(segment, region, together) if region else segment
    program = prepared(segment)
    now = {name: tensor.clone() for name, tensor in state.items()}
    for _ in range(2):
        expected, new = function(*now.values(), *inputs.values())
        expected, new = [e.clone() for e in expected], [n.clone() for n in new]
        found = run(program, segment, inputs)
        for mine, theirs in zip(found, expected, strict=False):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        for name, theirs in zip(state, new, strict=True):
            torch.testing.assert_close(segment.bound[name], theirs, rtol=0, atol=0)
        now = dict(zip(state, new, strict=True))
    return program


def targets(program: DeviceProgram) -> list[Any]:
    return [node.target for call in program.calls for node in call.piece.graph.nodes if node.op == "call_function"]


CACHE = {"cache": torch.arange(12.0).view(4, 3)}
ROW, NEW = torch.tensor([2]), torch.full((1, 3), 7.0)


def test_a_row_is_written_in_place() -> None:
    def step(cache: Tensor, row: Tensor, new: Tensor) -> Any:
        cache = aten.index_copy(cache, 0, row, new)
        return [cache.sum(0)], [cache]

    program = check(step, CACHE, {"row": ROW, "new": NEW})
    assert aten.index_copy_.default in targets(program)
    assert not set(targets(program)) & {*COPIES, aten.index_copy.default}


@pytest.mark.parametrize("region", [0, 1, 2])
def test_writes_of_writes_are_in_place(region: int) -> None:
    def step(cache: Tensor, row: Tensor, new: Tensor) -> Any:
        cache = aten.index_copy(cache, 0, row, new)
        read = cache[:2] + 1
        cache = aten.index_copy(cache, 0, row - 1, new * 2)
        return [read], [cache]

    program = check(step, CACHE, {"row": ROW, "new": NEW}, region)
    assert targets(program).count(aten.index_copy_.default) == 2
    assert not set(targets(program)) & set(COPIES)


@pytest.mark.parametrize("region", [0, 1, 2])
@pytest.mark.parametrize("late", ["the old value", "a view of it", "an output", "itself as source", "a view as source"])
def test_what_is_read_afterwards_is_not_overwritten(late: str, region: int) -> None:
    def step(cache: Tensor, row: Tensor, new: Tensor) -> Any:
        view = aten.slice(cache, 0, 0, 2)
        source = {"itself as source": cache, "a view as source": view}.get(late)
        if source is not None:
            every = torch.arange(source.shape[0]).flip(0)
            return [], [aten.index_copy(cache, 0, every, source)]
        written = aten.index_copy(cache, 0, row, new)
        if late == "an output":
            return [cache, view], [written]
        return [(cache if late == "the old value" else view) + written[:1]], [written]

    program = check(step, CACHE, {"row": ROW * 0, "new": NEW}, region)
    assert aten.copy_.default in targets(program)


def test_two_results_of_one_piece_may_lie_in_the_same_memory() -> None:
    def step(cache: Tensor, row: Tensor, new: Tensor) -> Any:
        written = aten.index_copy(cache, 0, row, new)
        view = aten.slice(written, 0, 2, 3)
        return [], [aten.index_copy(written, 0, row, view)]

    check(step, CACHE, {"row": ROW, "new": NEW}, region=2)


def test_states_that_change_places() -> None:
    state = {"left": torch.arange(3.0), "right": -torch.arange(3.0)}
    check(lambda left, right: ([], [right, left]), state, {})
    check(lambda left, right: ([left], [left, right]), state, {})
    check(lambda left, right, new: ([], [new, left]), state, {"new": torch.ones(3)})
    check(lambda left, right, new: ([right], [left + 1, aten.view(new, [3])]), state, {"new": torch.ones(3)})


@given(st.data())
def test_any_order_of_reads_and_writes(data: st.DataObject) -> None:
    ops = data.draw(st.lists(st.sampled_from(["write", "fill", "read", "view", "swap", "add"]), min_size=1, max_size=9))

    def step(left: Tensor, right: Tensor, row: Tensor, new: Tensor) -> Any:
        outputs, views = [], [new]
        for op in ops:
            if op == "write":
                left = aten.index_copy(left, 0, row, views[-1][:1])
            elif op == "fill":
                left = aten.masked_fill(left, left > 5, 1.0)
            elif op == "read":
                outputs.append(left + views[-1][:1])
            elif op == "view":
                views.append(aten.slice(left, 0, 1, 3))
            elif op == "swap":
                left, right = right, left
            else:
                left = left + right
        return [*outputs, views[-1]], [left, right]

    state = {"left": torch.arange(12.0).view(4, 3), "right": torch.arange(12.0).view(4, 3) - 20}
    inputs = {"row": torch.tensor([2]), "new": torch.full((2, 3), 7.0)}
    region, together = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 4))
    program = check(step, state, inputs, region, together)
    if region:
        ops_in = sum(call.piece.name != "state" for call in program.calls)
        assert ops_in <= len(targets(program)) // together + 1


class Remembers(nn.Module):
    """Layers with one body, each with a cache of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer() for _ in range(3))

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, row)
        return x * 2


class _Layer(nn.Module):
    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.register_buffer("cache", torch.zeros(6, 4))

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.linear(x)))
        self.cache.index_copy_(0, row, x)
        return x + self.cache.mean(0)


@pytest.mark.parametrize("together", [1, 3])
def test_layers_share_a_piece_that_writes_their_state_in_place(together: int) -> None:
    torch.manual_seed(0)
    passes = [PartitionLayers(layers=together) if isinstance(p, PartitionLayers) else p for p in DEFAULT_PIPELINE]
    compiled = gaudicc.compile(Remembers().eval(), (torch.randn(1, 4), torch.tensor([1])), passes=passes)
    (step,) = compiled.plan().steps
    assert isinstance(step, Record)
    static = compiled.static_program()
    states = {spec.name for spec in static.inputs if spec.name.endswith("cache")}
    state = {name: step.outputs.index(name) for name in states}
    segment = Segment(step.graph, {name: t.clone() for name, t in static.bound().items()}, state)
    program = prepared(segment)
    regions = [call.piece for call in program.calls if call.piece.name != "root"]
    assert len(regions) == 3 // together
    assert len(set(regions)) == 1
    assert aten.copy_.default not in targets(program)
    assert regions[0].written
    x, row = torch.randn(1, 4), torch.tensor([2])
    results = [value for i, value in enumerate(run(program, segment, {"x": x, "row": row})) if i not in state.values()]
    torch.testing.assert_close(results, [compiled(x, row)])
    assert 0 < workspace_bytes(program) < 10_000


@given(st.lists(st.sampled_from(["grow", "add", "view", "keep", "sum"]), min_size=2, max_size=9), st.integers(1, 3))
def test_workspace_of_layers_looked_at_once_is_that_of_their_sub_graph(ops: list[str], together: int) -> None:
    def step(x: Tensor) -> Any:
        values, outputs = [x], []
        for op in ops:
            if op == "grow":
                values.append(aten.cat([values[-1], values[-1] * 2]))
            elif op == "add":
                values.append(values[-1] + values[max(0, len(values) - 3)][:1])
            elif op == "view":
                values.append(aten.slice(values[-1], 0, 0, 2))
            elif op == "sum":
                values.append(values[-1].sum(0, keepdim=True))
            else:
                outputs.append(values[-1] * 3)
        return [*outputs, values[-1] + 1], []

    segment = outlined(segment_of(step, {}, {"x": torch.ones(4, 3)}), 2, together)
    whole, apart = (split(segment, lambda flat: None, together=each) for each in (True, False))
    assert len(apart.calls) >= len(whole.calls)
    assert workspace_bytes(apart) == workspace_bytes(whole) > 0


def test_what_is_written_in_place_takes_no_workspace() -> None:
    def step(cache: Tensor, row: Tensor, new: Tensor) -> Any:
        return [new + 1], [aten.index_copy(cache, 0, row, new)]

    segment = segment_of(step, CACHE, {"row": ROW, "new": NEW})
    assert workspace_bytes(prepared(segment)) < workspace_bytes(split(segment, lambda flat: None))
    assert workspace_bytes(prepared(segment)) == 2 * NEW.nbytes  # made in the piece, and handed on


def test_pieces_are_told_apart_by_numbers_and_layouts() -> None:
    def pieces(function: Callable[..., Any], x: Tensor) -> Any:
        return split(segment_of(lambda x: ([function(x)], []), {}, {"x": x}), lambda flat: None).pieces[0].structure

    x = torch.ones(2, 2)
    assert pieces(lambda x: x * 2.0, x) == pieces(lambda x: x * 2.0, x)
    others = [
        pieces(lambda x: x * 2.0, x), pieces(lambda x: x * 3.0, x), pieces(lambda x: x + 2.0, x),
        pieces(lambda x: x * 0.0, x), pieces(lambda x: x * -0.0, x), pieces(lambda x: x * 2.0, x.bfloat16()),
        pieces(lambda x: x * 2.0, torch.ones(2, 4)[:, ::2]), pieces(lambda x: x * 2.0, torch.ones(4, 1)),
    ]  # fmt: skip
    assert len(set(others)) == len(others)


def test_state_must_be_its_own_memory() -> None:
    whole = torch.zeros(4)
    refuse_shared_state({"a": whole[:2], "b": whole[2:]}, {"a": 0})
    refuse_shared_state({"a": whole, "b": whole[2:]}, {})
    with pytest.raises(LoweringError, match="b shares memory with a, one of them is state"):
        refuse_shared_state({"a": whole[:3], "b": whole[2:]}, {"a": 0})
    with pytest.raises(LoweringError, match="state buffer c is not bound"):
        refuse_shared_state({"a": whole}, {"c": 0})
