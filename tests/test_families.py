"""Eight transformers families compile at tiny sizes: equal to eager, every op on the target's table, or refused by name."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import pytest
import torch
from torch import nn

import gaudicc
from gaudicc.compiled import CompiledModel
from gaudicc.errors import UnsupportedOpError
from gaudicc.interpreter import interpret
from gaudicc.invariants import verdict_of
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.passes.legalize_ops import LegalizeOps
from gaudicc.program import is_op, op_name
from gaudicc.targets import Support, load_target

pytest.importorskip("transformers", reason="needs gaudicc[models]")

from gaudicc.models.transformers_models import build, example_inputs, families  # noqa: E402

# Relative to the largest magnitude, as the passes' own numerics are judged.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module", params=families())
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
def compiled(request: pytest.FixtureRequest, family: str) -> tuple[nn.Module, dict[str, Any], CompiledModel]:
    model = cast(nn.Module, build(family, dtype=request.param))
    inputs = example_inputs(model)
    return model, inputs, gaudicc.compile(model, inputs)


def tensors(output: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        bound = TOLERANCE[value.dtype] * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(found[name], value, rtol=0, atol=bound, msg=lambda text, name=name: f"{name}: {text}")


def test_outputs_equal_eager_and_have_its_type(
    compiled: tuple[nn.Module, dict[str, Any], CompiledModel],
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
    compiled: tuple[nn.Module, dict[str, Any], CompiledModel],
) -> None:
    _, inputs, served = compiled
    program = served.static_program()
    verdicts = Counter(
        verdict_of(node, program).support for _, module in program.graphs() for node in module.graph.nodes if is_op(node)
    )
    assert set(verdicts) <= {Support.EVIDENCED, Support.PRESUMED}
    assert verdicts[Support.EVIDENCED] > 9 * verdicts[Support.PRESUMED]
    feed = program.feed({spec.name: inputs[spec.source] for spec in program.user_inputs()})
    judged = interpret(program.root, *feed, target=load_target("gaudi3"))
    assert not judged.fallbacks
    assert judged.calls > 20
    expected = program.run({spec.name: inputs[spec.source] for spec in program.user_inputs()})
    for found, value in zip(cast(Any, judged.outputs), expected, strict=True):
        bound = TOLERANCE[value.dtype] * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(found, value, rtol=0, atol=bound)


def test_each_layer_kind_is_one_body(compiled: tuple[nn.Module, dict[str, Any], CompiledModel], family: str) -> None:
    program = compiled[2].program
    kinds = 2 if family == "t5" else 1  # the layers of encoder and decoder
    assert len(program.bodies) == kinds, list(program.bodies)


def test_without_rules_what_is_missing_is_named_with_its_line(family: str) -> None:
    bare = [LegalizeOps(rules=()) if step.name == "legalize-ops" else step for step in DEFAULT_PIPELINE]
    model = cast(nn.Module, build(family))
    try:
        served = gaudicc.compile(model, example_inputs(model), passes=bare)
    except UnsupportedOpError as error:
        assert error.where.op in {str(op).removesuffix(".default") for rule in LegalizeOps().rules for op in rule.ops}
        assert error.where.source
        assert ".py:" in error.where.source
    else:
        names = {note for record in served.trace.records for note in record.notes if "rule " in note}
        assert not names
