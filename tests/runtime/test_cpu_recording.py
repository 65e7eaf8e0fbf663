"""Recording and replaying equals running the graph, for hand-made and random segments."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from gaudicc.errors import AutocastError, InputError, LoweringError, ShapeError, StateError
from gaudicc.nodes import call_region
from gaudicc.runtime.cpu import CpuDevice, CpuRecording
from gaudicc.runtime.device import Segment

aten = torch.ops.aten


class Build:
    """A segment by hand: every node is run on real tensors to know its value."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.real: dict[fx.Node, Any] = {}
        self.bound: dict[str, torch.Tensor] = {}
        self.inputs: list[torch.Tensor] = []
        self.modules: dict[str, Any] = {}

    def place(self, name: str, tensor: torch.Tensor, *, bind: bool) -> fx.Node:
        node = self.graph.placeholder(name)
        node.meta["val"] = self.real[node] = tensor.clone()
        if bind:
            self.bound[name] = tensor
        else:
            self.inputs.append(tensor)
        return node

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        node = self.graph.call_function(target, args, kwargs)
        real_args, real_kwargs = fx.map_arg((args, kwargs), lambda n: self.real[n])
        node.meta["val"] = self.real[node] = target(*real_args, **real_kwargs)
        return node

    def attribute(self, name: str, module: fx.GraphModule) -> fx.Node:
        self.modules[name] = module
        node = self.graph.get_attr(name)
        self.real[node] = module
        return node

    def segment(self, *outputs: Any, state: dict[str, int] | None = None) -> Segment:
        self.graph.output(tuple(outputs))
        return Segment(fx.GraphModule(self.modules, self.graph), self.bound, state or {})


def reference(segment: Segment, inputs: list[torch.Tensor]) -> tuple[Any, ...]:
    """The graph interpreted on copies."""
    values = iter(inputs)
    names = [node.name for node in segment.graph.graph.find_nodes(op="placeholder")]
    args = [segment.bound[name].clone() if name in segment.bound else next(values).clone() for name in names]
    result: tuple[Any, ...] = segment.graph(*args)
    return result


def check(segment: Segment, inputs: list[torch.Tensor], *, atol: float = 1e-5, borrow: bool = False) -> CpuRecording:
    expected = reference(segment, inputs)
    held = [tensor.clone() for tensor in inputs]
    recording = CpuDevice().record(segment, borrow=borrow)
    got = recording.replay(*inputs)
    plain = [value for index, value in enumerate(expected) if index not in segment.state.values()]
    assert len(got) == len(plain)
    for mine, theirs in zip(got, plain, strict=True):
        assert_same(mine, theirs, atol)
    for name, index in segment.state.items():
        torch.testing.assert_close(segment.bound[name], expected[index], atol=atol, rtol=1e-5)
    for now, before in zip(inputs, held, strict=True):
        assert torch.equal(now, before)
    return recording


def assert_same(mine: Any, theirs: Any, atol: float) -> None:
    if not isinstance(theirs, torch.Tensor):
        assert mine == theirs
        return
    assert mine.dtype == theirs.dtype
    assert mine.stride() == theirs.stride()
    torch.testing.assert_close(mine, theirs, atol=atol, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize(
    "op",
    [
        lambda build, x: build.call(aten._unsafe_view.default, x, [4, 6]),
        lambda build, x: build.call(operator.getitem, build.call(aten.unsafe_split.Tensor, x, 2), 1),
        lambda build, x: build.call(operator.getitem, build.call(aten.unsafe_split_with_sizes.default, x, [1, 3]), 1),
        lambda build, x: build.call(operator.getitem, build.call(aten.unsafe_chunk.default, x, 2), 0),
        lambda build, x: build.call(aten.type_as.default, x, x),
        lambda build, x: build.call(aten.conj_physical.default, x),
        lambda build, x: build.call(aten.dropout.default, x, 0.5, False),
    ],
)
def test_a_view_that_its_schema_does_not_speak_of_keeps_what_it_views(op: Callable[[Build, fx.Node], fx.Node]) -> None:
    """A GRU cell takes its gates apart with `unsafe_split`: what it split must not be overwritten before they are read."""
    build = Build()
    x = build.place("x", torch.randn(4, 6), bind=False)
    view = op(build, build.call(aten.add.Tensor, x, 1))
    other = x
    for factor in (2.0, 3.0, 4.0):  # each wants memory of its own, as large as what was viewed
        other = build.call(aten.sin.default, build.call(aten.mul.Tensor, other, factor))
    check(build.segment(build.call(aten.sum.default, other), build.call(aten.mul.Tensor, view, 2)), build.inputs)


UNARY = (
    aten.neg.default,
    aten.tanh.default,
    aten.sigmoid.default,
    aten.silu.default,
    aten.relu.default,
    aten.sin.default,
)
BINARY = (aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor, aten.maximum.default)


@st.composite
def random_segments(draw: st.DrawFn) -> Segment:
    """A few ops over a 4 x 6 input, a bound weight and a bound state buffer, outputs drawn from all values."""
    build = Build()
    torch.manual_seed(draw(st.integers(0, 999)))
    nodes = [
        build.place("x", torch.randn(4, 6), bind=False),
        build.place("w", torch.randn(4, 6), bind=True),
        build.place("s", torch.randn(4, 6), bind=True),
    ]
    new_state: fx.Node = nodes[2]
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["unary", "binary", "view", "cat", "reduce", "write", "linear"]))
        pick = st.sampled_from(nodes)
        if kind == "unary":
            node = build.call(draw(st.sampled_from(UNARY)), draw(pick))
        elif kind == "binary":
            node = build.call(draw(st.sampled_from(BINARY)), draw(pick), draw(pick))
        elif kind == "view":
            turned = build.call(aten.transpose.int, draw(pick), 0, 1)
            half = build.call(aten.slice.Tensor, turned, 0, 1, 4)
            node = build.call(aten.slice_scatter.default, draw(pick), build.call(aten.t.default, half), 1, 2, 5)
        elif kind == "cat":
            parts = [
                build.call(aten.slice.Tensor, draw(pick), 0, 0, 2),
                build.call(aten.slice.Tensor, draw(pick), 0, 2, 4),
            ]
            node = build.call(aten.cat.default, parts)
        elif kind == "reduce":
            node = build.call(aten.mul.Tensor, draw(pick), build.call(aten.mean.dim, draw(pick), [-1], True))
        elif kind == "linear":
            square = build.call(aten.mm.default, draw(pick), build.call(aten.t.default, draw(pick)))
            node = build.call(aten.mm.default, square, draw(pick))
        else:
            index = draw(st.integers(0, 3))
            source = build.call(aten.slice.Tensor, draw(pick), 0, index, index + 1)
            node = new_state = build.call(aten.slice_scatter.default, new_state, source, 0, 3 - index, 4 - index)
        nodes.append(node)
    turned = build.call(aten.transpose.int, draw(st.sampled_from(nodes)), 0, 1)
    outputs = draw(st.lists(st.sampled_from([*nodes, turned]), min_size=1, max_size=4))
    return build.segment(*outputs, new_state, state={"s": len(outputs)})


@settings(max_examples=60, deadline=None)
@given(random_segments(), st.booleans())
def test_replay_equals_the_graph(segment: Segment, borrow: bool) -> None:
    torch.manual_seed(5)
    x = torch.randn(4, 6)
    recording = check(segment, [x], borrow=borrow)
    expected = reference(segment, [x + 1])  # a second replay starts from the state the first one left
    got = recording.replay(x + 1)
    for mine, theirs in zip(got, expected, strict=False):
        assert_same(mine, theirs, 1e-4)


def test_outputs_are_fresh_and_alias_nothing() -> None:
    build = Build()
    x = build.place("x", torch.randn(3, 4), bind=False)
    w = build.place("w", torch.randn(3, 4), bind=True)
    total = build.call(aten.add.Tensor, x, w)
    segment = build.segment(
        x, w, total, build.call(aten.t.default, total), build.call(aten.expand.default, total, [2, 3, 4])
    )
    recording = check(segment, build.inputs)
    given_x = torch.randn(3, 4)
    first = recording.replay(given_x)
    again = [value.clone() for value in first]
    recording.replay(torch.randn(3, 4))
    storages = [value.untyped_storage().data_ptr() for value in first]
    assert len(set(storages)) == len(storages)
    assert given_x.untyped_storage().data_ptr() not in storages
    assert segment.bound["w"].untyped_storage().data_ptr() not in storages
    for value, kept in zip(first, again, strict=True):
        assert torch.equal(value, kept)


def cache_segment(position_bound: bool = False) -> tuple[Build, Segment]:
    """A cache of 8 rows: write one row, read all of it, count in a second buffer."""
    build = Build()
    cache = build.place("cache", torch.zeros(8, 4), bind=True)
    count = build.place("count", torch.zeros((), dtype=torch.int64), bind=True)
    row = build.place("row", torch.randn(1, 4), bind=False)
    where = build.place("where", torch.tensor([2]), bind=False)
    new = build.call(aten.index_copy.default, cache, 0, where, row)
    counted = build.call(aten.add.Tensor, count, 1)
    read = build.call(aten.sum.dim_IntList, build.call(aten.slice.Tensor, new, 0, 0, 6), [0], True)
    return build, build.segment(new, counted, read, state={"cache": 0, "count": 1})


def test_state_is_written_in_place_and_read_back() -> None:
    build, segment = cache_segment()
    recording = check(segment, build.inputs)
    assert "aten_index_copy_(cache" in recording.source
    recording.replay(torch.ones(1, 4), torch.tensor([5]))
    assert int(segment.bound["count"]) == 2
    assert torch.equal(segment.bound["cache"][5], torch.ones(4))


def test_state_is_untouched_after_an_error() -> None:
    build, segment = cache_segment()
    recording = check(segment, build.inputs)
    before = {name: tensor.clone() for name, tensor in segment.bound.items()}
    for bad in (torch.tensor([8]), torch.tensor([-1])):
        with pytest.raises(StateError, match="outside a state buffer of 8"):
            recording.replay(torch.ones(1, 4), bad)
    with pytest.raises(ShapeError):
        recording.replay(torch.ones(2, 4), torch.tensor([1]))
    with pytest.raises(StateError, match="shares memory"):
        recording.replay(segment.bound["cache"][:1], torch.tensor([1]))
    assert all(torch.equal(segment.bound[name], before[name]) for name in before)
    recording.replay(torch.ones(1, 4), torch.tensor([7]))


def test_old_value_read_after_the_write_is_the_old_value() -> None:
    build = Build()
    state = build.place("state", torch.randn(4, 4), bind=True)
    x = build.place("x", torch.randn(1, 4), bind=False)
    new = build.call(aten.slice_scatter.default, state, x, 0, 1, 2)
    late = build.call(aten.add.Tensor, state, new)
    recording = check(build.segment(new, late, state, state={"state": 0}), build.inputs)
    assert "copy_(state" in recording.source


def test_two_buffers_may_change_places() -> None:
    build = Build()
    a = build.place("a", torch.randn(3), bind=True)
    b = build.place("b", torch.randn(3), bind=True)
    check(build.segment(b, a, state={"a": 0, "b": 1}), [])


def test_a_write_that_reads_its_own_buffer_is_not_in_place() -> None:
    build = Build()
    state = build.place("state", torch.randn(6, 2), bind=True)
    moved = build.call(aten.slice.Tensor, state, 0, 0, 5)
    check(build.segment(build.call(aten.slice_scatter.default, state, moved, 0, 1, 6), state={"state": 0}), [])


def test_places_computed_late_are_checked_before_any_write() -> None:
    build = Build()
    keys, values = (build.place(name, torch.zeros(6, 2), bind=True) for name in ("keys", "values"))
    first, second = (build.place(name, torch.tensor([2]), bind=False) for name in ("first", "second"))
    x = build.place("x", torch.ones(1, 2), bind=False)
    written = build.call(aten.index_copy.default, keys, 0, first, x)
    late = build.call(aten.index_copy.default, values, 0, build.call(aten.mul.Tensor, second, 2), x)
    segment = build.segment(written, late, state={"keys": 0, "values": 1})
    with pytest.raises(StateError, match="index 6 is outside"):
        check(segment, build.inputs).replay(torch.tensor([3]), torch.tensor([3]), torch.ones(1, 2))
    assert not segment.bound["keys"][3].any()


@pytest.mark.parametrize("accumulate", [False, True])
def test_index_put_into_state(accumulate: bool) -> None:
    build = Build()
    state = build.place("state", torch.randn(2, 5, 3), bind=True)
    where = build.place("where", torch.tensor([1, -1]), bind=False)
    x = build.place("x", torch.randn(2, 2, 3), bind=False)
    new = build.call(aten.index_put.default, state, [None, where], x, accumulate)
    recording = check(build.segment(new, state={"state": 0}), build.inputs)
    with pytest.raises(StateError):
        recording.replay(torch.tensor([-6, 0]), build.inputs[1])


@pytest.mark.parametrize(
    "bad", [torch.randn(3, 5), torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, device="meta"), "text"]
)
def test_another_input_than_recorded_is_refused(bad: Any) -> None:
    build = Build()
    x = build.place("x", torch.randn(3, 4), bind=False)
    recording = check(build.segment(build.call(aten.neg.default, x)), build.inputs)
    with pytest.raises(ShapeError, match="the recording takes float32"):
        recording.replay(bad)
    with pytest.raises(InputError, match="2 inputs"):
        recording.replay(torch.randn(3, 4), torch.randn(3, 4))
    with torch.autocast("cpu"), pytest.raises(AutocastError):
        recording.replay(torch.randn(3, 4))


def test_inputs_with_other_strides_are_brought_to_the_recorded_ones() -> None:
    build = Build()
    x = build.place("x", torch.randn(3, 4), bind=False)
    recording = check(build.segment(build.call(aten.view.default, x, [12])), build.inputs)
    given_x = torch.randn(4, 3).t()
    assert torch.equal(recording.replay(given_x)[0], given_x.reshape(12))


def test_regions_are_inlined_and_share_only_code() -> None:
    inner = Build()
    x, w = inner.place("x", torch.randn(1, 8), bind=False), inner.place("w", torch.randn(8, 8), bind=False)
    out = inner.call(aten.tanh.default, inner.call(aten.linear.default, x, w))
    inner.graph.output((out, inner.call(aten.neg.default, out)))
    body = fx.GraphModule({}, inner.graph)
    build = Build()
    value = build.place("x", torch.randn(1, 8), bind=False)
    for layer in range(3):
        weight = build.place(f"w{layer}", torch.randn(8, 8), bind=True)
        attribute = build.attribute("body", body)
        both = build.call(call_region, attribute, value, weight)
        value = build.call(operator.getitem, both, layer % 2)
    segment = build.segment(value)
    recording = check(segment, build.inputs)
    assert recording.source.count("aten_mv(") == 3
    assert "call_region" not in recording.source


def test_threads_get_their_own_outputs() -> None:
    build = Build()
    x = build.place("x", torch.randn(64), bind=False)
    value = x
    for _ in range(20):
        value = build.call(aten.sin.default, build.call(aten.add.Tensor, value, x))
    segment = build.segment(value)
    recording = check(segment, build.inputs)
    inputs = [torch.randn(64) for _ in range(8)]
    expected = [reference(segment, [one])[0] for one in inputs]
    wrong: list[int] = []

    def work(which: int) -> None:
        wrong.extend(which for _ in range(30) if not torch.equal(recording.replay(inputs[which])[0], expected[which]))

    threads = [threading.Thread(target=work, args=(which,)) for which in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_buffers_are_reused() -> None:
    build = Build()
    value = build.place("x", torch.randn(1024), bind=False)
    for _ in range(50):
        value = build.call(aten.sin.default, value)
    recording = check(build.segment(value), build.inputs)
    assert recording.bytes_held <= 3 * 4096


def test_values_of_nothing_are_computed_once() -> None:
    build = Build()
    x = build.place("x", torch.randn(5), bind=False)
    steps = build.call(aten.mul.Tensor, build.call(aten.arange.default, 5), 2)
    recording = check(build.segment(build.call(aten.add.Tensor, x, steps), steps), build.inputs)
    assert "arange" not in recording.source.split("def run")[1].replace("arange_1", "").replace("mul", "")


def test_what_cannot_be_recorded_is_refused() -> None:
    build = Build()
    x = build.place("x", torch.randn(3), bind=False)
    with pytest.raises(LoweringError, match="functional"):
        CpuDevice().record(build.segment(build.call(aten.add_.Tensor, x, 1)))
    build = Build()
    build.place("a", torch.randn(3), bind=True)
    shared = build.bound["a"]
    b = build.place("b", torch.randn(3), bind=True)
    build.bound["b"] = shared
    with pytest.raises(LoweringError, match="shares memory"):
        CpuDevice().record(build.segment(b, state={"b": 0}))
    with pytest.raises(LoweringError, match="not bound"):
        CpuDevice().record(Segment(build.segment(b).graph, {}, {"b": 0}))
