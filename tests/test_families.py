"""Eight transformers families compile at tiny sizes: equal to eager, every op on the target's table, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
from torch import nn

import gaudicc
from gaudicc.compiled import CompiledModel
from gaudicc.errors import UnsupportedOpError
from gaudicc.interpreter import interpret
from gaudicc.invariants import verdict_of
from gaudicc.nodes import is_op, op_name
from gaudicc.targets import Support, load_target

pytest.importorskip("transformers", reason="needs gaudicc[models]")

from gaudicc.models.transformers_models import build, example_inputs, families

# Relative to the largest magnitude, as the passes' own numerics are judged.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

# No source names the dtypes that these take in every family; an op that joins them should be seen to do so.
PRESUMED = {"aten.index.Tensor"}

Compiled = tuple[nn.Module, dict[str, Any], CompiledModel]


@pytest.fixture(scope="module", params=families())
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
def compiled(request: pytest.FixtureRequest, family: str) -> Compiled:
    model = build(family, dtype=request.param)
    inputs = example_inputs(model)
    return model, inputs, gaudicc.compile(model, inputs)


def tensors(output: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}


def assert_near(found: Mapping[Any, torch.Tensor], expected: Mapping[Any, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        bound = TOLERANCE[value.dtype] * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(found[name], value, rtol=0, atol=bound)


def test_outputs_equal_eager_and_have_its_type(
    compiled: Compiled,
) -> None:
    model, inputs, served = compiled
    with torch.no_grad():
        expected = model(**inputs)
    found = served(**inputs)
    assert type(found) is type(expected)
    assert_near(tensors(found), tensors(expected))
    # other values of the same shapes: nothing of the example was frozen
    other = inputs | {"input_ids": inputs["input_ids"].flip(0), "attention_mask": inputs["attention_mask"].flip(0)}
    with torch.no_grad():
        expected = model(**other)
    assert_near(tensors(served(**other)), tensors(expected))


def test_every_op_is_on_the_table_and_the_rule_interpreter_agrees(
    compiled: Compiled,
) -> None:
    _, inputs, served = compiled
    program = served.static_program()
    ops = [node for _, module in program.graphs() for node in module.graph.nodes if is_op(node)]
    support = {op_name(node): verdict_of(node, program).support for node in ops}
    assert set(support.values()) <= {Support.EVIDENCED, Support.PRESUMED}
    assert {name for name, kind in support.items() if kind is Support.PRESUMED} <= PRESUMED
    given = {spec.name: inputs[spec.source] for spec in program.user_inputs()}
    judged = interpret(program.root, *program.feed(given), target=load_target("gaudi3"))
    assert not judged.fallbacks
    assert judged.calls > 20
    found = dict(enumerate(cast(tuple[torch.Tensor, ...], judged.outputs)))
    assert_near(found, dict(enumerate(program.run(given))))


def test_each_layer_kind_is_one_body(compiled: Compiled, family: str) -> None:
    program = compiled[2].program
    # Two blocks of t5 differ by the bias that the first one makes; of what they hold, self-attention and feed-forward of
    # encoder and decoder, and cross-attention, each is one body.
    kinds = 5 if family == "t5" else 1
    assert len(program.bodies) == kinds, list(program.bodies)


@torch.library.custom_op("gaudicc_tests::twist", mutates_args=(), device_types="cpu", schema="(Tensor x) -> Tensor")
def twist(x: torch.Tensor) -> torch.Tensor:
    """A kernel of the user's own, which no Gaudi has and no rule replaces."""
    return x.flip(0)


twist.register_fake(torch.empty_like)


class Twisted(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Any) -> Any:
        return twist(self.inner(**inputs)["logits"])


def test_an_op_beyond_the_table_is_refused_by_name_and_line() -> None:
    model = build("llama")
    with pytest.raises(UnsupportedOpError, match="twist") as caught:
        gaudicc.compile(Twisted(model).eval(), example_inputs(model))
    assert caught.value.where.op == "gaudicc_tests.twist"
    assert "test_families.py" in str(caught.value.where.source)
