"""Recording and replay on the emulated device, in both modes: values, memory, state, and what happens when it fails."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gaudicc
from gaudicc.errors import AutocastError, InputError, LoweringError, ShapeError, StateError
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.passes.partition_layers import PartitionLayers

th: Any = torch
"""torch as a child process has it: with `torch.hpu`."""


def counts() -> dict[str, int]:
    import gaudicc.emulator
    from gaudicc.emulator.ledger import Kind

    account = gaudicc.emulator.account()
    found = {kind.name: account.count(kind) for kind in Kind if account.count(kind)}
    account.clear()
    return found


class Layer(nn.Module):
    """One of several alike, with a cache of its own where asked for."""

    cache: Tensor

    def __init__(self, cached: bool) -> None:
        super().__init__()
        self.linear, self.norm, self.cached = nn.Linear(4, 4), nn.LayerNorm(4), cached
        if cached:
            self.register_buffer("cache", torch.zeros(6, 4))

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.linear(x)))
        if self.cached:
            self.cache.index_copy_(0, row, x)
            return x + self.cache.mean(0)
        return x + row


class Stack(nn.Module):
    def __init__(self, layers: int = 3, *, cached: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(cached) for _ in range(layers))

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, row)
        return x * 2


def stack(**options: Any) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return Stack(**options).eval(), (torch.randn(1, 4), torch.tensor([1]))


def check(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-6)


def test_it_says_which_mode_and_why(mode: str) -> None:
    model, inputs = stack()
    note = gaudicc.compile(model, inputs, device="hpu").notes[0]
    assert note.startswith("device hpu: emulated gaudi3, Gaudi software 1.19.0, ")
    said = {"lazy": "lazy mode with HPU graphs: PT_HPU_LAZY_MODE=1", "compile": "hpu_backend: PT_HPU_LAZY_MODE=0"}
    assert note.endswith(said[mode])
    assert gaudicc.compile(model, inputs).notes[0] == "device cpu: the Gaudi here is emulated"


def test_layers_share_one_recipe(mode: str) -> None:
    passes = [PartitionLayers(layers=1) if isinstance(step, PartitionLayers) else step for step in DEFAULT_PIPELINE]
    compiles = []
    for layers in (2, 5):
        model, inputs = stack(layers=layers)
        compiled = gaudicc.compile(model, inputs, device="hpu", passes=passes)
        compiled.warm_up()
        found = counts()
        compiles.append(found.get("COMPILE", 0))
        assert found.get("HIT", 0) >= layers - 1
        check(compiled(*inputs), model(*inputs))
    assert compiles[1] == 0, "five layers are the two that were compiled, again"


def test_results_are_the_callers_own(mode: str) -> None:
    model, (x, row) = stack()
    compiled = gaudicc.compile(model, (x, row), device="hpu")
    first = compiled(x, row)
    kept = first.clone()
    second = compiled(x + 1, row)
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)
    first.zero_()
    check(compiled(x, row), kept)


def test_borrowed_results_stay_on_the_device(mode: str) -> None:
    model, inputs = stack()
    compiled = gaudicc.compile(model, inputs, device="hpu", outputs="borrow")
    compiled.warm_up()
    counts()
    out = compiled(*inputs)
    assert out.device.type == "hpu"
    assert "TO_HOST" not in counts()
    check(out.cpu(), model(*inputs))


def test_inputs_may_lie_on_the_device(mode: str) -> None:
    from gaudicc.runtime.hpu import open_hpu
    from gaudicc.runtime.runner import Counters, Runner

    model, inputs = stack()
    compiled = gaudicc.compile(model, inputs)
    runner = Runner(compiled.plan(), compiled.static_program().bound(), open_hpu()[0], Counters())
    counts()
    (out,) = runner.run([each.to("hpu") for each in inputs])
    check(out, model(*inputs))


def test_weights_loaded_afterwards_are_used(mode: str) -> None:
    model, inputs = stack()
    other, _ = stack()
    compiled = gaudicc.compile(model, inputs, device="hpu")
    check(compiled(*inputs), model(*inputs))
    with torch.no_grad():
        other.layers[1].linear.weight.mul_(3)  # type: ignore[index, union-attr]
    model.load_state_dict(other.state_dict())
    counts()
    check(compiled(*inputs), other(*inputs))
    found = counts()
    assert "CAPTURE" not in found
    assert "COMPILE" not in found
    model.layers[0].linear.weight.data = torch.eye(4)  # type: ignore[index, union-attr]
    check(compiled(*inputs), model(*inputs))


def test_state_lives_on_the_device(mode: str) -> None:
    model, (x, row) = stack(cached=True)
    compiled = gaudicc.compile(model, (x, row), device="hpu")
    other = compiled.session()
    compiled.warm_up()
    counts()
    for step in range(4):
        check(compiled(x + step, row + step), model(x + step, row + step))
    found = counts()
    assert found["TO_DEVICE"] == 8
    assert found["TO_HOST"] == 4
    assert not set(found) & {"COMPILE", "CAPTURE", "HAZARD", "SPLIT", "FALLBACK"}
    fresh, _ = stack(cached=True)
    check(
        other(x, row), fresh(x, row)
    )  # a session has state of its own, untouched by recording and by the model's calls


def test_state_is_written_in_place(mode: str) -> None:
    model, inputs = stack(cached=True)
    compiled = gaudicc.compile(model, inputs, device="hpu")
    compiled.warm_up()
    runner = next(iter(compiled._runners.values()))
    recording: Any = runner._only
    ops = {node.target for piece in recording._program.pieces for node in piece.graph.nodes}
    assert torch.ops.aten.index_copy_.default in ops
    assert not ops & {torch.ops.aten.copy_.default, torch.ops.aten.index_copy.default}


class Counts(nn.Module):
    """State that is new at every call: it cannot be written in place."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        before = self.total.clone()
        self.total.add_(x.sum(0))
        return before


def test_state_that_is_read_before_it_is_replaced(mode: str) -> None:
    compiled = gaudicc.compile(Counts().eval(), (torch.ones(2, 4),), device="hpu")
    for step in range(3):
        check(compiled(torch.ones(2, 4)), torch.full((4,), 2.0 * step))


def test_the_host_may_read_and_write_state_between_calls(mode: str) -> None:
    from gaudicc.runtime.hpu import open_hpu
    from gaudicc.runtime.runner import Counters, Runner

    program = gaudicc.compile(Counts().eval(), (torch.ones(2, 4),))
    device: Any = open_hpu()[0]
    bound = {name: tensor.clone() for name, tensor in program.static_program().bound().items()}
    (total,) = bound.values()
    runner = Runner(program.plan(), bound, device, Counters())
    ones = torch.ones(2, 4)
    runner.run([ones])
    assert device.fetch(total).tolist() == [2.0] * 4
    total.fill_(7.0)
    (before,) = runner.run([ones])
    assert before.tolist() == [7.0] * 4
    total.zero_()  # without fetch: the device's 9 would be lost
    with pytest.raises(StateError, match="was written on the host, but its newest values are on the device"):
        runner.run([ones])
    assert device.fetch(total).tolist() == [9.0] * 4
    assert runner.run([ones])[0].tolist() == [9.0] * 4


def test_wrong_inputs_are_refused_before_anything_runs(mode: str) -> None:
    from gaudicc.runtime.hpu import open_hpu
    from gaudicc.runtime.runner import Counters, Runner

    compiled = gaudicc.compile(Counts().eval(), (torch.ones(2, 4),))
    bound = {name: tensor.clone() for name, tensor in compiled.static_program().bound().items()}
    run = Runner(compiled.plan(), bound, open_hpu()[0], Counters()).run
    with pytest.raises(ShapeError, match=r"input x is float32\[3, 4\], the recording takes float32\[2, 4\]"):
        run([torch.ones(3, 4)])
    with pytest.raises(ShapeError, match="float64"):
        run([torch.ones(2, 4, dtype=torch.float64)])
    with pytest.raises(InputError, match="2 inputs given, the recording takes 1"):
        run([torch.ones(2, 4)] * 2)
    (total,) = bound.values()
    with pytest.raises(StateError, match="shares memory with a state buffer"):
        run([total.expand(2, 4)])
    with pytest.raises(AutocastError), torch.autocast("hpu"):
        run([torch.ones(2, 4)])
    assert run([torch.ones(2, 4)])[0].tolist() == [0.0] * 4


def test_integers_that_do_not_fit_are_refused_where_they_would_wrap(mode: str) -> None:
    wide = torch.tensor([2**40, 1])
    compiled = gaudicc.compile(lambda x: x + 1, (torch.tensor([1, 2]),), device="hpu")
    if mode == "lazy":
        with pytest.raises(LoweringError, match=f"input x holds {2**40}, which lazy mode narrows to int32"):
            compiled(wide)
        with pytest.raises(LoweringError, match=r"holds(.|\n)*test_hpu_on_device.py:\d+, aten.add.Tensor"):
            gaudicc.compile(lambda x: x + wide, (wide - 2**40,), device="hpu").warm_up()
    else:
        assert compiled(wide).tolist() == [2**40 + 1, 2]
    assert compiled(torch.tensor([3, 4])).tolist() == [4, 5]


class Grouped(nn.Module):
    """Attention as models write it: grouped heads, masks of both kinds, rows that see nothing."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        causal = self.causal and mask is None
        out = nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)
        return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("kind", ["none", "causal", "bool", "per head", "float"])
def test_fused_attention_means_what_the_model_means(mode: str, kind: str) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    mask = torch.rand(2, 4 if kind == "per head" else 1, 5, 5) > 0.3
    mask[0, 0, 1] = False  # a row that sees nothing is zero
    given: tuple[Tensor, ...] = (q, k, v)
    if kind in ("bool", "per head"):
        given += (mask,)
    elif kind == "float":
        given += (torch.zeros(2, 1, 5, 5).masked_fill(~mask, float("-inf")),)
    model = Grouped(kind == "causal").eval()
    compiled = gaudicc.compile(model, given, device="hpu")
    torch.testing.assert_close(compiled(*given), model(*given), rtol=0, atol=1e-5)


def test_several_threads_may_call(mode: str) -> None:
    model, (x, row) = stack()
    compiled = gaudicc.compile(model, (x, row), device="hpu")
    compiled.warm_up()
    wrong: list[Any] = []

    def call(seed: int) -> None:
        for step in range(5):
            given = x + seed * 10 + step
            try:
                check(compiled(given, row), model(given, row))
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.library.custom_op("gaudicc_hpu_tests::twist", mutates_args=(), schema="(Tensor x) -> Tensor")
def twist(x: Tensor) -> Tensor:
    """A kernel of the user's own, which no Gaudi has."""
    return x.flip(0)


twist.register_fake(torch.empty_like)


def test_host_ops_stand_between_recordings(mode: str) -> None:
    class Model(Counts):
        def forward(self, x: Tensor) -> Tensor:
            self.total.add_(x.sum(0))
            out: Tensor = twist(self.total * 2) + self.total
            return out

    x = torch.rand(2, 4)
    model = Model().eval()
    compiled = gaudicc.compile(model, (x,), device="hpu", on_unsupported="host")
    for _ in range(3):
        check(compiled(x), model(x))
    assert compiled.stats.records == 2
    assert compiled.stats.host_ops == 3
    assert "FALLBACK" not in counts()


def test_memory_comes_back(mode: str) -> None:
    before = th.hpu.memory.memory_allocated()
    model, inputs = stack()
    compiled = gaudicc.compile(model, inputs, device="hpu")
    compiled(*inputs)
    held = th.hpu.memory.memory_allocated()
    assert held > before
    assert compiled.stats.bytes_held > 0
    again = gaudicc.compile(model, inputs, device="hpu")
    again(*inputs)
    assert th.hpu.memory.memory_allocated() == held, "the same graph on the same weights"
    del compiled
    gc.collect()
    assert th.hpu.memory.memory_allocated() == held
    check(again(*inputs), model(*inputs))
    del again
    gc.collect()
    assert th.hpu.memory.memory_allocated() == before


def test_models_that_share_state_see_each_others_writes(mode: str) -> None:
    model = Counts().eval()
    first, second = (gaudicc.compile(model, (torch.ones(rows, 4),), device="hpu", own_state=False) for rows in (2, 3))
    assert first(torch.ones(2, 4)).tolist() == [0.0] * 4
    assert second(torch.ones(3, 4)).tolist() == [2.0] * 4
    assert first(torch.ones(2, 4)).tolist() == [5.0] * 4


def test_doctor_tells_mode_and_flags(mode: str) -> None:
    import contextlib
    import io
    import json

    from gaudicc.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["doctor", "--json"]) == 0
    facts = json.loads(out.getvalue())
    assert facts["habana_frameworks"] == "emulated by gaudicc in this process"
    assert ("lazy mode" in facts["hpu mode"]) is (mode == "lazy")
    assert facts["hpu flags"]["PT_HPU_LAZY_MODE"] == f"{int(mode == 'lazy')}: ok"
    assert facts["devices"]["hpu"].startswith("yes (device hpu: emulated gaudi3")


def test_results_that_the_model_has_on_the_device_stay_there(mode: str) -> None:
    from gaudicc.runtime.device import Segment
    from gaudicc.runtime.hpu import open_hpu

    graph: Any = gaudicc.compile(nn.ReLU().eval(), (torch.ones(3),)).graph()
    (out,) = graph.graph.output_node().args[0]
    out.meta["val"] = torch.ones(3).to("hpu")
    recording = open_hpu()[0].record(Segment(graph, {}, {}))
    (first,) = recording.replay(torch.tensor([1.0, -1.0, 2.0]))
    (second,) = recording.replay(torch.tensor([-1.0, 4.0, 2.0]))
    assert first.device.type == second.device.type == "hpu"
    assert (first.tolist(), second.tolist()) == ([1.0, 0.0, 2.0], [0.0, 4.0, 2.0])


def test_recording_writes_no_state_even_where_everything_is_launched(mode: str) -> None:
    import contextlib

    from habana_frameworks.torch.internal import bridge_config

    changed: Any = bridge_config
    changed.env_setting = lambda name, value: contextlib.nullcontext()  # a bridge that does not know the flag
    model, (x, row) = stack(cached=True)
    compiled = gaudicc.compile(model, (x, row), device="hpu")
    compiled.warm_up()
    check(compiled(x, row), model(x, row))
