"""State-space and recurrent models of transformers, whose layers loop over the sequence, compiled with symbolic sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import gaudicc
from gaudicc.capture import capture_sides
from gaudicc.nodes import call_loop
from gaudicc.program import Program

families = pytest.importorskip("gaudicc.models.transformers_models", reason="needs gaudicc[models]")
BATCH = Dim("batch", min=1, max=4)
SHAPES = ((2, 9), (1, 16), (3, 5), (4, 64))
FAMILIES = ("falcon_mamba", "jamba", "zamba", "rwkv", "recurrent_gemma")


def tiny(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, dict[str, Any]]:
    model = families.build(name, task="causal", dtype=dtype)
    inputs = families.example_inputs(model)
    with torch.no_grad():
        model(**inputs)  # rwkv scales its weights when it is first called
    return model, inputs


def shapes_of(inputs: dict[str, Any], most: int) -> dict[str, Any]:
    sequence = Dim("sequence", min=1, max=most)
    return {name: {0: BATCH, 1: sequence} for name, value in inputs.items() if isinstance(value, torch.Tensor)}


def nodes_of(program: Program) -> int:
    return sum(len(graph.graph.nodes) for _, graph in program.graphs())


def as_in_eager(model: nn.Module, inputs: dict[str, Any]) -> None:
    compiled = gaudicc.compile(
        model, inputs, dynamic_shapes=shapes_of(inputs, 64), buckets=[{"batch": 4, "sequence": 64}]
    )
    for batch, steps in SHAPES:
        call = dict(inputs, input_ids=torch.randint(3, 90, (batch, steps)))
        if "attention_mask" in call:
            call["attention_mask"] = torch.ones(batch, steps, dtype=torch.int64)
        with torch.no_grad():
            expected = model(**call).logits
        torch.testing.assert_close(compiled(**call).logits, expected, rtol=1e-4, atol=1e-4)


def test_mamba_is_right_for_every_length() -> None:
    as_in_eager(*tiny("mamba"))


@pytest.mark.sweep
@pytest.mark.parametrize("name", FAMILIES)
def test_family_is_right_for_every_length(name: str) -> None:
    as_in_eager(*tiny(name))


@pytest.mark.sweep
def test_a_state_that_the_first_trip_widens() -> None:
    """In bfloat16 the state of mamba starts narrow and is float32 after a trip."""
    as_in_eager(*tiny("mamba", torch.bfloat16))


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["mamba", *FAMILIES])
def test_the_program_is_as_large_for_64_as_for_512_steps(name: str) -> None:
    model, inputs = tiny(name)

    def programs(most: int) -> list[Program]:
        return [side.program for side in capture_sides(model, inputs, dynamic_shapes=shapes_of(inputs, most))]

    short, long = programs(64), programs(512)
    assert [nodes_of(program) for program in short] == [nodes_of(program) for program in long]
    loops = [node for _, graph in short[0].graphs() for node in graph.graph.nodes if node.target is call_loop]
    assert loops
