"""The rules of a capture: what is fatal, what is frozen, what is taken back."""

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

th: Any = torch
"""torch as a child process has it: with `torch.hpu`."""


def counts(kind: str) -> int:
    import gaudicc.emulator
    from gaudicc.emulator.ledger import Kind

    return gaudicc.emulator.account().count(Kind[kind])


def hpu(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).to("hpu")


# the capture rules
def test_fallback_inside_a_capture_is_fatal_and_retry_works() -> None:
    graph = th.hpu.HPUGraph()
    with (
        pytest.raises(RuntimeError, match="cpu fallback is not supported during hpu graph capturing"),
        th.hpu.graph(graph),
    ):
        torch.histc(hpu(1, 2), 2)
    assert not th.hpu.is_current_stream_capturing()
    module = th.hpu.wrap_in_hpu_graph_func(lambda x: x * 2)

    def failing(x: Tensor, *_: Any) -> Tensor:
        return torch.histc(x, 2)

    broken = th.hpu.wrap_in_hpu_graph_func(failing)
    with pytest.raises(RuntimeError, match="cpu fallback"):
        broken(hpu(1, 2))
    gc.collect()
    assert module(hpu(1, 2)).tolist() == [2, 4]
    assert torch.histc(hpu(1, 2), 2).tolist() == [1, 1], "outside a capture it works"


def test_a_host_read_splits_and_freezes() -> None:
    def branching(x: Tensor) -> Tensor:
        total = x.sum().item()
        return x + total if total > 0 else x - total

    module = th.hpu.wrap_in_hpu_graph_func(branching)
    assert module(hpu(1, 2)).tolist() == [4, 5]
    assert module(hpu(-1, -2)).tolist() == [2, 1], "the branch and the value of the first call"
    assert counts("SPLIT") == 1
    assert counts("HOST_READ") == 1
    module = th.hpu.wrap_in_hpu_graph_func(lambda x: x[x > 0] * 2)
    module(hpu(1, -1, 3))
    assert module(hpu(5, 6, 7)).shape == (2,), "the size of the first call"


def test_copies_inside_a_capture_freeze_what_they_bring() -> None:
    on_host = torch.ones(2)
    module = th.hpu.wrap_in_hpu_graph_func(lambda x: x + on_host.to("hpu"))
    silently = th.hpu.wrap_in_hpu_graph_func(lambda x: x + on_host)
    for function in (module, silently):
        on_host.fill_(1)
        assert function(hpu(1, 2)).tolist() == [2, 3]
        on_host.fill_(100)
        assert function(hpu(1, 2)).tolist() == [2, 3]
    assert counts("SPLIT") == 2


def test_one_capture_at_a_time() -> None:
    outer, inner = th.hpu.HPUGraph(), th.hpu.HPUGraph()
    outer.capture_begin()
    for second in (outer, inner):
        with pytest.raises(RuntimeError, match="Capture already in progress"):
            second.capture_begin()
    with pytest.raises(RuntimeError, match="Capture in progress"):
        outer.replay()
    with th.hpu.stream(th.hpu.Stream()), pytest.raises(RuntimeError, match="same stream"):
        outer.capture_end()
    outer.capture_end()
    outer.capture_end()
    inner.capture_begin()
    del inner, second
    assert not th.hpu.is_current_stream_capturing(), "a graph that dies ends its capture"


def test_dynamic_shapes_stay_off_after_a_capture() -> None:
    th.hpu.enable_dynamic_shape()
    assert th.hpu.get_dynamic_shape_status()
    th.hpu.wrap_in_hpu_graph_func(lambda x: x * 2)(hpu(1))
    assert not th.hpu.get_dynamic_shape_status()


def test_dry_run_leaves_memory_as_it_was_and_results_empty() -> None:
    graph, x = th.hpu.HPUGraph(), hpu(1, 2)
    graph.capture_begin(dry_run=True)
    x.add_(1)
    y = x * 2
    graph.capture_end()
    assert x.tolist() == [1, 2]
    assert y.isnan().all()
    graph.replay()
    assert (x.tolist(), y.tolist()) == ([2, 3], [4, 6])


def test_a_dry_run_does_not_mind_indices_out_of_range() -> None:
    graph, x, at = th.hpu.HPUGraph(), hpu(1, 2), torch.tensor([7]).to("hpu")
    graph.capture_begin(dry_run=True)
    y = torch.index_select(x, 0, at) * 2
    graph.capture_end()
    at.copy_(torch.tensor([1]))
    graph.replay()
    assert y.tolist() == [4]
    graph = th.hpu.HPUGraph()
    at.copy_(torch.tensor([7]))
    graph.capture_begin()
    with pytest.raises(IndexError):
        torch.index_select(x, 0, at)
    graph.capture_end()


def test_update_through_a_view_of_an_input_is_reported() -> None:
    cache = torch.zeros(4, device="hpu")
    th.hpu.wrap_in_hpu_graph_func(lambda x: cache[1:3].copy_(x))(hpu(1, 2))
    assert counts("HAZARD") == 1
    th.hpu.wrap_in_hpu_graph_func(lambda x: cache.copy_(x))(hpu(1, 2, 3, 4))
    assert counts("HAZARD") == 1


def test_replay_binds_marked_inputs_by_address() -> None:
    graph, x, other = th.hpu.HPUGraph(), hpu(1, 2), hpu(0, 0)
    graph.capture_begin()
    graph.mark_user_inputs([other, x])
    y = x.view(1, 2) + 1
    graph.capture_end()
    assert graph.get_user_input_match_indices() == {1}
    graph.replayV3([other, hpu(5, 6)])
    assert (y.tolist(), x.tolist()) == ([[6, 7]], [1, 2])
    graph.replayV2([x], [hpu(7, 8)])
    assert y.tolist() == [[8, 9]]
    with pytest.raises(RuntimeError, match="Sizes is not same"):
        graph.replayV3([other, hpu(1, 2, 3)])
    graph.mark_user_outputs([y])
    with pytest.raises(RuntimeError, match="more than once"):
        graph.mark_user_outputs([y])


def test_random_numbers_are_drawn_anew_at_every_replay() -> None:
    graph, x = th.hpu.HPUGraph(), torch.zeros(8, device="hpu")
    with th.hpu.graph(graph):
        y = x + torch.rand(8, device="hpu")
    first = y.cpu().clone()
    graph.replay()
    assert not torch.equal(first, y.cpu())


def test_equal_captures_share_their_recipe() -> None:
    for _ in range(3):
        th.hpu.wrap_in_hpu_graph_func(lambda x: x * 2)(hpu(1, 2))
    assert (counts("CAPTURE"), counts("COMPILE"), counts("HIT")) == (3, 1, 2)
