"""check(): what it says of each op that does not run as it stands, and how long it takes on a deep model."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from gaudicc.checker import check
from gaudicc.models import load


def found(function: Any, *inputs: torch.Tensor) -> dict[str, tuple[str, ...]]:
    return {entry.finding.op: entry.remedies for entry in check(function, inputs).ops}


def test_a_rule_is_named_with_its_numerics_and_its_cost() -> None:
    remedies = found(lambda x: torch.histc(x, 4, -1, 1), torch.randn(8))
    (remedy,) = remedies["aten::histc"]
    assert remedy.startswith("legalize-ops: rule histc (rounding; costs ")


def test_what_eager_fallback_would_move_is_said() -> None:
    text = str(check(lambda x: (torch.histc(x, 4, -1, 1), x.nonzero()), (torch.randn(8),)))
    assert f"eager fallback would move: {8 * 4 + 4 * 4} bytes per call of the model" in text
    assert "eager fallback would move: as many bytes as data says" in text


def test_a_length_that_data_knows_is_bounded_not_refused() -> None:
    findings = check(lambda x: torch.nonzero(x > 0), (torch.randn(8),))
    (entry,) = [entry for entry in findings.ops if entry.finding.op == "aten::nonzero"]
    assert entry.remedies[0].startswith("bound-dynamic-ops: ")
    assert not findings.refused


def test_an_op_without_a_form_is_refused_by_name_also_as_a_part_and_where_a_rule_does_not_fit() -> None:
    for function, op in (
        (lambda x: torch.linalg.eigvalsh(x), "aten::linalg_eigvalsh"),
        (lambda x: torch.polygamma(9, x), "aten::polygamma"),
        (lambda x: torch.linalg.inv(x), None),
    ):
        refused = [entry.finding.op for entry in check(function, (torch.eye(3),)).refused]
        assert refused == ([op] if op else [])


@pytest.mark.sweep
def test_thirty_two_layers_take_less_than_fifteen_seconds() -> None:
    model, inputs = load("llama", layers=32)
    start = time.perf_counter()
    assert not check(model, dict(inputs)).refused
    assert time.perf_counter() - start < 15
