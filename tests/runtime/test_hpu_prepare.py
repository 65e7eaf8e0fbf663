"""Every rule of a capture is checked before it begins: what breaks one is named, with the user's line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from gaudicc.capture import capture
from gaudicc.errors import LoweringError
from gaudicc.kernels import attention, merge_parts, rms_norm, softmax_part, softmax_tile
from gaudicc.runtime.device import Segment
from gaudicc.runtime.hpu_kernels import _one_hot, fused_attention, fused_rms_norm
from gaudicc.runtime.hpu_pieces import DeviceProgram, split
from gaudicc.runtime.hpu_prepare import COLLECTIVES, Preparer, refuse_host_reads
from gaudicc.targets import Mode, load_target

aten = torch.ops.aten
TARGET = load_target("gaudi3")
X = torch.ones(4, 4)


def prepared(graph: fx.GraphModule, mode: Mode = Mode.LAZY) -> DeviceProgram:
    preparer = Preparer(TARGET, mode)
    refuse_host_reads(graph)
    program = split(Segment(graph, {}, {}), preparer.prepare)
    for piece in program.pieces:
        preparer.check(piece.graph)
    return program


def of(function: Callable[..., Any], *examples: Tensor) -> fx.GraphModule:
    return capture(function, examples).root


def by_hand(op: Any, result: Any, *args: Any) -> fx.GraphModule:
    """A graph of one call on a placeholder `x`; for what capture would refuse."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = X.to("meta")
    call = graph.call_function(op, (x, *args))
    call.meta = {"val": result, "stack_trace": 'File "/home/model/attention.py", line 7, in forward'}
    graph.output((call,))
    return fx.GraphModule({}, graph)


def targets(program: DeviceProgram) -> set[Any]:
    return {node.target for piece in program.pieces for node in piece.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("mode", Mode)
def test_an_op_that_only_the_host_has_is_named_with_its_line(mode: Mode) -> None:
    with pytest.raises(LoweringError, match=r"aten::digamma.*\(and 1 more\)") as caught:
        prepared(of(lambda x: torch.digamma(torch.digamma(x + 1)), X), mode)
    place = caught.value.where
    assert place.op == "aten.digamma"
    assert "test_hpu_prepare.py:" in str(place.source)
    assert f"on gaudi3, {mode.value} mode" in str(place.stage)


META = torch.empty(4, 4, device="meta")
FORBIDDEN = {
    "reads a value on the host": by_hand(aten._local_scalar_dense.default, 1.0),
    "the size of aten.nonzero.default's result depends on data": by_hand(
        aten.nonzero.default, torch.empty(4, 2, dtype=torch.int64, device="meta")
    ),
    "would compute it in float32": by_hand(aten._to_copy.default, META.double()),
    "holds no complex numbers": by_hand(aten._to_copy.default, META.to(torch.complex64)),
    "depends on strides": by_hand(aten.as_strided.default, META, [4, 4], [1, 4]),
    "step": by_hand(aten.slice.Tensor, META[::2], 0, 0, 4, 2),
}


@pytest.mark.parametrize("reason", FORBIDDEN)
def test_what_would_split_freeze_or_narrow_is_refused(reason: str) -> None:
    graph = FORBIDDEN[reason]
    with pytest.raises(LoweringError, match=reason) as caught:
        prepared(graph)
    assert caught.value.where.source == "model/attention.py:7"


def test_numbers_beyond_32_bits_are_refused_where_the_mode_narrows_them() -> None:
    graph = of(lambda x: x * 2**40, torch.ones(4, dtype=torch.int64))
    with pytest.raises(LoweringError, match=f"computes int64 with {2**40}, which lazy mode narrows"):
        prepared(graph)
    prepared(graph, Mode.COMPILE)
    prepared(of(lambda x: x * 2**30, torch.ones(4, dtype=torch.int64)))
    prepared(of(lambda x: x[:, 1:] * 1e300, X))  # the end of a slice is no value


@pytest.mark.parametrize("number", [2**40, 1e15, float("inf")])
def test_floats_that_become_integers_are_numbers_too(number: float) -> None:
    whole, index, mask = torch.ones(4, dtype=torch.int64), torch.tensor([1]), torch.tensor([True, False, True, False])
    filled = {
        "masked_fill": lambda x: x.masked_fill(mask, number),
        "full_like": lambda x: torch.full_like(x, number),
        "index_fill": lambda x: x.index_fill(0, index, number),
        "scatter": lambda x: torch.ops.aten.scatter.value(x, 0, index, number),
    }
    for name, function in filled.items():
        if number != float("inf"):
            with pytest.raises(LoweringError, match=rf"{name}.* computes int64 with"):
                prepared(of(function, whole))
        prepared(of(function, torch.ones(4)))


def test_collectives_need_their_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch.distributed._functional_collectives")
    graph = by_hand(torch.ops._c10d_functional.all_reduce.default, META, "sum", "0")
    monkeypatch.delenv(COLLECTIVES, raising=False)
    with pytest.raises(LoweringError, match=f"needs {COLLECTIVES}=true"):
        prepared(graph)
    monkeypatch.setenv(COLLECTIVES, "true")
    with pytest.raises(LoweringError, match="no source knows"):  # the next rule; the tables do not speak of collectives
        prepared(graph)


def test_semantic_ops_become_kernels() -> None:
    q = torch.ones(1, 4, 8, 16)
    graph = of(lambda q: attention(q, q, q, None, True, 0.5), q)
    assert targets(prepared(graph)) == {fused_attention}
    norm = of(lambda x, w: rms_norm(x, w, 1e-6, False), X, torch.ones(4))
    assert targets(prepared(norm)) == {fused_rms_norm}


def test_what_no_kernel_computes_becomes_plain_aten() -> None:
    part = (torch.ones(2, 4, 4), torch.ones(2, 4, 1), torch.ones(2, 4, 1))

    def both(x: Tensor) -> Any:
        weights, top, total = softmax_part(x, None, None, 0, 0.5)
        return softmax_tile(x, x > 0, None, None, 0.5) + weights, merge_parts(weights, top, total, *part)

    found = prepared(of(both, torch.randn(2, 4, 4)))
    names = {getattr(target, "namespace", "") for target in targets(found)}
    assert "gaudicc" not in names
    mixed = of(lambda x, w: rms_norm(x, w, 1e-6, True), X.bfloat16(), torch.ones(4))
    assert fused_rms_norm not in targets(prepared(mixed))


@pytest.mark.parametrize(("mode", "kept"), [(Mode.LAZY, True), (Mode.COMPILE, False)])
def test_what_hpu_backend_leaves_outside_its_clusters_is_replaced(mode: Mode, kept: bool) -> None:
    graph = by_hand(aten.addcmul.default, META)
    call = next(iter(graph.graph.find_nodes(op="call_function", target=aten.addcmul.default)))
    call.args = (call.args[0],) * 3
    assert (aten.addcmul.default in targets(prepared(graph, mode))) is kept


@pytest.mark.parametrize(("mode", "kept"), [(Mode.LAZY, True), (Mode.COMPILE, False)])
def test_classes_are_compared_where_hpu_backend_would_assert_on_the_host(mode: Mode, kept: bool) -> None:
    graph = by_hand(aten.one_hot.default, torch.zeros(3, dtype=torch.int64, device="meta"), 4)
    assert (aten.one_hot.default in targets(prepared(graph, mode))) is kept
    classes = torch.tensor([[3, 0], [1, 1]])
    assert torch.equal(_one_hot(classes, 4), torch.nn.functional.one_hot(classes, 4))


def test_factories_move_to_the_device_and_views_do_not_trust_strides() -> None:
    graph = by_hand(aten.new_zeros.default, META, [4, 4])
    call = next(iter(graph.graph.find_nodes(op="call_function", target=aten.new_zeros.default)))
    call.kwargs = {"device": torch.device("cpu")}
    (node,) = [n for piece in prepared(graph).pieces for n in piece.graph.nodes if n.op == "call_function"]
    assert node.kwargs == {}
    program = prepared(of(lambda x: (torch.empty(3, 3) * 0 + 1, x.view(16)), X))
    factories = [n for piece in program.pieces for n in piece.graph.nodes if n.target is aten.empty.memory_format]
    assert all(node.kwargs["device"] == "hpu" for node in factories)
    assert aten.view.default not in targets(program)
    assert aten.reshape.default in targets(program)
