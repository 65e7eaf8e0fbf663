"""static-state: caches that grow by cat are held as state, equal to caches that are passed; what is not one stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import gaudicc
from gaudicc.capture import capture
from gaudicc.errors import NumericsError
from gaudicc.passes import SYMBOLIC, StaticState
from gaudicc.pipeline import Pipeline
from gaudicc.program import InputKind, OutputKind, Program
from gaudicc.targets import load_target
from gaudicc.verify import Level
from tests.growing import Layer, Pair

PAST, NEW = Dim("past", min=0, max=24), Dim("new", min=1, max=8)


class Stack(nn.Module):
    """Layers with a legacy cache: a list of (keys, values)."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, x: torch.Tensor, cache: list[Pair]) -> tuple[torch.Tensor, list[Pair]]:
        grown = []
        for layer, past in zip(self.layers, cache, strict=True):
            x, kept = layer(x, past)
            grown.append(kept)
        return x, grown


def stack(layers: int) -> Program:
    cache = [(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)) for _ in range(layers)]
    shapes = {"x": {1: NEW}, "cache": [({2: PAST}, {2: PAST})] * layers}
    return capture(Stack(layers).eval(), (torch.randn(1, 3, 8), cache), dynamic_shapes=shapes)


def plain(function: Callable[..., Any], *, rows: int = 5, dtype: torch.dtype = torch.float32) -> Program:
    """A function of `past` [rows, 3] and `x` [n, 3]."""
    inputs = (torch.ones(rows, 3, dtype=dtype), torch.randn(2, 3))
    return capture(function, inputs, dynamic_shapes={"past": {0: PAST}, "x": {0: NEW}})


def held(program: Program, **options: Any) -> tuple[Program, tuple[str, ...]]:
    after, records = Pipeline((StaticState(caches=True, **options),)).run(program, level=Level.NUMERICS)
    return after, records[-1].notes


@pytest.mark.parametrize("layers", [1, 3])
def test_every_cache_of_a_stack_becomes_state(layers: int) -> None:
    before = stack(layers)
    after, notes = held(before)
    caches = after.calling.caches
    assert [after.calling.paths[cache.argument] for cache in caches] == [
        f"cache[{layer}][{part}]" for layer in range(layers) for part in range(2)
    ]
    assert {tuple(after.tensors[cache.state].shape) for cache in caches} == {(1, 2, 33, 4)}
    assert [spec.source for spec in after.user_inputs()] == ["x", "cache[0][0]"]
    assert sum(spec.kind is OutputKind.STATE for spec in after.outputs) == 2 * layers
    assert notes == (f"{2 * layers} tensors that grow along past are state of {layers * 2112 / 2**20:.3g} MiB",)
    assert after.count_ops()["aten.slice_scatter"] == before.count_ops()["aten.cat"]
    assert "aten.cat" not in after.count_ops()
    assert len(after.bodies) == len(before.bodies), "a body that layers share stays one"


def test_it_is_off_unless_asked_for() -> None:
    program = stack(1)
    result = StaticState().run(program)
    assert (result.modified, result.notes) == (False, ())
    assert not result.program.calling.caches


def test_whatever_else_reads_the_cache_reads_its_valid_rows() -> None:
    def model(past: torch.Tensor, x: torch.Tensor) -> Any:
        grown = torch.cat([past, x])
        return past.sum(0), grown, grown.mean(0) * past.shape[0], torch.cat([past.exp(), x])

    after, _ = held(plain(model))
    assert [spec.kind for spec in after.outputs] == [
        OutputKind.USER, OutputKind.STATE, OutputKind.USER, OutputKind.USER
    ]  # fmt: skip
    assert after.calling.caches[0].result == 1


def test_a_view_that_needs_no_gaps_gets_a_copy() -> None:
    def model(past: torch.Tensor, x: torch.Tensor) -> Any:
        grown = torch.cat([past, x], 1)
        return grown, grown.view(-1)

    shapes = {"past": {1: PAST}, "x": {1: NEW}}
    program = capture(model, (torch.ones(2, 5, 3), torch.randn(2, 2, 3)), dynamic_shapes=shapes)
    after, _ = held(program)
    assert len(after.calling.caches) == 1
    assert after.count_ops()["aten.clone"] == 1


def test_a_fixed_number_of_new_rows() -> None:
    program = capture(
        lambda past, x: (torch.cat([past, x]), past.shape[0] * x),
        (torch.ones(5, 3), torch.randn(1, 3)),
        dynamic_shapes={"past": {0: PAST}, "x": None},
    )
    after, _ = held(program)
    assert after.calling.caches[0].grown == "(past + 1)" or after.calling.caches[0].grown == "(1 + past)"
    assert after.tensors[after.calling.caches[0].state].shape == (26, 3)


def test_two_caches_with_lengths_of_their_own() -> None:
    def model(past: torch.Tensor, memory: torch.Tensor, x: torch.Tensor) -> Any:
        return torch.cat([past, x]), torch.cat([memory, x]), x

    program = capture(
        model,
        (torch.ones(5, 3), torch.ones(4, 3), torch.randn(2, 3)),
        dynamic_shapes={"past": {0: PAST}, "memory": {0: Dim("other", min=1, max=9)}, "x": {0: NEW}},
    )
    after, notes = held(program)
    assert {cache.dimension: cache.grown for cache in after.calling.caches}.keys() == {"past", "other"}
    assert len(after.user_inputs()) == 3
    assert len(notes) == 2


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "not given back": (
        lambda past, x: torch.cat([past, x]).sum(0),
        "joined to new rows 1 times and given back 0 times",
    ),
    "given back twice": (
        lambda past, x: (torch.cat([past, x]), torch.cat([past, 2 * x])),
        "joined to new rows 2 times and given back 2 times",
    ),
    "laid out otherwise": (lambda past, x: torch.cat([past, x]).t(), "given back 0 times"),
    "three parts": (lambda past, x: torch.cat([past, x, x]), "more than one tensor is joined to it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_cache_stays_an_argument(name: str) -> None:
    function, reason = REFUSED[name]
    program = plain(function)
    after, notes = held(program)
    assert not after.calling.caches
    assert after.inputs == program.inputs
    assert any(note.startswith("past stays an argument: ") and reason in note for note in notes), notes


@pytest.mark.parametrize("cat", [torch.concat, torch.concatenate])
def test_other_words_for_cat(cat: Callable[..., torch.Tensor]) -> None:
    after, _ = held(plain(lambda past, x: (x.sum(), cat([past, x]))))
    assert len(after.calling.caches) == 1


def test_rows_in_front_are_no_cache() -> None:
    after, notes = held(plain(lambda past, x: torch.cat([2 * x, past])))
    assert not after.calling.caches
    assert notes == ("no argument is a cache that grows by cat",)


def test_a_cache_whose_dtype_changes_stays_an_argument() -> None:
    _, notes = held(plain(lambda past, x: torch.cat([past, x]), dtype=torch.float16))
    assert notes[0] == "past stays an argument: its dtype changes"


def test_a_cache_with_a_dynamic_batch_stays_an_argument() -> None:
    shapes = {"past": {0: Dim("batch", min=1, max=4), 1: PAST}, "x": {0: Dim("batch", min=1, max=4), 1: NEW}}
    program = capture(
        lambda past, x: torch.cat([past, x], 1), (torch.ones(2, 5, 3), torch.ones(2, 2, 3)), dynamic_shapes=shapes
    )
    _, notes = held(program)
    assert notes[0] == "past stays an argument: batch is dynamic too, and a buffer would have gaps"


def test_layers_that_share_a_body_are_held_together_or_not_at_all() -> None:
    class Drops(Stack):
        def forward(self, x: torch.Tensor, cache: list[Pair]) -> tuple[torch.Tensor, list[Pair]]:
            x, grown = super().forward(x, cache)
            return x, [grown[0], (grown[1][0], grown[1][1] * 2), *grown[2:]]

    cache = [(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)) for _ in range(3)]
    shapes = {"x": {1: NEW}, "cache": [({2: PAST}, {2: PAST})] * 3}
    program = capture(Drops(3).eval(), (torch.randn(1, 3, 8), cache), dynamic_shapes=shapes)
    assert len(program.bodies) == 1
    after, notes = held(program)
    kept = {after.calling.paths[cache.argument] for cache in after.calling.caches}
    assert kept == {"cache[0][0]", "cache[1][0]", "cache[2][0]"}
    assert notes[0].startswith("cache[1][1] stays an argument: it is joined to new rows 1 times and given back 0 times")
    assert set(notes[1:3]) == {
        f"cache[{layer}][1] stays an argument: layers that share a body treat theirs otherwise" for layer in (0, 2)
    }


def test_the_check_notices_a_wrong_row() -> None:
    class WritesTheFirstRow(StaticState):
        def run(self, program: Program) -> Any:
            result = super().run(program)
            (write,) = result.program.root.graph.find_nodes(
                op="call_function", target=torch.ops.aten.slice_scatter.default
            )
            write.args = (*write.args[:3], 0, write.args[4].args[1])
            result.program.root.recompile()
            return result

    program = plain(lambda past, x: (torch.cat([past, x]), x))
    with pytest.raises(NumericsError, match="pass static-state changed output 0 of call 0"):
        Pipeline((WritesTheFirstRow(caches=True),)).run(program, level=Level.NUMERICS)


def test_all_sides_of_a_model_need_buffers_of_one_size() -> None:
    after, _ = held(plain(lambda past, x: torch.cat([past, x])), largest=(("new", 30),))
    assert after.tensors["past"].shape == (24 + 30 + 1, 3)


def test_pads_never_reach_the_state() -> None:
    program = replace(stack(2), target=load_target("gaudi3"))
    steps = tuple(replace(step, caches=True) if isinstance(step, StaticState) else step for step in SYMBOLIC)
    padded, _ = Pipeline(steps).run(program, level=Level.NUMERICS)
    assert padded.padded is not None
    proofs = [proof.proved for proof in padded.padded.certificate.outputs]
    assert sum("none after it" in proof for proof in proofs) == 4
    ops = padded.count_ops()
    joined = (
        program.count_ops()["aten.cat"] * len(padded.bodies) // len(program.bodies)
    )  # bodies may be told apart by pads
    assert ops["aten.index_copy"] == joined, "rows are written, nothing is copied whole"
    assert "aten.constant_pad_nd" not in ops
    masks = [edit.reason for edit in padded.padded.certificate.masks]
    assert "pad keys are masked" in masks
    assert "keys and values of pads are finite" not in masks, "rows behind the valid ones are 0, as the host sees to"
    assert "aten.slice_scatter" not in ops


def test_a_buffer_that_is_written_by_index_is_static_already() -> None:
    class Static(nn.Module):
        keys: torch.Tensor
        total: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("keys", torch.zeros(8, 3))
            self.register_buffer("total", torch.zeros(3))

        def forward(self, x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
            self.keys.index_copy_(0, place, x)
            self.total.add_(x.sum(0))
            return self.keys.sum(0)

    program = capture(Static().eval(), (torch.ones(2, 3), torch.tensor([0, 1])))
    assert sum(spec.kind is InputKind.STATE for spec in program.inputs) == 2
    assert StaticState().run(program).notes == ("state keys is static: written by index as it is",)


def test_a_slice_that_is_written_into_a_view_of_no_buffer_stays() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        rows = (x + 1).view(6, 4)
        rows[:, 1:3] = x.view(6, 4)[:, :2]
        return rows

    program = capture(model, (torch.randn(2, 3, 4),))
    assert not StaticState().run(program).modified


def test_the_static_cache_of_transformers_is_static_already(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import StaticCache

    from gaudicc import backend
    from gaudicc.compiled import CompiledModel
    from gaudicc.models import load

    made: list[CompiledModel] = []

    def noted(*args: Any, **options: Any) -> CompiledModel:
        made.append(gaudicc.compile(*args, **options))
        return made[-1]

    monkeypatch.setattr(backend, "compile", noted)
    model, inputs = load("llama", layers=1)
    cache = StaticCache(config=model.config, max_cache_len=32)
    with torch.no_grad():
        model(input_ids=inputs["input_ids"][:, :4], past_key_values=cache, use_cache=True)
        step = torch.compile(model, backend="gaudicc", fullgraph=True)
        step(input_ids=inputs["input_ids"][:, 4:5], past_key_values=cache, use_cache=True)
    (compiled,) = made
    buffers = {id(cache.layers[0].keys), id(cache.layers[0].values)}
    static = {name for name, state in compiled.program.tensors.items() if id(state) in buffers}
    assert len(static) == 2
    assert set(compiled.trace["static-state"].notes) == {
        f"state {name} is static: written by index as it is" for name in static
    }
