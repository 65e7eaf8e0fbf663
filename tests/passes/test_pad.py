"""pad: what it inserts, what it refuses and how the refusal reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from gaudicc.capture import capture
from gaudicc.errors import PaddingError
from gaudicc.padding import certificate_of
from gaudicc.padding.rules.table import FAMILIES, table_lines
from gaudicc.passes.pad import Pad
from gaudicc.program import InputKind, Program

DIMS = {"x": {0: Dim("b", min=1, max=8), 1: Dim("s", min=4, max=16)}}


def captured(function: Callable[[torch.Tensor], Any], example: torch.Tensor | None = None) -> Program:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return function(x)

    return capture(Model().eval(), (torch.randn(2, 6) if example is None else example,), dynamic_shapes=DIMS)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x + torch.rand_like(x), "random"),
        (lambda x: x.mode(1).values, "no padding rule"),
        (lambda x: x.kthvalue(2, 1).indices, "position"),
        (lambda x: torch.argmax(x), "several padded dims"),
        (lambda x: torch.nn.functional.layer_norm(x, (x.shape[1],)), "dynamic dim"),
        (lambda x: torch.ops.aten.squeeze.default(x), "may be 1"),
        (lambda x: x[x > 0], "bool mask|data only|no padding rule"),
    ],
    ids=["random", "mode", "kthvalue-indices", "argmax-all", "layer-norm", "squeeze", "mask-index"],
)
def test_refusals_name_the_op_and_the_line(function: Callable[[torch.Tensor], Any], reason: str) -> None:
    with pytest.raises(PaddingError, match=reason) as caught:
        Pad().run(captured(function))
    assert caught.value.where.op
    assert "test_pad.py" in str(caught.value.where.source)


def test_a_static_program_is_left_alone() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum()

    program = capture(Model().eval(), (torch.randn(2, 6),))
    assert not Pad().run(program).modified


def test_lengths_are_inputs_and_default_to_the_sizes() -> None:
    program = captured(lambda x: x.exp().sum(1) / x.shape[1])
    padded = Pad().run(program.copy()).program
    assert [spec.source for spec in padded.inputs if spec.kind is InputKind.LENGTH] == ["b", "s"]
    x = torch.randn(3, 5)
    torch.testing.assert_close(padded.run({"x": x}), program.run({"x": x}))


def test_masks_are_shared_and_written_down() -> None:
    padded = Pad().run(captured(lambda x: (x.exp().sum(1), x.exp().sum(1) * 2, (x + 1).amax(1)))).program
    certificate = certificate_of(padded)
    ops = [str(node.target) for node in padded.root.graph.nodes]
    assert ops.count("aten.lt.Tensor") == 1
    assert {edit.op for edit in certificate.masks} == {"aten.sum.dim_IntList", "aten.amax"}
    assert all(edit.source and "test_pad.py" in edit.source for edit in certificate.masks)


def test_a_product_with_zeros_rests_on_finite_pads() -> None:
    def masked_sum(x: torch.Tensor) -> torch.Tensor:
        return (x * x.cos()).sum(1)

    loose = certificate_of(Pad().run(captured(masked_sum)).program)
    strict = certificate_of(Pad(strict=True).run(captured(masked_sum)).program)
    assert not loose.masks or loose.finite == ()
    assert strict.finite == ()


def test_the_table_covers_each_op_once() -> None:
    ops = [op for rules in FAMILIES.values() for rule in rules for op in rule.ops]
    assert len(ops) == len(set(ops))
    text = "\n".join(table_lines())
    assert all(str(op).removesuffix(".default") in text for op in ops)
    page = Path(__file__).parents[2] / "docs" / "tables" / "padding_rules.md"
    assert page.read_text() == f"{text}\n", "run python -m gaudicc.padding > docs/tables/padding_rules.md"
