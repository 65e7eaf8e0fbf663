"""partition-layers: region calls are numbered by sub-graph as the machine model finds cheapest, and nothing else changes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gaudicc
from gaudicc.compiled import CompiledModel
from gaudicc.machine import load_chip
from gaudicc.machine.fx_partition import stretch_of, stretches
from gaudicc.machine.partition import choose_partition
from gaudicc.nodes import call_region
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.passes.partition_layers import PartitionLayers
from gaudicc.program import Program

LAYERS = 6


def numbers(program: Program) -> list[int]:
    return [n.meta["subgraph"] for n in program.root.graph.nodes if n.target is call_region]


def compiled(make_stack: Any, size: int = 8, **options: Any) -> CompiledModel:
    passes = [PartitionLayers(**options) if isinstance(step, PartitionLayers) else step for step in DEFAULT_PIPELINE]
    return gaudicc.compile(make_stack(LAYERS), (torch.randn(size, 8),), passes=passes)


def test_layers_that_launching_binds_share_one_sub_graph(make_stack: Any) -> None:
    model = compiled(make_stack)
    assert numbers(model.static_program()) == [0] * LAYERS
    (note,) = model.trace["partition-layers"].notes
    assert re.match(
        r"6 calls of \w+ in sub-graphs of 6: 1 launches, [\d.]+ us a call, .* modelled on gaudi3; others: 1: 6 ", note
    )
    assert "10,000 calls pay back compiling" in note


@pytest.mark.parametrize("layers", [1, 2, 4, 99])
def test_a_user_decides(make_stack: Any, layers: int) -> None:
    assert numbers(compiled(make_stack, layers=layers).static_program()) == [i // layers for i in range(LAYERS)]


def test_a_bundle_keeps_the_choice(make_stack: Any, tmp_path: Path) -> None:
    model = compiled(make_stack, layers=4)
    model.save(tmp_path / "bundle")
    assert numbers(gaudicc.load(tmp_path / "bundle").static_program()) == [0, 0, 0, 0, 1, 1]


def test_a_model_that_is_called_once_compiles_least(make_stack: Any) -> None:
    assert numbers(compiled(make_stack, calls=0).static_program()) == list(range(LAYERS))


def test_the_choice_is_the_models_and_only_meta_changes(make_stack: Any, text_of: Any) -> None:
    model = compiled(make_stack)
    program = model.trace["partition-layers"].before
    assert not any("subgraph" in n.meta for n in program.root.graph.nodes), "the stage before is left alone"
    (calls,) = stretches(program.root)
    choice = choose_partition(stretch_of(program.root, calls, load_chip("gaudi3")), load_chip("gaudi3"))
    assert numbers(model.static_program()) == [i // choice.best.size for i in range(LAYERS)]
    assert text_of(PartitionLayers(layers=2).run(program.copy()).program) == text_of(program)
    again = PartitionLayers(layers=2).run(PartitionLayers(layers=2).run(program.copy()).program)
    assert not again.modified


class Apart(nn.Module):
    """Layers with something computed between the second and the third."""

    def __init__(self, stack: nn.Module) -> None:
        super().__init__()
        self.layers = stack.layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):  # type: ignore[arg-type]
            x = layer(x) if i != 2 else layer(x.flip(0))
        return x


def test_what_is_computed_between_layers_keeps_them_apart(make_stack: Any) -> None:
    model = gaudicc.compile(Apart(make_stack(LAYERS)).eval(), (torch.randn(8, 8),))
    assert numbers(model.static_program()) == [0, 0, 1, 1, 1, 1]
    assert len(model.trace["partition-layers"].notes) == 2


def test_a_stretch_of_two_is_timed_by_the_vendors_policy(make_stack: Any) -> None:
    root = compiled(make_stack).static_program().root
    (calls,) = stretches(root)
    stretch = stretch_of(root, calls, load_chip("gaudi3"))
    assert len(stretch.order) == LAYERS
    (layer,) = stretch.layers.values()
    assert layer.nodes > 0
    assert layer.handed_bytes == 8 * 8 * 4
    assert set(stretch.gains.values()) == {0.0}, "a layer that reads all of the one before overlaps nothing of it"
